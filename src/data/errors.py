"""Files that cannot be used: errors, drives that stall, files that change during a run.

Functions of `src/data` raise a BadFileError for one file that cannot be used, a DataSetError for a
data set, and a ValueError for an argument that cannot be; messages name the file and the way out.
"""

import errno
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

logger = logging.getLogger(__name__)

# A network drive that stalls returns one of these; waiting helps, unlike for a missing file.
PASSING_ERRORS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN)
RETRY_PAUSES_S = (0.1, 0.5, 2.0)

Result = TypeVar("Result")


class BadFileError(ValueError):
    """One file cannot be used; its sample is dropped, the others are kept."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(str(path), reason)
        self.path = Path(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


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
    """Takes the position of a sample that could not be made in a batch.

    Attributes:
        name: sequence and frames, for the log.
        reason: the file and what is wrong with it.
    """

    name: str
    reason: str


def with_patience(path: str | Path, action: Callable[[], Result]) -> Result:
    """Return what `action` returns; repeat it with pauses where the drive of `path` stalls.

    Only calls that return an error can be repeated. Bytes of a memory-mapped file (`.npy`) are read
    when they are touched; where the drive fails then, the system ends the process with SIGBUS, and
    `src/data/build.py` reports the loader process and the clip it was reading.
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
