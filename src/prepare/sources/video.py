"""The frames of a high-speed recording, one after the other: a folder of images or a video file.

Nothing is held but the frame at hand, and the objects hold no open file, so they can be sent to
worker processes.
"""

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
class FrameFolder:
    """Sharp frames in order of time: a folder of image files; see `open_folder`.

    Attributes:
        path: the folder.
        files: the images.
        size: (height, width).
        num_bytes: size of all files.
    """

    path: Path
    files: tuple[Path, ...]
    size: tuple[int, int]
    num_bytes: int

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.files)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield uint8 RGB [H, W, 3].

        Raises:
            BadFileError: a frame that cannot be read or has another size, by name.
        """
        for path in self.files:
            image = read_image(path)
            if image.shape[:2] != self.size:
                raise BadFileError(
                    path, f"is {image.shape[:2]}, the first frame of its folder {self.size}"
                )
            yield image


@dataclass(frozen=True)
class FrameVideo:
    """A video file; see `open_video`."""

    path: Path
    num_frames: int
    size: tuple[int, int]
    num_bytes: int

    @property
    def files(self) -> tuple[Path, ...]:
        """The video file."""
        return (self.path,)

    def __len__(self) -> int:
        """Return the number of frames that the file states."""
        return self.num_frames

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield uint8 RGB [H, W, 3]; see `FrameFolder`."""
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


HighSpeedFrames = FrameFolder | FrameVideo


def open_frames(path: str | Path, first_number: int | None = None) -> HighSpeedFrames:
    """Return the frames of a folder of images, or of a video file.

    Args:
        path: folder or file.
        first_number: number of the first image; None where it may be any.

    Raises:
        DataSetError, BadFileError: see `open_folder` and `open_video`.
    """
    path = Path(path)
    return open_folder(path, first_number) if path.is_dir() else open_video(path)


def open_folder(folder: str | Path, first_number: int | None = None) -> FrameFolder:
    """Return the images of a folder in order of the numbers that end their names.

    Args:
        folder: of .png, .jpg, .jpeg or .bmp files.
        first_number: number of the first image; None where it may be any.

    Raises:
        DataSetError: no images, names without numbers, or numbers that are missing or there twice.
        BadFileError: the first image cannot be read.
    """
    folder = Path(folder)
    files = list_frames(folder, IMAGE_EXTS)
    if not files:
        raise DataSetError(str(folder), [f"no images; files {', '.join(IMAGE_EXTS)} are needed"])
    try:
        numbers = {name: frame_index(name) for name in files}
    except ValueError as error:
        raise DataSetError(str(folder), [str(error)]) from error
    names = sorted(files, key=numbers.__getitem__)
    problems = _numbering_problems([numbers[name] for name in names], first_number)
    if problems:
        raise DataSetError(str(folder), problems)
    paths = tuple(files[name] for name in names)
    return FrameFolder(folder, paths, image_size(paths[0]), sum(p.stat().st_size for p in paths))


def open_video(path: str | Path) -> FrameVideo:
    """Return the frames of a video file, in the colours that OpenCV decodes.

    Raises:
        BadFileError: not a video, without a number of frames, or one whose first frame is damaged.
    """
    path = Path(path)
    capture = cv2.VideoCapture(str(path))
    try:
        num_frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    finally:
        capture.release()
    first = next(_decode(path), None)
    if first is None or num_frames < 1:
        raise BadFileError(
            path, "cannot be decoded as a video; get it again, or give a folder of images"
        )
    return FrameVideo(path, num_frames, first.shape[:2], path.stat().st_size)


def video_frames_per_second(path: str | Path) -> float | None:
    """Return the rate that a video file states; slow motion usually states the rate of playing."""
    capture = cv2.VideoCapture(str(path))
    try:
        rate = capture.get(cv2.CAP_PROP_FPS)
    finally:
        capture.release()
    return rate if rate > 0 else None


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
    problems = []
    if first_number is not None and numbers[0] != first_number:
        problems.append(
            f"the first image has number {numbers[0]}, {first_number} is needed; images are missing"
        )
    gaps = [
        f"{before + 1}" if after == before + 2 else f"{before + 1} to {after - 1}"
        for before, after in zip(numbers, numbers[1:], strict=False)
        if after > before + 1
    ]
    if gaps:
        more = f" and {len(gaps) - MAX_GAPS_NAMED} more gaps" if len(gaps) > MAX_GAPS_NAMED else ""
        problems.append(
            f"images {', '.join(gaps[:MAX_GAPS_NAMED])}{more} are missing between {numbers[0]} and "
            f"{numbers[-1]}; time would jump there: get them again"
        )
    twice = sorted({a for a, b in zip(numbers, numbers[1:], strict=False) if a == b})
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
