"""Checkpoints: everything a run needs to go on, in one file that is whole or not there.

A checkpoint is a dict that `torch.load(weights_only=True)` reads:

    format      int, 1
    model       state dict of the model
    ema         the same of the averaged weights, where TRAIN.EMA_DECAY is set
    optimizer, scaler, schedule    their state dicts
    progress    {"step", "skipped_steps", "best_psnr", "best_step"}
    config      the full configuration as YAML text
    vrt         VRT's constructor arguments as YAML text, from the file MODEL.VRT_CFG
    clips_per_step    clips of all ranks in one optimiser step
    precision   fp32, bf16 or fp16
"""

import logging
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from src.config import config_from_text, walk_schema
from src.models.torch_file import read_torch_file
from src.paths import atomic_write

FORMAT = 1
LAST, PREVIOUS, BEST = "last.pth", "previous.pth", "best.pth"
NAMES = (LAST, PREVIOUS, BEST)  # in the order of preference at equal steps
logger = logging.getLogger(__name__)


class CheckpointWriteError(OSError):
    """A checkpoint could not be written; the ones before it are as they were."""

    def __init__(self, path: Path, error: Exception) -> None:
        super().__init__(f"{path}: the checkpoint could not be written: {error}")

# What may change between a kill and a resume without changing the weights that come out, and the
# length of the run, which a user may extend.
FREE_TO_CHANGE = (
    "EXP_NAME",
    "DEVICE",
    "LOG.",
    "VAL.",
    "DATA.ROOT",
    "DATA.DEMO",
    "DATA.ALIGN_LOG_PATHS",
    "DATA.USE_PRECOMPUTED_VOXELS",
    "DATA.USE_RAM_CACHE",
    "DATA.CACHE_SIZE_GB",
    "DATA.PRELOAD",
    "DATA.MAX_BAD_FRACTION",
    "MODEL.VRT_CFG",  # its content is compared instead
    *(
        f"MODEL.{part}.{key}"
        for part in ("SPIKE_TSA", "FUSE")
        for key in ("ADAPTIVE_CHUNK", "MAX_BATCH_TOKENS", "CHUNK_SIZE", "CHUNK_SHAPE")
    ),
    "MODEL.PRETRAINED",
    "MODEL.SPYNET",
    "MODEL.USE_CHECKPOINT",
    "TRAIN.BATCH_SIZE",  # the product with accumulation and ranks is compared instead
    "TRAIN.GRADIENT_ACCUMULATION_STEPS",
    "TRAIN.AMP",  # what it gives on the device is compared instead
    "TRAIN.NUM_WORKERS",
    "TRAIN.EPOCHS",
    "TRAIN.MAX_STEPS",
    "TRAIN.VAL_EVERY",
    "TRAIN.VISUAL_EVERY",
    "TRAIN.SAVE_EVERY",
    "TRAIN.LOG_EVERY",
    "TRAIN.RGB_TWIN",
)


# Consequences of several settings, compared instead of them.
COMPARED = {
    "clips_per_step": "ranks x BATCH_SIZE x GRADIENT_ACCUMULATION_STEPS (clips per step)",
    "precision": "number format that TRAIN.AMP gives on this device",
}


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
    broken = [name for name, value in state["model"].items() if not bool(value.isfinite().all())]
    if broken:
        raise ValueError(
            f"{path} is not written: {len(broken)} weights are not finite, such as {broken[0]}"
        )
    kept = path.with_name(f".partial-{os.getpid()}-kept-{path.name}")
    try:
        with atomic_write(path) as partial:
            with partial.open("wb") as handle:
                # Through a file of Python: torch's own writer does not say what went wrong.
                torch.save({"format": FORMAT, **state}, handle)
            if previous is not None and path.exists():
                _give_second_name(path, kept)
        if kept.exists():
            kept.replace(previous)
    except (OSError, RuntimeError) as error:
        raise CheckpointWriteError(path, error) from error
    finally:
        kept.unlink(missing_ok=True)


def _give_second_name(path: Path, name: Path) -> None:
    try:
        os.link(path, name)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, name)


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


def resume_conflicts(stored: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Return one sentence per setting whose change would make the resumed run another run.

    Args:
        stored: The checkpoint.
        current: What the run would write now.
    """
    conflicts = [
        f"{what}: the checkpoint has {stored[key]}, this run {current[key]}"
        for key, what in COMPARED.items()
        if stored[key] != current[key]
    ]
    if yaml.safe_load(stored["vrt"]) != yaml.safe_load(current["vrt"]):
        conflicts.append("MODEL.VRT_CFG: VRT's arguments in that file have changed")
    return conflicts + config_differences(stored["config"], current["config"], FREE_TO_CHANGE)


def config_differences(first: str, second: str, ignored: tuple[str, ...]) -> list[str]:
    """Return one sentence per key that differs, but for keys that begin as one of `ignored`."""
    cfgs = [config_from_text(text, "the checkpoint's configuration") for text in (first, second)]
    differences = []
    for dotted, _ in walk_schema():
        old, new = cfgs
        for name in dotted.split("."):
            old, new = old[name], new[name]
        if old != new and not dotted.startswith(ignored):
            differences.append(f"{dotted}: the checkpoint has {old!r}, the configuration {new!r}")
    return differences
