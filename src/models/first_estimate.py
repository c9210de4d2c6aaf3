"""A first estimate of the sharp frames: a small U-Net from voxels and blurry frame to sharp frame.

VRT learns slowly, and a step of it is expensive. A few convolutions that see the raw voxels beside
the blurry frame learn most of the restoration in a fraction of the time. With MODEL.FIRST_ESTIMATE
they run first, frame by frame, at the resolution of `MODEL.PIXEL_UNSHUFFLE`; VRT starts from their
result and their features, and adds what other frames know.
"""

import torch
import torch.nn.functional as F
from torch import nn

from src.models.fusion.cross_attn_temporal import resize_frames

# With slope 0 all channels before the last layer, which starts at zero, can end up below zero in
# the first steps, and nothing is learnt from then on: seen on generated scenes.
LEAK = 0.1


class ResidualBlock(nn.Module):
    """A convolution that changes width and size, then two with a residual."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.third = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [N, outputs, h, w] from [N, inputs, h, w], or half of h and w with stride 2."""
        x = F.leaky_relu(self.first(x), LEAK)
        return x + self.third(F.leaky_relu(self.second(x), LEAK))


class FirstEstimate(nn.Module):
    """A U-Net of three levels, applied to each frame; the last layer starts at zero.

    Args:
        frame_channels: channels of an unshuffled frame, 3 * factor^2.
        spike_bins: K, bins of a voxel grid; 0 for a network that sees the frames alone.
        width: channels of the finest level.
        growth: channels of a coarser level, as a multiple of those of the level before, rounded.
    """

    def __init__(self, frame_channels: int, spike_bins: int, width: int, growth: float = 2) -> None:
        super().__init__()
        self.spike_bins = spike_bins
        middle, coarse = round(width * growth), round(width * growth**2)
        self.down_fine = ResidualBlock(frame_channels + spike_bins, width)
        self.down_middle = ResidualBlock(width, middle, stride=2)
        self.coarse = ResidualBlock(middle, coarse, stride=2)
        self.up_middle = ResidualBlock(middle + coarse, middle)
        self.up_fine = ResidualBlock(width + middle, width)
        self.to_frame = nn.Conv2d(width, frame_channels, 3, padding=1)
        nn.init.zeros_(self.to_frame.weight)
        nn.init.zeros_(self.to_frame.bias)

    def forward(
        self, frames: torch.Tensor, voxels: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the estimate of sharp frames and its features, [B, T, width, h, w].

        `frames` are unshuffled blurry frames in 0..1, [B, T, C, h, w], sides a multiple of 4;
        `voxels` are normalised grids [B, T, K, hs, ws] of the same region, None where K is 0.
        """
        x = frames - 0.5
        if voxels is not None:
            x = torch.cat([resize_frames(voxels, frames.shape[-2:]), x], dim=2)
        x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        fine = self.down_fine(x)
        middle = self.down_middle(fine)
        up = F.interpolate(self.coarse(middle), scale_factor=2.0)
        up = F.interpolate(self.up_middle(torch.cat([up, middle], dim=1)), scale_factor=2.0)
        features = self.up_fine(torch.cat([up, fine], dim=1))
        estimate = frames + self.to_frame(features).view_as(frames)
        return estimate, features.unflatten(0, frames.shape[:2])
