"""How fast a run goes and how long the rest of it takes."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

RECENT_STEPS = 200


class Pace:
    """Seconds per step and per validation, of this process alone.

    What ran before a resume, on another day or another machine, does not count. The first step of
    a process is slow (workers start, kernels are chosen), so it counts only until there is another.

    Args:
        now: Clock in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._last = now()
        self._first_step: float | None = None
        self._steps: deque[float] = deque(maxlen=RECENT_STEPS)
        self._validation: float | None = None

    def start(self) -> None:
        """Begin to count; what came before, such as building the model, belongs to no step."""
        self._last = self._now()

    def step_done(self) -> None:
        """Count one step: all the time since the last one but for validation."""
        now = self._now()
        seconds, self._last = now - self._last, now
        if self._first_step is None:
            self._first_step = seconds
        else:
            self._steps.append(seconds)

    @contextmanager
    def validation(self) -> Iterator[None]:
        """Measure one validation; its time does not count as time of steps."""
        started = self._now()
        yield
        self._validation = self._now() - started
        self._last += self._validation

    @property
    def validation_seconds(self) -> float | None:
        """Seconds of the last validation; None before the first."""
        return self._validation

    @property
    def seconds_per_step(self) -> float | None:
        """Mean over the recent steps with data, logging and saving; None before the first step."""
        if self._steps:
            return sum(self._steps) / len(self._steps)
        return self._first_step

    def seconds_left(self, step: int, total_steps: int, val_every: int) -> float | None:
        """Return the seconds from now to the end of the run, after optimiser step `step`.

        The validation of step `step` itself is still to come where it is due. Validations count
        from the first one on that this process has done.
        """
        if self.seconds_per_step is None:
            return None
        validations = total_steps // val_every - (step - 1) // val_every
        if total_steps % val_every:
            validations += 1  # the last step is always validated
        steps = self.seconds_per_step * (total_steps - step)
        return steps + validations * (self._validation or 0.0)
