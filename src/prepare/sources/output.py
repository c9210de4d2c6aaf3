"""Where sequences of a source are put: what may lie there, how they get there, what they need."""

import dataclasses
import json
import os
import shutil
import socket
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from src.data.description import DataDescription, read_description, write_description
from src.data.errors import BadFileError, DataSetError
from src.data.fingerprint import list_sequences
from src.paths import atomic_write
from src.prepare.sources.source import OUR_SPLITS, Caches, ClipJob, SourcePlan

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

RECORD_NAME = "source.json"
PARTIAL = ".making-"
MAX_NAMED = 5
SPARE_BYTES = 100 << 20
DECODED = "decoded training frames"
# What older records do not say; where it is missing, nothing can be compared.
ADDED_TO_RECORDS = ("spikes_sha256", "frames_sha256")


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
    jobs = {(job.split, job.name): job for job in plan.jobs}
    for split in dict.fromkeys(job.split for job in plan.jobs):
        folders = list_sequences(root / split) if (root / split).is_dir() else []
        for folder in folders:
            job = jobs.get((split, folder.name))
            if job is None:
                problems += _foreign(folder)
            elif not differences:  # else every sequence would say the same again
                problems += _changed(folder, job)
    if problems:
        more = len(problems) - MAX_NAMED
        named = problems[:MAX_NAMED] + ([f"and {more} more"] if more > 0 else [])
        advice = "nothing was changed; choose an empty DATA.ROOT"
        advice += ", or delete what is there" if _is_all_made_here(root) else ""
        raise DataSetError(str(root), [*named, advice])


def _is_all_made_here(root: Path) -> bool:
    """Whether every sequence of a root was made by this command and can be made again."""
    splits = [root / split for split in OUR_SPLITS.values() if (root / split).is_dir()]
    folders = [folder for split in splits for folder in list_sequences(split)]
    return all((folder / RECORD_NAME).is_file() for folder in folders)


def _description_problems(wanted: DataDescription, present: DataDescription | None) -> list[str]:
    """Say how the description of a root differs from that of the plan.

    What further sequences add to it is no difference.
    """
    if present is None:
        return []
    made = dataclasses.replace(present, fingerprint=(), content="unknown", content_of="")
    if _grows(present, wanted):
        made = dataclasses.replace(made, **_of_all_sequences(wanted))
    sides = (made, wanted)
    return [
        f"dataset.yaml says {field}: {was!r}, now it would be {now!r}"
        for field, was, now in _differences(*map(dataclasses.asdict, sides))
    ]


def _grows(present: DataDescription, wanted: DataDescription) -> bool:
    """Whether the plan has all that a description says of its sequences, and may have more."""
    before, now = _of_all_sequences(present), _of_all_sequences(wanted)
    return all(set(before[name]) <= set(now[name]) for name in before)


def _of_all_sequences(description: DataDescription) -> dict[str, tuple]:
    """Return what a description collects from its sequences; each has it in its record, too."""
    return {name: getattr(description, name) for name in ("frames_averaged", "offsets")}


def read_record(root: Path, job: ClipJob) -> Mapping[str, object] | None:
    """Return the record of a finished sequence, None where it is not there.

    Raises:
        DataSetError: it was made with other options or from other files.
    """
    folder = root / job.split / job.name
    if not folder.exists():
        return None
    problems = _changed(folder, job)
    if problems:
        raise DataSetError(str(root), problems)
    return _load(folder)


@contextmanager
def put_in_place(root: Path, job: ClipJob) -> Iterator[tuple[Path, list[str]]]:
    """Yield a hidden folder and a list for notes; rename the folder to its place at the end.

    A lock beside the folder says that its owner lives. On an error the folder is removed.

    Raises:
        DataSetError: meanwhile something else was put there.
    """
    place = root / job.split / job.name
    place.parent.mkdir(parents=True, exist_ok=True)
    hidden = place.with_name(f"{PARTIAL}{socket.gethostname()}-{os.getpid()}-{job.name}")
    lock = hidden.with_name(f"{hidden.name}.lock")
    notes: list[str] = []
    try:
        with lock.open("w") as handle:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX)
            shutil.rmtree(hidden, ignore_errors=True)  # of an earlier process with this number
            hidden.mkdir()
            yield hidden, notes
            _save(hidden, job, notes)
            _rename(hidden, root, job)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        lock.unlink(missing_ok=True)


