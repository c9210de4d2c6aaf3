"""Count the spikes of all frames of a data set in parallel, keeping what is counted already."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from src.data.errors import BadFileError
from src.data.parallel import run_parallel, worthwhile_workers
from src.data.scanning import Dropped, ScanSettings, SequenceScan
from src.data.voxel_counts import (
    SpikeSource,
    VoxelEntry,
    count_frame,
    read_index,
    staleness,
    write_index,
)

FRAMES_PER_TASK = 8
SECONDS_BETWEEN_INDEX_WRITES = 5.0


@dataclass
class PreparedSplit:
    """A split while it is prepared: its sequences, and their counted frames by name."""

    split: str
    scans: list[SequenceScan]
    entries: dict[str, dict[str, VoxelEntry]] = field(default_factory=dict)
    failed: list[Dropped] = field(default_factory=list)


@dataclass(frozen=True)
class CountTask:
    """Frames of one sequence for one process: (name, source, file to store or None)."""

    folder: Path
    frames: tuple[tuple[str, SpikeSource, Path | None], ...]
    num_bins: int


def count_spikes(splits: list[PreparedSplit], settings: ScanSettings, workers: int) -> str:
    """Count the frames whose index entry is missing or stale; fill `entries` and `failed`.

    Returns:
        One line about what was done.
    """
    tasks: list[CountTask] = []
    owners: list[tuple[PreparedSplit, SequenceScan]] = []
    num_fresh = 0
    for split in splits:
        for scan in split.scans:
            fresh, stale = _sort_by_freshness(scan, settings)
            split.entries[scan.name] = fresh
            num_fresh += len(fresh)
            for start in range(0, len(stale), FRAMES_PER_TASK):
                part = tuple(stale[start : start + FRAMES_PER_TASK])
                folder = scan.folder / settings.voxel_dir
                tasks.append(CountTask(folder, part, settings.num_bins))
                owners.append((split, scan))
    workers = worthwhile_workers(workers, sum(_source_bytes(task) for task in tasks))
    start_s = time.perf_counter()
    indices = _IndexWriter()
    try:
        for number, results in run_parallel(count_frames, tasks, workers, "counting spikes"):
            split, scan = owners[number]
            _take_results(results, split, scan)
            indices.note(tasks[number].folder, split.entries[scan.name])
    finally:
        indices.write_all()
    num_counted = sum(len(task.frames) for task in tasks)
    if not num_counted:
        return f"voxels: {num_fresh} frames up to date"
    seconds = time.perf_counter() - start_s
    return (
        f"voxels: {num_counted} frames counted in {seconds:.1f} s by {workers} process(es), "
        f"{num_fresh} up to date"
    )


def count_frames(task: CountTask) -> list[tuple[str, VoxelEntry | str]]:
    """Count the frames of a task; the reason stands in place of those that cannot be counted."""
    results: list[tuple[str, VoxelEntry | str]] = []
    for name, source, npy_path in task.frames:
        try:
            results.append((name, count_frame(source, task.num_bins, npy_path)))
        except BadFileError as error:
            results.append((name, str(error)))
    return results


class _IndexWriter:
    """Writes changed indices, each at most every few seconds, so that a kill loses little."""

    def __init__(self) -> None:
        self._changed: dict[Path, Mapping[str, VoxelEntry]] = {}
        self._last_write_s = time.monotonic()

    def note(self, folder: Path, entries: Mapping[str, VoxelEntry]) -> None:
        """Remember that the index of a folder has to be written."""
        self._changed[folder] = entries
        if time.monotonic() - self._last_write_s > SECONDS_BETWEEN_INDEX_WRITES:
            self.write_all()

    def write_all(self) -> None:
        """Write all that changed."""
        for folder, entries in self._changed.items():
            write_index(folder, entries)
        self._changed.clear()
        self._last_write_s = time.monotonic()


def _source_bytes(task: CountTask) -> int:
    """Return the bytes of spikes a task reads; whole files where they are voxels."""
    total = 0
    for _, source, _ in task.frames:
        if source.geometry is not None:
            total += (source.stop - source.start) * source.geometry.tick_bytes
        elif source.path.is_file():
            total += source.path.stat().st_size
    return total


def _sort_by_freshness(
    scan: SequenceScan, settings: ScanSettings
) -> tuple[dict[str, VoxelEntry], list[tuple[str, SpikeSource, Path | None]]]:
    index = read_index(scan.folder / settings.voxel_dir)
    fresh, stale = {}, []
    for frame in scan.frames:
        entry = index.get(frame.name)
        if staleness(entry, frame.spikes, settings.num_bins, frame.voxels) is None:
            fresh[frame.name] = entry
        else:
            stale.append((frame.name, frame.spikes, frame.voxels))
    return fresh, stale


def _take_results(
    results: Iterable[tuple[str, VoxelEntry | str]], split: PreparedSplit, scan: SequenceScan
) -> None:
    for name, result in results:
        if isinstance(result, VoxelEntry):
            split.entries[scan.name][name] = result
        else:
            split.failed.append(Dropped(scan.name, name, result))
