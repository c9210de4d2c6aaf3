"""Trains as `src/train.py` does, with a fault in one rank: `python faulty_train.py FAULT ...`.

    raise    rank 1 raises in step 2
    hang     rank 1 sleeps in step 2, all its threads alive
    stop     rank 1 stops as a whole in step 2, as if its machine were gone
    kill     rank 1 is killed in step 2, the first time
    absent   rank 1 never joins the others
    slow     rank 1 takes two minutes for each tile of a validation
    nan      the loss of rank 1 is NaN in step 2; every rank keeps a digest of its state per step

The fault happens once: a file beside the configuration records that it has happened.
"""

import hashlib
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src import train
from src.engine.checkpoint import named_tensors
from src.engine.processes import Ranks
from src.engine.trainer import Trainer

FAULTY_STEP = 2


def main() -> int:
    fault, is_faulty = sys.argv.pop(1), os.environ["RANK"] == "1"
    happened = Path(sys.argv[sys.argv.index("--config") + 1]).with_suffix(".happened")
    step, part_done = Trainer.step, Ranks.part_done

    def faulty(self, batches):
        if self.progress.step == FAULTY_STEP and is_faulty and not happened.exists():
            happened.touch()
            poison(self) if fault == "nan" else fail(fault)
        outcome = step(self, batches)
        if fault == "nan":
            keep_digest(self, happened.with_name(f"digests_{self.ranks.rank}.jsonl"))
        return outcome

    def slowly(self):
        happened.touch()
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (self.stop.number or self.stop.elsewhere):
            part_done(self)
            time.sleep(0.05)

    Trainer.step = faulty
    if fault == "slow" and is_faulty:
        Ranks.part_done = slowly
    if fault == "absent" and is_faulty:
        happened.touch()
        time.sleep(600)
    train.stop.listen()  # src/train.py does, if it is the program
    return train.main()


def poison(trainer: Trainer) -> None:
    loss = trainer.train_step.loss_fn

    def broken(restored, sharp):
        trainer.train_step.loss_fn = loss
        total, parts = loss(restored, sharp)
        return total * math.nan, parts

    trainer.train_step.loss_fn = broken


def keep_digest(trainer: Trainer, path: Path) -> None:
    """Add a line with the counters and what the step may have moved."""
    state, digest = trainer.checkpoints.state_dict(), hashlib.sha256()
    for part in ("model", "ema", "optimizer"):
        for name, tensor in named_tensors(state[part], part):
            digest.update(name.encode() + tensor.numpy().tobytes())
    entry = {"skipped": trainer.progress.skipped_steps, "digest": digest.hexdigest()}
    with path.open("a") as handle:
        handle.write(json.dumps(entry) + "\n")


def fail(fault: str) -> None:
    if fault == "raise":
        raise RuntimeError("the disk of rank 1 is on fire")
    if fault == "hang":
        time.sleep(600)
    os.kill(os.getpid(), {"stop": signal.SIGSTOP, "kill": signal.SIGKILL}[fault])


if __name__ == "__main__":
    sys.exit(main())
