"""Reads files of `torch.save` from any source: runs nothing pickled in them, detects damage."""

import lzma
import pickle
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

# What readers raise on a missing, foreign, cut or arbitrary file: torch's reader of the old
# format takes any bytes for a program and fails somewhere in it.
UNREADABLE = (
    *(OSError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError),
    *(pickle.UnpicklingError, struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
ZIP_START = b"PK\x03\x04"  # torch.load uses the same test
DOS_FOLDER = 0x10  # in the external attributes of an entry
FORBIDDEN = re.compile(r"GLOBAL (\S+) was not an allowed global|class (\S+) was not an allowed")


def read_torch_file(path: Path, what: str) -> Any:
    """Return the content of a file of `torch.save`, tensors on the CPU.

    torch does not compare the checksums in its files; they are compared here, so a flipped bit
    is an error and not a weight. That takes about a second per gigabyte. `what` names the expected
    content in the message, such as "a checkpoint".

    Raises:
        ValueError: It cannot be read without running code, is damaged, or is no such file.
    """
    try:
        if _is_zip(path):  # the format before torch 1.6 has no checksums
            _compare_checksums(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise ValueError(f"{path}: cannot be read as {what}: {_reason(path, error)}") from error


def _compare_checksums(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():  # torch.save compresses nothing
            is_stored = entry.compress_type == zipfile.ZIP_STORED
            # torch takes an entry that is marked as a folder for a tensor without reading values.
            is_folder = bool(entry.external_attr & DOS_FOLDER)
            if is_folder or not is_stored or entry.file_size != entry.compress_size:
                raise ValueError(f"damaged, sizes or marks of {entry.filename} do not fit")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"damaged, the checksum of {damaged} does not fit")


def _is_zip(path: Path) -> bool:
    with path.open("rb") as handle:
        return handle.read(len(ZIP_START)) == ZIP_START


def _reason(path: Path, error: Exception) -> str:
    """Return one line; torch's own advice, to load the file without `weights_only`, is left out."""
    forbidden = FORBIDDEN.search(str(error))
    if forbidden:
        name = forbidden[1] or forbidden[2]
        return f"it asks for {name}, which could run code; only tensors, numbers and texts are read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if path.is_file() and path.stat().st_size == 0:
        return "it is empty"
    if not _is_zip(path):
        return "no file of torch.save"
    if isinstance(error, zipfile.BadZipFile):
        return f"damaged or cut short ({error})"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
