"""Verify a prepared data set: everything that would make training wrong, all at once.

`check` looks into every file. `quick_check` runs before a training, in seconds: it compares names,
sizes, times of change and what preparation wrote down, the result of its check of the content
included, and decodes no picture and counts no spike.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
from yacs.config import CfgNode

from src.data.description import (
    ACCEPTED,
    FILE_NAME,
    DataDescription,
    DescriptionError,
    changed_files,
    content_of,
    fingerprint_data,
    fingerprint_differences,
    read_description,
)
from src.data.errors import BadFileError, DataSetError, listed, problems_of
from src.data.exposures import Exposure, read_alignment
from src.data.frames import is_cut_short, list_sequences
from src.data.recordings import FrameRecord, Recording
from src.data.scanning import (
    ScanSettings,
    SequenceScan,
    alignment_paths,
    by_reason,
    scan_folders,
    scan_settings,
    summarize,
)
from src.data.transforms import crop_grid
from src.data.voxel_counts import VoxelEntry, count_window, read_voxels
from src.data.yaml_text import number_text
from src.prepare.frame_checks import Findings, PreparedSplit, check_files, merged
from src.prepare.prepare import normalization_texts, sort_by_freshness
from src.prepare.spikes_match_frames import check_content

logger = logging.getLogger(__name__)

RUN_PREPARE = "run scripts/prepare_data.py with this configuration"
NORM_UNSET = (number_text(0.0), number_text(1.0))  # the defaults of DATA.NORM
HIGHEST_RATE, LOWEST_RATE = 0.98, 0.001  # spikes per pixel and tick
READERS = 16  # a network drive answers many at the same time


def check(cfg: CfgNode, workers: int) -> Findings:
    """Verify the data set against itself and the configuration; nothing is written."""
    try:
        findings, splits, description = _check_records(cfg)
    except DescriptionError as error:
        return Findings(problems=[str(error)])
    settings, names = scan_settings(cfg), [split.split for split in splits]
    findings.seen += [summarize(split.split, split.scans) for split in splits]
    findings.include(check_files(splits, workers))
    for split in splits:
        for scan in split.scans:
            findings.problems += _check_scan(split, scan, settings)
            if split.split == cfg.DATA.TRAIN_SPLIT:
                findings.problems += _check_crops(scan, cfg)
    findings.include(check_content(splits, description, settings.num_bins, workers))
    findings.problems += _check_description(settings, names, description)
    findings.notes = merged(findings.notes)
    return findings


def quick_check(cfg: CfgNode) -> list[str]:
    """Return what would make a training wrong, each with the way out; an empty list is good.

    Frames that lack something are no problem here: scanning logs and names them.
    """
    try:
        findings, splits, description = _check_records(cfg)
    except DescriptionError as error:
        return [str(error)]
    settings, names = scan_settings(cfg), [split.split for split in splits]
    problems = [*findings.problems, *_cut_short(splits)]
    changes = list(_check_description(settings, names, description))
    return problems + (changes or content_problems(description, str(settings.root)))


def _check_records(
    cfg: CfgNode,
) -> tuple[Findings, list[PreparedSplit], DataDescription | None]:
    """Check names, exposures, counts, alignment log and DATA.NORM, all without opening a frame."""
    settings, findings, log = scan_settings(cfg), Findings(), None
    description = read_description(settings.root)
    try:
        log = read_alignment(alignment_paths(cfg))
    except BadFileError as error:
        findings.problems.append(str(error))
    splits, is_whole = [], True
    for name in dict.fromkeys((cfg.DATA.TRAIN_SPLIT, cfg.DATA.VAL_SPLIT)):
        scans, found = scan_folders(settings, name, description)
        splits.append(PreparedSplit(name, scans))
        findings.problems += found
        is_whole = is_whole and not (found and name == cfg.DATA.TRAIN_SPLIT)
        for scan in scans:
            where = f"{name}/{scan.name}"
            splits[-1].entries[scan.name], stale = sort_by_freshness(scan, settings)
            entries = splits[-1].entries[scan.name]
            lines = [*_check_windows(scan), *_grouped(stale)]
            if log is not None:
                lines += _check_log(scan, entries, log.of_sequence(name, scan.name))
            findings.problems += [f"{where}: {line}" for line in lines]
            findings.include(check_rates(where, scan.frames, entries))
    if log is not None:
        there = _sequence_names(settings.root, [split.split for split in splits])
        gone = sorted(set(log.records) - there - {name.partition("/")[2] for name in there})
        logs = ", ".join(map(str, log.paths))
        if gone:
            findings.problems.append(
                f"{logs}: sequences {listed(gone)} do not exist; {RUN_PREPARE}"
            )
    if is_whole:  # else mean and deviation are of the rest
        findings.problems += _check_normalization(splits, cfg)
    return findings, splits, description


def _check_scan(split: PreparedSplit, scan: SequenceScan, settings: ScanSettings) -> Iterable[str]:
    """Name frames that are left out, files without a frame, and counts that are wrong."""
    where = f"{split.split}/{scan.name}"
    if scan.dropped:
        advice = "add what is missing or delete the frames"
        yield f"{where}: dropped: {by_reason(scan.dropped)}; {advice}"
    if scan.unmatched:
        advice = "add the blurry frames or delete these"
        yield f"{where}: without a blurry frame: {by_reason(scan.unmatched)}; {advice}"
    for line in _recount_sample(split.entries[scan.name], scan, settings):
        yield f"{where}: {line}"


def _check_windows(scan: SequenceScan) -> Iterable[str]:
    """Name windows of other lengths than the others of the sequence, and those that go back."""
    back = [after.name for before, after in pairwise(scan.frames) if after.t0 < before.t0]
    if back:
        yield f"exposures go back in time ({listed(back)}); correct exposures.csv"
    ticks = {frame.name: frame.spikes.stop - frame.spikes.start for frame in scan.frames}
    if ticks and max(ticks.values()) - min(ticks.values()) > 1:  # need not be whole ticks long
        usual = Counter(ticks.values()).most_common(1)[0][0]
        odd = [f"{name} {number}" for name, number in ticks.items() if number != usual]
        yield f"windows have {usual} ticks but {listed(odd)}; correct exposures.csv"


def _recount_sample(
    entries: Mapping[str, VoxelEntry], scan: SequenceScan, settings: ScanSettings
) -> Iterable[str]:
    """Count the first, a middle and the last frame anew and compare with what is stored."""
    numbers = sorted({0, len(scan.frames) // 2, len(scan.frames) - 1}) if scan.frames else []
    for frame in (scan.frames[i] for i in numbers if scan.frames[i].name in entries):
        before = entries[frame.name].num_spikes
        try:
            counts = count_window(frame.spikes, settings.num_bins)
            stored = counts if frame.voxels is None else read_voxels(frame.voxels, len(counts))
        except BadFileError as error:
            yield str(error)
            continue
        total = round(float(counts.sum(dtype=np.float64)))
        if total != before:
            yield (
                f"{frame.name}: {total} spikes counted now, {before} before; delete "
                f"{settings.voxel_dir}/ of this sequence, then {RUN_PREPARE}"
            )
        elif not np.array_equal(counts, stored):
            yield f"{frame.voxels}: differs from the spikes; delete it, then {RUN_PREPARE}"


def _grouped(reasons: Mapping[str, str]) -> list[str]:
    """Return `reason (names); reason (names); what to do` in one line, none where all is right."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    lines = [f"{reason} ({listed(frames)})" for reason, frames in names.items()]
    return ["; ".join([*lines, RUN_PREPARE])] if lines else []


