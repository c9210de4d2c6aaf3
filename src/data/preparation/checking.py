"""Verify a prepared data set: everything that would make training wrong, all at once."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.data.alignment import AlignmentLog, Exposure, read_alignment
from src.data.bad_samples import BadFileError
from src.data.preparation.counting import PreparedSplit
from src.data.description import FILE_NAME, DescriptionError, read_description
from src.data.fingerprint import fingerprint_data, fingerprint_differences, list_sequences
from src.data.frames import read_image
from src.data.preparation.parallel import run_parallel, worthwhile_workers
from src.data.preparation.prepare import PrepareSettings, normalization_texts, scan_folders
from src.data.recordings import FrameRecord, Recording
from src.data.scanning import ScanSettings, SequenceScan, by_reason, summarize
from src.data.transforms import crop_grid
from src.data.voxel_cache import count_source, read_index, read_voxels, staleness
from src.data.yaml_edit import number_text

RUN_PREPARE = "run scripts/prepare_data.py with this configuration"
FILES_PER_TASK = 32


@dataclass(frozen=True)
class Expected:
    """What the configuration says about the data.

    Attributes:
        norm_mean, norm_std: DATA.NORM.
        clip_len: frames of a training clip.
        crop_px: side of a training crop in RGB pixels.
    """

    norm_mean: float
    norm_std: float
    clip_len: int
    crop_px: int


def check(settings: PrepareSettings, expected: Expected) -> tuple[list[str], list[str]]:
    """Verify the data set; nothing is written.

    Returns:
        What was seen and what is wrong, one line each.
    """
    root = settings.scan.root
    try:
        description = read_description(root)
    except DescriptionError as error:
        return [], [str(error)]
    seen, problems, splits = [], [], []
    log, log_problems = _read_log(settings.alignment_log)
    problems += log_problems
    for split in settings.splits:
        scans, found = scan_folders(settings.scan, split, description)
        splits.append(PreparedSplit(split, scans))
        problems += found
        seen.append(summarize(split, scans))
    problems += _check_files(splits, settings.workers)
    for split in splits:
        for scan in split.scans:
            problems += _check_sequence(split, scan, settings.scan, log)
            if split.split == settings.train_split:
                problems += _check_crops(scan, settings.scan.num_bins, expected)
    if log is not None:
        problems += _check_log_names(log, settings)
    problems += _check_normalization(splits, settings.train_split, expected)
    problems += _check_description(settings)
    return seen, problems


def decode_files(paths: list[Path]) -> list[tuple[int, int] | str]:
    """Decode images; return (height, width) of each, or what is wrong with it."""
    results: list[tuple[int, int] | str] = []
    for path in paths:
        try:
            height, width = read_image(path).shape[:2]
        except BadFileError as error:
            results.append(str(error))
        else:
            results.append((height, width))
    return results


def _read_log(path: Path) -> tuple[AlignmentLog | None, list[str]]:
    try:
        return read_alignment([path]), []
    except BadFileError as error:
        return None, [str(error)]


def _check_files(splits: list[PreparedSplit], workers: int) -> list[str]:
    """Decode every frame; sizes must be equal within a sequence."""
    groups = [
        (scan, [path for frame in scan.frames for path in (frame.blurry, frame.sharp)])
        for split in splits
        for scan in split.scans
    ]
    files = [path for _, paths in groups for path in paths]
    tasks = [
        files[start : start + FILES_PER_TASK] for start in range(0, len(files), FILES_PER_TASK)
    ]
    sizes: dict[Path, tuple[int, int] | str] = {}
    workers = worthwhile_workers(workers, sum(p.stat().st_size for p in files if p.is_file()))
    for number, results in run_parallel(decode_files, tasks, workers, "reading frames"):
        sizes.update(zip(tasks[number], results, strict=True))
    problems = [size for size in sizes.values() if isinstance(size, str)]
    for scan, paths in groups:
        found = {path: sizes[path] for path in paths if not isinstance(sizes[path], str)}
        counts = Counter(found.values())
        if len(counts) > 1:
            usual = counts.most_common(1)[0][0]
            odd = [f"{path.parent.name}/{path.name} {s}" for path, s in found.items() if s != usual]
            problems.append(f"{scan.folder}: frames are {usual} but {', '.join(odd)}")
    return problems


def _check_sequence(
    split: PreparedSplit, scan: SequenceScan, settings: ScanSettings, log: AlignmentLog | None
) -> list[str]:
    """Check windows, cache and alignment log of one sequence; fill `split.entries`."""
    where = f"{split.split}/{scan.name}"
    problems = [f"{where}: dropped: {by_reason(scan.dropped)}"] if scan.dropped else []
    if scan.strays:
        problems.append(f"{where}: without a blurry frame: {by_reason(scan.strays)}")
    lengths = Counter(frame.spikes.stop - frame.spikes.start for frame in scan.frames)
    if lengths and max(lengths) - min(lengths) > 1:  # exposures need not be whole ticks long
        usual = lengths.most_common(1)[0][0]
        odd = [
            f"{frame.name} {frame.spikes.stop - frame.spikes.start}"
            for frame in scan.frames
            if frame.spikes.stop - frame.spikes.start != usual
        ]
        problems.append(f"{where}: windows have {usual} ticks but {', '.join(odd)}")
    stale = _check_index(split, scan, settings)
    if stale:
        problems.append(f"{where}: {_grouped(stale)}; {RUN_PREPARE}")
    if log is not None:
        records = log.of_sequence(split.split, scan.name)
        problems += [f"{where}: {line}" for line in _check_records(split, scan, records)]
    problems += [f"{where}: {line}" for line in _recount_sample(split, scan, settings)]
    return problems


def _check_index(
    split: PreparedSplit, scan: SequenceScan, settings: ScanSettings
) -> dict[str, str]:
    """Return what is wrong with stored voxels by frame name; fill `split.entries`."""
    index = read_index(scan.folder / settings.voxel_dir)
    fresh, stale = {}, {}
    for frame in scan.frames:
        entry = index.get(frame.name)
        why = staleness(entry, frame.spikes, settings.num_bins, frame.voxels)
        if why is not None:
            stale[frame.name] = why
        elif entry is not None:
            fresh[frame.name] = entry
    split.entries[scan.name] = fresh
    silent = [name for name, entry in fresh.items() if entry.event_count == 0]
    return {**stale, **dict.fromkeys(silent, "not a single spike in the window")}


def _check_records(
    split: PreparedSplit, scan: SequenceScan, records: Mapping[int, Exposure]
) -> Iterable[str]:
    """Compare the alignment log with exposures and counts as they are now."""
    entries = split.entries[scan.name]
    wrong: dict[str, str] = {}
    for frame in scan.frames:
        record = records.get(frame.index)
        if record is None:
            wrong[frame.name] = "no record in the alignment log"
        elif (record.t0, record.t1) != (frame.t0, frame.t1):
            wrong[frame.name] = "the alignment log has another exposure"
        elif frame.name in entries and record.event_count != entries[frame.name].event_count:
            wrong[frame.name] = (
                f"the alignment log says {record.event_count} spikes, the voxels hold "
                f"{entries[frame.name].event_count}"
            )
    extra = sorted(set(records) - {frame.index for frame in scan.frames})
    if wrong:
        yield f"{_grouped(wrong)}; {RUN_PREPARE}"
    if extra:
        yield f"the alignment log has records of frames {extra} that cannot be used; {RUN_PREPARE}"


def _recount_sample(
    split: PreparedSplit, scan: SequenceScan, settings: ScanSettings
) -> Iterable[str]:
    """Count the first, a middle and the last frame anew and compare with what is stored."""
    places = sorted({0, len(scan.frames) // 2, len(scan.frames) - 1}) if scan.frames else []
    for frame in (scan.frames[i] for i in places):
        entry = split.entries[scan.name].get(frame.name)
        if entry is None:
            continue
        try:
            counts, stored = _count_twice(frame, settings.num_bins)
        except BadFileError as error:
            yield str(error)
            continue
        total = round(float(counts.sum(dtype=np.float64)))
        if total != entry.event_count:
            yield f"{frame.name}: {total} spikes counted now, {entry.event_count} before"
        elif stored is not None and not np.array_equal(counts, stored):
            yield f"{frame.voxels}: differs from the spikes; delete it, then {RUN_PREPARE}"


def _count_twice(frame: FrameRecord, num_bins: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the counts from the source, and those in the cache."""
    counts = count_source(frame.spikes, num_bins)
    return counts, None if frame.voxels is None else read_voxels(frame.voxels, num_bins)


