"""One optimiser step: micro-batches forward and backward, clipping, update, lack of memory."""

import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from src.data.normalization import Normalization, normalize_counts, to_unit
from src.engine.log import Clock
from src.engine.optim import PartRule, clip_gradients, drop_frozen, skip_frozen
from src.engine.processes import Precision, Ranks
from src.engine.progress import Batch, StepOutcome

GIB = 2**30
logger = logging.getLogger(__name__)


class StepMemoryError(RuntimeError):
    """A training step does not fit into memory; the message has the settings and the numbers."""


@dataclass(frozen=True)
class MicroBatch:
    """Clips on the device: blurry and sharp [B, T, 3, H, W] in 0..1, voxels [B, T, K, Hs, Ws]."""

    blurry: Tensor
    sharp: Tensor
    voxels: Tensor
    weight: float  # 0 for the zeros that replace a micro-batch without readable samples
    names: tuple[str, ...]


@dataclass(frozen=True)
class BatchTransfer:
    """Brings collated batches of counts and bytes to the device and normalises them there."""

    device: torch.device
    norm: Normalization
    stand_in_shape: tuple[int, int, int]  # frames, crop in pixels, bins of an empty micro-batch

    def __call__(self, batch: Batch) -> MicroBatch:
        """Return the micro-batch; zeros of weight 0 if every sample of it was dropped.

        The zeros keep all ranks of a distributed run at the same number of backward passes.
        """
        if batch["blur"] is None:
            frames, side, bins = self.stand_in_shape
            dropped = "; ".join(f"{bad.name}: {bad.reason}" for bad in batch["dropped"])
            images = torch.zeros(1, frames, 3, side, side, device=self.device)
            voxels = torch.zeros(1, frames, bins, side // 2, side // 2, device=self.device)
            return MicroBatch(images, images, voxels, 0.0, (f"dropped ({dropped})",))
        blurry = to_unit(batch["blur"].to(self.device, non_blocking=True))
        return MicroBatch(
            blurry=blurry,
            sharp=to_unit(batch["sharp"].to(self.device, non_blocking=True)),
            voxels=normalize_counts(
                batch["spike_vox"].to(self.device, non_blocking=True),
                self.norm,
                batch["bin_ticks"] if self.norm.bin_normalize else None,
                blurry,
            ),
            weight=1.0,
            names=tuple(f"{m['seq']}:{m['frame_idx'][0]}" for m in batch["meta"]),
        )


@dataclass
class TrainingStep:
    """One path for float32, bfloat16 and float16: the scaler is there, enabled for fp16 only."""

    model: nn.Module
    loss_fn: Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]
    optimizer: Optimizer
    schedule: LRScheduler
    precision: Precision
    transfer: BatchTransfer
    ranks: Ranks
    seed: int = 0  # of the run, for random numbers of a step such as stochastic depth
    grad_clip: float = 0.0  # the largest norm of the gradient; 0: no limit
    rules: Sequence[PartRule] = ()  # parts that are frozen at first
    may_retry: bool = True  # with halved micro-batches; one of several ranks cannot
    pieces: int = 1  # into which a micro-batch is cut

    def __post_init__(self) -> None:
        is_fp16 = self.precision.name == "fp16"
        self.scaler = torch.amp.GradScaler(self.precision.device_type, enabled=is_fp16)
        self.clock = Clock(self.transfer.device)

    def __call__(self, batches: list[Batch], step: int) -> StepOutcome:
        """Do one optimiser step over collated micro-batches; `step` counts from 0.

        A step with a gradient that is not finite changes nothing and does not advance the schedule.
        The norm is taken after the ranks have averaged their gradients, so all decide alike.
        """
        skip_frozen(self.model, self.rules, step)
        while True:
            parts = [part for batch in batches for part in split_batch(batch, self.pieces)]
            try:
                losses, names = self._backward(parts, step)
                break
            except torch.cuda.OutOfMemoryError as error:
                reason = str(error).splitlines()[0]
            # Outside the handler: the error's traceback holds the tensors of the failed attempt.
            self.optimizer.zero_grad(set_to_none=True)
            if self.ranks.device.type == "cuda":
                torch.cuda.empty_cache()
            self._cut_smaller(batches, reason, step)
        rates = {group.get("name", "all"): group["lr"] for group in self.optimizer.param_groups}
        try:
            with self.clock.measure("optimiser"):
                grad_norm, broken = self._update(step)
        except torch.cuda.OutOfMemoryError as error:
            # Not repeated: the gradients are unscaled, and smaller parts would not help.
            reason = f"in the update: {str(error).splitlines()[0]}"
            raise StepMemoryError(self._describe(batches, reason, step)) from error
        return StepOutcome(losses, grad_norm, math.isfinite(grad_norm), names, rates, broken)

    def rehearse(self) -> None:
        """Run forward and backward on zeros of the shape of a training clip; nothing changes."""
        self._backward([({"blur": None, "dropped": []}, 1.0)], 0)
        self.optimizer.zero_grad(set_to_none=True)
        self.clock.take()

    def _backward(
        self, parts: list[tuple[Batch, float]], step: int
    ) -> tuple[dict[str, float], tuple[str, ...]]:
        """Add up the gradients of weighted parts; return the mean losses and the clips' names."""
        sums: dict[str, Tensor | float] = {}
        kind, dtype = self.precision.device_type, self.precision.autocast_dtype
        weights, names, shares = 0.0, [], sum(share for _, share in parts)
        for index, (part, share) in enumerate(parts):
            with self.clock.measure("transfer"):
                batch = self.transfer(part)  # only one micro-batch is on the device at a time
            seed_micro_batch(self.seed, step, index * self.ranks.world_size + self.ranks.rank)
            weight = batch.weight * share / shares
            is_last = index == len(parts) - 1
            may_wait = isinstance(self.model, DistributedDataParallel) and not is_last
            with self.model.no_sync() if may_wait else nullcontext():  # ranks talk once per step
                with self.clock.measure("forward"):
                    with torch.autocast(kind, dtype, enabled=dtype is not None):
                        restored = self.model(batch.blurry, batch.voxels)
                    total, losses = self.loss_fn(restored.float(), batch.sharp)
                with self.clock.measure("backward"):
                    self.scaler.scale(total * weight).backward()
            for name, value in {"total": total, **losses}.items():
                sums[name] = sums.get(name, 0) + weight * value.detach()
            weights += weight
            names += batch.names
        means = {k: float(value) / weights if weights else 0.0 for k, value in sums.items()}
        return means, tuple(names)

    def _update(self, step: int) -> tuple[float, tuple[str, ...]]:
        """Clip the gradients and apply them; return their norm, and which are not finite."""
        drop_frozen(self.optimizer, self.rules, step)
        self.scaler.unscale_(self.optimizer)
        grad_norm = clip_gradients(self.optimizer, self.grad_clip).item()
        broken: tuple[str, ...] = ()
        if math.isfinite(grad_norm):
            self.scaler.step(self.optimizer)
            self.schedule.step()
        else:
            broken = tuple(
                name
                for name, parameter in self.model.named_parameters()
                if parameter.grad is not None and not bool(parameter.grad.isfinite().all())
            )
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return grad_norm, broken

    def _cut_smaller(self, batches: list[Batch], reason: str, step: int) -> None:
        clips = max(map(count_clips, batches))
        if not self.may_retry or self.ranks.is_distributed or self.pieces >= clips:
            raise StepMemoryError(self._describe(batches, reason, step))
        self.pieces = min(2 * self.pieces, clips)
        logger.warning(
            "step %d: out of memory with micro-batches of %d clips; cut into %d parts from now on. "
            "TRAIN.BATCH_SIZE %d with more TRAIN.GRADIENT_ACCUMULATION_STEPS avoids the attempt",
            *(step + 1, clips, self.pieces, max(1, clips // self.pieces)),
        )

    def _describe(self, batches: list[Batch], reason: str, step: int) -> str:
        largest, device, memory = max(batches, key=count_clips), self.ranks.device, ""
        clips = -(-count_clips(largest) // self.pieces)
        frames, side = (largest["blur"].shape[axis] for axis in (1, -1)) if clips else (0, 0)
        if device.type == "cuda":
            free, total = (number / GIB for number in torch.cuda.mem_get_info(device))
            peak = torch.cuda.max_memory_allocated(device) / GIB
            memory = f" ({total:.1f} GiB, {free:.1f} free, peak {peak:.1f} of this process)"
        return (
            f"out of memory in step {step + 1} on {device}{memory} with {clips} clip(s) of "
            f"{frames} frames of {side} x {side} px at a time ({reason}); set "
            "MODEL.USE_CHECKPOINT_ATTN and MODEL.USE_CHECKPOINT_FFN true, a smaller "
            "TRAIN.BATCH_SIZE with as many times the TRAIN.GRADIENT_ACCUMULATION_STEPS, or a "
            "smaller DATA.CROP_SIZE or DATA.CLIP_LEN; --dry_run prints settings that fit"
        )


def seed_micro_batch(seed: int, step: int, number: int) -> None:
    """Seed torch for a micro-batch by its number among those of all ranks: no state to save."""
    digest = hashlib.blake2b(f"{seed}/{step}/{number}".encode(), digest_size=8).digest()
    torch.manual_seed(int(np.frombuffer(digest, np.int64)[0]))


def split_batch(batch: Batch, pieces: int) -> list[tuple[Batch, float]]:
    """Cut a collated micro-batch; return its parts with their share of its clips."""
    clips = count_clips(batch)
    if pieces == 1 or clips < 2:
        return [(batch, 1.0)]
    size = -(-clips // pieces)
    return [
        (
            {k: v if k == "dropped" else v[start : start + size] for k, v in batch.items()},
            min(size, clips - start) / clips,
        )
        for start in range(0, clips, size)
    ]


def count_clips(batch: Batch) -> int:
    """Return the clips in a collated micro-batch without those that were dropped."""
    return 0 if batch["blur"] is None else len(batch["meta"])
