"""What the configuration says about where data lies; needs no torch, so that scripts start fast."""

from pathlib import Path

from yacs.config import CfgNode

from src.data.scanning import ScanSettings
from src.paths import resolve


def scan_settings(cfg: CfgNode) -> ScanSettings:
    """Return where things lie below the data root."""
    data = cfg.DATA
    return ScanSettings(
        root=resolve(data.ROOT),
        num_bins=data.K,
        image_exts=tuple(data.IMAGE_EXTS),
        spike_dir=data.SPIKE_DIR,
        voxel_dir=data.VOXEL_CACHE_DIRNAME,
        use_voxel_cache=data.USE_PRECOMPUTED_VOXELS,
    )


def alignment_paths(cfg: CfgNode) -> list[Path]:
    """Return the alignment logs: those of the configuration, else the one named after the root."""
    if cfg.DATA.ALIGN_LOG_PATHS:
        return [resolve(path) for path in cfg.DATA.ALIGN_LOG_PATHS]
    name = resolve(cfg.DATA.ROOT).name
    return [resolve(cfg.LOG.SAVE_DIR) / "logs" / f"align_{name}.txt"]
