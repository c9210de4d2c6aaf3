"""Two trained runs on the same frames: differences, examples, and whether the gain is accepted."""

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm
from yacs.config import CfgNode

from src.comparison.examples import Example, ExampleChoice
from src.comparison.runs import TrainedRun, check_comparable
from src.comparison.scores import (
    ALL_METRICS,
    METHODS,
    SPIKE,
    TWIN,
    ComparedFrame,
    ComparedFrames,
    FrameImages,
    compare_frames,
)
from src.data.recordings import Recording
from src.engine.processes import choose_device
from src.inference.evaluate import build_lpips, peak_memory_gib
from src.inference.restore import Restorer, build_restorer
from src.metrics.paired import PairedDifference, paired_difference
from src.metrics.report import METRICS, Scores, json_safe
from src.run_directory import git_commit

MAX_PSNR_LOSS_DB = 0.05
MAX_LPIPS_GAIN = 0.005


@dataclass(frozen=True)
class Rule:
    """One rule of acceptance, applied.

    Attributes:
        rule: What is required.
        found: What was measured, in words.
        is_met: Whether it holds; None: not decided.
        reason: Why it is not decided.
    """

    rule: str
    found: str
    is_met: bool | None
    reason: str = ""

    @property
    def outcome(self) -> str:
        """`pass`, `fail` or `not decided`."""
        return {True: "pass", False: "fail", None: "not decided"}[self.is_met]


def apply_rules(twin: Scores, spike: Scores, *, notes: list[str]) -> list[Rule]:
    """Apply every rule to the means over frames.

    Args:
        twin: Metric to mean of the RGB-only twin.
        spike: The same of VRT+Spike.
        notes: Why a metric is missing.
    """

    def rule(
        text: str, metric: str, holds: Callable[[float, float], bool], words: str, reason: str
    ) -> Rule:
        values = spike[metric], twin[metric]
        if None in values:
            return Rule(text, "not measured", None, reason)
        return Rule(text, words.format(*values), holds(*values))

    no_lpips = next((note for note in notes if "LPIPS" in note), "LPIPS was not measured")
    no_edges = "no frame has enough pixels that move"
    return [
        rule(
            f"PSNR of VRT+Spike >= twin - {MAX_PSNR_LOSS_DB} dB",
            "psnr_rgb",
            lambda ours, twins: ours >= twins - MAX_PSNR_LOSS_DB,
            "{:.3f} dB, twin {:.3f} dB",
            "PSNR was not measured",
        ),
        rule(
            f"LPIPS of VRT+Spike <= twin + {MAX_LPIPS_GAIN}",
            "lpips",
            lambda ours, twins: ours <= twins + MAX_LPIPS_GAIN,
            "{:.4f}, twin {:.4f}",
            no_lpips,
        ),
        rule(
            "moving edges are steeper: sharpness of VRT+Spike > twin",
            "edge_sharpness",
            lambda ours, twins: ours > twins,
            "{:.3f}, twin {:.3f} (1: as steep as the sharp frame)",
            no_edges,
        ),
        rule(
            "and not by overshooting: error of moving edges <= twin",
            "edge_error",
            lambda ours, twins: ours <= twins,
            "{:.3f}, twin {:.3f} (0: equal to the sharp frame)",
            no_edges,
        ),
    ]


