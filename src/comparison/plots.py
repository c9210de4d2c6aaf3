"""The two plots of a comparison's page, as SVG in a data URI."""

import base64
import math
from collections.abc import Mapping, Sequence
from io import BytesIO

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from src.metrics.paired import Interval

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
    return axes


def _as_uri(figure: Figure) -> str:
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"