def remove_abandoned(root: Path, splits: Collection[str]) -> None:
    """Remove the hidden folders of processes that are gone; those of living ones stay."""
    for split in splits:
        for lock in (root / split).glob(f"{PARTIAL}*.lock"):
            if _is_free(lock):
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink(missing_ok=True)


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
    if present.fingerprint:
        return False
    splits = [root / split for split in OUR_SPLITS.values() if (root / split).is_dir()]
    is_made = any(list_sequences(split) for split in splits)
    locks = [lock for split in splits for lock in split.glob(f"{PARTIAL}*.lock")]
    return not is_made and all(_is_free(lock) for lock in locks)


def disk_use(
    jobs: Sequence[ClipJob], description: DataDescription, root: Path, caches: Caches
) -> list[str]:
    """Say what the jobs and the caches of their results will take; refuse a disk too small.

    Decoded frames count as a wish: where they do not fit, preparation leaves them out.

    Raises:
        DataSetError: less room than frames, spikes and voxels need.
    """
    if not jobs:
        return ["all sequences are there, nothing to make"]
    hours = sum(job.seconds for job in jobs) / 3600
    sizes = {"frames and spikes": sum(job.out_bytes for job in jobs)}
    if description.spike_height is not None:
        sizes |= _cache_sizes(jobs, description.spike_height * description.spike_width, caches)
    parts = [f"{_size(n)} for {what} ({_size(n / hours)} per hour)" for what, n in sizes.items()]
    if description.spike_height is None:
        parts.append("caches not counted, as sequences differ in size")
    existing = next(folder for folder in (root, *root.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    num_units = sum(job.num_units for job in jobs)
    lines = [
        f"{len(jobs)} sequences to make: {num_units} frames and files to read, "
        f"{hours * 3600:.1f} s of video, {sum(job.num_exposures for job in jobs)} blurry frames",
        f"disk, and per hour of video, about: {', '.join(parts)}; {_size(free)} are free",
    ]
    if sum(sizes.values()) - sizes.get(DECODED, 0) + SPARE_BYTES > free:
        advice = "free some, choose another DATA.ROOT, or set DATA.USE_PRECOMPUTED_VOXELS false"
        raise DataSetError(str(root), [*lines, f"that is too little; {advice}"])
    return lines


def _cache_sizes(jobs: Sequence[ClipJob], spike_px: int, caches: Caches) -> dict[str, int]:
    """Return bytes by kind: counts of every exposure, RGB of two frames of each of training."""
    sizes = {}
    if caches.num_bins is not None:
        sizes["voxels"] = sum(job.num_exposures for job in jobs) * caches.num_bins * spike_px
    if caches.frame_downscale is not None:
        frame_bytes = 3 * spike_px * caches.frame_downscale**2
        num_training = sum(job.num_exposures for job in jobs if job.split == "train")
        sizes[DECODED] = 2 * num_training * frame_bytes
    return sizes


def _rename(hidden: Path, root: Path, job: ClipJob) -> None:
    try:
        hidden.rename(root / job.split / job.name)
    except OSError:
        if read_record(root, job) is None:  # else another run made the same meanwhile
            raise


def _save(folder: Path, job: ClipJob, notes: list[str]) -> None:
    with atomic_write(folder / RECORD_NAME) as partial:
        record = {"identity": dict(job.identity), "notes": notes}
        partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _load(folder: Path) -> Mapping[str, object]:
    """Return {"identity": {...}, "notes": [...]}."""
    path = folder / RECORD_NAME
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        identity, notes = record["identity"], record["notes"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadFileError(path, f"is no record of a source: {error!r}") from error
    return {"identity": identity, "notes": notes}


def _changed(folder: Path, job: ClipJob) -> list[str]:
    """Say how a sequence differs from what the job would make."""
    if not (folder / RECORD_NAME).is_file():
        return _foreign(folder)
    try:
        was = _load(folder)["identity"]
    except BadFileError as error:
        return [str(error)]
    now = json.loads(json.dumps(dict(job.identity)))
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


def _is_free(lock: Path) -> bool:
    """Whether nobody holds a lock file."""
    if fcntl is None:  # Windows does not delete files that are open
        try:
            lock.unlink()
        except OSError:
            return False
        return True
    try:
        with lock.open("r+") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _size(num_bytes: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 1e3:.0f} kB"
