"""What a run says while it goes on: log lines, TensorBoard scalars and pictures."""

import logging
import os
import sys
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


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
        to_file = logging.FileHandler(log_file, encoding="utf-8")
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(to_file)


class Scalars:
    """TensorBoard events of the main rank; on other ranks, or turned off, it writes nothing."""

    def __init__(self, folder: Path, *, enabled: bool, first_step: int) -> None:
        # Events that a killed run wrote after its checkpoint of `first_step` are hidden.
        self._writer = SummaryWriter(folder, purge_step=first_step + 1) if enabled else None

    def add(self, step: int, values: dict[str, float | None]) -> None:
        """Write one value per tag; a value that is not known (None) is left out."""
        if self._writer is not None:
            for tag, value in values.items():
                if value is not None:
                    self._writer.add_scalar(tag, value, step)

    def add_image(self, step: int, tag: str, image: np.ndarray) -> None:
        """Write a picture, uint8 [H, W, 3]."""
        if self._writer is not None:
            self._writer.add_image(tag, image, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is still held back."""
        if self._writer is not None:
            self._writer.close()
