"""Images from spikes: from counts (TFP), from intervals (TFI), and by how much an instant differs.

All need the threshold as a gain: intensity = threshold * rate. TFP and TFI read spikes, NumPy
[S, H, W]; `window_rate` and `difference_image` read counted bins, tensors on any device.
"""

import math

import numpy as np
import torch
from einops import einsum
from torch import Tensor
from torch.nn import functional


def tfp(spikes: np.ndarray, centre: int, width: int, threshold: float) -> np.ndarray:
    """Return the image of a window of ticks: threshold times the rate in it, float32 [H, W].

    The window is [centre - width // 2, centre - width // 2 + width), cut at the ends of the stream
    [S, H, W] and divided by its true length. Full scale is 1.
    """
    _check_stream(spikes)
    first = centre - width // 2
    start, stop = max(first, 0), min(first + width, len(spikes))
    if stop <= start:
        raise ValueError(
            f"window of {width} ticks around {centre} has none of the stream's {len(spikes)}"
        )
    rate = spikes[start:stop].sum(axis=0, dtype=np.float64) / (stop - start)
    return (threshold * rate).astype(np.float32)


def tfi(spikes: np.ndarray, tick: int, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the image of the inter-spike intervals around a tick, and where an interval exists.

    intensity = threshold / (t_next - t_prev), with the last spike at or before the tick and the
    first one after it. Where a spike lacks, the end of the stream counts as one: such a pixel is at
    most as bright as shown, which is for looking at, not for measuring.

    Returns:
        float32 [H, W], full scale is 1, and bool [H, W]: where both spikes exist.
    """
    _check_stream(spikes)
    if not 0 <= tick < len(spikes):
        raise ValueError(f"tick {tick} lies outside the stream of {len(spikes)} ticks")
    # argmax of 0/1 is the first 1: ticks back to the last spike, and beyond `tick + 1` to the next.
    past = np.concatenate([spikes[tick::-1], np.ones_like(spikes[:1])])
    future = np.concatenate([spikes[tick + 1 :], np.ones_like(spikes[:1])])
    back, ahead = past.argmax(axis=0), future.argmax(axis=0)
    has_both = (back <= tick) & (ahead < len(spikes) - tick - 1)
    return (threshold / (back + ahead + 1)).astype(np.float32), has_both


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


def _check_stream(spikes: np.ndarray) -> None:
    if spikes.ndim != 3 or not len(spikes):
        raise ValueError(f"spikes have shape {spikes.shape}; [S, H, W] with a tick is needed")
