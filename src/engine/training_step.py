"""One optimiser step: micro-batches forward and backward, clipping, update."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from src.data.normalization import normalize_counts, to_unit
from src.engine.distributed import gradient_sync
from src.engine.precision import Precision


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
    """What one step did. Losses are means over this rank's micro-batches."""

    losses: dict[str, float]
    grad_norm: float
    is_finite: bool
    names: tuple[str, ...]


class BatchPlacer:
    """Brings collated batches of counts and bytes to the device and normalises them there."""

    def __init__(self, device: torch.device, mean: float, std: float) -> None:
        self.device, self.mean, self.std = device, mean, std
        self._template: MicroBatch | None = None

    def __call__(self, batch: dict[str, Any]) -> MicroBatch:
        """Return the micro-batch; zeros of weight 0 where every sample of it was dropped.

        The zeros keep all ranks of a distributed run at the same number of backward passes.

        Raises:
            RuntimeError: All samples of the very first micro-batch are unreadable.
        """
        if batch["blur"] is None:
            return self._stand_in(batch)
        placed = MicroBatch(
            blurry=to_unit(batch["blur"].to(self.device, non_blocking=True)),
            sharp=to_unit(batch["sharp"].to(self.device, non_blocking=True)),
            voxels=normalize_counts(
                batch["spike_vox"].to(self.device, non_blocking=True), self.mean, self.std
            ),
            weight=1.0,
            names=tuple(f"{m['seq']}:{m['frame_idx'][0]}" for m in batch["meta"]),
        )
        self._template = placed
        return placed

    def _stand_in(self, batch: dict[str, Any]) -> MicroBatch:
        dropped = "; ".join(f"{bad.name}: {bad.reason}" for bad in batch["dropped"])
        if self._template is None:
            raise RuntimeError(f"no sample of the first micro-batch can be read: {dropped}")
        like = self._template
        return MicroBatch(
            torch.zeros_like(like.blurry),
            torch.zeros_like(like.sharp),
            torch.zeros_like(like.voxels),
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
        grad_clip: float,
    ) -> None:
        self.model, self.loss_fn, self.place = model, loss_fn, place
        self.optimizer, self.schedule = optimizer, schedule
        self.precision, self.scaler = precision, precision.scaler()
        self.max_norm = grad_clip if grad_clip > 0 else float("inf")

    def __call__(self, batches: list[dict[str, Any]]) -> StepOutcome:
        """Do one optimiser step over collated micro-batches.

        A step with a gradient that is not finite changes nothing.

        The norm is taken after the ranks have averaged their gradients, so every rank comes to
        the same decision. A skipped step does not advance the schedule.
        """
        parts, names = [], []
        for index, batch in enumerate(batches):
            placed = self.place(batch)  # one at a time: only one micro-batch is on the device
            is_last = index == len(batches) - 1
            parts.append(self._backward(placed, share=1 / len(batches), is_last=is_last))
            names.extend(placed.names)
        self.scaler.unscale_(self.optimizer)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        grad_norm = nn.utils.clip_grad_norm_(trained, self.max_norm)
        is_finite = bool(torch.isfinite(grad_norm))
        if is_finite:
            self.scaler.step(self.optimizer)
            self.schedule.step()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        losses = {name: torch.stack([p[name] for p in parts]).mean().item() for name in parts[0]}
        return StepOutcome(losses, grad_norm.item(), is_finite, tuple(names))

    def _backward(self, batch: MicroBatch, *, share: float, is_last: bool) -> dict[str, Tensor]:
        with gradient_sync(self.model, enabled=is_last):
            with self.precision.autocast():
                restored = self.model(batch.blurry, batch.voxels)
            total, parts = self.loss_fn(restored.float(), batch.sharp)
            self.scaler.scale(total * (share * batch.weight)).backward()
        return {"total": total.detach(), **{name: p.detach() for name, p in parts.items()}}


def seed_step(seed: int, rank: int, step: int) -> None:
    """Seed torch's generators from (seed, rank, step), so that there is no random state to save."""
    digest = hashlib.blake2b(f"{seed}/{rank}/{step}".encode(), digest_size=8).digest()
    torch.manual_seed(int(np.frombuffer(digest, np.int64)[0]))