def check_rates(
    where: str, frames: tuple[FrameRecord, ...], entries: Mapping[str, VoxelEntry]
) -> Findings:
    """Look at the share of ones in every counted window: none, all, or hardly any.

    Stored voxels have no known number of ticks; only a window without a spike is seen there.
    """
    rates = {}
    for frame in (frame for frame in frames if frame.name in entries):
        geometry, count = frame.spikes.geometry, entries[frame.name].num_spikes
        num_bits = geometry and 8 * geometry.tick_bytes * frame.spikes.num_ticks
        rates[frame.name] = count / num_bits if num_bits else 0.5 * (count > 0)
    silent = [name for name, rate in rates.items() if rate == 0]
    full = [name for name, rate in rates.items() if rate > HIGHEST_RATE]
    dark = [name for name, rate in rates.items() if 0 < rate < LOWEST_RATE]
    findings = Findings()
    if silent:
        what = f"{where}: not a single spike in the window ({listed(silent)})"
        findings.problems.append(f"{what}; write these spikes again or delete the frames")
    if full:
        what = f"{where}: nearly every bit is 1 ({listed(full)})"
        findings.problems.append(f"{what}; no camera does that, see scripts/inspect_spikes.py")
    if dark:
        what = f"hardly a spike, below {LOWEST_RATE:g} per pixel and tick ({listed(dark)})"
        findings.notes.append(f"{where}: {what}")
    return findings


def _check_crops(scan: SequenceScan, cfg: CfgNode) -> Iterable[str]:
    """Name a sequence of which no clip or no crop can be taken."""
    clip_len, crop_px, number = cfg.DATA.CLIP_LEN, cfg.DATA.CROP_SIZE, len(scan.frames)
    if number < clip_len:
        why = f"{number} usable frames, a clip needs {clip_len}"
        yield f"{scan.folder}: {why}, so none is taken; lower DATA.CLIP_LEN or delete it"
    recording = Recording(scan.name, scan.frames, cfg.DATA.K)
    try:
        height, width = recording.frame_size
        if min(height, width) < crop_px:
            small = f"frames of {height}x{width} are below the crop {crop_px}"
            yield f"{scan.folder}: {small}; lower DATA.CROP_SIZE"
        crop_grid((height, width), recording.spike_size, crop_px)
    except BadFileError:
        return  # named before
    except ValueError as error:
        yield f"{scan.folder}: {error}"


