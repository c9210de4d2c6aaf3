"""Spikes in `.npy`, `.npz` and `.h5` files: dense arrays and lists of events, read by ticks.

Nothing in a file is executed or followed: pickles, references, links and external storage are
refused. Dense spikes are [S, H, W] of 0 and 1. Rows of a list are (t, y, x) or (t, y, x, p) with
integers; a spike has no polarity, so p is the same everywhere. Other orders of axes and columns
exist and must be stated. Separate arrays `t`, `y`, `x` (and `p`) of one group, or fields of one
structured array, are read as such a list. Errors are a ValueError that names the file.
"""

import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from src.data.errors import DAMAGED, other_kind
from src.data.spikes.spike_dat import check_binary, check_range

H5_SUFFIXES = (".h5", ".hdf5")
ARRAY_SUFFIXES = (".npy", ".npz", *H5_SUFFIXES)
AXES = ("S", "H", "W")
# Of packing; beyond it a header states what is not there. gzip packs zeros 1032 times at most, by
# its format. Measured, of 2000 x 250 x 400 values: all 0, 1025; 1 in 10,000 is 1, 807, by lzf 86.
MAX_RATIO = 1100
MIN_STEPS = 16  # so many different times are not multiples of one number by chance
LABELS = {"t": ("t", "ts", "time", "timestamp", "timestamps"), "y": ("y", "ys"), "x": ("x", "xs")}
LABELS["p"] = ("p", "ps", "pol", "polarity", "polarities")
LETTERS = {label: letter for letter, labels in LABELS.items() for label in labels}
# What a broken installation raises when it is imported: missing, or built for another NumPy.
BROKEN_IMPORT = (ImportError, OSError, ValueError, AttributeError, RuntimeError)

Stored = tuple[tuple[int, ...], np.dtype]  # shape and type of an array


def list_arrays(path: str | Path) -> dict[str, Stored]:
    """Return shape and type of each array in a file by its name; only headers are read.

    The array of a `.npy` has the name "".
    """
    path = Path(path)
    with _naming(path):
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.endswith(".npy")]
                return {name.removesuffix(".npy"): _npy_header(archive, name) for name in names}
        with _opened(path) as arrays:
            return {name: (array.shape or (), array.dtype) for name, array in arrays.items()}


@contextmanager
def open_array(path: str | Path, key: str | None = None, columns: str = "tyxp") -> Iterator[Any]:
    """Yield one array of a file; slicing that of an `.h5` or `.npy` reads that part only.

    `key` is its name, None if the file holds one only. Columns that are stored one by one, of which
    `key` is the group, come as rows in the order of `columns`.
    """
    path = Path(path)
    places = column_places(list_arrays(path), key)
    with _naming(path), _opened(path) as arrays:  # what its reader finds damaged is named, too
        if places:
            parts = [places[letter] for letter in columns if letter in places]
            found = [_column(arrays[name], field) for name, field in parts]
            if len({len(column) for column in found}) > 1:
                raise ValueError(f"columns {parts} have different lengths")
            array = np.stack(found, axis=1)
        else:
            array = arrays[_choose(list(arrays), key)]
            _refuse_hidden(array)
        yield array


def read_array(path: str | Path, key: str | None = None, columns: str = "tyxp") -> np.ndarray:
    """Read one array whole; see `open_array`."""
    with open_array(path, key, columns) as array, _naming(Path(path)):
        return np.asarray(array[()])


def array_shape(path: str | Path, key: str | None = None) -> tuple[int, ...]:
    """Return the shape of the array that `read_array` would read; only headers are read."""
    stored = list_arrays(path)
    places = column_places(stored, key)
    if places:
        return (*stored[places["t"][0]][0], len(places))
    with _naming(Path(path)):
        return stored[_choose(list(stored), key)][0]


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file, and what it is instead of an array, in what libraries raise about it."""
    try:
        yield
    except DAMAGED as error:
        if str(error).startswith(f"{path}: "):
            raise
        kind = other_kind(path)
        raise ValueError(f"{path}: {error if kind is None else f'is {kind}'}") from error


@contextmanager
def _opened(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the arrays of a file by name: memory-mapped, unpacked when asked for, or in HDF5."""
    suffix = path.suffix.lower()
    if suffix == ".npy":  # refuses archives and pickles
        yield {"": np.lib.format.open_memmap(path, mode="r")}
    elif suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            yield arrays
    elif suffix in H5_SUFFIXES:
        h5py, found = _import_h5py(), {}
        with h5py.File(path, "r") as file:  # hard links only: nothing outside the file is opened

            def add(name: str | bytes, item: Any) -> None:
                if isinstance(name, bytes):  # no UTF-8
                    name = name.decode("utf-8", "backslashreplace")
                found.update({name: item} if hasattr(item, "shape") else {})

            file.visititems(add)
            yield found
    else:
        raise ValueError(f"one of {', '.join(ARRAY_SUFFIXES)} is needed")


