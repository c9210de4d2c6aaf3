"""Counts of spikes per time bin: from event lists and from bit-packed files.

For tick q of a window of S ticks the bin is floor(q * K / S), in integers: nothing is lost, nothing
is counted twice, and the time axis is neither stretched nor interpolated. Where K does not divide S
the bins hold unequal numbers of ticks; `ticks_per_bin` returns how many.
"""

import logging
from collections.abc import Iterator

import numpy as np

from src.data.spikes.spike_dat import SpikeFile

logger = logging.getLogger(__name__)

OUTSIDE_CHOICES = ("error", "drop")
# What is worked on at a time, so that it stays in the cache; measured, half to twice is the same.
EVENTS_TOGETHER = 1 << 15
UNPACK_BYTES = 1 << 20  # of spikes


def bin_of_tick(num_ticks: int, num_bins: int) -> np.ndarray:
    """Return the bin of each tick of a window: int64 [S], floor(q * K / S)."""
    if num_ticks < 1 or num_bins < 1:
        raise ValueError(f"a window of {num_ticks} ticks in {num_bins} bins: both must be above 0")
    return np.arange(num_ticks, dtype=np.int64) * num_bins // num_ticks


def ticks_per_bin(num_ticks: int, num_bins: int) -> np.ndarray:
    """Return how many ticks fall into each bin: int64 [K]; 0 where K exceeds S."""
    return np.bincount(bin_of_tick(num_ticks, num_bins), minlength=num_bins)


def centred_bins(num_bins: int, instant: float) -> np.ndarray:
    """Return which bin takes the place of each bin to have the sharp instant in the middle, [K].

    `instant` is the part of the exposure that has passed then. Bins before the first or after the
    last repeat it. See `DATA.CENTER_SHARP`.
    """
    shift = round(num_bins * (instant - 0.5))
    return np.clip(np.arange(num_bins) + shift, 0, num_bins - 1)


def voxelize(
    events: np.ndarray,
    t0: float,
    t1: float,
    H: int,
    W: int,
    K: int = 32,
    outside: str = "error",
) -> np.ndarray:
    """Count events per bin of the window [t0, t1): float32 [K, H, W].

    Events are rows (t, y, x) or (t, y, x, p) of any real dtype in any order; p is not used. The bin
    is clip(floor((t - t0) / (t1 - t0) * K), 0, K - 1), in integers where all times are. Times in
    seconds as floats can fall on the wrong side of a bin edge by rounding: keep ticks or
    microseconds. Events outside the sensor or the window are an error, or left out and logged with
    `outside` "drop".
    """
    events = np.asarray(events)
    if outside not in OUTSIDE_CHOICES:
        raise ValueError(f"outside is {outside!r}; write one of {OUTSIDE_CHOICES}")
    if events.ndim != 2 or events.shape[1] not in (3, 4):
        raise ValueError(
            f"events have shape {events.shape}; rows (t, y, x) or (t, y, x, p) are needed"
        )
    if not t1 > t0:
        raise ValueError(f"exposure ends before it starts: t0={t0}, t1={t1}")
    if min(H, W, K) < 1:
        raise ValueError(f"H={H}, W={W}, K={K}: all must be above 0")
    grid, num_inside = np.zeros(K * H * W, np.float32), 0
    for start in range(0, len(events), EVENTS_TOGETHER):
        part = np.ascontiguousarray(events[start : start + EVENTS_TOGETHER].T[:3])
        inside = _is_inside(*part, (t0, t1), (H, W))
        if outside == "error" and not inside.all():
            row = start + int(np.argmin(inside))
            number = np.count_nonzero(~_is_inside(*events.T[:3], (t0, t1), (H, W)))
            raise ValueError(
                f"{number} of {len(events)} events lie outside the window [{t0}, {t1}) or the "
                f"sensor {H}x{W}; the first is row {row}: {events[row].tolist()}. Rows are "
                '(t, y, x[, p]); pass outside="drop" to leave such events out'
            )
        t, y, x = part if inside.all() else part[:, inside]
        index = (bins_of(t, t0, t1, K) * H + _whole(y, "y")) * W + _whole(x, "x")
        np.add.at(grid, index, np.float32(1))  # one flat index: the fast path of NumPy >= 1.25
        num_inside += len(index)
    if num_inside < len(events):
        num_dropped = len(events) - num_inside
        logger.warning("dropped %d of %d events outside window or sensor", num_dropped, len(events))
    return grid.reshape(K, H, W)


