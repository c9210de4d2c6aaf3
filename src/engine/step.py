"""One optimiser step: micro-batches forward and backward, clipping, update, lack of memory.

Also the limits on what a run tolerates: clips that cannot be read and steps that are skipped.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from src.data.normalization import Normalization, normalize_counts, to_unit
from src.engine.checkpoint import Progress
from src.engine.log import Clock, StepOutcome
from src.engine.optim import PartRule, clip_gradients, drop_frozen, skip_frozen
from src.engine.processes import Precision, Ranks
from src.paths import atomic_write
from src.run_directory import RunDirectory

GIB = 2**30
MAX_NAMED = 5
MAX_IN_A_ROW, MAX_IN_A_ROW_FLOAT16 = 10, 40
SMALLEST_SCALE = 1.0  # float16 halves its scale, 65536 at first, at every skipped step
logger = logging.getLogger(__name__)
Batch = dict[str, Any]  # what the loader collates


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


class BatchPlacer:
    """Brings collated batches of counts and bytes to the device and normalises them there."""

    def __init__(
        self, device: torch.device, norm: Normalization, stand_in_shape: tuple[int, int, int]
    ) -> None:
        """Prepare; `stand_in_shape` is (frames, crop in pixels, bins) of an empty micro-batch."""
        self.device, self.norm = device, norm
        self.stand_in_shape = stand_in_shape

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


@dataclass
class TrainingStep:
    """One path for float32, bfloat16 and float16: the scaler is there, enabled for fp16 only.

    Attributes:
        seed: Of the run, for random numbers of a step such as stochastic depth.
        grad_clip: The largest norm of the gradient; 0 for no limit.
        rules: Parts that are frozen at first.
        may_retry: Repeat a step that ran out of memory with halved micro-batches, and keep to them.
            Only on a single rank: one of several cannot take back what it has exchanged.
        pieces: Into how many parts a micro-batch is cut.
    """

    model: nn.Module
    loss_fn: Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]
    optimizer: Optimizer
    schedule: LRScheduler
    precision: Precision
    place: BatchPlacer
    ranks: Ranks
    seed: int = 0
    grad_clip: float = 0.0
    rules: Sequence[PartRule] = ()
    may_retry: bool = True
    pieces: int = 1

    def __post_init__(self) -> None:
        is_fp16 = self.precision.name == "fp16"
        self.scaler = torch.amp.GradScaler(self.precision.device_type, enabled=is_fp16)
        self.clock = Clock(self.place.device)

    def __call__(self, batches: list[Batch], step: int) -> StepOutcome:
        """Do one optimiser step over collated micro-batches; `step` counts from 0.

        A step with a gradient that is not finite changes nothing and does not advance the schedule.
        The norm is taken after the ranks have averaged their gradients, so all decide alike.

        Raises:
            StepMemoryError: It does not fit into memory, and cannot be cut.
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

    def _backward(
        self, parts: list[tuple[Batch, float]], step: int
    ) -> tuple[dict[str, float], tuple[str, ...]]:
        """Add up the gradients of weighted parts; return the mean losses and the clips' names."""
        sums: dict[str, Tensor | float] = {}
        kind, dtype = self.precision.device_type, self.precision.autocast_dtype
        weights, names, shares = 0.0, [], sum(share for _, share in parts)
        for index, (part, share) in enumerate(parts):
            with self.clock.measure("transfer"):
                batch = self.place(part)  # only one micro-batch is on the device at a time
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
    """Seed torch's generators for a micro-batch, by its number among those of all ranks.

    So there is no random state to save, and one rank with two micro-batches draws what two ranks
    with one draw.
    """
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
    """Return the clips in a collated micro-batch; those that were dropped do not count."""
    return 0 if batch["blur"] is None else len(batch["meta"])


