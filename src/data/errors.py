"""Files that cannot be used: errors, drives that stall, files that change or are something else.

Functions of `src/data` raise a BadFileError for one file that cannot be used, a DataSetError for a
data set, and a ValueError for an argument that cannot be; messages name the file and the way out.
A reader that fails asks `other_kind`, so that a pointer of Git LFS, a saved web page or the file of
an event camera is called what it is.
"""

import errno
import logging
import lzma
import os
import struct
import time
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

logger = logging.getLogger(__name__)

# A network drive that stalls returns one of these; waiting helps, unlike for a missing file.
PASSING_ERRORS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN)
RETRY_PAUSES_S = (0.1, 0.5, 2.0)

# What the readers of libraries raise on damaged bytes: NumPy evaluates a header as Python text.
DAMAGED = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, OSError, RuntimeError, SyntaxError),
    *(TypeError, ValueError, struct.error, tokenize.TokenError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)

Result = TypeVar("Result")
LEADING_BYTES = 2048
GET_IT_AGAIN = "download the file itself"
NO_SPIKES = "these are events of an event camera, which are no spikes"
# First bytes, what they say, and the endings under which that is no surprise. Packed spikes have no
# header, so signatures are long enough that bits of a recording do not show one by chance.
SIGNATURES = (
    (b"version https://git-lfs", "a pointer of Git LFS; run: git lfs pull", ()),
    (b"#!AER-DAT", f"an AEDAT recording; {NO_SPIKES}", (".aedat", ".aedat4")),
    (b"#ROSBAG", "a ROS bag; export the spikes from it first", (".bag",)),
    (b"\x89PNG\r\n\x1a\n", "a PNG image", (".png",)),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file; name it .h5", (".h5", ".hdf5")),
    (b"PK\x03\x04", "a ZIP archive; unpack it, or name it .npz if it is one", (".npz",)),
    (b"\x93NUMPY", "a NumPy array; name it .npy", (".npy",)),
    (b"MATLAB 5.0 MAT-file", "a MATLAB file; save the array as .npy or .h5", (".mat",)),
    (b"\x1f\x8b\x08", "packed with gzip; unpack it first", (".gz", ".tgz")),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first", (".7z",)),
    (b"Rar!\x1a\x07", "a RAR archive; unpack it first", (".rar",)),
    (b"\xfd7zXZ\x00", "packed with xz; unpack it first", (".xz",)),
    (b"\x28\xb5\x2f\xfd", "packed with zstd; unpack it first", (".zst",)),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video", (".mkv", ".webm")),
    (b"%PDF-", "a PDF document", (".pdf",)),
)
WEB_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")


class BadFileError(ValueError):
    """One file cannot be used; its sample is dropped, the others are kept."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(str(path), reason)
        self.path = Path(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@contextmanager
def naming_record(path: Path, what: str) -> Iterator[None]:
    """Raise a BadFileError that names the file where the content of a record is damaged."""
    try:
        yield
    except DAMAGED as error:
        if isinstance(error, BadFileError):
            raise
        raise BadFileError(path, f"is no {what}: {error!r:.200}") from error


class DataSetError(ValueError):
    """The data set as a whole cannot be used; the message lists every problem."""

    def __init__(self, where: str, problems: Iterable[str]) -> None:
        self.where = where
        self.problems = tuple(problems)
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        super().__init__(f"{where}: {len(self.problems)} problem(s) in the data\n{lines}")

    def __reduce__(self) -> tuple:
        return (type(self), (self.where, self.problems))  # travels between processes


def refuse_undecodable(paths: Iterable[Path]) -> None:
    """Refuse names that are not UTF-8: they can be neither printed nor written into a text."""
    for path in paths:
        shown = os.fsencode(path.name).decode(errors="backslashreplace")
        if shown != path.name:
            reason = f"the name {shown} is not UTF-8, from another system perhaps; rename it"
            raise DataSetError(str(path.parent), [reason])


def listed(names: Sequence[str], limit: int = 20) -> str:
    """Return names with commas, those beyond the limit as a number."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


def problems_of(error: BadFileError | DataSetError) -> list[str]:
    """Return the problems of an error as lines, each with what it was found in."""
    if isinstance(error, DataSetError):
        return [f"{error.where}: {problem}" for problem in error.problems]
    return [str(error)]


