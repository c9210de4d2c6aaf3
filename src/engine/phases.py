"""How long the parts of a training step take, without making a GPU wait."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PHASES = ("transfer", "forward", "backward", "optimiser")


class PhaseClock:
    """Seconds spent in each named phase since the last `take`.

    On a CPU a clock is read. On CUDA the phases are marked in the stream by events, so nothing
    waits for the device until `take` reads them; call it after a step that has synchronised anyway.

    Args:
        device: Where the phases compute.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._seconds: dict[str, float] = defaultdict(float)
        self._marks: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Add the time of the block to `phase`."""
        if self.device.type == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            try:
                yield
            finally:
                last.record()
                self._marks.append((phase, first, last))
            return
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[phase] += time.perf_counter() - started

    def take(self) -> dict[str, float]:
        """Return the seconds per phase and start over; on CUDA this waits for the last event."""
        if self._marks:
            self._marks[-1][2].synchronize()
        for phase, first, last in self._marks:
            self._seconds[phase] += first.elapsed_time(last) / 1000
        taken = dict(self._seconds)
        self._marks.clear()
        self._seconds.clear()
        return taken