def _import_h5py() -> ModuleType:
    """Import h5py where an `.h5` is read: a broken one must not end what needs none."""
    try:
        import h5py
    except BROKEN_IMPORT as error:
        raise ValueError(
            f"h5py, which reads it, cannot be imported ({error}); run: pip install "
            "--force-reinstall h5py, or save the arrays as .npz"
        ) from error
    return h5py


def _npy_header(archive: zipfile.ZipFile, name: str) -> Stored:
    with archive.open(name) as member:
        is_first = np.lib.format.read_magic(member) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if is_first else None
        shape, _, dtype = (read or np.lib.format.read_array_header_2_0)(member)
        num_bytes = 0 if dtype.hasobject else math.prod(shape) * dtype.itemsize
        if num_bytes > (is_there := archive.getinfo(name).file_size):
            raise ValueError(f"{name} states {num_bytes} bytes of values, {is_there} are there")
    return shape, dtype


def column_places(stored: Mapping[str, Stored], key: str | None) -> dict[str, tuple[str, str]]:
    """Return letter -> (array, field or "") of columns that are stored one by one, if there are."""
    if key is None and any(len(shape) > 1 for shape, _ in stored.values()):
        return {}
    groups: dict[str, dict[str, tuple[str, str]]] = {}
    for name, (_, dtype) in stored.items():
        group, _, label = name.rpartition("/")
        labels = [(group, label, "")] + [(name, field, field) for field in dtype.names or ()]
        for owner, label, field in labels:
            if label.lower() in LETTERS:
                groups.setdefault(owner, {})[LETTERS[label.lower()]] = (name, field)
    whole = [owner for owner, letters in groups.items() if {"t", "y", "x"} <= letters.keys()]
    whole = [owner for owner in whole if key is None or owner == key.strip("/")]
    found = groups[whole[0]] if len(whole) == 1 else {}
    return {letter: found[letter] for letter in "tyxp" if letter in found}


def _column(array: Any, field: str) -> np.ndarray:
    _refuse_hidden(array)
    column = np.asarray(array[field] if field else array[()])
    if column.ndim != 1 or column.dtype.kind not in "biuf":
        raise ValueError(f"column {field!r} has shape {column.shape} of {column.dtype}")
    return column if column.dtype.kind == "f" else column.astype(np.int64)


def _choose(names: list[str], key: str | None) -> str:
    if len(names) == 1 and (key is None or names == [""]):
        return names[0]
    if key is None:
        raise ValueError(f"holds {len(names)} arrays, {names}; choose one with --key")
    if key.strip("/") not in names:
        raise ValueError(f"key {key!r} is not one of {names}; name the array")
    return key.strip("/")


def _refuse_hidden(array: Any) -> None:
    """Refuse what is no array of numbers, or keeps them in other files."""
    fields = [array.dtype[name] for name in array.dtype.names or ()] or [array.dtype]
    if any(field.hasobject or field.kind not in "biuf" for field in fields):
        raise ValueError(
            f"{getattr(array, 'name', 'the array')} has type {array.dtype}; plain numbers are "
            "needed (no objects, references, texts or lists of varying length)"
        )
    is_h5 = hasattr(array, "id")
    if is_h5 and array.nbytes > MAX_RATIO * max(array.id.get_storage_size(), 4096):
        raise ValueError(f"{array.name} states shape {array.shape}, of which hardly any is stored")
    if getattr(array, "external", None) or getattr(array, "is_virtual", False):
        raise ValueError(f"{array.name} keeps its data in other files; copy it into one")


