"""Sampling images at displaced positions (SPEC section 3 of VRT's warping)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def pixel_grid(like: Tensor) -> Tensor:
    """Return the pixel positions (x, y) of an image `[..., H, W]` as `[2, H, W]`."""
    height, width = like.shape[-2:]
    rows = torch.arange(height, dtype=like.dtype, device=like.device)
    columns = torch.arange(width, dtype=like.dtype, device=like.device)
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"))


def normalise(position: Tensor, size: int) -> Tensor:
    """Map pixel positions 0..size-1 to -1..1, the coordinates of `grid_sample`."""
    return 2.0 * position / max(size - 1, 1) - 1.0


def warp(image: Tensor, flow: Tensor, border: str = "zeros") -> Tensor:
    """Sample `image` bilinearly at each pixel plus its flow.

    Args:
        image: `[N, C, H, W]`.
        flow: `[N, 2, H, W]`, displacement (x, y) in pixels.
        border: "zeros" (taps outside count 0) or "border" (positions are clamped).

    Returns:
        `[N, C, H, W]`.
    """
    height, width = image.shape[-2:]
    position = pixel_grid(flow) + flow
    grid = torch.stack(
        (normalise(position[:, 0], width), normalise(position[:, 1], height)), dim=-1
    )
    return F.grid_sample(image, grid, mode="bilinear", padding_mode=border, align_corners=True)


def warp_nearest4(image: Tensor, flow: Tensor) -> Tensor:
    """Fetch the four pixels around each pixel plus its flow, unweighted, by one integer gather.

    Args:
        image: `[N, C, H, W]`.
        flow: `[N, 2, H, W]`, displacement (x, y) in pixels; it gets no gradient.

    Returns:
        `[N, 4 * C, H, W]`: all channels of (floor x, floor y), then (floor x, ceil y),
        (ceil x, floor y), (ceil x, ceil y). A position outside the image gives 0.
    """
    n, channels, height, width = image.shape
    position = (pixel_grid(flow) + flow).detach()
    low, high = position.floor(), position.ceil()
    x = torch.stack((low[:, 0], low[:, 0], high[:, 0], high[:, 0]), dim=1)
    y = torch.stack((low[:, 1], high[:, 1], low[:, 1], high[:, 1]), dim=1)
    is_inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    index = (y * width + x).masked_fill(~is_inside, 0).long()  # [N, 4, H, W]
    # Sizes are written out: a clip of one frame has no neighbours, and N is 0.
    index = index.view(n, 1, 4 * height * width).expand(n, channels, 4 * height * width)
    fetched = image.reshape(n, channels, height * width).gather(2, index)
    fetched = fetched.view(n, channels, 4, height, width).transpose(1, 2)
    fetched = fetched.masked_fill(~is_inside.unsqueeze(2), 0.0)
    return fetched.reshape(n, 4 * channels, height, width)
