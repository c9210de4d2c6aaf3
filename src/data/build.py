"""From the configuration to data sets; below this file there are plain values only."""

import logging

from yacs.config import CfgNode

from src.data.datasets.spike_deblur_dataset import ClipSettings, SpikeDeblurDataset
from src.data.exposures import read_alignment
from src.data.frame_cache import FrameCache, available_memory_bytes, preload, store_frames
from src.data.frames import ImageReader, read_image
from src.data.normalization import normalization_from
from src.data.recordings import Recording, require_known_ticks
from src.data.scanning import alignment_paths, scan_settings, scan_split
from src.data.transforms import AugmentSettings
from src.paths import resolve

logger = logging.getLogger(__name__)


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
