"""What a file that should hold spikes is: packed bits, an array, or a list of events.

Of packed bits the size and order are found (`inspect_packed`), of an array which axis is time, of a
list which column is which.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from src.data.errors import BadFileError, refuse_other_kind
from src.data.spikes.arrays import (
    ARRAY_SUFFIXES,
    array_shape,
    check_events,
    column_places,
    list_arrays,
    open_array,
)
from src.data.spikes.spike_dat import read_sidecar
from src.prepare.inspect_packed import (
    Block,
    Inspection,
    Question,
    inspect_bytes,
    middle_ticks,
    size_name,
)

MAX_VALUES = 1 << 25
ORDERS_OF_TIME = ("THW", "HTW", "HWT")  # time is the first, second, third axis
MIN_DEVIATIONS = 8.0
MOST_PIXELS = 1 << 24
ROWS_FIRST = (
    "rows are taken to come before columns: a picture and its mirror image along the diagonal "
    "cannot be distinguished by numbers; look at the picture"
)
PACKED_ENDINGS = (".dat", ".bin", ".raw")


def inspect_file(question: Question) -> Inspection:
    """Find out what a file is; a YAML file beside it is tested like what the user says."""
    path = question.path
    if not path.is_file():
        raise BadFileError(path, "is a folder" if path.is_dir() else "no such file")
    refuse_other_kind(path)
    if path.suffix.lower() in ARRAY_SUFFIXES:
        return inspect_array(question)
    if not path.stat().st_size:
        raise BadFileError(path, "is empty; copy it again")
    measured, warnings = [], []
    beside = read_sidecar(path)
    if beside is not None:
        size, order, flip = (beside.height, beside.width), beside.bit_order, beside.flip_rows
        measured.append(
            f"a YAML file beside it says {size[0]}x{size[1]}, bit_order {order}, flip_rows {flip}"
        )
        if question.size is None:
            flip = flip if question.flip_rows is None else question.flip_rows
            order = question.bit_order or order
            question = replace(question, size=size, bit_order=order, flip_rows=flip)
    if path.suffix.lower() not in PACKED_ENDINGS:
        ending = path.suffix or "(none)"
        warnings.append(f"the ending {ending} is not known; looked at as packed bits")
    found = inspect_bytes(np.memmap(path, np.uint8, "r"), question)
    found.measured[:0], found.warnings[:0] = measured, warnings
    return found


def inspect_array(question: Question) -> Inspection:
    """Inspect an array file; see `inspect_file`."""
    path, found = question.path, Inspection()
    try:
        name, shape, values = read_leading(path, question.key)
    except BadFileError:
        raise
    except ValueError as error:
        reason = f"cannot be read: {str(error).removeprefix(f'{path}: ')}"
        raise BadFileError(path, reason) from error
    found.measured.append(f"{name} has shape {list(shape)} and holds {values.dtype}")
    if name.startswith("columns"):
        question = replace(question, axes=question.axes or "tyxp"[: shape[1]])
    if values.shape != shape:
        found.measured.append(f"looked at: the leading part, {list(values.shape)}")
    if len(shape) == 3 and values.dtype.kind in "buif":
        return inspect_dense(values, shape, question, found)
    if len(shape) == 2 and shape[1] in (3, 4):
        return inspect_list(values, question, found)
    needed = "three axes (time, rows, columns) or rows (t, y, x) of numbers are needed"
    raise BadFileError(path, f"{name} has shape {shape} of {values.dtype}; {needed}")


def read_leading(path: Path, key: str | None = None) -> tuple[str, tuple[int, ...], np.ndarray]:
    """Return what an array is called, its shape, and its leading slices along the first axis.

    Without a key the only array with two or three axes is taken, else columns that are stored one
    by one. An `.npz` is held in memory.
    """
    stored = list_arrays(path)
    large = [name for name, (shape, _) in stored.items() if len(shape) in (2, 3)]
    columns = column_places(stored, key)
    if columns:
        parts = (f"{array}[{field}]" if field else array for array, field in columns.values())
        name = f"columns {', '.join(parts)}, read as rows {''.join(columns)},"
    else:
        key = large[0] if key is None and len(large) == 1 else key
        name = f"array {key}" if key else "array"
    try:
        shape = array_shape(path, key)
    except ValueError as error:
        listed = ", ".join(f"{name} {list(shape)}" for name, (shape, _) in stored.items())
        what = f"has no array {key!r}; it holds" if key else "holds"
        way_out = "" if key else "; name one of them with --key"
        raise BadFileError(path, f"{what} {listed or 'no arrays'}{way_out}") from error
    with open_array(path, key) as array:
        if array.ndim == 0:
            return name, shape, np.asarray(array[()])
        most = max(1, MAX_VALUES // max(1, int(np.prod(array.shape[1:]))))
        return name, shape, np.asarray(array[:most])


def inspect_dense(
    values: np.ndarray, shape: tuple[int, ...], question: Question, found: Inspection
) -> Inspection:
    """Inspect the leading part of an array of three axes, and of so large a shape."""
    if np.any((values != 0) & (values != 1)):
        return _other_values(values, question, found)
    if values.min() == values.max():
        return found.answered(
            f"all values are {values.min():g}: nothing shows the order of the axes"
        )
    values = (values != 0).astype(np.uint8)
    alike = [_next_alike(values, axis) for axis in range(3)]
    numbers = ", ".join(f"axis {axis} {value:+.4f}" for axis, value in enumerate(alike))
    found.measured.append(f"correlation with the next value along each axis: {numbers}")
    ranked = sorted(range(3), key=alike.__getitem__)
    deviations = (alike[ranked[1]] - alike[ranked[0]]) * np.sqrt(values.size)
    likely = ORDERS_OF_TIME[ranked[0]] if deviations > MIN_DEVIATIONS else None
    answer, is_right, order = _judge(shape, likely, deviations, question)
    if order is None:
        return found.answered(answer, is_right)
    upright = values.transpose([order.index(axis) for axis in "THW"])
    start, stop = middle_ticks(upright.shape[0], upright.shape[1] * upright.shape[2])
    spikes = upright[start:stop, ::-1] if question.flip_rows else upright[start:stop]
    found.warnings += [ROWS_FIRST] * (question.axes is None)
    if question.reference is not None:
        found.warnings.append("the reference is used with packed spikes only")
    return found.answered(answer, is_right, Block(spikes, start, shape[order.index("T")]))


def _other_values(values: np.ndarray, question: Question, found: Inspection) -> Inspection:
    """Say which values other than 0 and 1 there are; bytes may be packed bits."""
    distinct = np.unique(values)
    shown = ", ".join(f"{value:g}" for value in distinct[:4].astype(float))
    answer = f"holds {len(distinct)} distinct values ({shown}, ...) instead of 0 and 1: no spikes"
    if values.dtype != np.uint8:
        return found.answered(answer)
    packed = inspect_bytes(np.ascontiguousarray(values).reshape(-1), replace(question, size=None))
    answer += f", perhaps packed bytes taken for pixels; its bytes read as bits: {packed.answer}"
    measured = [*found.measured, *packed.measured]
    return replace(packed, answer=answer, is_right=False, measured=measured)


def _judge(
    shape: tuple[int, ...], found: str | None, deviations: float, question: Question
) -> tuple[str, bool, str | None]:
    """Return the answer, whether what was given can be right, and the order of axes to draw."""
    given = None if question.axes is None else question.axes.upper().replace("S", "T")
    if given is not None and sorted(given) != sorted("THW"):
        return f"axes {given!r} cannot be right: name T, H and W once each", False, found
    if found is None:
        why = (
            f"no axis stands out ({deviations:.0f} deviations); noise, or ticks that are all alike"
        )
        return f"which axis is time cannot be known: {why}", given is not None, given
    time = found.index("T")
    sure = f"values along it agree less than along the others, {deviations:.0f} deviations"
    if given is not None and given.index("T") != time:
        return f"axes {given} cannot be right: axis {time} is time ({sure}): {found}", False, found
    order = given or found
    size = shape[order.index("H")], shape[order.index("W")]
    if question.size not in (None, size):
        wrong = f"{question.size[0]}x{question.size[1]} cannot be right"
        return f"{wrong}: axes {order} are {size_name(*size)}", False, order
    return f"axes {order}: {shape[time]} ticks of {size_name(*size)}; {sure}", True, order


def _next_alike(values: np.ndarray, axis: int) -> float:
    """Return the correlation of 0/1 values with their successors along an axis."""
    mean = float(values.mean(dtype=np.float64))
    moved = np.moveaxis(values, axis, 0)
    if len(moved) < 2 or mean in (0.0, 1.0):
        return 0.0
    both = float((moved[:-1] & moved[1:]).mean(dtype=np.float64))
    first, second = (float(part.mean(dtype=np.float64)) for part in (moved[:-1], moved[1:]))
    return (both - mean * (first + second) + mean * mean) / (mean * (1 - mean))


def inspect_list(rows: np.ndarray, question: Question, found: Inspection) -> Inspection:
    """Inspect the leading rows of three or four columns; `axes` names them, like "tyxp"."""
    if rows.dtype.kind not in "buif" or len(rows) < 2 or not np.isfinite(rows).all():
        return found.answered("no list of events: at least two rows of finite numbers are needed")
    if rows.dtype.kind in "bu":  # differences of unsigned numbers are never negative
        rows = rows.astype(np.int64)
    is_rising = np.all(np.diff(rows, axis=0) >= 0, axis=0)
    for column, values in enumerate(rows.T):
        way = "never going back" if is_rising[column] else "going back and forth"
        found.measured.append(f"column {column}: {values.min():g} to {values.max():g}, {way}")
    columns, why = _name_columns(rows, question.axes)
    if columns is None:
        return found.answered(why)
    seen = [int(rows[:, columns.index(axis)].max()) + 1 for axis in "yx"]
    size = question.size or (max(seen[0], 1), max(seen[1], 1))
    try:
        t, y, x = check_events(rows, *size, columns)[:, :3].T
    except ValueError as error:
        given = f"{size[0]}x{size[1]}" if question.size else f"columns {columns}"
        return found.answered(f"{given} cannot be right: {error}")
    steps = np.diff(np.unique(t[: 1 << 20]))
    tick = int(np.gcd.reduce(steps)) if steps.size else 1
    unit = f"all times are multiples of {tick}: a tick is {tick} units of t"
    found.measured.append(unit if tick > 1 else "t counts ticks, or a unit in which a tick is 1")
    block = None
    if size[0] * size[1] <= MOST_PIXELS:
        numbers = (t - t[0]) // tick
        start, stop = middle_ticks(int(numbers[-1]) + 1, size[0] * size[1])
        inside = (numbers >= start) & (numbers < stop)
        spikes = np.zeros((stop - start, *size), np.uint8)
        spikes[numbers[inside] - start, y[inside], x[inside]] = 1
        block = Block(spikes, start, int(numbers[-1]) + 1)
    answer = f"columns {columns} ({why}); the sensor has at least {seen[0]}x{seen[1]}"
    return found.answered(answer, True, block)


def _name_columns(rows: np.ndarray, given: str | None) -> tuple[str | None, str]:
    """Return the names of the columns, None where they cannot be known, and the reason."""
    count = rows.shape[1]
    if given is not None:
        if sorted(given[:count]) not in (sorted("tyx"), sorted("tyxp")) or len(given) < count:
            return None, f"columns {given!r} do not name the {count} columns t, y, x (, p)"
        return given[:count], "as given"
    steps = np.diff(rows, axis=0)
    times = [i for i in range(count) if np.all(steps[:, i] >= 0) and np.any(steps[:, i])]
    others = [i for i in range(count) if i not in times]
    constant = [i for i in others if not np.any(steps[:, i])]
    few = [i for i in others if len(np.unique(rows[:, i])) <= 2]
    polarity = (constant or few)[-1:] if count == 4 else []
    if len(times) != 1 or (count == 4 and not polarity):
        return None, "which column is t cannot be known; name the columns with --axes tyxp"
    rest = [i for i in others if i not in polarity]
    within = steps[steps[:, times[0]] == 0]  # from spike to spike of one tick
    is_sorted = [i for i in rest if np.all(within[:, i] >= 0) and np.any(within[:, i] > 0)]
    why = "t never goes back; which of the others is y cannot be known, see the picture"
    if len(is_sorted) == 1:
        why = "t never goes back, y is sorted within a tick"
    y = is_sorted[0] if len(is_sorted) == 1 else rest[0]
    names = dict.fromkeys(rest, "x") | {y: "y", times[0]: "t"} | dict.fromkeys(polarity, "p")
    return "".join(names[i] for i in range(count)), why
