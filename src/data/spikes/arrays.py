"""Spikes in `.npy`, `.npz` and `.h5` files: dense arrays and lists of events, read by ticks.

Nothing in a file is executed or followed. Dense spikes are [S, H, W] of 0 and 1. Rows of a list are
(t, y, x) or (t, y, x, p) with integers; a spike has no polarity, so p is the same everywhere. Other
orders of axes and columns exist and must be stated, never guessed.
"""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np

H5_SUFFIXES = (".h5", ".hdf5")
ARRAY_SUFFIXES = (".npy", ".npz", *H5_SUFFIXES)
COLUMNS = ("t", "y", "x", "p")
AXES = ("S", "H", "W")
MIN_STEPS = 16  # so many different times are not multiples of one number by chance


def read_array(path: str | Path, key: str | None = None) -> np.ndarray:
    """Read one array whole from `.npy`, `.npz` or `.h5`.

    Args:
        path: the file.
        key: name of the array in an `.npz`, path of the data set in an `.h5`; None if it holds one
            only.

    Raises:
        ValueError: another file type, a damaged file, a key that is missing or needed, or what
            could run code or read other files: pickles, references, links, external storage.
    """
    path = Path(path)
    if path.suffix.lower() == ".npy":
        return _without_pickle(path)
    if path.suffix.lower() == ".npz":
        return _from_npz(path, key)
    with open_h5(path, key) as dataset:
        return dataset[()]


