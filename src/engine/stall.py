"""Names the rank that is late when the processes of a run stand still, after a finite time.

Every rank notes in memory where it is (`at`). A thread of each rank writes the place to the store
through which the processes have found each other, and reads the places of the others. The places
are ordered, and all ranks pass the same ones: when nothing has moved for a while, those that are
behind are what the others wait for. A rank whose thread does not write any more, because its
process is stopped or its machine gone, is named too.

After a third of the time the lowest rank that is not late warns, after all of it that rank logs
what happened and ends its process with `EXIT_STALLED`; torchrun then ends the others. No clocks
are compared: each rank only sees whether what it reads has changed.
"""

import json
import logging
import os
import socket
import threading
import time
from dataclasses import dataclass, field
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
SILENT_BEATS = 5  # a thread that has not written for so many turns does not run
logger = logging.getLogger(__name__)


@dataclass(frozen=True, order=True)
class Place:
    """Where a rank is: the optimiser steps it has done and the stage of the loop, -1 at the start.

    `part` counts what is done inside a stage, such as tiles of a validation; ranks have different
    numbers of them, so they show that a rank moves, not that it is behind.
    """

    step: int = -1
    stage: int = -1
    part: int = field(default=0, compare=False)

    def describe(self) -> str:
        """Return the place in words."""
        if self.stage < 0:
            return "starting up"
        return f"{STAGES[self.stage]}, {self.step} steps done"


@dataclass
class Watched:
    """What is known of one rank.

    Attributes:
        place: The latest place.
        host: Its machine.
        beat: The latest turn of its thread.
        moved_at, beat_at: When place and turn were seen to change, by this rank's clock.
    """

    place: Place
    host: str
    beat: int
    moved_at: float
    beat_at: float

    def update(self, message: dict, now: float) -> None:
        """Take in what the rank has written."""
        place = Place(message["step"], message["stage"], message["part"])
        if (place, place.part) != (self.place, self.place.part):
            self.place, self.moved_at = place, now
        if message["beat"] != self.beat:
            self.beat, self.beat_at = message["beat"], now
        self.host = message["host"]


def late_ranks(ranks: dict[int, Watched], now: float, silence_s: float) -> list[int]:
    """Return the ranks that the others wait for.

    Those whose thread is silent; if there is none those that are behind the others; none where all
    are at the same place.
    """
    silent = [rank for rank, seen in ranks.items() if now - seen.beat_at > silence_s]
    if silent:
        return silent
    furthest = max(seen.place for seen in ranks.values())
    return [rank for rank, seen in ranks.items() if seen.place < furthest]


def seconds_still(ranks: dict[int, Watched], now: float) -> float:
    """Return for how long no rank has moved."""
    return now - max(seen.moved_at for seen in ranks.values())


class StallWatch:
    """Writes this rank's place and watches those of the others.

    Args:
        store: Where the places are written; a connection of its own, as a thread uses it.
        rank: This rank.
        world_size: All ranks.
        stall_s: Seconds without any movement after which the run is given up.
        stop: The stop signals of this rank; the others hear of them, so that all leave a long
            validation.
    """

    def __init__(
        self, store: Store, rank: int, world_size: int, stall_s: float, stop: StopSignals
    ) -> None:
        self.store, self.rank, self.stall_s, self.stop_signals = store, rank, stall_s, stop
        self.interval_s = min(10.0, stall_s / 12)
        now = time.monotonic()
        self._ranks = {r: Watched(Place(), "?", -1, now, now) for r in range(world_size)}
        self._place, self._beats, self._has_warned = Place(), 0, False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stall watch", daemon=True)
        store.set_timeout(timedelta(seconds=self.interval_s * SILENT_BEATS))

    def start(self) -> None:
        """Begin to write and watch."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(timeout=2 * self.interval_s)

    def at(self, stage: str, step: int) -> None:
        """Note where this rank is; called from the loop, costs nothing."""
        self._place = Place(step, STAGES.index(stage), 0)

    def part_done(self) -> None:
        """Note that something inside a stage was done, such as a tile of a validation."""
        place = self._place
        self._place = Place(place.step, place.stage, place.part + 1)

    def exchange(self) -> None:
        """Write this rank's place and read those of the others."""
        self._beats += 1
        message = {
            "step": self._place.step,
            "stage": self._place.stage,
            "part": self._place.part,
            "beat": self._beats,
            "host": socket.gethostname(),
            "asked": self.stop_signals.number,
        }
        self._ranks[self.rank].update(message, time.monotonic())
        self.store.set(str(self.rank), json.dumps(message))
        known = [str(rank) for rank in self._ranks if self.store.check([str(rank)])]
        for key, value in zip(known, self.store.multi_get(known), strict=True):
            message = json.loads(value)
            self._ranks[int(key)].update(message, time.monotonic())
            self.stop_signals.elsewhere = self.stop_signals.elsewhere or message["asked"]

    def judge(self, ranks: dict[int, Watched], now: float) -> None:
        """Warn, or end this process, where no rank has moved for too long."""
        still, limit = seconds_still(ranks, now), self.stall_s
        if any(seen.place == Place() for seen in ranks.values()):
            limit *= START_FACTOR
        if still < limit / 3:
            self._has_warned = False
            return
        late = late_ranks(ranks, now, self.interval_s * SILENT_BEATS)
        in_time = [rank for rank in ranks if rank not in late]
        if not in_time or self.rank != in_time[0]:
            if still > 1.5 * limit:  # the one that should have ended the run is gone
                os._exit(EXIT_STALLED)
            return
        if still >= limit:
            logger.error("the run has not moved for %.0f s; %s", still, _describe(ranks, late))
            _leave()
        if not self._has_warned:
            self._has_warned = True
            logger.warning("nothing has moved for %.0f s; %s", still, _describe(ranks, late))

    def _run(self) -> None:
        while not self._stop.wait(self.interval_s):
            try:
                self.exchange()
            except (DistNetworkError, DistStoreError, RuntimeError) as error:
                self._judge_alone(str(error).splitlines()[0])
            else:
                self.judge(self._ranks, time.monotonic())

    def _judge_alone(self, reason: str) -> None:
        """Watch only this rank: rank 0 or torchrun, which keeps the store, is gone or stopped."""
        still = time.monotonic() - self._ranks[self.rank].moved_at
        if still > self.stall_s:
            logger.error(
                "this rank has not moved for %.0f s (%s), and rank 0 or torchrun, which keeps the "
                "ranks' places, does not answer: %s",
                *(still, self._place.describe(), reason),
            )
            _leave()


def _leave() -> None:
    logging.shutdown()
    os._exit(EXIT_STALLED)


def _describe(ranks: dict[int, Watched], late: list[int]) -> str:
    if not late:
        place = ranks[0].place.describe()
        return f"all {len(ranks)} ranks are at the same place ({place}): a collective call hangs"
    names = "; ".join(f"rank {r} on {ranks[r].host} ({ranks[r].place.describe()})" for r in late)
    return f"the others wait for {names}"
