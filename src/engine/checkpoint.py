"""Checkpoints: what a run needs to resume, in one file that is whole or absent, and how it resumes.

A checkpoint is a dict that `torch.load(weights_only=True)` reads:

    format      int, 2; files of format 1 have other names of weights and are converted on loading
    model       state dict of the model
    ema         the same of the averaged weights, where TRAIN.EMA_DECAY is set
    optimizer, scaler, schedule    their state dicts
    progress    the fields of `Progress`; a file of an earlier version may lack some
    data        the description of the training data as YAML text, empty if there is none;
                files before this key lack it
    config      the full configuration as YAML text
    vrt         VRT's constructor arguments as YAML text, from the file MODEL.VRT_CFG
    clips_per_step    clips of all ranks in one optimiser step
    precision   fp32, bf16 or fp16
"""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from yacs.config import CfgNode

from src.config import config_from_text, config_to_text, lookup, walk_schema
from src.data.description import description_to_text, read_description, text_differences
from src.data.errors import listed
from src.engine.processes import Ranks
from src.models.build import NO_FLOW
from src.models.weights import convert_keys, read_torch_file
from src.paths import atomic_write, flush_folder, free_name, resolve
from src.run_directory import RunDirectory, link_or_copy

FORMAT = 2
LAST, PREVIOUS, BEST = NAMES = ("last.pth", "previous.pth", "best.pth")  # preferred at equal steps
logger = logging.getLogger(__name__)

# What may change before a resume: what does not change the weights, and the length of the run.
FREE_TO_CHANGE = (
    *("EXP_NAME", "DEVICE", "LOG.", "VAL."),
    *("DATA.ROOT", "DATA.DEMO", "DATA.ALIGN_LOG_PATHS", "DATA.USE_PRECOMPUTED_VOXELS"),
    *("DATA.FRAME_CACHE", "DATA.USE_RAM_CACHE", "DATA.CACHE_SIZE_GB", "DATA.PRELOAD"),
    "DATA.MAX_BAD_FRACTION",
    "MODEL.VRT_CFG",  # its content is compared instead
    *(
        f"MODEL.{part}.{key}"
        for part in ("SPIKE_TSA", "FUSE")
        for key in ("ADAPTIVE_CHUNK", "MAX_BATCH_TOKENS", "CHUNK_SIZE", "CHUNK_SHAPE")
    ),
    "MODEL.SPYNET",  # whether there is a flow estimator at all is compared instead
    *("MODEL.PRETRAINED", "MODEL.USE_CHECKPOINT"),
    # The product of these and the number of ranks is compared instead.
    *("TRAIN.BATCH_SIZE", "TRAIN.GRADIENT_ACCUMULATION_STEPS"),
    "TRAIN.AMP",  # what it gives on the device is compared instead
    *("TRAIN.NUM_WORKERS", "TRAIN.OOM_RETRY", "TRAIN.EPOCHS", "TRAIN.MAX_STEPS", "TRAIN.VAL_EVERY"),
    *("TRAIN.VISUAL_EVERY", "TRAIN.SAVE_EVERY", "TRAIN.LOG_EVERY", "TRAIN.RGB_TWIN"),
    *("TRAIN.RIVAL_UNET", "TRAIN.STALL_MINUTES", "TRAIN.DETERMINISTIC", "TRAIN.PROFILE_STEPS"),
    "TRAIN.COMPILE",
)
# Consequences of several settings, compared instead of them.
COMPARED = {
    "clips_per_step": "ranks x BATCH_SIZE x GRADIENT_ACCUMULATION_STEPS (clips per step)",
    "precision": "number format that TRAIN.AMP gives on this device",
}
# What counts the starts of one command, and what stays the same in all of them.
REPEATED_BY = {
    "TORCHELASTIC_RESTART_COUNT": "TORCHELASTIC_RUN_ID",
    "SLURM_RESTART_COUNT": "SLURM_JOB_ID",
}


class CheckpointWriteError(OSError):
    """A checkpoint could not be written; earlier ones are unchanged."""

    def __init__(self, path: Path, error: Exception) -> None:
        super().__init__(f"{path}: the checkpoint could not be written: {error}")


