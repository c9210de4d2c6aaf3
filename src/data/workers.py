"""What every loader process reads at the moment, so that the death of one can be explained.

A process that the system kills (out of memory, a drive that fails under a memory map, a fault in a
library) cannot say what it was doing. Each therefore notes the number of its clip in memory that it
shares with the training process, before it reads.
"""

import multiprocessing
import os
import re
import time
from collections.abc import Callable
from ctypes import c_int64
from multiprocessing.sharedctypes import RawArray
from typing import Any

from torch.utils.data import Dataset, get_worker_info

from src.data.datasets.spike_deblur_dataset import SpikeDeblurDataset
from src.data.samplers import Key

PID, CLIP, NUM_NOTES = 0, 1, 2  # places of the notes of one process
IDLE = -1
# What reading from a process that was killed raises, when its end is seen before its signal.
BROKEN_QUEUE = (ConnectionError, EOFError)
SECONDS_FOR_SIGNAL = 1.0
ADVICE = (
    "If memory was short, lower TRAIN.NUM_WORKERS or DATA.CACHE_SIZE_GB; if the drive failed (Bus "
    "error), check that file. The same command resumes from the last checkpoint"
)


class WorkerError(RuntimeError):
    """A loader process died or got stuck; the message says which and what it was reading."""


class WatchedDataset(Dataset):
    """A data set that notes which clip is being read by this loader process.

    Args:
        dataset: where the clips come from.
        num_workers: loader processes there will be at most.
    """

    def __init__(self, dataset: SpikeDeblurDataset, num_workers: int) -> None:
        self.dataset = dataset
        self.notes = RawArray(c_int64, [IDLE] * NUM_NOTES * max(1, num_workers))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | Key) -> Any:
        """Return what the data set returns."""
        info = get_worker_info()
        if info is None:  # the training process reads by itself
            return self.dataset[key]
        place = NUM_NOTES * info.id
        self.notes[place + PID] = os.getpid()
        self.notes[place + CLIP] = key[1] if isinstance(key, tuple) else key
        sample = self.dataset[key]
        self.notes[place + CLIP] = IDLE
        return sample

    def reading(self) -> dict[int, str]:
        """Return by process id, in words, which loader process it is and what it reads."""
        found = {}
        for worker in range(len(self.notes) // NUM_NOTES):
            pid, clip = self.notes[NUM_NOTES * worker : NUM_NOTES * (worker + 1)]
            if pid != IDLE:
                what = "between two clips"
                if clip != IDLE:
                    what = f"reading {self.dataset.clip_name(clip)}"
                found[pid] = f"loader process {worker} (pid {pid}), {what}"
        return found


def run_watched(dataset: WatchedDataset, function: Callable[[], None]) -> None:
    """Call a function that loads; say in errors about loader processes which died, reading what.

    Torch raises from a signal handler, wherever the training process happens to be, so the function
    has to be the whole loop. This is no context manager: the signal may come inside of one.

    Raises:
        WorkerError: a loader process died or got stuck.
        What the function raises for other reasons.
    """
    try:
        try:
            function()
        except BROKEN_QUEUE:
            time.sleep(SECONDS_FOR_SIGNAL)  # here torch's handler raises its RuntimeError
            raise
    except RuntimeError as error:
        reason = describe_death(str(error), dataset.reading())
        if reason is None:
            raise
        raise WorkerError(reason) from error
    except BROKEN_QUEUE as error:
        reason = _describe_missing(dataset.reading())
        if reason is None:
            raise
        raise WorkerError(reason) from error


def _describe_missing(reading: dict[int, str]) -> str | None:
    """Return a sentence about the loader processes that have ended, or None where all run."""
    alive = {process.pid for process in multiprocessing.active_children()}
    gone = [line for pid, line in reading.items() if pid not in alive]
    return f"{'; '.join(gone)}: is gone. {ADVICE}" if gone else None


def describe_death(message: str, reading: dict[int, str]) -> str | None:
    """Return a sentence for a message of torch's loader, or None where it has another subject.

    Args:
        message: of the RuntimeError.
        reading: what `WatchedDataset.reading` returned.
    """
    if message.startswith("DataLoader timed out"):
        all_found = "; ".join(reading.values()) or "none has begun"
        return (
            f"{message.splitlines()[0]}: no loader process delivers: {all_found}. Does the "
            "drive of DATA.ROOT answer? The same command resumes from the last checkpoint"
        )
    match = re.match(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*)", message)
    if match is None:
        return None
    pids = [int(pid) for pid in match.group(1).split(",")]
    who = "; ".join(reading.get(pid, f"a loader process (pid {pid})") for pid in pids)
    how = match.group(2).split(". ")[0].rstrip(". ")
    return f"{who}: {how}. {ADVICE}"
