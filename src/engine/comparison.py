"""The RGB-only twin of a run, and the comparison of the two on the same validation frames."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from yacs.config import CfgNode

from src.config import config_from_text
from src.data.recordings import Recording
from src.engine.checkpoints import FREE_TO_CHANGE, config_differences, load_checkpoint
from src.engine.distributed import choose_device
from src.engine.run_directory import RunDirectory
from src.inference.build import build_restorer
from src.inference.pictures import Column, write_strip
from src.metrics.psnr_ssim import psnr, ssim
from src.models.build import build_model

TWIN_SUFFIX = "_rgb_twin"
CONTEXT_FRAMES = 2
OWN_TO_EACH = (
    "EXP_NAME",
    "MODEL.USE_SPIKE",
    "TRAIN.RGB_TWIN",
    *(key for key in FREE_TO_CHANGE if not key.startswith(("TRAIN.EPOCHS", "TRAIN.MAX_STEPS"))),
)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoredRun:
    """A run at its best weights, with the validation that was written for them."""

    cfg: CfgNode
    state: dict[str, Any]
    validation: dict[str, Any]

    @property
    def means(self) -> dict[str, float | None]:
        """Metric name to the mean over all validation frames."""
        return means_of(self.validation["restored"])


def means_of(summary: dict[str, Any]) -> dict[str, float | None]:
    """Return the means over frames out of a metrics file; "inf" becomes a number again."""
    means = summary["mean_over_frames"]
    return {name: None if value is None else float(value) for name, value in means.items()}


def twin_overrides(cfg: CfgNode) -> list[str]:
    """Return the overrides that turn a configuration into its RGB-only twin.

    Same data, seed, steps, schedule and initial VRT weights; only the spikes are missing.
    """
    return ["EXP_NAME", cfg.EXP_NAME + TWIN_SUFFIX, "MODEL.USE_SPIKE", "false"]


def scored_run(cfg: CfgNode) -> ScoredRun:
    """Return the best weights of a run that has been trained, with their scores.

    Raises:
        FileNotFoundError: It has no best.pth, or the validation of that step is gone.
    """
    run = RunDirectory.of(cfg)
    best = run.checkpoints / "best.pth"
    if not best.exists():
        raise FileNotFoundError(f"{best}: run {run.name} has no best weights yet; train it first")
    state = load_checkpoint(best)
    path = run.metrics / f"val_{run.name}_{state['progress']['best_step']:07d}.json"
    if not path.exists():
        raise FileNotFoundError(f"{path}: the scores of {best} are gone; validate the run again")
    cfg = config_from_text(state["config"], str(best))  # the file may have changed since
    return ScoredRun(cfg, state, json.loads(path.read_text(encoding="utf-8")))


def check_comparable(twin: ScoredRun, spike: ScoredRun) -> None:
    """Refuse to compare runs that were not trained alike or not scored alike.

    Raises:
        ValueError: The difference, named.
    """
    frames = [[(f["sequence"], f["frame"]) for f in r.validation["frames"]] for r in (twin, spike)]
    if frames[0] != frames[1]:
        raise ValueError("the two runs were scored on different frames; validate both again")
    differences = config_differences(twin.state["config"], spike.state["config"], OWN_TO_EACH)
    if differences:
        raise ValueError("the two runs were trained differently: " + "; ".join(differences))
    protocols = [run.validation["protocol"] for run in (twin, spike)]
    if protocols[0] != protocols[1]:
        raise ValueError(f"the two runs were scored differently: {protocols[0]} / {protocols[1]}")


def write_picture(
    path: Path, twin: ScoredRun, spike: ScoredRun, recordings: list[Recording]
) -> None:
    """Write blur | RGB-only | VRT+Spike | sharp of the frame with the worst blur.

    The two models restore the frame with its neighbours, as validation does with more of them.
    """
    worst = min(spike.validation["frames"], key=lambda frame: float(frame["blurry"]["psnr_rgb"]))
    recording = next(r for r in recordings if r.name == worst["sequence"])
    i = [frame.name for frame in recording.frames].index(worst["frame"])
    around = FrameRange(
        recording, max(0, i - CONTEXT_FRAMES), min(len(recording), i + CONTEXT_FRAMES + 1)
    )
    sharp = recording.read_sharp(i)
    images = {
        "blur": recording.read_blurry(i),
        "RGB-only": _restore_one(twin, around, i),
        "VRT+Spike": _restore_one(spike, around, i),
    }
    columns = [
        Column(name, image, {"psnr_rgb": psnr(image, sharp), "ssim_rgb": ssim(image, sharp)})
        for name, image in images.items()
    ]
    write_strip(path, [*columns, Column("sharp", sharp)])


class FrameRange:
    """Frames `start` to `stop` of a recording, as a source of their own."""

    def __init__(self, recording: Recording, start: int, stop: int) -> None:
        self.recording, self.start, self.stop = recording, start, stop

    def __len__(self) -> int:
        """Return the number of frames."""
        return self.stop - self.start

    def read_blurry(self, i: int) -> np.ndarray:
        """Return the blurry frame, uint8 [H, W, 3]."""
        return self.recording.read_blurry(self.start + i)

    def read_counts(self, i: int) -> np.ndarray:
        """Return the spike counts, [K, Hs, Ws]."""
        return self.recording.read_counts(self.start + i)


def _restore_one(run: ScoredRun, around: FrameRange, i: int) -> np.ndarray:
    device = choose_device(run.cfg.DEVICE)
    arguments = yaml.safe_load(run.state["vrt"])
    model = build_model(run.cfg, read_weights=False, vrt_arguments=arguments)
    model.load_state_dict(run.state["ema" if "ema" in run.state else "model"])
    restorer = build_restorer(run.cfg, model.to(device), device)
    return dict(restorer.restore(around))[i - around.start]
