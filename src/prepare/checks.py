"""Verify a prepared data set: everything that would make training wrong, all at once."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
from yacs.config import CfgNode

from src.data.description import (
    FILE_NAME,
    DataDescription,
    DescriptionError,
    changed_files,
    fingerprint_data,
    fingerprint_differences,
    read_description,
)
from src.data.errors import BadFileError, DataSetError, listed, problems_of
from src.data.exposures import AlignmentLog, Exposure, read_alignment
from src.data.frames import list_sequences
from src.data.recordings import FrameRecord, Recording
from src.data.scanning import ScanSettings, SequenceScan, by_reason, scan_folders, summarize
from src.data.transforms import crop_grid
from src.data.voxel_counts import VoxelEntry, count_source, read_voxels
from src.data.yaml_text import number_text
from src.prepare.content import check_content
from src.prepare.counting import PreparedSplit, normalization_texts, sort_by_freshness
from src.prepare.findings import Findings, merged
from src.prepare.frame_checks import check_files
from src.prepare.prepare import PrepareSettings

logger = logging.getLogger(__name__)

RUN_PREPARE = "run scripts/prepare_data.py with this configuration"
NORM_UNSET = (number_text(0.0), number_text(1.0))  # the defaults of DATA.NORM
HIGHEST_RATE, LOWEST_RATE = 0.98, 0.001  # spikes per pixel and tick


def check(settings: PrepareSettings, cfg: CfgNode) -> Findings:
    """Verify the data set against itself and the configuration; nothing is written."""
    try:
        description = read_description(settings.scan.root)
    except DescriptionError as error:
        return Findings(problems=[str(error)])
    findings = Findings()
    log = read_log([settings.alignment_log], findings.problems)
    splits, is_whole = [], True
    for split in settings.splits:
        scans, problems = scan_folders(settings.scan, split, description)
        splits.append(PreparedSplit(split, scans))
        findings.problems += problems
        is_whole = is_whole and not (problems and split == settings.train_split)
        findings.seen.append(summarize(split, scans))
    findings.include(check_files(splits, settings.workers))
    for split in splits:
        findings.include(_check_split(split, settings, cfg, log))
    findings.include(check_content(splits, description, settings.scan.num_bins, settings.workers))
    if log is not None:
        findings.problems += check_log_names(log, settings.scan.root, settings.splits)
    if is_whole:  # else mean and deviation are of the rest
        findings.problems += check_normalization(splits, cfg)
    findings.problems += check_description(settings.scan, settings.splits, description)
    findings.notes = merged(findings.notes)
    return findings


def _check_split(
    split: PreparedSplit, settings: PrepareSettings, cfg: CfgNode, log: AlignmentLog | None
) -> Findings:
    findings = Findings()
    for scan in split.scans:
        where = f"{split.split}/{scan.name}"
        if scan.dropped:
            reasons = by_reason(scan.dropped)
            findings.problems.append(
                f"{where}: dropped: {reasons}; add what is missing or delete the frames"
            )
        if scan.strays:
            findings.problems.append(
                f"{where}: without a blurry frame: {by_reason(scan.strays)}; add the blurry frames "
                "or delete these"
            )
        findings.problems += [f"{where}: {line}" for line in check_windows(scan)]
        findings.problems += check_stored(split, scan, settings.scan, log)
        recounted = _recount_sample(split, scan, settings.scan)
        findings.problems += [f"{where}: {line}" for line in recounted]
        findings.include(check_rates(where, scan.frames, split.entries[scan.name]))
        if split.split == settings.train_split:
            findings.problems += _check_crops(scan, cfg)
    return findings


def read_log(paths: Iterable[Path], problems: list[str]) -> AlignmentLog | None:
    """Return the alignment logs; None where one cannot be read, which is added to the problems."""
    try:
        return read_alignment(paths)
    except BadFileError as error:
        problems.append(str(error))
        return None


def check_windows(scan: SequenceScan) -> Iterable[str]:
    """Name windows of other lengths than the others of the sequence, and those that go back."""
    back = [after.name for before, after in pairwise(scan.frames) if after.t0 < before.t0]
    if back:
        yield f"exposures go back in time ({listed(back)}); correct exposures.csv"
    ticks = {frame.name: frame.spikes.stop - frame.spikes.start for frame in scan.frames}
    if ticks and max(ticks.values()) - min(ticks.values()) > 1:  # need not be whole ticks long
        usual = Counter(ticks.values()).most_common(1)[0][0]
        odd = [f"{name} {number}" for name, number in ticks.items() if number != usual]
        yield f"windows have {usual} ticks but {listed(odd)}; correct exposures.csv"


def check_stored(
    split: PreparedSplit, scan: SequenceScan, settings: ScanSettings, log: AlignmentLog | None
) -> list[str]:
    """Compare cache and alignment log of a sequence with its files; fill `split.entries`."""
    split.entries[scan.name], stale = sort_by_freshness(scan, settings)
    problems = [f"{_grouped(stale)}; {RUN_PREPARE}"] if stale else []
    if log is not None:
        problems += _check_records(split, scan, log.of_sequence(split.split, scan.name))
    return [f"{split.split}/{scan.name}: {line}" for line in problems]


def _recount_sample(
    split: PreparedSplit, scan: SequenceScan, settings: ScanSettings
) -> Iterable[str]:
    """Count the first, a middle and the last frame anew and compare with what is stored."""
    numbers = sorted({0, len(scan.frames) // 2, len(scan.frames) - 1}) if scan.frames else []
    for frame in (scan.frames[i] for i in numbers):
        entry = split.entries[scan.name].get(frame.name)
        if entry is None:
            continue
        stored = None
        try:
            counts = count_source(frame.spikes, settings.num_bins)
            if frame.voxels is not None:
                stored = read_voxels(frame.voxels, settings.num_bins)
        except BadFileError as error:
            yield str(error)
            continue
        total = round(float(counts.sum(dtype=np.float64)))
        if total != entry.event_count:
            yield (
                f"{frame.name}: {total} spikes counted now, {entry.event_count} before; delete "
                f"{settings.voxel_dir}/ of this sequence, then {RUN_PREPARE}"
            )
        elif stored is not None and not np.array_equal(counts, stored):
            yield f"{frame.voxels}: differs from the spikes; delete it, then {RUN_PREPARE}"


def _grouped(reasons: Mapping[str, str]) -> str:
    """Return `reason (names); reason (names)`."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return "; ".join(f"{reason} ({listed(frames)})" for reason, frames in names.items())


