"""Flow-guided deformable convolution (SPEC sections 7.2 and 7.3)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from third_party.VRT.models.warping import pixel_grid, warp

TAPS = 9  # of the 3 x 3 kernel


def tap_positions(like: Tensor) -> Tensor:
    """Return where the taps of each output pixel lie without offsets, `[2 (x, y), 9, H, W]`."""
    step = torch.arange(-1, 2, dtype=like.dtype, device=like.device)
    rows, columns = torch.meshgrid(step, step, indexing="ij")
    taps = torch.stack((columns.flatten(), rows.flatten()))
    return taps[:, :, None, None] + pixel_grid(like)[:, None]


def deformable_columns(x: Tensor, position: Tensor, modulation: Tensor) -> Tensor:
    """Sample the taps of each output pixel.

    Args:
        x: `[N, C, H, W]`; channels are cut into g equal runs, one per offset group.
        position: `[N, g, 2 (x, y), 9, H, W]`, where each tap samples, from -1 to 1 as in
            `grid_sample`.
        modulation: `[N, g, 9, H, W]`, factor of each tap.

    Returns:
        `[N, C * 9, H * W]`, taps fastest. Samples outside the image count 0.
    """
    n, groups, _, _, height, width = position.shape
    sampled = F.grid_sample(
        x.reshape(n * groups, -1, height, width),
        position.view(n * groups, 2, TAPS * height, width).permute(0, 2, 3, 1),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=True,
    )
    sampled = sampled.view(n, groups, -1, TAPS, height * width)
    modulation = modulation.view(n, groups, 1, TAPS, -1)
    columns = sampled * modulation if torch.is_grad_enabled() else sampled.mul_(modulation)
    return columns.view(n, -1, height * width)


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
        position, modulation = self.sampling(current, warped, flows)
        columns = deformable_columns(neighbours, position, modulation)
        n, groups = len(current), self.num_neighbours
        weight = self.weight.view(groups, self.dim // groups, -1)
        out = weight @ columns.view(n, groups, -1, columns.shape[-1])  # group e sees neighbour e
        return out.view_as(current) + self.bias.view(1, -1, 1, 1)

    def sampling(
        self, current: Tensor, warped: list[Tensor], flows: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Predict where each tap samples and its factor.

        Offset groups are cut into G runs; run e is centred on flow e.

        Returns:
            Positions `[N, g, 2 (x, y), 9, H, W]` from -1 to 1, and factors `[N, g, 9, H, W]`.
        """
        n, _, height, width = current.shape
        hidden = self.conv_offset[:-1](torch.cat((*warped, current, *flows), dim=1))
        # The published order is (tap, y x); with (x y, tap) the grid needs no copy.
        last, count = self.conv_offset[-1], self.deformable_groups * TAPS
        order = torch.arange(3 * count, device=current.device)
        offsets = order[: 2 * count].view(-1, TAPS, 2).flip(2).transpose(1, 2).flatten()
        order = torch.cat((offsets, order[2 * count :]))
        predicted = F.conv2d(hidden, last.weight[order], last.bias[order], padding=1)
        residue, factor = predicted.split((2 * count, count), dim=1)
        residue = torch.tanh(residue).view(n, self.num_neighbours, -1, 2, TAPS, height, width)
        centre = torch.stack(flows, dim=1)[:, :, None, :, None] + tap_positions(current)
        sides = (max(width - 1, 1), max(height - 1, 1))
        scale = current.new_tensor([2.0 / side for side in sides]).view(2, 1, 1, 1)
        position = torch.addcmul(centre * scale - 1.0, residue, self.max_residue * scale)
        position = position.view(n, self.deformable_groups, 2, TAPS, height, width)
        return position, torch.sigmoid(factor).view(n, self.deformable_groups, TAPS, height, width)
