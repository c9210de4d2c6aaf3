"""What a list of events is: which column is which, in what unit, and how large the sensor was."""

import numpy as np

from src.prepare.inspection.array_samples import ArraySample
from src.prepare.inspection.findings import (
    BLOCK_TICKS,
    BLOCK_VALUES,
    Block,
    Findings,
    Question,
    describe_rate,
)

MOST_PIXELS = 1 << 24


def inspect_list(sample: ArraySample, question: Question) -> Findings:
    """Inspect rows of three or four columns.

    Args:
        sample: the rows or the leading ones.
        question: what the user says; `axes` names the columns, like "tyxp".
    """
    rows = sample.values
    measured = [f"{sample.shape[0]:,} rows of {rows.shape[1]} columns, {rows.dtype}"]
    if not sample.is_whole:
        measured.append(f"looked at: the first {len(rows):,} rows")
    if rows.dtype.kind not in "buif" or len(rows) < 2 or not np.isfinite(rows).all():
        verdict = "no list of events: at least two rows of finite numbers are needed"
        return Findings(verdict, False, tuple(measured))
    if rows.dtype.kind in "bu":  # differences of unsigned numbers are never negative
        rows = rows.astype(np.int64)
    for column in range(rows.shape[1]):
        values = rows[:, column]
        measured.append(
            f"column {column}: {values.min():g} to {values.max():g}, "
            + ("never going back" if np.all(np.diff(values) >= 0) else "going back and forth")
        )
    columns, why, is_clear = _name_columns(rows, question.axes)
    if columns is None:
        return Findings(why, False, tuple(measured))
    by_name = {name: rows[:, i] for i, name in enumerate(columns)}
    if "p" in by_name and by_name["p"].min() != by_name["p"].max():
        verdict = (
            f"columns {columns}: p has several values; spikes have no polarity, these are the "
            "events of an event camera"
        )
        return Findings(verdict, False, tuple(measured))
    t, y, x = (by_name[name] for name in "tyx")
    if y.min() < 0 or x.min() < 0 or np.any(np.rint(y) != y) or np.any(np.rint(x) != x):
        verdict = f"columns {columns} cannot be right: y and x must be whole and not negative"
        return Findings(verdict, False, tuple(measured))
    smallest = int(y.max()) + 1, int(x.max()) + 1
    verdict = f"columns {columns} ({why}); the sensor has at least {smallest[0]}x{smallest[1]}"
    size = question.size or smallest
    if size[0] < smallest[0] or size[1] < smallest[1]:
        verdict = f"{size[0]}x{size[1]} cannot be right, there are events outside; {verdict}"
        return Findings(verdict, False, tuple(measured))
    tick, unit = _tick_length(t)
    measured.append(unit)
    block = _to_block(t, y, x, tick, size)
    lines, warnings = ([], []) if block is None else describe_rate(block.spikes)
    return Findings(verdict, is_clear, (*measured, *lines), tuple(warnings), block)


def _name_columns(rows: np.ndarray, given: str | None) -> tuple[str | None, str, bool]:
    """Return the names of the columns, the reason, and whether it is clear."""
    count = rows.shape[1]
    if given is not None:
        if sorted(given[:count]) not in (sorted("tyx"), sorted("tyxp")) or len(given) < count:
            return None, f"columns {given!r} do not name the {count} columns t, y, x (, p)", False
        if np.any(np.diff(rows[:, given.index("t")]) < 0):
            return None, f"columns {given} cannot be right: t goes back", False
        return given[:count], "as given", True
    rising = [i for i in range(count) if np.all(np.diff(rows[:, i]) >= 0)]
    times = [i for i in rising if rows[0, i] != rows[-1, i]]
    constant = [i for i in range(count) if rows[:, i].min() == rows[:, i].max()]
    few = [i for i in range(count) if i not in times and len(np.unique(rows[:, i])) <= 2]
    polarity = (constant or few)[-1:] if count == 4 else []
    if len(times) != 1 or (count == 4 and not polarity):
        return None, "which column is t cannot be known; name the columns with --axes tyxp", False
    rest = [i for i in range(count) if i not in (*times, *polarity)]
    names = [""] * count
    names[times[0]] = "t"
    for i in polarity:
        names[i] = "p"
    sorted_first = [i for i in rest if _is_sorted_within(rows[:, times[0]], rows[:, i])]
    y = sorted_first[0] if len(sorted_first) == 1 else rest[0]
    names[y] = "y"
    names[rest[1] if y == rest[0] else rest[0]] = "x"
    if len(sorted_first) == 1:
        return "".join(names), "t never goes back, y is sorted within a tick", True
    why = "t never goes back; which of the others is y cannot be known, see the picture"
    return "".join(names), why, True


def _is_sorted_within(t: np.ndarray, values: np.ndarray) -> bool:
    """Whether values never go back while t stays the same, with some that rise."""
    same = np.diff(t) == 0
    steps = np.diff(values)[same]
    return steps.size > 0 and bool(np.all(steps >= 0)) and bool(np.any(steps > 0))


def _tick_length(t: np.ndarray) -> tuple[float, str]:
    """Return the length of a tick in the unit of t, and a sentence about it."""
    steps = np.diff(np.unique(t[: 1 << 20]))
    if t.dtype.kind == "f" and np.any(np.rint(steps) != steps):
        return float(steps.min()), "t has fractions: seconds? State ticks or microseconds"
    tick = int(np.gcd.reduce(steps.astype(np.int64))) if steps.size else 1
    if tick == 1:
        return 1.0, "t counts ticks, or a unit in which a tick is 1"
    return float(tick), f"all times are multiples of {tick}: a tick is {tick} units of t"


def _to_block(
    t: np.ndarray, y: np.ndarray, x: np.ndarray, tick: float, size: tuple[int, int]
) -> Block | None:
    """Return dense spikes of ticks in the middle."""
    pixels = size[0] * size[1]
    if pixels > MOST_PIXELS:
        return None
    numbers = np.rint((t - t[0]) / tick).astype(np.int64)
    num_ticks = int(numbers[-1]) + 1
    count = min(num_ticks, BLOCK_TICKS, max(2, BLOCK_VALUES // pixels))
    start = (num_ticks - count) // 2
    inside = (numbers >= start) & (numbers < start + count)
    spikes = np.zeros((count, *size), np.uint8)
    spikes[numbers[inside] - start, y[inside].astype(int), x[inside].astype(int)] = 1
    return Block(spikes, start, num_ticks)
