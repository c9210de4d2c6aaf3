"""What a run says while it goes on: log lines, TensorBoard scalars and pictures."""

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import WatchedFileHandler
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

logger = logging.getLogger(__name__)


class _BarSafeHandler(logging.Handler):
    """Prints log lines above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record to standard output."""
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except OSError:  # the terminal or the pipe is gone; the log file goes on
            logging.getLogger().removeHandler(self)
            with open(os.devnull, "w") as nowhere:  # what is held back would be an error at the end
                os.dup2(nowhere.fileno(), sys.stdout.fileno())


class _LastingFileHandler(WatchedFileHandler):
    """Writes the log file, anew where somebody has deleted it; where it cannot, it says so once."""

    _is_told = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, or lose it."""
        try:
            Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Say once, to the terminal, that lines of the log file are lost."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._is_told:
            self._is_told = True
            logger.warning(
                "%s cannot be written (%s); training goes on, lines of it are lost",
                *(self.baseFilename, error.strerror or error),
            )

    def close(self) -> None:
        """Close the file; what is held back and has no room is lost."""
        with suppress(OSError):
            super().close()


def log_thread_error(args: threading.ExceptHookArgs) -> None:
    """Say in one line that a thread has failed; the log file has the place."""
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
    terminal = _BarSafeHandler()
    terminal.setLevel(logging.INFO if is_main else logging.WARNING)
    of_rank = "" if is_main else f"rank {rank}: "
    terminal.setFormatter(logging.Formatter(f"%(asctime)s {of_rank}%(message)s", "%H:%M:%S"))
    root.addHandler(terminal)
    if is_main and log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        to_file = _LastingFileHandler(log_file, encoding="utf-8")
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(to_file)


class Scalars:
    """TensorBoard events of the main rank; on other ranks, or turned off, it writes nothing.

    Where the events cannot be written any more, that is said once and the run goes on without them.
    """

    def __init__(self, folder: Path, *, enabled: bool, first_step: int) -> None:
        # Events that a killed run wrote after its checkpoint of `first_step` are hidden.
        self._writer = SummaryWriter(folder, purge_step=first_step + 1) if enabled else None
        self._folder = folder

    def add(self, step: int, values: dict[str, float | None]) -> None:
        """Write one value per tag; a value that is not known (None) is left out."""
        with self._borne() as writer:
            for tag, value in values.items():
                if writer is not None and value is not None:
                    writer.add_scalar(tag, value, step)

    def add_image(self, step: int, tag: str, image: np.ndarray) -> None:
        """Write a picture, uint8 [H, W, 3]."""
        with self._borne() as writer:
            if writer is not None:
                writer.add_image(tag, image, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is still held back."""
        with self._borne() as writer:
            if writer is not None:
                writer.close()

    @contextmanager
    def _borne(self) -> Iterator[SummaryWriter | None]:
        try:
            yield self._writer
        except OSError as error:  # of the writer's thread, at the latest when it is closed
            self._writer = None
            logger.warning(
                "%s: TensorBoard events cannot be written (%s); training goes on without them "
                "until it is started again",
                *(self._folder, error.strerror or error),
            )
