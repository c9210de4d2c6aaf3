"""Flow-guided deformable convolution (SPEC sections 7.2 and 7.3)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from third_party.VRT.models.chunks import TAP_ELEMENTS, pieces_of
from third_party.VRT.models.warping import pixel_grid, warp

TAPS = 9  # of the 3 x 3 kernel
MAX_RUNS = 4  # runs of rows into which one image is cut at most


def tap_positions(like: Tensor) -> Tensor:
    """Return where the taps of each output pixel lie without offsets, `[2 (x, y), 9, H, W]`."""
    step = torch.arange(-1, 2, dtype=like.dtype, device=like.device)
    rows, columns = torch.meshgrid(step, step, indexing="ij")
    taps = torch.stack((columns.flatten(), rows.flatten()))
    return taps[:, :, None, None] + pixel_grid(like)[:, None]


class DeformableProduct(torch.autograd.Function):
    """Sample the taps of each output pixel and multiply them by the weights, piece by piece.

    The taps are nine times as large as the features. They exist for one piece at a time, small
    enough for the cache of a CPU, and backward samples them again.
    """

    @staticmethod
    def forward(
        ctx: object, x: Tensor, position: Tensor, modulation: Tensor, weight: Tensor
    ) -> Tensor:
        """Convolve.

        Args:
            ctx: autograd's context.
            x: `[N, G * C, H, W]`; channels are cut into g equal runs, one per offset group.
            position: `[N, g, 2 (x, y), 9, H, W]`, where each tap samples, from -1 to 1 as in
                `grid_sample`. Samples outside the image count 0.
            modulation: `[N, g, 9, H, W]`, factor of each tap.
            weight: `[G, C / G, C * 9]`; group e of the output sees neighbour e, C channels of `x`.

        Returns:
            `[N, C, H, W]`.
        """
        ctx.save_for_backward(x, position, modulation, weight)
        n, _, height, width = x.shape
        out = x.new_empty(n, weight.shape[0] * weight.shape[1], height, width)
        for items, rows in _pieces(x):
            _, taps, factor = _sample(x, position, modulation, items, rows)
            columns = taps.mul_(factor).view(len(taps), len(weight), -1, taps.shape[-1])
            part = out[items, :, rows]
            part.copy_((weight @ columns).view(part.shape))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Differentiate by all four, with the taps sampled again."""
        x, position, modulation, weight = ctx.saved_tensors
        grad_x, grad_weight = torch.zeros_like(x), torch.zeros_like(weight)
        grad_position, grad_modulation = torch.empty_like(position), torch.empty_like(modulation)
        for items, rows in _pieces(x):
            grid, taps, factor = _sample(x, position, modulation, items, rows)
            part = grad[items, :, rows].reshape(len(taps), *weight.shape[:2], -1)
            grad_taps = (weight.transpose(1, 2) @ part).view(taps.shape)
            grad_factor = (grad_taps * taps).sum(2)
            slot = grad_modulation[items, :, :, rows]
            slot.copy_(grad_factor.view(slot.shape))
            columns = taps.mul_(factor).view(*part.shape[:2], -1, part.shape[-1])
            grad_weight += (part @ columns.transpose(2, 3)).sum(0)
            by_group = grid.shape[:3]
            more, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
                grad_taps.mul_(factor).view(by_group[0], -1, *by_group[1:]),
                _by_group(x[items], position),
                grid,
                interpolation_mode=0,  # bilinear
                padding_mode=0,  # zeros
                align_corners=True,
                output_mask=(True, True),
            )
            grad_x[items] += more.view(x[items].shape)
            slot = grad_position[items, :, :, :, rows]
            slot.copy_(grad_grid.permute(0, 3, 1, 2).view(slot.shape))
        return grad_x, grad_position, grad_modulation, grad_weight


