"""One optimiser step: micro-batches forward and backward, clipping, update, lack of memory."""

import hashlib
import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from src.data.normalization import Normalization, normalize_counts, to_unit
from src.engine.clock import Clock
from src.engine.optim import GradientRules
from src.engine.processes import Ranks, gradient_sync

GIB = 2**30
logger = logging.getLogger(__name__)
Batch = dict[str, Any]  # what the loader collates


class UpdateMemoryError(RuntimeError):
    """The update does not fit into memory; gradients are unscaled, so the step cannot be redone."""


class StepMemoryError(RuntimeError):
    """A training step does not fit into memory; the message has the settings and the numbers."""


@dataclass(frozen=True)
class Precision:
    """The format in which the model's blocks compute; parameters stay float32."""

    name: str
    device_type: str

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The autocast format, or None for float32."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[self.name]

    def autocast(self) -> AbstractContextManager:
        """Return the autocast context of this format; for float32 it does nothing."""
        return torch.autocast(
            self.device_type, self.autocast_dtype, enabled=self.autocast_dtype is not None
        )

    def scaler(self) -> torch.amp.GradScaler:
        """Return a gradient scaler; only float16 needs it, elsewhere it passes values through."""
        return torch.amp.GradScaler(self.device_type, enabled=self.name == "fp16")


def choose_precision(name: str, device: torch.device) -> Precision:
    """Return the precision that TRAIN.AMP stands for on `device`.

    Raises:
        ValueError: The device cannot compute in the format that is asked for.
    """
    if device.type == "cpu":
        if name in ("fp16", "bf16"):
            # bf16: torch's 3D convolutions on CPUs then give gradients of small maps that hold
            # whatever was in memory before (seen with torch 2.15; the first ones are infinite).
            raise ValueError(f"TRAIN.AMP {name} needs a GPU; on a CPU use auto or fp32")
        return Precision("fp32", "cpu")
    has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
    if name == "bf16" and not has_bf16:
        raise ValueError(
            f"TRAIN.AMP bf16 is not supported by {torch.cuda.get_device_name(device)}; "
            "use auto or fp16"
        )
    if name == "auto":
        name = "bf16" if has_bf16 else "fp16"
    return Precision(name, "cuda")


@dataclass(frozen=True)
class MicroBatch:
    """Clips on the device: blurry and sharp [B, T, 3, H, W] in 0..1, voxels [B, T, K, Hs, Ws]."""

    blurry: Tensor
    sharp: Tensor
    voxels: Tensor
    weight: float  # 0 for a stand-in of a micro-batch whose samples were all unreadable
    names: tuple[str, ...]


@dataclass(frozen=True)
class StepOutcome:
    """What one step did. Losses are means over this rank's micro-batches.

    `learning_rates` are those that the step used, by parameter group, in their order.
    """

    losses: dict[str, float]
    grad_norm: float
    is_finite: bool
    names: tuple[str, ...]
    learning_rates: dict[str, float]
    broken: tuple[str, ...] = ()  # parameters whose gradients are not finite


