"""The mode and the number format in which a model restores, put back afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode; afterwards every module is in the mode it was in before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def number_format(device_type: str, autocast_dtype: torch.dtype | None) -> Iterator[None]:
    """Compute in `autocast_dtype`; None: in float32 with TF32 off, so that scores compare."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        if autocast_dtype is None:
            for backend in backends:
                backend.allow_tf32 = False
        with torch.autocast(device_type, autocast_dtype, enabled=autocast_dtype is not None):
            yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed
