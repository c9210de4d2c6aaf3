"""Prepare a data set: count the spikes of every frame, log the alignment, find mean and deviation.

Everything is checked against its source and written whole or not at all, so preparing can be
stopped at any moment and a second run does nothing.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from src.data.description import (
    ACCEPTED,
    FILE_NAME,
    content_of,
    fingerprint_data,
    fingerprint_differences,
    read_description,
    write_content,
    write_file_list,
    write_fingerprint,
)
from src.data.errors import BadFileError, DataSetError
from src.data.exposures import Exposure, read_alignment, write_alignment
from src.data.frame_cache import store_frames
from src.data.parallel import run_parallel, worthwhile_workers
from src.data.recordings import FrameRecord
from src.data.scanning import Dropped, ScanSettings, SequenceScan, scan_folders, summarize
from src.data.voxel_counts import (
    VoxelEntry,
    count_frame,
    normalization_of,
    read_index,
    staleness,
    write_index,
)
from src.data.yaml_text import number_text, set_value
from src.paths import atomic_write
from src.prepare.frame_checks import Findings, PreparedSplit, merged
from src.prepare.spikes_match_frames import check_content

FRAMES_PER_TASK = 8
SECONDS_BETWEEN_INDEX_WRITES = 5.0


@dataclass(frozen=True)
class PrepareSettings:
    """What to prepare, and for which configuration file."""

    scan: ScanSettings
    train_split: str
    val_split: str
    alignment_log: Path  # to write
    config: Path  # YAML file that gets mean and deviation
    workers: int = 1
    frame_cache: bool = False  # decode the frames of the training split onto the disk
    measures_norm: bool = True  # not with DATA.MATCH_LIGHT
    gain: float = 1.0  # DATA.GAIN
    bin_normalize: bool = False  # DATA.BIN_NORMALIZE

    @property
    def splits(self) -> tuple[str, ...]:
        """Both splits; one where they are the same folder."""
        return tuple(dict.fromkeys((self.train_split, self.val_split)))


def prepare(settings: PrepareSettings) -> list[str]:
    """Bring voxels, alignment log, DATA.NORM and description up to date; say what was done."""
    refuse_log_of_another_root(settings)
    splits = scan_splits(settings)
    lines = [count_spikes(splits, settings.scan, settings.workers)]
    lines += [summarize(split.split, split.scans) for split in splits]
    lines += [
        f"{split.split}: {entry.sequence}/{entry.frame} not counted: {entry.reason}"
        for split in splits
        for entry in split.failed
    ]
    if not any(frames for split in splits for frames in split.entries.values()):
        raise DataSetError(str(settings.scan.root), ["no frame can be used", *lines])
    if settings.frame_cache:
        training = [scan for s in splits if s.split == settings.train_split for scan in s.scans]
        files = [path for scan in training for path in scan.files]
        lines += store_frames(files, settings.scan.root, settings.workers)[1]
    is_new = write_alignment(settings.alignment_log, alignment_records(splits))
    verb = "written" if is_new else "up to date"
    lines.append(f"alignment log {settings.alignment_log}: {verb}")
    lines.append(write_normalization(splits, settings))
    lines.append(_bring_description_up_to_date(settings))
    return lines


def check_prepared_content(
    settings: PrepareSettings, accepted: str | None = None
) -> tuple[str, Findings]:
    """Check samples of all sequences; return the result, as `DataDescription.content`, and lines.

    The result is written to `dataset.yaml`, so that a training can refuse data that failed without
    decoding a picture. Data that failed are checked every time, so that the problems are printed
    again. `accepted` says why problems are accepted; None: they are not.
    """
    root = settings.scan.root
    description = read_description(root)
    known = content_of(description)
    if known == "passed" or (known.startswith(ACCEPTED) and accepted is None):
        return known, Findings()
    splits = scan_splits(settings)
    findings = check_content(splits, description, settings.scan.num_bins, settings.workers)
    findings.notes = merged(findings.notes)
    content = "passed"
    if findings.problems:
        content = "failed" if accepted is None else f"{ACCEPTED}{accepted}"
    if content != known:
        write_content(root, content)
    return content, findings


def refuse_log_of_another_root(settings: PrepareSettings) -> None:
    """Refuse to replace an alignment log that has sequences of another data root.

    The log is named after the last folder of the root, which two roots may share.
    """
    path, root = settings.alignment_log, settings.scan.root
    if not path.is_file():
        return
    try:
        names = read_alignment([path]).records
    except BadFileError:
        return  # nothing in it can be lost
    parents = [root, *(root / split for split in settings.splits)]  # older logs name no split
    foreign = [name for name in names if not any((p / name).is_dir() for p in parents)]
    if foreign:
        shown = ", ".join(foreign[:3]) + (" ..." if len(foreign) > 3 else "")
        raise DataSetError(
            str(path),
            [
                f"has {len(foreign)} of {len(names)} sequences that are not in {root} ({shown}), "
                "so it may belong to another data root of that name; set DATA.ALIGN_LOG_PATHS to "
                "a file of its own, or delete the log if those sequences are gone"
            ],
        )


def scan_splits(settings: PrepareSettings) -> list[PreparedSplit]:
    """Scan all sequences of all splits; a DataSetError lists all that cannot be understood."""
    splits, problems = [], []
    description = read_description(settings.scan.root)
    for split in settings.splits:
        scans, found = scan_folders(settings.scan, split, description)
        splits.append(PreparedSplit(split, scans))
        problems += found
    if problems:
        raise DataSetError(str(settings.scan.root), problems)
    return splits


def alignment_records(splits: list[PreparedSplit]) -> dict[str, dict[int, Exposure]]:
    """Return the exposures of all counted frames by `SPLIT/SEQUENCE` and frame number."""
    return {
        f"{split.split}/{scan.name}": {
            frame.index: Exposure(
                frame.t0, frame.t1, split.entries[scan.name][frame.name].num_spikes
            )
            for frame in scan.frames
            if frame.name in split.entries[scan.name]
        }
        for split in splits
        for scan in split.scans
    }


def write_normalization(splits: list[PreparedSplit], settings: PrepareSettings) -> str:
    """Write mean and deviation into the configuration where they differ from what is there."""
    if not settings.measures_norm:
        return f"{settings.config}: DATA.NORM is left alone, because of DATA.MATCH_LIGHT"
    mean, std = normalization_texts(
        splits, settings.train_split, settings.gain, settings.bin_normalize
    )
    path = settings.config.resolve()  # a link stays a link
    with path.open(encoding="utf-8", newline="") as handle:
        text = handle.read()
    try:
        new_text = set_value(text, ("DATA", "NORM", "STD"), std)
        new_text = set_value(new_text, ("DATA", "NORM", "MEAN"), mean)
    except ValueError as error:
        raise DataSetError(str(settings.config), [f"cannot write DATA.NORM: {error}"]) from error
    values = f"DATA.NORM.MEAN {mean}, STD {std}"
    if new_text == text:
        return f"{settings.config}: {values} up to date"
    mode = path.stat().st_mode
    with atomic_write(path) as partial:
        partial.write_text(new_text, encoding="utf-8", newline="")
        partial.chmod(mode)
    return f"{settings.config}: {values} written"


def _bring_description_up_to_date(settings: PrepareSettings) -> str:
    root = settings.scan.root
    description = read_description(root)
    before = () if description is None else description.fingerprint
    now = fingerprint_data(root, settings.splits, settings.scan.image_exts, before)
    write_file_list(root, settings.splits, settings.scan.image_exts)
    changes = fingerprint_differences(before, now)
    if description is not None and not changes:
        return f"{root / FILE_NAME}: up to date"
    write_fingerprint(root, now)
    if description is None:
        return f"{root / FILE_NAME}: written; complete what it calls unknown"
    if not before:
        return f"{root / FILE_NAME}: fingerprint added"
    return f"{root / FILE_NAME}: fingerprint renewed ({'; '.join(changes)})"


def default_workers() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---------------------------------------------------------------- counting spikes


def count_spikes(splits: list[PreparedSplit], settings: ScanSettings, workers: int) -> str:
    """Count the frames whose entry is missing or stale, into `entries` and `failed`."""
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
