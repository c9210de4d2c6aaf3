"""Locks between processes: a file that one process holds while it works on something."""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

# What network file systems without locks answer.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock file at `path`; yield whether it could be had.

    A process that ends in any way gives its locks up. Where the file system has no locks a warning
    is logged, and the work goes ahead without one.

    Args:
        path: the lock file; it is made, and stays.
        wait: until it is free; False yields False at once where another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        logger.warning(
            "%s: this file system has no locks; let no second process work on the same files", path
        )
        yield True
        return
    try:
        yield True
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether another process holds a lock file."""
    with locked(path, wait=False) as is_free:
        return not is_free
