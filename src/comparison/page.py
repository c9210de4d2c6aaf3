"""The comparison as one HTML page that opens from disk: no server, no network.

Its plots are SVG in a data URI.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from src.comparison.compare import Comparison, overall
from src.comparison.examples import ERROR_LEVELS, pictures_of
from src.comparison.runs import TrainedRun
from src.comparison.scores import BLURRY, RGB_ONLY, SPIKE
from src.engine.checkpoint import config_differences
from src.metrics.motion_edges import EDGE_LEVELS, MOTION_LEVELS
from src.metrics.paired import FEW_SEQUENCES, NUM_RESAMPLES, Interval

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
COLOURS = ("#b45309", "#1d4ed8")
GREY = "#6b7280"
STYLE = {
    "svg.hashsalt": "comparison",  # equal plots are equal bytes
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9ca3af",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
}


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
    frames, baseline, spike = comparison.frames, comparison.baseline, comparison.spike
    differences = config_differences(baseline.state["config"], spike.state["config"], ())
    return TEMPLATES.get_template("page.html").render(
        c=comparison,
        frames=frames,
        title=f"{spike.run.name}: VRT+Spike and its RGB-only baseline",
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
            {RGB_ONLY: baseline.curve, SPIKE: spike.curve},
            (BLURRY, frames.means(BLURRY)["psnr_rgb"]),
        ),
        error_levels=ERROR_LEVELS,
        examples=[(example.title, pictures_of(example)) for example in comparison.examples],
        runs=_columns(comparison),
        config_differences=[
            line.replace("the checkpoint has", "baseline").replace("the configuration", "VRT+Spike")
            for line in differences
        ],
    )


def _difference_plot(comparison: Comparison) -> str | None:
    frames, psnr = comparison.frames, comparison.differences["psnr_rgb"]
    pairs = zip(frames.values(RGB_ONLY, "psnr_rgb"), frames.values(SPIKE, "psnr_rgb"), strict=True)
    return plot_differences(
        [0.0 if a == b else b - a for a, b in pairs],
        frames.sequences,
        psnr.mean,
        psnr.over_sequences or psnr.over_frames,
    )


def _columns(comparison: Comparison) -> dict[str, dict[str, object]]:
    """Return the columns of the table of networks: weights, cost, configuration."""
    columns = {RGB_ONLY: _run(comparison.baseline)}
    for name, other in comparison.others.items():
        known = _facts(other.record, other.model, other.record["step"], other.record["compute_s"])
        columns[name] = {row: known.get(row, "–") for row in columns[RGB_ONLY]}
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


# ---------------------------------------------------------------- the plots


def plot_validations(
    curves: Mapping[str, Mapping[int, float]], level: tuple[str, float]
) -> str | None:
    """Return PSNR in dB over optimizer steps, per label; None without any value.

    `level` is label and PSNR of a horizontal line.
    """
    if not any(curves.values()):
        return None
    with matplotlib.rc_context(STYLE):
        axes = _axes("optimizer step", "PSNR in dB")
        for (label, curve), colour in zip(curves.items(), COLOURS, strict=True):
            points = zip(*sorted(curve.items()), strict=True) if curve else ((), ())
            axes.plot(*points, "o-", color=colour, label=label, markersize=3)
        name, value = level
        if math.isfinite(value):
            axes.axhline(value, color=GREY, linestyle="--", label=name)
        axes.set_xlim(left=0)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)
        return _as_uri(axes.figure)


def plot_differences(
    differences: Sequence[float], sequences: Sequence[str], mean: float, interval: Interval | None
) -> str | None:
    """Return the difference of every frame in dB, in its sequence; None where one is infinite.

    Vertical lines separate the sequences; the dashed line is the mean, the band its interval.
    """
    values = np.array(differences)
    if not np.isfinite(values).all():
        return None
    with matplotlib.rc_context(STYLE):
        axes = _axes("frame, lines separate the sequences", "PSNR difference in dB")
        for part, colour in zip((values.clip(max=0), values.clip(min=0)), COLOURS, strict=True):
            axes.stairs(part, np.arange(len(values) + 1) - 0.5, fill=True, color=colour)
        for i in range(1, len(sequences)):
            if sequences[i] != sequences[i - 1]:
                axes.axvline(i - 0.5, color="#9ca3af", linestyle=":", linewidth=1)
        if interval is not None:
            axes.axhspan(interval.low, interval.high, color=COLOURS[1], alpha=0.12)
        axes.axhline(0, color="#111827", linewidth=0.8)
        axes.axhline(mean, color=GREY, linestyle="--")
        axes.set_xlim(-0.5, len(values) - 0.5)
        return _as_uri(axes.figure)


def _axes(x_label: str, y_label: str) -> Axes:
    axes = Figure(figsize=(9, 3.2), layout="constrained").add_subplot()
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return axes


def _as_uri(figure: Figure) -> str:
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"
