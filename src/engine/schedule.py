"""The learning rate as a function of the optimiser step."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from yacs.config import CfgNode


def learning_rate_factor(step: int, warmup_steps: int, total_steps: int, floor: float) -> float:
    """Return the share of the peak learning rate that step `step` (from 0) uses.

    Linear from 1/warmup_steps to 1 over the warm-up, then a half cosine to `floor`, which the
    last step reaches. A warm-up that would take the whole run is cut to a tenth of it.
    """
    warmup_steps = (
        min(warmup_steps, total_steps // 10) if warmup_steps >= total_steps else warmup_steps
    )
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    share = min(1.0, (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share))


def warmup_cosine(
    optimizer: Optimizer, *, peak: float, warmup_steps: int, total_steps: int, eta_min: float
) -> LambdaLR:
    """Return the schedule of an optimiser whose groups have their own peak as learning rate."""
    floor = eta_min / peak
    return LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, warmup_steps, total_steps, floor)
    )


def set_rates(schedule: LambdaLR) -> None:
    """Give the next step the rate of the schedule at its step, after both were loaded.

    What an optimiser carries is the rate that the run which saved it would have used: another one
    where the run has been made longer since.
    """
    rates = [
        base * factor(schedule.last_epoch)
        for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates  # noqa: SLF001 (what torch itself keeps there)


def build_schedule(optimizer: Optimizer, cfg: CfgNode, total_steps: int) -> LambdaLR:
    """Return the schedule that TRAIN.SCHED describes; each group keeps its share of the rate."""
    train = cfg.TRAIN
    return warmup_cosine(
        optimizer,
        peak=train.OPTIM.LR,
        warmup_steps=train.SCHED.WARMUP_STEPS,
        total_steps=total_steps,
        eta_min=train.SCHED.ETA_MIN,
    )
