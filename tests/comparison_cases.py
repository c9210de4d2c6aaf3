"""Recordings and scores from which comparisons are made without a network."""

import numpy as np
from torch import nn

from src.comparison.scores import (
    BLURRY,
    BOUND,
    NO_LEARNING,
    RGB_ONLY,
    SPIKE,
    UNET,
)
from src.inference.restore import Normalization, Restorer
from src.inference.tiling import TileSettings
from src.metrics.report import EDGE_METRICS, METRICS, FrameScores, Report
from tests.inference_cases import Video


class Towards(nn.Module):
    """Adds a constant: the larger, the farther from the blurry frame."""

    def __init__(self, amount):
        super().__init__()
        self.amount = amount

    def forward(self, rgb, spikes=None):
        return rgb + self.amount


class NamedVideo(Video):
    """A video with a name of its own."""

    def __init__(self, name, num_frames=4, seed=0):
        super().__init__(num_frames, seed=seed)
        self.name = name


def restorer(amount, settings=None):
    """Return a restorer on whole frames."""
    settings = TileSettings(0, 0, 0, 0) if settings is None else settings
    return Restorer(Towards(amount), settings, Normalization(0.0, 1.0), "cpu")


def compared(rows, unet=28.0):
    """Return compared frames from (sequence, PSNR of the baseline, PSNR of VRT+Spike) rows."""
    frames = []
    for index, (sequence, baseline, spike) in enumerate(rows):
        known = dict.fromkeys((*METRICS, *EDGE_METRICS), 0.5) | {"lpips": None}
        psnrs = {
            BLURRY: 20.0,
            NO_LEARNING: 22.0,
            RGB_ONLY: baseline,
            UNET: unet,
            SPIKE: spike,
            BOUND: 40.0,
        }
        scores = {method: known | {"psnr_rgb": psnr} for method, psnr in psnrs.items()}
        frames.append(FrameScores(sequence, f"{index:06d}", scores))
    return Report(frames, "by hand")


def grey(level, size=(40, 48)):
    """Return a uint8 RGB frame of one level."""
    return np.full((*size, 3), level, np.uint8)