def _sequence_names(root: Path, splits: Iterable[str]) -> set[str]:
    """Return `SPLIT/SEQUENCE` of all sequences that are there."""
    there = [split for split in splits if (root / split).is_dir()]
    return {f"{split}/{folder.name}" for split in there for folder in list_sequences(root / split)}


def _check_normalization(splits: list[PreparedSplit], cfg: CfgNode) -> list[str]:
    """Compare DATA.NORM with mean and deviation of what was counted.

    Weights of another data set keep the numbers of that one: then a difference is only logged.
    """
    data = cfg.DATA
    if data.MATCH_LIGHT:  # NORM then is a choice
        return []
    try:
        found = normalization_texts(splits, data.TRAIN_SPLIT, data.GAIN, data.BIN_NORMALIZE)
    except DataSetError as error:
        return [
            f"{line}; so DATA.NORM is not checked; {RUN_PREPARE}" for line in problems_of(error)
        ]
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


def _check_description(
    settings: ScanSettings, splits: list[str], description: DataDescription | None
) -> Iterable[str]:
    """Compare the description with the files as they are."""
    root, exts, file = settings.root, settings.image_exts, settings.root / FILE_NAME
    if description is None:
        yield f"{file}: missing; {RUN_PREPARE}"
        return
    try:
        now = fingerprint_data(root, splits, exts, description.fingerprint)
    except FileNotFoundError:
        return  # named before
    changes = fingerprint_differences(description.fingerprint, now)
    files = changed_files(root, splits, exts) if changes else ""
    for change in changes:
        what = f"{file}: {change}{f' ({files})' if files else ''}"
        yield f"{what}; if the change is meant, {RUN_PREPARE}, else bring the old files back"
    there = _sequence_names(root, splits)
    offsets = (name for name, _ in description.offsets if name.partition("/")[0] in splits)
    if gone := ", ".join(name for name in offsets if name not in there):
        yield f"{file}: offsets of sequences that do not exist: {gone}; delete those lines"


def _check_log(
    scan: SequenceScan, entries: Mapping[str, VoxelEntry], records: Mapping[int, Exposure]
) -> Iterable[str]:
    """Compare the alignment log with exposures and counts as they are now."""
    wrong: dict[str, str] = {}
    for frame in scan.frames:
        record, entry = records.get(frame.index), entries.get(frame.name)
        if record is None:
            wrong[frame.name] = "no record in the alignment log"
        elif (record.t0, record.t1) != (frame.t0, frame.t1):
            wrong[frame.name] = "the alignment log has another exposure"
        elif entry is not None and record.num_spikes != entry.num_spikes:
            logged = f"the alignment log says {record.num_spikes} spikes"
            wrong[frame.name] = f"{logged}, the voxels hold {entry.num_spikes}"
    yield from _grouped(wrong)
    if extra := sorted(set(records) - {frame.index for frame in scan.frames}):
        what = f"records of frames {listed(list(map(str, extra)))} that cannot be used"
        yield f"the alignment log has {what}; {RUN_PREPARE}"


def content_problems(description: DataDescription | None, where: str) -> list[str]:
    """Return what keeps a training from data whose content failed its check or was not checked."""
    content = "unknown" if description is None else content_of(description)
    if content == "failed":
        return [
            f"{where}/{FILE_NAME}: blur, sharp and spikes do not belong together; "
            "scripts/prepare_data.py --check_only says where; to train on them nevertheless, run "
            'it with --accept "REASON" in place of --check_only'
        ]
    if content == "unknown":
        return [
            f"{where}/{FILE_NAME}: not checked yet whether blur, sharp and spikes belong together; "
            "run scripts/prepare_data.py once, it takes seconds"
        ]
    if content.startswith(ACCEPTED):
        logger.warning("%s: problems of the data were %s", where, content)
    return []


def _cut_short(splits: list[PreparedSplit]) -> Iterable[str]:
    """Find images whose end is missing, by their last bytes."""
    paths = [path for split in splits for scan in split.scans for path in scan.files]
    with ThreadPoolExecutor(READERS) as pool:
        are_broken = list(pool.map(is_cut_short, paths))
    if broken := [str(p) for p, is_broken in zip(paths, are_broken, strict=True) if is_broken]:
        yield f"images that are cut short or cannot be read: {listed(broken)}; copy them again"
