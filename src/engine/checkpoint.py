"""Checkpoints: everything a run needs to resume, in one file that is whole or not there.

A checkpoint is a dict that `torch.load(weights_only=True)` reads:

    format      int, 2; files of format 1 have other names of weights and are converted on loading
    model       state dict of the model
    ema         the same of the averaged weights, where TRAIN.EMA_DECAY is set
    optimizer, scaler, schedule    their state dicts
    progress    the fields of `Progress`; a file of an earlier version may lack some
    data        the description of the training data as YAML text, empty where there is none;
                files before this key lack it
    config      the full configuration as YAML text
    vrt         VRT's constructor arguments as YAML text, from the file MODEL.VRT_CFG
    clips_per_step    clips of all ranks in one optimiser step
    precision   fp32, bf16 or fp16
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BufferedWriter
from pathlib import Path
from typing import Any, Protocol

import torch

from src.engine.processes import Ranks
from src.engine.resume import StartNote, resume_conflicts
from src.models.torch_file import read_torch_file
from src.models.weights import convert_keys
from src.paths import atomic_write, flush_folder, resolve
from src.run_directory import RunDirectory, give_second_name

FORMAT = 2
LAST, PREVIOUS, BEST = "last.pth", "previous.pth", "best.pth"
NAMES = (LAST, PREVIOUS, BEST)  # in the order of preference at equal steps
logger = logging.getLogger(__name__)


class CheckpointWriteError(OSError):
    """A checkpoint could not be written; the ones before it are as they were."""

    def __init__(self, path: Path, error: Exception) -> None:
        super().__init__(f"{path}: the checkpoint could not be written: {error}")


def save_checkpoint(path: Path, state: dict[str, Any], *, previous: Path | None = None) -> None:
    """Write a checkpoint beside its final name, flush it, and rename it into place.

    Args:
        path: Where it goes.
        state: What it holds, without `format`.
        previous: Where the file that was at `path` until now stays.

    At every instant at least one of the two names is a whole file.

    Raises:
        CheckpointWriteError: The disk is full or the folder cannot be written; what was there
            is untouched.
        ValueError: A weight is not finite; nothing is written.
    """
    broken = [name for name, value in named_tensors(state) if not bool(value.isfinite().all())]
    if broken:
        raise ValueError(
            f"{path} is not written: {len(broken)} tensors in it are not finite (NaN or infinite), "
            f"such as {broken[0]}; the checkpoints before it are as they were"
        )
    kept = path.with_name(f".partial-{os.getpid()}-kept-{path.name}")
    first: OSError | None = None
    try:
        with atomic_write(path) as partial:
            with partial.open("wb") as handle:
                checked = _CheckedFile(handle)
                try:
                    torch.save({"format": FORMAT, **state}, checked)
                finally:
                    first = checked.error
            if previous is not None and path.exists():
                give_second_name(path, kept)
        if kept.exists():
            kept.replace(previous)
            flush_folder(path.parent)
    except (OSError, RuntimeError) as error:
        raise CheckpointWriteError(path, first or error) from error
    finally:
        kept.unlink(missing_ok=True)


class _CheckedFile:
    """Keeps the first error of writing: torch continues and raises another one at the end."""

    def __init__(self, handle: BufferedWriter) -> None:
        self.handle = handle
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.handle.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self.handle.flush()


def named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor in nested dicts and lists with its place."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from named_tensors(part, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from named_tensors(part, f"{name}[{index}]")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without running anything that is pickled in it.

    Raises:
        ValueError: The file is damaged, is no checkpoint, or comes from a later version.
    """
    state = read_torch_file(path, "a checkpoint")
    if not isinstance(state, dict) or not {"progress", "format"} <= state.keys():
        raise ValueError(
            f"{path}: holds weights but no training state; to start from weights alone give the "
            "file as MODEL.PRETRAINED"
        )
    if state["format"] > FORMAT:
        raise ValueError(f"{path}: format {state['format']}; this version reads up to {FORMAT}")
    for part in ("model", "ema"):
        if part in state:
            state[part] = convert_keys(state[part])
    return state


@dataclass(frozen=True)
class FoundCheckpoint:
    """What a run resumes from.

    Attributes:
        path: The file.
        state: Its content.
        damaged: Checkpoints of the run that cannot be read.
    """

    path: Path
    state: dict[str, Any]
    damaged: tuple[Path, ...] = ()


