"""Restores recordings and scores them, for validation during training and for testing."""

import sys
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from yacs.config import CfgNode

from src.data.recordings import Recording
from src.inference.restore import NonFiniteOutputError, Restorer
from src.metrics.lpips_metric import LpipsMetric, LpipsUnavailableError
from src.metrics.report import BLURRY, RESTORED, FrameScores, Report, score_frame
from src.paths import resolve

if sys.platform != "win32":
    import resource

# A recording, the number of a frame, the restored image and its scores (None: not scored).
Evaluated = tuple[Recording, int, np.ndarray, FrameScores | None]


def evaluate(
    restorer: Restorer,
    recordings: Sequence[Recording],
    *,
    clips: Sequence[range] | None = None,
    score: bool = True,
    score_blurry: bool = False,
    lpips: LpipsMetric | None = None,
) -> Iterator[Evaluated]:
    """Restore every frame of the recordings in order and score it against the sharp one.

    Ranks that share the work evaluate the parts of `src.inference.tiling.share_out` and join their
    reports by `src.metrics.report.merge_reports`; `clips` are consecutive ones of each recording,
    None: all. Without `score` nothing sharp is read.
    """
    parts = [None] * len(recordings) if clips is None else clips
    for recording, part in zip(recordings, parts, strict=True):
        try:
            for i, image in restorer.restore(recording, part):
                row = _score(recording, i, image, score_blurry, lpips) if score else None
                yield recording, i, image, row
        except NonFiniteOutputError as error:
            raise NonFiniteOutputError(f"{recording.name}: {error}") from error


def report_on(restorer: Restorer, rows: list[FrameScores], notes: Sequence[str] = ()) -> Report:
    """Return the report on scored frames; notes say what differs from the protocol and why."""
    notes = list(notes)
    if restorer.settings != restorer.first_settings:
        notes.append(f"the device ran out of memory; {restorer.settings.describe()} was used")
    return Report(rows, describe_protocol(restorer), notes)


def build_lpips(cfg: CfgNode, device: str | torch.device) -> tuple[LpipsMetric | None, list[str]]:
    """Return LPIPS, or None with a note about the reason."""
    if not cfg.VAL.LPIPS:
        return None, ["LPIPS was not measured: VAL.LPIPS is false"]
    weights = resolve(cfg.VAL.LPIPS_WEIGHTS) if cfg.VAL.LPIPS_WEIGHTS else ""
    try:
        return LpipsMetric(weights, device), []
    except LpipsUnavailableError as error:
        return None, [f"LPIPS was not measured: {error}"]


def describe_protocol(restorer: Restorer) -> str:
    """Return in words how restored frames are computed and scored, for reports."""
    numbers = "float32" if restorer.autocast_dtype is None else str(restorer.autocast_dtype)[6:]
    return (
        "8-bit RGB after clamping to 0..1 and rounding; whole frames, border 0, no resizing; "
        "PSNR and SSIM (11x11 Gaussian, sigma 1.5, valid region, mean of channels) per frame in "
        "float64; Y is BT.601 studio range, unrounded; LPIPS is AlexNet v0.1; "
        f"{restorer.first_settings.describe()}; network in {numbers}"
    )


def _score(
    recording: Recording, i: int, image: np.ndarray, with_blurry: bool, lpips: LpipsMetric | None
) -> FrameScores:
    sharp, frame = recording.read_sharp(i), recording.frames[i].name
    try:
        scores = {RESTORED: score_frame(image, sharp, lpips)}
        if with_blurry:
            scores[BLURRY] = score_frame(recording.read_blurry(i), sharp, lpips)
    except ValueError as error:
        raise ValueError(f"{recording.name}/{frame}: {error}") from error
    return FrameScores(recording.name, frame, scores)


def peak_memory_gib(device: torch.device) -> tuple[float | None, str]:
    """Return the largest memory so far in GiB, and whose it is; None on Windows without CUDA.

    On a CUDA device it is what tensors used there, otherwise the memory of this process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30, f"tensors on {device}"
    if sys.platform == "win32":
        return None, "not measured on Windows"
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, "process"
