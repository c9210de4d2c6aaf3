"""Curves of a report as inline SVG, drawn without a library so that the page needs nothing."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from src.metrics.paired import Interval

WIDTH, HEIGHT = 760, 280
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 28, 44
COLOURS = ("#b45309", "#1d4ed8", "#6b7280")
MOST_BARS = 400


@dataclass(frozen=True)
class Axis:
    """A range of values, and the pixels it is drawn on."""

    low: float
    high: float
    start_px: float
    stop_px: float

    def place(self, value: float) -> float:
        """Return the pixel of a value."""
        share = (value - self.low) / (self.high - self.low)
        return self.start_px + share * (self.stop_px - self.start_px)


def line_plot(
    curves: Mapping[str, Mapping[int, float]], *, level: tuple[str, float] | None, unit: str
) -> str:
    """Return curves over optimiser steps.

    Args:
        curves: Label to step to value.
        level: Label and value of a horizontal line; None: without.
        unit: Of the values.
    """
    steps = [step for curve in curves.values() for step in curve]
    values = [value for curve in curves.values() for value in curve.values()]
    if not values:
        return "<p>No validation of these runs is left.</p>"
    values += [] if level is None else [level[1]]
    x = Axis(0, max(steps), LEFT, WIDTH - RIGHT)
    y = _value_axis(values)
    parts = [_grid(x, y, "optimiser step", unit)]
    if level is not None:
        parts.append(_level(y, level[1], "6 4"))
    labels = [] if level is None else [(level[0], COLOURS[2])]
    for (label, curve), colour in zip(curves.items(), COLOURS, strict=False):
        points = [(x.place(step), y.place(curve[step])) for step in sorted(curve)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in points]
        labels.append((label, colour))
    return _svg([*parts, _legend(labels)], f"{', '.join(curves)} over steps in {unit}")


def difference_plot(
    differences: Sequence[float],
    sequences: Sequence[str],
    *,
    mean: float,
    interval: Interval | None,
    unit: str,
) -> str:
    """Return one bar per frame, in the order of the frames; lines part the sequences.

    Of more frames than fit, means over runs of neighbours are drawn. The dashed line is the mean,
    the band its interval.
    """
    if not all(math.isfinite(value) for value in differences):
        return "<p>Some differences are infinite (a frame was restored perfectly).</p>"
    run = math.ceil(len(differences) / MOST_BARS)
    values = [
        sum(differences[i : i + run]) / len(differences[i : i + run])
        for i in range(0, len(differences), run)
    ]
    ends = [] if interval is None else [interval.low, interval.high]
    y = _value_axis([*values, *ends, 0.0])
    x = Axis(0, len(values), LEFT, WIDTH - RIGHT)
    parts = [_grid(None, y, "frames in order, lines part the sequences", unit)]
    if interval is not None:
        top, bottom = y.place(interval.high), y.place(interval.low)
        parts.append(
            f'<rect x="{LEFT}" y="{top:.1f}" width="{WIDTH - RIGHT - LEFT}" '
            f'height="{bottom - top:.1f}" fill="#1d4ed8" opacity="0.12"/>'
        )
    zero = y.place(0.0)
    width = 0.8 * (x.place(1) - x.place(0))
    for i, value in enumerate(values):
        end, colour = y.place(value), COLOURS[1] if value >= 0 else COLOURS[0]
        parts.append(
            f'<rect x="{x.place(i + 0.1):.1f}" y="{min(zero, end):.1f}" width="{width:.2f}" '
            f'height="{abs(zero - end):.1f}" fill="{colour}"/>'
        )
    for i in range(1, len(sequences)):
        if sequences[i] != sequences[i - 1]:
            at = x.place(i / run)
            parts.append(_line(at, TOP, at, HEIGHT - BOTTOM, "#9ca3af", "2 3"))
    parts += [_line(LEFT, zero, WIDTH - RIGHT, zero, "#111827"), _level(y, mean, "6 4")]
    return _svg(parts, f"difference of every frame in {unit}")


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers from `low` to `high`, at steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _value_axis(values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.5
    return Axis(low - margin, high + margin, HEIGHT - BOTTOM, TOP)


def _grid(x: Axis | None, y: Axis, x_title: str, y_title: str) -> str:
    parts = []
    for value in nice_ticks(y.low, y.high):
        at = y.place(value)
        parts.append(_line(LEFT, at, WIDTH - RIGHT, at, "#e5e7eb"))
        parts.append(_text(LEFT - 8, at + 4, f"{value:g}", "end"))
    if x is not None:
        for value in nice_ticks(x.low, x.high):
            parts.append(_text(x.place(value), HEIGHT - BOTTOM + 18, f"{value:g}", "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_title, "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_title)}</text>"
    )
    return "".join(parts)


def _legend(labels: Sequence[tuple[str, str]]) -> str:
    parts, at = [], LEFT + 12
    for label, colour in labels:
        parts.append(f'<rect x="{at}" y="8" width="14" height="4" fill="{colour}"/>')
        parts.append(_text(at + 20, 14, label, "start"))
        at += 36 + 7 * len(label)
    return "".join(parts)


def _level(y: Axis, value: float, dash: str) -> str:
    at = y.place(value)
    return _line(LEFT, at, WIDTH - RIGHT, at, COLOURS[2], dash)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dash: str = "") -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dashed}/>'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(parts: Sequence[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