def find_checkpoint(folder: Path) -> FoundCheckpoint | None:
    """Return the furthest readable checkpoint of a run, or None where there is none at all.

    A damaged file is named in the log and the next one is taken; other files do not count.

    Raises:
        ValueError: There are checkpoints but none can be read.
    """
    readable, damaged = [], []
    for path in (folder / name for name in NAMES):
        if not path.exists() or path.name == PREVIOUS and readable:
            continue  # the previous one cannot be further than a last one that can be read
        try:
            readable.append(FoundCheckpoint(path, load_checkpoint(path)))
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
    # max() keeps the first of equals, so last.pth wins over a best.pth of the same step.
    furthest = max(readable, key=lambda found: found.state["progress"]["step"])
    return replace(furthest, damaged=tuple(damaged))


def keep_damaged_aside(found: FoundCheckpoint) -> None:
    """Rename the damaged files, so that they are not taken for a previous checkpoint."""
    for path in found.damaged:
        path.replace(path.with_name(f"{path.name}.damaged"))
        logger.warning("%s is kept as %s.damaged", path, path.name)


class Stateful(Protocol):
    """Something that changes while a run trains."""

    def state_dict(self) -> dict[str, Any]:
        """Return what has to be saved."""

    def load_state_dict(self, state: dict[str, Any]) -> object:
        """Take over what was saved."""


class Checkpoints:
    """Writes last.pth, previous.pth and best.pth of a run, and resumes it; the main rank writes.

    There is one rule for all that changes while a run trains: it is registered in `parts`.

    A write that fails, because the disk is full for example, is a warning while the run continues:
    the next one is tried when it is due. At the end it is an error.

    Args:
        run: Where the files are.
        ranks: This process.
        parts: What a checkpoint holds, by its key; loaded in this order.
        identity: Texts and numbers that stay the same, see `resume.identity_of`.

    Attributes:
        step_of_last: The step that last.pth holds, as far as this process knows.
    """

    def __init__(
        self, run: RunDirectory, ranks: Ranks, parts: dict[str, Stateful], identity: dict[str, Any]
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
        """Put the run where `state` left it.

        Raises:
            ValueError: It would become another run; what differs is named.
        """
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
        """Write a checkpoint of this moment; return whether it is there.

        Raises:
            CheckpointWriteError: It failed, and `must_succeed`.
        """
        folder, step = self.run.checkpoints, self.step
        moves_on = name == LAST and self.step_of_last != step
        if self.ranks.is_main:
            try:
                save_checkpoint(
                    folder / name,
                    self.state_dict(),
                    previous=folder / PREVIOUS if moves_on else None,
                )
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

        A start that torchrun or SLURM repeats resumes from what the first one has left.

        Raises:
            OSError: There is no room for the checkpoints to come.
            ValueError: The checkpoint cannot be read, or belongs to another run.
        """
        note = StartNote(self.run)
        if choice != "auto" and self.ranks.gather(note.is_repeated())[0]:
            logger.info("started again: --resume auto takes the place of --resume %s", choice)
            choice = "auto"
        if self.ranks.is_main:
            self.run.check_space(self.bytes_needed(), starts_anew=choice != "auto")
        if choice == "never":
            if self.ranks.is_main:
                self.run.set_aside()
                note.write()
            self.ranks.wait()
        elif choice == "auto":
            self._resume_run()
        else:
            self._resume_from(Path(choice) if Path(choice).exists() else resolve(choice), note)

    def _resume_run(self) -> None:
        """Load the furthest checkpoint of the run on every rank; the main rank chooses it."""
        found = find_checkpoint(self.run.checkpoints) if self.ranks.is_main else None
        path = self.ranks.gather(found and found.path)[0]
        if path is None:
            return
        self.load_state_dict(load_checkpoint(path) if found is None else found.state)
        if found is not None:
            keep_damaged_aside(found)
        logger.info("resumed at step %d from %s", self.step, path)
        if path.name == LAST:
            self.step_of_last = self.step
        else:
            self.save(LAST)  # last.pth was damaged or is older than best.pth

    def _resume_from(self, path: Path, note: StartNote) -> None:
        """Resume from a file, which may be this run's own; what the run had is kept aside.

        A kill at any moment leaves a run that can resume: the new last.pth takes the place of the
        old one at once, and `path` is removed from the folder only when the note is written.
        """
        self.load_state_dict(load_checkpoint(path))
        self.ranks.wait()  # every rank has read it
        self.step_of_last = self.step  # so the old last.pth does not become previous.pth
        logger.info("resumed at step %d from %s", self.step, path)
        if self.ranks.is_main:
            folder = self.run.checkpoints
            self.run.set_aside(keeps_checkpoints=True)
            self.save(LAST, must_succeed=True)
            others = [file for file in folder.iterdir() if file.name != LAST]
            for file in others:
                if not file.samefile(path):
                    file.unlink()
            note.write()
            for file in others:
                file.unlink(missing_ok=True)
        self.ranks.wait()