def save_checkpoint(path: Path, state: dict[str, Any], *, previous: Path | None = None) -> None:
    """Write a checkpoint beside its final name, flush it, and rename it.

    The file that was at `path` until now stays as `previous`, where given. At every instant at
    least one of the two names is a whole file, and what was there stays if writing fails.

    Raises:
        CheckpointWriteError: The disk is full or the folder cannot be written.
        ValueError: A weight is not finite.
    """
    broken = [name for name, value in named_tensors(state) if not bool(value.isfinite().all())]
    if broken:
        raise ValueError(
            f"{path} is not written: {len(broken)} tensors in it are not finite (NaN or infinite), "
            f"such as {broken[0]}; earlier checkpoints are unchanged"
        )
    kept = path.with_name(f".partial-{os.getpid()}-kept-{path.name}")
    try:
        with atomic_write(path) as partial:
            with partial.open("wb") as handle:
                torch.save({"format": FORMAT, **state}, handle)
            if previous is not None and path.exists():
                link_or_copy(path, kept)
        if kept.exists():
            kept.replace(previous)
            flush_folder(path.parent)
    except (OSError, RuntimeError) as error:
        first = error
        while first.__context__ is not None:  # torch continues and raises another one at the end
            first = first.__context__
        raise CheckpointWriteError(path, first) from error
    finally:
        kept.unlink(missing_ok=True)


def named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor in nested dicts and lists with its path."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from named_tensors(part, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from named_tensors(part, f"{name}[{index}]")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; ValueError if it is damaged, unfit, or of a later version."""
    state = read_torch_file(path, "a checkpoint")
    if not isinstance(state, dict) or not {"progress", "format"} <= state.keys():
        raise ValueError(
            f"{path}: holds weights but no training state; to start from weights alone give the "
            "file as MODEL.PRETRAINED"
        )
    found, progress = state["format"], state["progress"]
    if isinstance(found, int) and found > FORMAT:
        raise ValueError(f"{path}: format {found}; this version reads up to {FORMAT}")
    step = progress.get("step") if isinstance(progress, dict) else None
    if not (isinstance(found, int) and isinstance(step, int)):
        raise ValueError(f"{path}: its format or step is no whole number: no checkpoint of ours")
    for part in state.keys() & {"model", "ema"}:
        state[part] = convert_keys(state[part])
    return state


class FoundCheckpoint(NamedTuple):
    """What a run resumes from, what best.pth holds, and the checkpoints that cannot be read."""

    path: Path
    state: dict[str, Any]
    best_step: int | None
    damaged: list[Path]


def find_checkpoint(folder: Path) -> FoundCheckpoint | None:
    """Return the furthest readable checkpoint of a run, or None if it has none at all."""
    readable: dict[Path, dict[str, Any]] = {}
    damaged = []
    for path in (folder / name for name in NAMES):
        if not path.exists() or path.name == PREVIOUS and readable:
            continue  # the previous one cannot be further than a last one that can be read
        try:
            readable[path] = load_checkpoint(path)
        except ValueError as error:
            damaged.append(path)
            logger.warning("skipped: %s", error)
    if damaged and not readable:
        raise ValueError(
            f"{folder}: no readable checkpoint among {', '.join(p.name for p in damaged)}; "
            "move the folder away or start again with --resume never"
        )
    if not readable:
        return None
    steps = {path: state["progress"]["step"] for path, state in readable.items()}
    furthest = max(steps, key=steps.get)  # the first of equals, so last.pth wins over best.pth
    return FoundCheckpoint(furthest, readable[furthest], steps.get(folder / BEST), damaged)


def rename_damaged(found: FoundCheckpoint) -> None:
    """Rename the damaged files, so that they do not become a previous checkpoint."""
    for path in found.damaged:
        path.replace(path.with_name(f"{path.name}.damaged"))
        logger.warning("%s is kept as %s.damaged", path, path.name)


