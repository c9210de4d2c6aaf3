"""Models and videos that make restoring predictable."""

import numpy as np
import torch
from torch import nn

from src.inference.tiling import (
    blend_clips,
    blend_tiles,
    mirror_to,
    padded_size,
    plan_space,
    plan_time,
)


class Identity(nn.Module):
    """Returns the blurry frames."""

    def forward(self, rgb, spikes=None):
        return rgb.clone()


class SpikesAsImage(nn.Module):
    """Returns where the spikes of a tile lie: the mean of normalised bins, enlarged to RGB."""

    def forward(self, rgb, spikes):
        factor = rgb.shape[-1] // spikes.shape[-1]
        assert spikes.shape[-2] * factor == rgb.shape[-2]
        mean = spikes.mean(dim=2, keepdim=True).expand(-1, -1, 3, -1, -1)
        return mean.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


class TemporalMean(nn.Module):
    """Returns the mean of the clip at every frame, so that results depend on the clips."""

    def forward(self, rgb, spikes=None):
        return rgb.mean(dim=1, keepdim=True).expand_as(rgb)


class OutOfMemoryAbove(nn.Module):
    """Returns the blurry frames, but runs out of memory where a tile has a longer side."""

    def __init__(self, limit_px):
        super().__init__()
        self.limit_px = limit_px
        self.sizes = []

    def forward(self, rgb, spikes=None):
        self.sizes.append(tuple(rgb.shape[-2:]))
        if max(rgb.shape[-2:]) > self.limit_px:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return rgb


class Video:
    """A random video whose frames are made when they are read."""

    name = "video"

    def __init__(self, num_frames=7, size=(48, 40), spike_size=(24, 20), num_bins=4, seed=0):
        self.num_frames, self.size, self.spike_size = num_frames, size, spike_size
        self.num_bins, self.seed = num_bins, seed
        self.read_counter = {}

    def __len__(self):
        return self.num_frames

    @property
    def frames(self):
        return tuple(Named(f"{i:06d}") for i in range(self.num_frames))

    def _image(self, i, kind):
        random = np.random.default_rng([self.seed, i, kind])
        return random.integers(0, 256, (*self.size, 3), dtype=np.uint8)

    def read_blurry(self, i):
        self.read_counter[i] = self.read_counter.get(i, 0) + 1
        return self._image(i, 0)

    def read_sharp(self, i):
        return self._image(i, 1)

    def read_counts(self, i):
        random = np.random.default_rng([self.seed, i, 2])
        return random.integers(0, 9, (self.num_bins, *self.spike_size), dtype=np.uint8)


class Named:
    def __init__(self, name):
        self.name = name


def tile_clip(net, clip, settings):
    """Return `net(clip)` computed tile by tile, [B, T, C', H, W] on the CPU.

    `net` takes frames [B, t, C, h, w] without spikes.
    """
    num_frames, _, height, width = clip.shape[1:]
    clip_plan, indices = plan_time(num_frames, settings)
    size = padded_size((height, width), settings)
    padded = mirror_to(clip, size)
    rows, columns = plan_space(size, settings)

    def run_clip(frames: list[int]) -> torch.Tensor:
        part = padded[:, frames]
        whole = blend_tiles(lambda y, x: net(part[..., y, x]), rows, columns)
        return whole[..., :height, :width].transpose(0, 1)

    frames = list(blend_clips(run_clip, clip_plan, indices))[:num_frames]
    return torch.stack(frames, dim=1)
