"""What a resumed run may change, how changes are named, and whether a start is a repeated one."""

import json
import logging
import os
from collections.abc import Iterable
from typing import Any

import torch
import yaml
from yacs.config import CfgNode

from src.config import config_from_text, config_to_text, walk_schema
from src.data.description import description_to_text, read_description, text_differences
from src.models.build import NO_FLOW
from src.paths import atomic_write, resolve
from src.run_directory import RunDirectory

MAX_NAMED = 5
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
    "DATA.FRAME_CACHE",
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
    "MODEL.SPYNET",  # whether there is a flow estimator at all is compared instead
    "MODEL.USE_CHECKPOINT",
    "TRAIN.BATCH_SIZE",  # the product with accumulation and ranks is compared instead
    "TRAIN.GRADIENT_ACCUMULATION_STEPS",
    "TRAIN.AMP",  # what it gives on the device is compared instead
    "TRAIN.NUM_WORKERS",
    "TRAIN.OOM_RETRY",
    "TRAIN.EPOCHS",
    "TRAIN.MAX_STEPS",
    "TRAIN.VAL_EVERY",
    "TRAIN.VISUAL_EVERY",
    "TRAIN.SAVE_EVERY",
    "TRAIN.LOG_EVERY",
    "TRAIN.RGB_TWIN",
    "TRAIN.RIVAL_UNET",
    "TRAIN.STALL_MINUTES",
)

# Consequences of several settings, compared instead of them.
COMPARED = {
    "clips_per_step": "ranks x BATCH_SIZE x GRADIENT_ACCUMULATION_STEPS (clips per step)",
    "precision": "number format that TRAIN.AMP gives on this device",
}
# What counts the starts, and what stays the same in all of them.
REPEATED_BY = {
    "TORCHELASTIC_RESTART_COUNT": "TORCHELASTIC_RUN_ID",
    "SLURM_RESTART_COUNT": "SLURM_JOB_ID",
}


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
    return [
        *conflicts,
        *config_differences(stored["config"], current["config"], FREE_TO_CHANGE),
        *flow_differences(stored["config"], current["config"]),
        *weight_differences(stored["model"], current["model"]),
        *data_differences(stored, current),
    ]


def flow_differences(first: str, second: str) -> list[str]:
    """Return a sentence where only one of two configurations has a flow estimator."""
    old, new = (
        config_from_text(text, "the checkpoint's configuration").MODEL.SPYNET
        for text in (first, second)
    )
    if (old == NO_FLOW) == (new == NO_FLOW):
        return []
    return [f"MODEL.SPYNET: the checkpoint has {old!r}, the configuration {new!r}"]


def weight_differences(
    stored: dict[str, torch.Tensor], current: dict[str, torch.Tensor]
) -> list[str]:
    """Return sentences about weights that only one of two models has, and about their shapes."""
    shapes = [
        f"{key} {list(stored[key].shape)} (the model has {list(current[key].shape)})"
        for key in current
        if key in stored and stored[key].shape != current[key].shape
    ]
    found = {
        "only in the checkpoint": sorted(stored.keys() - current.keys()),
        "only in the model": sorted(current.keys() - stored.keys()),
        "of another shape": shapes,
    }
    return [f"weights {what}: {_named(keys)}" for what, keys in found.items() if keys]


def data_differences(stored: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Return sentences about training data that are not those of the checkpoint."""
    if "data" not in stored:
        logger.info("the checkpoint is of a version that did not note which data it was trained on")
        return []
    names = "the checkpoint's data", "the data now"
    return [
        f"data: {difference}"
        for difference in text_differences(stored["data"], current["data"], names)
    ]


def _named(keys: Iterable[str]) -> str:
    keys = list(keys)
    more = f" and {len(keys) - MAX_NAMED} more" if len(keys) > MAX_NAMED else ""
    return ", ".join(keys[:MAX_NAMED]) + more


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


class StartNote:
    """A small file beside the run's folder: which start has done what its `--resume` asked for.

    Without it a start that was killed before it came to that would resume from an older run.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.path = run.checkpoints.with_name(f".{run.name}.start.json")

    def write(self) -> None:
        """Note that this start has put the run where it was asked to begin."""
        names = {name: os.environ.get(name, "") for name in REPEATED_BY.values()}
        with atomic_write(self.path) as partial:
            partial.write_text(json.dumps(names), encoding="utf-8")

    def is_repeated(self) -> bool:
        """Whether this process is started again after a start that has written the note."""
        if not self.path.exists():
            return False
        try:
            noted = json.loads(self.path.read_text(encoding="utf-8"))
        except ValueError:
            return False
        return isinstance(noted, dict) and any(
            _count(counter) > 0 and noted.get(name) == os.environ.get(name, "")
            for counter, name in REPEATED_BY.items()
        )


def _count(name: str) -> int:
    text = os.environ.get(name, "0")
    return int(text) if text.isdecimal() else 0
