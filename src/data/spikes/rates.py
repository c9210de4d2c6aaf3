"""Spike rates of counted bins: in a window of the exposure, and by how much an instant differs.

Tensors on any device; `reconstruct.py` does without torch, which takes seconds to import.
"""

import math

import torch
from einops import einsum
from torch import Tensor
from torch.nn import functional


def window_rate(counts: Tensor, bin_ticks: Tensor, centre: Tensor, width: float) -> Tensor:
    """Return the spikes per tick in a window of the exposure: TFP from bins, with gain 1.

    The window is [centre - width / 2, centre + width / 2) in ticks from the start of the exposure,
    cut at its ends. A bin that an edge cuts counts by the part of its ticks inside.

    Args:
        counts: spikes per bin, [..., K, h, w].
        bin_ticks: ticks of each bin, [..., K]; where all are 0 they are unknown and count as 1.
        centre: instant in ticks, [...], inside the exposure.
        width: ticks in the window, above 0.

    Returns:
        float32 [..., h, w], in spikes per tick.
    """
    ticks = _known_ticks(bin_ticks)
    stop = ticks.cumsum(-1)
    first = (centre - width / 2)[..., None]
    inside = torch.minimum(stop, first + width) - torch.maximum(stop - ticks, first)
    inside = inside.clamp(min=0)
    shares = inside / ticks.clamp(min=1) / inside.sum(-1, keepdim=True)
    return einsum(counts.float(), shares, "... k h w, ... k -> ... h w")


def difference_image(
    counts: Tensor, bin_ticks: Tensor, centre: Tensor, width: float, sigma: float = 1.0
) -> Tensor:
    """Return by how much an instant of the exposure is brighter than the whole of it.

    A blurry frame is the mean of the exposure, so blurry + gain * this, enlarged to the frame's
    size and added to all three channels, is an estimate of the sharp frame without any learning.
    The gain is the threshold, in intensity per spike rate.

    Args:
        counts, bin_ticks, centre, width: see `window_rate`.
        sigma: of the Gaussian over the difference, in spike pixels; 0 for none.

    Returns:
        float32 [..., h, w], in spikes per tick, of either sign.
    """
    whole = counts.float().sum(-3) / _known_ticks(bin_ticks).sum(-1)[..., None, None]
    return gaussian_blur(window_rate(counts, bin_ticks, centre, width) - whole, sigma)


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Return images [..., h, w] under a Gaussian of `sigma` pixels; edge pixels repeat outside."""
    if sigma == 0:
        return images
    reach = math.ceil(3 * sigma)
    kernel = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (kernel / sigma) ** 2)
    kernel = kernel / kernel.sum()
    planes = functional.pad(images.reshape(-1, 1, *images.shape[-2:]), (reach,) * 4, "replicate")
    planes = functional.conv2d(planes, kernel.reshape(1, 1, -1, 1))
    return functional.conv2d(planes, kernel.reshape(1, 1, 1, -1)).reshape(images.shape)


def _known_ticks(bin_ticks: Tensor) -> Tensor:
    is_known = bin_ticks.sum(-1, keepdim=True) > 0
    return torch.where(is_known, bin_ticks, 1).float()
