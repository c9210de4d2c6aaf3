"""Train a model from a configuration.

    python src/train.py --config FILE [--resume auto|PATH|never] [--dry_run] [KEY VALUE ...]

Exit codes: 0 finished, 1 an error that the last lines name, 2 a wrong configuration, and after a
signal, with the run saved: 143 SIGTERM, 130 Ctrl-C, 85 SIGUSR1. docs/RELIABILITY.md has more.

`scripts/launch_train.sh` starts this on every GPU of the machine.
"""

import argparse
import atexit
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
    die_with_parent,
    end_loader_processes,
    exit_code,
    forget_handed_on,
    hand_on,
)

stop = StopSignals()
if __name__ == "__main__":
    stop.listen()  # the imports below take seconds

from yacs.config import CfgNode

from src.config import ConfigError, load_config


def read_command_line() -> tuple[argparse.Namespace, CfgNode]:
    """Return the command line and its configuration; exit with 2 where one of them is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", required=True, help="YAML file, see configs/")
    parser.add_argument("--resume", default="auto", help="auto (default), never, or a checkpoint")
    parser.add_argument("--dry_run", action="store_true", help="measure memory and time")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="dotted keys")
    args = parser.parse_intermixed_args()
    forget_handed_on()
    try:
        return args, load_config(args.config, args.overrides)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(hand_on(2))


if __name__ == "__main__":
    command = read_command_line()  # an error is reported before torch is imported

from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from src.data.errors import DataSetError
from src.engine.cost import dry_run
from src.engine.log import log_thread_error, start_logging
from src.engine.processes import Ranks, choose_device, join_ranks
from src.engine.trainer import Trainer
from src.paths import free_name
from src.prepare.quick_check import quick_check
from src.run_directory import RunDirectory, write_run_record

logger = logging.getLogger("train")


def main(command: tuple[argparse.Namespace, CfgNode] | None = None) -> int:
    """Resume where the run was left, train to the end."""
    args, cfg = command or read_command_line()
    threading.excepthook = log_thread_error
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()
    try:
        with join_ranks(choose_device(cfg.DEVICE), cfg.TRAIN.STALL_MINUTES, stop) as ranks:
            return hand_on(exit_code(train(cfg, ranks, args, stop)))
    except StoppedError:
        return hand_on(exit_code(stop.number))
    except (ArithmeticError, OSError, RuntimeError, ValueError) as error:
        # Data, weights, device or disk at fault: the sentence for the user, the place for the log.
        logger.error("%s", error)
        logger.debug("where it was raised", exc_info=True)
        get_error_handler().record_exception(error)  # torchrun shows the first of all ranks
        return hand_on(1)


def train(cfg: CfgNode, ranks: Ranks, args: argparse.Namespace, stop: StopSignals) -> int:
    """Do the run on this rank; return the signal that ended it early, else 0."""
    run, stamp = RunDirectory.of(cfg), time.strftime("%Y%m%d-%H%M%S")
    if ranks.is_main:
        run.check_writable()
    log_file = free_name(run.logs / f"train_{stamp}.log")
    start_logging(log_file, is_main=ranks.is_main, rank=ranks.rank)
    with run.locked() if ranks.is_main else nullcontext():
        if ranks.is_main:
            write_run_record(run, cfg, stamp)
        refuse_wrong_data(cfg, ranks)
        trainer = Trainer(cfg, ranks, run, stop)
        if args.dry_run:
            dry_run(trainer)
            return stop.number
        trainer.resume(args.resume)
        return trainer.fit()


def refuse_wrong_data(cfg: CfgNode, ranks: Ranks) -> None:
    """Check the data on the main rank, in seconds; every rank calls this and ends with it.

    Raises:
        DataSetError: all that would make the training wrong.
    """
    problems = ranks.gather(quick_check(cfg) if ranks.is_main else [])[0]
    if problems:
        raise DataSetError(cfg.DATA.ROOT, problems)


if __name__ == "__main__":
    atexit.register(end_loader_processes)
    sys.exit(main(command))