def check_rates(
    where: str, frames: tuple[FrameRecord, ...], entries: Mapping[str, VoxelEntry]
) -> Findings:
    """Look at the share of ones in every counted window: none, all, or hardly any.

    Stored voxels have no known number of ticks; only a window without a spike is seen there.
    """
    silent, full, dark = [], [], []
    for frame in (frame for frame in frames if frame.name in entries):
        count, source = entries[frame.name].event_count, frame.spikes
        if count == 0:
            silent.append(frame.name)
        elif source.geometry is not None:
            num_bits = 8 * source.geometry.tick_bytes * (source.stop - source.start)
            full += [frame.name] if count > HIGHEST_RATE * num_bits else []
            dark += [frame.name] if count < LOWEST_RATE * num_bits else []
    findings = Findings()
    if silent:
        findings.problems.append(
            f"{where}: not a single spike in the window ({listed(silent)}); write these spikes "
            "again or delete the frames"
        )
    if full:
        findings.problems.append(
            f"{where}: nearly every bit is 1 ({listed(full)}); no camera does that, see "
            "scripts/inspect_spikes.py"
        )
    if dark:
        findings.notes.append(
            f"{where}: hardly a spike, below {LOWEST_RATE:g} per pixel and tick ({listed(dark)})"
        )
    return findings


