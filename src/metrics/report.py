"""Scores of frames, their means, and the JSON form that states how they were measured."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from src.metrics.lpips_metric import LpipsMetric
from src.metrics.psnr_ssim import psnr, psnr_y, ssim, ssim_y

METRICS = ("psnr_rgb", "ssim_rgb", "psnr_y", "ssim_y", "lpips")
EDGE_METRICS = ("edge_sharpness", "edge_error")  # only of frames where enough edges move
Scores = dict[str, float | None]


@dataclass(frozen=True)
class FrameScores:
    """Scores of one frame: PSNR in dB, `inf` for equal images; None: not measured."""

    sequence: str
    frame: str
    scores: Scores
    blurry_scores: Scores | None = None  # of the blurry input, where asked for

    def __post_init__(self) -> None:
        for name, value in [*self.scores.items(), *(self.blurry_scores or {}).items()]:
            if value is not None and math.isnan(value):
                raise ValueError(f"{self.sequence}/{self.frame}: {name} is not a number")


@dataclass
class Report:
    """Scores of all frames, in the order of the recordings."""

    frames: list[FrameScores]
    protocol: str  # how the numbers came about, see `describe_protocol`
    notes: list[str] = field(default_factory=list)  # what is missing and why

    @property
    def means(self) -> Scores:
        """Metric to its mean over all frames; the project's main numbers."""
        return summarize(self.frames)["mean_over_frames"]

    @property
    def blurry_means(self) -> Scores | None:
        """The same of the blurry input; None where it was not scored."""
        return summarize(self._blurry)["mean_over_frames"] if self._blurry else None

    @property
    def _blurry(self) -> list[FrameScores]:
        return [
            FrameScores(row.sequence, row.frame, row.blurry_scores)
            for row in self.frames
            if row.blurry_scores is not None
        ]

    def to_json(self) -> dict[str, Any]:
        """Return everything as values that strict JSON can hold; infinity is the string "inf"."""
        frames = [
            {"sequence": row.sequence, "frame": row.frame, **row.scores}
            | ({} if row.blurry_scores is None else {"blurry": row.blurry_scores})
            for row in self.frames
        ]
        result = {
            "protocol": self.protocol,
            "notes": self.notes,
            "num_frames": len(self.frames),
            "num_sequences": len({row.sequence for row in self.frames}),
            "restored": summarize(self.frames),
            **({"blurry": summarize(self._blurry)} if self._blurry else {}),
            "frames": frames,
        }
        return json_safe(result)


def merge_reports(reports: Iterable[Report]) -> Report:
    """Return one report over the frames of several, for recordings shared out among ranks.

    The rows are ordered by sequence and frame name, so that the result does not depend on how the
    recordings were shared out.

    Raises:
        ValueError: the reports were not measured in the same way, or there is none.
    """
    reports = list(reports)
    protocols = {report.protocol for report in reports}
    if len(protocols) != 1:
        raise ValueError(f"reports of one protocol can be merged, got {sorted(protocols)}")
    rows = sorted((row for r in reports for row in r.frames), key=lambda x: (x.sequence, x.frame))
    notes = list(dict.fromkeys(note for report in reports for note in report.notes))
    return Report(rows, protocols.pop(), notes)


def score_frame(image: np.ndarray, sharp: np.ndarray, lpips: LpipsMetric | None = None) -> Scores:
    """Return all metrics of a uint8 image against the sharp one, both [H, W, 3] RGB."""
    return {
        "psnr_rgb": psnr(image, sharp),
        "ssim_rgb": ssim(image, sharp),
        "psnr_y": psnr_y(image, sharp),
        "ssim_y": ssim_y(image, sharp),
        "lpips": None if lpips is None else lpips(image, sharp),
    }


def summarize(frames: list[FrameScores]) -> dict[str, Any]:
    """Return the means of all metrics over frames, and over sequences (mean of each one's mean).

    One frame with an infinite PSNR makes the mean infinite; `num_infinite` counts those frames. A
    metric that any frame lacks has the mean None; those of moving edges are averaged over the
    frames that have them.
    """
    sequences: dict[str, list[Scores]] = {}
    for row in frames:
        sequences.setdefault(row.sequence, []).append(row.scores)
    per_sequence = {name: _mean(rows) for name, rows in sequences.items()}
    return {
        "mean_over_frames": _mean([row.scores for row in frames]),
        "mean_over_sequences": _mean(list(per_sequence.values())),
        "sequences": per_sequence,
        "num_infinite": sum(row.scores["psnr_rgb"] == math.inf for row in frames),
    }


def json_safe(value: Any) -> Any:
    """Return `value` with every infinite float as the string "inf" or "-inf".

    Raises:
        ValueError: a NaN, which must never look like a result.
    """
    if isinstance(value, dict):
        return {key: json_safe(element) for key, element in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(element) for element in value]
    if isinstance(value, float) and math.isnan(value):
        raise ValueError("a report cannot hold a NaN")
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value


def format_table(rows: list[tuple[str, Scores]]) -> str:
    """Return a text table with one line per (label, means) and one column per metric."""
    width = max([len("method"), *(len(label) for label, _ in rows)])
    lines = [f"{'method':<{width}}" + "".join(f"  {name:>9}" for name in METRICS)]
    for label, means in rows:
        cells = (
            "-" if means[name] is None else f"{means[name]:.{3 if 'psnr' in name else 4}f}"
            for name in METRICS
        )
        lines.append(f"{label:<{width}}" + "".join(f"  {cell:>9}" for cell in cells))
    return "\n".join(lines)


def _mean(rows: list[Scores]) -> Scores:
    means: Scores = {}
    for name in rows[0] if rows else METRICS:
        known = [row[name] for row in rows if row[name] is not None]
        is_known = bool(known) and (len(known) == len(rows) or name in EDGE_METRICS)
        means[name] = math.fsum(known) / len(known) if is_known else None
    return means
