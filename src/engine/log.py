"""What a run reports: the log on terminal and disk, TensorBoard, the line per interval."""

import logging
import math
import os
import re
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import WatchedFileHandler
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from src.engine.alignment_watch import Reach, alarms, scalars_of
from src.engine.clock import PARTS, Clock
from src.engine.step import StepOutcome
from src.inference.evaluate import peak_memory_gib

logger = logging.getLogger(__name__)


class _TerminalHandler(logging.Handler):
    """Prints log lines above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record to standard output."""
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except OSError:  # the terminal or the pipe is gone; the log file remains
            logging.getLogger().removeHandler(self)
            with open(os.devnull, "w") as nowhere:  # buffered text would raise at exit
                os.dup2(nowhere.fileno(), sys.stdout.fileno())


class _FileHandler(WatchedFileHandler):
    """Writes the log file, a new one where it was deleted; warns once where it cannot write."""

    _has_warned = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, or lose it."""
        try:
            Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Warn once, on the terminal, that lines of the log file are lost."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%s cannot be written (%s); training continues, lines of it are lost",
                *(self.baseFilename, error.strerror or error),
            )

    def close(self) -> None:
        """Close the file; buffered text without room on the disk is lost."""
        with suppress(OSError):
            super().close()


def log_thread_error(args: threading.ExceptHookArgs) -> None:
    """Log in one line that a thread has failed; the log file has the traceback."""
    if args.exc_type is SystemExit:
        return  # its ordinary end
    name = args.thread.name if args.thread else "unknown"
    logger.warning("the thread %s has failed: %s", name, args.exc_value)
    if args.exc_value is not None:
        logger.debug("where it was raised", exc_info=args.exc_value)


def start_logging(log_file: Path | None, *, is_main: bool, rank: int = 0) -> None:
    """Send log lines of the main rank to the terminal and to `log_file`; other ranks only warn.

    The lines of another rank begin with its number.
    """
    root = logging.getLogger()
    root.handlers.clear()
    root.setLevel(logging.INFO)
    logging.getLogger("train").setLevel(logging.DEBUG)  # tracebacks of set-up go to the file
    terminal = _TerminalHandler()
    terminal.setLevel(logging.INFO if is_main else logging.WARNING)
    of_rank = "" if is_main else f"rank {rank}: "
    terminal.setFormatter(logging.Formatter(f"%(asctime)s {of_rank}%(message)s", "%H:%M:%S"))
    root.addHandler(terminal)
    if is_main and log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        to_file = _FileHandler(log_file, encoding="utf-8")
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(to_file)


class Scalars:
    """TensorBoard events of the main rank; on other ranks, or turned off, it writes nothing.

    Where the events cannot be written any more, it warns once and the run continues without them.
    """

    def __init__(self, folder: Path, *, enabled: bool, first_step: int) -> None:
        # Events that a killed run wrote after its checkpoint of `first_step` are hidden.
        self._writer = SummaryWriter(folder, purge_step=first_step + 1) if enabled else None
        self._folder = folder

    def add(self, step: int, values: dict[str, float | None]) -> None:
        """Write one value per tag; a value that is not known (None) is left out."""
        with self._tolerating() as writer:
            for tag, value in values.items():
                if writer is not None and value is not None:
                    writer.add_scalar(tag, value, step)

    def add_image(self, step: int, tag: str, image: np.ndarray) -> None:
        """Write a picture, uint8 [H, W, 3]."""
        with self._tolerating() as writer:
            if writer is not None:
                writer.add_image(tag, image, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is still buffered."""
        with self._tolerating() as writer:
            if writer is not None:
                writer.close()

    @contextmanager
    def _tolerating(self) -> Iterator[SummaryWriter | None]:
        try:
            yield self._writer
        except OSError as error:  # of the writer's thread, at the latest when it is closed
            self._writer = None
            logger.warning(
                "%s: TensorBoard events cannot be written (%s); training continues without them "
                "until it is started again",
                *(self._folder, error.strerror or error),
            )


class StepLog:
    """Collects the steps between two lines of the log and writes the line and its scalars.

    Args:
        name: The run's.
        clock: Measures the steps.
    """

    def __init__(self, name: str, clock: Clock) -> None:
        self.name, self.clock = name, clock
        self._alarmed: set[str] = set()
        self._clear()

    def _clear(self) -> None:
        self._steps = self._updates = 0
        self._sums: dict[str, float] = defaultdict(float)

    def add(self, outcome: StepOutcome) -> None:
        """Count one step; the losses of a skipped step do not count."""
        self.clock.step_done()
        self._steps += 1
        self._rates = outcome.learning_rates
        if not outcome.is_finite:
            return
        self._updates += 1
        for name, value in outcome.losses.items():
            self._sums[f"loss/{name}"] += value
        self._sums["grad_norm"] += outcome.grad_norm

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
        means = {name: value / self._updates for name, value in self._sums.items()}
        parts = {name: value / self._steps for name, value in self.clock.take().items()}
        gib, whose = peak_memory_gib(self.clock.device)
        left = tqdm.format_interval(self.clock.seconds_left(step, total_steps, val_every))
        if self.clock.validation_s is None:
            left += " without validation"
        memory = "memory not known" if gib is None else f"{gib:.2f} GiB"
        logger.info(
            "%s step %d/%d: loss %.5f, lr %.2e, gradient %.3f, %.3f s/step (%s), %s, left %s",
            *(self.name, step, total_steps, means.get("loss/total", math.nan)),
            *(next(iter(self._rates.values())), means.get("grad_norm", math.nan)),
            *(self.clock.step_s, _shares(parts), memory, left),
        )
        self._warn(step, alarms(reaches))
        times = {f"time/{name}_s": value for name, value in parts.items()}
        memory = {f"memory/peak_gib_{whose.split()[0]}": gib}
        rates = _rate_tags(self._rates)
        values = {**means, **rates, **times, "time/step_s": self.clock.step_s, **memory}
        scalars.add(step, {**values, **scalars_of(reaches)})
        self._clear()

    def _warn(self, step: int, sentences: list[str]) -> None:
        """Log each alarm when it begins; one that stays is in the scalars alone."""
        kinds = {re.sub(r"\b[\d.]+", "", sentence): sentence for sentence in sentences}
        for kind, sentence in kinds.items():
            if kind not in self._alarmed:
                logger.warning("%s step %d: %s", self.name, step, sentence)
        self._alarmed = set(kinds)


def _rate_tags(rates: dict[str, float]) -> dict[str, float]:
    """Return the first group's rate as `lr`, those of all others by their names."""
    first, *others = rates
    return {"lr": rates[first], **{f"lr/{name}": rates[name] for name in others}}


def _shares(parts: dict[str, float]) -> str:
    total = max(sum(parts.values()), 1e-9)
    shares = {name: parts[name] / total for name in PARTS if name in parts}
    shown = {n: share for n, share in shares.items() if n != "transfer" or share >= 0.005}
    return ", ".join(f"{name} {share:.0%}" for name, share in shown.items())
