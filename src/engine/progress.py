"""How far a run has come, and how many bad samples and skipped steps it tolerates."""

import json
import logging
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from src.engine.processes import Ranks
from src.engine.step import StepOutcome
from src.paths import atomic_write
from src.run_directory import RunDirectory

MAX_NAMED = 5
MAX_IN_A_ROW = 10
MAX_IN_A_ROW_FLOAT16 = 40
SMALLEST_SCALE = 1.0  # float16 halves its scale, 65536 at first, at every skipped step
logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """The counters of a run; saved in every checkpoint.

    Attributes:
        step: Optimiser steps done, skipped ones included.
        skipped_steps: Steps without an update, because a gradient was not finite.
        skipped_in_a_row: Of these, the latest ones without a good one between them.
        best_psnr, best_step: The best validation.
        validated_step: The latest step whose validation was completed.
        dropped_clips, seen_clips: Samples of this process that could not be read, and all.
        compute_s: What all steps have cost, see `Clock`, times the ranks.
    """

    step: int = 0
    skipped_steps: int = 0
    best_psnr: float | None = None
    best_step: int = 0
    skipped_in_a_row: int = 0
    validated_step: int = 0
    dropped_clips: int = 0
    seen_clips: int = 0
    compute_s: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the counters."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the counters of a checkpoint; one that an older version did not keep is 0.

        An older version validated before it saved.
        """
        state = {"validated_step": state["step"], **state}
        for name, value in asdict(Progress(**state)).items():
            setattr(self, name, value)

    def finished(self, checkpoints: Path) -> str:
        """Return in words what a finished run left, and how it is made longer."""
        best = f"best.pth (step {self.best_step}, {self.best_psnr:.2f} dB) and "
        kept = f"{'' if self.best_psnr is None else best}last.pth"
        return f"finished: {checkpoints} has {kept}; raise TRAIN.MAX_STEPS to train longer"

    def is_best(self, psnr: float) -> bool:
        """Whether a score is the best so far; NaN never is."""
        return not math.isnan(psnr) and (self.best_psnr is None or psnr > self.best_psnr)


@dataclass
class DroppedClips:
    """Samples that could not be read, against the share of them that a run tolerates.

    Attributes:
        max_fraction: DATA.MAX_BAD_FRACTION.
        at_least: Samples that the share is taken of at least: those of one epoch, so that one bad
            file among the first few does not stop the run.
        batch_size: Samples of one micro-batch.
        progress: Where the counts are kept, so that they are saved with the run.
    """

    max_fraction: float
    at_least: int
    batch_size: int
    progress: Progress = field(default_factory=Progress)

    def count(self, batches: list[dict[str, Any]]) -> None:
        """Count the micro-batches of one step.

        Raises:
            RuntimeError: Too many samples of this process could not be read; some are named.
        """
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


def count_steps(max_steps: int, epochs: int, num_clips: int, clips_per_step: int) -> int:
    """Return the optimiser steps of a run: `max_steps`, or what `epochs` need where it is 0."""
    return max_steps or max(1, -(-epochs * num_clips // clips_per_step))


class SkippedSteps:
    """Counts them, and ends the run where they do not end.

    Float16 finds its scale by skipping, so there a row of skipped steps is normal as long as the
    scale has room to shrink.
    """

    def __init__(
        self, run: RunDirectory, ranks: Ranks, progress: Progress, scaler: torch.amp.GradScaler
    ) -> None:
        self.run, self.ranks, self.progress, self.scaler = run, ranks, progress, scaler
        self._latest: list[dict[str, Any]] = []

    def judge(self, outcome: StepOutcome) -> None:
        """Take note of a step that was counted already; every rank does it for every step.

        Raises:
            FloatingPointError: Too many steps in a row; what they held is written to a file.
        """
        if outcome.is_finite:
            self.progress.skipped_in_a_row = 0
            self._latest.clear()
            return
        self.progress.skipped_steps += 1
        self.progress.skipped_in_a_row += 1
        step, clips = self.progress.step, ", ".join(outcome.names)
        logger.warning(
            "step %d skipped, its gradients are not finite; clips %s; %d skipped in all",
            *(step, clips, self.progress.skipped_steps),
        )
        self._latest = [*self._latest[1 - MAX_IN_A_ROW :], {"step": step, **asdict(outcome)}]
        scale = self.scaler.get_scale() if self.scaler.is_enabled() else None
        if not self._is_hopeless(scale):
            return
        where = self._dump(scale)
        at_scale = "" if scale is None else f" and float16's scale is {scale:g}"
        raise FloatingPointError(
            f"{self.progress.skipped_in_a_row} steps in a row had gradients that are not "
            f"finite{at_scale}, the last one step {step} with clips {clips}; {where}. "
            "The weights are those before these steps, and may have been "
            "ruined before: --resume with the run's previous.pth or best.pth goes further back. "
            "Lower TRAIN.OPTIM.LR, or set TRAIN.AMP fp32 to see whether the number format is the "
            "cause"
        )

    def _is_hopeless(self, scale: float | None) -> bool:
        skipped = self.progress.skipped_in_a_row
        if scale is None or scale < SMALLEST_SCALE:
            return skipped >= MAX_IN_A_ROW
        return skipped >= MAX_IN_A_ROW_FLOAT16  # a norm can overflow although no gradient does

    def _dump(self, scale: float | None) -> str:
        """Write what the latest skipped steps held on every rank; return where, as a sentence."""
        path = self.run.logs / f"nonfinite_{self.run.name}_{self.progress.step:07d}.json"
        of_ranks = self.ranks.gather(self._latest)
        if self.ranks.is_main:
            content = {"float16_scale": scale, "ranks": _json_safe(of_ranks)}
            try:
                with atomic_write(path) as partial:
                    partial.write_text(json.dumps(content, indent=1, allow_nan=False), "utf-8")
            except OSError as error:  # the reason for the end must not be lost with the file
                return f"{path} could not be written ({error.strerror or error})"
        return f"{path} names clips, losses and parameters"


def _json_safe(value: Any) -> Any:
    """Return nested values with NaN and infinities as text, which JSON can hold."""
    if isinstance(value, dict):
        return {key: _json_safe(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_json_safe(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
