"""Measure what reading data costs, each way beside the obvious one.

    python benchmarks/data.py [--quick] [--rounds 5] [--json FILE] [--folder DIR]

All ways of a table run in turn (A B A B ...) in one process with one thread. Printed are medians
of CPU time per call, how many calls a core does per second, and the ratio to the first way of the
table, which is the obvious one. "cold" rows ask the system to forget the files before each call.
The data is made in a temporary folder (5 GB; --quick: 10 MB) and deleted afterwards; --folder
chooses the disk.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import torch

from benchmarks.data_cases import FRAMES_PER_CLIP, FULL, QUICK, BenchmarkData
from benchmarks.tables import Row, Way, compare, show
from src.data.datasets.voxelizer import bin_of_tick, voxelize, voxelize_packed
from src.data.frame_cache import FrameCache
from src.data.frames import read_image
from src.data.normalization import Normalization, normalize_counts
from src.data.spikes.spike_dat import SpikeFile
from src.prepare.sources.planning import SourceOptions
from src.prepare.sources.run import SOURCES, run_plan
from tests.spike_cases import voxelize_twin


def counting(data: BenchmarkData, rounds: int) -> list[Row]:
    """Packed bits and events to voxels, and what the memory allows."""
    scale = data.scale
    file = SpikeFile(data.packed.frames[0].spikes.path, data.geometry)
    starts = np.searchsorted(bin_of_tick(scale.num_ticks, scale.num_bins), range(scale.num_bins))

    def obvious() -> np.ndarray:
        return np.add.reduceat(file.read(0, scale.num_ticks), starts, axis=0, dtype=np.uint8)

    def ours() -> np.ndarray:
        return voxelize_packed(file, 0, scale.num_ticks, scale.num_bins)

    must_be_equal(obvious(), ours())
    grid = ours()
    copy = np.empty_like(grid)
    ways = {
        "np.unpackbits + np.add.reduceat": obvious,
        "voxelize_packed": ours,
        "memcpy of the result": lambda: np.copyto(copy, grid),
    }
    rows = compare("packed bits to voxels", ways, rounds)
    moved = {"voxelize_packed": grid.nbytes + scale.num_ticks * data.geometry.tick_bytes}
    moved["memcpy of the result"] = 2 * grid.nbytes
    speeds = {row.way: moved[row.way] / row.cpu_ms / 1e6 for row in rows[1:]}
    share = speeds["voxelize_packed"] / speeds["memcpy of the result"]
    note = f"{speeds['voxelize_packed']:.1f} GB/s in and out, {share:.0%} of memcpy's"
    rows[1] = replace(rows[1], note=note)
    return rows + _counting_events(data, rounds)


def _counting_events(data: BenchmarkData, rounds: int) -> list[Row]:
    scale, rng = data.scale, np.random.default_rng(0)
    limits = (scale.num_ticks, *scale.size)
    events = np.stack([rng.integers(n, size=scale.num_events) for n in limits], axis=1)
    events = events[np.argsort(events[:, 0], kind="stable")]
    window = (0, scale.num_ticks, *scale.size, scale.num_bins)
    ways = {
        "np.add.at, three indices": lambda: voxelize_twin(events, *window),
        "voxelize (float32)": lambda: voxelize(events, *window),
    }
    must_be_equal(*(way() for way in ways.values()))
    return compare(f"{scale.num_events} events to voxels", ways, rounds)


def reading(data: BenchmarkData, rounds: int) -> list[Row]:
    """Clips of random crops: spikes, frames, and whole samples, from warm and from cold files."""
    tables = {
        "spikes of a clip": _spike_ways(data),
        "frames of a clip, blurry and sharp": _frame_ways(data),
        "whole samples": _sample_ways(data),
    }
    rows = []
    for name, ways in tables.items():
        remember(data)
        rows += compare(f"{name}, warm", ways, 4 * rounds)
        rows += compare(f"{name}, cold", ways, rounds, lambda: forget(data))
    return rows


def _spike_ways(data: BenchmarkData) -> dict[str, Way]:
    def from_floats(start: int, crop: tuple) -> np.ndarray:
        y, x, h, w = crop
        grids = (np.load(data.float_file(start + i)) for i in range(FRAMES_PER_CLIP))
        return np.stack([grid[:, y : y + h, x : x + w] for grid in grids])

    def counted(recording: object) -> Callable[[int, tuple], np.ndarray]:
        return lambda start, crop: recording.read_clip_counts(
            range(start, start + FRAMES_PER_CLIP), crop
        )

    readers = {
        "float32 cache, read whole": from_floats,
        "packed .dat": counted(data.packed),
        "uint8 cache": counted(data.cached),
    }
    return _over_random_clips(data, readers)


def _frame_ways(data: BenchmarkData) -> dict[str, Way]:
    def decoded(name_of: Callable[[Path], Path]) -> Callable[[int, tuple], np.ndarray]:
        def read(start: int, crop: tuple) -> np.ndarray:
            y, x, h, w = crop
            images = (read_image(name_of(path)) for path in _clip_files(data, start))
            return np.stack([image[y : y + h, x : x + w] for image in images])

        return read

    readers = {
        "PNG": decoded(lambda path: path),
        "JPEG": decoded(data.jpegs.__getitem__),
        "frame cache": lambda start, crop: np.stack(
            [data.store.read(path, crop) for path in _clip_files(data, start)]
        ),
    }
    must_be_equal(*(readers[name](0, data.crops()()[1]) for name in ("PNG", "frame cache")))
    return _over_random_clips(data, readers)


def _clip_files(data: BenchmarkData, start: int) -> list[Path]:
    frames = data.packed.frames[start : start + FRAMES_PER_CLIP]
    return [path for frame in frames for path in (frame.blurry, frame.sharp)]


def _over_random_clips(
    data: BenchmarkData, readers: Mapping[str, Callable[[int, tuple], np.ndarray]]
) -> dict[str, Way]:
    """Return calls that read random clips, the same ones in each way."""

    def call(read: Callable[[int, tuple], np.ndarray]) -> Way:
        draw = data.crops()
        return lambda: read(*draw())

    return {name: call(read) for name, read in readers.items()}


def _sample_ways(data: BenchmarkData) -> dict[str, Way]:
    datasets = {
        "PNG + packed .dat": data.dataset(data.packed),
        "frame cache + packed .dat": data.dataset(data.packed, data.store),
        "frame cache + uint8 cache": data.dataset(data.cached, data.store),
    }
    samples = [dataset[3, 0]["spike_vox"].numpy() for dataset in datasets.values()]
    must_be_equal(*samples)

    def call(dataset: torch.utils.data.Dataset) -> Way:
        keys = iter((epoch, epoch % len(dataset)) for epoch in range(10**6))
        return lambda: dataset[next(keys)]

    return {name: call(dataset) for name, dataset in datasets.items()}


def transferring(data: BenchmarkData, rounds: int) -> list[Row]:
    """What a batch costs between a worker and the network, on the CPU."""
    counts = data.dataset(data.packed, data.store)[0, 0]["spike_vox"]
    norm = Normalization(0.3, 0.4)
    ways = {
        "float32: log1p in the worker, then a copy": lambda: _formula(counts, norm).clone(),
        "uint8: a copy, then log1p": lambda: _formula(counts.clone(), norm),
        "uint8: a copy, then a table": lambda: normalize_counts(counts.clone(), norm),
    }
    difference = (_formula(counts, norm) - normalize_counts(counts, norm)).abs().max()
    if difference > 1e-6:
        raise AssertionError(f"table and formula differ by {difference}")
    sizes = (4 * counts.nbytes, counts.nbytes, counts.nbytes)
    notes = {way: f"{n / 1e6:.1f} MB cross" for way, n in zip(ways, sizes, strict=True)}
    return compare("voxels of a clip to the network", ways, rounds, notes=notes)


def _formula(counts: torch.Tensor, norm: Normalization) -> torch.Tensor:
    return normalize_counts(counts.float(), norm)  # floats are never looked up


def keeping(data: BenchmarkData, rounds: int) -> list[Row]:
    """Frames in memory: reads of random clips, by the share of all frames that a cache holds."""
    frame_bytes = 3 * data.scale.size[0] * data.scale.size[1]
    ways, caches = {}, {}
    for share in (0.0, 0.1, 0.5, 1.0):
        name = f"memory for {share:.0%} of the frames"
        cache = FrameCache(int(share * len(data.jpegs) * frame_bytes))
        if share == 1:
            name += ", preloaded"
            for path in data.jpegs:
                cache.read(path)
            cache.hits = cache.misses = 0
        draw = data.crops()
        caches[name] = cache
        ways[name] = lambda c=cache, d=draw: [c.read(p) for p in _clip_files(data, d()[0])]
    rows = compare("10 whole frames of random clips", ways, 2 * rounds)
    rates = {name: cache.hit_rate for name, cache in caches.items()}
    return [replace(row, note=f"{rates[row.way]:.0%} from memory") for row in rows]


def remember(data: BenchmarkData) -> None:
    """Read all files of the benchmark once, so that the system has them in memory."""
    for path in data.files():
        with path.open("rb", buffering=0) as handle:
            while handle.read(1 << 24):
                pass


def preparing(data: BenchmarkData, _rounds: int) -> list[Row]:
    """Downloaded GoPro clips to blur, sharp and spikes, by one process and by one for each clip."""
    clips = data.scale.num_clips
    plan = SOURCES["gopro"](SourceOptions(data.downloaded(clips)))
    num_frames = sum(sequence.num_inputs for sequence in plan.sequences)

    def made_by(workers: int) -> Way:
        def make() -> None:
            run_plan(plan, data.root / "prepared", workers=workers)

        return make

    def clear() -> None:
        shutil.rmtree(data.root / "prepared", ignore_errors=True)

    names = {n: f"{n} process" + "es" * (n > 1) for n in sorted({1, clips})}
    ways = {name: made_by(n) for n, name in names.items()}
    rows = compare(f"{clips} GoPro clips prepared", ways, 1, clear)
    rates = {n: 1e3 * num_frames / row.wall_ms for n, row in zip(names, rows, strict=True)}
    notes = [f"{rate:.0f} frames/s, {rate / n:.0f} per process" for n, rate in rates.items()]
    return [replace(row, note=note) for row, note in zip(rows, notes, strict=True)]


def forget(data: BenchmarkData) -> None:
    """Ask the system to drop all files of the benchmark from memory."""
    for path in data.files():
        with path.open("rb") as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def must_be_equal(first: np.ndarray, *others: np.ndarray) -> None:
    """Raise where two implementations give different results."""
    for other in others:
        if not np.array_equal(first, other):
            raise AssertionError("two ways to the same result differ")


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny frames: proves that it runs")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each way")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--folder", type=Path, help="where the temporary folder goes")
    return parser.parse_args()


def main() -> None:
    """Make the data, measure, print, delete the data."""
    options = parse_arguments()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    scale = QUICK if options.quick else FULL
    folder = Path(tempfile.mkdtemp(prefix="data_benchmark_", dir=options.folder))
    try:
        print(f"making {scale.num_bytes / 1e9:.2f} GB in {folder}, deleted afterwards")
        data = BenchmarkData(folder, scale)
        os.sync()  # a page that is not written yet cannot be forgotten
        measurements = (counting, reading, transferring, keeping, preparing)
        rows = [row for measure in measurements for row in measure(data, options.rounds)]
    finally:
        shutil.rmtree(folder)
    show(rows)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
