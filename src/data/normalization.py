"""From stored whole numbers to what the network sees; computed here and nowhere else.

The data set uses it on the CPU, the trainer on the device, on the same counts: same values.
"""

import cv2
import numpy as np
import torch

from src.data.settings import Normalization

SMALLEST_DEVIATION = 1e-6


def normalize_counts(
    counts: torch.Tensor, norm: Normalization, bin_ticks: torch.Tensor | None = None
) -> torch.Tensor:
    """Return (log1p(count * gain / ticks of the bin) - mean) / max(std, 1e-6) as float32.

    Bytes on the CPU are looked up in a table. The argument is left as it was.

    Args:
        counts: spikes per voxel, any shape and real dtype, on any device; [..., K, Hs, Ws] where
            bins are normalized.
        norm: how.
        bin_ticks: ticks of each bin [..., K], needed where bins are normalized. A bin without ticks
            holds no spikes and counts as one of one tick.
    """
    factors = torch.tensor(norm.gain)
    if norm.bin_normalize and bin_ticks is None:
        raise ValueError("DATA.BIN_NORMALIZE needs the ticks of every bin, which are not known")
    if norm.bin_normalize:
        factors = (norm.gain / bin_ticks.clamp(min=1).float())[..., None, None]
    if counts.dtype == torch.uint8 and counts.device.type == "cpu":
        return _look_up(counts, factors, norm)
    return _normalize(counts.float(), factors.to(counts.device), norm)


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
