"""From stored whole numbers to what the network sees; the one place where this is computed.

The data set uses it on the CPU, the trainer on the device, on the same counts: same values.
"""

import torch


def normalize_counts(
    counts: torch.Tensor, mean: float, std: float, eps: float = 1e-6
) -> torch.Tensor:
    """Return (log1p(count) - mean) / max(std, eps) as float32, in the shape of `counts`.

    Args:
        counts: spikes per voxel, any shape and real dtype, on any device.
        mean: of log1p(count) over the training split.
        std: its standard deviation.
        eps: smallest divisor, for data without any spread.
    """
    return torch.log1p(counts.float()).sub_(mean).div_(max(std, eps))


def to_unit(image: torch.Tensor) -> torch.Tensor:
    """Return 8 bit values 0..255 as float32 in 0..1, in the shape of `image`.

    Raises:
        ValueError: not uint8, so probably scaled already.
    """
    if image.dtype != torch.uint8:
        raise ValueError(f"expected uint8 values 0..255, got {image.dtype}")
    return image.float().div_(255.0)
