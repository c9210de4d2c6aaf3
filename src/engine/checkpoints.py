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
from pathlib import Path
from typing import Any

import torch
import yaml

from src.config import config_from_text, walk_schema
from src.models.weights import UNREADABLE
from src.paths import atomic_write

FORMAT = 1
logger = logging.getLogger(__name__)

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


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint beside its final name, flush it, and rename it into place."""
    with atomic_write(path) as partial:
        torch.save({"format": FORMAT, **state}, partial)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without running anything that is pickled in it.

    Raises:
        ValueError: The file is damaged, is no checkpoint of ours, or comes from a later version.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not a readable checkpoint: {reason}") from error
    if not isinstance(state, dict) or not {"progress", "format"} <= state.keys():
        raise ValueError(
            f"{path}: holds weights but no training state; to start from weights alone give the "
            "file as MODEL.PRETRAINED"
        )
    if state["format"] > FORMAT:
        raise ValueError(f"{path}: format {state['format']}; this version reads up to {FORMAT}")
    return state


def find_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the furthest readable checkpoint of a run, or None where there is none at all.

    A damaged file is named in the log and the other one is taken.

    Raises:
        ValueError: There are checkpoints but none can be read.
    """
    candidates = [folder / name for name in ("last.pth", "best.pth") if (folder / name).exists()]
    readable = []
    for path in candidates:
        try:
            readable.append((path, load_checkpoint(path)))
        except ValueError as error:
            logger.warning("skipped: %s", error)
    if candidates and not readable:
        raise ValueError(
            f"{folder}: no readable checkpoint among {', '.join(p.name for p in candidates)}; "
            "move the folder away or start again with --resume never"
        )
    # max() keeps the first of equals, so last.pth wins over a best.pth of the same step.
    return max(readable, key=lambda item: item[1]["progress"]["step"], default=None)


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
