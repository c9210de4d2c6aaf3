"""Voxel counts on disk: written once, checked against their source, read crop by crop.

A folder `spike_vox` holds one `.npy` [K, H, W] of counts per frame and `index.json`: for every
frame, from which bytes its counts come and what they add up to. Where a sequence has voxels
only, no spikes, the `.npy` files are the source themselves and the index holds the sums alone.
"""

import json
import logging
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import zip_longest
from pathlib import Path

import numpy as np

from src.data.datasets.voxelizer import ticks_per_bin, voxelize_packed
from src.data.errors import DAMAGED, BadFileError, file_state, refuse_other_kind, with_patience
from src.data.spikes.spike_dat import SpikeFile, SpikeGeometry
from src.paths import atomic_write

logger = logging.getLogger(__name__)

FORMAT = 2  # raise when the counts of an unchanged source, or what is kept of them, would change
INDEX_NAME = "index.json"
UNKNOWN_TICKS = "0"
LARGEST = 1 << 62

Crop = tuple[int, int, int, int]  # y, x, height, width in pixels


@dataclass(frozen=True)
class SpikeWindow:
    """Where the spikes of one frame are: the ticks [start, stop) of a file."""

    path: Path  # a `.dat` file, or a `.npy` of voxels where there are no spikes
    geometry: SpikeGeometry | None = None  # None for voxels
    start: int = 0  # of voxels 0, 0 where the counted ticks are not known
    stop: int = 0

    @property
    def num_ticks(self) -> int | None:
        """Ticks of the window; None where they are not known."""
        return self.stop - self.start if self.stop > self.start else None


@dataclass(frozen=True)
class VoxelEntry:
    """One frame in the index: what its counts add up to, and what they were made from.

    A histogram says how often the counts 0, 1, 2, ... occur in bins of so many ticks, as text; "0"
    where the ticks are not known. There is none where voxels are no whole numbers below 65536.
    """

    num_voxels: int
    num_spikes: int  # `event_count` in the file
    sum_log1p: float  # of log1p(count)
    sum_log1p_squared: float
    histograms: Mapping[str, Sequence[int]]
    source: str  # this and the following: see `_identity`
    source_bytes: int
    source_mtime_ns: int
    start: int
    stop: int
    geometry: str
    num_bins: int
    npy_bytes: int  # of the stored file, 0 where only the sums were wanted
    source_crc32: int | None = None  # of the bytes that were counted; None in older indices

    def is_of(self, path: Path) -> bool:
        """Whether a `.npy` file has the size of the one that this entry was written for."""
        num_bytes = self.source_bytes if self.source == path.name else self.npy_bytes
        return file_state(path).num_bytes == num_bytes


