"""What a training costs on this machine: `train.py --dry_run`."""

import logging
import time
from contextlib import suppress
from itertools import islice, product

import torch

from src.engine.optim import freeze
from src.engine.step import Batch, StepMemoryError
from src.engine.trainer import Trainer, build_step
from src.inference.restore import build_restorer, peak_memory_gib
from src.models.build import build_model

TIMED_STEPS, TIMED_SECONDS = 3, 30.0  # after the first step, which is slow
GB = 1e9
MEMORIES_GB = (12, 24, 48, 80)
RESERVE = 0.15  # share that stays free: the context of CUDA, fragmentation, work spaces of cuDNN
CROPS_PX = (256, 224, 192, 160, 128, 96, 64)
SMALL_CROP_PX, SMALL_CLIPS = 64, (1, 4)  # what the line of memory is fitted to
# Bytes that do not depend on the frames, and bytes per pixel of all frames of a micro-batch.
Memory = tuple[float, float]
logger = logging.getLogger(__name__)


def dry_run(trainer: Trainer) -> None:
    """Try what a run does, at the configured sizes; log seconds, memory and days; keep nothing.

    After a StepMemoryError it logs settings that fit, if steps of small clips do, and raises it.
    """
    trainer.describe()
    trainer.compile()
    groups = list(islice(trainer.batches(), min(1 + TIMED_STEPS, trainer.total_steps)))
    if not groups:  # stopped by a signal
        return
    data_s = trainer.clock.take()["data"] / len(groups)
    logger.info("data of a step: %.2f s, mean of %d", data_s, len(groups))
    try:
        seconds = _time_steps(trainer, groups)
    except StepMemoryError:
        with suppress(torch.cuda.OutOfMemoryError, StepMemoryError):  # the first one is reported
            log_settings(trainer, groups[0])
        raise
    _save_once(trainer)
    _restore_one_clip(trainer)
    gib, whose = peak_memory_gib(trainer.ranks.device)
    if gib is not None:
        logger.info("peak memory: %.2f GiB (%s)", gib, whose)
    days = trainer.total_steps * seconds / 86400
    logger.info(
        "%d steps take %.2f days (%.1f hours), loading and validation not counted",
        *(trainer.total_steps, days, 24 * days),
    )
    log_settings(trainer, groups[0])


def _time_steps(trainer: Trainer, groups: list[list[Batch]]) -> float:
    """Do a step, and the others if they take seconds only; return the seconds of one."""
    began = time.perf_counter()
    outcome = trainer.step(groups[0])
    seconds = max(trainer.ranks.gather(time.perf_counter() - began))
    logger.info(
        "one step: %.2f s for %d micro-batches; loss %.5f, gradient norm %.3f",
        *(seconds, len(groups[0]), outcome.losses["total"], outcome.grad_norm),
    )
    if more := groups[1 : 1 + int(TIMED_SECONDS / seconds)]:
        began = time.perf_counter()
        for group in more:
            trainer.step(group)
        seconds = (time.perf_counter() - began) / len(more)
        logger.info("the first step is slow; the next %d: %.2f s each", len(more), seconds)
    return seconds


def _save_once(trainer: Trainer) -> None:
    path, began = trainer.run.checkpoints / "dry_run.pth", time.perf_counter()
    trainer.checkpoints.save(path.name, must_succeed=True)
    if trainer.ranks.is_main:
        size = path.stat().st_size
        path.unlink()
        logger.info("one save: %.2f s, %.1f MB", time.perf_counter() - began, size / 1e6)


def _restore_one_clip(trainer: Trainer) -> None:
    recording = trainer.validation.recordings[0]
    restorer = build_restorer(trainer.cfg, trainer.model, trainer.ranks.device)
    began = time.perf_counter()
    _, image = next(iter(restorer.restore(recording)))
    seconds = time.perf_counter() - began
    size = f"{image.shape[1]} x {image.shape[0]}"
    logger.info("first validation clip of %s at %s: %.2f s", recording.name, size, seconds)


