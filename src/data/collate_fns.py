"""From samples to a batch; what could not be read is left out, logged by name, and handed on."""

import logging
from typing import Any

import torch

from src.data.errors import BadSample

logger = logging.getLogger(__name__)

TENSORS = ("blur", "sharp", "spike_vox", "bin_ticks")


def collate_clips(samples: list[dict[str, Any] | BadSample]) -> dict[str, Any]:
    """Stack clips along a new first axis.

    Samples whose tensors have not the shape of the first good one are dropped, too.

    Args:
        samples: dicts with blur [T, 3, H, W], sharp [T, 3, H, W], spike_vox [T, K, Hs, Ws],
            bin_ticks [T, K] and meta, or `BadSample`.

    Returns:
        blur [B, T, 3, H, W], sharp, spike_vox [B, T, K, Hs, Ws] (in the widest dtype of the
        samples), bin_ticks [B, T, K], meta: list of B dicts, dropped: list of BadSample. The four
        tensors are None where no sample is left.
    """
    good: list[dict[str, Any]] = []
    dropped: list[BadSample] = []
    for sample in samples:
        if isinstance(sample, BadSample):
            dropped.append(sample)
        elif good and _shapes(sample) != _shapes(good[0]):
            dropped.append(_misfit(sample, good[0]))
        else:
            good.append(sample)
    for bad in dropped:
        logger.warning("dropped %s: %s", bad.name, bad.reason)
    batch: dict[str, Any] = {name: _stack([sample[name] for sample in good]) for name in TENSORS}
    batch["meta"] = [sample["meta"] for sample in good]
    batch["dropped"] = dropped
    return batch


def _stack(tensors: list[torch.Tensor]) -> torch.Tensor | None:
    if not tensors:
        return None
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return torch.stack([tensor.to(dtype) for tensor in tensors])


def _shapes(sample: dict[str, Any]) -> list[tuple[int, ...]]:
    return [tuple(sample[name].shape) for name in TENSORS]


def _misfit(sample: dict[str, Any], first: dict[str, Any]) -> BadSample:
    meta = sample["meta"]
    return BadSample(
        f"{meta['seq']} frames {meta['frame_idx']}",
        f"shapes {_shapes(sample)} differ from {_shapes(first)} of {first['meta']['seq']}",
    )
