"""Optical flow: the pyramid estimator, both directions at once, and flows over longer distances."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from third_party.VRT.models.chunks import IMAGE_ELEMENTS, pieces_of
from third_party.VRT.models.warping import warp

NUM_LEVELS = 6
COARSEST = 2 ** (NUM_LEVELS - 1)
WIDEST_CHANNELS = 64


class FlowLevel(nn.Module):
    """The convolutions of one pyramid level."""

    def __init__(self) -> None:
        super().__init__()
        widths = (8, 32, WIDEST_CHANNELS, 32, 16, 2)
        layers: list[nn.Module] = []
        for wide_in, wide_out in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Conv2d(wide_in, wide_out, 7, padding=3), nn.ReLU()]
        self.basic_module = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Map reference, warped and flow `[N, 3 + 3 + 2, H, W]` to a correction `[N, 2, H, W]`."""
        return self.basic_module(x)


class SpyNet(nn.Module):
    """Pyramid flow estimator (Ranjan and Black, 2017) as VRT uses it.

    Args:
        return_levels: pyramid levels whose flow is returned, 5 the finest.
    """

    def __init__(self, return_levels: tuple[int, ...] = (5,)) -> None:
        super().__init__()
        self.return_levels = tuple(return_levels)
        self.basic_module = nn.ModuleList(FlowLevel() for _ in range(NUM_LEVELS))
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, ref: Tensor, supp: Tensor) -> Tensor | list[Tensor]:
        """Estimate the flow that brings `supp` onto `ref`.

        Args:
            ref: `[N, 3, H, W]` or one channel, values 0..1.
            supp: the same shape.

        Returns:
            One `[N, 2, H // s, W // s]` per returned level, finest first, in pixels of its own
            resolution; the bare tensor when only one level is asked for.
        """
        num = len(ref)
        first = torch.arange(num, device=ref.device)
        flows = self.between(torch.cat((ref, supp)), first, first + num)
        return flows[0] if len(flows) == 1 else flows

    def between(self, frames: Tensor, ref: Tensor, supp: Tensor) -> list[Tensor]:
        """Estimate flows between pairs of frames; the pyramid is built once per frame.

        Args:
            frames: `[F, C, H, W]`, values 0..1.
            ref: frame numbers `[N]` of the references.
            supp: frame numbers `[N]` of the frames to bring onto them.

        Returns:
            As `forward`, always a list.
        """
        height, width = frames.shape[-2:]
        padded = (-(-height // COARSEST) * COARSEST, -(-width // COARSEST) * COARSEST)
        pyramid = self._pyramid(frames, padded)
        pairs = pieces_of(IMAGE_ELEMENTS, frames.device, WIDEST_CHANNELS * padded[0] * padded[1])
        parts = [
            self._estimate(pyramid, a, b)
            for a, b in zip(ref.split(pairs), supp.split(pairs), strict=True)
        ]
        joined = [torch.cat(level) for level in zip(*parts, strict=True)]
        return [self._to_input_size(flow, (height, width), padded) for flow in joined]

    def _pyramid(self, frames: Tensor, padded: tuple[int, int]) -> list[Tensor]:
        """Resize, normalise and average the frames: one tensor per level, coarsest first."""
        if tuple(frames.shape[-2:]) != padded:
            frames = F.interpolate(frames, size=padded, mode="bilinear", align_corners=False)
        levels = [(frames - self.mean) / self.std]
        for _ in range(NUM_LEVELS - 1):
            levels.append(F.avg_pool2d(levels[-1], 2))
        return levels[::-1]

    def _estimate(self, pyramid: list[Tensor], ref: Tensor, supp: Tensor) -> list[Tensor]:
        """Refine the flow of the pairs from level to level; return those wanted, finest first."""
        kept = []
        flow = None
        for level, frames in enumerate(pyramid):
            target, source = frames.index_select(0, ref), frames.index_select(0, supp)
            if flow is None:  # nothing is displaced yet
                up = target.new_zeros(len(target), 2, *target.shape[-2:])
            else:
                up = 2.0 * F.interpolate(flow, scale_factor=2, mode="bilinear", align_corners=True)
                source = warp(source, up, border="border")
            flow = up + self.basic_module[level](torch.cat((target, source, up), dim=1))
            if level in self.return_levels:
                kept.append(flow)
        return kept[::-1]

    def _to_input_size(
        self, flow: Tensor, size: tuple[int, int], padded: tuple[int, int]
    ) -> Tensor:
        """Resize a flow of the padded pyramid to the size that the frames have at its level."""
        step = padded[0] // flow.shape[-2]
        wanted = (size[0] // step, size[1] // step)
        full = tuple(flow.shape[-2:])
        if wanted == full:
            return flow
        flow = F.interpolate(flow, size=wanted, mode="bilinear", align_corners=False)
        return flow * flow.new_tensor([wanted[1] / full[1], wanted[0] / full[0]]).view(1, 2, 1, 1)


def adjacent_flows(spynet: SpyNet, clip: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Estimate the flows between neighbouring frames, both directions in one batch.

    Args:
        spynet: the estimator, with S return levels.
        clip: `[B, T, C, H, W]`.

    Returns:
        Two lists of S tensors `[B, T-1, 2, h, w]`, finest first. Backward brings frame t+1 onto
        frame t, forward brings frame t onto frame t+1.
    """
    batch, num_frames = clip.shape[:2]
    number = torch.arange(batch * num_frames, device=clip.device).view(batch, num_frames)
    earlier, later = number[:, :-1].flatten(), number[:, 1:].flatten()
    flows = spynet.between(
        clip.flatten(0, 1), torch.cat((earlier, later)), torch.cat((later, earlier))
    )
    shaped = [flow.view(2, batch, num_frames - 1, *flow.shape[1:]) for flow in flows]
    return [flow[0] for flow in shaped], [flow[1] for flow in shaped]


def _warp_flow(flow: Tensor, by: Tensor) -> Tensor:
    return warp(flow.flatten(0, 1), by.flatten(0, 1)).view_as(by)


def longer_flows(
    backward: list[Tensor], forward: list[Tensor], distance: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Compose flows over 1..distance frames from those between neighbours.

    Args:
        backward: flow t+1 -> t at each scale, `[B, T-1, 2, h, w]`.
        forward: flow t -> t+1 at each scale, `[B, T-1, 2, h, w]`.
        distance: the largest number of frames to bridge.

    Returns:
        Two flat lists, entry `scales * (g - 1) + k` for distance g and scale k, each
        `[B, T-g, 2, h, w]`. Backward entry t brings frame t+g onto t, forward entry t brings
        frame t onto t+g.
    """
    all_backward, all_forward = list(backward), list(forward)
    last_backward, last_forward = backward, forward
    for reached in range(1, distance):
        last_backward = [
            far[:, :-1] + _warp_flow(near[:, reached:], far[:, :-1])
            for far, near in zip(last_backward, backward, strict=True)
        ]
        last_forward = [
            far[:, 1:] + _warp_flow(near[:, : near.shape[1] - reached], far[:, 1:])
            for far, near in zip(last_forward, forward, strict=True)
        ]
        all_backward += last_backward
        all_forward += last_forward
    return all_backward, all_forward