class Checkpoints:
    """Writes last.pth, previous.pth and best.pth of a run, and resumes it; the main rank writes.

    `parts` is all that changes while the run trains, by its key in the file, loaded in this order;
    `identity` what stays the same, see `identity_of`; `step_of_last` the step that last.pth holds.
    """

    def __init__(
        self, run: RunDirectory, ranks: Ranks, parts: dict[str, Any], identity: dict[str, Any]
    ) -> None:
        self.run, self.ranks, self.parts, self.identity = run, ranks, parts, identity
        self.step_of_last: int | None = None

    @property
    def step(self) -> int:
        """Optimiser steps that the run has done."""
        return self.parts["progress"].step

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds; its tensors are those of the run, not copies."""
        return {name: part.state_dict() for name, part in self.parts.items()} | self.identity

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the run in the state of a checkpoint, unless it would become another run."""
        needed = (self.parts | self.identity).keys() - {"ema", "data"}  # which may be new
        if lacking := sorted(needed - state.keys()):
            raise ValueError(
                f"run {self.run.name} cannot resume: the checkpoint lacks {', '.join(lacking)}; "
                "give a whole one, or its weights as MODEL.PRETRAINED"
            )
        conflicts = resume_conflicts(state, self.state_dict())
        if conflicts:
            raise ValueError(
                f"run {self.run.name} cannot resume with a changed configuration:\n  "
                + "\n  ".join(conflicts)
                + "\nput the values back, choose another EXP_NAME, or start over: --resume never"
            )
        for name, part in self.parts.items():
            part.load_state_dict(state[name])

    def bytes_needed(self) -> int:
        """Return about how large a checkpoint gets: weights, their average, two moments each."""
        weights = sum(t.nbytes for t in self.parts["model"].state_dict().values())
        groups = self.parts["optimizer"].param_groups
        trained = sum(p.nbytes for group in groups for p in group["params"])
        return weights * (2 if "ema" in self.parts else 1) + 2 * trained

    def save(self, name: str, *, must_succeed: bool = False) -> bool:
        """Write a checkpoint of this moment; return whether it was written.

        A write that fails is a warning, with `must_succeed` a CheckpointWriteError.
        """
        folder, step = self.run.checkpoints, self.step
        if self.ranks.is_main:
            keeps_previous = name == LAST and self.step_of_last != step
            previous = folder / PREVIOUS if keeps_previous else None
            try:
                save_checkpoint(folder / name, self.state_dict(), previous=previous)
            except CheckpointWriteError as error:
                if must_succeed:
                    raise
                logger.warning("%s; training continues and tries again when the next is due", error)
                return False
        if name == LAST:
            self.step_of_last = step
        return True

    def resume(self, choice: str) -> None:
        """Resume from what `choice` names: `auto` (this run's checkpoint), `never`, or a path.

        A start that torchrun or SLURM repeats resumes from the checkpoint of the first one.
        """
        if choice != "auto" and self.ranks.gather(is_repeated_start(self.run))[0]:
            logger.info("restarted: --resume %s is replaced by --resume auto", choice)
            choice = "auto"
        if self.ranks.is_main:
            self.run.check_space(self.bytes_needed(), starts_anew=choice != "auto")
        if choice == "never":
            if self.ranks.is_main:
                self.run.set_aside()
                write_start_note(self.run)
            self.ranks.gather()
        elif choice == "auto":
            self._resume_run()
        else:
            self._resume_from(Path(choice) if Path(choice).exists() else resolve(choice))

    def _resume_run(self) -> None:
        """Load the furthest checkpoint of the run on every rank; the main rank chooses it."""
        found = find_checkpoint(self.run.checkpoints) if self.ranks.is_main else None
        path, best_step = self.ranks.gather(found and (found.path, found.best_step))[0] or (None, 0)
        if path is None:
            return
        state = load_checkpoint(path) if found is None else found.state
        self.load_state_dict(state)
        if found is not None:
            rename_damaged(found)
        logger.info("resumed at step %d from %s", self.step, path)
        self._check_best(state, best_step)
        best = self.run.checkpoints / BEST
        has_score = self.parts["progress"].best_psnr is not None
        if found is not None and not has_score and best_step is not None and best_step < self.step:
            best.replace(free_name(best.with_name(f"best_step{best_step:07d}.pth")))
        if path.name == LAST:
            self.step_of_last = self.step
        else:
            self.save(LAST)  # last.pth was damaged or is older than best.pth

    def _resume_from(self, path: Path) -> None:
        """Resume from a file, which may be this run's own; what the run had is kept aside.

        A kill at any moment leaves a run that can resume: the new last.pth replaces the old one at
        once, and `path` is removed from the folder only when the note is written.
        """
        state, best = load_checkpoint(path), path.with_name(BEST)
        self.load_state_dict(state)
        best_step = None
        if self.ranks.is_main:
            with suppress(ValueError):  # there is none that can be read
                best_step = load_checkpoint(best)["progress"]["step"]
        best_step = self.ranks.gather(best_step)[0]  # waits until every rank has read the path
        self.step_of_last = self.step  # so the old last.pth does not become previous.pth
        logger.info("resumed at step %d from %s", self.step, path)
        self._check_best(state, best_step)
        if self.ranks.is_main:
            folder, wanted = self.run.checkpoints, {LAST}
            self.run.set_aside(keeps_checkpoints=True)
            self.save(LAST, must_succeed=True)
            if self.parts["progress"].best_psnr is not None:
                wanted.add(BEST)
                if best.resolve() != (folder / BEST).resolve():
                    (folder / BEST).unlink(missing_ok=True)
                    link_or_copy(best, folder / BEST)
            others = [file for file in folder.iterdir() if file.name not in wanted]
            for file in others:
                if not file.samefile(path):
                    file.unlink()
            write_start_note(self.run)
            for file in others:
                file.unlink(missing_ok=True)
        self.ranks.gather()

    def _check_best(self, state: dict[str, Any], best_step: int | None) -> None:
        """Forget the best score of the loaded `state` if it was computed in another way.

        So it is if best.pth holds other weights: those of `best_step`, None if there are none.
        """
        progress = self.parts["progress"]
        changes = config_differences(state["config"], self.identity["config"], ("VAL.LPIPS",))
        reasons = [change for change in changes if change.startswith("VAL.")]
        if best_step != progress.best_step:
            reasons.append("no best.pth holds its weights")
        if progress.best_psnr is None or not reasons:
            return
        logger.warning(
            "the best score so far, %.2f dB at step %d, no longer counts (%s); the next validation "
            "writes a new best.pth",
            *(progress.best_psnr, progress.best_step, "; ".join(reasons)),
        )
        progress.best_psnr, progress.best_step, progress.validated_step = None, 0, 0