def read_index(folder: str | Path) -> dict[str, VoxelEntry]:
    """Read the index of a voxel folder by frame name; an unusable one counts as absent."""
    path = Path(folder) / INDEX_NAME
    if not path.is_file():
        return {}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["format"] != FORMAT:
            return {}
        for entry in stored["frames"].values():
            entry["num_spikes"] = entry.pop("event_count")  # its name in the file
        return {name: _checked(VoxelEntry(**entry)) for name, entry in stored["frames"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        logger.warning("%s cannot be used (%s); its frames are counted again", path, error)
        return {}


def _checked(entry: VoxelEntry) -> VoxelEntry:
    """Return an entry of the right types; a TypeError or ValueError where a value cannot be."""
    numbers = [count for counts in entry.histograms.values() for count in counts]
    numbers += [int(ticks) for ticks in entry.histograms]
    numbers += [getattr(entry, f.name) for f in fields(VoxelEntry) if f.type in (int, float)]
    for number in numbers:
        if not 0 <= number < LARGEST:
            raise ValueError(f"{number} is no count or sum")
    frequency = [sum(counts) for counts in zip_longest(*entry.histograms.values(), fillvalue=0)]
    num_spikes = sum(count * number for count, number in enumerate(frequency))
    found = (sum(frequency), num_spikes, *_sums_of_histograms(entry))
    stated = (entry.num_voxels, entry.num_spikes, entry.sum_log1p, entry.sum_log1p_squared)
    adds_up = not frequency or all(map(math.isclose, found, stated))
    if not entry.num_voxels or not adds_up:
        raise ValueError(f"{entry.num_voxels} voxels with {entry.num_spikes} spikes do not add up")
    return entry


def write_index(folder: str | Path, entries: Mapping[str, VoxelEntry]) -> None:
    """Write the index of a voxel folder whole or not at all."""
    frames = {name: asdict(entry) for name, entry in sorted(entries.items())}
    for entry in frames.values():
        entry["event_count"] = entry.pop("num_spikes")
    with atomic_write(Path(folder) / INDEX_NAME) as partial:
        text = json.dumps({"format": FORMAT, "frames": frames}, indent=0)
        partial.write_text(text + "\n", encoding="utf-8")


def staleness(
    entry: VoxelEntry | None, source: SpikeWindow, num_bins: int, npy_path: Path | None
) -> str | None:
    """Return why a frame has to be counted, and stored at `npy_path`; None: all is fresh."""
    if entry is None:
        return "its voxels were not made yet"
    now = _identity(source, num_bins)
    names = [name for name, value in now.items() if getattr(entry, name) != value]
    is_copy = names == ["source_mtime_ns"] and entry.source_crc32 == _crc32(source)
    if names and not is_copy:
        return "its voxels were made from other spikes, another window or number of bins"
    if npy_path is None or source.geometry is None:
        return None
    if not npy_path.is_file():
        return "its voxel file is missing"
    if npy_path.stat().st_size != entry.npy_bytes:
        return "its voxel file has not the size it was written with"
    return None


def count_frame(source: SpikeWindow, num_bins: int, npy_path: Path | None) -> VoxelEntry:
    """Count one frame, store the counts at `npy_path` where one is given, return its entry."""
    refuse_other_kind(source.path)
    identity = _identity(source, num_bins)
    counts = count_window(source, num_bins)
    npy_bytes = 0
    if npy_path is not None and source.geometry is not None:
        with atomic_write(npy_path) as partial:
            np.save(partial, counts, allow_pickle=False)
        npy_bytes = npy_path.stat().st_size
    sums = _sums_of(counts, source.num_ticks)
    return VoxelEntry(**sums, **identity, npy_bytes=npy_bytes, source_crc32=_crc32(source))


def count_window(
    source: SpikeWindow, num_bins: int, crop: Crop | None = None, out: np.ndarray | None = None
) -> np.ndarray:
    """Return the counts of a crop straight from the source: [K, h, w]; in `out`, if they fit."""
    if source.geometry is None:
        return read_voxels(source.path, num_bins, crop, out=out)

    def count() -> np.ndarray:
        file = SpikeFile(source.path, source.geometry)
        return voxelize_packed(file, source.start, source.stop, num_bins, crop, out)

    try:
        return with_patience(source.path, count)
    except (OSError, ValueError) as error:
        raise BadFileError(source.path, str(error)) from error


def open_voxels(path: str | Path, num_bins: int) -> np.ndarray:
    """Open a voxel file as a read-only memory map [K, H, W] of any real dtype."""
    try:
        # refuses archives and pickled objects
        grid = with_patience(path, lambda: np.lib.format.open_memmap(path, mode="r"))
    except DAMAGED as error:
        raise BadFileError(path, f"cannot be opened as .npy voxels: {error}") from error
    if grid.ndim != 3 or grid.shape[0] != num_bins or 0 in grid.shape:
        raise BadFileError(
            path, f"has shape {grid.shape}; ({num_bins}, H, W) is needed, with DATA.K {num_bins}"
        )
    if grid.dtype.kind not in "buif":
        raise BadFileError(path, f"holds {grid.dtype}; whole or real numbers are needed")
    return grid


def read_voxels(
    path: str | Path,
    num_bins: int,
    crop: Crop | None = None,
    size: tuple[int, int] | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Read the counts of a crop (y, x, h, w) of a `.npy` file; only its own bytes are touched.

    The whole grid must have `size`. The result [K, h, w], `out` if it fits, is uint8 or uint16 as
    stored, the smallest of these and int32 for other whole numbers, or float32.
    """
    grid = open_voxels(path, num_bins)
    if size is not None and grid.shape[1:] != size:
        raise BadFileError(
            path,
            f"has shape {grid.shape}; ({num_bins}, {size[0]}, {size[1]}) "
            "is needed, like the other frames of the sequence",
        )
    if crop is not None:
        y, x, height, width = crop
        if y < 0 or x < 0 or y + height > grid.shape[1] or x + width > grid.shape[2]:
            raise BadFileError(path, f"has shape {grid.shape}; the crop {crop} leaves it")
        grid = grid[:, y : y + height, x : x + width]
    if out is None or (out.shape, out.dtype) != (grid.shape, grid.dtype):
        out = np.empty(grid.shape, grid.dtype)
    np.copyto(out, grid)
    return _as_counts(path, out)


def _identity(source: SpikeWindow, num_bins: int) -> dict[str, object]:
    """Everything the counts of a frame depend on."""
    state, bits = file_state(source.path), source.geometry
    return {
        "source": source.path.name,
        "source_bytes": state.num_bytes,
        "source_mtime_ns": state.mtime_ns,
        "start": source.start,
        "stop": source.stop,
        "geometry": ""
        if bits is None
        else f"{bits.height}x{bits.width} {bits.bit_order} flip_rows={bits.flip_rows}",
        "num_bins": num_bins,
    }


def _crc32(source: SpikeWindow) -> int:
    """Return the checksum of the bytes of a window, or of a whole file of voxels."""

    def read() -> bytes:
        with source.path.open("rb") as file:
            tick_bytes = source.geometry.tick_bytes if source.geometry else 0
            file.seek(source.start * tick_bytes)
            return file.read((source.stop - source.start) * tick_bytes or -1)

    try:
        return zlib.crc32(with_patience(source.path, read))
    except OSError as error:
        raise BadFileError(source.path, f"cannot be read: {error.strerror}") from error


def _as_counts(path: str | Path, grid: np.ndarray) -> np.ndarray:
    if grid.dtype.kind == "b":
        return grid.view(np.uint8)
    if grid.dtype in (np.uint8, np.uint16):
        return grid
    if grid.dtype.kind == "f":
        if not np.isfinite(grid).all():
            raise BadFileError(path, "holds values that are not finite")
        grid = grid.astype(np.float32, copy=False)
    smallest, largest = (grid.min(), grid.max()) if grid.size else (0, 0)
    if smallest < 0:
        raise BadFileError(path, f"holds {smallest}; counts of spikes cannot be negative")
    if grid.dtype.kind == "f":
        return grid
    if largest > np.iinfo(np.int32).max:
        raise BadFileError(path, f"holds {largest}; that is no count of spikes")
    dtype = np.uint8 if largest < 1 << 8 else np.uint16 if largest < 1 << 16 else np.int32
    return grid.astype(dtype)


def _sums_of(counts: np.ndarray, num_ticks: int | None) -> dict[str, object]:
    """Return the sums of an entry for counts [K, H, W] of a window of so many ticks."""
    histograms: dict[str, list[int]] = {}
    if counts.dtype in (np.uint8, np.uint16):
        histograms = _histograms(counts, num_ticks)
        frequency = np.sum(list(histograms.values()), axis=0)
        values = np.arange(len(frequency), dtype=np.float64)
    else:
        values, frequency = counts.astype(np.float64).ravel(), 1
    logs = np.log1p(values)
    return {
        "num_voxels": int(counts.size),
        "num_spikes": round(float((values * frequency).sum())),
        "sum_log1p": float((logs * frequency).sum()),
        "sum_log1p_squared": float((logs * logs * frequency).sum()),
        "histograms": histograms,
    }


def normalization_of(
    frames: Iterable[VoxelEntry], gain: float = 1.0, bin_normalize: bool = False
) -> tuple[float, float]:
    """Return mean and standard deviation of log1p(value) over all voxels of the frames.

    The value is count * gain, divided by the ticks of the bin if `bin_normalize`. The result does
    not depend on the order of the frames. A ValueError names what the voxels do not state.
    """
    frames = list(frames)
    number = sum(frame.num_voxels for frame in frames)
    if number == 0:
        raise ValueError("no voxels to take mean and deviation from")
    sums = [_sums(frame, gain, bin_normalize) for frame in frames]
    mean, square = (math.fsum(column) / number for column in zip(*sums, strict=True))
    return mean, math.sqrt(max(square - mean * mean, 0.0))


def _sums(frame: VoxelEntry, gain: float, bin_normalize: bool) -> tuple[float, float]:
    """Return the sums of log1p(value) and of its square over the voxels of a frame."""
    if gain == 1.0 and not bin_normalize:
        return frame.sum_log1p, frame.sum_log1p_squared
    if not frame.histograms:
        raise ValueError(
            "voxels that are no whole numbers go with DATA.GAIN 1 and DATA.BIN_NORMALIZE False "
            "only; scale the voxels before they are stored instead"
        )
    if bin_normalize and UNKNOWN_TICKS in frame.histograms:
        raise ValueError(
            "DATA.BIN_NORMALIZE needs the ticks of every bin, which voxels without spikes do not "
            "tell; add the .dat files, or divide the voxels before they are stored"
        )
    return _sums_of_histograms(frame, gain, bin_normalize)


def _sums_of_histograms(
    frame: VoxelEntry, gain: float = 1.0, bin_normalize: bool = False
) -> tuple[float, float]:
    total = squares = 0.0
    for ticks, frequency in frame.histograms.items():
        factor = gain / int(ticks) if bin_normalize else gain
        logs = np.log1p(np.arange(len(frequency)) * factor)
        total += float((logs * frequency).sum())
        squares += float((logs * logs * frequency).sum())
    return total, squares


def _histograms(counts: np.ndarray, num_ticks: int | None) -> dict[str, list[int]]:
    """Return how often each count occurs in the bins of each number of ticks."""
    ticks = np.full(len(counts), int(UNKNOWN_TICKS))
    if num_ticks is not None:
        # A bin without ticks holds no spikes, whatever it is divided by.
        ticks = np.maximum(ticks_per_bin(num_ticks, len(counts)), 1)
    table = np.zeros((ticks.max() + 1, int(counts.max()) + 1), np.int64)
    for number, plane in zip(ticks, counts, strict=True):
        table[number] += np.bincount(plane.ravel(), minlength=table.shape[1])
    return {str(number): table[number].tolist() for number in np.unique(ticks)}
