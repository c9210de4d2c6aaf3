"""The released pairs of GoPro: found among the source frames, checked, and copied as they are."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.data.errors import BadFileError, DataSetError
from src.data.exposures import frame_index
from src.data.frames import list_frames, read_image
from src.paths import atomic_write
from src.prepare.sources.film_plan import FilmWindow
from src.prepare.sources.video import FrameFolder

# Released frames differ from recomputed ones by rounding only.
MAX_MEAN_ERROR = 1.0  # grey levels


@dataclass(frozen=True)
class ReleasedPairs:
    """Blurry and sharp frames of a clip, in order; the order is right, their numbers are not.

    Attributes:
        folder: of the clip.
        blurry, sharp: files of the same names.
        num_bytes: size of all files.
    """

    folder: Path
    blurry: tuple[Path, ...]
    sharp: tuple[Path, ...]
    num_bytes: int

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.sharp)


def read_pairs(folder: Path, blur_kind: str) -> ReleasedPairs:
    """Return the pairs in `folder/{blur_kind,sharp}`.

    Raises:
        DataSetError: no such folders, names without numbers, or names that are only in one.
    """
    blurry = list_frames(folder / blur_kind, [".png"])
    sharp = list_frames(folder / "sharp", [".png"])
    lonely = sorted(blurry.keys() ^ sharp.keys())
    if lonely:
        names = ", ".join(lonely[:10])
        raise DataSetError(
            str(folder), [f"{len(lonely)} frames are not in both {blur_kind} and sharp: {names}"]
        )
    if not sharp:
        reason = f"no frames in {blur_kind} and sharp; get the clip, or move the pairs elsewhere"
        raise DataSetError(str(folder), [reason])
    try:
        names = sorted(sharp, key=frame_index)
    except ValueError as error:
        raise DataSetError(str(folder), [str(error)]) from error
    files = [tuple(found[name] for name in names) for found in (blurry, sharp)]
    return ReleasedPairs(folder, *files, sum(f.stat().st_size for side in files for f in side))


def find_offset(pairs: ReleasedPairs, frames: FrameFolder, averaged: int, hint: int) -> int:
    """Return by how many source frames the windows of a clip begin early.

    The first sharp frame is source frame (n - 1) / 2 - offset.

    Args:
        pairs: of the clip.
        frames: its source frames.
        averaged: n.
        hint: what the name says; decides between source frames that are equal to each other.

    Raises:
        DataSetError: no source frame equals it.
        BadFileError: a frame that cannot be read.
    """
    middle = (averaged - 1) // 2
    first = read_image(pairs.sharp[0])
    errors = [mean_error(first, frame) for frame in _first_frames(frames, middle + 1)]
    best = int(np.argmin(errors))
    if 0 <= middle - hint < len(errors) and errors[middle - hint] == errors[best]:
        best = middle - hint
    if not errors[best] < MAX_MEAN_ERROR:
        raise DataSetError(
            str(pairs.folder),
            [
                f"sharp/{pairs.sharp[0].name} equals none of the first {len(errors)} source frames "
                f"in {frames.path}: the nearest is {frames.files[best].name} with a mean error of "
                f"{errors[best]:.2f} grey levels, below {MAX_MEAN_ERROR:g} is needed; is one of "
                "the two another version?"
            ],
        )
    return middle - best


def mean_error(image: np.ndarray, other: np.ndarray) -> float:
    """Return the mean absolute difference of two uint8 images in grey levels.

    Infinite where their sizes differ.
    """
    if image.shape != other.shape:
        return float("inf")
    return float(np.abs(image.astype(np.int16) - other).mean())


@dataclass(frozen=True)
class PairSink:
    """Puts the released files in the place of the computed frames, after comparing them."""

    pairs: ReleasedPairs

    def put(self, folder: Path, window: FilmWindow, kind: str, image: np.ndarray) -> None:
        """Copy the released frame of a window byte for byte under our name.

        Raises:
            BadFileError: it cannot be read, or differs from what was computed.
        """
        released = (self.pairs.sharp if kind == "sharp" else self.pairs.blurry)[window.index]
        error = mean_error(read_image(released), image)
        if not error < MAX_MEAN_ERROR:
            made = "its source frame" if kind == "sharp" else "the mean of its source frames"
            raise BadFileError(
                released,
                f"differs from {made} by {error:.2f} grey levels on average, below "
                f"{MAX_MEAN_ERROR:g} is needed (frame {window.name} of ours); it is another "
                "version, or frames before it are missing" + self._gap_before(window.index),
            )
        with atomic_write(folder / kind / f"{window.name}.png") as partial:
            shutil.copyfile(released, partial)

    def _gap_before(self, index: int) -> str:
        numbers = [frame_index(path.stem) for path in self.pairs.sharp[: index + 1]]
        for before, after in zip(numbers, numbers[1:], strict=False):
            if after != before + 1:
                return f": after {before} comes {after}"
        return ""


def _first_frames(frames: FrameFolder, count: int) -> Iterator[np.ndarray]:
    for path in frames.files[:count]:
        yield read_image(path)
