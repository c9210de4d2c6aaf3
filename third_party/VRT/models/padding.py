"""Sizes that the architecture cannot take: padded by reflection and repetition, cropped after."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PadPlan:
    """The size `[T, H, W]` of a clip and the size it is padded to."""

    size: tuple[int, int, int]
    padded: tuple[int, int, int]

    @property
    def is_needed(self) -> bool:
        """Whether anything has to be padded."""
        return self.size != self.padded


def pad_plan(
    num_frames: int,
    height: int,
    width: int,
    min_frames: int,
    min_size: tuple[int, int],
    multiple: int,
) -> PadPlan:
    """Find the smallest size that a network takes and that holds the clip.

    Args:
        num_frames: frames of the clip.
        height: height in pixels.
        width: width in pixels.
        min_frames: frames that the network needs.
        min_size: height and width in pixels that the network needs.
        multiple: what height and width must be divisible by.
    """

    def fit(length: int, least: int) -> int:
        return -(-max(length, least) // multiple) * multiple

    padded = (max(num_frames, min_frames), fit(height, min_size[0]), fit(width, min_size[1]))
    return PadPlan((num_frames, height, width), padded)


def reflected(length: int, wanted: int, device: torch.device | None = None) -> Tensor:
    """Return `[wanted]` positions that run to the end of an axis and back, as often as needed.

    The end pixels are not repeated: length 3 gives 0 1 2 1 0 1 2 ...; length 1 gives 0 0 0 ...
    """
    period = max(1, 2 * (length - 1))
    position = torch.arange(wanted, device=device) % period
    return torch.where(position < length, position, period - position)


def pad_clip(clip: Tensor, plan: PadPlan) -> Tensor:
    """Pad `[B, T, C, H, W]` at the end of each axis: the last frame repeated, pixels reflected."""
    (num_frames, height, width), (all_frames, all_rows, all_columns) = plan.size, plan.padded
    if all_frames > num_frames:
        frames = torch.arange(all_frames, device=clip.device).clamp(max=num_frames - 1)
        clip = clip.index_select(1, frames)
    if all_rows > height:
        clip = clip.index_select(3, reflected(height, all_rows, clip.device))
    if all_columns > width:
        clip = clip.index_select(4, reflected(width, all_columns, clip.device))
    return clip


def crop_clip(clip: Tensor, plan: PadPlan, upscale: int = 1) -> Tensor:
    """Cut the restored clip `[B, T', C, s * H', s * W']` to the size that was given."""
    num_frames, height, width = plan.size
    return clip[:, :num_frames, :, : height * upscale, : width * upscale]
