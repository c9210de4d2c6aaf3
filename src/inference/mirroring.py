"""Axes enlarged by their last positions in reverse order."""

import torch


def mirrored_to_multiple(length: int, multiple: int) -> list[int]:
    """Return positions 0..length-1, then the last ones backwards up to a multiple.

    The last position is repeated. At most `length` positions are appended, as published.
    """
    positions = list(range(length))
    return positions + positions[::-1][: -length % multiple]


def mirror_to(clip: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return [..., H, W] enlarged to `size` by its last rows and columns in reverse order."""
    for axis, length in zip((-2, -1), size, strict=True):
        missing = length - clip.shape[axis]
        if missing:
            tail = clip.narrow(axis, clip.shape[axis] - missing, missing).flip(axis)
            clip = torch.cat([clip, tail], dim=axis)
    return clip
