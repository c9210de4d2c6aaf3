"""Compare the trainer with a bare loop: same model, loss, optimiser, clips and steps.

    python benchmarks/trainer.py [--vrt smallest|vrt_tiny] [--steps 50] [--rounds 2] [--threads 1]

Both train in turn (A B A B ...) in one process on one synthetic micro-batch. The trainer does all
that it does in a run but reading data, validating and saving: counting, logging, TensorBoard,
watching the alignment, looking for signals, the guard against values that are not finite. Each
block of --steps writes one line of the log, as TRAIN.LOG_EVERY 50 does by default; shorter blocks
make the trainer look slower than it is. Printed are medians of CPU time per step, the ratio of each
pair of neighbours, and the growth of memory.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import yaml
from torch import nn

from benchmarks.vrt import PeakMemory
from src.config import load_config
from src.engine.optim import build_optimizer, build_schedule
from src.engine.processes import Ranks
from src.engine.trainer import Trainer
from src.losses.build import build_loss
from src.paths import REPO_ROOT
from src.run_directory import RunDirectory
from tests.training_cases import SMALLEST_VRT, write_run

CPU = torch.device("cpu")
FRAMES, SIDE, BINS = 2, 64, 4
LIMIT = 1.03


def synthetic_batch() -> dict[str, Any]:
    """Return what the loader would collate: one clip of bytes and counts."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 1, FRAMES, 3, SIDE, SIDE), generator=generator)
    counts = torch.randint(0, 3, (1, FRAMES, BINS, SIDE // 2, SIDE // 2), generator=generator)
    return {
        "blur": images[0].to(torch.uint8),
        "sharp": images[1].to(torch.uint8),
        "spike_vox": counts.to(torch.uint8),
        "meta": [{"seq": "synthetic", "frame_idx": list(range(FRAMES))}],
        "dropped": [],
    }


class SyntheticTrainer(Trainer):
    """A trainer whose loader gives the same micro-batch some times and then ends."""

    num_steps = 0

    def batches(self) -> Iterator[list[dict[str, Any]]]:
        """Yield as many steps as asked for."""
        batch = synthetic_batch()
        for _ in range(self.num_steps):
            if self.must_stop():
                return
            with self.clock.measure("data"):
                group = [batch]
            self.dropped.count(group)
            yield group


def build_trainer(folder: Path, vrt: str, log_every: int) -> SyntheticTrainer:
    """Return a trainer on miniature data, which it needs to be built and never reads."""
    arguments = SMALLEST_VRT
    if vrt != "smallest":
        path = REPO_ROOT / f"configs/vrt/{vrt}.yaml"
        arguments = yaml.safe_load(path.read_text(encoding="utf-8"))
    arguments = {**arguments, "drop_path_rate": 0.0}  # equal work in both
    width = arguments["embed_dims"][0]
    config = write_run(
        folder,
        TRAIN__MAX_STEPS=10**6,
        TRAIN__GRADIENT_ACCUMULATION_STEPS=1,
        TRAIN__VAL_EVERY=10**6,
        TRAIN__SAVE_EVERY=10**6,
        TRAIN__LOG_EVERY=log_every,
        LOG__TENSORBOARD=True,
        MODEL__CHANNELS_PER_SCALE=[width] * 4,
    )
    (folder / "vrt.yaml").write_text(yaml.safe_dump(arguments), encoding="utf-8")
    cfg = load_config(config)
    return SyntheticTrainer(cfg, Ranks(0, 1, CPU), RunDirectory.of(cfg))


def bare_loop(trainer: SyntheticTrainer) -> Callable[[int], None]:
    """Return a loop over a copy of the trainer's model that does nothing but train it."""
    model: nn.Module = copy.deepcopy(trainer.model).train()
    optimizer = build_optimizer(model, trainer.cfg)
    schedule = build_schedule(optimizer, trainer.cfg, trainer.total_steps)
    loss_fn = build_loss(trainer.cfg)
    batch = trainer.train_step.transfer(synthetic_batch())
    trained = [p for p in model.parameters() if p.requires_grad]

    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            loss, _ = loss_fn(model(batch.blurry, batch.voxels), batch.sharp)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, trainer.cfg.TRAIN.GRAD_CLIP)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def timed(run: Callable[[], object], num_steps: int) -> tuple[float, float]:
    """Return CPU seconds per step and the growth of memory in MB."""
    with PeakMemory() as memory:
        start = time.process_time()
        run()
        seconds = time.process_time() - start
    return seconds / num_steps, memory.grown_mb


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vrt", default="smallest", choices=["smallest", "vrt_tiny", "vrt_base"])
    parser.add_argument("--steps", type=int, default=50, help="per block")
    parser.add_argument("--rounds", type=int, default=2, help="pairs of blocks")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(Path(folder), args.vrt, args.steps)
        trainer.num_steps = args.steps
        loop = bare_loop(trainer)
        runs = {"bare loop": lambda: loop(args.steps), "trainer": trainer.fit}
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for _ in range(args.rounds + 1):
            for name, run in runs.items():
                found[name].append(timed(run, args.steps))
    print(f"{args.vrt}, {args.rounds} x {args.steps} steps, torch {torch.__version__}")
    for name, values in found.items():  # the first round warms up
        seconds = [value for value, _ in values[1:]]
        grown = max(value for _, value in values)
        print(
            f"{name:10s} {statistics.median(seconds):8.4f} s CPU/step (least {min(seconds):.4f}) "
            f"{grown:8.1f} MB more"
        )
    pairs = zip(found["trainer"][1:], found["bare loop"][1:], strict=True)
    ratios = sorted(ours / bare for (ours, _), (bare, _) in pairs)
    print(
        f"trainer / bare loop: median {statistics.median(ratios):.3f}, "
        f"{ratios[0]:.3f} to {ratios[-1]:.3f}; allowed is {LIMIT}"
    )


if __name__ == "__main__":
    main()