class DenseFile:
    """Dense spikes in an array with axes in the order "SHW", "HWS" and so on.

    Of a `.npy` or `.h5` only the requested ticks are read; an `.npz` is held in memory.
    """

    def __init__(
        self,
        path: str | Path,
        height: int,
        width: int,
        axes: str,
        key: str | None = None,
    ) -> None:
        self.path, self.key, self.axes = Path(path), key, axes
        with open_array(path, key) as array:
            self._array = None if self.path.suffix.lower() in H5_SUFFIXES else array
            shape = array.shape
        if len(shape) != 3 or sorted(axes) != sorted(AXES):
            raise ValueError(f"{path}: shape {shape} with axes {axes}; S, H and W are needed")
        self.num_ticks = shape[axes.index("S")]
        if (shape[axes.index("H")], shape[axes.index("W")]) != (height, width):
            raise ValueError(
                f"{path}: shape {shape} with axes {axes} does not fit a sensor of {height}x{width}"
            )

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return ticks [start, stop) upright as 0 and 1: uint8 [S, H, W]."""
        check_range(self.path, start, stop, self.num_ticks)
        ticks = tuple(slice(start, stop) if axis == "S" else slice(None) for axis in self.axes)
        if self._array is None:
            with open_array(self.path, self.key) as dataset, _naming(self.path):
                part = dataset[ticks]
        else:
            part = self._array[ticks]
        part = part.transpose([self.axes.index(axis) for axis in AXES])
        check_binary(part, self.path)
        return np.ascontiguousarray(part, dtype=np.uint8)


class EventFile:
    """A list of spikes in an array, rows with t in ticks, in the order `columns`; held in memory.

    The recording ends with its last spike, unless its owner sets `num_ticks`.
    """

    def __init__(
        self,
        path: str | Path,
        height: int,
        width: int,
        columns: str = "tyxp",
        key: str | None = None,
    ) -> None:
        self.path, self.size = Path(path), (height, width)
        self._rows = check_events(read_array(path, key, columns), height, width, columns, str(path))
        if not len(self._rows):
            raise ValueError(f"{path}: holds no spike")
        self.first_tick, self.num_ticks = int(self._rows[0, 0]), int(self._rows[-1, 0]) + 1
        if self.first_tick < 0:
            raise ValueError(f"{path}: spikes begin at tick {self.first_tick}; 0 is the first")

    @property
    def time_step(self) -> int:
        """The greatest common divisor of the times, 1 where they are ticks, or only few."""
        t = self._rows[:, 0]
        is_telling = np.count_nonzero(np.diff(t)) >= MIN_STEPS
        return int(np.gcd.reduce(t)) if is_telling else 1

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return ticks [start, stop) upright as 0 and 1: uint8 [S, H, W]."""
        check_range(self.path, start, stop, self.num_ticks)
        first, last = np.searchsorted(self._rows[:, 0], (start, stop))
        t, y, x = self._rows[first:last].T
        spikes = np.zeros((stop - start, *self.size), np.uint8)
        flat = np.ravel_multi_index((t - start, y, x), spikes.shape)
        spikes.ravel()[flat] = 1
        if np.count_nonzero(spikes) != len(flat):
            values, counts = np.unique(flat, return_counts=True)
            row = first + int(np.flatnonzero(flat == values[counts > 1][0])[1])
            raise ValueError(
                f"{self.path}: row {row}: {self._rows[row].tolist()} occurs twice; a pixel fires "
                "once per tick"
            )
        return spikes


def check_events(
    events: np.ndarray, height: int, width: int, columns: str = "tyxp", where: str = "events"
) -> np.ndarray:
    """Check a list of spikes and return its columns t, y, x: int64 [N, 3], ascending in t.

    `columns` is their order in the events [N, 3] or [N, 4], such as "xytp", of which p may be
    missing.
    """
    if sorted(columns) not in (sorted("tyx"), sorted("tyxp")):
        raise ValueError(f'columns are {columns!r}; name t, y, x and p once each, like "tyxp"')
    if events.ndim != 2 or not 3 <= events.shape[1] <= len(columns):
        raise ValueError(f"{where}: shape {events.shape}; rows of {tuple(columns)} are needed")
    names = columns[: events.shape[1]]
    if not set("tyx") <= set(names):
        raise ValueError(f"{where}: {events.shape[1]} columns, {columns!r} names others")
    events = _whole_numbers(events, where)
    t, y, x = (events[:, names.index(name)] for name in "tyx")
    hint = f"check the order of columns ({columns!r} was given)"
    outside = np.flatnonzero((y < 0) | (y >= height) | (x < 0) | (x >= width))
    if outside.size:
        raise ValueError(
            f"{where}: row {outside[0]} has y={y[outside[0]]}, x={x[outside[0]]} on a sensor of "
            f"{height}x{width}; {outside.size} rows lie outside; {hint}"
        )
    going_back = np.flatnonzero(np.diff(t) < 0)
    if going_back.size:
        raise ValueError(
            f"{where}: t goes back after row {going_back[0]}; sort the rows, or {hint}"
        )
    if "p" in names and len(events) and np.ptp(p := events[:, names.index("p")]):
        raise ValueError(
            f"{where}: p runs from {p.min()} to {p.max()}; spikes have no polarity, these look "
            "like the events of an event camera"
        )
    return np.stack([t, y, x], axis=1)


def _whole_numbers(events: np.ndarray, where: str) -> np.ndarray:
    """Return the events as int64; fractions, NaN and infinity are refused."""
    if events.dtype.kind not in "iubf":
        raise ValueError(f"{where}: dtype {events.dtype}; numbers are needed")
    if not np.all(np.isfinite(events) & (np.rint(events) == events)):
        raise ValueError(
            f"{where}: fractional or non-finite values; state t in whole ticks or microseconds, "
            "seconds in floating point cannot tell one tick from the next"
        )
    return events.astype(np.int64)
