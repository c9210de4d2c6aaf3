"""From the configuration to data sets and loaders; below this file there are plain values only."""

import logging
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import torch
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from src.data.cache import FrameCache, available_memory_bytes, preload
from src.data.collate_fns import collate_clips
from src.data.datasets.spike_deblur_dataset import ClipSettings, SpikeDeblurDataset
from src.data.exposures import read_alignment
from src.data.frame_cache import store_frames
from src.data.frames import read_image
from src.data.normalization import normalization_from
from src.data.recordings import ImageReader, Recording, require_known_ticks
from src.data.samplers import ClipBatchSampler
from src.data.scanning import alignment_paths, scan_settings, scan_split
from src.data.transforms import AugmentSettings
from src.data.workers import WatchedDataset
from src.paths import resolve

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (where Linux keeps what workers hand over)
PREFETCH_BATCHES = 2
LOADER_TIMEOUT_S = 900  # no batch takes so long; a drive that is gone does
BYTES_PER_GB = 1e9


def build_train_dataset(cfg: CfgNode, *, as_uint8: bool = True) -> SpikeDeblurDataset:
    """Return the training clips.

    Args:
        cfg: the configuration.
        as_uint8: for the trainer, which normalizes on the device; False gives float samples.

    Raises:
        BadFileError: no alignment log.
        DataSetError: what is wrong with the data.
    """
    data = cfg.DATA
    if (data.NORM.MEAN, data.NORM.STD) == (0.0, 1.0):
        logger.warning(
            "DATA.NORM is at its default 0, 1; scripts/prepare_data.py writes that of your data"
        )
    cache = FrameCache(int(data.CACHE_SIZE_GB * BYTES_PER_GB)) if data.USE_RAM_CACHE else None
    read = read_image if cache is None else cache.read
    recordings = _scan(cfg, data.TRAIN_SPLIT, read)
    if cache is not None and data.PRELOAD:
        preload(cache, recordings)
    elif cache is not None:
        _warn_of_large_caches(cache.max_bytes * max(1, cfg.TRAIN.NUM_WORKERS))
    elif data.PRELOAD:
        logger.warning("DATA.PRELOAD fills the cache of DATA.USE_RAM_CACHE, which is off; ignored")
    if data.FRAME_CACHE and cache is None:
        recordings = _with_decoded_frames(recordings, resolve(data.ROOT))
    augment = AugmentSettings(data.AUGMENT.FLIP, data.AUGMENT.TRANSPOSE, data.AUGMENT.REVERSE)
    return SpikeDeblurDataset(
        recordings,
        ClipSettings(data.CLIP_LEN, data.CROP_SIZE, augment),
        norm=normalization_from(cfg),
        seed=cfg.SEED,
        as_uint8=as_uint8,
    )


def build_val_recordings(cfg: CfgNode) -> list[Recording]:
    """Return the validation sequences, see `build_recordings`."""
    return build_recordings(cfg, cfg.DATA.VAL_SPLIT)


def build_recordings(cfg: CfgNode, split: str) -> list[Recording]:
    """Return the sequences of a split: full frames, nothing random, no caches of frames.

    Raises:
        BadFileError: no alignment log.
        DataSetError: what is wrong with the data.
    """
    recordings = _scan(cfg, split, read_image)
    if cfg.DATA.BIN_NORMALIZE:
        require_known_ticks(recordings)
    return recordings


def build_val_dataset(cfg: CfgNode) -> SpikeDeblurDataset:
    """Return the validation clips as float samples; validation itself restores whole sequences.

    Raises:
        BadFileError: no alignment log.
        DataSetError: what is wrong with the data.
    """
    settings = ClipSettings(cfg.DATA.CLIP_LEN)
    return SpikeDeblurDataset(build_val_recordings(cfg), settings, norm=normalization_from(cfg))


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

    Args:
        cfg: the configuration.
        dataset: the clips; a `WatchedDataset` where the death of a loader process is to be named.
        rank: this process among `world_size`.
        world_size: processes of the run.
        start_step: optimizer step to begin with.
        num_steps: optimizer steps to deliver batches for.
        setup_worker: called in every loader process before it begins, to leave signals to the
            training for example.
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
    batch_bytes = _batch_bytes(dataset, train.BATCH_SIZE)
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


def init_worker(worker_id: int, setup: Callable[[], None] | None = None) -> None:
    """Let one loader process use one thread, so that processes do not fight for cores.

    Args:
        worker_id: what the loader calls the process.
        setup: what else to do in it.
    """
    del worker_id
    if setup is not None:
        setup()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def workers_that_fit(wanted: int, batch_bytes: int, free_bytes: int | None) -> int:
    """Return how many workers the shared memory has room for, and say so where it is fewer.

    Args:
        wanted: TRAIN.NUM_WORKERS.
        batch_bytes: bytes of one micro-batch.
        free_bytes: free shared memory of this rank; None where the system has no such limit.
    """
    per_worker = batch_bytes * (PREFETCH_BATCHES + 1)
    if free_bytes is None or wanted * per_worker <= free_bytes:
        return wanted
    fitting = max(0, free_bytes // per_worker)
    logger.warning(
        "%s has %.2f GB free for this rank, %d workers need %.2f GB; using %d. In Docker give "
        "--shm-size=8g",
        SHARED_MEMORY,
        free_bytes / BYTES_PER_GB,
        wanted,
        wanted * per_worker / BYTES_PER_GB,
        fitting,
    )
    return fitting


def _scan(cfg: CfgNode, split: str, read: ImageReader) -> list[Recording]:
    return scan_split(scan_settings(cfg), split, read_alignment(alignment_paths(cfg)), read)


def _with_decoded_frames(recordings: list[Recording], root: Path) -> list[Recording]:
    """Return the recordings with their frames decoded on disk, as far as there is room."""
    files = [path for recording in recordings for path in recording.files]
    store, lines = store_frames(files, root)
    level = logging.INFO if len(store) == len(files) else logging.WARNING
    for line in lines:
        logger.log(level, line)
    return [recording.with_store(store) for recording in recordings]


def _batch_bytes(dataset: SpikeDeblurDataset, batch_size: int) -> int:
    """Return the bytes of one collated micro-batch, taken from a sample."""
    sample = dataset[0]
    if not isinstance(sample, dict):
        return 0
    return batch_size * sum(sample[name].nbytes for name in ("blur", "sharp", "spike_vox"))


def shared_memory_bytes() -> int | None:
    """Return the free shared memory of one of the ranks on this machine, which share it."""
    if not SHARED_MEMORY.is_dir():
        return None
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return shutil.disk_usage(SHARED_MEMORY).free // ranks_here


def _warn_of_large_caches(total_bytes: int) -> None:
    available = available_memory_bytes()
    if available is not None and total_bytes > available:
        logger.warning(
            "the frame caches of all workers may take %.1f GB, %.1f GB are free; lower "
            "DATA.CACHE_SIZE_GB or TRAIN.NUM_WORKERS",
            total_bytes / BYTES_PER_GB,
            available / BYTES_PER_GB,
        )