@dataclass
class DroppedClips:
    """Samples that could not be read, against the share of them that a run tolerates.

    The share is taken of `at_least` samples, those of one epoch, so that one bad file among the
    first few does not stop the run. The counts are saved with the run.
    """

    max_fraction: float  # DATA.MAX_BAD_FRACTION
    at_least: int
    batch_size: int
    progress: Progress = field(default_factory=Progress)

    def count(self, batches: list[Batch]) -> None:
        """Count the micro-batches of one step; raise if too many samples could not be read."""
        bad = [sample for batch in batches for sample in batch["dropped"]]
        self.progress.dropped_clips += len(bad)
        self.progress.seen_clips += len(batches) * self.batch_size
        dropped, of = self.progress.dropped_clips, max(self.progress.seen_clips, self.at_least)
        if bad and dropped > self.max_fraction * of:
            names = "; ".join(f"{sample.name}: {sample.reason}" for sample in bad[:MAX_NAMED])
            raise RuntimeError(
                f"{dropped} of {of} samples could not be read, more than "
                f"DATA.MAX_BAD_FRACTION {self.max_fraction}; the last: {names}"
            )


class SkippedSteps:
    """Counts skipped steps, and ends the run after too many in a row.

    Float16 finds its scale by skipping, so there a row of skipped steps is normal as long as the
    scale has room to shrink.
    """

    def __init__(
        self, run: RunDirectory, ranks: Ranks, progress: Progress, scaler: torch.amp.GradScaler
    ) -> None:
        self.run, self.ranks, self.progress, self.scaler = run, ranks, progress, scaler
        self._latest: list[dict[str, Any]] = []

    def judge(self, outcome: StepOutcome) -> None:
        """Record a step that was counted already; every rank does it for every step.

        After too many in a row it writes what they held to a file and raises.
        """
        progress = self.progress
        if outcome.is_finite:
            progress.skipped_in_a_row = 0
            self._latest.clear()
            return
        progress.skipped_steps += 1
        progress.skipped_in_a_row += 1
        clips = ", ".join(outcome.names)
        logger.warning(
            "step %d skipped, its gradients are not finite; clips %s; %d skipped in all",
            *(progress.step, clips, progress.skipped_steps),
        )
        entry = {"step": progress.step, **asdict(outcome)}
        self._latest = [*self._latest[1 - MAX_IN_A_ROW :], entry]
        scale = self.scaler.get_scale() if self.scaler.is_enabled() else None
        is_scale_used_up = scale is None or scale < SMALLEST_SCALE
        # With float16 a norm can overflow although no gradient does, at any scale.
        limit = MAX_IN_A_ROW if is_scale_used_up else MAX_IN_A_ROW_FLOAT16
        if progress.skipped_in_a_row < limit:
            return
        where = self._dump(scale)
        at_scale = "" if scale is None else f" and float16's scale is {scale:g}"
        raise FloatingPointError(
            f"{progress.skipped_in_a_row} steps in a row had gradients that are not finite"
            f"{at_scale}, the last one step {progress.step} with clips {clips}; {where}. The "
            "weights are those before these steps, and may have been damaged before: --resume with "
            "the run's previous.pth or best.pth starts further back. Lower TRAIN.OPTIM.LR, or set "
            "TRAIN.AMP fp32 to see whether the number format is the cause"
        )

    def _dump(self, scale: float | None) -> str:
        """Write what the latest skipped steps held on every rank; return where, as a sentence."""
        path = self.run.logs / f"nonfinite_{self.run.name}_{self.progress.step:07d}.json"
        of_ranks = self.ranks.gather(self._latest)
        if self.ranks.is_main:
            # JSON has no NaN and no infinity; both become text.
            steps = json.loads(json.dumps(of_ranks), parse_constant=str)
            content = {"float16_scale": scale, "ranks": steps}
            try:
                with atomic_write(path) as partial:
                    partial.write_text(json.dumps(content, indent=1, allow_nan=False), "utf-8")
            except OSError as error:  # must not replace the reason for the end
                return f"{path} could not be written ({error.strerror or error})"
        return f"{path} names clips, losses and parameters"
