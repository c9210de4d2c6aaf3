"""What a run reports: the log on terminal and disk, scalars, seconds, the line per interval."""

import csv
import io
import logging
import math
import os
import re
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from logging.handlers import WatchedFileHandler
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from yacs.config import CfgNode

from src.engine.alignment_watch import Reach, alarms, scalars_of
from src.engine.progress import StepOutcome
from src.inference.restore import peak_memory_gib
from src.paths import atomic_write

ON_DEVICE = ("transfer", "forward", "backward", "optimiser")
PARTS = ("data", *ON_DEVICE)
RECENT_STEPS = 200
# A row of scalars: no tag holds what a reader could take for the end of a row.
ROW = re.compile(
    r'^([0-9]{1,15})(,[^,"\x00-\x1f\x7f-\x9f\u2028\u2029]{1,200},[\w.+-]{1,40})$', re.MULTILINE
)
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
    """Writes the log file, a new one if it was deleted; warns once if it cannot write."""

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
        """Close the file; buffered text is lost if the disk is full."""
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


def start_logging(log_file: Path | None, *, rank: int = 0) -> None:
    """Send log lines to the terminal and to `log_file`; other ranks than 0 only log warnings."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a letter shows its code
        sys.stdout.reconfigure(errors="backslashreplace")
    root = logging.getLogger()
    root.handlers.clear()
    root.setLevel(logging.INFO)
    logging.getLogger("train").setLevel(logging.DEBUG)  # tracebacks of set-up go to the file
    terminal = _TerminalHandler()
    terminal.setLevel(logging.WARNING if rank else logging.INFO)
    of_rank = f"rank {rank}: " if rank else ""
    terminal.setFormatter(logging.Formatter(f"%(asctime)s {of_rank}%(message)s", "%H:%M:%S"))
    root.addHandler(terminal)
    if rank == 0 and log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        to_file = _FileHandler(log_file, encoding="utf-8", errors="backslashreplace")
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(to_file)


class Scalars:
    """scalars.csv of a run and, if wanted, TensorBoard events; only the main rank has a folder.

    `trackers` are modules of experiment trackers whose run has begun, see `open_trackers`.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        tensorboard: bool = True,
        first_step: int = 0,
        trackers: Sequence[ModuleType] = (),
    ) -> None:
        self._trackers = list(trackers)
        self._table = folder and folder / "scalars.csv"
        with self._tolerating():
            if folder is not None:
                drop_rows_after(self._table, first_step)
        self._writer = open_events(folder, first_step) if folder and tensorboard else None

    def add(self, step: int, values: dict[str, float | None]) -> None:
        """Write one value per tag; None is left out."""
        rows = [(step, tag, value) for tag, value in values.items() if value is not None]
        with self._tolerating():
            if self._table:
                with self._table.open("a", encoding="utf-8", newline="") as handle:
                    csv.writer(handle).writerows(rows)
            for _, tag, value in rows if self._writer else ():
                self._writer.add_scalar(tag, value, step)
        for tracker in list(self._trackers):
            try:
                tracker.log({tag: value for _, tag, value in rows}, step=step)
            except Exception as error:  # noqa: BLE001 (a service may raise anything)
                self._trackers.remove(tracker)
                logger.warning(
                    "%s takes no more scalars (%s); training continues without it",
                    *(tracker.__name__, error),
                )

    def add_image(self, step: int, tag: str, image: np.ndarray) -> None:
        """Write a picture, uint8 [H, W, 3]."""
        with self._tolerating():
            if self._writer:
                self._writer.add_image(tag, image, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is still buffered."""
        with self._tolerating():
            if self._writer:
                self._writer.close()
        for tracker in self._trackers:
            tracker.finish()

    @contextmanager
    def _tolerating(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # of TensorBoard's thread, at the latest when it is closed
            logger.warning(
                "%s and TensorBoard events cannot be written (%s); training continues without "
                "them until it is restarted",
                *(self._table, error.strerror or error),
            )
            self._writer = self._table = None


def drop_rows_after(table: Path, step: int) -> None:
    """Begin a table of scalars, or remove what a killed run wrote after its checkpoint."""
    text = table.read_text(encoding="utf-8", errors="replace") if table.exists() else ""
    whole = ROW.findall(text)
    rows = ["step,tag,value", *(number + rest for number, rest in whole if int(number) <= step)]
    with atomic_write(table) as partial:
        partial.write_text("".join(f"{row}\r\n" for row in rows), encoding="utf-8", newline="")


def open_events(folder: Path, first_step: int) -> Any:
    """Return TensorBoard's writer, or None with a warning if TensorBoard cannot be imported."""
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 (only if it is used)
    except (ImportError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        logger.warning(
            "no TensorBoard events, as it cannot be imported (%s); scalars.csv has the numbers. "
            "Install tensorboard again, or set LOG.TENSORBOARD false",
            error,
        )
        return None
    return SummaryWriter(folder, purge_step=first_step + 1)  # hides what a killed run wrote later


# Experiment trackers: the keys of LOG in lower case, and what name and folder of a run are there.
TRACKERS = {"wandb": ("name", "dir"), "swanlab": ("experiment_name", "logdir")}


def open_trackers(log: CfgNode, run: str, folder: Path, config: dict[str, Any]) -> list[ModuleType]:
    """Begin a run, whose files come into the folder, of every tracker that LOG asks for.

    A resume begins another run of the same name, whose curves continue at its step.

    Raises:
        RuntimeError: One is not installed, or cannot begin without a network or an account.
    """
    trackers = []
    for name in (name for name in TRACKERS if log[name.upper()]):
        named = dict(zip(TRACKERS[name], (run, str(folder)), strict=True))
        try:
            trackers.append(import_module(name))
            trackers[-1].init(project="vrt-spike", config=config, **named)
        except Exception as error:
            remedy = f"without a network set the variable {name.upper()}_MODE=offline"
            if isinstance(error, ModuleNotFoundError):
                remedy = f"pip install {name}"
            raise RuntimeError(
                f"LOG.{name.upper()} is true, but {name} cannot begin a run ({error}); {remedy}, "
                f"or set LOG.{name.upper()} false: scalars.csv has the numbers anyway"
            ) from error
    return trackers


class Clock:
    """Measures steps, their parts and validations of one process; a resume starts from zero.

    Parts that compute on a CUDA device are marked by events in its stream, so nothing waits for the
    device until `take` reads them. `compute_s` is the cost of the last step with its data: CPU
    seconds of all threads of this process, on a GPU seconds.
    """

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter) -> None:
        self.device, self._now = device, now
        self.validation_s: float | None = None  # of the last one
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
            yield
            last.record()
            self._events.append((part, first, last))
        else:
            started = self._now()
            yield
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
        """End a step and begin the next; a step is all the time except validations."""
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
        """Mean seconds of the recent steps; the slow first one counts until there is another."""
        return sum(self._steps) / len(self._steps) if self._steps else self._first_step

    def seconds_left(self, step: int, total_steps: int, val_every: int) -> float | None:
        """Return the seconds from now to the end; a validation at `step` is still to come."""
        if self.step_s is None:
            return None
        validations = -(-total_steps // val_every) - (step - 1) // val_every
        return self.step_s * (total_steps - step) + validations * (self.validation_s or 0.0)


@contextmanager
def profiled(folder: Path, steps: int) -> Iterator[Callable[[], None]]:
    """Yield what to call after every step; `steps` of them, from the third on, are profiled.

    A trace for https://ui.perfetto.dev and a table of operations come into the folder.
    """
    if not steps:
        yield lambda: None
        return

    def write(profiler: torch.profiler.profile) -> None:
        profiler.export_chrome_trace(str(folder / "trace.json.gz"))
        table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=40)
        (folder / "profile.txt").write_text(table, encoding="utf-8")
        logger.info("profile of %d steps: %s", steps, folder / "trace.json.gz")

    folder.mkdir(parents=True, exist_ok=True)
    schedule = torch.profiler.schedule(wait=1, warmup=1, active=steps, repeat=1)
    with torch.profiler.profile(schedule=schedule, on_trace_ready=write) as profiler:
        yield profiler.step


class StepLog:
    """Collects the steps between two lines of the log and writes the line and its scalars."""

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
        if outcome.is_finite:
            self._updates += 1
            for name, value in outcome.losses.items():
                self._sums[f"loss/{name}"] += value
            self._sums["grad_norm"] += outcome.grad_norm

    def write(
        self, step: int, total: int, val_every: int, scalars: Scalars, reaches: dict[str, Reach]
    ) -> None:
        """Write the line and the scalars of the interval that ends with `step`, and start over."""
        means = {name: value / self._updates for name, value in self._sums.items()}
        parts = {name: value / self._steps for name, value in self.clock.take().items()}
        gib, whose = peak_memory_gib(self.clock.device)
        left = tqdm.format_interval(self.clock.seconds_left(step, total, val_every))
        if self.clock.validation_s is None:
            left += " without validation"
        logger.info(
            "%s step %d/%d: loss %.5f, lr %.2e, gradient %.3f, %.3f s/step (%s), %s, left %s",
            *(self.name, step, total, means.get("loss/total", math.nan)),
            *(next(iter(self._rates.values())), means.get("grad_norm", math.nan)),
            *(self.clock.step_s, _shares(parts)),
            *("memory unknown" if gib is None else f"{gib:.2f} GiB", left),
        )
        # An alarm is logged when it begins; while it lasts it is in the scalars alone.
        kinds = {re.sub(r"\b[\d.]+", "", sentence): sentence for sentence in alarms(reaches)}
        for kind in kinds.keys() - self._alarmed:
            logger.warning("%s step %d: %s", self.name, step, kinds[kind])
        self._alarmed = set(kinds)
        first, *others = self._rates
        rates = {"lr": self._rates[first], **{f"lr/{name}": self._rates[name] for name in others}}
        times = {f"time/{name}_s": value for name, value in parts.items()}
        times["time/step_s"] = self.clock.step_s
        memory = {f"memory/peak_gib_{whose.split()[0]}": gib}
        scalars.add(step, {**means, **rates, **times, **memory, **scalars_of(reaches)})
        self._clear()


def _shares(parts: dict[str, float]) -> str:
    total = max(sum(parts.values()), 1e-9)
    shares = {name: parts[name] / total for name in PARTS if name in parts}
    shown = {n: share for n, share in shares.items() if n != "transfer" or share >= 0.005}
    return ", ".join(f"{name} {share:.0%}" for name, share in shown.items())
