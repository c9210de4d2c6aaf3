"""A pyramid of 3D convolutions over voxel grids."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from src.utils.attention import require_int, require_ints

# Below this product of batch, channels, frames and rows, torch computes a 3D convolution on a CPU
# with its own kernel, which is 1.5 to 4 times slower than oneDNN's.
SMALL_MAP = 20480


class Conv3x3x3(nn.Conv3d):
    """A 3 x 3 x 3 convolution, padded by 1; small maps on a CPU go through 2D convolutions.

    A frame, the one before it and the one after it, joined on the channel axis, make of the 3D
    kernel a 2D kernel with three times the input channels.
    """

    def __init__(
        self, channels_in: int, channels_out: int, stride: int | tuple[int, int, int] = 1
    ) -> None:
        super().__init__(channels_in, channels_out, 3, stride=stride, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, C, T, H, W] to [B, C', T', H', W']."""
        is_small = x.shape[0] * x.shape[1] * x.shape[2] * x.shape[3] <= SMALL_MAP
        return self.per_frame(x) if is_small and x.device.type == "cpu" else super().forward(x)

    def per_frame(self, x: torch.Tensor) -> torch.Tensor:
        """Do the same, one frame of the output at a time."""
        frames = F.pad(x.permute(0, 2, 3, 4, 1), (0,) * 6 + (1, 1))  # [B, T + 2, H, W, C]
        step, *stride = self.stride
        moments = (frames[:, k : frames.shape[1] - 2 + k : step] for k in range(3))
        joined = torch.cat(list(moments), dim=-1)  # [B, T', H, W, 3 * C]
        kernel = self.weight.transpose(1, 2).flatten(1, 2)  # [C', 3 * C, 3, 3]
        out = F.conv2d(
            joined.flatten(0, 1).permute(0, 3, 1, 2), kernel, self.bias, stride, padding=1
        )
        out = out.permute(0, 2, 3, 1).unflatten(0, joined.shape[:2])
        return out.permute(0, 4, 1, 2, 3)  # channels last in memory


class ResidualBlock3D(nn.Module):
    """ReLU(x + conv(ReLU(conv(x)))), width and size unchanged."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = Conv3x3x3(channels, channels)
        self.conv2 = Conv3x3x3(channels, channels)

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
    """

    def __init__(
        self,
        in_bins: int = 32,
        channels_per_scale: Sequence[int] = (96, 96, 96, 96),
        temporal_strides: Sequence[int] = (1, 1, 1),
        spatial_strides: Sequence[int] = (2, 2, 2),
    ) -> None:
        super().__init__()
        widths = require_ints("channels_per_scale", channels_per_scale)
        _check_strides("TEMPORAL_STRIDES", temporal_strides, len(widths))
        _check_strides("SPATIAL_STRIDES", spatial_strides, len(widths))
        require_int("in_bins", in_bins)
        self.in_bins = in_bins
        first = Conv3x3x3(in_bins, widths[0])
        stems = [nn.Sequential(first, nn.ReLU())]
        for i, (t, s) in enumerate(zip(temporal_strides, spatial_strides, strict=True)):
            stems.append(Conv3x3x3(widths[i], widths[i + 1], stride=(t, s, s)))
        self.scales = nn.ModuleList(
            nn.Sequential(stem, ResidualBlock3D(width), ResidualBlock3D(width))
            for stem, width in zip(stems, widths, strict=True)
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map normalised voxel grids [B, T, K, H, W] to a map [B, C_i, T_i, H_i, W_i] per scale."""
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
    name = f"MODEL.SPIKE_ENCODER.{key}"
    if len(require_ints(name, strides)) != num_scales - 1:
        raise ValueError(
            f"{name} is {list(strides)}; {num_scales} scales need {num_scales - 1} strides"
        )
