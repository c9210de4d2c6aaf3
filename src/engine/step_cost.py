"""What one micro-batch costs: measured on a GPU, or counted on tensors without values."""

import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from yacs.config import CfgNode

from src.engine.precision import Precision
from src.models.build import build_model
from third_party.VRT.models.chunks import IMAGE_ELEMENTS, WINDOW_ELEMENTS

TIMED_STEPS = 3


@dataclass(frozen=True)
class MicroBatchSize:
    """Clips, frames and the side of the crop in pixels."""

    clips: int
    frames: int
    crop_px: int

    @property
    def pixels(self) -> int:
        """Pixels of all frames together, which memory and work grow with."""
        return self.clips * self.frames * self.crop_px**2


class LiveBytes(TorchDispatchMode):
    """Adds up the storages that are alive, as an allocator without waste would hold them.

    Attributes:
        live: Bytes now, of storages that were made inside the block.
        peak: The largest that `live` was.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the operation and count what it made."""
        known = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        inputs = {x.untyped_storage()._cdata for x in known}
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage(), inputs)
        return made

    def _count(self, storage: torch.UntypedStorage, inputs: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen or key in inputs:
            return

        def forget(_: object) -> None:
            self.live -= size
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, forget)
        self.live += size
        self.peak = max(self.peak, self.live)


@contextmanager
def gpu_pieces() -> Iterator[None]:
    """Let VRT work in the large pieces of a GPU although its tensors say they are on a CPU."""
    kept = [(budget, budget["cpu"]) for budget in (WINDOW_ELEMENTS, IMAGE_ELEMENTS)]
    try:
        for budget, _ in kept:
            budget["cpu"] = budget["cuda"]
        yield
    finally:
        for budget, elements in kept:
            budget["cpu"] = elements


def clip_of(cfg: CfgNode, size: MicroBatchSize, device: str | torch.device) -> tuple[Tensor, ...]:
    """Return blurry frames [B, T, 3, H, W] and voxels [B, T, K, H/2, W/2] of any content."""
    side = size.crop_px
    blurry = torch.full((size.clips, size.frames, 3, side, side), 0.5, device=device)
    shape = (size.clips, size.frames, cfg.DATA.K, side // 2, side // 2)
    return blurry, torch.full(shape, 0.5, device=device)


def forward_backward(model: nn.Module, clip: tuple[Tensor, ...], precision: Precision) -> None:
    """Do one micro-batch; the loss is a plain one, whose memory does not matter."""
    with precision.autocast():
        restored = model(*clip)
    (restored.float() - clip[0]).abs().mean().backward()


def count_activations(cfg: CfgNode, size: MicroBatchSize, precision: Precision) -> int:
    """Return the bytes that a micro-batch needs at most, besides weights and gradients.

    The model runs forward and backward on tensors that have sizes and no values, in the pieces
    that it would use on a GPU.
    """
    with _without_values(cfg) as model, gpu_pieces():
        clip = clip_of(cfg, size, "cpu")
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        with LiveBytes() as memory:
            forward_backward(model, clip, precision)
    return memory.peak


def count_flops(cfg: CfgNode, size: MicroBatchSize, precision: Precision) -> float:
    """Return the floating-point operations of a forward pass."""
    with _without_values(cfg) as model, gpu_pieces(), torch.no_grad(), precision.autocast():
        clip = clip_of(cfg, size, "cpu")
        with FlopCounterMode(display=False) as counter:
            model(*clip)
    return float(counter.get_total_flops())


@contextmanager
def _without_values(cfg: CfgNode) -> Iterator[nn.Module]:
    with torch.device("meta"):
        model = build_model(cfg, read_weights=False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield model.to_empty(device="cpu").train()


def measure_on_gpu(
    cfg: CfgNode, size: MicroBatchSize, precision: Precision, device: torch.device
) -> tuple[int, float]:
    """Return peak bytes of activations and seconds of a real micro-batch on `device`."""
    model = build_model(cfg, read_weights=False).to(device).train()
    clip = clip_of(cfg, size, device)
    forward_backward(model, clip, precision)  # allocates the gradients, chooses kernels
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    for _ in range(TIMED_STEPS):
        forward_backward(model, clip, precision)
    torch.cuda.synchronize(device)
    seconds = (time.perf_counter() - start) / TIMED_STEPS
    return torch.cuda.max_memory_allocated(device) - before, seconds
