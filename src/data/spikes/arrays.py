"""Spikes in `.npy`, `.npz` and `.h5` files: dense arrays and lists of events, read by ticks.

Nothing in a file is executed or followed: pickles, references, links and external storage are
refused. Dense spikes are [S, H, W] of 0 and 1. Rows of a list are (t, y, x) or (t, y, x, p) with
integers; a spike has no polarity, so p is the same everywhere. Other orders of axes and columns
exist and must be stated. Errors are a ValueError that names the file.
"""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np

from src.data.kinds import other_kind
from src.data.spikes.spike_dat import check_binary, check_range

H5_SUFFIXES = (".h5", ".hdf5")
ARRAY_SUFFIXES = (".npy", ".npz", *H5_SUFFIXES)
AXES = ("S", "H", "W")
MIN_STEPS = 16  # so many different times are not multiples of one number by chance


def read_array(path: str | Path, key: str | None = None) -> np.ndarray:
    """Read one array whole.

    `key` is its name in an `.npz` or its path in an `.h5`; None if the file holds one only.
    """
    path = Path(path)
    if path.suffix.lower() not in (".npy", ".npz"):
        with open_h5(path, key) as dataset:
            return dataset[()]
    with _naming(path):
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            if path.suffix.lower() == ".npz":
                raise ValueError("is a single array; rename it to .npy")
            return stored
        with stored:
            if path.suffix.lower() == ".npy":
                raise ValueError("is an .npz archive; rename it")
            array = stored[_choose(stored.files, key)]
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{key!r} is not an array")
        return array


def array_shape(path: str | Path, key: str | None = None) -> tuple[int, ...]:
    """Return the shape of the array that `read_array` would read; only its header is read."""
    path = Path(path)
    if path.suffix.lower() == ".npy":
        return map_npy(path).shape
    if path.suffix.lower() != ".npz":
        with open_h5(path, key) as dataset:
            return dataset.shape
    with _naming(path), zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        with archive.open(f"{_choose(names, key)}.npy") as member:
            return read_npy_header(member)[0]


def read_npy_header(member: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header of an array; return its shape, whether it is column-major, and its type."""
    if np.lib.format.read_magic(member) == (1, 0):
        return np.lib.format.read_array_header_1_0(member)
    return np.lib.format.read_array_header_2_0(member)


def map_npy(path: str | Path) -> np.ndarray:
    """Return a `.npy` file as a read-only memory map: only what is accessed is read."""
    with _naming(Path(path)):
        return np.lib.format.open_memmap(path, mode="r")  # refuses archives and pickles


@contextmanager
def open_h5(path: str | Path, key: str | None = None) -> Iterator[h5py.Dataset]:
    """Yield one data set of an `.h5` file, opened for reading; slicing it reads that part only."""
    path = Path(path)
    if path.suffix.lower() not in H5_SUFFIXES:
        raise ValueError(f"{path}: one of {', '.join(ARRAY_SUFFIXES)} is needed")
    with _naming(path):
        file = h5py.File(path, "r")
    with file:
        with _naming(path):
            dataset = _dataset(file, key)
        yield dataset


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file, and what it is instead of an array, in what libraries raise about it."""
    try:
        yield
    except (EOFError, KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
        kind = other_kind(path)
        raise ValueError(f"{path}: {error if kind is None else f'is {kind}'}") from error


def _choose(names: list[str], key: str | None) -> str:
    if key is None and len(names) == 1:
        return names[0]
    if key is None:
        raise ValueError(f"holds {len(names)} arrays, {names}; choose one with --key")
    if key not in names:
        raise ValueError(f"key {key!r} is not one of {names}; name the array")
    return key


def _dataset(file: h5py.File, key: str | None) -> h5py.Dataset:
    """Return the data set `key` of an open file, or the only one."""
    names: list[str] = []

    def note(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            names.append(name)

    file.visititems(note)  # hard links only: nothing outside the file is opened
    dataset = file[_choose(names, None if key is None else key.strip("/"))]
    if dataset.dtype.hasobject or dataset.dtype.kind not in "biuf":
        raise ValueError(
            f"{dataset.name} has type {dataset.dtype}; plain numbers are needed (no objects, "
            "references, texts or lists of varying length)"
        )
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{dataset.name} keeps its data in other files; copy it into one")
    return dataset


class DenseFile:
    """Dense spikes in `.npy`, `.npz` or `.h5`; see `find_axes` and `read_array`.

    A `.npy` is memory-mapped and of an `.h5` only the requested ticks are read; an `.npz` is
    packed, so it is held in memory as a whole.
    """

    def __init__(
        self,
        path: str | Path,
        height: int,
        width: int,
        axes: str | None = None,
        key: str | None = None,
    ) -> None:
        self.path, self.key = Path(path), key
        self._array = None
        if self.path.suffix.lower() in H5_SUFFIXES:
            shape = array_shape(self.path, key)
        else:
            is_map = self.path.suffix.lower() == ".npy"
            self._array = map_npy(self.path) if is_map else read_array(self.path, key)
            shape = self._array.shape
        if len(shape) != 3:
            raise ValueError(f"{path}: shape {shape}; three axes are needed")
        self.axes = find_axes(shape, height, width, axes, path)
        self.num_ticks = shape[self.axes.index("S")]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return ticks [start, stop) upright as 0 and 1: uint8 [S, H, W]."""
        check_range(self.path, start, stop, self.num_ticks)
        ticks = tuple(slice(start, stop) if axis == "S" else slice(None) for axis in self.axes)
        if self._array is None:
            with open_h5(self.path, self.key) as dataset:
                part = dataset[ticks]
        else:
            part = self._array[ticks]
        part = part.transpose([self.axes.index(axis) for axis in AXES])
        check_binary(part, self.path)
        return np.ascontiguousarray(part, dtype=np.uint8)


class EventFile:
    """A list of spikes in `.npy`, `.npz` or `.h5`, rows with t in ticks; held in memory.

    The recording ends with its last spike, unless its owner sets `num_ticks`. `columns` is their
    order in the file.
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
        self._rows = check_events(read_array(path, key), height, width, columns, str(path))
        if not len(self._rows):
            raise ValueError(f"{path}: holds no spike")
        self.first_tick, self.num_ticks = int(self._rows[0, 0]), int(self._rows[-1, 0]) + 1
        if self.first_tick < 0:
            raise ValueError(f"{path}: spikes begin at tick {self.first_tick}; 0 is the first")

    @property
    def time_step(self) -> int:
        """The largest number of which all times are multiples, 1 in a list of ticks.

        A few instants do not show it; then it is 1, too.
        """
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

    Events are [N, 3] or [N, 4], whole numbers of any dtype, on a sensor of height and width;
    `columns` is their order, for instance "xytp", of which p may be missing.
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


def find_axes(
    shape: tuple[int, ...], height: int, width: int, axes: str | None, path: str | Path
) -> str:
    """Return the order of the axes of dense spikes; refuse one that does not match the size.

    `axes` is the order as stated, "SHW" or "HWS" and so on; None takes the one with H before W that
    matches height and width, if there is only one.
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
