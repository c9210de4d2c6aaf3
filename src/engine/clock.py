"""How long things take: the parts of a step, whole steps, validations, the rest of the run."""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

ON_DEVICE = ("transfer", "forward", "backward", "optimiser")
PARTS = ("data", *ON_DEVICE)
RECENT_STEPS = 200


class Clock:
    """Measures one process; what ran before a resume, maybe on another machine, does not count.

    Parts that compute on a CUDA device are marked by events in its stream, so nothing waits for the
    device until `take` reads them; call it after a step that has synchronised anyway.

    Args:
        device: Where the model computes.
        now: Clock in seconds.

    Attributes:
        validation_s: Seconds of the last validation; None before the first.
        compute_s: What the last step cost with its data: CPU seconds of all threads of this
            process; seconds where a GPU computes.
    """

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter) -> None:
        self.device, self._now = device, now
        self.validation_s: float | None = None
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._cost = time.process_time if device.type == "cpu" else now
        self.compute_s = 0.0
        self._step_began, self._cost_began = now(), self._cost()
        self._first_step: float | None = None
        self._steps: deque[float] = deque(maxlen=RECENT_STEPS)

    def start(self) -> None:
        """Begin the first step; time before it, such as building the model, belongs to none."""
        self._step_began, self._cost_began = self._now(), self._cost()

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Add the time of the block to a part of the step, one of `PARTS`."""
        if self.device.type == "cuda" and part in ON_DEVICE:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            try:
                yield
            finally:
                last.record()
                self._events.append((part, first, last))
            return
        started = self._now()
        try:
            yield
        finally:
            self._seconds[part] += self._now() - started

    def take(self) -> dict[str, float]:
        """Return the seconds per part since the last call; on CUDA this waits for the device."""
        if self._events:
            self._events[-1][2].synchronize()
        for part, first, last in self._events:
            self._seconds[part] += first.elapsed_time(last) / 1000
        taken = dict(self._seconds)
        self._events.clear()
        self._seconds.clear()
        return taken

    def step_done(self) -> None:
        """End a step and begin the next: it took all the time but that of validations."""
        now, cost = self._now(), self._cost()
        seconds, self._step_began = now - self._step_began, now
        self.compute_s, self._cost_began = cost - self._cost_began, cost
        if self._first_step is None:
            self._first_step = seconds
        else:
            self._steps.append(seconds)

    @contextmanager
    def validation(self) -> Iterator[None]:
        """Measure one validation; its time does not count as time of a step."""
        started, cost = self._now(), self._cost()
        yield
        self.validation_s = self._now() - started
        self._step_began += self.validation_s
        self._cost_began += self._cost() - cost

    @property
    def step_s(self) -> float | None:
        """Mean seconds of the recent steps with data, logging and saving; None before the first.

        The first step of a process is slow (workers start, kernels are chosen), so it counts only
        until there is another.
        """
        if self._steps:
            return sum(self._steps) / len(self._steps)
        return self._first_step

    def seconds_left(self, step: int, total_steps: int, val_every: int) -> float | None:
        """Return the seconds from now to the end of the run, after optimiser step `step`.

        The validation of step `step` itself is still to come where it is due. Validations count
        from the first one on that this process has done.
        """
        if self.step_s is None:
            return None
        validations = total_steps // val_every - (step - 1) // val_every
        if total_steps % val_every:
            validations += 1  # the last step is always validated
        return self.step_s * (total_steps - step) + validations * (self.validation_s or 0.0)
