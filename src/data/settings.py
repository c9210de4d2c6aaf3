"""From the configuration to the plain values that reading data needs."""

from dataclasses import dataclass
from pathlib import Path

from yacs.config import CfgNode

from src.data.frames import IMAGE_EXTS
from src.paths import resolve


@dataclass(frozen=True)
class ScanSettings:
    """Where things lie below the data root.

    Attributes:
        num_bins: K.
        image_exts: endings of image files.
        spike_dir: folder of a sequence with `.dat` files.
        voxel_dir: folder of a sequence with voxel counts.
        use_voxel_cache: read counts from `voxel_dir`; False: count the bits at every use.
    """

    root: Path
    num_bins: int
    image_exts: tuple[str, ...] = IMAGE_EXTS
    spike_dir: str = "spike"
    voxel_dir: str = "spike_vox"
    use_voxel_cache: bool = True


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


@dataclass(frozen=True)
class Normalization:
    """How counts become what the network sees.

    Attributes:
        mean, std: of the logarithm below over the training split, `DATA.NORM`.
        gain: factor on the counts, `DATA.GAIN`; the spike threshold makes them intensity.
        bin_normalize: divide the counts of a bin by its number of ticks, `DATA.BIN_NORMALIZE`.
        match_light: scale the counts of a clip to the light of its frames, `DATA.MATCH_LIGHT`.
    """

    mean: float = 0.0
    std: float = 1.0
    gain: float = 1.0
    bin_normalize: bool = False
    match_light: bool = False


def normalization_from(cfg: CfgNode) -> Normalization:
    """Return what the configuration says."""
    data = cfg.DATA
    mean, std = data.NORM.MEAN, data.NORM.STD
    return Normalization(mean, std, data.GAIN, data.BIN_NORMALIZE, data.MATCH_LIGHT)
