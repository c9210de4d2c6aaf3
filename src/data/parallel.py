"""Do independent pieces of work in several processes, with a progress bar."""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import TypeVar

import cv2
from tqdm import tqdm

from src.data.errors import DataSetError

Task = TypeVar("Task")
Result = TypeVar("Result")


BYTES_WORTH_A_PROCESS = 128 << 20  # about a second of work, as long as a process takes to start


def worthwhile_workers(workers: int, num_bytes: int) -> int:
    """Return how many of the allowed processes pay for so many bytes of input."""
    return min(workers, 1 + num_bytes // BYTES_WORTH_A_PROCESS)


def run_parallel(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int, label: str
) -> Iterator[tuple[int, Result]]:
    """Yield (number of the task, its result) as they get done.

    With one worker or one task everything happens in this process. Otherwise function and tasks
    must be picklable; processes are started fresh, so nothing of this one leaks into them.

    Raises:
        DataSetError: a process was killed.
        What `function` raises.
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
