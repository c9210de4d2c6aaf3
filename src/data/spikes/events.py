"""Lists of events, one row per spike, and dense arrays: checking, converting.

Rows are (t, y, x) or (t, y, x, p) with integers; a spike has no polarity, so p is the same
everywhere. Other column and axis orders exist in the wild and must be stated, never guessed.
"""

from pathlib import Path

import numpy as np

COLUMNS = ("t", "y", "x", "p")
AXES = ("S", "H", "W")


def dense_to_events(spikes: np.ndarray) -> np.ndarray:
    """Return the ones of dense spikes [S, H, W] as rows (t, y, x), sorted by t: int64 [N, 3].

    Raises:
        ValueError: a wrong shape, or a value that is not 0 or 1.
    """
    spikes = np.asarray(spikes)
    check_binary(spikes, "spikes")
    return np.argwhere(spikes)


def events_to_dense(events: np.ndarray, num_ticks: int, height: int, width: int) -> np.ndarray:
    """Return events with t in ticks as dense spikes: uint8 [S, H, W] of 0 and 1.

    Raises:
        ValueError: what `check_events` refuses, a t outside [0, num_ticks), or two equal rows.
    """
    events = check_events(events, height, width)
    t, y, x = events[:, 0], events[:, 1], events[:, 2]
    if len(events) and (t[0] < 0 or t[-1] >= num_ticks):
        raise ValueError(
            f"events run from tick {t[0]} to {t[-1]}; they must lie in [0, {num_ticks})"
        )
    flat = (t * height + y) * width + x
    spikes = np.zeros(num_ticks * height * width, dtype=np.uint8)
    spikes[flat] = 1
    if int(spikes.sum()) != len(flat):
        values, counts = np.unique(flat, return_counts=True)
        row = int(np.flatnonzero(flat == values[counts > 1][0])[1])
        raise ValueError(
            f"row {row}: {events[row].tolist()} occurs twice; a pixel fires once per tick"
        )
    return spikes.reshape(num_ticks, height, width)


def check_events(
    events: np.ndarray, height: int, width: int, columns: str = "tyxp", where: str = "events"
) -> np.ndarray:
    """Check a list of spikes and bring its columns into the order t, y, x(, p).

    Args:
        events: [N, 3] or [N, 4], whole numbers of any dtype.
        height: rows of the sensor.
        width: columns of the sensor.
        columns: order of the columns, for instance "xytp"; p is optional at the end.
        where: what the messages name, for instance the file.

    Returns:
        int64 [N, 3] or [N, 4].

    Raises:
        ValueError: a wrong shape or order, fractions, coordinates outside the sensor (often a sign
            of another column order), t that goes back, or spikes of different polarity.
    """
    events = np.asarray(events)
    if sorted(columns) not in (sorted("tyx"), sorted("tyxp")):
        raise ValueError(f'columns are {columns!r}; name t, y, x and p once each, like "tyxp"')
    if events.ndim != 2 or not 3 <= events.shape[1] <= len(columns):
        raise ValueError(f"{where}: shape {events.shape}; rows of {tuple(columns)} are needed")
    names = columns[: events.shape[1]]
    if sorted(names) not in (sorted("tyx"), sorted("tyxp")):
        raise ValueError(f"{where}: {events.shape[1]} columns, {columns!r} says other ones")
    order = [names.index(name) for name in COLUMNS if name in names]
    rows = _whole_numbers(events, where)[:, order]
    _check_sensor(rows, height, width, columns, where)
    going_back = np.flatnonzero(np.diff(rows[:, 0]) < 0)
    if going_back.size:
        raise ValueError(
            f"{where}: t goes back after row {going_back[0]}; sort the rows, or check the order "
            f"of columns ({columns!r} was given)"
        )
    if rows.shape[1] == 4 and len(rows) and rows[:, 3].min() != rows[:, 3].max():
        raise ValueError(
            f"{where}: p runs from {rows[:, 3].min()} to {rows[:, 3].max()}; spikes have no "
            "polarity, these look like the events of an event camera"
        )
    return rows


def find_axes(
    shape: tuple[int, ...], height: int, width: int, axes: str | None, path: str | Path
) -> str:
    """Return the order of the axes of dense spikes; refuse one that does not match the size.

    Args:
        shape: of the array.
        height: rows of the sensor.
        width: columns of the sensor.
        axes: as stated, None where nobody says.
        path: what the messages name.

    Raises:
        ValueError: the order does not match, or several do and none was stated.
    """
    candidates = [axes] if axes else ["SHW", "HSW", "HWS"]
    if axes and sorted(axes) != sorted(AXES):
        raise ValueError(f"axes is {axes!r}; name S, H and W once each")
    fitting = [
        order
        for order in candidates
        if shape[order.index("H")] == height and shape[order.index("W")] == width
    ]
    if len(fitting) != 1:
        raise ValueError(
            f"{path}: shape {shape} with a sensor of {height}x{width} fits the axes "
            f"{fitting or 'of no order'} among {candidates}; state height, width and axes"
        )
    return fitting[0]


def check_binary(spikes: np.ndarray, where: str) -> None:
    """Refuse dense spikes that are not [S, H, W] of 0 and 1.

    Raises:
        ValueError: another shape or another value, with what was found.
    """
    if spikes.ndim != 3:
        raise ValueError(f"{where}: shape {spikes.shape}; [S, H, W] is needed")
    if spikes.dtype != np.bool_ and np.any((spikes != 0) & (spikes != 1)):
        raise ValueError(
            f"{where}: values from {spikes.min()} to {spikes.max()}; only 0 and 1 are spikes "
            "(packed bytes and counts are not)"
        )


def _check_sensor(rows: np.ndarray, height: int, width: int, columns: str, where: str) -> None:
    y, x = rows[:, 1], rows[:, 2]
    outside = np.flatnonzero((y < 0) | (y >= height) | (x < 0) | (x >= width))
    if outside.size:
        raise ValueError(
            f"{where}: row {outside[0]} has y={y[outside[0]]}, x={x[outside[0]]} on a sensor of "
            f"{height}x{width}; {outside.size} rows lie outside; check the order of columns "
            f"({columns!r} was given)"
        )


def _whole_numbers(events: np.ndarray, where: str) -> np.ndarray:
    """Return the events as int64; fractions, NaN and infinity are refused."""
    if events.dtype.kind in "iub":
        return events.astype(np.int64)
    if events.dtype.kind != "f":
        raise ValueError(f"{where}: dtype {events.dtype}; numbers are needed")
    if not np.all(np.isfinite(events)) or np.any(np.rint(events) != events):
        raise ValueError(
            f"{where}: fractional or non-finite values; state t in whole ticks or microseconds, "
            "seconds in floating point cannot tell neighbouring ticks apart"
        )
    return events.astype(np.int64)
