"""The RGB-only baseline of a run: how it is made, and whether the two may be compared."""

import json
from dataclasses import dataclass
from typing import Any

import yaml
from torch import nn
from yacs.config import CfgNode

from src.data.description import text_differences
from src.data.errors import naming_record
from src.engine.checkpoint import (
    COMPARED,
    FREE_TO_CHANGE,
    config_differences,
    load_checkpoint,
)
from src.inference.load import LoadedModel, load_model
from src.run_directory import RunDirectory

# May differ although it changes what comes out: it is what the comparison is about.
THE_DIFFERENCE = ("EXP_NAME", "MODEL.USE_SPIKE", "TRAIN.RGB_TWIN")
# May differ on a resume, but not between runs that are compared: they choose the best weights.
NOT_FREE_HERE = ("TRAIN.EPOCHS", "TRAIN.MAX_STEPS", "TRAIN.VAL_EVERY")
NOT_FREE_HERE += ("MODEL.PRETRAINED", "MODEL.SPYNET")
OWN_TO_EACH = (*THE_DIFFERENCE, *(key for key in FREE_TO_CHANGE if key not in NOT_FREE_HERE))


@dataclass(frozen=True)
class TrainedRun:
    """A run that has been trained, at its best weights."""

    run: RunDirectory
    loaded: LoadedModel  # of best.pth
    state: dict[str, Any]  # best.pth without its weights
    steps: int  # of the whole training
    compute_s: float | None  # what it cost, see `Progress`; None where that was not recorded
    curve: dict[int, float]  # step to validation PSNR in dB, where it is finite
    seconds_per_step: float | None  # None where that was not recorded

    @property
    def cfg(self) -> CfgNode:
        """The configuration of the training, which the file may not hold any more."""
        return self.loaded.cfg


def trained_run(cfg: CfgNode) -> TrainedRun:
    """Return the run of a configuration at its best weights."""
    run = RunDirectory.of(cfg)
    best, last = run.checkpoints / "best.pth", run.checkpoints / "last.pth"
    for path in (best, last):
        if not path.exists():
            raise FileNotFoundError(
                f"{path}: run {run.name} has not been trained to its end; train it first"
            )
    state = load_checkpoint(best)
    heavy = ("model", "ema", "optimizer")
    light = {key: value for key, value in state.items() if key not in heavy}
    progress = load_checkpoint(last)["progress"]
    cost = (progress["step"], progress.get("compute_s") or None)  # files of older versions lack it
    return TrainedRun(run, load_model(best, None, []), light, *cost, *_read_validations(run))


def _read_validations(run: RunDirectory) -> tuple[dict[int, float], float | None]:
    """Return PSNR by step, and the seconds per step that the latest validation recorded."""
    curve, seconds = {}, None
    for path in run.all_scores():
        with naming_record(path, "record of a validation; move it away"):
            content = json.loads(path.read_text(encoding="utf-8"))
            psnr = content["restored"]["mean_over_frames"]["psnr_rgb"]
            if psnr not in (None, "inf"):
                curve[int(content["step"])] = float(psnr)
            found = content.get("seconds_per_step", seconds)
            seconds = None if found is None else float(found)
    return curve, seconds


@dataclass(frozen=True)
class OtherNetwork:
    """Another network, trained on the same clips, that takes what VRT+Spike takes.

    `record` holds file, SHA-256, step, compute_s and the description of the data.
    """

    model: nn.Module
    record: dict[str, Any]


def check_comparable(baseline: TrainedRun, spike: TrainedRun) -> None:
    """Refuse to compare runs that were not trained alike."""
    differences = [
        text.replace("checkpoint has", "baseline has").replace("the configuration", "VRT+Spike")
        for text in config_differences(baseline.state["config"], spike.state["config"], OWN_TO_EACH)
    ]
    if baseline.steps != spike.steps:
        differences.append(
            f"the baseline was trained for {baseline.steps} steps, VRT+Spike {spike.steps}"
        )
    differences += [
        f"{what}: the baseline has {baseline.state[key]}, VRT+Spike {spike.state[key]}"
        for key, what in COMPARED.items()
        if baseline.state[key] != spike.state[key]
    ]
    if yaml.safe_load(baseline.state["vrt"]) != yaml.safe_load(spike.state["vrt"]):
        differences.append("MODEL.VRT_CFG: VRT's arguments differ")
    texts = [run.state.get("data", "") for run in (baseline, spike)]  # old checkpoints have none
    names = "the baseline's data", "VRT+Spike's data"
    differences += [f"data: {text}" for text in text_differences(*texts, names)]
    if not baseline.state.get("data") and baseline.cfg.DATA.ROOT != spike.cfg.DATA.ROOT:
        differences.append(f"DATA.ROOT: {baseline.cfg.DATA.ROOT} and {spike.cfg.DATA.ROOT}")
    if baseline.cfg.MODEL.USE_SPIKE or not spike.cfg.MODEL.USE_SPIKE:
        differences.append(
            "the baseline must be without spikes (MODEL.USE_SPIKE false), the run with"
        )
    if differences:
        raise ValueError(
            "the two runs were trained differently, a comparison would say nothing about the "
            "spikes:\n  " + "\n  ".join(differences)
        )
