"""Train a model from a configuration.

    python src/train.py --config FILE [--resume auto|PATH|never] [--dry_run] [KEY VALUE ...]

`scripts/launch_train.sh` starts this on every GPU of the machine.
"""

import argparse
import logging
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.config import ConfigError, load_config
from src.engine.distributed import choose_device, join_ranks
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
    run, stamp = RunDirectory.of(cfg), time.strftime("%Y%m%d-%H%M%S")
    try:
        device = choose_device(cfg.DEVICE)
    except RuntimeError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    with join_ranks(device) as ranks:
        start_logging(run.logs / f"train_{stamp}.log", is_main=ranks.is_main)
        if ranks.is_main:
            write_run_record(run, cfg, stamp)
        try:
            trainer = Trainer(cfg, ranks, run)
            if not args.dry_run:
                trainer.resume(args.resume)
        except (OSError, RuntimeError, ValueError) as error:  # data, weights or device at fault
            logger.error("%s", error)
            logger.debug("where it was raised", exc_info=True)
            return 1
        if args.dry_run:
            dry_run(trainer)
        else:
            trainer.fit()
    return 0


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
