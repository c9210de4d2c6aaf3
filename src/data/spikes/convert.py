"""Spikes from one container into another, in pieces; every way there and back is exact."""

from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np

from src.data.spikes.arrays import H5_SUFFIXES
from src.data.spikes.dense_files import TickReader
from src.data.spikes.events import dense_to_events
from src.data.spikes.spike_dat import SpikeGeometry, pack_spikes
from src.paths import atomic_write

CHUNK_BYTES = 32 << 20  # of unpacked spikes in memory
DENSE_KEY = "spikes"


def write_dat(
    source: TickReader,
    path: str | Path,
    geometry: SpikeGeometry,
    advance: Callable[[int], None] | None = None,
) -> float:
    """Write all ticks of `source` to a `.dat`, whole or not at all; return the rate of spikes.

    Args:
        source: what gives the ticks.
        path: the file.
        geometry: how the bits are to lie.
        advance: called with the number of ticks done since the last call.

    Raises:
        ValueError: ticks of another size, or what `source` refuses.
    """
    ones = 0
    with atomic_write(path) as partial, partial.open("wb") as target:
        for _, spikes in _pieces(source, geometry.height * geometry.width):
            if spikes.shape[1:] != (geometry.height, geometry.width):
                raise ValueError(
                    f"{path}: ticks of {spikes.shape[1:]}, {geometry.height}x{geometry.width} "
                    "is needed"
                )
            ones += int(np.count_nonzero(spikes))
            target.write(pack_spikes(spikes, geometry))
            if advance is not None:
                advance(len(spikes))
    return ones / (source.num_ticks * geometry.height * geometry.width)


def write_dense(source: TickReader, path: str | Path, size: tuple[int, int]) -> None:
    """Write all ticks to `.npy` or `.h5` (in pieces) or `.npz` (held in memory): uint8 [S, H, W].

    Args:
        source: what gives the ticks.
        path: the file; an `.npz` and an `.h5` call the array "spikes".
        size: height and width.

    Raises:
        ValueError: another ending.
    """
    path = Path(path)
    shape = (source.num_ticks, *size)
    with atomic_write(path) as partial:
        if path.suffix == ".npy":
            array = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
            for start, spikes in _pieces(source, size[0] * size[1]):
                array[start : start + len(spikes)] = spikes
            array.flush()
        elif path.suffix == ".npz":
            np.savez_compressed(partial, **{DENSE_KEY: source.read(0, source.num_ticks)})
        elif path.suffix in H5_SUFFIXES:
            with h5py.File(partial, "w") as file:
                dataset = file.create_dataset(DENSE_KEY, shape, np.uint8, compression="gzip")
                for start, spikes in _pieces(source, size[0] * size[1]):
                    dataset[start : start + len(spikes)] = spikes
        else:
            raise ValueError(f"{path}: .npy, .npz or {', '.join(H5_SUFFIXES)} is needed")


def write_events(source: TickReader, path: str | Path, size: tuple[int, int]) -> int:
    """Write all spikes to a `.npy` as rows (t, y, x), int32, sorted; return how many there are.

    The ticks are read twice, first to count, so that no more than a piece is held in memory.

    Raises:
        ValueError: another ending.
    """
    path = Path(path)
    if path.suffix != ".npy":
        raise ValueError(f"{path}: lists of events are written as .npy")
    pixels = size[0] * size[1]
    total = sum(int(np.count_nonzero(spikes)) for _, spikes in _pieces(source, pixels))
    with atomic_write(path) as partial:
        if total == 0:
            np.save(partial, np.zeros((0, 3), np.int32))
            return 0
        rows = np.lib.format.open_memmap(partial, "w+", np.int32, (total, 3))
        done = 0
        for start, spikes in _pieces(source, pixels):
            events = dense_to_events(spikes)
            rows[done : done + len(events)] = events + (start, 0, 0)
            done += len(events)
        rows.flush()
    return total


def _pieces(source: TickReader, pixels: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first tick, spikes) of pieces that fit into CHUNK_BYTES."""
    step = max(CHUNK_BYTES // pixels, 1)
    for start in range(0, source.num_ticks, step):
        yield start, source.read(start, min(start + step, source.num_ticks))
