"""Image files: reading, listing, writing."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np

from src.data.errors import BadFileError, DataSetError, refuse_undecodable, with_patience
from src.paths import atomic_write

ImageReader = Callable[[Path], np.ndarray]

PNG_SIGNATURE = b"\x89PNG"
PNG_END_SEARCH_BYTES = 4096
JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
JPEG_END_SEARCH_BYTES = 1 << 16  # cameras may append notes of their own
BMP_START, BMP_SIZE = b"BM", slice(2, 6)  # little endian


def read_image(path: str | Path) -> np.ndarray:
    """Read an 8 bit image as RGB: uint8 [H, W, 3].

    Grey images become three equal channels. An alpha channel is accepted where it is opaque
    everywhere, and left out. Orientation tags are ignored, the pixels are taken as stored.
    """
    path = Path(path)
    try:
        data = with_patience(path, path.read_bytes)
    except OSError as error:
        raise BadFileError(path, f"cannot be read: {error.strerror}") from error
    if data[:4] == PNG_SIGNATURE and b"IEND" not in data[-PNG_END_SEARCH_BYTES:]:
        raise BadFileError(path, f"truncated PNG file of {len(data)} bytes; copy it again")
    image = None
    if data:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise BadFileError(
            path, f"truncated or not an image ({len(data)} bytes, starts with {data[:8]!r})"
        )
    return _as_rgb(path, image)


def is_cut_short(path: str | Path) -> bool:
    """Tell from its first and last bytes whether an image is empty, cut short, or unreadable.

    Known are PNG, JPEG and BMP files. Pixels are not decoded, so False does not promise that they
    can be.
    """
    try:
        with Path(path).open("rb") as handle:
            start = handle.read(BMP_SIZE.stop)
            size = handle.seek(0, os.SEEK_END)
            is_jpeg = start.startswith(JPEG_START)
            search_bytes = JPEG_END_SEARCH_BYTES if is_jpeg else PNG_END_SEARCH_BYTES
            handle.seek(max(0, size - search_bytes))
            end = handle.read()
    except OSError:
        return True
    if start.startswith(PNG_SIGNATURE):
        return b"IEND" not in end
    if is_jpeg:
        return JPEG_END not in end
    if start.startswith(BMP_START):
        return size < int.from_bytes(start[BMP_SIZE], "little")
    return size == 0


def write_png(path: str | Path, image: np.ndarray) -> None:
    """Write uint8 RGB [H, W, 3] as PNG, whole or not at all."""
    path = Path(path)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"{path}: uint8 [H, W, 3] is needed, got {image.dtype} {image.shape}")
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: frames are written as .png only")
    encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
    with atomic_write(path) as partial:
        partial.write_bytes(encoded.tobytes())


def list_frames(folder: str | Path, exts: Iterable[str]) -> dict[str, Path]:
    """List the files of a folder with one of the endings: name without ending -> path, sorted.

    Hidden files do not count; an absent folder is an empty list. Links are listed even where they
    lead nowhere, so that reading them names them. Two files with the same name and different
    endings are a DataSetError.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return {}
    endings = {ext.lower() for ext in exts}
    found: dict[str, Path] = {}
    problems = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in endings or path.is_dir():
            continue
        if path.stem in found:
            problems.append(
                f"{path} and {found[path.stem].name} have the same name; which is meant?"
            )
        found[path.stem] = path
    if problems:
        raise DataSetError(str(folder), problems)
    refuse_undecodable(found.values())
    return found


def list_sequences(split_folder: str | Path) -> list[Path]:
    """Return the sequence folders of a split, sorted by name; hidden folders do not count.

    Raises:
        FileNotFoundError: no such folder.
    """
    folder = Path(split_folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder; put one folder per sequence there, or name another one in "
            "DATA.TRAIN_SPLIT and DATA.VAL_SPLIT"
        )
    sequences = sorted(
        entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    refuse_undecodable(sequences)
    return sequences


def _as_rgb(path: Path, image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8:
        raise BadFileError(
            path, f"{image.dtype} pixels; 8 bit is needed, convert without stretching the range"
        )
    channels = 1 if image.ndim == 2 else image.shape[2]
    if channels == 1:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    if channels == 4:
        if image[..., 3].min() < 255:
            raise BadFileError(path, "has transparent pixels; flatten it to RGB")
        return cv2.cvtColor(image, cv2.COLOR_BGRA2RGB)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
