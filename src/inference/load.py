"""Finds the weights to test, and builds the model that they belong to."""

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from yacs.config import CfgNode

from src.config import config_from_text, load_config
from src.data.description import (
    DataDescription,
    description_differences,
    description_from_text,
    description_to_text,
)
from src.data.errors import listed
from src.data.yaml_text import MAX_ALIASES, load_plain_mapping
from src.models.build import build_model
from src.models.weights import (
    EXPORTED_TEXTS,
    NESTED_UNDER,
    VRT_PREFIX,
    convert_keys,
    load_weights,
    read_torch_file,
)
from src.paths import REPO_ROOT
from src.run_directory import RunDirectory

SMALL_MODEL = REPO_ROOT / "weights/vrt_spike_small.safetensors"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A model with its weights."""

    model: nn.Module  # on the CPU
    cfg: CfgNode  # it was trained with, overrides applied
    identity: dict[str, Any]  # file, checksum, step and which of its weights, for the report
    data: str = ""  # description of what it was trained on, empty if that is unknown


def load_model(
    checkpoint: str | Path | None,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    weights: str = "auto",
) -> LoadedModel:
    """Return the model of a checkpoint, or of plain weights with a configuration.

    Args:
        checkpoint: A checkpoint of ours, whose own configuration counts, or a file of weights such
            as the official ones. None: best.pth of the run that `config` names, or without one
            the small model that the project brings.
        config: YAML file; needed if the checkpoint has no configuration, else not read.
        overrides: `[KEY, VALUE, ...]` over either configuration.
        weights: Which of a checkpoint of ours: `ema`, `model`, or `auto` for `ema` if present.
    """
    path = _find_checkpoint(checkpoint, config, overrides)
    stored = read_torch_file(path, "weights")
    is_ours = isinstance(stored, dict) and "config" in stored and "model" in stored
    if is_ours:
        _check_parts(path, stored)
    if not is_ours and config is None:
        raise ValueError(f"{path} holds weights without a configuration; add --config FILE")
    part, arguments, step, data = None, None, None, ""
    if is_ours:
        part = weights if weights != "auto" else "ema" if "ema" in stored else "model"
        if part not in stored:
            raise ValueError(
                f"{path} holds no averaged weights (TRAIN.EMA_DECAY was 0); use --weights auto"
            )
        cfg = config_from_text(stored["config"], f"configuration in {path}", overrides)
        step, data = stored["progress"]["step"], stored.get("data", "")
        if "vrt" in stored:
            arguments = load_plain_mapping(stored["vrt"], f"vrt in {path}", MAX_ALIASES)
        if config is not None:
            use = "only names the run" if checkpoint is None else "is not read"
            logger.warning("%s has its own configuration; %s %s", path, config, use)
    else:
        cfg = load_config(config, overrides, check_paths=False)
    model = build_model(cfg, read_weights=False, vrt_arguments=arguments)
    report = load_weights(model, path.resolve(), parts=(part,) if part else NESTED_UNDER)
    if is_ours and (difference := set(convert_keys(stored["model"])) ^ set(model.state_dict())):
        raise ValueError(
            f"{path}: {len(difference)} weights do not belong to the model of its own "
            f"configuration, such as {min(difference)}; was MODEL changed by an override?"
        )
    if lacking := [key for key in report.missing if key.startswith(VRT_PREFIX)]:
        raise ValueError(
            f"{path}: {len(lacking)} of VRT's {len(model.vrt.state_dict())} weights are missing, "
            f"such as {lacking[0]}: it would restore garbage; give a whole file, or the "
            "configuration that it was trained with"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    identity = {"file": str(path), "sha256": digest, "step": step, "run": cfg.EXP_NAME}
    return LoadedModel(model, cfg, {**identity, "weights": part}, data)


def _check_parts(path: Path, stored: dict[str, Any]) -> None:
    """Refuse a checkpoint of which parts are not of the type that is written."""
    progress = stored.get("progress")
    is_whole = isinstance(progress, dict) and isinstance(progress.get("step"), int)
    if not is_whole or any(not isinstance(stored.get(key, ""), str) for key in EXPORTED_TEXTS):
        raise ValueError(f"{path}: its configuration or progress is none: no checkpoint of ours")


def _find_checkpoint(
    checkpoint: str | Path | None, config: Path | None, overrides: Sequence[str]
) -> Path:
    """Return the file to read, see `load_model`."""
    if checkpoint is None and config is None:
        checkpoint = SMALL_MODEL
        if not SMALL_MODEL.is_file():
            raise FileNotFoundError(
                "give --ckpt FILE, or --config FILE to test the best.pth of its run; the small "
                f"model {SMALL_MODEL}, which would be the default, is not there"
            )
        logger.info("no --ckpt: the small model of this project restores, %s", checkpoint)
    elif checkpoint is None:
        run = RunDirectory.of(load_config(config, overrides, check_paths=False))
        checkpoint = run.checkpoints / "best.pth"
    path = Path(checkpoint)
    if path.is_dir():
        files = listed(sorted(file.name for file in path.glob("*.*t*") if file.is_file()))
        raise ValueError(f"checkpoint {path} is a folder; give a file in it: {files or 'none'}")
    if not path.is_file():
        raise FileNotFoundError(
            f"checkpoint {path} does not exist; train first, or give a file as --ckpt"
        )
    return path


def compare_data(trained_on: str, tested_on: DataDescription | None) -> dict[str, Any]:
    """Return both descriptions as text and their differences; warn if the kinds of data differ.

    Which sequences they are does not matter: a test set is another one. What matters is how blur
    and spikes were recorded. `trained_on` is empty if the checkpoint has no description.
    """
    differences = []
    if trained_on and tested_on is not None:
        trained = description_from_text(trained_on, "data description of the checkpoint")
        kinds = (
            dataclasses.replace(data, source="any", offsets=(), fingerprint=())
            for data in (trained, tested_on)
        )
        differences = description_differences(*kinds)
    if differences:
        logger.warning(
            "trained on another kind of data than this: %s; the scores say nothing about data of "
            "the kind it was trained on",
            "; ".join(differences),
        )
    tested = "" if tested_on is None else description_to_text(tested_on)
    return {"trained_on": trained_on, "tested_on": tested, "differences": differences}
