"""Paths from the repository root, and writing a file whole or not at all."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

REPO_ROOT = Path(__file__).resolve().parents[1]


def resolve(path: str | Path) -> Path:
    """Return `path` as absolute; a relative path is taken from the repository root."""
    return REPO_ROOT / Path(path).expanduser()


def folder_problem(path: Path) -> str:
    """Say why nothing can be written into the folder `path`, which may not exist yet, or ""."""
    path = path.resolve()
    there = next(place for place in (path, *path.parents) if os.path.lexists(place))
    if there.is_dir() and os.access(there, os.W_OK):
        return ""
    return f"{there} {'cannot be written' if there.is_dir() else 'is a file'}; name another folder"


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a partial path beside `path`; rename it to `path` when the block ends without an error.

    The file is flushed to disk before the rename and the folder after it, so that a kill or a power
    cut leaves either the old file or the new one, and what was written before stays written. On an
    error the partial file is removed and the old one is untouched. The partial name keeps the
    suffix, because image writers choose the format by it. It is unique, also on several machines
    that share the folder, and no longer than a file system takes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{uuid4().hex}-{path.name[-50:]}")
    try:
        yield partial
        with partial.open("r+b") as handle:  # Windows flushes writable files only
            os.fsync(handle.fileno())
        partial.replace(path)
        flush_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Write the names in a folder to the disk, which a rename alone does not do.

    Windows has no such call and some network file systems refuse it; there the system writes the
    names later.
    """
    if sys.platform == "win32":
        return
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def free_name(path: Path) -> Path:
    """Return `path`, or the first of `path-2`, `path-3`, ... that does not exist.

    A file keeps its suffix. Names that hold the time exist if two runs start in one second, or the
    clock was set back.
    """
    number, free = 1, path
    while free.exists():
        number += 1
        stem, suffix = (path.name, "") if path.is_dir() else (path.stem, path.suffix)
        free = path.with_name(f"{stem}-{number}{suffix}")
    return free
