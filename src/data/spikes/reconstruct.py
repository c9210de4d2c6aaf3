"""Cheap images from spikes: from counts in a window (TFP) and from inter-spike intervals (TFI).

Both need the threshold as a gain: intensity = threshold * rate.
"""

import numpy as np


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
    first = centre - width // 2
    start, stop = max(first, 0), min(first + width, len(spikes))
    if stop <= start:
        raise ValueError(
            f"window of {width} ticks around {centre} has none of the stream's {len(spikes)}"
        )
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


def _check_stream(spikes: np.ndarray) -> None:
    if spikes.ndim != 3 or not len(spikes):
        raise ValueError(f"spikes have shape {spikes.shape}; [S, H, W] with a tick is needed")
