"""A training step that does not fit into the device's memory: smaller parts, or the way out."""

import logging
from typing import Any

import torch

from src.engine.distributed import Ranks
from src.engine.training_step import StepOutcome, TrainingStep, UpdateMemoryError

GIB = 2**30
logger = logging.getLogger(__name__)


class StepMemoryError(RuntimeError):
    """A training step does not fit into memory; the message has the settings and the numbers."""


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

    def __call__(
        self, train_step: TrainingStep, batches: list[dict[str, Any]], step: int
    ) -> StepOutcome:
        """Do a step.

        Raises:
            StepMemoryError: It does not fit, and cannot be cut.
        """
        while True:
            cut = [split_batch(batch, self.pieces) for batch in batches]
            shares = tuple(share for parts in cut for _, share in parts)
            try:
                return train_step([part for parts in cut for part, _ in parts], step, shares)
            except torch.cuda.OutOfMemoryError as error:
                reason = str(error).splitlines()[0]
            except UpdateMemoryError as error:  # smaller parts would not help
                reason = f"in the update: {str(error).splitlines()[0]}"
                raise StepMemoryError(
                    self._message(max(map(count_clips, batches)), reason, step)
                ) from error
            # Outside the handler: the error's traceback holds the tensors of the failed attempt.
            train_step.forget()
            if self.ranks.device.type == "cuda":
                torch.cuda.empty_cache()
            self._cut_smaller(max(map(count_clips, batches)), reason, step)

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
            "smaller DATA.CROP_SIZE or DATA.CLIP_LEN; scripts/plan.py finds settings that fit"
        )


def split_batch(batch: dict[str, Any], pieces: int) -> list[tuple[dict[str, Any], float]]:
    """Cut a collated micro-batch; return its parts with their share of its clips."""
    clips = count_clips(batch)
    if pieces == 1 or clips < 2:
        return [(batch, 1.0)]
    size = -(-clips // pieces)
    return [
        (_part(batch, slice(start, start + size)), min(size, clips - start) / clips)
        for start in range(0, clips, size)
    ]


def count_clips(batch: dict[str, Any]) -> int:
    """Return the clips in a collated micro-batch; those that were dropped do not count."""
    return 0 if batch["blur"] is None else len(batch["meta"])


def _part(batch: dict[str, Any], clips: slice) -> dict[str, Any]:
    return {name: value if name == "dropped" else value[clips] for name, value in batch.items()}


def _capacity(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    free, total = torch.cuda.mem_get_info(device)
    peak = torch.cuda.max_memory_allocated(device)
    return f" ({total / GIB:.1f} GiB, {free / GIB:.1f} free, peak {peak / GIB:.1f} of this process)"