def identity_of(
    cfg: CfgNode, vrt_arguments: dict[str, Any], clips_per_step: int, precision: str
) -> dict[str, Any]:
    """Return what a checkpoint says about its run besides its state."""
    description = read_description(resolve(cfg.DATA.ROOT))
    return {
        "config": config_to_text(cfg),
        "vrt": yaml.safe_dump(vrt_arguments, sort_keys=False),
        "data": "" if description is None else description_to_text(description),
        "clips_per_step": clips_per_step,
        "precision": precision,
    }


def resume_conflicts(stored: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Return a sentence per change since the checkpoint that would make the run another run."""
    conflicts = [
        f"{what}: the checkpoint has {stored[key]}, this run {current[key]}"
        for key, what in COMPARED.items()
        if stored[key] != current[key]
    ]
    if yaml.safe_load(stored["vrt"]) != yaml.safe_load(current["vrt"]):
        conflicts.append("MODEL.VRT_CFG: VRT's arguments in that file have changed")
    conflicts += config_differences(stored["config"], current["config"], FREE_TO_CHANGE)
    old, new = (config_from_text(x["config"], "checkpoint").MODEL.SPYNET for x in (stored, current))
    if (old == NO_FLOW) != (new == NO_FLOW):
        conflicts.append(f"MODEL.SPYNET: the checkpoint has {old!r}, the configuration {new!r}")
    conflicts += weight_differences(stored["model"], current["model"])
    if "data" not in stored:
        logger.info("the checkpoint is of a version that did not record its training data")
        return conflicts
    names = "the checkpoint's data", "the data now"
    differences = text_differences(stored["data"], current["data"], names)
    return [*conflicts, *(f"data: {difference}" for difference in differences)]


def config_differences(first: str, second: str, ignored: tuple[str, ...]) -> list[str]:
    """Return one sentence per key that differs, except keys that begin as one of `ignored`."""
    old, new = (
        config_from_text(text, "the checkpoint's configuration") for text in (first, second)
    )
    pairs = {key: (lookup(old, key), lookup(new, key)) for key, _ in walk_schema()}
    return [
        f"{key}: the checkpoint has {old!r}, the configuration {new!r}"
        for key, (old, new) in pairs.items()
        if old != new and not key.startswith(ignored)
    ]


def weight_differences(
    stored: dict[str, torch.Tensor], current: dict[str, torch.Tensor]
) -> list[str]:
    """Return sentences about weights that only one of two models has, and about their shapes."""
    found = {
        "only in the checkpoint": sorted(stored.keys() - current.keys()),
        "only in the model": sorted(current.keys() - stored.keys()),
        "of another shape": [
            f"{key} {list(stored[key].shape)} (the model has {list(value.shape)})"
            for key, value in current.items()
            if key in stored and stored[key].shape != value.shape
        ],
    }
    return [f"weights {what}: {listed(keys)}" for what, keys in found.items() if keys]


def start_note(run: RunDirectory) -> Path:
    """Return the file that records which start has done what its `--resume` asked for."""
    return run.checkpoints.with_name(f".{run.name}.start.json")


def write_start_note(run: RunDirectory) -> None:
    """Record that this start has put the run where it was asked to begin."""
    names = {name: os.environ.get(name, "") for name in REPEATED_BY.values()}
    with atomic_write(start_note(run)) as partial:
        partial.write_text(json.dumps(names), encoding="utf-8")


def is_repeated_start(run: RunDirectory) -> bool:
    """Whether torchrun or SLURM has restarted this process after a start that wrote the note."""
    try:
        noted = json.loads(start_note(run).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return False
    return isinstance(noted, dict) and any(
        os.environ.get(counter, "").lstrip("0").isdecimal()  # above 0
        and noted.get(name) == os.environ.get(name, "")
        for counter, name in REPEATED_BY.items()
    )