def voxelize_packed(
    file: SpikeFile,
    start: int,
    stop: int,
    K: int,
    crop: tuple[int, int, int, int] | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Count the spikes of ticks [start, stop) of a bit-packed file: [K, h, w], upright.

    No event list is built, and of a crop (y, x, h, w) only its own bytes are unpacked. The result
    is uint8, uint16 if a count needs it; `out`, if that fits it.
    """
    geometry = file.geometry
    y, x, h, w = (0, 0, geometry.height, geometry.width) if crop is None else crop
    if y < 0 or x < 0 or h < 1 or w < 1 or y + h > geometry.height or x + w > geometry.width:
        raise ValueError(
            f"{file.path}: crop (y={y}, x={x}, h={h}, w={w}) leaves the sensor of "
            f"{geometry.height}x{geometry.width}"
        )
    if geometry.width % 8:  # rows share bytes: unpack whole ticks, one at a time
        ticks = (file.read(q, q + 1)[0, y : y + h, x : x + w] for q in range(start, stop))
        return _add_up(ticks, _empty_counts(stop - start, K, (h, w), out), stop - start)
    top = geometry.height - y - h if geometry.flip_rows else y
    left, first_byte, last_byte = x % 8, x // 8, (x + w - 1) // 8 + 1
    together = max(1, UNPACK_BYTES // (8 * (last_byte - first_byte) * h))
    upright = slice(None, None, -1 if geometry.flip_rows else 1)  # bytes are cheaper than spikes
    ticks = (
        bits
        for block in file.packed(start, stop, (top, top + h), together)
        for bits in np.unpackbits(
            block[:, upright, first_byte:last_byte], axis=-1, bitorder=geometry.bit_order
        )
    )
    return _add_up(ticks, _empty_counts(stop - start, K, (h, w), out), stop - start, left)


def _add_up(
    ticks: Iterator[np.ndarray], counts: np.ndarray, num_ticks: int, left: int = 0
) -> np.ndarray:
    """Add up 0/1 images in the order of ticks; fill and return the counts [K, h, w].

    Every voxel is written once where a bin has one or two ticks, and nothing is zeroed first: forty
    times faster than np.add.reduceat. Wider images are added up whole and cut to the columns from
    `left` on afterwards: adding parts of rows would cost twice as much.
    """
    num_bins, *size = counts.shape
    columns = slice(left, left + size[1])
    for count, num in zip(counts, ticks_per_bin(num_ticks, num_bins).tolist(), strict=True):
        if num == 0:
            count[...] = 0
            continue
        first = next(ticks)
        if num == 1:
            count[...] = first[:, columns]
            continue
        total = count if list(first.shape) == size else np.empty(first.shape, counts.dtype)
        np.add(first, next(ticks), out=total)
        for _ in range(num - 2):
            total += next(ticks)
        if total is not count:
            count[...] = total[:, columns]
    return counts


def _empty_counts(
    num_ticks: int, num_bins: int, size: tuple[int, int], out: np.ndarray | None = None
) -> np.ndarray:
    """Return `out`, or an array [K, h, w] in the smallest dtype that holds ceil(S / K)."""
    largest = int(ticks_per_bin(num_ticks, num_bins).max())
    dtype = np.uint8 if largest <= np.iinfo(np.uint8).max else np.uint16
    if largest > np.iinfo(np.uint16).max:
        raise ValueError(f"{num_ticks} ticks in {num_bins} bins: a count can exceed 65535; raise K")
    shape = (num_bins, *size)
    if out is not None and (out.shape, out.dtype) == (shape, dtype):
        return out
    return np.empty(shape, dtype=dtype)


def bins_of(t: np.ndarray, t0: float, t1: float, num_bins: int) -> np.ndarray:
    """Return the bin of each time inside [t0, t1): int64 [N]; whole times stay whole numbers."""
    if t.dtype.kind in "iu" and all(isinstance(v, int | np.integer) for v in (t0, t1)):
        bins = t.astype(np.int64)
        bins -= int(t0)
        bins *= num_bins
        bins //= int(t1) - int(t0)
        return bins
    # Multiplying first keeps whole ticks exact: only the quotient is rounded.
    bins = np.floor((t.astype(np.float64) - t0) * num_bins / (t1 - t0)).astype(np.int64)
    return np.clip(bins, 0, num_bins - 1, out=bins)


def _whole(values: np.ndarray, name: str) -> np.ndarray:
    """Return coordinates as int64; a fractional one is refused."""
    whole = values.astype(np.int64, copy=False)
    if values.dtype.kind == "f" and np.any(whole != values):
        raise ValueError(f"column {name} has fractional values; whole pixel numbers are needed")
    return whole


def _is_inside(
    t: np.ndarray, y: np.ndarray, x: np.ndarray, window: tuple[float, float], size: tuple[int, int]
) -> np.ndarray:
    """Return which events lie in the window and on the sensor: bool [N]; NaN does not."""
    on_sensor = (y >= 0) & (y < size[0]) & (x >= 0) & (x < size[1])
    return on_sensor & (t >= window[0]) & (t < window[1])
