"""Trains as `src/train.py` does, with a fault in one rank: `python faulty_train.py FAULT ...`.

    raise    rank 1 raises in step 2
    hang     rank 1 sleeps in step 2, all its threads alive
    stop     rank 1 stops as a whole in step 2, as if its machine were gone
    kill     rank 1 is killed in step 2, the first time
    absent   rank 1 never joins the others
    slow     rank 1 takes two minutes for each tile of a validation
    nan      the loss of rank 1 is NaN in step 2; every rank keeps a digest of its state per step

The fault happens once: a file beside the configuration tells that it has happened.
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

FAULTY_RANK, FAULTY_STEP = "1", 2


def main() -> int:
    fault = sys.argv.pop(1)
    happened = Path(sys.argv[sys.argv.index("--config") + 1]).with_suffix(".happened")
    step = Trainer.step

    def faulty(self, batches):
        is_time = self.progress.step == FAULTY_STEP and os.environ["RANK"] == FAULTY_RANK
        if is_time and not happened.exists():
            happened.touch()
            _poison(self) if fault == "nan" else _fail(fault)
        outcome = step(self, batches)
        if fault == "nan":
            _keep_digest(self, happened.with_name(f"digests_{os.environ['RANK']}.jsonl"))
        return outcome

    Trainer.step = faulty
    if fault == "slow" and os.environ["RANK"] == FAULTY_RANK:
        part_done = Ranks.part_done

        def slowly(self):
            happened.touch()
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline and not (self.stop.number or self.stop.elsewhere):
                part_done(self)
                time.sleep(0.05)

        Ranks.part_done = slowly
    if fault == "absent" and os.environ["RANK"] == FAULTY_RANK:
        time.sleep(600)
    train.stop.listen()  # src/train.py does, where it is the program
    return train.main()


def _poison(trainer: Trainer) -> None:
    loss = trainer.train_step.loss_fn

    def broken(restored, sharp):
        trainer.train_step.loss_fn = loss
        total, parts = loss(restored, sharp)
        return total * math.nan, parts

    trainer.train_step.loss_fn = broken


def _keep_digest(trainer: Trainer, path: Path) -> None:
    """Add a line with the counters and what the step may have moved."""
    state, digest = trainer.checkpoints.state_dict(), hashlib.sha256()
    for part in ("model", "ema", "optimizer"):
        for name, tensor in named_tensors(state[part], part):
            digest.update(name.encode() + tensor.numpy().tobytes())
    entry = {"skipped": trainer.progress.skipped_steps, "digest": digest.hexdigest()}
    with path.open("a") as handle:
        handle.write(json.dumps(entry) + "\n")


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
