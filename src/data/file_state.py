"""Whether a file is still the one that was seen before: its size and time of last change."""

from dataclasses import dataclass
from pathlib import Path

from src.data.errors import BadFileError
from src.data.stalls import with_patience


@dataclass(frozen=True)
class FileState:
    """What a look at a file costs nothing to see."""

    num_bytes: int
    mtime_ns: int


def file_state(path: Path) -> FileState:
    """Return the state of a file.

    Raises:
        BadFileError: it cannot be looked at.
    """
    try:
        status = with_patience(path, path.stat)
    except OSError as error:
        raise BadFileError(path, f"cannot be read: {error.strerror}") from error
    return FileState(status.st_size, status.st_mtime_ns)


def refuse_changed(path: Path, seen: FileState) -> None:
    """Refuse a file that is not the one that was seen when the run began.

    Raises:
        BadFileError: it changed, or is gone.
    """
    now = file_state(path)
    if now != seen:
        raise BadFileError(
            path,
            f"changed under the run: it had {seen.num_bytes} bytes when the run began and has "
            f"{now.num_bytes} now{_same_size(seen, now)}; what was counted from it no longer "
            "holds. Stop the run, run scripts/prepare_data.py, start it again",
        )


def _same_size(seen: FileState, now: FileState) -> str:
    return ", written again since" if seen.num_bytes == now.num_bytes else ""
