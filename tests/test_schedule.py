"""The learning rate by optimiser step."""

import pytest
import torch
from torch import nn

from src.engine.progress import count_steps
from src.engine.schedule import learning_rate_factor, warmup_cosine


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
    schedule = warmup_cosine(optimizer, peak=2e-4, warmup_steps=2, total_steps=4, eta_min=1e-7)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1e-4, 2e-4, 2e-4, 1e-7])


@pytest.mark.parametrize(
    ("max_steps", "epochs", "clips", "per_step", "steps"),
    [(7, 80, 100, 6, 7), (0, 2, 10, 4, 5), (0, 1, 3, 8, 1), (0, 3, 5, 2, 8)],
)
def test_steps_of_a_run(max_steps, epochs, clips, per_step, steps):
    assert count_steps(max_steps, epochs, clips, per_step) == steps
