"""The frames of a high-speed recording, one after the other: a folder of images or a video file."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from src.data.errors import BadFileError, DataSetError
from src.data.exposures import frame_index
from src.data.frames import list_frames, read_image

IMAGE_EXTS = (".png", ".jpg", ".jpeg", ".bmp")
VIDEO_EXTS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")
MAX_GAPS_NAMED = 10


@dataclass(frozen=True)
class HighSpeedFrames:
    """Sharp frames in order of time; only one is held at a time, and no file is left open.

    Attributes:
        path: the folder of images, or the video file.
        files: the images, or the video file.
        num_frames: as the folder holds or the video states.
        size: (height, width).
        num_bytes: size of all files.
    """

    path: Path
    files: tuple[Path, ...]
    num_frames: int
    size: tuple[int, int]
    num_bytes: int

    def __len__(self) -> int:
        """Return the number of frames."""
        return self.num_frames

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield uint8 RGB [H, W, 3].

        Raises:
            BadFileError: a frame that cannot be read or has another size, by name, or a video with
                another number of frames than it states.
        """
        if self.files == (self.path,):
            yield from self._decoded()
            return
        for path in self.files:
            image = read_image(path)
            if image.shape[:2] != self.size:
                raise BadFileError(
                    path, f"is {image.shape[:2]}, the first frame of its folder {self.size}"
                )
            yield image

    def _decoded(self) -> Iterator[np.ndarray]:
        count = 0
        for count, frame in enumerate(_decode(self.path), start=1):
            if count > self.num_frames:
                break
            yield frame
        if count != self.num_frames:
            found = f"only {count}" if count < self.num_frames else "more"
            raise BadFileError(
                self.path,
                f"states {self.num_frames} frames, but {found} can be decoded; it is cut off or "
                "damaged: get it again, or turn what is there into images with "
                "'ffmpeg -i VIDEO -fps_mode passthrough FOLDER/%06d.png'",
            )


def open_frames(path: str | Path, first_number: int | None = None) -> HighSpeedFrames:
    """Return the images of a folder in order of the numbers that end their names, or a video.

    Args:
        path: a folder of .png, .jpg, .jpeg or .bmp files, or a video file.
        first_number: number of the first image; None where it may be any.

    Raises:
        DataSetError: no images, names without numbers, or numbers that are missing or occur twice.
        BadFileError: the first image or the video cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        return _open_video(path)
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
    num_bytes = sum(p.stat().st_size for p in paths)
    return HighSpeedFrames(path, paths, len(paths), image_size(paths[0]), num_bytes)


def _open_video(path: Path) -> HighSpeedFrames:
    capture = cv2.VideoCapture(str(path))
    num_frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    capture.release()
    first = next(_decode(path), None)
    if first is None or num_frames < 1:
        raise BadFileError(
            path, "cannot be decoded as a video; get it again, or give a folder of images"
        )
    return HighSpeedFrames(path, (path,), num_frames, first.shape[:2], path.stat().st_size)


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of an image; of a PNG only its first bytes are read.

    Raises:
        BadFileError: the image cannot be read.
    """
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
    if gaps:
        more = f" and {len(gaps) - MAX_GAPS_NAMED} more gaps" if len(gaps) > MAX_GAPS_NAMED else ""
        problems.append(
            f"images {', '.join(gaps[:MAX_GAPS_NAMED])}{more} are missing between {first} and "
            f"{last}; time would jump there: get them again"
        )
    twice = sorted({a for a, b in pairs if a == b})
    if twice:
        problems.append(f"numbers {twice[:MAX_GAPS_NAMED]} exist under several names")
    return problems


def _decode(path: Path) -> Iterator[np.ndarray]:
    """Yield the frames of a video: uint8 RGB [H, W, 3]."""
    capture = cv2.VideoCapture(str(path))
    try:
        while True:
            is_read, frame = capture.read()
            if not is_read:
                return
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    finally:
        capture.release()
