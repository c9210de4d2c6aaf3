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
    """Return the image of a window of ticks: threshold times the rate in it.

    The window is [centre - width // 2, centre - width // 2 + width), cut at the ends of the stream
    and divided by its true length.

    Args:
        spikes: 0 and 1, [S, H, W].
        centre: tick the window lies around.
        width: ticks in the window.
        threshold: firing threshold, the gain of the image.

    Returns:
        float32 [H, W], full scale is 1.

    Raises:
        ValueError: a wrong shape, or a window without a tick of the stream.
    """
    _check_stream(spikes)
    start, stop = _window(centre, width, len(spikes))
    rate = spikes[start:stop].sum(axis=0, dtype=np.float64) / (stop - start)
    return (threshold * rate).astype(np.float32)


def tfi(
    spikes: np.ndarray, tick: int, threshold: float, fill: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the image of the inter-spike intervals around a tick.

    intensity = threshold / (t_next - t_prev), with the last spike at or before the tick and the
    first one after it. A pixel that lacks either of them has no interval.

    Args:
        spikes: 0 and 1, [S, H, W].
        tick: the tick of the image.
        threshold: firing threshold, the gain of the image.
        fill: value of pixels without an interval.

    Returns:
        float32 [H, W], full scale is 1, and bool [H, W]: where an interval exists.

    Raises:
        ValueError: a wrong shape, or a tick outside the stream.
    """
    _check_stream(spikes)
    if not 0 <= tick < len(spikes):
        raise ValueError(f"tick {tick} lies outside the stream of {len(spikes)} ticks")
    past, future = spikes[tick::-1], spikes[tick + 1 :]
    has_both = past.any(axis=0) & future.any(axis=0)
    image = np.full(has_both.shape, fill, dtype=np.float32)
    if not has_both.any():
        return image, has_both
    # argmax of 0/1 is the first 1: ticks back to the last spike, and beyond `tick + 1` to the next.
    interval = past.argmax(axis=0) + future.argmax(axis=0) + 1
    image[has_both] = threshold / interval[has_both]
    return image, has_both


def tfi_filled(spikes: np.ndarray, tick: int, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the image of `tfi` without holes: where a spike lacks, the end of the stream is one.

    That makes dark pixels brighter than they are: they are at most as bright as shown. For looking
    at, not for measuring.

    Args:
        spikes: 0 and 1, [S, H, W].
        tick: the tick of the image.
        threshold: firing threshold, the gain of the image.

    Returns:
        float32 [H, W], and bool [H, W]: where an interval exists, as from `tfi`.
    """
    image, has_both = tfi(spikes, tick, threshold)
    past, future = spikes[tick::-1], spikes[tick + 1 :]
    back = np.where(past.any(axis=0), past.argmax(axis=0), tick + 1)
    ahead = np.full(back.shape, len(future), np.int64)
    if len(future):
        ahead = np.where(future.any(axis=0), future.argmax(axis=0), len(future))
    filled = np.where(has_both, image, threshold / (back + ahead + 1))
    return filled.astype(np.float32), has_both


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


def _window(centre: int, width: int, num_ticks: int) -> tuple[int, int]:
    """Return the ticks [start, stop) of a window, cut at the ends of the stream."""
    first = centre - width // 2
    start, stop = max(first, 0), min(first + width, num_ticks)
    if stop <= start:
        raise ValueError(
            f"window of {width} ticks around {centre} has none of the stream's {num_ticks}"
        )
    return start, stop


def _check_stream(spikes: np.ndarray) -> None:
    if spikes.ndim != 3 or not len(spikes):
        raise ValueError(f"spikes have shape {spikes.shape}; [S, H, W] with a tick is needed")
