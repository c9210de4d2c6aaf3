"""Make DATA.ROOT from a downloaded data set: the options of it, and the sequences of its plan.

Every sequence is written into a hidden folder beside its final one, which is renamed when it is
complete and holds `source.json`, the record of all that it depends on. So a kill at any time costs
the unfinished sequences, and the same command resumes. One data root is never made with two sets of
options.
"""

import argparse
import dataclasses
import json
import logging
import math
import os
import re
import shutil
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from yacs.config import CfgNode

from src.data.description import DataDescription, read_description, write_description
from src.data.errors import BadFileError, DataSetError, naming_record, problems_of
from src.data.parallel import is_locked, locked, run_parallel
from src.data.scanning import scan_settings
from src.data.simulation.simulator import TRANSFERS
from src.paths import atomic_write, folder_problem
from src.prepare.sources import folders, gopro, planning, spk_gopro, x4k1000fps

logger = logging.getLogger(__name__)

SOURCES: Mapping[str, Callable[[planning.SourceOptions], planning.SourcePlan]] = {
    "folders": folders.plan,
    "gopro": gopro.plan,
    "spk_gopro": spk_gopro.plan,
    "x4k1000fps": x4k1000fps.plan,
}
WHOLE = (0, 1)
RECORD_NAME = "source.json"
PARTIAL = ".making-"
MAX_NAMED = 5
SPARE_BYTES = 100 << 20
# What older records do not say; where it is missing, nothing can be compared.
ADDED_TO_RECORDS = ("spikes_sha256", "frames_sha256")
# What a description collects of its sequences, which have it in their records, and what preparation
# adds to it.
NOT_COMPARED = ("frames_averaged", "offsets", "fingerprint", "content", "content_of")


