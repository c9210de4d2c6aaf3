"""Image files: reading, listing, writing."""

import math
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import simplejpeg

from src.data.errors import (
    BadFileError,
    DataSetError,
    other_kind,
    refuse_undecodable,
    with_patience,
)
from src.paths import atomic_write

MAX_PIXELS = 1 << 27  # 400 MB as RGB
ImageReader = Callable[[Path], np.ndarray]

IMAGE_EXTS = (".png", ".jpg", ".jpeg", ".bmp")

PNG_SIGNATURE, PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
JPEG_SCAN = 0xDA
JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # neither a stuffed byte nor a restart
BMP_START, BMP_SIZE = b"BM", slice(2, 6)  # little endian


def read_image(path: str | Path) -> np.ndarray:
    """Read an 8 bit image as RGB: uint8 [H, W, 3]; everything that reads frames does it here.

    Grey becomes three equal channels, an opaque alpha channel is left out, and orientation tags are
    ignored. Bytes after the end do not count. What a decoder only warns of is an error.
    """
    path = Path(path)
    try:
        data = with_patience(path, path.read_bytes)
    except OSError as error:
        raise BadFileError(path, f"cannot be read: {error.strerror}") from error
    found = f"({len(data)} bytes, starts with {data[:8]!r})"
    if data and not _is_whole(BytesIO(data), check_pixels=True):
        kind = {PNG_SIGNATURE[:2]: "PNG", JPEG_START[:2]: "JPEG"}.get(data[:2], "BMP")
        raise BadFileError(path, f"truncated {kind}, or damaged inside {found}; copy it again")
    if (num_pixels := _stated_pixels(data)) > MAX_PIXELS:
        raise BadFileError(path, f"its header states {num_pixels} pixels, {MAX_PIXELS} at most")
    if data.startswith(JPEG_START):  # OpenCV drops the warnings of the same decoder
        try:
            return simplejpeg.decode_jpeg(data, "RGB", strict=True)
        except (ValueError, KeyError) as error:  # KeyError: no colours are stated
            reason = error if isinstance(error, ValueError) else "its header cannot be read"
            raise BadFileError(path, f"damaged image {found}: {reason}; copy it again") from error
    array = np.frombuffer(data, np.uint8)
    try:
        image = cv2.imdecode(array, cv2.IMREAD_UNCHANGED) if data else None
    except cv2.error as error:
        raise BadFileError(path, f"damaged image {found}: {error.err}") from error
    if image is None:
        other = other_kind(path)
        raise BadFileError(path, f"is {other}" if other else f"truncated or not an image {found}")
    return _as_rgb(path, image)


def read_grey(path: Path) -> np.ndarray:
    """Read an image as grey values 0..255: float32 [H, W]."""
    return cv2.cvtColor(read_image(path), cv2.COLOR_RGB2GRAY).astype(np.float32)


def _stated_pixels(data: bytes) -> int:
    """Return height times width as the header of a PNG, JPEG or BMP states them; 0 of others."""
    if data.startswith(JPEG_START):
        with suppress(ValueError, KeyError):  # decoding names the reason
            return math.prod(simplejpeg.decode_jpeg_header(data, strict=False)[:2])
        return 0
    if data.startswith(PNG_SIGNATURE):
        sides = struct.unpack_from(">II", data.ljust(24, b"\0"), 16)
    elif data.startswith(BMP_START):
        is_old = data[14:18] == b"\x0c\0\0\0"
        sides = struct.unpack_from("<hh" if is_old else "<ii", data.ljust(26, b"\0"), 18)
    else:
        return 0
    return abs(math.prod(sides))


def is_cut_short(path: str | Path) -> bool:
    """Whether an image file is empty, cut short or unreadable; it is not decoded."""
    try:
        with Path(path).open("rb") as handle:
            return not _is_whole(handle)
    except OSError:
        return True


def _is_whole(file: BinaryIO, *, check_pixels: bool = False) -> bool:
    """Whether an image of a known kind is there up to its end; True for another that is not empty.

    A file that ends as its kind must end is whole, unless `check_pixels` checks the sums of a PNG.
    """
    start = file.read(len(PNG_SIGNATURE))
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - len(PNG_END), 0))
    end = file.read()
    try:
        if start == PNG_SIGNATURE:
            return (end == PNG_END and not check_pixels) or _walk_png(file, check_pixels)
        if start.startswith(JPEG_START):
            return _walk_jpeg(file, end.endswith(JPEG_END))
    except struct.error:  # it ends too early
        return False
    if start.startswith(BMP_START):
        return size >= int.from_bytes(start[BMP_SIZE], "little")
    return size > 0


def _walk_png(file: BinaryIO, check_pixels: bool) -> bool:
    """Whether the chunks of a PNG follow each other up to the one that ends it, undamaged."""
    file.seek(len(PNG_SIGNATURE))
    kind = b""
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", file.read(8))
        if check_pixels:
            content = file.read(length)
            if zlib.crc32(content, zlib.crc32(kind)) != struct.unpack(">I", file.read(4))[0]:
                return False
        else:
            file.seek(length + 4, os.SEEK_CUR)
    return True


def _walk_jpeg(file: BinaryIO, ends_as_one: bool) -> bool:
    """Whether the segments of a JPEG, of which one may hold another, lead to the one that ends it.

    Where the file ends as a JPEG, that is believed from the beginning of the pixels on.
    """
    file.seek(2)
    while True:
        mark, code = struct.unpack("BB", file.read(2))
        if mark != 0xFF:
            return False
        while code == 0xFF:  # fill bytes
            (code,) = file.read(1) or b"\0"
        if code == JPEG_END[1]:
            return True
        (length,) = struct.unpack(">H", file.read(2))
        file.seek(length - 2, os.SEEK_CUR)
        if code != JPEG_SCAN:
            continue
        if ends_as_one:
            return True
        begin, pixels = file.tell(), file.read()
        found = JPEG_MARKER.search(pixels)
        if found is None:
            return False
        file.seek(begin + found.start())


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
    lead nowhere. Equal names with different endings are a DataSetError.
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


# Folders that archives of a Mac, network drives and file systems leave.
OF_SYSTEMS = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found")


def list_sequences(split_folder: str | Path) -> list[Path]:
    """Return the sequence folders of a split by name, without hidden ones and those of systems."""
    folder = Path(split_folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder; put one folder per sequence there, or name another one in "
            "DATA.TRAIN_SPLIT and DATA.VAL_SPLIT"
        )
    sequences = sorted(
        entry
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".") and entry.name not in OF_SYSTEMS
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
