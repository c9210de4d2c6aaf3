"""Where things lie, and how a file is put there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPO_ROOT = Path(__file__).resolve().parents[1]


def resolve(path: str | Path) -> Path:
    """Return `path` as absolute; a relative path is taken from the repository root."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else REPO_ROOT / path


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a partial path beside `path`; rename it to `path` when the block ends without an error.

    The file is flushed to disk before the rename, so that a kill or a power cut leaves either the
    old file or the new one. On an error the partial file is removed and the old one is untouched.
    The partial name keeps the suffix, because image writers choose the format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        yield partial
        with partial.open("r+b") as handle:  # Windows flushes writable files only
            os.fsync(handle.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
