"""What a file that should hold spikes is: packed bits, an array, or a list of events.

Of packed bits the size and order are found (`inspect_packed`), of an array which axis is time, of a
list which column is which.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from src.data.errors import BadFileError
from src.data.spikes.arrays import ARRAY_SUFFIXES, map_npy, open_h5, read_npy_header
from src.data.spikes.spike_dat import read_sidecar
from src.prepare.inspect_packed import (
    BLOCK_TICKS,
    BLOCK_VALUES,
    Block,
    Inspection,
    Question,
    describe_rate,
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
    "cannot be told apart by numbers; look at the picture"
)
# First bytes of files that are no bare bits, whatever their ending says.
SIGNATURES = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"BM": "a BMP image",
    b"RIFF": "an AVI or WebP file",
    b"\x89HDF": "an HDF5 file; name it .h5",
    b"PK\x03\x04": "a ZIP archive; name it .npz if it is one",
    b"\x93NUMPY": "a NumPy array; name it .npy",
    b"\x1f\x8b": "packed with gzip; unpack it first",
}
PACKED_ENDINGS = (".dat", ".bin", ".raw")


def inspect_file(question: Question) -> Inspection:
    """Find out what a file is.

    What a YAML file beside packed spikes says is tested like what the user says.

    Raises:
        BadFileError: a file that is missing, empty, or of a kind that holds no spikes.
        ValueError: a given size that packed spikes cannot have.
    """
    path = question.path
    if not path.is_file():
        raise BadFileError(path, "is a folder" if path.is_dir() else "no such file")
    if path.suffix.lower() in ARRAY_SUFFIXES:
        return inspect_array(question)
    _refuse_known_kinds(path)
    beside = read_sidecar(path)
    if beside is not None and question.size is None:
        question = replace(
            question,
            height=beside.height,
            width=beside.width,
            bit_order=question.bit_order or beside.bit_order,
            flip_rows=beside.flip_rows if question.flip_rows is None else question.flip_rows,
        )
    found = inspect_bytes(np.memmap(path, np.uint8, "r"), question)
    if beside is not None:
        said = (
            f"a YAML file beside it says {beside.height}x{beside.width}, bit_order "
            f"{beside.bit_order}, flip_rows {beside.flip_rows}"
        )
        found = replace(found, measured=(said, *found.measured))
    if path.suffix.lower() not in PACKED_ENDINGS:
        note = f"the ending {path.suffix or '(none)'} is not known; looked at as packed bits"
        found = replace(found, warnings=(note, *found.warnings))
    return found


def _refuse_known_kinds(path: Path) -> None:
    try:
        with path.open("rb") as handle:
            start = handle.read(12)
    except OSError as error:
        raise BadFileError(path, f"cannot be read: {error.strerror}") from error
    if not start:
        raise BadFileError(path, "is empty; copy it again")
    for signature, name in SIGNATURES.items():
        if start.startswith(signature):
            raise BadFileError(path, f"is {name}, not packed spikes")
    if start[4:8] == b"ftyp":
        raise BadFileError(path, "is an MP4 video, not packed spikes")


@dataclass(frozen=True)
class ArraySample:
    """The leading part of an array.

    Attributes:
        key: its name in the file; None in `.npy`.
        shape: of the whole array.
        values: leading slices along the first axis, all of them where `is_whole`.
    """

    key: str | None
    shape: tuple[int, ...]
    values: np.ndarray

    @property
    def is_whole(self) -> bool:
        """Whether the whole array was read."""
        return self.values.shape == self.shape


def sample_array(path: str | Path, key: str | None = None) -> ArraySample:
    """Read the leading part of an array.

    Args:
        path: `.npy`, `.npz`, `.h5` or `.hdf5`.
        key: name of the array; None takes the only one with two or three axes.

    Raises:
        BadFileError: unreadable, pickled, or not clear which array is meant.
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".npy":
            array = map_npy(path)
            return ArraySample(None, array.shape, _leading(array))
        if path.suffix.lower() == ".npz":
            return _sample_npz(path, key)
        return _sample_h5(path, key)
    except BadFileError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BadFileError(path, f"cannot be read: {error}") from error


