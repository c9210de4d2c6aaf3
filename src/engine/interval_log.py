"""The line that a run writes once per interval, and the scalars that go with it."""

import logging
import math
import re

import torch
from tqdm import tqdm

from src.engine.alignment_watch import Reach, alarms, scalars_of
from src.engine.pace import Pace
from src.engine.phases import PHASES, PhaseClock
from src.engine.progress import Meter
from src.engine.run_log import Scalars
from src.engine.training_step import StepOutcome
from src.inference.evaluate import peak_memory_gib

logger = logging.getLogger(__name__)


class IntervalLog:
    """Collects what happens between two lines of the log.

    Attributes:
        pace: Speed of this process.
    """

    def __init__(self, name: str, device: torch.device, phases: PhaseClock) -> None:
        self.name, self.device, self.phases = name, device, phases
        self.pace = Pace()
        self._meter, self._steps, self._data_seconds = Meter(), 0, 0.0
        self._last: StepOutcome | None = None
        self._alarmed: set[str] = set()

    def add(self, outcome: StepOutcome, data_seconds: float) -> None:
        """Count one step for which `data_seconds` were spent waiting for the loader."""
        self._meter.add(outcome)
        self._steps += 1
        self._data_seconds += data_seconds
        self._last = outcome
        self.pace.step_done()

    def write(
        self,
        step: int,
        total_steps: int,
        val_every: int,
        scalars: Scalars,
        reaches: dict[str, Reach],
    ) -> None:
        """Write the line and the scalars of the interval that ends with `step`, and start over.

        Args:
            step: Optimiser steps done.
            total_steps: Of the whole run.
            val_every: Steps between validations, for the time that is left.
            scalars: Where numbers go.
            reaches: What the alignment watch saw in this last step.
        """
        means, rates = self._meter.means(), self._last.learning_rates
        seconds = {"data": self._data_seconds, **self.phases.take()}
        per_step = {name: value / self._steps for name, value in seconds.items()}
        pace = self.pace.seconds_per_step
        gib, whose = peak_memory_gib(self.device)
        left = tqdm.format_interval(self.pace.seconds_left(step, total_steps, val_every))
        if self.pace.validation_seconds is None:
            left += " without validation"
        logger.info(
            "%s step %d/%d: loss %.5f, lr %.2e, gradient %.3f, %.3f s/step (%s), %s, left %s",
            *(
                self.name,
                step,
                total_steps,
                means.get("loss/total", math.nan),
                next(iter(rates.values())),
            ),
            *(means.get("grad_norm", math.nan), pace, _shares(per_step)),
            *(_memory(gib), left),
        )
        self._warn(step, alarms(reaches))
        scalars.add(
            step,
            {
                **means,
                **_rates(rates),
                **{f"time/{name}_s": value for name, value in per_step.items()},
                "time/step_s": pace,
                f"memory/peak_gib_{whose.split()[0]}": gib,
                **scalars_of(reaches),
            },
        )
        self._meter, self._steps, self._data_seconds = Meter(), 0, 0.0

    def _warn(self, step: int, sentences: list[str]) -> None:
        """Log each alarm when it begins; one that stays is in the scalars alone."""
        kinds = {re.sub(r"\b[\d.]+", "", sentence): sentence for sentence in sentences}
        for kind, sentence in kinds.items():
            if kind not in self._alarmed:
                logger.warning("%s step %d: %s", self.name, step, sentence)
        self._alarmed = set(kinds)


def _rates(rates: dict[str, float]) -> dict[str, float]:
    """Return the first group's rate as `lr`, those of all others by their names."""
    first, *others = rates
    return {"lr": rates[first], **{f"lr/{name}": rates[name] for name in others}}


def _shares(per_step: dict[str, float]) -> str:
    total = max(sum(per_step.values()), 1e-9)
    shares = {name: per_step[name] / total for name in ("data", *PHASES) if name in per_step}
    told = {n: share for n, share in shares.items() if n != "transfer" or share >= 0.005}
    return ", ".join(f"{name} {share:.0%}" for name, share in told.items())


def _memory(gib: float | None) -> str:
    return "memory not known" if gib is None else f"{gib:.2f} GiB"