@dataclass(frozen=True)
class BadSample:
    """Takes the position of a sample that could not be made in a batch."""

    name: str  # sequence and frames
    reason: str  # the file and what is wrong with it


def with_patience(path: str | Path, action: Callable[[], Result]) -> Result:
    """Return what `action` returns; repeat it with pauses where the drive of `path` stalls.

    Only calls that return an error can be repeated. Where a memory map fails, the system ends the
    process with SIGBUS, and `src/data/build.py` reports the loader process and its clip.
    """
    for pause in RETRY_PAUSES_S:
        try:
            return action()
        except OSError as error:
            if error.errno not in PASSING_ERRORS:
                raise
            logger.warning("%s: %s; trying again in %.1f s", path, error.strerror, pause)
            time.sleep(pause)
    return action()


class FileState(NamedTuple):
    """Size and time of last change of a file."""

    num_bytes: int
    mtime_ns: int


def file_state(path: Path) -> FileState:
    """Return the state of a file; a BadFileError where it cannot be read."""
    try:
        status = with_patience(path, path.stat)
    except OSError as error:
        raise BadFileError(path, f"cannot be read: {error.strerror}") from error
    return FileState(status.st_size, status.st_mtime_ns)


def refuse_changed(path: Path, seen: FileState) -> None:
    """Raise a BadFileError for a file that is not the one that was seen when the run began.

    Times are compared in whole seconds: network drives round them after a while.
    """
    now = file_state(path)
    if (now.num_bytes, now.mtime_ns // 10**9) != (seen.num_bytes, seen.mtime_ns // 10**9):
        rewritten = ", written again since" if seen.num_bytes == now.num_bytes else ""
        raise BadFileError(
            path,
            f"changed under the run: it had {seen.num_bytes} bytes when the run began and has "
            f"{now.num_bytes} now{rewritten}; what was counted from it no longer holds. Stop the "
            "run, run scripts/prepare_data.py, start it again",
        )


# ---------------------------------------------------------------- what a file is by its first bytes


def kind_of(start: bytes, num_bytes: int) -> tuple[str, tuple[str, ...]] | None:
    """Return what the first 2048 bytes of a file of some size show, and its endings, or None."""
    for signature, name, endings in SIGNATURES:
        if start.startswith(signature):
            return name, endings
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")[:9].lower()
    if text.startswith(WEB_PAGES):
        name = "an XML text" if text.startswith(b"<?xml") else "a web page"
        return f"{name} in place of the data; {GET_IT_AGAIN}", (".html", ".xml", ".cihx")
    if start.startswith((b"% ", b"%\n")) and b"\n% " in start:
        is_raw = b"evt " in start or b"EVT" in start
        what = "a Prophesee .raw recording" if is_raw else "a Prophesee .dat recording"
        return f"{what}; {NO_SPIKES}", ()
    if start.startswith(b"\xff\xd8\xff") and start[3:4] >= b"\xc0":
        return "a JPEG image", (".jpg", ".jpeg")
    if start.startswith(b"BM") and int.from_bytes(start[2:6], "little") == num_bytes:
        return "a BMP image", (".bmp",)
    if start.startswith(b"RIFF") and start[8:12] in (b"AVI ", b"WEBP", b"WAVE"):
        return "an AVI, WebP or WAV file", (".avi", ".webp", ".wav")
    if start[4:8] == b"ftyp":
        return "an MP4 or MOV video", (".mp4", ".mov", ".m4v")
    return None


def other_kind(path: str | Path) -> str | None:
    """Return what a file is where that is something else than its ending says, else None."""
    path = Path(path)
    try:
        with path.open("rb") as handle:
            start, num_bytes = handle.read(LEADING_BYTES), path.stat().st_size
    except OSError:
        return None  # reading it names the reason
    found = kind_of(start, num_bytes)
    return None if found is None or path.suffix.lower() in found[1] else found[0]


def refuse_other_kind(path: str | Path) -> None:
    """Raise a BadFileError for a file that is something else than its ending says."""
    found = other_kind(path)
    if found is not None:
        raise BadFileError(path, f"is {found}")