def overall(rules: list[Rule]) -> str:
    """Return `accepted`, `not accepted`, or `not decided` where a rule is open and none failed."""
    if any(rule.is_met is False for rule in rules):
        return "not accepted"
    return "accepted" if all(rule.is_met for rule in rules) else "not decided"


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        twin, spike: The two runs.
        frames: Scores of every frame.
        differences: Metric to VRT+Spike minus twin, frame by frame; None: not measured.
        rules: The rules of acceptance, applied.
        examples: Frames to show.
        seed: Of the resampling.
        device: Where the frames were restored.
        peak_memory_gib: Largest memory meanwhile; None: not known.
        commit: Of the code that compared.
    """

    twin: TrainedRun
    spike: TrainedRun
    frames: ComparedFrames
    differences: dict[str, PairedDifference | None]
    rules: list[Rule]
    examples: list[Example]
    seed: int
    device: str
    peak_memory_gib: float | None
    commit: str

    @property
    def table(self) -> list[tuple[str, Scores]]:
        """Method and its means over frames."""
        return [(method, self.frames.means(method)) for method in METHODS]

    def to_json(self) -> dict[str, Any]:
        """Return everything but pictures and curves, as strict JSON can hold it."""
        names = list(dict.fromkeys(self.frames.sequences))
        return json_safe(
            {
                "commit": self.commit,
                "result": overall(self.rules),
                "rules": [{**vars(rule), "outcome": rule.outcome} for rule in self.rules],
                "protocol": self.frames.protocol,
                "notes": self.frames.notes,
                "inputs_sha256": self.frames.inputs_sha256,
                "num_frames": len(self.frames.frames),
                "seed": self.seed,
                "runs": {TWIN: _run_json(self.twin), SPIKE: _run_json(self.spike)},
                "mean_over_frames": {
                    method: {metric: means[metric] for metric in METRICS}
                    for method, means in self.table
                },
                "motion_edges": {
                    method: {m: means[m] for m in ALL_METRICS if m not in METRICS}
                    for method, means in self.table
                },
                "mean_over_sequences": {
                    method: self.frames.means_over_sequences(method) for method in METHODS
                },
                "sequences": {
                    name: {method: self.frames.means(method, name) for method in METHODS}
                    for name in names
                },
                "differences": {
                    metric: None if found is None else dataclasses.asdict(found)
                    for metric, found in self.differences.items()
                },
                "frames": [vars(frame) for frame in self.frames.frames],
            }
        )


def _run_json(run: TrainedRun) -> dict[str, Any]:
    return {
        **run.loaded.identity,
        "steps": run.steps,
        "precision": run.state["precision"],
        "seconds_per_step": run.seconds_per_step,
    }


def compare_runs(
    cfg: CfgNode, twin: TrainedRun, spike: TrainedRun, recordings: list[Recording]
) -> Comparison:
    """Restore all frames with both models and compare them.

    Device and tiles are those of `cfg`, the same for both; what the models were trained with is in
    their checkpoints.

    Raises:
        ValueError: The two cannot be compared; the differences are named.
    """
    check_comparable(twin, spike)
    device, choice = choose_device(cfg.DEVICE), ExampleChoice()
    frames, notes = _compare_all(cfg, (twin, spike), recordings, device, choice)
    _note_a_useless_model(frames)
    differences = {
        metric: paired_difference(
            frames.values(TWIN, metric),
            frames.values(SPIKE, metric),
            frames.sequences,
            seed=cfg.SEED,
        )
        for metric in ALL_METRICS
    }
    return Comparison(
        twin=twin,
        spike=spike,
        frames=frames,
        differences=differences,
        rules=apply_rules(frames.means(TWIN), frames.means(SPIKE), notes=notes),
        examples=choice.examples,
        seed=cfg.SEED,
        device=str(device),
        peak_memory_gib=peak_memory_gib(device)[0],
        commit=git_commit(),
    )


def _compare_all(
    cfg: CfgNode,
    runs: tuple[TrainedRun, TrainedRun],
    recordings: list[Recording],
    device: torch.device,
    choice: ExampleChoice,
) -> tuple[ComparedFrames, list[str]]:
    """Restore every frame with both models, twin first; return the scores and what to note."""
    lpips, notes = build_lpips(cfg, device)
    total = sum(map(len, recordings))
    with tqdm(total=total, unit="frame", disable=not sys.stderr.isatty()) as bar:

        def on_frame(frame: ComparedFrame, images: FrameImages) -> None:
            choice.take(frame, images)
            bar.update()

        frames = compare_frames(
            *(_restorer(cfg, run, device) for run in runs),
            recordings,
            lpips=lpips,
            notes=notes,
            on_frame=on_frame,
        )
    return frames, notes


def _note_a_useless_model(frames: ComparedFrames) -> None:
    """The rules only compare the two models; being worse than no model has to be said, too."""
    for method in (TWIN, SPIKE):
        pair = [frames.means(name)["psnr_rgb"] for name in (method, METHODS[0])]
        if pair[0] <= pair[1]:
            frames.notes.append(
                f"{method} does not restore: its PSNR {pair[0]:.2f} dB is not above that of the "
                f"blurry input, {pair[1]:.2f} dB; train for longer before you conclude anything"
            )


def _restorer(cfg: CfgNode, run: TrainedRun, device: torch.device) -> Restorer:
    """Return the restorer of a run with the tiles of `cfg`."""
    trained = run.cfg.clone()
    trained.defrost()
    trained.VAL = cfg.VAL.clone()
    trained.freeze()
    return build_restorer(trained, run.loaded.model.to(device), device)
