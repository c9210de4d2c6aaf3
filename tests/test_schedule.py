"""The learning rate by optimiser step."""

import pytest
import torch
from torch import nn

from src.engine.optim import WarmupCosine, learning_rate_factor
from src.engine.progress import count_steps


def test_warm_up_is_linear_and_the_cosine_ends_at_the_floor():
    factors = [learning_rate_factor(step, 4, 9, 0.1) for step in range(9)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[6] == pytest.approx(0.1 + 0.9 * 0.5)  # half way down the cosine
    assert factors[8] == pytest.approx(0.1)


def test_a_warm_up_longer_than_the_run_is_cut_to_a_tenth():
    assert learning_rate_factor(9, 5000, 100, 0.0) == 1.0
    assert learning_rate_factor(99, 5000, 100, 0.0) == pytest.approx(0.0)


def test_schedule_sets_the_rate_of_the_optimiser():
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=2e-4)
    schedule = WarmupCosine(optimizer, peak=2e-4, warmup_steps=2, total_steps=4, eta_min=1e-7)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1e-4, 2e-4, 2e-4, 1e-7])


def schedule_of(total_steps: int, steps: int):
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [w], "lr": lr} for w, lr in zip(weights, (2e-4, 3e-5), strict=True)]
    optimizer = torch.optim.AdamW(groups)
    schedule = WarmupCosine(
        optimizer, peak=2e-4, warmup_steps=2, total_steps=total_steps, eta_min=1e-7
    )
    for _ in range(steps):
        optimizer.step()
        schedule.step()
    return optimizer, schedule


@pytest.mark.parametrize("length", [10, 1000])
def test_a_loaded_schedule_gives_the_rates_of_its_own_length(length):
    """Bit for bit those of a run that had this length from the start."""
    old_optimizer, old = schedule_of(10, steps=7)
    expected = [group["lr"] for group in schedule_of(length, steps=7)[0].param_groups]
    optimizer, schedule = schedule_of(length, steps=0)
    optimizer.load_state_dict(old_optimizer.state_dict())
    schedule.load_state_dict(old.state_dict())
    assert [group["lr"] for group in optimizer.param_groups] == expected
    assert schedule.get_last_lr() == expected


@pytest.mark.parametrize(
    ("max_steps", "epochs", "clips", "per_step", "steps"),
    [(7, 80, 100, 6, 7), (0, 2, 10, 4, 5), (0, 1, 3, 8, 1), (0, 3, 5, 2, 8)],
)
def test_steps_of_a_run(max_steps, epochs, clips, per_step, steps):
    assert count_steps(max_steps, epochs, clips, per_step) == steps
