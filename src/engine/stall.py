"""Detects a rank that hangs: after a finite time the run ends with an error that names it.

Every rank records its position in the loop (`at`); a thread writes it to the store through which
the processes found each other, and reads those of the others. All ranks pass the same positions, so
when none has moved for a while, those that are behind are late, and those whose thread is silent.

After a third of the time the lowest rank that is not late warns; after all of it that rank logs an
error and ends its process with `EXIT_STALLED`; torchrun then ends the others.
"""

import json
import logging
import os
import socket
import threading
import time
from dataclasses import dataclass
from datetime import timedelta

from torch.distributed import DistNetworkError, DistStoreError, Store

from src.engine.signals import StopSignals

EXIT_STALLED = 75
AFTER_VALIDATION = "writing the results of the validation"
STAGES = (  # in the order of the loop
    "logging",
    "saving",
    "validating",
    "done with its share of the validation",
    AFTER_VALIDATION,
    "agreeing on the best score",
    "between two steps",
    "loading data",
    "computing a step",
)
START_FACTOR = 6  # reading weights and filling caches may take longer than any step
SILENT_BEATS = 5  # intervals without a message after which a thread counts as stopped
logger = logging.getLogger(__name__)

# Optimiser steps, stage, and parts of the stage that are done (who moves, not who is behind)
Position = tuple[int, int, int]
STARTING: Position = (-1, -1, 0)


@dataclass
class RankState:
    """What this rank knows of one rank; times are when it saw position and beat change."""

    moved_at: float
    beat_at: float
    position: Position = STARTING
    beat: int = 0
    host: str = "?"

    def update(self, position: Position, beat: int, host: str, now: float) -> None:
        """Record what the rank has written."""
        if position != self.position:
            self.position, self.moved_at = position, now
        if beat != self.beat:
            self.beat, self.beat_at = beat, now
        self.host = host

    def describe(self) -> str:
        """Return the position in words."""
        step, stage, _ = self.position
        return "starting up" if stage < 0 else f"{STAGES[stage]}, {step} steps done"


class StallWatch:
    """Publishes this rank's position and stop signals through a store connection of its own."""

    def __init__(
        self, store: Store, rank: int, world_size: int, stall_s: float, stop: StopSignals
    ) -> None:
        self.store, self.rank, self.stall_s, self.stop_signals = store, rank, stall_s, stop
        self.interval_s = min(10.0, stall_s / 12)
        self.silence_s = self.interval_s * SILENT_BEATS
        now = time.monotonic()
        self.ranks = {r: RankState(now, now) for r in range(world_size)}
        self._position, self._beats, self._has_warned = STARTING, 0, False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stall watch", daemon=True)
        store.set_timeout(timedelta(seconds=self.silence_s))

    def start(self) -> None:
        """Begin to publish and watch."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(timeout=2 * self.interval_s)

    def at(self, stage: str, step: int) -> None:
        """Record where this rank is; called from the loop, costs nothing."""
        self._position = (step, STAGES.index(stage), 0)

    def part_done(self) -> None:
        """Record that a part of a stage was done, such as a tile of a validation."""
        step, stage, part = self._position
        self._position = (step, stage, part + 1)

    def exchange(self) -> None:
        """Write this rank's position and read those of the others."""
        self._beats += 1
        message = (self._position, self._beats, socket.gethostname())
        self.ranks[self.rank].update(*message, time.monotonic())
        self.store.set(str(self.rank), json.dumps((*message, self.stop_signals.number)))
        known = [str(rank) for rank in self.ranks if self.store.check([str(rank)])]
        for key, value in zip(known, self.store.multi_get(known), strict=True):
            position, beat, host, asked = json.loads(value)
            self.ranks[int(key)].update(tuple(position), beat, host, time.monotonic())
            self.stop_signals.elsewhere = self.stop_signals.elsewhere or asked

    def late_ranks(self, now: float) -> list[int]:
        """Return the ranks whose thread is silent, else those that are behind."""
        silent = [r for r, state in self.ranks.items() if now - state.beat_at > self.silence_s]
        furthest = max(state.position[:2] for state in self.ranks.values())
        behind = [r for r, state in self.ranks.items() if state.position[:2] < furthest]
        return silent or behind

    def judge(self, now: float) -> None:
        """Warn, or end this process, if no rank has moved for too long."""
        still = now - max(state.moved_at for state in self.ranks.values())
        is_starting = any(state.position == STARTING for state in self.ranks.values())
        limit = self.stall_s * (START_FACTOR if is_starting else 1)
        if still < limit / 3:
            self._has_warned = False
            return
        late = self.late_ranks(now)
        in_time = [rank for rank in self.ranks if rank not in late]
        if not in_time or self.rank != in_time[0]:
            if still > 1.5 * limit:  # the rank that should have ended the run is gone
                os._exit(EXIT_STALLED)
        elif still >= limit:
            _exit_with("the run has not moved for %.0f s; %s", still, self._describe(late))
        elif not self._has_warned:
            self._has_warned = True
            logger.warning("nothing has moved for %.0f s; %s", still, self._describe(late))

    def _describe(self, late: list[int]) -> str:
        if not late:
            where = self.ranks[0].describe()
            return f"all {len(self.ranks)} ranks are at: {where}; a collective call hangs"
        names = (f"rank {r} on {self.ranks[r].host} ({self.ranks[r].describe()})" for r in late)
        return f"the others wait for {'; '.join(names)}"

    def _run(self) -> None:
        while not self._stop.wait(self.interval_s):
            try:
                self.exchange()
                self.judge(time.monotonic())
            except (DistNetworkError, DistStoreError, RuntimeError) as error:
                # Only this rank can be judged: what keeps the store is gone or stopped.
                state = self.ranks[self.rank]
                still = time.monotonic() - state.moved_at
                if still > self.stall_s:
                    _exit_with(
                        "this rank has not moved for %.0f s (%s), and rank 0 or torchrun, which "
                        "keeps the ranks' positions, does not answer: %s",
                        *(still, state.describe(), str(error).splitlines()[0]),
                    )


def _exit_with(message: str, *values: object) -> None:
    logger.error(message, *values)
    logging.shutdown()
    os._exit(EXIT_STALLED)
