"""Images from spikes: from counts (TFP) and from intervals (TFI).

Both read spikes, NumPy [S, H, W], and need the threshold as a gain: intensity = threshold * rate.
"""

import numpy as np


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
    first one after it: float32 [H, W], full scale is 1. Where a spike lacks, the end of the stream
    counts as one and the mask bool [H, W] is False: such a pixel is at most as bright as shown.
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


def _check_stream(spikes: np.ndarray) -> None:
    if spikes.ndim != 3 or not len(spikes):
        raise ValueError(f"spikes have shape {spikes.shape}; [S, H, W] with a tick is needed")
