"""One comparison as a whole: both runs on the same frames, differences, verdicts, examples."""

import dataclasses
import sys
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm
from yacs.config import CfgNode

from src.comparison.acceptance import Verdict, judge, overall
from src.comparison.report_pictures import Example, ExampleChoice
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


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        twin, spike: The two runs.
        frames: Scores of every frame.
        differences: Metric to VRT+Spike less twin, frame by frame; None: not measured.
        verdicts: The acceptance rules, applied.
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
    verdicts: list[Verdict]
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
                "result": overall(self.verdicts),
                "verdicts": [{**vars(v), "verdict": v.word} for v in self.verdicts],
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
        verdicts=judge(frames.means(TWIN), frames.means(SPIKE), notes=notes),
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
