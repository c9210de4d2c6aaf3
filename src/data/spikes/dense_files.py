"""Spikes in array files, read by ranges of ticks: dense arrays and lists of events."""

from pathlib import Path
from typing import Protocol

import numpy as np

from src.data.spikes.arrays import H5_SUFFIXES, map_npy, open_h5, read_array
from src.data.spikes.events import AXES, check_binary, check_events, events_to_dense, find_axes

MIN_STEPS = 16  # so many different times are not multiples of one number by chance


class TickReader(Protocol):
    """Something that gives ranges of ticks, such as `SpikeFile`.

    Attributes:
        num_ticks: how many ticks there are.
    """

    num_ticks: int

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return ticks [start, stop) upright as 0 and 1: uint8 [S, H, W]."""
        ...


class DenseFile:
    """Dense spikes in `.npy`, `.npz` or `.h5`.

    A `.npy` is memory-mapped and of an `.h5` only the asked ticks are read; an `.npz` is packed, so
    it is held in memory as a whole, which `is_held_in_memory` says.

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

    @property
    def is_held_in_memory(self) -> bool:
        """Whether the whole array is in memory."""
        return self.path.suffix.lower() == ".npz"

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return ticks [start, stop) upright as 0 and 1: uint8 [S, H, W].

        Raises:
            ValueError: the range leaves the file, or values that are not 0 or 1.
        """
        if not 0 <= start < stop <= self.num_ticks:
            raise ValueError(
                f"{self.path}: ticks [{start}, {stop}) asked, the file has [0, {self.num_ticks})"
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
    def num_spikes(self) -> int:
        """Rows of the list."""
        return len(self._rows)

    @property
    def first_tick(self) -> int:
        """The tick of the first spike."""
        return int(self._rows[0, 0])

    @property
    def time_step(self) -> int:
        """The largest number of which all times are multiples, 1 in a list of ticks.

        Of a few instants it says nothing and is 1, too.
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
                f"{self.path}: ticks [{start}, {stop}) asked, the list has [0, {self.num_ticks})"
            )
        first, last = np.searchsorted(self._rows[:, 0], (start, stop))
        rows = self._rows[first:last] - (start, 0, 0)
        try:
            return events_to_dense(rows, stop - start, self.height, self.width)
        except ValueError as error:
            raise ValueError(f"{self.path}: from row {first}: {error}") from error
