"""Train a model from a configuration.

    python src/train.py --config FILE [--resume auto|PATH|never] [--dry_run] [KEY VALUE ...]

`scripts/launch_train.sh` starts this on every GPU of the machine.
"""

import argparse
import logging
import sys
import time
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from yacs.config import CfgNode

from src.config import ConfigError, load_config
from src.data.bad_samples import DataSetError
from src.data.preparation.quick_check import quick_check
from src.engine.distributed import Ranks, choose_device, join_ranks
from src.engine.dry_run import dry_run
from src.engine.run_directory import RunDirectory, write_run_record
from src.engine.run_log import start_logging
from src.engine.trainer import Trainer

logger = logging.getLogger("train")


def main() -> int:
    """Load the configuration, go on where the run was left, train to the end."""
    args = parse_arguments()
    try:
        cfg = load_config(args.config, args.overrides)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    try:
        with join_ranks(choose_device(cfg.DEVICE)) as ranks:
            train(cfg, ranks, args)
    except (ArithmeticError, OSError, RuntimeError, ValueError) as error:
        # Data, weights, device or disk at fault: the sentence for the user, the place for the log.
        logger.error("%s", error)
        logger.debug("where it was raised", exc_info=True)
        return 1
    return 0


def train(cfg: CfgNode, ranks: Ranks, args: argparse.Namespace) -> None:
    """Do the run on this rank."""
    run, stamp = RunDirectory.of(cfg), time.strftime("%Y%m%d-%H%M%S")
    start_logging(run.logs / f"train_{stamp}.log", is_main=ranks.is_main)
    with run.locked() if ranks.is_main else nullcontext():
        if ranks.is_main:
            write_run_record(run, cfg, stamp)
        refuse_wrong_data(cfg, ranks)
        trainer = Trainer(cfg, ranks, run)
        if args.dry_run:
            dry_run(trainer)
            return
        trainer.resume(args.resume)
        trainer.fit()


def refuse_wrong_data(cfg: CfgNode, ranks: Ranks) -> None:
    """Check the data on the main rank, in seconds; every rank calls this and ends with it.

    Raises:
        DataSetError: all that would make the training wrong.
    """
    problems = ranks.gather(quick_check(cfg) if ranks.is_main else [])[0]
    if problems:
        raise DataSetError(cfg.DATA.ROOT, problems)


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", required=True, help="YAML file, see configs/")
    parser.add_argument("--resume", default="auto", help="auto (default), never, or a checkpoint")
    parser.add_argument("--dry_run", action="store_true", help="one step, one save, one tile")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="dotted keys")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    sys.exit(main())
