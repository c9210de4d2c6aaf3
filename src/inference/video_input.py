"""A video in place of a folder of blurry frames, decoded frame by frame."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from src.data.errors import BadFileError
from src.data.frames import read_image
from src.data.inputs import InputFolders
from src.prepare.sources.video import probe_video, read_video

logger = logging.getLogger(__name__)
MAX_PASSES = 2  # at a time: scoring follows restoring at a distance


@dataclass
class Pass:
    """A decoder somewhere in a video."""

    frames: Iterator[np.ndarray]
    next: int = 0
    latest: np.ndarray | None = None

    def read(self, number: int) -> np.ndarray:
        """Return a frame from the latest one on."""
        if number >= self.next:
            self.latest = next(islice(self.frames, number - self.next, None))
            self.next = number + 1
        return self.latest


class VideoInput:
    """The frames of a video, named by their numbers: the path of frame 7 is `VIDEO/000007`.

    Attributes:
        frames: Path by name, as of a folder.
        notes: What the user should know about the file.

    Raises:
        BadFileError: It is no video, or one whose frames are not what they seem.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        count, _, self.notes = probe_video(path)
        self.frames = {name: path / name for name in (f"{i:06d}" for i in range(count))}
        self._passes: list[Pass] = []

    def read(self, path: Path) -> np.ndarray:
        """Return a frame of the video, or an image file: uint8 [H, W, 3].

        Frames are read forwards; what lies behind every decoder is decoded again from the start.
        """
        if path.parent != self.path:
            return read_image(path)
        number = int(path.name)
        behind = [found for found in self._passes if found.next <= number + 1]
        if behind:
            nearest = max(behind, key=lambda found: found.next)
        else:
            nearest = Pass(read_video(self.path))
            self._passes = [*self._passes, nearest][-MAX_PASSES:]
        try:
            return nearest.read(number)
        except StopIteration:
            raise BadFileError(self.path, f"has no frame {number} any more") from None


def find_inputs(
    blurry: Path,
    spikes: Path | None = None,
    sharp: Path | None = None,
    spike_size: tuple[int, int] | None = None,
) -> InputFolders:
    """Return what the user gives for testing, where `blurry` may be a video."""
    inputs = InputFolders(blurry, spikes, sharp, spike_size)
    if not blurry.is_file():
        return inputs
    video = VideoInput(blurry)
    for note in video.notes:
        logger.info("%s: %s", blurry, note)
    return replace(inputs, frames=video.frames, read=video.read)
