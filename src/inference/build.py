"""Reads the keys of a configuration that restoring and scoring need."""

import torch
from torch import nn
from yacs.config import CfgNode

from src.data.normalization import normalization_from
from src.inference.restore import Restorer
from src.inference.tile_settings import TileSettings
from src.metrics.lpips_metric import LpipsMetric, LpipsUnavailableError
from src.paths import resolve


def build_tile_settings(cfg: CfgNode) -> TileSettings:
    """Return how `VAL` says that videos are cut."""
    return TileSettings(
        frames=cfg.VAL.TILE_FRAMES,
        size_px=cfg.VAL.TILE_SIZE,
        overlap_frames=cfg.VAL.OVERLAP_FRAMES if cfg.VAL.TILE_FRAMES else 0,
        overlap_px=cfg.VAL.OVERLAP_SIZE if cfg.VAL.TILE_SIZE else 0,
        blend=cfg.VAL.BLEND,
    )


def build_restorer(
    cfg: CfgNode,
    model: nn.Module,
    device: str | torch.device,
    autocast_dtype: torch.dtype | None = None,
) -> Restorer:
    """Return a restorer for a model that was built from `cfg` and is on `device`."""
    return Restorer(
        model,
        build_tile_settings(cfg),
        normalization_from(cfg),
        device,
        autocast_dtype,
        use_spikes=cfg.MODEL.USE_SPIKE,
    )


def build_lpips(cfg: CfgNode, device: str | torch.device) -> tuple[LpipsMetric | None, list[str]]:
    """Return LPIPS, or None with a note that says why there is none."""
    if not cfg.VAL.LPIPS:
        return None, ["LPIPS was not measured: VAL.LPIPS is false"]
    weights = resolve(cfg.VAL.LPIPS_WEIGHTS) if cfg.VAL.LPIPS_WEIGHTS else ""
    try:
        return LpipsMetric(weights, device), []
    except LpipsUnavailableError as error:
        return None, [f"LPIPS was not measured: {error}"]
