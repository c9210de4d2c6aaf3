"""Make the sequences of a source plan: resumable, in several processes, in shards.

Every sequence is written into a hidden folder beside its final one, which is renamed when it is
complete and holds `source.json`, the record of all that it depends on. So a kill at any time costs
the sequences at hand, and the same command resumes. One data root is never made with two sets of
options.
"""

import dataclasses
import json
import logging
import os
import shutil
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from src.data.description import DataDescription, read_description, write_description
from src.data.errors import BadFileError, DataSetError, problems_of
from src.data.frames import list_sequences
from src.data.parallel import is_locked, locked, run_parallel
from src.paths import atomic_write
from src.prepare.sources.plan import OUR_SPLITS, PlannedSequence, SourcePlan

logger = logging.getLogger(__name__)

RECORD_NAME = "source.json"
PARTIAL = ".making-"
MAX_NAMED = 5
SPARE_BYTES = 100 << 20
DECODED = "decoded training frames"
# What older records do not say; where it is missing, nothing can be compared.
ADDED_TO_RECORDS = ("spikes_sha256", "frames_sha256")


@dataclass(frozen=True)
class Caches:
    """What preparation writes beside a source's own files, for the estimate of disk use.

    Attributes:
        num_bins: K of the voxels; None: voxels are not stored.
        frame_downscale: RGB pixels per spike pixel in each direction, of the decoded training
            frames; None: frames are not stored.
    """

    num_bins: int | None = None
    frame_downscale: int | None = None


@dataclass(frozen=True)
class _Result:
    """What became of a sequence: its notes, or why it could not be made."""

    sequence: str
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def run_plan(
    plan: SourcePlan,
    root: str | Path,
    *,
    workers: int,
    shard: tuple[int, int] = (0, 1),
    caches: Caches = Caches(),
) -> list[str]:
    """Make what is missing of a plan below a data root.

    What it needs on the disk is logged before it starts. A sequence that fails does not keep the
    others from being made.

    Args:
        plan: what to make.
        root: DATA_ROOT.
        workers: processes, each with one sequence.
        shard: (i, n): make sequences i, i + n, i + 2n ... only.
        caches: what preparation writes afterwards, for the estimate of disk use.

    Returns:
        what was done, one line each.

    Raises:
        DataSetError: the root holds something else, the disk is too small, or sequences that could
            not be made, all of them.
    """
    root = Path(root)
    number, count = shard
    mine = plan.sequences[number::count]
    check_root(plan, root)
    records = [(sequence, read_record(root, sequence)) for sequence in mine]
    missing = [sequence for sequence, record in records if record is None]
    uses = disk_use(missing, plan.description, root, caches)
    for line in (*plan.notes, *_missing_splits(plan), *uses):
        logger.info(line)
    write_root_description(root, plan.description)
    remove_abandoned(root, {sequence.split for sequence in plan.sequences})
    present = [_Result(_name(s), tuple(record["notes"])) for s, record in records if record]
    # The longest first, so that no process waits for another at the end.
    missing.sort(key=lambda sequence: -sequence.num_inputs)
    results = run_parallel(partial(_make, root=root), missing, workers, "making sequences")
    made = [result for _, result in results]
    problems = [problem for result in made for problem in result.problems]
    if problems:
        done = len(made) - sum(bool(result.problems) for result in made)
        kept = f"{done} of {len(missing)} sequences were made and are kept; run it again"
        raise DataSetError(f"{root}: {kept}", problems)
    lines = [f"{len(present)} sequences were there already"] if present else []
    lines += [f"{len(made)} sequences made"] if made else []
    for result in sorted([*present, *made], key=lambda result: result.sequence):
        lines += [_placed(result.sequence, note) for note in result.notes]
    return lines


def _name(sequence: PlannedSequence) -> str:
    return f"{sequence.split}/{sequence.name}"


def _placed(where: str, line: str) -> str:
    """Return a line that begins with the sequence it is about; some begin so already."""
    return f"{where}: {line.removeprefix(f'{where}: ')}"


def _missing_splits(plan: SourcePlan) -> list[str]:
    """Say which split a training needs beside those of the plan."""
    missing = {"train", "val"} - {sequence.split for sequence in plan.sequences}
    return [
        f"no sequences for {split}: a training needs {split} too; download them, or make that "
        "folder from some of the other sequences"
        for split in sorted(missing)
    ]


