"""Scores of frames, their means, and the JSON form that states how they were measured."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from src.data.errors import listed
from src.metrics.lpips_metric import MIN_SIDE_PX, LpipsMetric
from src.metrics.psnr_ssim import SSIM_WINDOW_PX, psnr, psnr_y, score_text, ssim, ssim_y

METRICS = ("psnr_rgb", "ssim_rgb", "psnr_y", "ssim_y", "lpips")
EDGE_METRICS = ("edge_sharpness", "edge_error")  # only of frames where enough edges move
RESTORED, BLURRY = "restored", "blurry"  # the methods of validation and testing
Scores = dict[str, float | None]


@dataclass(frozen=True)
class FrameScores:
    """Scores of one frame by method: PSNR in dB, `inf` for equal images; None: not measured."""

    sequence: str
    frame: str
    scores: dict[str, Scores]

    def __post_init__(self) -> None:
        for name, value in (item for scores in self.scores.values() for item in scores.items()):
            if value is not None and math.isnan(value):
                raise ValueError(f"{self.sequence}/{self.frame}: {name} is not a number")


@dataclass
class Report:
    """Scores of all frames, in the order of the recordings, all by the same methods."""

    frames: list[FrameScores]
    protocol: str  # how the numbers came about, see `describe_protocol`
    notes: list[str] = field(default_factory=list)  # what is missing and why

    @property
    def methods(self) -> list[str]:
        """The methods in the order of the table."""
        return list(self.frames[0].scores) if self.frames else []

    @property
    def sequences(self) -> list[str]:
        """To which recording each frame belongs."""
        return [frame.sequence for frame in self.frames]

    def values(self, method: str, metric: str) -> list[float | None]:
        """Return one value per frame."""
        return [frame.scores[method][metric] for frame in self.frames]

    def summary(self, method: str = RESTORED) -> dict[str, Any]:
        """Return the means of all metrics over frames, over sequences (means of their means).

        One frame with an infinite PSNR makes the mean infinite; `num_infinite` counts those frames.
        A metric that any frame lacks has the mean None; those of moving edges are averaged over the
        frames that have them.
        """
        rows = [frame.scores[method] for frame in self.frames]
        sequences: dict[str, list[Scores]] = {}
        for name, scores in zip(self.sequences, rows, strict=True):
            sequences.setdefault(name, []).append(scores)
        per_sequence = {name: _mean(rows) for name, rows in sequences.items()}
        return {
            "mean_over_frames": _mean(rows),
            "mean_over_sequences": _mean(list(per_sequence.values())),
            "sequences": per_sequence,
            "num_infinite": sum(scores["psnr_rgb"] == math.inf for scores in rows),
        }

    def means(self, method: str = RESTORED) -> Scores:
        """Return the means over all frames; the project's main numbers."""
        return self.summary(method)["mean_over_frames"]

    def to_json(self) -> dict[str, Any]:
        """Return everything as values that strict JSON can hold; infinity is the string "inf"."""
        others = [method for method in self.methods if method != RESTORED]
        result = {
            "protocol": self.protocol,
            "notes": self.notes,
            "num_frames": len(self.frames),
            "num_sequences": len(set(self.sequences)),
            **{method: self.summary(method) for method in (RESTORED, *others)},
            "frames": [
                {"sequence": row.sequence, "frame": row.frame, **row.scores[RESTORED]}
                | {method: row.scores[method] for method in others}
                for row in self.frames
            ],
        }
        return json_safe(result)


def merge_reports(reports: Iterable[Report]) -> Report:
    """Return one report over the frames of several, for recordings shared out among ranks.

    The rows are ordered by sequence and frame name, so that the result does not depend on how the
    recordings were shared out.
    """
    reports = list(reports)
    protocols = {report.protocol for report in reports}
    if len(protocols) != 1:
        raise ValueError(f"reports of one protocol can be merged, got {sorted(protocols)}")
    rows = sorted((row for r in reports for row in r.frames), key=lambda x: (x.sequence, x.frame))
    notes = list(dict.fromkeys(note for report in reports for note in report.notes))
    return Report(rows, protocols.pop(), notes)


def score_frame(image: np.ndarray, sharp: np.ndarray, lpips: LpipsMetric | None = None) -> Scores:
    """Return all metrics of a uint8 image against the sharp one, both [H, W, 3] RGB.

    A metric that such a small image does not have is None; `notes_on_sizes` says why.
    """
    side = min(sharp.shape[:2])
    has_ssim, has_lpips = side >= SSIM_WINDOW_PX, lpips is not None and side >= MIN_SIDE_PX
    return {
        "psnr_rgb": psnr(image, sharp),
        "ssim_rgb": ssim(image, sharp) if has_ssim else None,
        "psnr_y": psnr_y(image, sharp),
        "ssim_y": ssim_y(image, sharp) if has_ssim else None,
        "lpips": lpips(image, sharp) if has_lpips else None,
    }


def notes_on_sizes(rows: Iterable[FrameScores], *, has_lpips: bool) -> list[str]:
    """Name the sequences whose frames are too small for a metric; `has_lpips`: it is measured."""
    rows, notes = list(rows), []
    for metric, name, side in (
        ("ssim_rgb", "SSIM", SSIM_WINDOW_PX),
        *([("lpips", "LPIPS", MIN_SIDE_PX)] if has_lpips else []),
    ):
        lacking = (r.sequence for r in rows if None in (s[metric] for s in r.scores.values()))
        if sequences := list(dict.fromkeys(lacking)):
            notes.append(
                f"{name} needs {side} x {side} pixels: not measured for {listed(sequences)}, so "
                "the mean over all frames is missing, too"
            )
    return notes


def json_safe(value: Any) -> Any:
    """Return `value` with every infinite float as the string "inf" or "-inf"."""
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
        cells = (score_text(means[name], decimals=3 if "psnr" in name else 4) for name in METRICS)
        lines.append(f"{label:<{width}}" + "".join(f"  {cell:>9}" for cell in cells))
    return "\n".join(lines)


def _mean(rows: list[Scores]) -> Scores:
    means: Scores = {}
    for name in rows[0] if rows else METRICS:
        known = [row[name] for row in rows if row[name] is not None]
        is_known = bool(known) and (len(known) == len(rows) or name in EDGE_METRICS)
        means[name] = math.fsum(known) / len(known) if is_known else None
    return means
