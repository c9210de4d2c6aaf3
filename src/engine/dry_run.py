"""One real step, one save, one validation tile, to see that a run works and what it costs."""

import logging
import time

from src.engine.trainer import Trainer
from src.inference.evaluate import peak_memory_gib
from src.inference.restore import build_restorer

logger = logging.getLogger(__name__)


def dry_run(trainer: Trainer) -> None:
    """Try what a run does, at the configured sizes; log seconds and memory; keep nothing."""
    trainer.describe()
    started = time.perf_counter()
    batches = next(trainer.batches(), None)
    if batches is None:  # stopped by a signal
        return
    loaded = time.perf_counter()
    outcome = trainer.step(batches)
    stepped = time.perf_counter()
    logger.info(
        "one step: %.2f s for the data, %.2f s for %d micro-batches; loss %.5f, gradient norm %.3f",
        *(loaded - started, stepped - loaded, len(batches)),
        *(outcome.losses["total"], outcome.grad_norm),
    )
    path = trainer.run.checkpoints / "dry_run.pth"
    trainer.saver.save(path.name, must_succeed=True)
    if trainer.ranks.is_main:
        size = path.stat().st_size
        path.unlink()
        logger.info("one save: %.2f s, %.1f MB", time.perf_counter() - stepped, size / 1e6)
    _restore_one_clip(trainer)
    gib, whose = peak_memory_gib(trainer.ranks.device)
    if gib is not None:
        logger.info("peak memory: %.2f GiB (%s)", gib, whose)
    per_step = stepped - loaded
    logger.info(
        "%d steps at this speed take %.2f hours, validation not counted; the first step is slow",
        *(trainer.total_steps, trainer.total_steps * per_step / 3600),
    )
    logger.info("settings that fit other GPUs: python scripts/plan.py --config FILE")


def _restore_one_clip(trainer: Trainer) -> None:
    recording = trainer.validation.recordings[0]
    restorer = build_restorer(trainer.cfg, trainer.model, trainer.ranks.device)
    started = time.perf_counter()
    _, image = next(iter(restorer.restore(recording)))
    seconds = time.perf_counter() - started
    size = f"{image.shape[1]} x {image.shape[0]}"
    logger.info("first validation clip of %s at %s: %.2f s", recording.name, size, seconds)
