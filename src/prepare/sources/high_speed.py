"""Sharp high-speed frames in order of time: a folder of images, a video, a recording of a camera.

What is wrong with the names of images, with a video or with the header of a recording is found
before the first frame is used.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from src.data.errors import BadFileError, DataSetError, listed
from src.data.exposures import frame_index
from src.data.frames import list_frames, read_image
from src.data.video import VIDEO_EXTS, probe_video, read_video
from src.prepare.sources.mraw import MRAW_EXTS, find_mraw, read_mraw
from src.prepare.sources.planning import IMAGE_EXTS, file_size

RECORDING_EXTS = (*VIDEO_EXTS, *MRAW_EXTS)  # of files that are a whole recording
MAX_NAMED = 10
MAX_SPREAD = 20  # numbers per image; above it they do not count frames


@dataclass(frozen=True)
class HighSpeedFrames:
    """Sharp frames in order of time; only one is held at a time, and no file is left open."""

    path: Path  # the folder of images, or the file of the recording
    files: tuple[Path, ...]  # all that it is read from
    num_frames: int
    size: tuple[int, int]  # (height, width)
    read: Callable[[], Iterator[np.ndarray]]  # yields uint8 RGB [H, W, 3]; picklable
    notes: tuple[str, ...] = ()  # what its files state and the user should know
    frames_per_second: float | None = None  # at which it was recorded, where its header says so

    def __len__(self) -> int:
        """Return the number of frames."""
        return self.num_frames

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield uint8 RGB [H, W, 3]."""
        return self.read()

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(map(file_size, self.files))


def open_frames(path: str | Path, first_number: int | None = None) -> HighSpeedFrames:
    """Return the images of a folder in order of the numbers that end their names, or a recording.

    The first image has the number `first_number`, or any.
    """
    path = Path(path)
    if path.suffix.lower() in MRAW_EXTS and not path.is_dir():
        header, raw = find_mraw(path)
        read = partial(read_mraw, raw, header)
        size, notes = (header.height, header.width), header.notes
        files, rate = (raw, header.path), header.frames_per_second
        return HighSpeedFrames(path, files, header.num_frames, size, read, notes, rate)
    if not path.is_dir():
        count, size, notes = probe_video(path)
        return HighSpeedFrames(path, (path,), count, size, partial(read_video, path), tuple(notes))
    files = list_frames(path, IMAGE_EXTS)
    if not files:
        raise DataSetError(str(path), [f"no images; files {', '.join(IMAGE_EXTS)} are needed"])
    try:
        numbers = {name: frame_index(name) for name in files}
    except ValueError as error:
        raise DataSetError(str(path), [str(error)]) from error
    problems = _numbering_problems(sorted(numbers.values()), first_number)
    if problems:
        raise DataSetError(str(path), problems)
    paths = tuple(files[name] for name in sorted(files, key=numbers.__getitem__))
    size = image_size(paths[0])
    return HighSpeedFrames(path, paths, len(paths), size, partial(_read_images, paths, size))


def _read_images(paths: Sequence[Path], size: tuple[int, int]) -> Iterator[np.ndarray]:
    for path in paths:
        image = read_image(path)
        if image.shape[:2] != size:
            raise BadFileError(path, f"is {image.shape[:2]}, the first frame of its folder {size}")
        yield image


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of an image; of a PNG only its first bytes are read."""
    try:
        with path.open("rb") as handle:
            start = handle.read(24)
    except OSError as error:
        raise BadFileError(path, f"cannot be read: {error.strerror}") from error
    if len(start) == 24 and start[:4] == b"\x89PNG" and start[12:16] == b"IHDR":
        return int.from_bytes(start[20:24], "big"), int.from_bytes(start[16:20], "big")
    height, width = read_image(path).shape[:2]
    return height, width


def _numbering_problems(numbers: list[int], first_number: int | None) -> list[str]:
    """Say what is wrong with ascending numbers."""
    problems, first, last = [], numbers[0], numbers[-1]
    if first_number is not None and first != first_number:
        needed = f"{first_number} is needed; images are missing"
        problems.append(f"the first image has number {first}, {needed}")
    pairs = list(zip(numbers, numbers[1:], strict=False))
    gaps = [f"{a + 1}" if b == a + 2 else f"{a + 1} to {b - 1}" for a, b in pairs if b > a + 1]
    if last - first > MAX_SPREAD * len(numbers):
        problems.append(
            f"the names are no numbers of frames ({first}, ... {last}), perhaps times; rename the "
            f"{len(numbers)} images in order: 000000, 000001 ..."
        )
    elif gaps:
        problems.append(
            f"images {listed(gaps, MAX_NAMED)} are missing between {first} and {last}; time would "
            "jump there: get them again"
        )
    twice = sorted({a for a, b in pairs if a == b})
    if twice:
        problems.append(f"numbers {twice[:MAX_NAMED]} exist under several names")
    return problems
