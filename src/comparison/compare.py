"""VRT+Spike, its RGB-only baseline and others on the same frames; whether the gain is accepted."""

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm
from yacs.config import CfgNode

from src.comparison.examples import Example, ExampleChoice
from src.comparison.no_learning import (
    SpikeImage,
    bound_at_spike_resolution,
    choose_spike_image,
)
from src.comparison.runs import OtherNetwork, TrainedRun, check_comparable
from src.comparison.scores import (
    BLURRY,
    BOUND,
    NO_LEARNING,
    RGB_ONLY,
    SPIKE,
    FrameImages,
    blurry_frames,
    compare_frames,
)
from src.data.recordings import Recording
from src.engine.processes import choose_device
from src.inference.restore import (
    Restorer,
    build_lpips,
    build_restorer,
    describe_protocol,
    peak_memory_gib,
)
from src.metrics.paired import PairedDifference, paired_difference
from src.metrics.report import (
    EDGE_METRICS,
    METRICS,
    FrameScores,
    Report,
    Scores,
    json_safe,
    notes_on_sizes,
)
from src.run_directory import git_commit

MAX_PSNR_LOSS_DB = 0.05
MAX_LPIPS_GAIN = 0.005
SAME_DB = 0.01  # a network that died changes the last bits of its input
# What is required, of which metric, when it holds for (VRT+Spike, baseline), how both are shown.
RULES: tuple[tuple[str, str, Callable[[float, float], bool], str], ...] = (
    (
        f"PSNR of VRT+Spike >= baseline - {MAX_PSNR_LOSS_DB} dB",
        "psnr_rgb",
        lambda ours, baseline: ours >= baseline - MAX_PSNR_LOSS_DB,
        "{:.3f} dB, baseline {:.3f} dB",
    ),
    (
        f"LPIPS of VRT+Spike <= baseline + {MAX_LPIPS_GAIN}",
        "lpips",
        lambda ours, baseline: ours <= baseline + MAX_LPIPS_GAIN,
        "{:.4f}, baseline {:.4f}",
    ),
    (
        "moving edges are steeper: sharpness of VRT+Spike > baseline",
        "edge_sharpness",
        lambda ours, baseline: ours > baseline,
        "{:.3f}, baseline {:.3f} (1: as steep as the sharp frame)",
    ),
    (
        "and not by overshooting: error of moving edges <= baseline",
        "edge_error",
        lambda ours, baseline: ours <= baseline,
        "{:.3f}, baseline {:.3f} (0: equal to the sharp frame)",
    ),
)


@dataclass(frozen=True)
class Rule:
    """One rule of acceptance, applied."""

    rule: str
    found: str  # what was measured, in words
    is_met: bool | None  # None: not decided, for a reason
    reason: str = ""

    @property
    def outcome(self) -> str:
        """`pass`, `fail` or `not decided`."""
        return {True: "pass", False: "fail", None: "not decided"}[self.is_met]


def apply_rules(baseline: Scores, spike: Scores, *, notes: list[str]) -> list[Rule]:
    """Apply every rule to the means over frames; `notes` say why a metric is missing."""
    no_lpips = next((note for note in notes if "LPIPS" in note), "LPIPS was not measured")
    rules = []
    for text, metric, holds, words in RULES:
        values = spike[metric], baseline[metric]
        if None in values:
            no_edges = "no frame has enough pixels that move"
            reason = no_lpips if metric == "lpips" else no_edges
            rules.append(Rule(text, "not measured", None, reason))
        else:
            rules.append(Rule(text, words.format(*values), holds(*values)))
    return rules


def overall(rules: list[Rule]) -> str:
    """Return `accepted`, `not accepted`, or `not decided` where a rule is open and none failed."""
    if any(rule.is_met is False for rule in rules):
        return "not accepted"
    return "accepted" if all(rule.is_met for rule in rules) else "not decided"


@dataclass(frozen=True)
class Comparison:
    """What a comparison found."""

    baseline: TrainedRun
    spike: TrainedRun
    others: dict[str, OtherNetwork]
    frames: Report
    inputs_sha256: str  # equal values: measured on the same frames
    seconds_per_frame: dict[str, float]  # of the networks, by method
    differences: dict[str, PairedDifference | None]  # by metric: VRT+Spike minus baseline
    rules: list[Rule]
    examples: list[Example]
    seed: int  # of the resampling
    device: str  # with the largest memory
    commit: str  # of the code that compared

    def to_json(self) -> dict[str, Any]:
        """Return everything but pictures and curves, as strict JSON can hold it."""
        summaries = {method: self.frames.summary(method) for method in self.frames.methods}
        means = {method: summary["mean_over_frames"] for method, summary in summaries.items()}
        content = {
            "commit": self.commit,
            "result": overall(self.rules),
            "rules": [{**vars(rule), "outcome": rule.outcome} for rule in self.rules],
            "protocol": self.frames.protocol,
            "notes": self.frames.notes,
            "inputs_sha256": self.inputs_sha256,
            "num_frames": len(self.frames.frames),
            "seed": self.seed,
            "runs": {
                method: {
                    **run.loaded.identity,
                    "steps": run.steps,
                    "precision": run.state["precision"],
                    "seconds_per_step": run.seconds_per_step,
                    "compute_s": run.compute_s,
                }
                for method, run in ((RGB_ONLY, self.baseline), (SPIKE, self.spike))
            }
            | {method: other.record for method, other in self.others.items()},
            "mean_over_frames": {m: {name: x[name] for name in METRICS} for m, x in means.items()},
            "motion_edges": {m: {name: x[name] for name in EDGE_METRICS} for m, x in means.items()},
            "mean_over_sequences": {m: s["mean_over_sequences"] for m, s in summaries.items()},
            "sequences": {
                name: {method: s["sequences"][name] for method, s in summaries.items()}
                for name in dict.fromkeys(self.frames.sequences)
            },
            "differences": {
                metric: None if found is None else dataclasses.asdict(found)
                for metric, found in self.differences.items()
            },
            "frames": [vars(frame) for frame in self.frames.frames],
        }
        return json_safe(content)


