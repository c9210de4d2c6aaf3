"""One optimiser step: micro-batches forward and backward, clipping, update."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from src.data.normalization import Normalization, normalize_counts, to_unit
from src.engine.distributed import gradient_sync
from src.engine.parameter_groups import GradientRules
from src.engine.phases import PhaseClock
from src.engine.precision import Precision


class UpdateMemoryError(RuntimeError):
    """The update does not fit into memory; gradients are unscaled, so the step cannot be redone."""


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

    def __call__(self, batch: dict[str, Any]) -> MicroBatch:
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

    def _stand_in(self, batch: dict[str, Any]) -> MicroBatch:
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
        self.phases = PhaseClock(place.device)

    def __call__(
        self, batches: list[dict[str, Any]], step: int, shares: tuple[float, ...] | None = None
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
            with self.phases.measure("transfer"):
                placed = self.place(batch)  # one at a time: only one micro-batch is on the device
            is_last = index == len(batches) - 1
            self.draws.seed(step, index)
            parts.append(self._backward(placed, share=shares[index] / sum(shares), is_last=is_last))
            names.extend(placed.names)
        rates = {group.get("name", "all"): group["lr"] for group in self.optimizer.param_groups}
        try:
            with self.phases.measure("optimiser"):
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
            with self.phases.measure("forward"):
                with self.precision.autocast():
                    restored = self.model(batch.blurry, batch.voxels)
                total, parts = self.loss_fn(restored.float(), batch.sharp)
            with self.phases.measure("backward"):
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
