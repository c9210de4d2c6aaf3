"""Count the spikes of all frames in parallel, keeping what is counted; their mean and deviation."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from src.data.errors import BadFileError, DataSetError
from src.data.parallel import run_parallel, worthwhile_workers
from src.data.recordings import FrameRecord
from src.data.scanning import Dropped, ScanSettings, SequenceScan
from src.data.voxel_counts import (
    VoxelEntry,
    count_frame,
    normalization_of,
    read_index,
    staleness,
    write_index,
)
from src.data.yaml_text import number_text

FRAMES_PER_TASK = 8
SECONDS_BETWEEN_INDEX_WRITES = 5.0


@dataclass
class PreparedSplit:
    """A split while it is prepared: its sequences, and their counted frames by name."""

    split: str
    scans: list[SequenceScan]
    entries: dict[str, dict[str, VoxelEntry]] = field(default_factory=dict)
    failed: list[Dropped] = field(default_factory=list)


def count_spikes(splits: list[PreparedSplit], settings: ScanSettings, workers: int) -> str:
    """Count the frames whose index entry is missing or stale; fill `entries` and `failed`.

    Returns:
        One line about what was done.
    """
    tasks: list[list[FrameRecord]] = []
    owners: list[tuple[PreparedSplit, SequenceScan]] = []
    for split in splits:
        for scan in split.scans:
            split.entries[scan.name], stale = sort_by_freshness(scan, settings)
            frames = [frame for frame in scan.frames if frame.name in stale]
            for start in range(0, len(frames), FRAMES_PER_TASK):
                tasks.append(frames[start : start + FRAMES_PER_TASK])
                owners.append((split, scan))
    num_fresh = sum(len(entries) for split in splits for entries in split.entries.values())
    workers = worthwhile_workers(workers, sum(_source_bytes(f) for task in tasks for f in task))
    count, start_s = partial(count_frames, num_bins=settings.num_bins), time.monotonic()
    changed: dict[Path, Mapping[str, VoxelEntry]] = {}
    written_s = start_s
    try:
        for number, results in run_parallel(count, tasks, workers, "counting spikes"):
            split, scan = owners[number]
            for frame, result in zip(tasks[number], results, strict=True):
                if isinstance(result, VoxelEntry):
                    split.entries[scan.name][frame.name] = result
                else:
                    split.failed.append(Dropped(scan.name, frame.name, result))
            changed[scan.folder / settings.voxel_dir] = split.entries[scan.name]
            if time.monotonic() - written_s > SECONDS_BETWEEN_INDEX_WRITES:  # a kill loses little
                _write_indices(changed)
                written_s = time.monotonic()
    finally:
        _write_indices(changed)
    if not tasks:
        return f"voxels: {num_fresh} frames up to date"
    return (
        f"voxels: {sum(map(len, tasks))} frames counted in {time.monotonic() - start_s:.1f} s by "
        f"{workers} process(es), {num_fresh} up to date"
    )


def count_frames(frames: Sequence[FrameRecord], num_bins: int) -> list[VoxelEntry | str]:
    """Count frames; for one that cannot be counted the reason is returned."""
    results: list[VoxelEntry | str] = []
    for frame in frames:
        try:
            results.append(count_frame(frame.spikes, num_bins, frame.voxels))
        except BadFileError as error:
            results.append(str(error))
    return results


def sort_by_freshness(
    scan: SequenceScan, settings: ScanSettings
) -> tuple[dict[str, VoxelEntry], dict[str, str]]:
    """Return the entries of the frames whose counts are up to date, and why the others are not."""
    index = read_index(scan.folder / settings.voxel_dir)
    fresh, stale = {}, {}
    for frame in scan.frames:
        entry = index.get(frame.name)
        try:
            why = staleness(entry, frame.spikes, settings.num_bins, frame.voxels)
        except BadFileError as error:
            why = str(error)
        if why is None:
            fresh[frame.name] = entry
        else:
            stale[frame.name] = why
    return fresh, stale


def _write_indices(changed: dict[Path, Mapping[str, VoxelEntry]]) -> None:
    while changed:
        write_index(*changed.popitem())


def _source_bytes(frame: FrameRecord) -> int:
    """Return the bytes of spikes that counting reads; whole files where they are voxels."""
    source = frame.spikes
    if source.geometry is not None:
        return (source.stop - source.start) * source.geometry.tick_bytes
    return source.path.stat().st_size if source.path.is_file() else 0


def normalization_texts(
    splits: list[PreparedSplit], train_split: str, gain: float, bin_normalize: bool
) -> tuple[str, str]:
    """Return mean and deviation over the training split, as they are written."""
    train = [frames for s in splits if s.split == train_split for frames in s.entries.values()]
    entries = [entry for frames in train for entry in frames.values()]
    if not entries:
        raise DataSetError(train_split, ["no frame can be used for training"])
    try:
        mean, std = normalization_of(entries, gain, bin_normalize)
    except ValueError as error:
        raise DataSetError(train_split, [str(error)]) from error
    if std == 0:
        problem = "all voxels hold the same count, so there are no spikes to learn from"
        raise DataSetError(train_split, [f"{problem}; --check_only says where"])
    return number_text(mean), number_text(std)
