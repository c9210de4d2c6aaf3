"""Check what was counted: windows, stored voxels, the alignment log, and a sample counted anew."""

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise

import numpy as np

from src.data.errors import BadFileError
from src.data.exposures import AlignmentLog, Exposure
from src.data.recordings import FrameRecord
from src.data.scanning import ScanSettings, SequenceScan, by_reason
from src.data.voxel_counts import count_source, read_index, read_voxels, staleness
from src.prepare.counting import PreparedSplit
from src.prepare.findings import listed

RUN_PREPARE = "run scripts/prepare_data.py with this configuration"


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