def _make(sequence: PlannedSequence, root: Path) -> _Result:
    """Make one sequence; only what is wrong with its input is caught."""
    where = _name(sequence)
    try:
        with put_in_place(root, sequence) as (folder, notes):
            notes += sequence.write(folder)
    except (BadFileError, DataSetError) as error:
        return _Result(where, problems=tuple(_placed(where, x) for x in problems_of(error)))
    except OSError as error:  # a full disk, a drive that is gone
        return _Result(where, problems=(f"{where}: {error}",))
    return _Result(where, tuple(notes))


# ---------------------------------------------------------------- what a data root holds


def check_root(plan: SourcePlan, root: Path) -> None:
    """Refuse a data root that holds something else than a part of this plan.

    Raises:
        DataSetError: another description, sequences from elsewhere or with other options. Deleting
            is advised only where all of them were made by this command.
    """
    present = read_description(root)
    if present is not None and _pins_nothing(root, present):
        present = None  # `write_root_description` replaces it
    differences = _description_problems(plan.description, present)
    problems = list(differences)
    planned = {(sequence.split, sequence.name): sequence for sequence in plan.sequences}
    for split in dict.fromkeys(sequence.split for sequence in plan.sequences):
        for folder in list_sequences(root / split) if (root / split).is_dir() else []:
            sequence = planned.get((split, folder.name))
            if sequence is None:
                problems += _foreign(folder)
            elif not differences:  # else every sequence would say the same again
                problems += _changed(folder, sequence)
    if problems:
        more = len(problems) - MAX_NAMED
        named = problems[:MAX_NAMED] + ([f"and {more} more"] if more > 0 else [])
        advice = "nothing was changed; choose an empty DATA.ROOT"
        is_all_ours = all((folder / RECORD_NAME).is_file() for folder in _folders_of(root))
        advice += ", or delete what is there" if is_all_ours else ""
        raise DataSetError(str(root), [*named, advice])


def _folders_of(root: Path) -> list[Path]:
    splits = [root / split for split in OUR_SPLITS.values() if (root / split).is_dir()]
    return [folder for split in splits for folder in list_sequences(split)]


def _description_problems(wanted: DataDescription, present: DataDescription | None) -> list[str]:
    """Say how the description of a root differs from that of the plan.

    What further sequences add to it is no difference.
    """
    if present is None:
        return []
    made = dataclasses.replace(present, fingerprint=(), content="unknown", content_of="")
    before, now = _of_all_sequences(present), _of_all_sequences(wanted)
    if all(set(before[name]) <= set(now[name]) for name in before):
        made = dataclasses.replace(made, **now)
    return [
        f"dataset.yaml says {field}: {was!r}, now it would be {is_now!r}"
        for field, was, is_now in _differences(*map(dataclasses.asdict, (made, wanted)))
    ]


def _of_all_sequences(description: DataDescription) -> dict[str, tuple]:
    """Return what a description collects from its sequences; each has it in its record, too."""
    return {name: getattr(description, name) for name in ("frames_averaged", "offsets")}


def write_root_description(root: Path, description: DataDescription) -> None:
    """Write dataset.yaml before the first sequence, so that no other options get in between.

    One of a run in which nothing was made is replaced; to one of fewer sequences those that come
    are added.
    """
    present = read_description(root)
    if present is None or (present != description and _pins_nothing(root, present)):
        write_description(root, description)
    elif _of_all_sequences(present) != _of_all_sequences(description):
        write_description(root, dataclasses.replace(present, **_of_all_sequences(description)))


def _pins_nothing(root: Path, present: DataDescription) -> bool:
    """Whether no sequence was made or is being made under a description."""
    is_at_work = any(is_locked(lock) for lock in root.glob(f"*/{PARTIAL}*.lock"))
    return not (present.fingerprint or _folders_of(root) or is_at_work)


# ---------------------------------------------------------------- one sequence


def read_record(root: Path, sequence: PlannedSequence) -> Mapping[str, object] | None:
    """Return the record of a finished sequence, None where it is not there.

    Raises:
        DataSetError: it was made with other options or from other files.
    """
    folder = root / sequence.split / sequence.name
    if not folder.exists():
        return None
    problems = _changed(folder, sequence)
    if problems:
        raise DataSetError(str(root), problems)
    return _load(folder)