def _check_crops(scan: SequenceScan, num_bins: int, expected: Expected) -> Iterable[str]:
    if len(scan.frames) < expected.clip_len:
        yield (
            f"{scan.folder}: {len(scan.frames)} usable frames, a clip needs {expected.clip_len}; "
            "no clip is taken from this sequence"
        )
    recording = Recording(scan.name, scan.frames, num_bins)
    try:
        height, width = recording.frame_size
        if min(height, width) < expected.crop_px:
            yield f"{scan.folder}: frames of {height}x{width} are below the crop {expected.crop_px}"
        crop_grid((height, width), recording.spike_size, expected.crop_px)
    except BadFileError:
        return  # named before
    except ValueError as error:
        yield f"{scan.folder}: {error}"


def _check_log_names(log: AlignmentLog, settings: PrepareSettings) -> list[str]:
    present: set[str] = set()
    for split in settings.splits:
        if (settings.scan.root / split).is_dir():
            names = [folder.name for folder in list_sequences(settings.scan.root / split)]
            present.update(names, (f"{split}/{name}" for name in names))
    gone = sorted(set(log.records) - present)
    return [f"{log.paths[0]}: sequences {gone} do not exist; {RUN_PREPARE}"] if gone else []


def _check_normalization(
    splits: list[PreparedSplit], train_split: str, expected: Expected
) -> list[str]:
    if not any(s.entries[scan.name] for s in splits if s.split == train_split for scan in s.scans):
        return [f"{train_split}: no prepared frame, so DATA.NORM is not checked; {RUN_PREPARE}"]
    found = normalization_texts(splits, train_split)
    given = (number_text(expected.norm_mean), number_text(expected.norm_std))
    if found == given:
        return []
    return [
        f"DATA.NORM: MEAN {given[0]}, STD {given[1]} in the configuration, the training split has "
        f"{found[0]}, {found[1]}; {RUN_PREPARE}"
    ]


def _check_description(settings: PrepareSettings) -> list[str]:
    root = settings.scan.root
    description = read_description(root)
    if description is None:
        return [f"{root / FILE_NAME}: missing; {RUN_PREPARE}"]
    try:
        now = fingerprint_data(root, settings.splits)
    except FileNotFoundError:
        return []  # named before
    changes = fingerprint_differences(description.fingerprint, now)
    return [f"{root / FILE_NAME}: {change}; {RUN_PREPARE}" for change in changes]


def _grouped(reasons: Mapping[str, str]) -> str:
    """Return `reason (names); reason (names)`."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return "; ".join(f"{reason} ({', '.join(frames)})" for reason, frames in names.items())
