"""Steps without an update, because a gradient was not finite: borne for a while, then named."""

import json
import logging
import math
from dataclasses import asdict
from typing import Any

import torch

from src.engine.distributed import Ranks
from src.engine.progress import Progress
from src.engine.run_directory import RunDirectory
from src.engine.training_step import StepOutcome
from src.paths import atomic_write

MAX_IN_A_ROW = 10
MAX_IN_A_ROW_FLOAT16 = 40
SMALLEST_SCALE = 1.0  # float16 halves its scale, 65536 at first, at every skipped step
logger = logging.getLogger(__name__)


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
            content = {"float16_scale": scale, "ranks": _speakable(of_ranks)}
            try:
                with atomic_write(path) as partial:
                    partial.write_text(json.dumps(content, indent=1, allow_nan=False), "utf-8")
            except OSError as error:  # the reason for the end must not be lost with the file
                return f"{path} could not be written ({error.strerror or error})"
        return f"{path} names clips, losses and parameters"


def _speakable(value: Any) -> Any:
    """Return nested values with NaN and infinities as text, which JSON can hold."""
    if isinstance(value, dict):
        return {key: _speakable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_speakable(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
