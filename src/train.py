"""Train a model from a configuration.

    python src/train.py --config FILE [--resume auto|PATH|never] [--dry_run] [KEY VALUE ...]

Exit codes: 0 finished, 1 an error that the last lines name, 2 a wrong configuration, and after a
signal, with the run saved: 143 SIGTERM, 130 Ctrl-C, 85 SIGUSR1. docs/RELIABILITY.md has more.

`scripts/launch_train.sh` starts this on every GPU of the machine.
"""

import argparse
import logging
import os
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.engine.signals import (
    StoppedError,
    StopSignals,
    clear_exit_code,
    die_with_parent,
    end_loader_processes,
    exit_code,
    report_exit_code,
)

stop = StopSignals()
if __name__ == "__main__":
    stop.listen()  # the imports below take seconds

from yacs.config import CfgNode

from src.config import ConfigError, load_config


def read_command_line() -> tuple[argparse.Namespace, CfgNode]:
    """Return the command line and its configuration; exit with 2 if one of them is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", required=True, help="YAML file, see configs/")
    parser.add_argument("--resume", default="auto", help="auto (default), never, or a checkpoint")
    parser.add_argument("--dry_run", action="store_true", help="measure memory and time")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="dotted keys")
    args = parser.parse_intermixed_args()
    clear_exit_code()
    try:
        return args, load_config(args.config, args.overrides)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(report_exit_code(2))


if __name__ == "__main__":
    command = read_command_line()  # an error is reported before torch is imported

from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from src.data.errors import DataSetError
from src.engine.cost import dry_run
from src.engine.log import log_thread_error, start_logging
from src.engine.processes import Ranks, choose_device, join_ranks, set_determinism
from src.engine.trainer import Trainer
from src.paths import free_name
from src.prepare.checks import quick_check
from src.run_directory import RunDirectory, write_run_record

logger = logging.getLogger("train")


def main(command: tuple[argparse.Namespace, CfgNode] | None = None) -> int:
    """Train or resume a run; return the exit code."""
    args, cfg = command or read_command_line()
    threading.excepthook = log_thread_error
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()
    set_determinism(cfg.TRAIN.DETERMINISTIC)
    try:
        with join_ranks(choose_device(cfg.DEVICE), cfg.TRAIN.STALL_MINUTES, stop) as ranks:
            return report_exit_code(exit_code(train(cfg, ranks, args)))
    except StoppedError:
        return report_exit_code(exit_code(stop.number))
    except (ArithmeticError, OSError, RuntimeError, ValueError) as error:
        # Data, weights, device or disk at fault: a sentence on the terminal, the rest in the log.
        logger.error("%s", error)
        logger.debug("where it was raised", exc_info=True)
        get_error_handler().record_exception(error)  # torchrun shows the first of all ranks
        return report_exit_code(1)


def train(cfg: CfgNode, ranks: Ranks, args: argparse.Namespace) -> int:
    """Do the run on this rank; return the signal that ended it early, else 0."""
    run, stamp = RunDirectory.of(cfg), time.strftime("%Y%m%d-%H%M%S")
    if ranks.is_main:
        run.check_writable()
    start_logging(free_name(run.logs / f"train_{stamp}.log"), rank=ranks.rank)
    with run.locked() if ranks.is_main else nullcontext():
        if ranks.is_main:
            write_run_record(run, cfg, stamp)
        reject_wrong_data(cfg, ranks)
        trainer = Trainer(cfg, ranks, run)
        if args.dry_run:
            dry_run(trainer)
            return ranks.stop.number
        trainer.resume(args.resume)
        return trainer.fit()


def reject_wrong_data(cfg: CfgNode, ranks: Ranks) -> None:
    """Check the data on the main rank, in seconds; every rank calls this and ends with it.

    Raises:
        DataSetError: All that would make the training wrong.
    """
    problems = ranks.gather(quick_check(cfg) if ranks.is_main else [])[0]
    if problems:
        raise DataSetError(cfg.DATA.ROOT, problems)


if __name__ == "__main__":
    try:
        sys.exit(main(command))
    finally:
        end_loader_processes()
