"""Verify a prepared data set: everything that would make training wrong, all at once."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from yacs.config import CfgNode

from src.data.description import (
    FILE_NAME,
    DataDescription,
    DescriptionError,
    fingerprint_data,
    fingerprint_differences,
    read_description,
)
from src.data.errors import BadFileError, DataSetError, problems_of
from src.data.exposures import AlignmentLog, Exposure, read_alignment
from src.data.frames import list_sequences
from src.data.recordings import FrameRecord, Recording
from src.data.scanning import ScanSettings, SequenceScan, by_reason, summarize
from src.data.transforms import crop_grid
from src.data.voxel_counts import VoxelEntry, count_source, read_index, read_voxels, staleness
from src.data.yaml_text import number_text
from src.prepare.content import check_content
from src.prepare.counting import PreparedSplit
from src.prepare.findings import Findings, listed, merged
from src.prepare.frame_checks import check_files
from src.prepare.prepare import PrepareSettings, normalization_texts, scan_folders

logger = logging.getLogger(__name__)

RUN_PREPARE = "run scripts/prepare_data.py with this configuration"
NORM_UNSET = (number_text(0.0), number_text(1.0))  # the defaults of DATA.NORM
HIGHEST_RATE, LOWEST_RATE = 0.98, 0.001  # spikes per pixel and tick


@dataclass(frozen=True)
class Expected:
    """What the configuration says about the data.

    Attributes:
        norm_mean, norm_std: DATA.NORM.
        clip_len: frames of a training clip.
        crop_px: side of a training crop in RGB pixels.
        gain, bin_normalize: how counts enter mean and deviation, DATA.GAIN and DATA.BIN_NORMALIZE.
        has_weights: the model starts from weights, whose training may have had other numbers.
    """

    norm_mean: float
    norm_std: float
    clip_len: int
    crop_px: int
    gain: float = 1.0
    bin_normalize: bool = False
    has_weights: bool = False

    @classmethod
    def of(cls, cfg: CfgNode) -> "Expected":
        """Return what a configuration says."""
        data = cfg.DATA
        return cls(
            norm_mean=data.NORM.MEAN,
            norm_std=data.NORM.STD,
            clip_len=data.CLIP_LEN,
            crop_px=data.CROP_SIZE,
            gain=data.GAIN,
            bin_normalize=data.BIN_NORMALIZE,
            has_weights=bool(cfg.MODEL.PRETRAINED),
        )


def check(settings: PrepareSettings, expected: Expected) -> Findings:
    """Verify the data set; nothing is written."""
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
        findings.include(_check_split(split, settings, expected, log))
    findings.include(check_content(splits, description, settings.scan.num_bins, settings.workers))
    if log is not None:
        findings.problems += check_log_names(log, settings.scan.root, settings.splits)
    if is_whole:  # else mean and deviation are of the rest
        findings.problems += check_normalization(splits, settings.train_split, expected)
    findings.problems += check_description(settings.scan.root, settings.splits, description)
    findings.notes = merged(findings.notes)
    return findings


def _check_split(
    split: PreparedSplit, settings: PrepareSettings, expected: Expected, log: AlignmentLog | None
) -> Findings:
    findings = Findings()
    for scan in split.scans:
        where = f"{split.split}/{scan.name}"
        findings.problems += check_completeness(where, scan)
        findings.problems += [f"{where}: {line}" for line in check_windows(scan)]
        findings.problems += check_stored(split, scan, settings.scan, log)
        recounted = recount_sample(split, scan, settings.scan)
        findings.problems += [f"{where}: {line}" for line in recounted]
        findings.include(check_rates(where, scan.frames, split.entries[scan.name]))
        if split.split == settings.train_split:
            findings.problems += check_crops(scan, settings.scan.num_bins, expected)
    return findings


def read_log(paths: Iterable[Path], problems: list[str]) -> AlignmentLog | None:
    """Return the alignment logs; None where one cannot be read, which is added to the problems."""
    try:
        return read_alignment(paths)
    except BadFileError as error:
        problems.append(str(error))
        return None


def check_completeness(where: str, scan: SequenceScan) -> Iterable[str]:
    """Name frames that lack something, and things that lack a frame."""
    if scan.dropped:
        reasons = by_reason(scan.dropped)
        yield f"{where}: dropped: {reasons}; add what is missing or delete the frames"
    if scan.strays:
        reasons = by_reason(scan.strays)
        yield (f"{where}: without a blurry frame: {reasons}; add the blurry frames or delete these")


def check_windows(scan: SequenceScan) -> Iterable[str]:
    """Name windows of other lengths than the others of the sequence, and those that go back."""
    back = [after.name for before, after in pairwise(scan.frames) if after.t0 < before.t0]
    if back:
        yield f"exposures go back in time ({listed(back)}); correct exposures.csv"
    lengths = Counter(frame.spikes.stop - frame.spikes.start for frame in scan.frames)
    if lengths and max(lengths) - min(lengths) > 1:  # exposures need not be whole ticks long
        usual = lengths.most_common(1)[0][0]
        odd = [
            f"{frame.name} {frame.spikes.stop - frame.spikes.start}"
            for frame in scan.frames
            if frame.spikes.stop - frame.spikes.start != usual
        ]
        yield f"windows have {usual} ticks but {listed(odd)}; correct exposures.csv"


def check_stored(
    split: PreparedSplit, scan: SequenceScan, settings: ScanSettings, log: AlignmentLog | None
) -> list[str]:
    """Compare cache and alignment log of a sequence with its files; fill `split.entries`."""
    where, problems = f"{split.split}/{scan.name}", []
    stale = _check_index(split, scan, settings)
    if stale:
        problems.append(f"{where}: {grouped(stale)}; {RUN_PREPARE}")
    if log is not None:
        records = log.of_sequence(split.split, scan.name)
        problems += [f"{where}: {line}" for line in _check_records(split, scan, records)]
    return problems


def recount_sample(
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
            yield (
                f"{frame.name}: {total} spikes counted now, {entry.event_count} before; delete "
                f"{settings.voxel_dir}/ of this sequence, then {RUN_PREPARE}"
            )
        elif stored is not None and not np.array_equal(counts, stored):
            yield f"{frame.voxels}: differs from the spikes; delete it, then {RUN_PREPARE}"


def grouped(reasons: Mapping[str, str]) -> str:
    """Return `reason (names); reason (names)`."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return "; ".join(f"{reason} ({listed(frames)})" for reason, frames in names.items())


