"""Cheap images from spikes: from counts (TFP), intervals (TFI) and short-term plasticity (TFSTP).

All need the threshold as a gain: intensity = threshold * rate.
"""

from dataclasses import dataclass

import numpy as np

# Short-term plasticity: initial release, recovery and facilitation times in ticks, facilitation.
STP_U0, STP_D, STP_F, STP_SMALL_F = 0.15, 1.0, 10.0, 0.15


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


class RunningCounts:
    """The same TFP images as `tfp`, any number of them from one cumulative sum.

    Args:
        spikes: 0 and 1, [S, H, W]; four bytes per value are kept.
    """

    def __init__(self, spikes: np.ndarray) -> None:
        _check_stream(spikes)
        self._sums = np.zeros((len(spikes) + 1, *spikes.shape[1:]), np.int32)
        for i, tick in enumerate(spikes):  # np.cumsum over the first axis is 20x slower
            np.add(self._sums[i], tick, out=self._sums[i + 1])

    def tfp(self, centre: int, width: int, threshold: float) -> np.ndarray:
        """Return `tfp(spikes, centre, width, threshold)`: float32 [H, W]."""
        start, stop = _window(centre, width, len(self._sums) - 1)
        rate = (self._sums[stop] - self._sums[start]) / (stop - start)
        return (threshold * rate).astype(np.float32)


def tfi(
    spikes: np.ndarray, tick: int, threshold: float, fill: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the image of the inter-spike intervals around a tick.

    intensity = threshold / (t_next - t_prev), with the last spike at or before the tick and the
    first one after it. A pixel that lacks either of them has no interval.

    Args:
        spikes: 0 and 1, [S, H, W].
        tick: the tick looked at.
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
        tick: the tick looked at.
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


@dataclass(frozen=True)
class PlasticityImage:
    """Rates that a model synapse estimates per pixel, in spikes per tick.

    Attributes:
        rho_r: from the recovery, float64 [H, W].
        rho_u: from the facilitation, float64 [H, W].
        has_interval: where a pixel fired at least twice; elsewhere both rates are 0.
    """

    rho_r: np.ndarray
    rho_u: np.ndarray
    has_interval: np.ndarray


def tfstp(spikes: np.ndarray, tick: int) -> PlasticityImage:
    """Return the rates that short-term plasticity sees in the spikes up to a tick.

    At each spike, D ticks (here `gap`) after the one before:

        R <- 1 - (1 - R (1 - u)) exp(-gap / D),   u <- u0 + (u + f (1 - u) - u0) exp(-gap / F)
        rho_R = -1 / (D ln((1 - R) / (1 - R (1 - u))))
        rho_u = -1 / (F ln((u - u0) / (f - u0 + u (1 - f))))

    For a pixel that fires regularly both become 1 / gap. The small f, not F, stands in the
    logarithm of rho_u; SpikeCV has F there, which compresses the rates.

    Args:
        spikes: 0 and 1, [S, H, W].
        tick: the last tick taken into account.

    Raises:
        ValueError: a wrong shape, or a tick outside the stream.
    """
    _check_stream(spikes)
    if not 0 <= tick < len(spikes):
        raise ValueError(f"tick {tick} lies outside the stream of {len(spikes)} ticks")
    size = spikes.shape[1:]
    last = np.full(size, -1)
    number = np.zeros(size, np.int64)
    missing = np.zeros(size)  # 1 - R: R itself would round to 1 after long gaps
    u = np.full(size, STP_U0)
    for q in range(tick + 1):
        fired = spikes[q] != 0
        again = fired & (number > 0)
        gap = (q - last[again]).astype(np.float64)
        released = 1 - (1 - missing[again]) * (1 - u[again])
        raised = u[again] + STP_SMALL_F * (1 - u[again])
        missing[again] = released * np.exp(-gap / STP_D)
        u[again] = STP_U0 + (raised - STP_U0) * np.exp(-gap / STP_F)
        last[fired] = q
        number += fired
    has_interval = number > 1
    rho_r, rho_u = np.zeros(size), np.zeros(size)
    missing, u = missing[has_interval], u[has_interval]
    rho_r[has_interval] = -1 / (STP_D * np.log(missing / (1 - (1 - missing) * (1 - u))))
    raised = STP_SMALL_F - STP_U0 + u * (1 - STP_SMALL_F)
    rho_u[has_interval] = -1 / (STP_F * np.log((u - STP_U0) / raised))
    return PlasticityImage(rho_r, rho_u, has_interval)


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
