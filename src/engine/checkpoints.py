"""Checkpoints: everything a run needs to go on, in one file that is whole or not there.

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
from typing import Any

import torch

from src.engine.run_directory import give_second_name
from src.models.torch_file import read_torch_file
from src.models.weights import convert_keys
from src.paths import atomic_write, flush_folder

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
    broken = [name for name, value in _tensors(state) if not bool(value.isfinite().all())]
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
                told = _TellingFile(handle)
                try:
                    torch.save({"format": FORMAT, **state}, told)
                finally:
                    first = told.error
            if previous is not None and path.exists():
                give_second_name(path, kept)
        if kept.exists():
            kept.replace(previous)
            flush_folder(path.parent)
    except (OSError, RuntimeError) as error:
        raise CheckpointWriteError(path, first or error) from error
    finally:
        kept.unlink(missing_ok=True)


class _TellingFile:
    """Remembers why writing failed: torch goes on and ends with an error of its own."""

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


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor in nested dicts and lists with its place."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _tensors(part, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _tensors(part, f"{name}[{index}]")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without running anything that is pickled in it.

    Raises:
        ValueError: The file is damaged, is no checkpoint of ours, or comes from a later version.
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
    """What a run goes on from.

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
