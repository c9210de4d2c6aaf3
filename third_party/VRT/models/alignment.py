"""Parallel warping: every frame meets its aligned neighbours, all of them in one batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from third_party.VRT.models.chunks import IMAGE_ELEMENTS, map_pieces, pieces_of
from third_party.VRT.models.deformable import TAPS, FlowGuidedDeformConv
from third_party.VRT.models.warping import warp_nearest4


@dataclass(frozen=True)
class Targets:
    """Which frames are aligned to which, N targets; frames of a batch of clips are numbered.

    Attributes:
        current: frame number of each target, `[N]`.
        neighbour: by distance 1..G the frame number, `[N]`; frame 0 where there is none.
        flow: by distance the row of the flow, `[N]`; row 0 where there is none.
        exists: by distance whether that neighbour exists, `[N, 1, 1, 1]`, or None if all do.
    """

    current: Tensor
    neighbour: tuple[Tensor, ...]
    flow: tuple[Tensor, ...]
    exists: tuple[Tensor | None, ...]


def find_targets(batch: int, num_frames: int, distance: int, device: torch.device) -> Targets:
    """List the targets of both directions: first all that look ahead, then all that look back.

    The flows of distance g are numbered in the same way: `batch * (num_frames - g)` that bring
    frame t+g onto t, then as many that bring frame t onto t+g.
    """
    first = torch.arange(batch)[:, None] * num_frames
    ahead = torch.arange(num_frames - 1)  # the last frame has nothing ahead
    current = torch.cat((first + ahead, first + ahead + 1))
    neighbours, flows, exists = [], [], []
    for g in range(1, distance + 1):
        count = num_frames - g
        row = torch.arange(batch)[:, None] * count
        back = ahead + 1 - g
        neighbour = torch.cat((first + ahead + g, first + back))
        flow = torch.cat((row + ahead, batch * count + row + back))
        is_there = torch.cat((ahead + g < num_frames, back >= 0))
        is_there = is_there.view(2, 1, -1).expand(2, batch, -1).reshape(2 * batch, -1)
        neighbours.append(neighbour.where(is_there, 0).flatten().to(device))
        flows.append(flow.where(is_there, 0).flatten().to(device))
        gate = is_there.reshape(-1, 1, 1, 1).to(device)
        exists.append(None if g == 1 else gate)  # every target has a neighbour next to it
    return Targets(current.flatten().to(device), tuple(neighbours), tuple(flows), tuple(exists))


def _pick(rows: Tensor, index: Tensor, exists: Tensor | None) -> Tensor:
    """Take rows; those that do not exist are zero."""
    picked = rows.index_select(0, index)
    return picked if exists is None else picked.masked_fill(~exists, 0.0)


def align_neighbours(
    x: Tensor,
    flows_backward: list[Tensor],
    flows_forward: list[Tensor],
    deform: FlowGuidedDeformConv,
    keep: bool = True,
    span: slice = slice(None),
) -> tuple[Tensor, Tensor]:
    """Align to each frame the frames after it and, separately, the frames before it.

    One path for any number of neighbours; those past an end of the clip count as zeros.

    Args:
        x: features `[B, T, C, H, W]`.
        flows_backward: by distance g = 1..G, `[B, T-g, 2, H, W]`, bring frame t+g onto t; empty
            for no displacement.
        flows_forward: by distance, `[B, T-g, 2, H, W]`, bring frame t onto t+g; or empty.
        deform: the deformable convolution.
        keep: False computes intermediates again in backward.
        span: the frames to align to.

    Returns:
        Two tensors `[B, frames of span, C, H, W]`: frames after (0 for the last frame), frames
        before (0 for the first).
    """
    batch, num_frames, dim, height, width = x.shape
    edge = x.new_zeros(batch, 1, dim, height, width)
    if num_frames == 1:
        return edge, edge
    start, stop, _ = span.indices(num_frames)
    targets = find_targets(batch, num_frames, deform.num_neighbours, x.device)
    frames = x.flatten(0, 1)
    flows = [
        torch.cat((b.flatten(0, 1), f.flatten(0, 1)))
        for b, f in zip(flows_backward, flows_forward, strict=True)
    ]

    def piece(rows: Tensor) -> Tensor:
        """Align the targets with these numbers."""
        gates = [None if e is None else e[rows] for e in targets.exists]
        picked = [
            _pick(frames, index[rows], gate)
            for index, gate in zip(targets.neighbour, gates, strict=True)
        ]
        picked += [
            _pick(flow, index[rows], gate)
            for flow, index, gate in zip(flows, targets.flow, gates, strict=bool(flows))
        ]
        return deform(frames.index_select(0, targets.current[rows]), *picked)

    number = torch.arange(len(targets.current), device=x.device).view(2, batch, num_frames - 1)
    ahead, behind = number[0][:, start:stop], number[1][:, max(start - 1, 0) : stop - 1]
    rows = torch.cat((ahead.flatten(), behind.flatten()))
    aligned = map_pieces(piece, (rows,), targets_at_once(deform, x), keep)
    after, before = (
        part.view(*number.shape, dim, height, width)
        for part, number in zip(
            aligned.split((ahead.numel(), behind.numel())), (ahead, behind), strict=True
        )
    )
    return (
        torch.cat((after, edge), dim=1) if stop == num_frames else after,
        torch.cat((edge, before), dim=1) if start == 0 else before,
    )


def targets_at_once(deform: FlowGuidedDeformConv, x: Tensor) -> int:
    """Return how many frames of `[B, T, C, H, W]` are aligned to at once."""
    per_pixel = TAPS * (3 * deform.deformable_groups + deform.num_neighbours * x.shape[2])
    return pieces_of(IMAGE_ELEMENTS, x.device, per_pixel * x.shape[3] * x.shape[4])


def align_images(clip: Tensor, flow_backward: list[Tensor], flow_forward: list[Tensor]) -> Tensor:
    """Put beside each frame its two neighbours, fetched by the four-nearest warp.

    Args:
        clip: `[B, T, C, H, W]`.
        flow_backward: one flow that brings frame t+1 onto t, `[B, T-1, 2, H, W]`; empty for no
            displacement.
        flow_forward: one that brings frame t onto t+1, `[B, T-1, 2, H, W]`; or empty.

    Returns:
        `[B, T, 9 * C, H, W]`: the frame, the frame after (4 * C), the frame before (4 * C);
        zeros past the ends.
    """
    batch, num_frames, channels, height, width = clip.shape
    sources = torch.cat((clip[:, 1:], clip[:, :-1])).flatten(0, 1)
    if flow_backward:
        fetched = warp_nearest4(sources, torch.cat((*flow_backward, *flow_forward)).flatten(0, 1))
    else:
        fetched = sources.repeat(1, 4, 1, 1)
    after, before = fetched.view(2, batch, num_frames - 1, 4 * channels, height, width)
    edge = clip.new_zeros(batch, 1, 4 * channels, height, width)
    after, before = torch.cat((after, edge), dim=1), torch.cat((edge, before), dim=1)
    return torch.cat((clip, after, before), dim=2)
