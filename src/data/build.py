"""From the configuration to data sets and batches; below this file there are plain values only."""

import logging
import multiprocessing
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from ctypes import c_int64
from functools import partial
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info
from yacs.config import CfgNode

from src.data.collate_fns import collate_clips
from src.data.datasets.spike_deblur_dataset import ClipSettings, SpikeDeblurDataset
from src.data.errors import DataSetError
from src.data.exposures import read_alignment
from src.data.frame_cache import FrameCache, available_memory_bytes, preload, store_frames
from src.data.frames import ImageReader, read_image
from src.data.normalization import normalization_from
from src.data.recordings import Recording, require_known_ticks
from src.data.scanning import alignment_paths, scan_settings, scan_split
from src.data.transforms import ORDER_STREAM, AugmentSettings, Key
from src.paths import resolve

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (where Linux keeps what workers hand over)
PREFETCH_BATCHES = 2
LOADER_TIMEOUT_S = 900  # no batch takes so long; a drive that is gone does
PID, CLIP, NUM_NOTES = 0, 1, 2  # the notes of one loader process
IDLE = -1
# What reading from a process that was killed raises, when its end is seen before its signal.
BROKEN_QUEUE = (ConnectionError, EOFError)
SECONDS_FOR_SIGNAL = 1.0
ADVICE = (
    "If memory was short, lower TRAIN.NUM_WORKERS or DATA.CACHE_SIZE_GB; if the drive failed (Bus "
    "error), check that file. The same command resumes from the last checkpoint"
)


def build_train_dataset(cfg: CfgNode, *, as_uint8: bool = True) -> SpikeDeblurDataset:
    """Return the training clips; `as_uint8` leaves normalizing to the device."""
    data = cfg.DATA
    if (data.NORM.MEAN, data.NORM.STD) == (0.0, 1.0):
        logger.warning(
            "DATA.NORM is at its default 0, 1; scripts/prepare_data.py writes that of your data"
        )
    cache = FrameCache(int(data.CACHE_SIZE_GB * 1e9)) if data.USE_RAM_CACHE else None
    recordings = _scan(cfg, data.TRAIN_SPLIT, read_image if cache is None else cache.read)
    files = [path for recording in recordings for path in recording.files]
    if cache is not None and data.PRELOAD:
        preload(cache, files)
    elif cache is not None:
        _warn_of_large_caches(cache.max_bytes * max(1, cfg.TRAIN.NUM_WORKERS))
    elif data.PRELOAD:
        logger.warning("DATA.PRELOAD fills the cache of DATA.USE_RAM_CACHE, which is off; ignored")
    if data.FRAME_CACHE and cache is None:
        store, lines = store_frames(files, resolve(data.ROOT))
        for line in lines:
            logger.log(logging.INFO if len(store) == len(files) else logging.WARNING, line)
        recordings = [recording.with_store(store) for recording in recordings]
    flags = data.AUGMENT
    augment = AugmentSettings(flags.FLIP, flags.TRANSPOSE, flags.REVERSE, flags.SPIKES)
    dataset = SpikeDeblurDataset(
        recordings,
        ClipSettings(data.CLIP_LEN, data.CROP_SIZE, augment),
        norm=normalization_from(cfg),
        seed=cfg.SEED,
        as_uint8=as_uint8,
    )
    sizes = sorted(dataset.spike_crop_sizes)
    if len(sizes) > 1 and cfg.TRAIN.BATCH_SIZE > 1:
        problem = (
            f"crops have different sizes in spike pixels, {sizes}, which do not fit into one "
            "batch; set TRAIN.BATCH_SIZE 1, and TRAIN.GRADIENT_ACCUMULATION_STEPS to what it was"
        )
        raise DataSetError("crops", [problem])
    return dataset


def build_val_recordings(cfg: CfgNode) -> list[Recording]:
    """Return the validation sequences, see `build_recordings`."""
    return build_recordings(cfg, cfg.DATA.VAL_SPLIT)


def build_recordings(cfg: CfgNode, split: str) -> list[Recording]:
    """Return the sequences of a split: full frames, nothing random, no caches of frames."""
    recordings = _scan(cfg, split, read_image)
    if cfg.DATA.BIN_NORMALIZE:
        require_known_ticks(recordings)
    return recordings


def build_val_dataset(cfg: CfgNode) -> SpikeDeblurDataset:
    """Return the validation clips as float samples; validation itself restores whole sequences."""
    settings = ClipSettings(cfg.DATA.CLIP_LEN)
    return SpikeDeblurDataset(build_val_recordings(cfg), settings, norm=normalization_from(cfg))


def _scan(cfg: CfgNode, split: str, read: ImageReader) -> list[Recording]:
    return scan_split(scan_settings(cfg), split, read_alignment(alignment_paths(cfg)), read)


def _warn_of_large_caches(total_bytes: int) -> None:
    available = available_memory_bytes()
    if available is not None and total_bytes > available:
        logger.warning(
            "the frame caches of all workers may take %.1f GB, %.1f GB are free; lower "
            "DATA.CACHE_SIZE_GB or TRAIN.NUM_WORKERS",
            total_bytes / 1e9,
            available / 1e9,
        )


# ---------------------------------------------------------------- the order of the clips


