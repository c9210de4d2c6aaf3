"""From stored whole numbers to what the network sees; computed here and nowhere else.

The data set uses it on the CPU, the trainer on the device, on the same counts: same values.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from yacs.config import CfgNode

from src.data.simulation.simulator import BT601

SMALLEST_DEVIATION = 1e-6
SMALLEST_RATE = 1e-5  # spikes per pixel and tick


@dataclass(frozen=True)
class Normalization:
    """How counts become what the network sees; the keys are those of DATA."""

    mean: float = 0.0  # NORM.MEAN, of the logarithm over the training split
    std: float = 1.0
    gain: float = 1.0  # factor on the counts; the spike threshold makes them intensity
    bin_normalize: bool = False  # divide the counts of a bin by its number of ticks
    match_light: bool = False  # scale the counts of a clip to its frames' mean luma
    center_sharp: bool = False  # shift bins so that the sharp frame is in the middle


def normalization_from(cfg: CfgNode) -> Normalization:
    """Return what the configuration says."""
    data = cfg.DATA
    mean, std = data.NORM.MEAN, data.NORM.STD
    flags = data.BIN_NORMALIZE, data.MATCH_LIGHT, data.CENTER_SHARP
    return Normalization(mean, std, data.GAIN, *flags)


def normalize_counts(
    counts: torch.Tensor,
    norm: Normalization,
    bin_ticks: torch.Tensor | None = None,
    blurry: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return (log1p(count * gain / ticks of the bin) - mean) / max(std, 1e-6) as float32.

    Counts have any real dtype and shape, on any device; [..., T, K, Hs, Ws] where bins are
    normalized (by `bin_ticks` [..., K]; a bin without ticks counts as one of one tick) or light is
    matched. Then the gain of a clip makes the mean of its counts, per tick where bins are
    normalized, the mean luma of its frames `blurry` [..., T, 3, H, W] in 0..1. Bytes on the CPU are
    looked up in a table.
    """
    factors = torch.tensor(norm.gain)
    if norm.bin_normalize and bin_ticks is None:
        raise ValueError("DATA.BIN_NORMALIZE needs the ticks of every bin, which are not known")
    if norm.bin_normalize:
        factors = (norm.gain / bin_ticks.clamp(min=1).float())[..., None, None]
    if norm.match_light:
        factors = factors * _light_per_spike(counts, blurry, bin_ticks if norm.bin_normalize else 1)
    if counts.dtype == torch.uint8 and counts.device.type == "cpu":
        return _look_up(counts, factors, norm)
    return _normalize(counts.float(), factors.to(counts.device), norm)


def _light_per_spike(
    counts: torch.Tensor, blurry: torch.Tensor | None, ticks: torch.Tensor | int
) -> torch.Tensor:
    """Return mean luma over mean count per tick of each clip, [..., 1, 1, 1, 1] on the CPU."""
    if blurry is None:
        raise ValueError("DATA.MATCH_LIGHT needs the blurry frames of the counts")
    weights = blurry.new_tensor(BT601) / math.prod(blurry.shape[-2:])
    luma = (blurry.sum((-2, -1)) @ weights).mean(-1)
    spikes = counts.sum((-3, -2, -1), dtype=torch.float32) / math.prod(counts.shape[-2:])
    exposed = torch.as_tensor(ticks, dtype=torch.float32).expand(counts.shape[:-2]).sum(-1)
    exposed = torch.where(exposed > 0, exposed, counts.shape[-3])  # unknown: a tick per bin
    rate = spikes.mean(-1).cpu() / exposed.mean(-1)
    return (luma.cpu() / rate.clamp(min=SMALLEST_RATE))[..., None, None, None, None]


def to_unit(image: torch.Tensor) -> torch.Tensor:
    """Return 8 bit values 0..255 as float32 in 0..1; another dtype is probably scaled already."""
    if image.dtype != torch.uint8:
        raise ValueError(f"expected uint8 values 0..255, got {image.dtype}")
    return image.float().div_(255.0)


def _normalize(counts: torch.Tensor, factors: torch.Tensor, norm: Normalization) -> torch.Tensor:
    """Compute the formula for float32 counts; `factors` fit their shape."""
    logs = torch.log1p(counts * factors)
    return logs.sub_(norm.mean).div_(max(norm.std, SMALLEST_DEVIATION))


def _look_up(counts: torch.Tensor, factors: torch.Tensor, norm: Normalization) -> torch.Tensor:
    """Look up bytes in the table of their factor; a fifth of the time of the formula."""
    planes = torch.atleast_3d(counts) if counts.ndim < 3 else counts
    per_plane = factors.expand(*planes.shape[:-2], 1, 1).flatten().tolist()
    values = torch.arange(256.0)
    tables = {f: _normalize(values, torch.tensor(f), norm).numpy() for f in set(per_plane)}
    planes = planes.reshape(-1, *planes.shape[-2:]).numpy()
    result = np.empty(planes.shape, dtype=np.float32)
    for plane, factor, out in zip(planes, per_plane, result, strict=True):
        cv2.LUT(plane, tables[factor], out)
    return torch.from_numpy(result).reshape(counts.shape)
