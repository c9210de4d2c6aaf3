"""Independent pieces of work in several processes, with a progress bar, and locks between them."""

import errno
import logging
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar

import cv2
from filelock import FileLock, Timeout
from tqdm import tqdm

from src.data.errors import DataSetError

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)

Task = TypeVar("Task")
Result = TypeVar("Result")


# What network file systems without locks answer.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
BYTES_WORTH_A_PROCESS = 128 << 20  # about a second of work, as long as a process takes to start


def worthwhile_workers(workers: int, num_bytes: int) -> int:
    """Return how many of the allowed processes pay for so many bytes of input."""
    return min(workers, 1 + num_bytes // BYTES_WORTH_A_PROCESS)


def run_parallel(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int, label: str
) -> Iterator[tuple[int, Result]]:
    """Yield (number of the task, its result) as they get done; a killed process is a DataSetError.

    With one worker or one task everything happens in this process. Otherwise function and tasks
    must be picklable; processes are started fresh, so nothing of this one leaks into them.
    """
    bar = tqdm(total=len(tasks), desc=label, unit="task", disable=not sys.stderr.isatty())
    with bar:
        if min(workers, len(tasks)) <= 1:
            for number, task in enumerate(tasks):
                yield number, function(task)
                bar.update()
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(tasks)), context, start_worker) as pool:
            numbers = {pool.submit(function, task): i for i, task in enumerate(tasks)}
            try:
                for future in as_completed(numbers):
                    yield numbers[future], future.result()
                    bar.update()
            except BrokenProcessPool as error:
                reason = (
                    "a worker process was killed, probably for lack of memory; what was done is "
                    "kept, run the same command again with fewer --workers"
                )
                raise DataSetError(label, [reason]) from error
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def start_worker() -> None:
    """Set up a worker process: one thread for OpenCV, and an end when its parent dies.

    Without the latter the workers of a killed program would wait for work for ever.
    """
    cv2.setNumThreads(0)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock file at `path`, which stays; yield whether it could be had.

    Without `wait` this is False at once where another process holds it. A process that ends in any
    way gives its locks up. Where the file system has no locks, a warning is logged and work goes
    ahead.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        _try_flock(path)
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


def _try_flock(path: Path) -> None:
    """Raise the OSError of a file system without locks, where `filelock` would leave its own."""
    if sys.platform != "win32":
        with path.open("a") as handle:
            fcntl.flock(handle, fcntl.LOCK_UN)  # disturbs no other process


def is_locked(path: Path) -> bool:
    """Whether another process holds a lock file; so counts one of another user that is closed."""
    try:
        with locked(path, wait=False) as is_free:
            return not is_free
    except PermissionError:
        return True