def compare_runs(
    cfg: CfgNode,
    baseline: TrainedRun,
    spike: TrainedRun,
    recordings: list[Recording],
    *,
    training: list[Recording],
    others: dict[str, OtherNetwork],
) -> Comparison:
    """Restore all frames with both models and the others, and compare them.

    Device and tiles are those of `cfg`, the same for all. The spike image without learning is
    chosen on the `training` sequences. Runs that cannot be compared, or ran with different tiles,
    are a ValueError.
    """
    check_comparable(baseline, spike)
    device, choice = choose_device(cfg.DEVICE), ExampleChoice()
    lpips, notes = build_lpips(cfg, device)
    models = {RGB_ONLY: (baseline.cfg, baseline.loaded.model)}
    models |= {name: (spike.cfg, other.model) for name, other in others.items()}
    models[SPIKE] = (spike.cfg, spike.loaded.model)
    restorers = {
        name: build_restorer(trained_with, model.to(device), device, tiles=cfg)
        for name, (trained_with, model) in models.items()
    }
    protocol = describe_protocol(restorers[SPIKE])
    images = choose_spike_image(training, recordings)
    methods = {
        BLURRY: blurry_frames,
        NO_LEARNING: images[0].restore,
        **{name: restorer.restore for name, restorer in restorers.items()},
        BOUND: bound_at_spike_resolution,
    }
    total = sum(map(len, recordings))
    with tqdm(total=total, unit="frame", disable=not sys.stderr.isatty()) as bar:

        def on_frame(frame: FrameScores, images: FrameImages) -> None:
            choice.take(frame, images)
            bar.update()

        rows, digest = compare_frames(methods, recordings, lpips=lpips, on_frame=on_frame)
    check_tiles(restorers[RGB_ONLY], restorers[SPIKE])
    notes = [*notes, *notes_on_sizes(rows, has_lpips=lpips is not None)]
    frames = Report(rows, protocol, notes)
    rules = apply_rules(frames.means(RGB_ONLY), frames.means(SPIKE), notes=notes)
    frames.notes = [*notes, *describe_rows(images), *remarks(frames)]
    memory, _ = peak_memory_gib(device)
    return Comparison(
        baseline=baseline,
        spike=spike,
        others=others,
        frames=frames,
        inputs_sha256=digest,
        seconds_per_frame={name: r.seconds / max(1, total) for name, r in restorers.items()},
        differences=paired_differences(frames, cfg.SEED),
        rules=rules,
        examples=choice.examples,
        seed=cfg.SEED,
        device=f"{device}, {'?' if memory is None else f'{memory:.2f}'} GiB at most",
        commit=git_commit(),
    )


def describe_rows(images: list[SpikeImage]) -> list[str]:
    """Return what the rows without a network are."""
    chosen = "; ".join(f"{image.describe()}: {image.psnr_db:.2f} dB" for image in images)
    return [
        f"{NO_LEARNING} is the best spike image on training frames, with the chroma of the blurry "
        f"frame ({chosen})",
        f"{BOUND} is the true luma averaged to the pixels of the spikes and enlarged, with the "
        "chroma of the blurry frame",
    ]


def paired_differences(frames: Report, seed: int) -> dict[str, PairedDifference | None]:
    """Return VRT+Spike minus baseline by metric; None: not measured."""
    return {
        metric: paired_difference(
            *(frames.values(method, metric) for method in (RGB_ONLY, SPIKE)),
            frames.sequences,
            seed=seed,
        )
        for metric in (*METRICS, *EDGE_METRICS)
    }


def remarks(frames: Report) -> list[str]:
    """Return which models are worse than their input, and which are better than VRT+Spike."""
    psnr = {method: frames.means(method)["psnr_rgb"] for method in frames.methods}
    return [
        f"{method} does not restore: its PSNR {psnr[method]:.2f} dB is not above that of the "
        f"blurry input, {psnr[BLURRY]:.2f} dB; train for longer before you conclude anything"
        for method in frames.methods
        if method not in (BLURRY, BOUND) and psnr[method] <= psnr[BLURRY] + SAME_DB
    ] + [
        f"{method} is better than VRT+Spike: {psnr[method]:.2f} dB, VRT+Spike {psnr[SPIKE]:.2f} dB"
        for method in frames.methods
        if method not in (BLURRY, RGB_ONLY, BOUND) and psnr[method] > psnr[SPIKE]
    ]


def check_tiles(baseline: Restorer, spike: Restorer) -> None:
    """Refuse results of models that were cut differently, because memory ran out for one."""
    if baseline.settings != spike.settings:
        raise ValueError(
            f"memory ran out for one model: the baseline ran with {baseline.settings.describe()}, "
            f"VRT+Spike with {spike.settings.describe()}; give smaller tiles to both "
            "(VAL.TILE_SIZE)"
        )
