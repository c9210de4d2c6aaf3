"""Make the sequences of a source plan: resumable, in several processes, in shards.

Every sequence is written into a hidden folder beside its place, which is renamed when it is
complete and holds `source.json`, the record of all that it depends on. So a kill at any time costs
the sequences at hand, and the same command goes on. One sequence is never made with two sets of
options.
"""

import logging
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from tqdm import tqdm

from src.data.errors import BadFileError, DataSetError, problems_of
from src.data.parallel import start_worker
from src.prepare.sources.output import (
    check_root,
    disk_use,
    put_in_place,
    read_record,
    remove_abandoned,
    write_root_description,
)
from src.prepare.sources.source import Caches, ClipJob, SourcePlan

logger = logging.getLogger(__name__)

POLL_S = 0.2


@dataclass(frozen=True)
class _Result:
    """What became of a sequence: its notes, or why it could not be made."""

    clip: str
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def run_plan(
    plan: SourcePlan,
    root: str | Path,
    *,
    workers: int,
    shard: tuple[int, int] = (0, 1),
    caches: Caches | None = None,
) -> list[str]:
    """Make what is missing of a plan below a data root.

    What it needs on the disk is logged before it starts. A sequence that fails does not keep the
    others from being made.

    Args:
        plan: what to make.
        root: DATA_ROOT.
        workers: processes, each with one sequence.
        shard: (i, n): make sequences i, i + n, i + 2n ... only.
        caches: what preparation writes afterwards, for the estimate of disk use; None: nothing.

    Returns:
        what was done, one line each.

    Raises:
        DataSetError: the root holds something else, the disk is too small, or sequences that could
            not be made, all of them.
    """
    root = Path(root)
    number, count = shard
    mine = plan.jobs[number::count]
    check_root(plan, root)
    missing = [job for job in mine if read_record(root, job) is None]
    uses = disk_use(missing, plan.description, root, caches or Caches())
    for line in (*plan.notes, *_missing_splits(plan), *uses):
        logger.info(line)
    write_root_description(root, plan.description)
    remove_abandoned(root, {job.split for job in plan.jobs})
    results = [
        _Result(f"{job.split}/{job.name}", tuple(record["notes"]))
        for job in mine
        if (record := read_record(root, job)) is not None
    ]
    lines = [f"{len(results)} sequences were there already"] if results else []
    made = list(_make_all(missing, root, workers))
    problems = [problem for result in made for problem in result.problems]
    if problems:
        done = len(made) - sum(bool(result.problems) for result in made)
        kept = f"{done} of {len(missing)} sequences were made and are kept; run it again"
        raise DataSetError(f"{root}: {kept}", problems)
    if made:
        lines.append(f"{len(made)} sequences made")
    for result in sorted([*results, *made], key=lambda result: result.clip):
        where = f"{result.clip}: "
        lines += [note if note.startswith(where) else where + note for note in result.notes]
    return lines


def _missing_splits(plan: SourcePlan) -> list[str]:
    """Say which split a training needs beside those of the plan."""
    missing = {"train", "val"} - {job.split for job in plan.jobs}
    return [
        f"no clips for {split}: a training needs {split} too; get them, or make that folder from "
        "some of the other sequences"
        for split in sorted(missing)
    ]


def _make_all(jobs: Sequence[ClipJob], root: Path, workers: int) -> Iterator[_Result]:
    """Make sequences in this process or in several, with a progress bar over source frames."""
    total = sum(job.num_units for job in jobs)
    bar = tqdm(total=total, desc="filming", unit="frame", disable=not sys.stderr.isatty())
    with bar:
        if min(workers, len(jobs)) <= 1:
            for job in jobs:
                yield _make(job, root, bar.update)
            return
        yield from _make_parallel(jobs, root, min(workers, len(jobs)), bar)


def _make_parallel(
    jobs: Sequence[ClipJob], root: Path, workers: int, bar: tqdm
) -> Iterator[_Result]:
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    # The longest first, so that no process waits for another at the end.
    order = sorted(jobs, key=lambda job: -job.num_units)
    with ProcessPoolExecutor(workers, context, _start_worker, (counter,)) as pool:
        waiting = {pool.submit(_make_counting, job, root) for job in order}
        try:
            while waiting:
                done, waiting = wait(waiting, POLL_S, FIRST_COMPLETED)
                bar.update(counter.value - bar.n)
                yield from map(Future.result, done)
        except BrokenProcessPool as error:
            reason = (
                "a worker process was killed, probably for lack of memory; finished sequences are "
                "kept, run the same command again with fewer --workers"
            )
            raise DataSetError(str(root), [reason]) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _make(job: ClipJob, root: Path, advance: Callable[[int], object]) -> _Result:
    """Make one sequence; only what is wrong with its input is caught."""
    clip = f"{job.split}/{job.name}"
    try:
        with put_in_place(root, job) as (folder, notes):
            notes += job.write(folder, advance)
    except (BadFileError, DataSetError) as error:
        where = f"{clip}: "  # some lines begin so already
        named = (where + line.removeprefix(where) for line in problems_of(error))
        return _Result(clip, problems=tuple(named))
    except OSError as error:  # a full disk, a drive that is gone
        return _Result(clip, problems=(f"{clip}: {error}",))
    return _Result(clip, tuple(notes))


class _Worker:
    """What a worker process holds."""

    counter: Synchronized | None = None


def _start_worker(counter: Synchronized) -> None:
    start_worker()
    _Worker.counter = counter


def _make_counting(job: ClipJob, root: Path) -> _Result:
    counter = _Worker.counter

    def advance(units: int) -> None:
        with counter.get_lock():
            counter.value += units

    return _make(job, root, advance)