def check_rates(
    where: str, frames: tuple[FrameRecord, ...], entries: Mapping[str, VoxelEntry]
) -> Findings:
    """Look at the share of ones in every counted window: none, all, or hardly any.

    Spikes that somebody else counted have no known number of ticks; only silence is seen there.
    """
    findings = Findings()
    silent, full, rates = [], [], {}
    for frame in frames:
        entry = entries.get(frame.name)
        if entry is None:
            continue
        rate = _rate(frame, entry)
        if entry.event_count == 0:
            silent.append(frame.name)
        elif rate is not None:
            rates[frame.name] = rate
            if rate > HIGHEST_RATE:
                full.append(frame.name)
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
    findings.notes += [f"{where}: {line}" for line in _dark(rates)]
    return findings


def _dark(rates: Mapping[str, float]) -> Iterable[str]:
    dark = [name for name, rate in rates.items() if rate < LOWEST_RATE]
    if dark:
        yield f"hardly a spike, below {LOWEST_RATE:g} per pixel and tick ({listed(dark)})"


def _rate(frame: FrameRecord, entry: VoxelEntry) -> float | None:
    """Return spikes per pixel and tick; None where the ticks are not known."""
    geometry, source = frame.spikes.geometry, frame.spikes
    if geometry is None:
        return None
    return entry.event_count / ((source.stop - source.start) * geometry.height * geometry.width)


