"""The Charbonnier penalty, a smooth L1."""

import torch
from torch import nn


def charbonnier(
    prediction: torch.Tensor, target: torch.Tensor, delta: float = 1e-3
) -> torch.Tensor:
    """Return mean(sqrt((prediction - target)^2 + delta^2)) of images, see `check_images`.

    Around `delta`, which is above 0, the penalty turns from quadratic to linear.
    """
    check_images(prediction, target)
    return torch.sqrt((prediction - target).square() + delta**2).mean()


class CharbonnierLoss(nn.Module):
    """`charbonnier` with a fixed delta."""

    def __init__(self, delta: float = 1e-3) -> None:
        super().__init__()
        if delta <= 0:
            raise ValueError(f"LOSS.CHARBONNIER.DELTA is {delta}; it must be above 0")
        self.delta = delta

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the scalar loss."""
        return charbonnier(prediction, target, self.delta)


def check_images(prediction: torch.Tensor, target: torch.Tensor) -> None:
    """Refuse what would broadcast, or is neither [B, T, 3, H, W] nor [N, 3, H, W]."""
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction has shape {list(prediction.shape)}, target {list(target.shape)}; "
            "they must be equal"
        )
    if prediction.ndim not in (4, 5) or prediction.shape[-3] != 3:
        raise ValueError(
            f"images have shape {list(prediction.shape)}; needed is [B, T, 3, H, W] or [N, 3, H, W]"
        )
