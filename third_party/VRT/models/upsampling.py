"""Convolutions over single frames and the super-resolution tail."""

import math

import torch.nn.functional as F
from torch import Tensor, nn


class FrameConv(nn.Conv3d):
    """A (1, 3, 3) convolution, stored as 5-D weight, computed per frame in 2-D."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, frames: Tensor) -> Tensor:
        """Map frames `[N, C, H, W]` to `[N, C', H, W]`; a clip has its frames on the first axis."""
        return F.conv2d(frames, self.weight.squeeze(2), self.bias, padding=1)


class Upsample(nn.Sequential):
    """Enlarge frames by 2^n or 3 with sub-pixel convolutions; `[N, C, H, W]` in and out.

    The positions of the convolutions (0, 5, 10, ...) are those of the published state dict.

    Raises:
        ValueError: for any other scale.
    """

    def __init__(self, scale: int, channels: int) -> None:
        if scale == 3:
            rounds, step = 1, 3
        elif scale > 1 and scale & (scale - 1) == 0:
            rounds, step = int(math.log2(scale)), 2
        else:
            raise ValueError(f"upscale={scale}: the network enlarges by 2, 4, 8, ... or by 3")
        layers: list[nn.Module] = []
        for _ in range(rounds):
            layers += [
                FrameConv(channels, channels * step * step),
                nn.Identity(),
                nn.PixelShuffle(step),
                nn.Identity(),
                nn.LeakyReLU(0.1),
            ]
        super().__init__(*layers, FrameConv(channels, channels))
