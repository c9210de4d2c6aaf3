"""Flow-guided deformable convolution (SPEC sections 7.2 and 7.3)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from third_party.VRT.models.warping import normalise, pixel_grid, warp

TAPS = 9  # of the 3 x 3 kernel


def tap_positions(like: Tensor) -> Tensor:
    """Return where the taps of each output pixel lie without offsets, `[9, 2 (y, x), H, W]`."""
    step = torch.arange(-1, 2, dtype=like.dtype, device=like.device)
    taps = torch.stack(torch.meshgrid(step, step, indexing="ij"), dim=-1).view(TAPS, 2, 1, 1)
    return taps + pixel_grid(like).flip(0)


def deformable_columns(x: Tensor, position: Tensor, modulation: Tensor) -> Tensor:
    """Sample the taps of each output pixel.

    Args:
        x: `[N, C, H, W]`; channels are cut into g equal runs, one per offset group.
        position: `[N, g, 9, 2 (y, x), H, W]`, where each tap samples, in pixels.
        modulation: `[N, g, 9, H, W]`, factor of each tap.

    Returns:
        `[N, C * 9, H * W]`, taps fastest. Samples outside the image count 0.
    """
    n, groups, _, _, height, width = position.shape
    grid = torch.stack(
        (normalise(position[:, :, :, 1], width), normalise(position[:, :, :, 0], height)), dim=-1
    )
    sampled = F.grid_sample(
        x.reshape(n * groups, -1, height, width),
        grid.view(n * groups, TAPS * height, width, 2),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=True,
    )
    sampled = sampled.view(n, groups, -1, TAPS, height * width)
    return (sampled * modulation.view(n, groups, 1, TAPS, -1)).view(n, -1, height * width)


class FlowGuidedDeformConv(nn.Module):
    """Aligns neighbour features by a deformable convolution whose offsets start at the flow.

    Args:
        dim: channels C of one frame.
        num_neighbours: G, frames that are aligned at once, with G groups of weights.
        deformable_groups: groups of channels with offsets of their own, divisible by G.
        max_residue: largest offset from the flow, in pixels.
    """

    def __init__(
        self, dim: int, num_neighbours: int, deformable_groups: int, max_residue: float
    ) -> None:
        super().__init__()
        self.dim = dim
        self.num_neighbours = num_neighbours
        self.deformable_groups = deformable_groups
        self.max_residue = max_residue
        self.weight = nn.Parameter(torch.empty(dim, dim, 3, 3))
        self.bias = nn.Parameter(torch.zeros(dim))
        nn.init.uniform_(self.weight, -1 / math.sqrt(TAPS * dim), 1 / math.sqrt(TAPS * dim))
        self.conv_offset = nn.Sequential(
            nn.Conv2d((1 + num_neighbours) * dim + 2 * num_neighbours, dim, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(dim, dim, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(dim, dim, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(dim, 3 * TAPS * deformable_groups, 3, padding=1),
        )
        nn.init.zeros_(self.conv_offset[6].weight)
        nn.init.zeros_(self.conv_offset[6].bias)

    def forward(self, current: Tensor, *neighbours_and_flows: Tensor) -> Tensor:
        """Warp the neighbours by their flows, then align them to `current`.

        Args:
            current: `[N, C, H, W]`.
            *neighbours_and_flows: G neighbours `[N, C, H, W]`, then their G flows
                `[N, 2, H, W]`, each bringing its neighbour onto `current`.

        Returns:
            `[N, C, H, W]`.
        """
        neighbours = neighbours_and_flows[: self.num_neighbours]
        flows = neighbours_and_flows[self.num_neighbours :]
        warped = [warp(x, flow) for x, flow in zip(neighbours, flows, strict=True)]
        return self.align(current, torch.cat(neighbours, dim=1), warped, list(flows))

    def align(
        self, current: Tensor, neighbours: Tensor, warped: list[Tensor], flows: list[Tensor]
    ) -> Tensor:
        """Do the deformable convolution, given the warped neighbours.

        Args:
            current: `[N, C, H, W]`.
            neighbours: `[N, G * C, H, W]`, as they are.
            warped: G tensors `[N, C, H, W]`, each neighbour warped by its flow.
            flows: G flows `[N, 2, H, W]`.
        """
        position, modulation = self.offsets(current, warped, flows)
        position = position + tap_positions(current)
        columns = deformable_columns(neighbours, position, modulation)
        n, groups = len(current), self.num_neighbours
        weight = self.weight.view(groups, self.dim // groups, -1)
        out = weight @ columns.view(n, groups, -1, columns.shape[-1])  # group e sees neighbour e
        return out.view_as(current) + self.bias.view(1, -1, 1, 1)

    def offsets(
        self, current: Tensor, warped: list[Tensor], flows: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Predict offsets `[N, g, 9, 2 (y, x), H, W]`, flows included, and modulation factors.

        Offset groups are cut into G runs; run e is centred on flow e.
        """
        n, _, height, width = current.shape
        predicted = self.conv_offset(torch.cat((*warped, current, *flows), dim=1))
        num_offsets = 2 * TAPS * self.deformable_groups
        residue = self.max_residue * torch.tanh(predicted[:, :num_offsets])
        residue = residue.view(n, self.num_neighbours, -1, 2, height, width)
        flow = torch.stack(flows, dim=1).flip(2).unsqueeze(2)  # [N, G, 1, 2 (y, x), H, W]
        offsets = (residue + flow).view(n, self.deformable_groups, TAPS, 2, height, width)
        modulation = torch.sigmoid(predicted[:, num_offsets:])
        return offsets, modulation.view(n, self.deformable_groups, TAPS, height, width)
