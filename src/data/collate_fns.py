"""From samples to a batch; what could not be read is left out, logged by name, and handed on."""

import logging
from functools import reduce
from typing import Any

import torch

from src.data.errors import BadSample

logger = logging.getLogger(__name__)

TENSORS = ("blur", "sharp", "spike_vox", "bin_ticks")


def collate_clips(samples: list[dict[str, Any] | BadSample]) -> dict[str, Any]:
    """Stack the samples of `SpikeDeblurDataset`: blur [B, T, 3, H, W] and so on.

    Clips of another shape than the first are dropped; `dropped` lists them and each `BadSample`.
    The tensors, in the widest dtype of the samples, are None where no sample is left.
    """
    good: list[dict[str, Any]] = []
    dropped: list[BadSample] = []
    for sample in samples:
        if isinstance(sample, BadSample):
            dropped.append(sample)
        elif good and _shapes(sample) != _shapes(good[0]):
            meta, other = sample["meta"], good[0]["meta"]["seq"]
            reason = f"shapes {_shapes(sample)} differ from {_shapes(good[0])} of {other}"
            dropped.append(BadSample(f"{meta['seq']} frames {meta['frame_idx']}", reason))
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
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    return torch.stack([tensor.to(dtype) for tensor in tensors])


def _shapes(sample: dict[str, Any]) -> list[tuple[int, ...]]:
    return [tuple(sample[name].shape) for name in TENSORS]
