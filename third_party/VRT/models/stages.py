"""The stages of VRT: rearrangement, two attention groups, parallel warping (SPEC sections 6-8)."""

from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor, nn

from third_party.VRT.models.alignment import align_neighbours, targets_at_once
from third_party.VRT.models.blocks import BlockSettings, GatedMlp, Group
from third_party.VRT.models.chunks import WINDOW_ELEMENTS, map_pieces, pieces_of
from third_party.VRT.models.deformable import FlowGuidedDeformConv

MAX_RESIDUE_PX = 10.0  # at full resolution
SCALES = (1, 2, 4, 8, 4, 2, 1)  # of stages 1 to 7
CHANGES = ("same", "down", "down", "down", "up", "up", "up")


class Rearrange(nn.Module):
    """Change the resolution of `[B, D, H, W, C]` without losing a value.

    Of the channels of a coarse pixel, the column offset is the slowest, then the row offset.

    Args:
        change: "same", "down" (2 x 2 pixels become one) or "up" (the inverse).
    """

    PATTERNS = {
        "down": "b d (h i) (w j) c -> b d h w (j i c)",
        "up": "b d h w (j i c) -> b d (h i) (w j) c",
    }

    def __init__(self, change: str) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        """Rearrange."""
        return x if self.change == "same" else rearrange(x, self.PATTERNS[self.change], i=2, j=2)


def make_reshape(change: str, dim_in: int, dim: int) -> nn.Sequential:
    """Build what leads into a stage; works on channels-last features."""
    if change == "same":
        return nn.Sequential(Rearrange(change), nn.LayerNorm(dim))
    rearranged = 4 * dim_in if change == "down" else dim_in // 4
    return nn.Sequential(Rearrange(change), nn.LayerNorm(rearranged), nn.Linear(rearranged, dim))


def to_channels_last(x: Tensor) -> Tensor:
    """View `[B, C, D, H, W]` as `[B, D, H, W, C]`."""
    return x.permute(0, 2, 3, 4, 1)


def to_channels_first(x: Tensor) -> Tensor:
    """View `[B, D, H, W, C]` as `[B, C, D, H, W]`."""
    return x.permute(0, 4, 1, 2, 3)


@dataclass(frozen=True)
class LayerSettings:
    """Shape of a layer: a stage of the seven, or a member of stage 8.

    Attributes:
        index: number of the layer; 0 to 6 are the stages 1 to 7.
        dim: channels.
        depth: blocks.
        num_mutual: blocks with mutual attention among them.
        drop_path: stochastic-depth rate of each block.
        blocks: what the blocks share.
    """

    index: int
    dim: int
    depth: int
    num_mutual: int
    drop_path: list[float]
    blocks: BlockSettings


