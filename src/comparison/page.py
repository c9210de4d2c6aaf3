"""The comparison as one HTML page that opens from disk: no server, no network."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import nn

from src.comparison.compare import Comparison, overall
from src.comparison.examples import ERROR_LEVELS, pictures_of
from src.comparison.plots import plot_differences, plot_validations
from src.comparison.runs import TrainedRun
from src.comparison.scores import BLURRY, SPIKE, TWIN
from src.engine.checkpoint import config_differences
from src.metrics.motion_edges import EDGE_LEVELS, MOTION_LEVELS
from src.metrics.paired import FEW_SEQUENCES, NUM_RESAMPLES

# Metric, its name, decimals, which direction is better.
SHOWN = (
    ("psnr_rgb", "PSNR-RGB in dB", 3, "higher"),
    ("ssim_rgb", "SSIM-RGB", 4, "higher"),
    ("psnr_y", "PSNR-Y in dB", 3, "higher"),
    ("ssim_y", "SSIM-Y", 4, "higher"),
    ("lpips", "LPIPS", 4, "lower"),
    ("edge_sharpness", "motion-edge sharpness", 3, "nearer to 1"),
    ("edge_error", "motion-edge error", 3, "lower"),
)


def number(value: float | None, decimals: int, sign: str = "") -> str:
    """Return a number as the page shows it, a dash for None."""
    return "–" if value is None else f"{value:{sign}.{decimals}f}"


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters["number"] = number


def render_page(comparison: Comparison) -> str:
    """Return the page as HTML."""
    frames, twin, spike = comparison.frames, comparison.twin, comparison.spike
    differences = config_differences(twin.state["config"], spike.state["config"], ())
    return TEMPLATES.get_template("page.html").render(
        c=comparison,
        frames=frames,
        title=f"{spike.run.name}: VRT+Spike and its RGB-only twin",
        result=overall(comparison.rules),
        names=list(dict.fromkeys(frames.sequences)),
        summaries={method: frames.summary(method) for method in frames.methods},
        metrics=SHOWN,
        names_of_metrics=[name for _, name, _, _ in SHOWN],
        means_header=[f"{name} ({better})" for _, name, _, better in SHOWN],
        few_sequences=FEW_SEQUENCES,
        num_resamples=NUM_RESAMPLES,
        edge_levels=(MOTION_LEVELS, EDGE_LEVELS),
        difference_plot=_difference_plot(comparison),
        validation_plot=plot_validations(
            {TWIN: twin.curve, SPIKE: spike.curve}, (BLURRY, frames.means(BLURRY)["psnr_rgb"])
        ),
        error_levels=ERROR_LEVELS,
        examples=[(example.title, pictures_of(example)) for example in comparison.examples],
        runs=_columns(comparison),
        config_differences=[
            line.replace("the checkpoint has", "twin").replace("the configuration", "VRT+Spike")
            for line in differences
        ],
    )


def _difference_plot(comparison: Comparison) -> str | None:
    frames, psnr = comparison.frames, comparison.differences["psnr_rgb"]
    pairs = zip(frames.values(TWIN, "psnr_rgb"), frames.values(SPIKE, "psnr_rgb"), strict=True)
    return plot_differences(
        [0.0 if a == b else b - a for a, b in pairs],
        frames.sequences,
        psnr.mean,
        psnr.over_sequences or psnr.over_frames,
    )


def _columns(comparison: Comparison) -> dict[str, dict[str, object]]:
    """Return the columns of the table of networks: weights, cost, configuration."""
    columns = {TWIN: _run(comparison.twin)}
    for name, rival in comparison.rivals.items():
        known = _facts(rival.record, rival.model, rival.record["step"], rival.record["compute_s"])
        columns[name] = {row: known.get(row, "–") for row in columns[TWIN]}
    columns[SPIKE] = _run(comparison.spike)
    for name, column in columns.items():
        column["network, seconds per frame here"] = number(comparison.seconds_per_frame[name], 3)
    return columns


def _facts(
    identity: dict[str, Any], model: nn.Module, steps: int, compute_s: float | None
) -> dict[str, object]:
    return {
        "weights": identity["file"],
        "SHA-256": identity["sha256"],
        "parameters": f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M",
        "steps trained": steps,
        "computing, s of CPU or GPU": number(compute_s, 0),
    }


def _run(run: TrainedRun) -> dict[str, object]:
    speed = run.seconds_per_step
    return {
        "run": run.run.name,
        **_facts(run.loaded.identity, run.loaded.model, run.steps, run.compute_s),
        "step of the weights": run.loaded.identity["step"],
        "clips per step": run.state["clips_per_step"],
        "seed": run.cfg.SEED,
        "precision of training": run.state["precision"],
        "seconds per step": number(speed, 3),
        "hours of training": number(speed and run.steps * speed / 3600, 2),
    }