@contextmanager
def put_in_place(root: Path, sequence: PlannedSequence) -> Iterator[tuple[Path, list[str]]]:
    """Yield a hidden folder and a list for notes; rename the folder to its name at the end.

    A lock beside the folder says that its owner lives. On an error the folder is removed.

    Raises:
        DataSetError: meanwhile something else was put there.
    """
    final = root / sequence.split / sequence.name
    final.parent.mkdir(parents=True, exist_ok=True)
    hidden = final.with_name(f"{PARTIAL}{socket.gethostname()}-{os.getpid()}-{sequence.name}")
    lock = hidden.with_name(f"{hidden.name}.lock")
    notes: list[str] = []
    try:
        with locked(lock):
            shutil.rmtree(hidden, ignore_errors=True)  # of an earlier process with this number
            hidden.mkdir()
            yield hidden, notes
            with atomic_write(hidden / RECORD_NAME) as partial_file:
                record = {"identity": dict(sequence.identity), "notes": notes}
                partial_file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            try:
                hidden.rename(final)
            except OSError:
                if read_record(root, sequence) is None:  # else another run made the same meanwhile
                    raise
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        lock.unlink(missing_ok=True)


def remove_abandoned(root: Path, splits: Collection[str]) -> None:
    """Remove the hidden folders of processes that are gone; those of living ones stay."""
    for split in splits:
        for lock in (root / split).glob(f"{PARTIAL}*.lock"):
            if not is_locked(lock):
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink(missing_ok=True)


def _load(folder: Path) -> Mapping[str, object]:
    """Return {"identity": {...}, "notes": [...]}."""
    path = folder / RECORD_NAME
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {"identity": record["identity"], "notes": record["notes"]}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadFileError(path, f"is no record of a source: {error!r}") from error


def _changed(folder: Path, sequence: PlannedSequence) -> list[str]:
    """Say how a sequence differs from what would be made now."""
    if not (folder / RECORD_NAME).is_file():
        return _foreign(folder)
    try:
        was = _load(folder)["identity"]
    except BadFileError as error:
        return [str(error)]
    now = json.loads(json.dumps(dict(sequence.identity)))
    now = {key: value for key, value in now.items() if key in was or key not in ADDED_TO_RECORDS}
    differences = [f"{key} {a!r}, now {b!r}" for key, a, b in _differences(was, now)]
    return [f"{folder} was made with {'; '.join(differences)}"] if differences else []


def _foreign(folder: Path) -> list[str]:
    if not (folder / RECORD_NAME).is_file():
        return [f"{folder} was not made by this command: it has no {RECORD_NAME}"]
    return [f"{folder} is not one of the sequences that would be made"]


def _differences(
    old: Mapping[str, object], new: Mapping[str, object]
) -> Iterator[tuple[str, object, object]]:
    for key in dict.fromkeys((*old, *new)):
        was, now = old.get(key), new.get(key)
        if was != now:
            yield key, was, now


# ---------------------------------------------------------------- disk


def disk_use(
    sequences: Sequence[PlannedSequence], description: DataDescription, root: Path, caches: Caches
) -> list[str]:
    """Say what sequences and the caches of them will take; refuse a disk that is too small.

    Decoded frames are optional: where they do not fit, preparation leaves them out.

    Raises:
        DataSetError: less room than frames, spikes and voxels need.
    """
    if not sequences:
        return ["all sequences are there, nothing to make"]
    hours = sum(sequence.seconds for sequence in sequences) / 3600
    exposures = sum(sequence.num_exposures for sequence in sequences)
    sizes = {"frames and spikes": sum(sequence.out_bytes for sequence in sequences)}
    spike_px = (description.spike_height or 0) * (description.spike_width or 0)
    if spike_px and caches.num_bins is not None:
        sizes["voxels"] = exposures * caches.num_bins * spike_px
    if spike_px and caches.frame_downscale is not None:
        frame_bytes = 3 * spike_px * caches.frame_downscale**2
        training = sum(s.num_exposures for s in sequences if s.split == "train")
        sizes[DECODED] = 2 * training * frame_bytes
    parts = [f"{_size(n)} for {what} ({_size(n / hours)} per hour)" for what, n in sizes.items()]
    if not spike_px:
        parts.append("caches not counted, as sequences differ in size")
    existing = next(folder for folder in (root, *root.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    num_inputs = sum(sequence.num_inputs for sequence in sequences)
    lines = [
        f"{len(sequences)} sequences to make: {num_inputs} frames and files to read, "
        f"{hours * 3600:.1f} s of video, {exposures} blurry frames",
        f"disk, and per hour of video, about: {', '.join(parts)}; {_size(free)} are free",
    ]
    if sum(sizes.values()) - sizes.get(DECODED, 0) + SPARE_BYTES > free:
        advice = "free some, choose another DATA.ROOT, or set DATA.USE_PRECOMPUTED_VOXELS false"
        raise DataSetError(str(root), [*lines, f"that is too little; {advice}"])
    return lines


def _size(num_bytes: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 1e3:.0f} kB"
