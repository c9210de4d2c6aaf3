"""Scores of frames, their means, and the JSON form that states how they were measured."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from src.metrics.lpips_metric import LpipsMetric
from src.metrics.psnr_ssim import psnr, psnr_y, ssim, ssim_y

METRICS = ("psnr_rgb", "ssim_rgb", "psnr_y", "ssim_y", "lpips")
Scores = dict[str, float | None]


@dataclass(frozen=True)
class FrameScores:
    """Scores of one frame.

    Attributes:
        sequence: Name of the recording.
        frame: Name of the frame.
        scores: Metric name to value; PSNR in dB, `inf` for equal images; None: not measured.
        blurry_scores: The same of the blurry input, where asked for.
    """

    sequence: str
    frame: str
    scores: Scores
    blurry_scores: Scores | None = None

    def __post_init__(self) -> None:
        for scores in (self.scores, self.blurry_scores or {}):
            for name, value in scores.items():
                if value is not None and math.isnan(value):
                    raise ValueError(f"{self.sequence}/{self.frame}: {name} is not a number")


@dataclass
class Report:
    """Scores of all frames with the words that say how they were measured.

    Attributes:
        frames: One row per frame, in the order of the recordings.
        protocol: How the numbers came about, see `describe_protocol`.
        notes: What is missing and why, like LPIPS without weights.
    """

    frames: list[FrameScores]
    protocol: str
    notes: list[str] = field(default_factory=list)

    @property
    def means(self) -> Scores:
        """Metric name to its mean over all frames; the project's main numbers."""
        return summarize(self.frames)["mean_over_frames"]

    @property
    def blurry_means(self) -> Scores | None:
        """The same of the blurry input; None where it was not scored."""
        if not self.frames or self.frames[0].blurry_scores is None:
            return None
        return summarize(_blurry_rows(self.frames))["mean_over_frames"]

    def to_json(self) -> dict[str, Any]:
        """Return everything as values that strict JSON can hold; infinity is the string "inf"."""
        result = {
            "protocol": self.protocol,
            "notes": self.notes,
            "num_frames": len(self.frames),
            "num_sequences": len({row.sequence for row in self.frames}),
            "restored": summarize(self.frames),
        }
        if self.blurry_means is not None:
            result["blurry"] = summarize(_blurry_rows(self.frames))
        result["frames"] = [_row(frame) for frame in self.frames]
        return json_safe(result)


def merge_reports(reports: Iterable[Report]) -> Report:
    """Return one report over the frames of several, for recordings shared out among ranks.

    The rows are ordered by sequence and frame name, so that the result does not depend on how the
    recordings were shared out.

    Raises:
        ValueError: if the reports were not measured in the same way, or there is none.
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
    metric that any frame lacks has the mean None.
    """
    sequences: dict[str, list[FrameScores]] = {}
    for row in frames:
        sequences.setdefault(row.sequence, []).append(row)
    per_sequence = {name: _mean([r.scores for r in rows]) for name, rows in sequences.items()}
    return {
        "mean_over_frames": _mean([row.scores for row in frames]),
        "mean_over_sequences": _mean(list(per_sequence.values())),
        "sequences": per_sequence,
        "num_infinite": sum(row.scores["psnr_rgb"] == math.inf for row in frames),
    }


def json_safe(value: Any) -> Any:
    """Return `value` with every infinite float as the string "inf" or "-inf".

    Raises:
        ValueError: for a NaN, which must never look like a result.
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
        lines.append(f"{label:<{width}}" + "".join(f"  {_cell(n, means[n]):>9}" for n in METRICS))
    return "\n".join(lines)


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if name.startswith("psnr") else f"{value:.4f}"


def _mean(rows: list[Scores]) -> Scores:
    means: Scores = {}
    for name in METRICS:
        values = [row[name] for row in rows]
        known = [value for value in values if value is not None]
        means[name] = math.fsum(known) / len(known) if known and len(known) == len(values) else None
    return means


def _blurry_rows(frames: list[FrameScores]) -> list[FrameScores]:
    return [FrameScores(row.sequence, row.frame, row.blurry_scores) for row in frames]


def _row(frame: FrameScores) -> dict[str, Any]:
    row = {"sequence": frame.sequence, "frame": frame.frame, **frame.scores}
    if frame.blurry_scores is not None:
        row["blurry"] = frame.blurry_scores
    return row