def _pieces(x: Tensor) -> list[tuple[slice, slice]]:
    """Cut items and rows of `[N, C, H, W]`, so that the taps of a piece fit the cache.

    An item is cut into few runs of rows only: backward adds up an image of gradients for each.
    """
    n, channels, height, width = x.shape
    per_row = TAPS * channels * width
    items = pieces_of(TAP_ELEMENTS, x.device, per_row * height)
    runs = -(-height // pieces_of(TAP_ELEMENTS, x.device, per_row))
    rows = -(-height // min(runs, MAX_RUNS))
    return [
        (slice(i, i + items), slice(row, row + rows))
        for i in range(0, n, items)
        for row in range(0, height, rows)
    ]


def _by_group(x: Tensor, position: Tensor) -> Tensor:
    """Put the offset groups on the first axis: `[N, C, H, W]` to `[N * g, C / g, H, W]`."""
    return x.reshape(len(x) * position.shape[1], -1, *x.shape[2:])


def _sample(
    x: Tensor, position: Tensor, modulation: Tensor, items: slice, rows: slice
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample the taps of a piece of h rows.

    Returns:
        The grid `[n * g, 9 * h, W, 2]`, the taps `[n, g, c, 9, h * W]` and their factors
        `[n, g, 1, 9, h * W]`.
    """
    x, position = x[items], position[items, :, :, :, rows]
    n, groups, _, _, height, width = position.shape
    grid = position.reshape(n * groups, 2, TAPS * height, width).permute(0, 2, 3, 1)
    taps = F.grid_sample(
        _by_group(x, position), grid, mode="bilinear", padding_mode="zeros", align_corners=True
    )
    factor = modulation[items, :, :, rows].reshape(n, groups, 1, TAPS, height * width)
    return grid, taps.view(n, groups, -1, TAPS, height * width), factor


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
                `[N, 2, H, W]`, each bringing its neighbour onto `current`; or no flows, for no
                displacement.

        Returns:
            `[N, C, H, W]`.
        """
        neighbours = neighbours_and_flows[: self.num_neighbours]
        flows = neighbours_and_flows[self.num_neighbours :]
        warped = neighbours
        if flows:
            warped = [warp(x, flow) for x, flow in zip(neighbours, flows, strict=True)]
        return self.align(current, torch.cat(neighbours, dim=1), list(warped), list(flows))

    def align(
        self, current: Tensor, neighbours: Tensor, warped: list[Tensor], flows: list[Tensor]
    ) -> Tensor:
        """Do the deformable convolution, given the warped neighbours.

        Args:
            current: `[N, C, H, W]`.
            neighbours: `[N, G * C, H, W]`, as they are.
            warped: G tensors `[N, C, H, W]`, each neighbour warped by its flow.
            flows: G flows `[N, 2, H, W]`, or none.
        """
        position, modulation = self.sampling(current, warped, flows)
        groups = self.num_neighbours
        weight = self.weight.view(groups, self.dim // groups, -1)
        out = DeformableProduct.apply(neighbours, position, modulation, weight)
        return out + self.bias.view(1, -1, 1, 1)

    def sampling(
        self, current: Tensor, warped: list[Tensor], flows: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Predict where each tap samples and its factor.

        Offset groups are cut into G runs; run e is centred on flow e.

        Returns:
            Positions `[N, g, 2 (x, y), 9, H, W]` from -1 to 1, and factors `[N, g, 9, H, W]`.
        """
        n, _, height, width = current.shape
        hidden = self._hidden(torch.cat((*warped, current, *flows), dim=1))
        # The published order is (tap, y x); with (x y, tap) the grid needs no copy.
        last, count = self.conv_offset[-1], self.deformable_groups * TAPS
        order = torch.arange(3 * count, device=current.device)
        offsets = order[: 2 * count].view(-1, TAPS, 2).flip(2).transpose(1, 2).flatten()
        order = torch.cat((offsets, order[2 * count :]))
        predicted = F.conv2d(hidden, last.weight[order], last.bias[order], padding=1)
        residue, factor = predicted.split((2 * count, count), dim=1)
        residue = torch.tanh(residue).view(n, self.num_neighbours, -1, 2, TAPS, height, width)
        centre = tap_positions(current)
        if flows:
            centre = torch.stack(flows, dim=1)[:, :, None, :, None] + centre
        sides = (max(width - 1, 1), max(height - 1, 1))
        scale = current.new_tensor([2.0 / side for side in sides]).view(2, 1, 1, 1)
        position = torch.addcmul(centre * scale - 1.0, residue, self.max_residue * scale)
        position = position.view(n, self.deformable_groups, 2, TAPS, height, width)
        return position, torch.sigmoid(factor).view(n, self.deformable_groups, TAPS, height, width)

    def _hidden(self, x: Tensor) -> Tensor:
        """Run all but the last layer of the offset network; flows that are missing count zero."""
        first = self.conv_offset[0]
        if x.shape[1] == first.in_channels:
            return self.conv_offset[:-1](x)
        x = F.conv2d(x, first.weight[:, : x.shape[1]], first.bias, padding=1)
        return self.conv_offset[1:-1](x)
