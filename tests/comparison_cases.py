"""Recordings and scores from which comparisons are made without a network."""

import numpy as np
from torch import nn

from src.comparison.scores import BLURRY, SPIKE, TWIN, ComparedFrame, ComparedFrames
from src.inference.restore import Normalization, Restorer
from src.inference.tiling import TileSettings
from tests.inference_cases import Video

METRICS = ("psnr_rgb", "ssim_rgb", "psnr_y", "ssim_y", "lpips", "edge_sharpness", "edge_error")


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


def compared(rows):
    """Return compared frames from (sequence, PSNR of the twin, PSNR of VRT+Spike) rows."""
    frames = []
    for index, (sequence, twin, spike) in enumerate(rows):
        scores = {
            method: {**dict.fromkeys(METRICS, 0.5), "lpips": None, "psnr_rgb": value}
            for method, value in ((BLURRY, 20.0), (TWIN, twin), (SPIKE, spike))
        }
        frames.append(ComparedFrame(sequence, f"{index:06d}", scores))
    return ComparedFrames(frames, "by hand", [], "0" * 64, {TWIN: 0.1, SPIKE: 0.2})


def grey(level, size=(40, 48)):
    """Return a uint8 RGB frame of one level."""
    return np.full((*size, 3), level, np.uint8)