def _check_crops(scan: SequenceScan, cfg: CfgNode) -> Iterable[str]:
    """Name a sequence of which no clip or no crop can be taken."""
    clip_len, crop_px = cfg.DATA.CLIP_LEN, cfg.DATA.CROP_SIZE
    if len(scan.frames) < clip_len:
        yield (
            f"{scan.folder}: {len(scan.frames)} usable frames, a clip needs {clip_len}; no clip is "
            "taken from this sequence; lower DATA.CLIP_LEN or delete it"
        )
    recording = Recording(scan.name, scan.frames, cfg.DATA.K)
    try:
        height, width = recording.frame_size
        if min(height, width) < crop_px:
            yield (
                f"{scan.folder}: frames of {height}x{width} are below the crop {crop_px}; lower "
                "DATA.CROP_SIZE"
            )
        crop_grid((height, width), recording.spike_size, crop_px)
    except BadFileError:
        return  # named before
    except ValueError as error:
        yield f"{scan.folder}: {error}"


def check_log_names(log: AlignmentLog, root: Path, splits: Iterable[str]) -> list[str]:
    """Name the sequences of the alignment log that are no longer there."""
    names = _sequence_names(root, splits)
    gone = sorted(set(log.records) - names - {name.partition("/")[2] for name in names})
    logs = ", ".join(map(str, log.paths))
    return [f"{logs}: sequences {gone} do not exist; {RUN_PREPARE}"] if gone else []


def _sequence_names(root: Path, splits: Iterable[str]) -> set[str]:
    """Return `SPLIT/SEQUENCE` of all sequences that are there."""
    there = [split for split in splits if (root / split).is_dir()]
    return {f"{split}/{folder.name}" for split in there for folder in list_sequences(root / split)}


def check_normalization(splits: list[PreparedSplit], cfg: CfgNode) -> list[str]:
    """Compare DATA.NORM with mean and deviation of what was counted.

    A model that starts from weights of another data set keeps the numbers of that one: then a
    difference is only logged.
    """
    data = cfg.DATA
    train = [split for split in splits if split.split == data.TRAIN_SPLIT]
    if not any(entries for split in train for entries in split.entries.values()):
        return [
            f"{data.TRAIN_SPLIT}: no prepared frame, so DATA.NORM is not checked; {RUN_PREPARE}"
        ]
    try:
        found = normalization_texts(splits, data.TRAIN_SPLIT, data.GAIN, data.BIN_NORMALIZE)
    except DataSetError as error:
        return problems_of(error)
    given = (number_text(data.NORM.MEAN), number_text(data.NORM.STD))
    if found == given:
        return []
    difference = (
        f"DATA.NORM: MEAN {given[0]}, STD {given[1]} in the configuration, the training split has "
        f"{found[0]}, {found[1]}"
    )
    if cfg.MODEL.PRETRAINED and given != NORM_UNSET:
        logger.warning("%s; right if MODEL.PRETRAINED was trained with the former", difference)
        return []
    return [f"{difference}; {RUN_PREPARE}"]


def check_description(
    settings: ScanSettings, splits: tuple[str, ...], description: DataDescription | None
) -> Iterable[str]:
    """Compare the description with the files as they are."""
    root, exts = settings.root, settings.image_exts
    if description is None:
        yield f"{root / FILE_NAME}: missing; {RUN_PREPARE}"
        return
    try:
        now = fingerprint_data(root, splits, exts, description.fingerprint)
    except FileNotFoundError:
        return  # named before
    changes = fingerprint_differences(description.fingerprint, now)
    files = changed_files(root, splits, exts) if changes else ""
    for change in changes:
        yield (
            f"{root / FILE_NAME}: {change}{f' ({files})' if files else ''}; if the change is "
            f"meant, {RUN_PREPARE}, else bring the old files back"
        )
    present = _sequence_names(root, splits)
    gone = [
        name
        for name, _ in description.offsets
        if name.partition("/")[0] in splits and name not in present
    ]
    if gone:
        yield (
            f"{root / FILE_NAME}: offsets of sequences that do not exist: {', '.join(gone)}; "
            "delete those lines"
        )


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
