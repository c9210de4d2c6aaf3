"""A pyramid of 3D convolutions over voxel grids."""

from collections.abc import Sequence

import torch
from torch import nn

from src.utils.attention import require_int, require_widths


class ResidualBlock3D(nn.Module):
    """ReLU(x + conv(ReLU(conv(x)))), width and size unchanged."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, C, T, H, W] to the same shape."""
        return torch.relu(x + self.conv2(torch.relu(self.conv1(x))))


class SpikeEncoder3D(nn.Module):
    """Turn voxel grids into four feature maps, one for each of VRT's scales.

    Scale 0: Conv3d(K -> C_1, 3), ReLU, two residual blocks. Each further scale: a strided
    Conv3d(3), two residual blocks. A stride s takes a length n to ceil(n / s).

    Args:
        in_bins: K, bins of a voxel grid.
        channels_per_scale: width of each scale, C_1 ... C_4.
        temporal_strides: stride in time from each scale to the next, one fewer than the scales.
        spatial_strides: the same for height and width.

    Raises:
        ValueError: a stride list whose length does not fit, or a number below 1.
    """

    def __init__(
        self,
        in_bins: int = 32,
        channels_per_scale: Sequence[int] = (96, 96, 96, 96),
        temporal_strides: Sequence[int] = (1, 1, 1),
        spatial_strides: Sequence[int] = (2, 2, 2),
    ) -> None:
        super().__init__()
        widths = require_widths("channels_per_scale", channels_per_scale)
        _check_strides("TEMPORAL_STRIDES", temporal_strides, len(widths))
        _check_strides("SPATIAL_STRIDES", spatial_strides, len(widths))
        require_int("in_bins", in_bins)
        self.in_bins = in_bins
        first = nn.Conv3d(in_bins, widths[0], 3, padding=1)
        stems = [nn.Sequential(first, nn.ReLU())]
        for i, (t, s) in enumerate(zip(temporal_strides, spatial_strides, strict=True)):
            stems.append(nn.Conv3d(widths[i], widths[i + 1], 3, stride=(t, s, s), padding=1))
        self.scales = nn.ModuleList(
            nn.Sequential(stem, ResidualBlock3D(width), ResidualBlock3D(width))
            for stem, width in zip(stems, widths, strict=True)
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Encode a clip.

        Args:
            x: normalised voxel grids, [B, T, K, H, W].

        Returns:
            One map [B, C_i, T_i, H_i, W_i] per scale.

        Raises:
            ValueError: not five axes, or another number of bins.
        """
        if x.ndim != 5 or x.shape[2] != self.in_bins:
            raise ValueError(
                f"voxel grids have shape {list(x.shape)}; the encoder needs "
                f"[B, T, K={self.in_bins}, H, W] (DATA.K)"
            )
        # Channels last in memory: convolutions of small width are a fifth faster on a CPU, and the
        # attentions that follow read tokens without a copy.
        x = x.transpose(1, 2).contiguous(memory_format=torch.channels_last_3d)
        maps = []
        for scale in self.scales:
            x = scale(x)
            maps.append(x)
        return maps


def _check_strides(key: str, strides: Sequence[int], num_scales: int) -> None:
    if len(strides) != num_scales - 1 or min(strides, default=1) < 1:
        raise ValueError(
            f"MODEL.SPIKE_ENCODER.{key} is {list(strides)}; {num_scales} scales need "
            f"{num_scales - 1} strides of at least 1"
        )