class Stage(nn.Module):
    """One of the seven stages with mutual attention and parallel warping.

    Args:
        layer: shape of the stage; its window is that of the self-attention blocks.
        dim_in: channels that come in.
        num_neighbours: G, frames aligned on each side; 0 for no parallel warping.
        deformable_groups: offset groups of the deformable convolution.
    """

    def __init__(
        self, layer: LayerSettings, dim_in: int, num_neighbours: int, deformable_groups: int
    ) -> None:
        super().__init__()
        dim, blocks, rates = layer.dim, layer.blocks, layer.drop_path
        mutual = replace(blocks, is_mutual=True, window=(2, *blocks.window[1:]))
        self.reshape = make_reshape(CHANGES[layer.index], dim_in, dim)
        self.residual_group1 = Group(dim, layer.num_mutual, mutual, rates)
        self.linear1 = nn.Linear(dim, dim)
        # As published, the rates of this group start over.
        self.residual_group2 = Group(dim, layer.depth - layer.num_mutual, blocks, rates)
        self.linear2 = nn.Linear(dim, dim)
        self.is_recomputed = blocks.recompute_attn
        self.num_neighbours = num_neighbours
        if num_neighbours:
            max_residue = MAX_RESIDUE_PX / SCALES[layer.index]
            self.pa_deform = FlowGuidedDeformConv(
                dim, num_neighbours, deformable_groups, max_residue
            )
            self.pa_fuse = GatedMlp(3 * dim, 3 * dim, dim)

    def forward(
        self, x: Tensor, flows_backward: list[Tensor], flows_forward: list[Tensor]
    ) -> Tensor:
        """Apply the stage.

        Args:
            x: features `[B, C_in, T, H, W]`.
            flows_backward: by distance g = 1, 2, 3, at this stage's resolution,
                `[B, T-g, 2, h, w]`; those beyond the stage's neighbours are not used.
            flows_forward: likewise.

        Returns:
            `[B, C, T, h, w]`, channels-last in memory.
        """
        x = to_channels_last(x)
        x = self.reshape(x).to(x.dtype)
        x = add_linear(self.linear1, self.residual_group1(x), x)
        x = add_linear(self.linear2, self.residual_group2(x), x)
        if self.num_neighbours:
            used = slice(self.num_neighbours)
            x = self._warp_and_fuse(x, flows_backward[used], flows_forward[used])
        return to_channels_first(x)

    def _warp_and_fuse(
        self, x: Tensor, flows_backward: list[Tensor], flows_forward: list[Tensor]
    ) -> Tensor:
        """Let each frame `[B, T, H, W, C]` see its aligned neighbours."""
        keep = not (self.is_recomputed and torch.is_grad_enabled())
        frames = x.permute(0, 1, 4, 2, 3).contiguous()
        joined = self.pa_fuse.joined()

        def fuse(*rows: Tensor) -> Tensor:
            return self.pa_fuse(torch.cat(rows, dim=-1), joined)

        def run(span: slice) -> Tensor:
            """Align to the frames of the span and fuse."""
            with torch.autocast(x.device.type, enabled=False):
                aligned = align_neighbours(
                    frames, flows_backward, flows_forward, self.pa_deform, keep, span
                )
            rows = [x[:, span], *(part.permute(0, 1, 3, 4, 2) for part in aligned)]
            rows = tuple(part.reshape(-1, x.shape[-1]) for part in rows)
            items = pieces_of(WINDOW_ELEMENTS, x.device, x.shape[-1])
            return map_pieces(fuse, rows, items, keep).to(x.dtype).view(x[:, span].shape)

        if torch.is_grad_enabled():
            return run(slice(None))
        out = torch.empty_like(x)  # a few frames at a time: nothing aligned lives longer
        step = max(1, targets_at_once(self.pa_deform, frames) // (2 * len(x)))
        for start in range(0, x.shape[1], step):
            span = slice(start, start + step)
            out[:, span] = run(span)
        return out


def add_linear(linear: nn.Linear, changed: Tensor, x: Tensor) -> Tensor:
    """Return linear(changed) + x in the precision of x."""
    out = linear(changed).to(x.dtype)
    return out + x if torch.is_grad_enabled() else out.add_(x)


class EntryProjection(nn.Sequential):
    """The first member of stage 8: from the width of stage 7 to that of stage 8."""

    def __init__(self, dim_in: int, dim: int) -> None:
        super().__init__(Rearrange("same"), nn.LayerNorm(dim_in), nn.Linear(dim_in, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C_in, D, H, W]` to `[B, C, D, H, W]`."""
        return to_channels_first(super().forward(to_channels_last(x)).to(x.dtype))


class SelfAttentionLayer(nn.Module):
    """A further member of stage 8: x + linear(group(x))."""

    def __init__(self, layer: LayerSettings) -> None:
        super().__init__()
        self.residual_group = Group(layer.dim, layer.depth, layer.blocks, layer.drop_path)
        self.linear = nn.Linear(layer.dim, layer.dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, D, H, W]` to the same shape, channels-last in memory."""
        x = to_channels_last(x)
        return to_channels_first(add_linear(self.linear, self.residual_group(x), x))