class BatchPlacer:
    """Brings collated batches of counts and bytes to the device and normalises them there."""

    def __init__(
        self, device: torch.device, norm: Normalization, stand_in_shape: tuple[int, int, int]
    ) -> None:
        """Prepare to place batches; `stand_in_shape` is (frames, crop in pixels, bins)."""
        self.device, self.norm = device, norm
        self.stand_in_shape = stand_in_shape

    def __call__(self, batch: Batch) -> MicroBatch:
        """Return the micro-batch; zeros of weight 0 where every sample of it was dropped.

        The zeros keep all ranks of a distributed run at the same number of backward passes.
        """
        if batch["blur"] is None:
            return self._stand_in(batch)
        return MicroBatch(
            blurry=to_unit(batch["blur"].to(self.device, non_blocking=True)),
            sharp=to_unit(batch["sharp"].to(self.device, non_blocking=True)),
            voxels=normalize_counts(
                batch["spike_vox"].to(self.device, non_blocking=True),
                self.norm,
                batch["bin_ticks"] if self.norm.bin_normalize else None,
            ),
            weight=1.0,
            names=tuple(f"{m['seq']}:{m['frame_idx'][0]}" for m in batch["meta"]),
        )

    def _stand_in(self, batch: Batch) -> MicroBatch:
        frames, side, bins = self.stand_in_shape
        dropped = "; ".join(f"{bad.name}: {bad.reason}" for bad in batch["dropped"])
        return MicroBatch(
            torch.zeros(1, frames, 3, side, side, device=self.device),
            torch.zeros(1, frames, 3, side, side, device=self.device),
            torch.zeros(1, frames, bins, side // 2, side // 2, device=self.device),
            weight=0.0,
            names=(f"dropped ({dropped})",),
        )


class TrainingStep:
    """One path for float32, bfloat16 and float16: the scaler is there, enabled for fp16 only."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]],
        optimizer: Optimizer,
        schedule: LRScheduler,
        precision: Precision,
        place: BatchPlacer,
        gradients: GradientRules,
        draws: "StepDraws",
    ) -> None:
        self.model, self.loss_fn, self.place = model, loss_fn, place
        self.optimizer, self.schedule = optimizer, schedule
        self.precision, self.scaler = precision, precision.scaler()
        self.gradients, self.draws = gradients, draws
        self.clock = Clock(place.device)

    def __call__(
        self, batches: list[Batch], step: int, shares: tuple[float, ...] | None = None
    ) -> StepOutcome:
        """Do one optimiser step over collated micro-batches; `step` counts from 0.

        The loss is the mean over the micro-batches, weighted by `shares` where these are given.
        A step with a gradient that is not finite changes nothing.

        The norm is taken after the ranks have averaged their gradients, so every rank comes to
        the same decision. A skipped step does not advance the schedule.

        Raises:
            torch.cuda.OutOfMemoryError: Forward or backward do not fit; nothing has changed.
            UpdateMemoryError: The update does not fit.
        """
        parts, names = [], []
        shares = (1.0,) * len(batches) if shares is None else shares
        for index, batch in enumerate(batches):
            with self.clock.measure("transfer"):
                placed = self.place(batch)  # one at a time: only one micro-batch is on the device
            is_last = index == len(batches) - 1
            self.draws.seed(step, index)
            parts.append(self._backward(placed, share=shares[index] / sum(shares), is_last=is_last))
            names.extend(placed.names)
        rates = {group.get("name", "all"): group["lr"] for group in self.optimizer.param_groups}
        try:
            with self.clock.measure("optimiser"):
                grad_norm, broken = self._update(step)
        except torch.cuda.OutOfMemoryError as error:
            raise UpdateMemoryError(str(error)) from error
        return StepOutcome(
            _means(parts), grad_norm, math.isfinite(grad_norm), tuple(names), rates, broken
        )

    def forget(self) -> None:
        """Drop the gradients of a step that broke off."""
        self.optimizer.zero_grad(set_to_none=True)

    def _update(self, step: int) -> tuple[float, tuple[str, ...]]:
        """Clip the gradients and apply them; return their norm, and which are not finite."""
        self.gradients.drop_frozen(self.optimizer, step)
        self.scaler.unscale_(self.optimizer)
        grad_norm = self.gradients.clip(self.optimizer).item()
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
        self.forget()
        return grad_norm, broken

    def _backward(
        self, batch: MicroBatch, *, share: float, is_last: bool
    ) -> tuple[float, dict[str, Tensor]]:
        with gradient_sync(self.model, enabled=is_last):
            with self.clock.measure("forward"):
                with self.precision.autocast():
                    restored = self.model(batch.blurry, batch.voxels)
                total, parts = self.loss_fn(restored.float(), batch.sharp)
            with self.clock.measure("backward"):
                self.scaler.scale(total * (share * batch.weight)).backward()
        return share * batch.weight, {
            "total": total.detach(),
            **{n: p.detach() for n, p in parts.items()},
        }


@dataclass(frozen=True)
class StepDraws:
    """Random numbers of a step, such as stochastic depth, as a function of what is computed.

    A micro-batch is seeded by its place among those of all ranks, so there is no random state to
    save, and one rank with two micro-batches draws what two ranks with one draw.
    """

    seed_of_run: int
    rank: int = 0
    world_size: int = 1

    def seed(self, step: int, micro_batch: int) -> None:
        """Seed torch's generators for micro-batch number `micro_batch` of this rank."""
        place = micro_batch * self.world_size + self.rank
        text = f"{self.seed_of_run}/{step}/{place}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        torch.manual_seed(int(np.frombuffer(digest, np.int64)[0]))


def _means(parts: list[tuple[float, dict[str, Tensor]]]) -> dict[str, float]:
    """Return the mean of each loss over the micro-batches that hold samples."""
    total = sum(weight for weight, _ in parts)
    names = parts[0][1]
    sums = {name: sum(weight * losses[name] for weight, losses in parts) for name in names}
    return {name: float(value) / total if total else 0.0 for name, value in sums.items()}


class MemoryGuard:
    """Repeats a step that ran out of memory with halved micro-batches, and keeps to them.

    The effective batch is the same: the parts of a micro-batch count by their clips. What changes
    is the order of sums and the random numbers of stochastic depth. With several ranks nothing is
    repeated, since a rank alone cannot take back what it has exchanged with the others.

    Args:
        ranks: This process.
        may_retry: TRAIN.OOM_RETRY.
        shape: Frames and crop side of a clip, for the message.

    Attributes:
        pieces: Into how many parts a micro-batch is cut.
    """

    def __init__(self, ranks: Ranks, shape: tuple[int, int], *, may_retry: bool) -> None:
        self.ranks, self.shape, self.may_retry = ranks, shape, may_retry
        self.pieces = 1

    def __call__(self, train_step: TrainingStep, batches: list[Batch], step: int) -> StepOutcome:
        """Do a step.

        Raises:
            StepMemoryError: It does not fit, and cannot be cut.
        """
        clips = max(map(count_clips, batches))
        while True:
            cut = [split_batch(batch, self.pieces) for batch in batches]
            shares = tuple(share for parts in cut for _, share in parts)
            try:
                return train_step([part for parts in cut for part, _ in parts], step, shares)
            except torch.cuda.OutOfMemoryError as error:
                reason = str(error).splitlines()[0]
            except UpdateMemoryError as error:  # smaller parts would not help
                reason = f"in the update: {str(error).splitlines()[0]}"
                raise StepMemoryError(self._message(clips, reason, step)) from error
            # Outside the handler: the error's traceback holds the tensors of the failed attempt.
            train_step.forget()
            if self.ranks.device.type == "cuda":
                torch.cuda.empty_cache()
            self._cut_smaller(clips, reason, step)

    def _cut_smaller(self, clips: int, reason: str, step: int) -> None:
        if not self.may_retry or self.ranks.is_distributed or self.pieces >= clips:
            raise StepMemoryError(self._message(clips, reason, step))
        self.pieces = min(2 * self.pieces, clips)
        logger.warning(
            "step %d: out of memory with micro-batches of %d clips; cut into %d parts from now on. "
            "TRAIN.BATCH_SIZE %d with more TRAIN.GRADIENT_ACCUMULATION_STEPS spares the attempt",
            *(step + 1, clips, self.pieces, max(1, clips // self.pieces)),
        )

    def _message(self, clips: int, reason: str, step: int) -> str:
        frames, side = self.shape
        now, device = -(-clips // self.pieces), self.ranks.device
        return (
            f"out of memory in step {step + 1} on {device}{_capacity(device)} "
            f"with {now} clip(s) of {frames} frames of {side} x {side} px at a time ({reason}); "
            "give MODEL.USE_CHECKPOINT_ATTN and MODEL.USE_CHECKPOINT_FFN true, a smaller "
            "TRAIN.BATCH_SIZE with as many times the TRAIN.GRADIENT_ACCUMULATION_STEPS, or a "
            "smaller DATA.CROP_SIZE or DATA.CLIP_LEN; --dry_run prints settings that fit"
        )


def split_batch(batch: Batch, pieces: int) -> list[tuple[Batch, float]]:
    """Cut a collated micro-batch; return its parts with their share of its clips."""
    clips = count_clips(batch)
    if pieces == 1 or clips < 2:
        return [(batch, 1.0)]
    size = -(-clips // pieces)
    return [
        (_part(batch, slice(start, start + size)), min(size, clips - start) / clips)
        for start in range(0, clips, size)
    ]


def count_clips(batch: Batch) -> int:
    """Return the clips in a collated micro-batch; those that were dropped do not count."""
    return 0 if batch["blur"] is None else len(batch["meta"])


def _part(batch: Batch, clips: slice) -> Batch:
    return {name: value if name == "dropped" else value[clips] for name, value in batch.items()}


def _capacity(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    free, total = torch.cuda.mem_get_info(device)
    peak = torch.cuda.max_memory_allocated(device)
    return f" ({total / GIB:.1f} GiB, {free / GIB:.1f} free, peak {peak / GIB:.1f} of this process)"
