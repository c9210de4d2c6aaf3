"""Finds the weights to test, and builds the model that they belong to."""

import dataclasses
import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import nn
from yacs.config import CfgNode

from src.config import config_from_text, load_config
from src.data.description import (
    DataDescription,
    description_differences,
    description_from_text,
    description_to_text,
)
from src.models.build import build_model
from src.models.torch_file import read_torch_file
from src.models.weights import NESTED_UNDER, convert_keys, load_weights
from src.run_directory import RunDirectory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A model with its weights.

    Attributes:
        model: On the CPU.
        cfg: The configuration it was trained with, overrides applied.
        identity: File, checksum, step and which of its weights, for the report.
        data: Description of what it was trained on, empty where that is unknown.
    """

    model: nn.Module
    cfg: CfgNode
    identity: dict[str, Any]
    data: str = ""


def load_model(
    checkpoint: Path | None, config: Path | None, overrides: list[str], *, weights: str = "auto"
) -> LoadedModel:
    """Return the model of a checkpoint, or of plain weights with a configuration.

    Args:
        checkpoint: A checkpoint of ours, whose own configuration counts, or a file of weights such
            as the official ones. None: best.pth of the run that `config` names.
        config: YAML file; needed where the checkpoint brings no configuration.
        overrides: `[KEY, VALUE, ...]` over either configuration.
        weights: which of a checkpoint of ours: `ema`, `model`, or `auto` for `ema` where it is.

    Raises:
        FileNotFoundError: no such checkpoint.
        ConfigError: a configuration that cannot be used.
        ValueError: not a file of weights, weights that do not fit, no configuration given, or
            averaged weights requested that the file does not hold.
    """
    if checkpoint is None:
        if config is None:
            raise ValueError("give --ckpt FILE, or --config FILE to test the best.pth of its run")
        run = RunDirectory.of(load_config(config, overrides, check_paths=False))
        checkpoint = run.checkpoints / "best.pth"
    if not checkpoint.is_file():
        raise FileNotFoundError(
            f"checkpoint {checkpoint} does not exist; train first, or give a file as --ckpt"
        )
    stored = read_torch_file(checkpoint, "weights")
    is_ours = isinstance(stored, dict) and "config" in stored and "model" in stored
    part = _choose(weights, stored, checkpoint) if is_ours else None
    if is_ours:
        cfg = config_from_text(stored["config"], f"configuration in {checkpoint}", overrides)
    elif config is None:
        raise ValueError(f"{checkpoint} holds weights without a configuration; add --config FILE")
    else:
        cfg = load_config(config, overrides, check_paths=False)
    arguments = yaml.safe_load(stored["vrt"]) if is_ours and "vrt" in stored else None
    model = build_model(cfg, read_weights=False, vrt_arguments=arguments)
    load_weights(model, checkpoint.resolve(), parts=NESTED_UNDER if part is None else (part,))
    if is_ours and (difference := set(convert_keys(stored["model"])) ^ set(model.state_dict())):
        raise ValueError(
            f"{checkpoint}: {len(difference)} weights do not belong to the model of its own "
            f"configuration, such as {min(difference)}; was MODEL changed by an override?"
        )
    step = stored["progress"]["step"] if is_ours else None
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    identity = {"file": str(checkpoint), "sha256": digest, "step": step, "run": cfg.EXP_NAME}
    data = stored["data"] if is_ours and "data" in stored else ""
    return LoadedModel(model, cfg, {**identity, "weights": part}, data)


def _choose(weights: str, stored: dict[str, Any], checkpoint: Path) -> str:
    if weights == "auto":
        return "ema" if "ema" in stored else "model"
    if weights not in stored:
        raise ValueError(
            f"{checkpoint} holds no averaged weights (TRAIN.EMA_DECAY was 0); use --weights auto"
        )
    return weights


def compare_data(trained_on: str, tested_on: DataDescription | None) -> dict[str, Any]:
    """Compare the data that a model was trained and is tested on; warn where their kind differs.

    Which sequences they are does not matter: a test set is another one. What matters is how blur
    and spikes were made.

    Args:
        trained_on: description in the checkpoint, empty where it has none.
        tested_on: description of the tested data.

    Returns:
        Both as text and their differences, for the report.

    Raises:
        DescriptionError: the text is no description.
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