def _sample_npz(path: Path, key: str | None) -> ArraySample:
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        shapes = {}
        for name in names:
            with archive.open(f"{name}.npy") as member:
                shapes[name], _, dtype = read_npy_header(member)
            if dtype.hasobject:
                raise ValueError("it holds pickled objects, which are not read")
        key = _choose(path, key, shapes)
        with archive.open(f"{key}.npy") as member:
            shape, is_fortran, dtype = read_npy_header(member)
            if is_fortran or not shape:
                return ArraySample(key, shape, np.load(path, allow_pickle=False)[key])
            per_slice = int(np.prod(shape[1:]))
            slices = min(shape[0], max(1, MAX_VALUES // max(1, per_slice)))
            data = member.read(slices * per_slice * dtype.itemsize)
        return ArraySample(key, shape, np.frombuffer(data, dtype).reshape(slices, *shape[1:]))


def _sample_h5(path: Path, key: str | None) -> ArraySample:
    with h5py.File(path, "r") as file:
        shapes: dict[str, tuple[int, ...]] = {}
        file.visititems(
            lambda name, item: (
                shapes.__setitem__(name, item.shape) if isinstance(item, h5py.Dataset) else None
            )
        )
    with open_h5(path, _choose(path, key, shapes)) as dataset:  # follows no link
        return ArraySample(dataset.name.strip("/"), dataset.shape, _leading(dataset))


def _choose(path: Path, key: str | None, shapes: dict[str, tuple[int, ...]]) -> str:
    listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    if key is not None:
        key = key.strip("/")
        if key not in shapes:
            raise BadFileError(path, f"has no array {key!r}; it holds {listed}")
        return key
    large = [name for name, shape in shapes.items() if len(shape) in (2, 3)]
    if len(large) != 1:
        raise BadFileError(path, f"holds {listed or 'no arrays'}; name one of them with --key")
    return large[0]


def _leading(array: np.ndarray | h5py.Dataset) -> np.ndarray:
    if array.ndim == 0:
        return np.asarray(array[()])
    per_slice = int(np.prod(array.shape[1:]))
    return np.asarray(array[: max(1, MAX_VALUES // max(1, per_slice))])


def inspect_array(question: Question) -> Inspection:
    """Inspect an array file; see `inspect_file`.

    Raises:
        BadFileError: unreadable, or neither dense spikes nor a list of events.
    """
    sample = sample_array(question.path, question.key)
    if len(sample.shape) == 3 and sample.values.dtype.kind in "buif":
        return inspect_dense(sample, question)
    if len(sample.shape) == 2 and sample.shape[1] in (3, 4):
        return inspect_list(sample, question)
    raise BadFileError(
        question.path,
        f"array {sample.key or ''} has shape {sample.shape} of {sample.values.dtype}; three "
        "axes (time, rows, columns) or rows (t, y, x) of numbers are needed",
    )


def inspect_dense(sample: ArraySample, question: Question) -> Inspection:
    """Inspect an array of three axes.

    Args:
        sample: the array or its leading part.
        question: what the user says.
    """
    name = f"array {sample.key}" if sample.key else "array"
    measured = [f"{name} has shape {list(sample.shape)} and holds {sample.values.dtype}"]
    if not sample.is_whole:
        measured.append(f"looked at: the leading part, {list(sample.values.shape)}")
    unfit = _unfit(sample.values, question, measured)
    if unfit is not None:
        return unfit
    values = (sample.values != 0).astype(np.uint8)
    alike = [_next_alike(values, axis) for axis in range(3)]
    numbers = ", ".join(f"axis {axis} {value:+.4f}" for axis, value in enumerate(alike))
    measured.append(f"correlation with the next value along each axis: {numbers}")
    ranked = sorted(range(3), key=alike.__getitem__)
    error = 1 / np.sqrt(values.size)
    deviations = (alike[ranked[1]] - alike[ranked[0]]) / error
    found = ORDERS_OF_TIME[ranked[0]] if deviations > MIN_DEVIATIONS else None
    answer, is_right, order = _judge(sample.shape, found, deviations, question)
    if order is None:
        return Inspection(answer, is_right, tuple(measured))
    upright = values.transpose([order.index(axis) for axis in "THW"])
    start, stop = middle_ticks(upright.shape[0], upright.shape[1] * upright.shape[2])
    spikes = upright[start:stop, ::-1] if question.flip_rows else upright[start:stop]
    lines, warnings = describe_rate(spikes)
    if question.reference is not None:
        warnings.append("the reference is used with packed spikes only")
    warnings = [*([ROWS_FIRST] if question.axes is None else []), *warnings]
    block = Block(spikes, start, sample.shape[order.index("T")])
    return Inspection(answer, is_right, (*measured, *lines), tuple(warnings), block)


def _unfit(values: np.ndarray, question: Question, measured: list[str]) -> Inspection | None:
    """Return findings where the values are no spikes: more than two of them, or all the same."""
    if np.any((values != 0) & (values != 1)):
        distinct = np.unique(values)
        listed = ", ".join(f"{value:g}" for value in distinct[:4].astype(float))
        answer = (
            f"holds {len(distinct)} distinct values ({listed}, ...) instead of 0 and 1: no spikes"
        )
        if values.dtype != np.uint8:
            return Inspection(answer, False, tuple(measured))
        packed = inspect_bytes(
            np.ascontiguousarray(values).reshape(-1), replace(question, height=None, width=None)
        )
        return replace(
            packed,
            answer=f"{answer}, perhaps packed bytes taken for pixels; its bytes read as bits: "
            f"{packed.answer}",
            is_right=False,
            measured=(*measured, *packed.measured),
        )
    if values.min() == values.max():
        answer = f"all values are {values.min():g}: nothing shows the order of the axes"
        return Inspection(answer, False, tuple(measured))
    return None


def _judge(
    shape: Sequence[int], found: str | None, deviations: float, question: Question
) -> tuple[str, bool, str | None]:
    """Return the answer, whether what was given can be right, and the order of axes to draw."""
    given = None if question.axes is None else question.axes.upper().replace("S", "T")
    if given is not None and sorted(given) != sorted("THW"):
        return f"axes {given!r} cannot be right: name T, H and W once each", False, found
    if found is None:
        answer = (
            f"which axis is time cannot be known: no axis stands out ({deviations:.0f} deviations);"
            " noise, or ticks that all are the same"
        )
        return answer, given is not None, given
    time = found.index("T")
    sure = f"values along it agree less than along the others, {deviations:.0f} deviations"
    if given is not None and given.index("T") != time:
        return f"axes {given} cannot be right: axis {time} is time ({sure}): {found}", False, found
    order = given or found
    size = shape[order.index("H")], shape[order.index("W")]
    if question.size is not None and question.size != size:
        height, width = question.size
        answer = f"{height}x{width} cannot be right: axes {order} are {size_name(*size)}"
        return answer, False, order
    ticks = shape[time]
    return f"axes {order}: {ticks} ticks of {size_name(*size)}; {sure}", True, order


def _next_alike(values: np.ndarray, axis: int) -> float:
    """Return the correlation of 0/1 values with their successors along an axis."""
    mean = float(values.mean(dtype=np.float64))
    moved = np.moveaxis(values, axis, 0)
    if len(moved) < 2 or mean in (0.0, 1.0):
        return 0.0
    both = float((moved[:-1] & moved[1:]).mean(dtype=np.float64))
    first, second = (float(part.mean(dtype=np.float64)) for part in (moved[:-1], moved[1:]))
    return (both - mean * (first + second) + mean * mean) / (mean * (1 - mean))


def inspect_list(sample: ArraySample, question: Question) -> Inspection:
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
        answer = "no list of events: at least two rows of finite numbers are needed"
        return Inspection(answer, False, tuple(measured))
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
        return Inspection(why, False, tuple(measured))
    by_name = {name: rows[:, i] for i, name in enumerate(columns)}
    if "p" in by_name and by_name["p"].min() != by_name["p"].max():
        answer = (
            f"columns {columns}: p has several values; spikes have no polarity, these are the "
            "events of an event camera"
        )
        return Inspection(answer, False, tuple(measured))
    t, y, x = (by_name[name] for name in "tyx")
    if y.min() < 0 or x.min() < 0 or np.any(np.rint(y) != y) or np.any(np.rint(x) != x):
        answer = f"columns {columns} cannot be right: y and x must be whole and not negative"
        return Inspection(answer, False, tuple(measured))
    smallest = int(y.max()) + 1, int(x.max()) + 1
    answer = f"columns {columns} ({why}); the sensor has at least {smallest[0]}x{smallest[1]}"
    size = question.size or smallest
    if size[0] < smallest[0] or size[1] < smallest[1]:
        answer = f"{size[0]}x{size[1]} cannot be right, there are events outside; {answer}"
        return Inspection(answer, False, tuple(measured))
    tick, unit = _tick_length(t)
    measured.append(unit)
    block = _to_block(t, y, x, tick, size)
    lines, warnings = ([], []) if block is None else describe_rate(block.spikes)
    return Inspection(answer, is_clear, (*measured, *lines), tuple(warnings), block)


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