# ---------------------------------------------------------------- options of prepare_data.py


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--source`, `--input`, `--shard` and the fields of `SourceOptions`."""
    group = parser.add_argument_group(
        "sources", "make DATA.ROOT from a data set as it was downloaded, then prepare it"
    )
    group.add_argument("--source", choices=sorted(SOURCES), help="which data set it is")
    group.add_argument("--input", type=Path, metavar="DIR", help="where it was unpacked")
    group.add_argument("--shard", type=_shard, default=WHOLE, metavar="I/N", help="part I of N")
    group.add_argument(
        "--blur_kind", choices=tuple(planning.BLUR_GAMMAS), help="mean of values or light"
    )
    group.add_argument("--threshold", type=float, help="of the simulated spike camera; 2.0")
    group.add_argument("--transfer", choices=TRANSFERS, help="what it integrates; encoded")
    group.add_argument("--downscale", type=int, metavar="N", help="RGB per spike pixel; 2")
    group.add_argument("--interpolator", choices=("none", "linear"), help="of light between frames")
    group.add_argument("--ticks_per_frame", type=int, metavar="N", help="readouts per frame")
    group.add_argument("--frames_averaged", type=int, metavar="N", help="in a blurry frame")
    group.add_argument("--stride", type=int, metavar="N", help="from exposure to exposure")
    group.add_argument("--frames_per_second", type=float, metavar="F", help="of the source")
    group.add_argument("--seed", type=int, help="of the simulated spike camera; 0")
    group.add_argument("--axes", help="order of the axes of spike arrays, such as THW")
    group.add_argument("--key", help="name of the spike array in its container")
    group.add_argument("--columns", help="order of the columns of event lists; tyxp")


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r}: parts of 4 are 0/4, 1/4, 2/4 and 3/4")
    return int(match[1]), int(match[2])


def source_options(given: argparse.Namespace) -> planning.SourceOptions | None:
    """Return what the command line says of a source; None without `--source`."""
    names = [field.name for field in dataclasses.fields(planning.SourceOptions)]
    values = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    if given.source is None:
        unused = [f"--{name}" for name in values if name != "accept"]  # which preparation has, too
        unused += ["--shard"] * (given.shard != WHOLE)
        if unused:
            raise DataSetError("options", [f"{', '.join(unused)}: only with --source"])
        return None
    if "input" not in values:
        raise DataSetError("options", ["--source needs --input, the folder that was downloaded"])
    if not given.input.is_dir():
        raise DataSetError("options", [f"--input {given.input}: no such folder"])
    # Folders are known by their names, also where "." was given; links keep theirs.
    values["input"] = Path(os.path.abspath(given.input))  # noqa: PTH100
    return planning.SourceOptions(**values)


def make_from_source(
    name: str, options: planning.SourceOptions, cfg: CfgNode, shard: tuple[int, int], workers: int
) -> list[str]:
    """Make the sequences of DATA.ROOT; return what was done."""
    if (cfg.DATA.TRAIN_SPLIT, cfg.DATA.VAL_SPLIT) != ("train", "val"):
        reason = "sources write train and val; name them so"
        raise DataSetError("DATA.TRAIN_SPLIT, DATA.VAL_SPLIT", [reason])
    settings = scan_settings(cfg)
    if problem := folder_problem(settings.root):
        raise DataSetError("DATA.ROOT", [problem])
    _refuse_inside(settings.root.resolve(), options.input.resolve())
    return run_plan(
        SOURCES[name](options),
        settings.root,
        workers=workers,
        shard=shard,
        num_bins=settings.num_bins if settings.use_voxel_cache else None,
        frame_downscale=(
            options.downscale if cfg.DATA.FRAME_CACHE and not cfg.DATA.USE_RAM_CACHE else None
        ),
    )


def _refuse_inside(root: Path, given: Path) -> None:
    """Refuse to write into what is read, or to read what is written."""
    if root == given:
        reason = (
            "is DATA.ROOT and --input at the same time; what is there stays as it is, give another "
            "DATA.ROOT to write to. A folder in our layout needs no --source"
        )
        raise DataSetError(str(root), [reason])
    for outer, inner in ((given, root), (root, given)):
        if outer in inner.parents and inner.relative_to(outer).parts[0] in planning.KNOWN_SPLITS:
            reason = f"DATA.ROOT {root} and --input {given} lie in each other; give another one"
            raise DataSetError(str(root), [reason])


def after_shard(shard: tuple[int, int]) -> str | None:
    """Return the sentence that ends a part of the work; None where it is all of it."""
    if shard == WHOLE:
        return None
    return (
        f"part {shard[0]} of {shard[1]} is done; when parts 0 to {shard[1] - 1} all are, run the "
        "same command without --shard: it makes what is missing and prepares the data"
    )


# ---------------------------------------------------------------- all sequences


def run_plan(
    plan: planning.SourcePlan,
    root: str | Path,
    *,
    workers: int,
    shard: tuple[int, int] = WHOLE,
    num_bins: int | None = None,
    frame_downscale: int | None = None,
) -> list[str]:
    """Make what is missing of a plan below a data root; return what was done, one line each.

    What it needs on the disk is logged first: `num_bins` and `frame_downscale`, K and RGB per spike
    pixel, count what preparation stores of voxels and decoded frames; None: none. A sequence that
    fails does not keep the others from being made. Shard (i, n) makes sequences i, i + n, i + 2n
    ... only.
    """
    root = Path(root)
    mine = plan.sequences[shard[0] :: shard[1]]
    check_root(plan, root)
    notes = {s.where: _load(root / s.where)["notes"] for s in mine if (root / s.where).exists()}
    missing = [sequence for sequence in mine if sequence.where not in notes]
    uses = disk_use(missing, root, num_bins, frame_downscale)
    splits = {sequence.split for sequence in plan.sequences}
    for line in (*plan.notes, *_missing_splits(splits), *uses):
        logger.info(line)
    _write_description(root, plan.description)
    remove_abandoned(root, splits)
    lines = [f"{len(notes)} sequences were there already"] if notes else []
    # The longest first, so that no process waits for another at the end.
    missing.sort(key=lambda sequence: -sequence.num_inputs)
    made: dict[str, list[str]] = {}
    problems: list[str] = []
    tasks = run_parallel(partial(_try_to_make, root=root), missing, workers, "making sequences")
    for number, (found, failures) in tasks:
        problems += failures
        made |= {} if failures else {missing[number].where: found}
    if problems:
        kept = f"{len(made)} of {len(missing)} sequences were made and are kept; run it again"
        raise DataSetError(f"{root}: {kept}", problems)
    lines += [f"{len(made)} sequences made"] if made else []
    all_notes = sorted({**notes, **made}.items())
    return lines + [planning.with_name(where, note) for where, found in all_notes for note in found]


def _missing_splits(present: Collection[str]) -> list[str]:
    return [
        f"no sequences for {split}: a training needs {split} too; download them, or make that "
        "folder from some of the other sequences"
        for split in ("train", "val")
        if split not in present
    ]


def _try_to_make(sequence: planning.PlannedSequence, root: Path) -> tuple[list[str], list[str]]:
    """Make one sequence; return its notes, and what is wrong with its input or the disk."""
    try:
        return make_sequence(root, sequence), []
    except (BadFileError, DataSetError) as error:
        return [], [planning.with_name(sequence.where, line) for line in problems_of(error)]
    except OSError as error:  # a full disk, a drive that is gone
        return [], [f"{sequence.where}: {error}"]


# ---------------------------------------------------------------- what a data root holds


def check_root(plan: planning.SourcePlan, root: Path) -> None:
    """Refuse a data root that holds something else than a part of this plan."""
    problems = differences = _description_problems(plan.description, root)
    planned = {sequence.where: sequence for sequence in plan.sequences}
    for split, folder in planning.sequence_folders(
        root, dict.fromkeys(s.split for s in plan.sequences)
    ):
        sequence = planned.get(f"{split}/{folder.name}")
        if not (folder / RECORD_NAME).is_file():
            found = [f"{folder} was not made by this command: it has no {RECORD_NAME}"]
        elif sequence is None:
            found = [f"{folder} is not one of the sequences that would be made"]
        else:  # other options would be named for every sequence again
            found = [] if differences else _changed(folder, sequence)
        problems = [*problems, *found]
    if problems:
        more = len(problems) - MAX_NAMED
        named = problems[:MAX_NAMED] + [f"and {more} more"] * (more > 0)
        advice = "nothing was changed; choose an empty DATA.ROOT"
        present = planning.sequence_folders(root, planning.OUR_SPLITS.values())
        is_all_ours = all((folder / RECORD_NAME).is_file() for _, folder in present)
        advice += ", or delete what is there" if is_all_ours else ""
        raise DataSetError(str(root), [*named, advice])


def _description_problems(wanted: DataDescription, root: Path) -> list[str]:
    """Say how the description of a root that holds sequences differs from that of a plan."""
    present = read_description(root)
    if present is None or not planning.sequence_folders(root, planning.OUR_SPLITS.values()):
        return []
    return [
        f"dataset.yaml says {field}: {was!r}, now it would be {is_now!r}"
        for field, was, is_now in _differences(*map(dataclasses.asdict, (present, wanted)))
        if field not in NOT_COMPARED
    ]


def _write_description(root: Path, wanted: DataDescription) -> None:
    """Write dataset.yaml; what preparation found out of the same data stays in it."""
    present = read_description(root)
    if present is not None and planning.sequence_folders(root, planning.OUR_SPLITS.values()):
        found = {name: getattr(present, name) for name in ("fingerprint", "content", "content_of")}
        wanted = dataclasses.replace(wanted, **found)
    if present != wanted:
        write_description(root, wanted)


# ---------------------------------------------------------------- one sequence


def make_sequence(root: Path, sequence: planning.PlannedSequence) -> list[str]:
    """Write a sequence into a hidden folder and rename it when it is complete; return its notes.

    A lock beside the folder says that its owner lives. On an error the folder is removed.
    """
    final = root / sequence.where
    final.parent.mkdir(parents=True, exist_ok=True)
    owner = f"{socket.gethostname()[:60]}-{os.getpid()}"
    hidden = final.with_name(f"{PARTIAL}{owner}-{sequence.name[-40:]}")  # not too long a name
    lock = hidden.with_name(f"{hidden.name}.lock")
    try:
        with locked(lock):
            shutil.rmtree(hidden, ignore_errors=True)  # of an earlier process with this number
            hidden.mkdir()
            notes = sequence.write(hidden)
            with atomic_write(hidden / RECORD_NAME) as partial_file:
                record = {"identity": dict(sequence.identity), "notes": notes}
                partial_file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            try:
                hidden.rename(final)
            except OSError:  # another run made it meanwhile: the same, or something else
                if not final.exists():
                    raise
                if problems := _changed(final, sequence):
                    raise DataSetError(str(root), problems) from None
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        lock.unlink(missing_ok=True)
    return notes


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
    with naming_record(path, "record of a source"):
        record = json.loads(path.read_text(encoding="utf-8"))
        return {"identity": dict(record["identity"]), "notes": [*map(str, record["notes"])]}


def _changed(folder: Path, sequence: planning.PlannedSequence) -> list[str]:
    """Say how a sequence differs from what would be made now."""
    try:
        was = _load(folder)["identity"]
    except BadFileError as error:
        return [str(error)]
    now = json.loads(json.dumps(dict(sequence.identity)))
    now = {key: value for key, value in now.items() if key in was or key not in ADDED_TO_RECORDS}
    differences = [f"{key} {a!r}, now {b!r}" for key, a, b in _differences(was, now)]
    return [f"{folder} was made with {'; '.join(differences)}"] if differences else []


def _differences(
    old: Mapping[str, object], new: Mapping[str, object]
) -> list[tuple[str, object, object]]:
    sides = ((key, old.get(key), new.get(key)) for key in dict.fromkeys((*old, *new)))
    return [(key, was, now) for key, was, now in sides if was != now]


# ---------------------------------------------------------------- disk


def disk_use(
    sequences: Sequence[planning.PlannedSequence],
    root: Path,
    num_bins: int | None,
    frame_downscale: int | None,
) -> list[str]:
    """Say what sequences and their caches (see `run_plan`) take; refuse a disk that is too small.

    Decoded frames are optional: where they do not fit, preparation leaves them out.
    """
    if not sequences:
        return ["all sequences are there, nothing to make"]
    seconds = sum(sequence.seconds for sequence in sequences)
    spike_px = {s.where: s.num_exposures * math.prod(s.spike_size) for s in sequences}
    sizes = {"frames and spikes": sum(sequence.out_bytes for sequence in sequences)}
    if num_bins is not None:
        sizes["voxels"] = num_bins * sum(spike_px.values())
    needed = sum(sizes.values()) + SPARE_BYTES
    if frame_downscale is not None:
        training = sum(spike_px[s.where] for s in sequences if s.split == "train")
        sizes["decoded training frames"] = 2 * 3 * training * frame_downscale**2
    parts = [
        f"{size / 1e6:,.3f} MB for {what} ({size / seconds * 3.6e-6:,.1f} GB per hour)"
        for what, size in sizes.items()
    ]
    existing = next(folder for folder in (root, *root.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    lines = [
        f"{len(sequences)} sequences to make: {sum(s.num_inputs for s in sequences)} frames and "
        f"files to read, {seconds:.1f} s of video, "
        f"{sum(s.num_exposures for s in sequences)} blurry frames",
        f"disk, and per hour of video, about: {', '.join(parts)}; {free / 1e6:,.1f} MB are free",
    ]
    if needed > free:
        advice = "free some, choose another DATA.ROOT, or set DATA.USE_PRECOMPUTED_VOXELS false"
        raise DataSetError(str(root), [*lines, f"that is too little; {advice}"])
    return lines