def array_shape(path: str | Path, key: str | None = None) -> tuple[int, ...]:
    """Return the shape of the array that `read_array` would read; only its header is read.

    Raises:
        ValueError: see `read_array`.
    """
    path = Path(path)
    if path.suffix.lower() == ".npy":
        return map_npy(path).shape
    if path.suffix.lower() != ".npz":
        with open_h5(path, key) as dataset:
            return dataset.shape
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            with archive.open(f"{_choose(names, key)}.npy") as member:
                return read_npy_header(member)[0]
    except (EOFError, KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: {error}") from error


def read_npy_header(member: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header of an array; return its shape, whether it is column-major, and its type.

    Raises:
        ValueError: this is no `.npy` data.
    """
    if np.lib.format.read_magic(member) == (1, 0):
        return np.lib.format.read_array_header_1_0(member)
    return np.lib.format.read_array_header_2_0(member)


def map_npy(path: str | Path) -> np.ndarray:
    """Return a `.npy` file as a read-only memory map: only what is accessed is read.

    Raises:
        ValueError: a pickle, or a damaged file.
    """
    return _without_pickle(Path(path), mmap_mode="r")


@contextmanager
def open_h5(path: str | Path, key: str | None = None) -> Iterator[h5py.Dataset]:
    """Yield one data set of an `.h5` file, opened for reading; slicing it reads that part only.

    Raises:
        ValueError: see `read_array`.
    """
    path = Path(path)
    if path.suffix.lower() not in H5_SUFFIXES:
        raise ValueError(f"{path}: one of {', '.join(ARRAY_SUFFIXES)} is needed")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as .h5: {error}") from error
    with file:
        yield _dataset(path, file, key)


def _without_pickle(path: Path, mmap_mode: str | None = None) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except (EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"{path}: is an .npz archive; rename it")
    return array


def _from_npz(path: Path, key: str | None) -> np.ndarray:
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("is a single array; rename it to .npy")
        with archive:
            array = archive[_choose(archive.files, key)]
    except (EOFError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: {key!r} is not an array")
    return array


def _choose(names: list[str], key: str | None) -> str:
    if key is None and len(names) == 1:
        return names[0]
    if key is None:
        raise ValueError(f"holds {len(names)} arrays, {names}; choose one with --key")
    if key not in names:
        raise ValueError(f"key {key!r} is not one of {names}; name the array")
    return key


def _dataset(path: Path, file: h5py.File, key: str | None) -> h5py.Dataset:
    """Return the data set `key` of an open file, or the only one."""
    names: list[str] = []
    # Follows hard links only: nothing outside the file is opened, and other links are no keys.
    file.visititems(lambda name, item: names.append(name) if _is_dataset(item) else None)
    wanted = None if key is None else key.strip("/")
    try:
        dataset = file[_choose(names, wanted)]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    _refuse_strange(path, dataset)
    return dataset


def _is_dataset(item: object) -> bool:
    return isinstance(item, h5py.Dataset)


def _refuse_strange(path: Path, dataset: h5py.Dataset) -> None:
    """Refuse types that are no plain numbers, and data that lies in other files."""
    if dataset.dtype.hasobject or dataset.dtype.kind not in "biuf":
        raise ValueError(
            f"{path}: {dataset.name} has type {dataset.dtype}; plain numbers are needed (no "
            "objects, references, texts or lists of varying length)"
        )
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{path}: {dataset.name} keeps its data in other files; copy it into one")


class DenseFile:
    """Dense spikes in `.npy`, `.npz` or `.h5`.

    A `.npy` is memory-mapped and of an `.h5` only the requested ticks are read; an `.npz` is
    packed, so it is held in memory as a whole.

    Args:
        path: the file.
        height: rows of the sensor.
        width: columns of the sensor.
        axes: order of the axes in the file, "SHW" or "HWS" and so on; None takes the order with H
            before W that matches height and width, if there is only one.
        key: see `read_array`.
        flip_rows: whether the file stores the bottom row first.

    Raises:
        ValueError: axes that do not match or are not clear, or what `read_array` refuses.
    """

    def __init__(
        self,
        path: str | Path,
        height: int,
        width: int,
        axes: str | None = None,
        key: str | None = None,
        flip_rows: bool = False,
    ) -> None:
        self.path, self.key, self.flip_rows = Path(path), key, flip_rows
        self._array = None
        if self.path.suffix.lower() in H5_SUFFIXES:
            with open_h5(self.path, key) as dataset:
                shape = dataset.shape
        else:
            is_map = self.path.suffix.lower() == ".npy"
            self._array = map_npy(self.path) if is_map else read_array(self.path, key)
            shape = self._array.shape
        if len(shape) != 3:
            raise ValueError(f"{path}: shape {shape}; three axes are needed")
        self.axes = find_axes(shape, height, width, axes, path)
        self.num_ticks = shape[self.axes.index("S")]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return ticks [start, stop) upright as 0 and 1: uint8 [S, H, W].

        Raises:
            ValueError: the range leaves the file, or values that are not 0 or 1.
        """
        if not 0 <= start < stop <= self.num_ticks:
            raise ValueError(
                f"{self.path}: ticks [{start}, {stop}) requested, the file has "
                f"[0, {self.num_ticks})"
            )
        ticks = tuple(slice(start, stop) if axis == "S" else slice(None) for axis in self.axes)
        if self._array is None:
            with open_h5(self.path, self.key) as dataset:
                part = dataset[ticks]
        else:
            part = self._array[ticks]
        part = part.transpose([self.axes.index(axis) for axis in AXES])
        check_binary(part, str(self.path))
        if self.flip_rows:
            part = part[:, ::-1]
        return np.ascontiguousarray(part, dtype=np.uint8)


class EventFile:
    """A list of spikes in `.npy`, `.npz` or `.h5`, rows with t in ticks; held in memory.

    Args:
        path: the file.
        height: rows of the sensor.
        width: columns of the sensor.
        columns: order of the columns in the file.
        key: see `read_array`.
        num_ticks: length of the recording; None: it ends with its last spike.

    Raises:
        ValueError: what `check_events` refuses, a spike before tick 0 or after the end, no spike.
    """

    def __init__(
        self,
        path: str | Path,
        height: int,
        width: int,
        columns: str = "tyxp",
        key: str | None = None,
        num_ticks: int | None = None,
    ) -> None:
        self.path, self.height, self.width = Path(path), height, width
        self._rows = check_events(read_array(path, key), height, width, columns, str(path))[:, :3]
        if not len(self._rows):
            raise ValueError(f"{path}: holds no spike")
        first, last = int(self._rows[0, 0]), int(self._rows[-1, 0])
        self.num_ticks = last + 1 if num_ticks is None else num_ticks
        if first < 0 or last >= self.num_ticks:
            raise ValueError(
                f"{path}: spikes from tick {first} to {last}; [0, {self.num_ticks}) is needed"
            )

    @property
    def first_tick(self) -> int:
        """The tick of the first spike."""
        return int(self._rows[0, 0])

    @property
    def time_step(self) -> int:
        """The largest number of which all times are multiples, 1 in a list of ticks.

        A few instants do not show it; then it is 1, too.
        """
        t = self._rows[:, 0]
        is_telling = np.count_nonzero(np.diff(t)) >= MIN_STEPS
        return int(np.gcd.reduce(t)) if is_telling else 1

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return ticks [start, stop) upright as 0 and 1: uint8 [S, H, W].

        Raises:
            ValueError: the range leaves the recording, or a pixel fires twice in a tick.
        """
        if not 0 <= start < stop <= self.num_ticks:
            raise ValueError(
                f"{self.path}: ticks [{start}, {stop}) requested, the list has "
                f"[0, {self.num_ticks})"
            )
        first, last = np.searchsorted(self._rows[:, 0], (start, stop))
        rows = self._rows[first:last] - (start, 0, 0)
        try:
            return events_to_dense(rows, stop - start, self.height, self.width)
        except ValueError as error:
            raise ValueError(f"{self.path}: from row {first}: {error}") from error


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
        raise ValueError(f"{where}: {events.shape[1]} columns, {columns!r} names others")
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
        axes: as stated, None where it is unknown.
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
