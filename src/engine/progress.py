"""The counters of a run, and how many clips and steps it may lose before it ends."""

import json
import logging
import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from src.engine.processes import Ranks
from src.paths import atomic_write
from src.run_directory import RunDirectory

MAX_NAMED = 5
MAX_IN_A_ROW, MAX_IN_A_ROW_FLOAT16 = 10, 40
SMALLEST_SCALE = 1.0  # float16 halves its scale, 65536 at first, at every skipped step
logger = logging.getLogger(__name__)
Batch = dict[str, Any]  # what the loader collates


@dataclass
class Progress:
    """The counters of a run; saved in every checkpoint."""

    step: int = 0  # optimiser steps done, skipped ones included
    skipped_steps: int = 0  # without an update, because a gradient was not finite
    best_psnr: float | None = None
    best_step: int = 0
    skipped_in_a_row: int = 0  # the latest of these, without a good one between them
    validated_step: int = 0  # the latest whose validation was completed
    dropped_clips: int = 0  # samples of this process that could not be read
    seen_clips: int = 0
    compute_s: float = 0.0  # cost of all steps, see `Clock`, times the ranks

    def state_dict(self) -> dict[str, Any]:
        """Return the counters."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the counters of a checkpoint; older versions validated before they saved."""
        vars(self).update(vars(Progress(**{"validated_step": state["step"], **state})))

    def is_best(self, psnr: float) -> bool:
        """Whether a score is the best so far; NaN never is."""
        return not math.isnan(psnr) and (self.best_psnr is None or psnr > self.best_psnr)


@dataclass(frozen=True)
class StepOutcome:
    """What one step did."""

    losses: dict[str, float]  # means over this rank's micro-batches
    grad_norm: float
    is_finite: bool
    names: tuple[str, ...]  # of the clips
    learning_rates: dict[str, float]  # that the step used, by parameter group, in their order
    broken: tuple[str, ...] = ()  # parameters whose gradients are not finite


@dataclass
class DroppedClips:
    """Samples that could not be read, against the share of them that a run tolerates.

    The share is taken of `at_least` samples, those of one epoch, so that one bad file among the
    first few does not stop the run.
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

        Raises:
            FloatingPointError: Too many in a row; a file has what they held.
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
        # With float16 a norm can overflow although no gradient does, at any scale.
        is_scale_used_up = scale is None or scale < SMALLEST_SCALE
        if progress.skipped_in_a_row < (MAX_IN_A_ROW if is_scale_used_up else MAX_IN_A_ROW_FLOAT16):
            return
        at_scale = "" if scale is None else f" and float16's scale is {scale:g}"
        raise FloatingPointError(
            f"{progress.skipped_in_a_row} steps in a row had gradients that are not finite"
            f"{at_scale}, the last one step {progress.step} with clips {clips}; "
            f"{self._dump(scale)}. The weights are those before these steps, and may have been "
            "damaged before: --resume with the run's previous.pth or best.pth starts further back. "
            "Lower TRAIN.OPTIM.LR, or set TRAIN.AMP fp32 to see whether the number format is the "
            "cause"
        )

    def _dump(self, scale: float | None) -> str:
        """Write what the latest skipped steps held on every rank; return where, as a sentence."""
        path = self.run.logs / f"nonfinite_{self.run.name}_{self.progress.step:07d}.json"
        of_ranks = self.ranks.gather(self._latest)
        if self.ranks.is_main:
            # JSON has no NaN and no infinity; both become text.
            steps = json.loads(json.dumps(of_ranks), parse_constant=str)
            try:
                with atomic_write(path) as partial:
                    content = {"float16_scale": scale, "ranks": steps}
                    partial.write_text(json.dumps(content, indent=1), "utf-8")
            except OSError as error:  # must not replace the reason for the end
                return f"{path} could not be written ({error.strerror or error})"
        return f"{path} names clips, losses and parameters"
