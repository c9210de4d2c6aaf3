"""Look into a sample of every sequence: do blur, sharp and spikes show the same at one time."""

from dataclasses import dataclass

from src.data.description import DataDescription
from src.data.errors import BadFileError
from src.data.parallel import run_parallel
from src.data.recordings import FrameRecord
from src.prepare.check_pairs import check_pairs
from src.prepare.check_reading import (
    find_other_threshold,
    find_unlike,
    find_wrong_way,
    sample_readings,
)
from src.prepare.check_timing import check_timing
from src.prepare.counting import PreparedSplit
from src.prepare.findings import Findings
from src.prepare.neighbours import TOO_STILL, check_neighbours

MAX_SEEN = 50  # lines about sequences that are right


@dataclass(frozen=True)
class ContentTask:
    """One sequence for one process; see `SequenceScan` for the fields."""

    where: str
    frames: tuple[FrameRecord, ...]
    ticks_per_second: float | None
    description: DataDescription | None
    num_bins: int = 32


def check_content(
    splits: list[PreparedSplit], description: DataDescription | None, num_bins: int, workers: int
) -> Findings:
    """Check samples of all sequences, in several processes."""
    tasks = [
        ContentTask(
            f"{split.split}/{scan.name}",
            scan.frames,
            scan.ticks_per_second,
            description,
            num_bins,
        )
        for split in splits
        for scan in split.scans
        if scan.frames
    ]
    results = dict(run_parallel(look_at, tasks, workers, "comparing blur, sharp and spikes"))
    findings = Findings()
    for number in sorted(results):
        findings.include(results[number])
    more = len(findings.seen) - MAX_SEEN
    if more > 0:
        findings.seen[MAX_SEEN:] = [f"{more} more sequences show their sharp frames as stated"]
    return findings


def look_at(task: ContentTask) -> Findings:
    """Check one sequence; a file that cannot be read ends its check, and is named elsewhere."""
    findings = Findings()
    try:
        findings.include(check_pairs(task.where, task.frames))
        readings = sample_readings(task.frames)
        wrong_way = find_wrong_way(task.where, task.frames[0], readings)
        if wrong_way:  # then the picture at another time means nothing
            findings.problems.append(wrong_way)
            return findings
        other_threshold = find_other_threshold(task.where, readings, task.description)
        findings.notes += [other_threshold] if other_threshold else []
        timing = check_timing(task.where, task.frames, task.ticks_per_second, task.description)
        findings.include(timing)
        near = check_neighbours(task.where, task.frames, task.num_bins)
        if timing.seen or timing.problems:  # to the tick, in most frames: that says more
            near.seen.clear()
            near.notes = [line for line in near.notes if TOO_STILL not in line]
        findings.include(near)
        unlike = find_unlike(task.where, readings)
        is_shifted = timing.problems or near.problems  # such windows look unlike, too
        if unlike and not is_shifted:
            findings.problems.append(unlike)
    except BadFileError as error:
        findings.notes.append(f"{task.where}: not compared: {error}")
    return findings