def epoch_order(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    """Return the order of an epoch: int64 [num_samples], each index once."""
    return np.random.default_rng([ORDER_STREAM, seed, epoch]).permutation(num_samples)


class ClipBatchSampler(Sampler[list[Key]]):
    """Micro-batches of (epoch, index) keys for one rank, a function of seed and position alone.

    All ranks walk through one endless stream of permutations, one per epoch. Step s takes the
    positions [s * G, (s + 1) * G) with G = batch_size * accumulation * world_size; of these, micro-
    batch a of rank r gets those from (a * world_size + r) * batch_size on. So the same G gives the
    same global batches however it is split, and any step can be started at directly.
    """

    def __init__(
        self,
        num_samples: int,
        seed: int,
        *,
        batch_size: int,
        accumulation: int,
        rank: int,
        world_size: int,
        start_step: int = 0,
        num_steps: int,
    ) -> None:
        self.num_samples, self.seed = num_samples, seed
        self.batch_size, self.accumulation = batch_size, accumulation
        self.rank, self.world_size = rank, world_size
        self.start_step, self.num_steps = start_step, num_steps

    def __len__(self) -> int:
        """Return the number of micro-batches."""
        return self.num_steps * self.accumulation

    def __iter__(self) -> Iterator[list[Key]]:
        orders: dict[int, np.ndarray] = {}
        for step in range(self.start_step, self.start_step + self.num_steps):
            for micro_batch in range(self.accumulation):
                start = (step * self.accumulation + micro_batch) * self.world_size + self.rank
                positions = range(start * self.batch_size, (start + 1) * self.batch_size)
                yield [self._key(position, orders) for position in positions]

    def _key(self, position: int, orders: dict[int, np.ndarray]) -> Key:
        """Return the clip at a position of the stream; `orders` keeps the latest two epochs."""
        epoch, number = divmod(position, self.num_samples)
        if epoch not in orders:
            orders.pop(epoch - 2, None)
            orders[epoch] = epoch_order(self.seed, epoch, self.num_samples)
        return epoch, int(orders[epoch][number])


# ---------------------------------------------------------------- which process reads what


class WorkerError(RuntimeError):
    """A loader process died or got stuck; the message says which and what it was reading."""


class WatchedDataset(Dataset):
    """A data set that notes which clip is being read by this loader process.

    A process that the system kills cannot say what it was doing. Each of the at most `num_workers`
    processes therefore notes its clip in memory shared with the training process, before it reads.
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
        first = NUM_NOTES * info.id
        self.notes[first + PID] = os.getpid()
        self.notes[first + CLIP] = key[1] if isinstance(key, tuple) else key
        sample = self.dataset[key]
        self.notes[first + CLIP] = IDLE
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
    """Call a function that loads; a WorkerError names a loader process that died, and its clip.

    Torch raises from a signal handler, wherever the training process happens to be, so the function
    has to be the whole loop. This is no context manager: the signal may come inside of one.
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
        alive = {process.pid for process in multiprocessing.active_children()}
        gone = [line for pid, line in dataset.reading().items() if pid not in alive]
        if not gone:
            raise
        raise WorkerError(f"{'; '.join(gone)}: is gone. {ADVICE}") from error


def describe_death(message: str, reading: dict[int, str]) -> str | None:
    """Return a sentence for a message of torch's loader, or None where it has another subject."""
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


# ---------------------------------------------------------------- the loader


def build_train_loader(
    cfg: CfgNode,
    dataset: SpikeDeblurDataset | WatchedDataset,
    *,
    rank: int,
    world_size: int,
    start_step: int,
    num_steps: int,
    setup_worker: Callable[[], None] | None = None,
) -> DataLoader:
    """Return a loader of collated micro-batches, from an optimizer step on; starting is O(1).

    `setup_worker` is called in every loader process before it begins.
    """
    train = cfg.TRAIN
    sampler = ClipBatchSampler(
        len(dataset),
        cfg.SEED,
        batch_size=train.BATCH_SIZE,
        accumulation=train.GRADIENT_ACCUMULATION_STEPS,
        rank=rank,
        world_size=world_size,
        start_step=start_step,
        num_steps=num_steps,
    )
    sample = dataset[0]
    tensors = ("blur", "sharp", "spike_vox") if isinstance(sample, dict) else ()
    batch_bytes = train.BATCH_SIZE * sum(sample[name].nbytes for name in tensors)
    workers = workers_that_fit(train.NUM_WORKERS, batch_bytes, shared_memory_bytes())
    is_forking = workers > 0 and sys.platform == "linux"
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate_clips,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=partial(init_worker, setup=setup_worker),
        prefetch_factor=PREFETCH_BATCHES if workers else None,
        timeout=LOADER_TIMEOUT_S if workers else 0,
        # Forked workers share a preloaded frame cache; newer Pythons would not fork by themselves.
        multiprocessing_context="fork" if is_forking else None,
    )


def init_worker(_worker_id: int, setup: Callable[[], None] | None = None) -> None:
    """Let one loader process use one thread, so that processes do not fight for cores."""
    if setup is not None:
        setup()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def workers_that_fit(wanted: int, batch_bytes: int, free_bytes: int | None) -> int:
    """Return how many workers fit into the shared memory of this rank; None: no such limit."""
    per_worker = batch_bytes * (PREFETCH_BATCHES + 1)
    if free_bytes is None or wanted * per_worker <= free_bytes:
        return wanted
    fitting = max(0, free_bytes // per_worker)
    logger.warning(
        "%s has %.2f GB free for this rank, %d workers need %.2f GB; using %d. In Docker give "
        "--shm-size=8g",
        SHARED_MEMORY,
        free_bytes / 1e9,
        wanted,
        wanted * per_worker / 1e9,
        fitting,
    )
    return fitting


def shared_memory_bytes() -> int | None:
    """Return the free shared memory of one of the ranks on this machine, which share it."""
    if not SHARED_MEMORY.is_dir():
        return None
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return shutil.disk_usage(SHARED_MEMORY).free // ranks_here