def log_settings(trainer: Trainer, batches: list[Batch]) -> None:
    """Log settings that fit common GPUs, from steps of small clips on this one."""
    if not trainer.ranks.is_main:
        return
    samples = [batch for batch in batches if batch["blur"] is not None]
    if trainer.ranks.device.type != "cuda" or not samples:
        logger.info("for settings that fit GPUs of 12 to 80 GB run this on a machine with one")
        return
    memory = {choice: measure_memory(trainer, samples[0], choice) for choice in (True, False)}
    data, train = trainer.cfg.DATA, trainer.cfg.TRAIN
    clips = train.BATCH_SIZE * train.GRADIENT_ACCUMULATION_STEPS
    logger.info("settings for %d clips per GPU and step; %.0f%% stay free", clips, 100 * RESERVE)
    for size in MEMORIES_GB:
        found = settings_that_fit(size, memory, data.CLIP_LEN, data.CROP_SIZE, clips)
        logger.info("%d GB: %s", size, found)


def fit_memory(measured: dict[int, float]) -> Memory:
    """Return the line through two measurements by pixels; it never falls or starts below zero."""
    (small, low), (large, high) = sorted(measured.items())
    slope = (high - low) / (large - small)
    if slope <= 0 or low - slope * small < 0:
        return 0.0, max(high / large, low / small)
    return low - slope * small, slope


def measure_memory(trainer: Trainer, batch: Batch, recomputes: bool) -> Memory:
    """Train a second model on small pieces of a batch on CUDA; DDP's buckets are not counted."""
    cfg, device = trainer.cfg.clone(), trainer.ranks.device
    cfg.defrost()
    cfg.MODEL.USE_CHECKPOINT_ATTN = cfg.MODEL.USE_CHECKPOINT_FFN = recomputes
    cfg.freeze()
    before = torch.cuda.memory_allocated(device)
    model = build_model(cfg, read_weights=False).to(device)
    freeze(model, cfg.TRAIN.FREEZE)
    step = build_step(cfg, model, trainer.ranks, trainer.dataset.norm, trainer.total_steps)
    average = sum(t.nbytes for t in model.state_dict().values()) if trainer.average else 0
    peaks = {}
    for clips in SMALL_CLIPS:
        piece = small_batch(batch, clips)
        step([piece, piece], 0)  # makes the optimiser's state, chooses kernels
        torch.cuda.reset_peak_memory_stats(device)
        step([piece, piece], 1)
        pixels = piece["blur"].numel() // 3
        peaks[pixels] = torch.cuda.max_memory_allocated(device) - before + average
    return fit_memory(peaks)


def small_batch(batch: Batch, clips: int) -> Batch:
    """Return a small crop of the first clip of a collated batch, repeated."""
    side = min(SMALL_CROP_PX, batch["blur"].shape[-1])
    spike_side = side * batch["spike_vox"].shape[-1] // batch["blur"].shape[-1]
    sides = {"blur": side, "sharp": side, "spike_vox": spike_side}
    first = {name: batch[name][:1, ..., :n, :n] for name, n in sides.items()}
    first["bin_ticks"] = batch["bin_ticks"][:1]
    repeated = {name: value.repeat_interleave(clips, dim=0) for name, value in first.items()}
    return {**repeated, "meta": batch["meta"][:1] * clips, "dropped": []}


def settings_that_fit(
    limit_gb: float, memory: dict[bool, Memory], frames: int, crop_px: int, clips_per_rank: int
) -> str:
    """Return the best settings of the same effective batch that fit, as KEY VALUE.

    The crop decides what can be learnt, so it is made smaller last. At one crop, keeping
    intermediates is faster than recomputing them, and larger micro-batches than small ones.
    `memory` is given by whether intermediates are recomputed.
    """
    divisors = [n for n in range(clips_per_rank, 0, -1) if clips_per_rank % n == 0]
    crops = (crop_px, *(c for c in CROPS_PX if c < crop_px))
    for crop, recomputes, clips in product(crops, (False, True), divisors):
        fixed, per_pixel = memory[recomputes]
        needed = (fixed + per_pixel * clips * frames * crop**2) / GB
        if needed <= limit_gb * (1 - RESERVE):
            word = str(recomputes).lower()
            return (
                f"{needed:.1f} GB with TRAIN.BATCH_SIZE {clips} "
                f"TRAIN.GRADIENT_ACCUMULATION_STEPS {clips_per_rank // clips} "
                f"DATA.CROP_SIZE {crop} "
                f"MODEL.USE_CHECKPOINT_ATTN {word} MODEL.USE_CHECKPOINT_FFN {word}"
            )
    return "nothing fits; lower DATA.CLIP_LEN"
