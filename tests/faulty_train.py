"""Trains as `src/train.py` does, with a fault in one rank: `python faulty_train.py FAULT ...`.

    raise    rank 1 raises in step 2
    hang     rank 1 sleeps in step 2, all its threads alive
    stop     rank 1 stops as a whole in step 2, as if its machine were gone
    kill     rank 1 is killed in step 2, the first time

The fault happens once: a file beside the configuration tells that it has happened.
"""

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src import train
from src.engine.trainer import Trainer

FAULTY_RANK, FAULTY_STEP = "1", 2


def main() -> int:
    fault = sys.argv.pop(1)
    happened = Path(sys.argv[sys.argv.index("--config") + 1]).with_suffix(".happened")
    step = Trainer.step

    def faulty(self, batches):
        is_time = self.progress.step == FAULTY_STEP and os.environ["RANK"] == FAULTY_RANK
        if is_time and not happened.exists():
            happened.touch()
            _fail(fault)
        return step(self, batches)

    Trainer.step = faulty
    return train.main()


def _fail(fault: str) -> None:
    if fault == "raise":
        raise RuntimeError("the disk of rank 1 is on fire")
    if fault == "hang":
        time.sleep(600)
    if fault == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
