"""Clips of sizes that VRT cannot take: continued to one that it can, and cropped afterwards."""

import math
from dataclasses import dataclass

import torch
from torch import nn

NUM_SCALES = 4


@dataclass(frozen=True)
class SizeRule:
    """What a VRT can take: at least `min_frames` and `min_size_px`, sides a multiple of 8."""

    min_frames: int = 2
    min_size_px: int = 64
    multiple_px: int = 8

    def padded(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the smallest allowed extent (T, H, W) that holds the given one."""
        unit = self.multiple_px
        height, width = (-(-max(x, self.min_size_px) // unit) * unit for x in (height, width))
        return max(frames, self.min_frames), height, width

    def scaled(self, factor: int) -> "SizeRule":
        """Return the rule for frames that are `factor` times as large as what VRT sees."""
        return SizeRule(self.min_frames, self.min_size_px * factor, self.multiple_px * factor)


def size_rule_of(vrt: nn.Module) -> SizeRule:
    """Derive the rule from the shapes in a VRT's state dict.

    Blocks with mutual attention have a position code with one row per pixel of their window, and
    the window must fit into the map of their scale and two frames deep. Alignment to G > 1
    neighbours on each side, read off the input channels of the offset network, needs G + 1 frames.
    """
    shapes = {key: tuple(value.shape) for key, value in vrt.state_dict().items()}
    min_frames = min_size = 1
    for stage in range(1, 8):
        block = f"stage{stage}.residual_group1.blocks.0.attn."
        if block + "position_bias" in shapes:
            # A two-frame window (2, h, w) has h * w rows and a table of 3(2h - 1)(2w - 1).
            area = shapes[block + "position_bias"][1]
            table_rows = shapes[block + "relative_position_bias_table"][0]
            total = (4 * area + 1 - table_rows // 3) // 2  # h + w
            longer_side = (total + math.isqrt(max(0, total * total - 4 * area))) // 2
            min_size = max(min_size, 2 ** min(stage - 1, 7 - stage) * longer_side)
            min_frames = max(min_frames, 2)
        offsets = f"stage{stage}.pa_deform.conv_offset.0.weight"
        if offsets in shapes:
            width, inputs = shapes[offsets][:2]  # inputs = (1 + G) * width + 2 * G
            neighbours = (inputs - width) // (width + 2)
            min_frames = max(min_frames, neighbours + 1 if neighbours > 1 else 1)
    return SizeRule(min_frames, min_size)


def reflect_index(length: int, target: int) -> list[int]:
    """Return `target` indices into `length` entries: forth, back, forth; ends are not repeated."""
    period = max(1, 2 * (length - 1))
    return [min(i % period, period - i % period) if length > 1 else 0 for i in range(target)]


def pad_clip(clip: torch.Tensor, extent: tuple[int, int, int]) -> torch.Tensor:
    """Continue a clip [B, T, C, H, W]: the last frame is repeated, height and width mirrored.

    Any extent works, also one many times as long. Returns `clip` itself if nothing is missing.
    """
    frames, height, width = extent
    repeated = [min(t, clip.shape[1] - 1) for t in range(frames)]
    rows, columns = reflect_index(clip.shape[3], height), reflect_index(clip.shape[4], width)
    for axis, index in ((1, repeated), (3, rows), (4, columns)):
        if clip.shape[axis] != len(index):
            clip = clip.index_select(axis, torch.tensor(index, device=clip.device))
    return clip


def pad_spikes(
    voxels: torch.Tensor, size: tuple[int, int], extent: tuple[int, int, int]
) -> torch.Tensor:
    """Continue voxel grids [B, T, K, Hs, Ws] over the scene region that a padded clip covers.

    They cover the same region as RGB frames of `size` (H, W) before padding; `extent` (T, H', W')
    is that of the clip after it. Hs * H' / H is rounded: at most half a spike pixel at the border.
    """
    height, width = (
        round(voxels.shape[axis] * padded / before)
        for axis, padded, before in zip((3, 4), extent[1:], size, strict=True)
    )
    return pad_clip(voxels, (extent[0], height, width))