def check_crops(scan: SequenceScan, num_bins: int, expected: Expected) -> Iterable[str]:
    """Name a sequence of which no clip or no crop can be taken."""
    if len(scan.frames) < expected.clip_len:
        yield (
            f"{scan.folder}: {len(scan.frames)} usable frames, a clip needs {expected.clip_len}; "
            "no clip is taken from this sequence; lower DATA.CLIP_LEN or delete it"
        )
    recording = Recording(scan.name, scan.frames, num_bins)
    try:
        height, width = recording.frame_size
        if min(height, width) < expected.crop_px:
            yield (
                f"{scan.folder}: frames of {height}x{width} are below the crop {expected.crop_px}; "
                "lower DATA.CROP_SIZE"
            )
        crop_grid((height, width), recording.spike_size, expected.crop_px)
    except BadFileError:
        return  # named before
    except ValueError as error:
        yield f"{scan.folder}: {error}"


def check_log_names(log: AlignmentLog, root: Path, splits: Iterable[str]) -> list[str]:
    """Name the sequences of the alignment log that are no longer there."""
    present: set[str] = set()
    for split in splits:
        if (root / split).is_dir():
            names = [folder.name for folder in list_sequences(root / split)]
            present.update(names, (f"{split}/{name}" for name in names))
    gone = sorted(set(log.records) - present)
    logs = ", ".join(map(str, log.paths))
    return [f"{logs}: sequences {gone} do not exist; {RUN_PREPARE}"] if gone else []


def check_normalization(
    splits: list[PreparedSplit], train_split: str, expected: Expected
) -> list[str]:
    """Compare DATA.NORM with mean and deviation of what was counted.

    A model that starts from weights of another data set keeps the numbers of that one: then a
    difference is only logged.
    """
    if not any(s.entries[scan.name] for s in splits if s.split == train_split for scan in s.scans):
        return [f"{train_split}: no prepared frame, so DATA.NORM is not checked; {RUN_PREPARE}"]
    try:
        found = normalization_texts(splits, train_split, expected.gain, expected.bin_normalize)
    except DataSetError as error:
        return problems_of(error)
    given = (number_text(expected.norm_mean), number_text(expected.norm_std))
    if found == given:
        return []
    difference = (
        f"DATA.NORM: MEAN {given[0]}, STD {given[1]} in the configuration, the training split has "
        f"{found[0]}, {found[1]}"
    )
    if expected.has_weights and given != NORM_UNSET:
        logger.warning("%s; right if MODEL.PRETRAINED was trained with the former", difference)
        return []
    return [f"{difference}; {RUN_PREPARE}"]


def check_description(
    root: Path, splits: tuple[str, ...], description: DataDescription | None
) -> Iterable[str]:
    """Compare the description with the files as they are."""
    if description is None:
        yield f"{root / FILE_NAME}: missing; {RUN_PREPARE}"
        return
    try:
        now = fingerprint_data(root, splits)
    except FileNotFoundError:
        return  # named before
    for change in fingerprint_differences(description.fingerprint, now):
        yield (
            f"{root / FILE_NAME}: {change}; if the change is meant, {RUN_PREPARE}, else bring the "
            "old files back"
        )
    present = {
        f"{split}/{folder.name}" for split in splits for folder in list_sequences(root / split)
    }
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


def _check_index(
    split: PreparedSplit, scan: SequenceScan, settings: ScanSettings
) -> dict[str, str]:
    """Return what is wrong with stored voxels by frame name; fill `split.entries`."""
    index = read_index(scan.folder / settings.voxel_dir)
    fresh, stale = {}, {}
    for frame in scan.frames:
        entry = index.get(frame.name)
        try:
            why = staleness(entry, frame.spikes, settings.num_bins, frame.voxels)
        except BadFileError as error:
            why = str(error)
        if why is not None:
            stale[frame.name] = why
        elif entry is not None:
            fresh[frame.name] = entry
    split.entries[scan.name] = fresh
    return stale


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
        yield f"{grouped(wrong)}; {RUN_PREPARE}"
    if extra:
        yield f"the alignment log has records of frames {extra} that cannot be used; {RUN_PREPARE}"


def _count_twice(frame: FrameRecord, num_bins: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the counts from the source, and those in the cache."""
    counts = count_source(frame.spikes, num_bins)
    return counts, None if frame.voxels is None else read_voxels(frame.voxels, num_bins)
