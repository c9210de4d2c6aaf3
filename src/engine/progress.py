"""How far a run has come, where its time goes, and the sums between two lines of the log."""

import math
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from src.engine.training_step import StepOutcome

MAX_NAMED = 5


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
    """

    step: int = 0
    skipped_steps: int = 0
    best_psnr: float | None = None
    best_step: int = 0
    skipped_in_a_row: int = 0
    validated_step: int = 0
    dropped_clips: int = 0
    seen_clips: int = 0

    def put(self, stored: dict[str, Any]) -> None:
        """Take over the counters of a checkpoint; one that an older version did not keep is 0.

        An older version validated before it saved.
        """
        stored = {"validated_step": stored["step"], **stored}
        for name, value in asdict(Progress(**stored)).items():
            setattr(self, name, value)

    def finished(self, checkpoints: Path) -> str:
        """Say what a finished run left, and how it is made longer."""
        best = f"best.pth (step {self.best_step}, {self.best_psnr:.2f} dB) and "
        kept = f"{'' if self.best_psnr is None else best}last.pth"
        return f"finished: {checkpoints} has {kept}; raise TRAIN.MAX_STEPS to train longer"

    def is_best(self, psnr: float) -> bool:
        """Whether a score is the best so far; NaN never is."""
        return not math.isnan(psnr) and (self.best_psnr is None or psnr > self.best_psnr)


@dataclass
class Stopwatch:
    """Seconds spent in each named activity since the last reset."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def measure(self, activity: str) -> Iterator[None]:
        """Add the time of the block to `activity`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[activity] += time.perf_counter() - start

    def take(self, activity: str) -> float:
        """Return the seconds of `activity` and start it over."""
        return self.seconds.pop(activity, 0.0)


@dataclass
class Meter:
    """Means over the steps since the last line of the log; skipped steps do not count."""

    steps: int = 0
    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, outcome: StepOutcome) -> None:
        """Count one step."""
        if not outcome.is_finite:
            return
        self.steps += 1
        for name, value in outcome.losses.items():
            self.sums[f"loss/{name}"] += value
        self.sums["grad_norm"] += outcome.grad_norm

    def means(self) -> dict[str, float]:
        """Return the mean of every value; empty before the first step."""
        return {name: value / self.steps for name, value in self.sums.items()}


@dataclass
class DroppedClips:
    """Samples that could not be read, against the share of them that a run bears.

    Attributes:
        max_fraction: DATA.MAX_BAD_FRACTION.
        at_least: Samples that the share is taken of at least: those of one epoch, so that one bad
            file among the first few does not stop the run.
        batch_size: Samples of one micro-batch.
        progress: Where the counts are kept, so that they go on with the run.
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
