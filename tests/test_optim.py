"""The learning rate by optimiser step, Muon, and the moving average of the weights."""

import math

import pytest
import torch
from torch import nn

from src.config import load_config
from src.engine.optim import (
    NEWTON_SCHULZ,
    Muon,
    WarmupCosine,
    WeightAverage,
    build_optimizer,
    learning_rate_factor,
    orthogonalize,
)
from src.engine.trainer import count_steps
from src.inference.load import load_model
from tests.training_cases import checkpoint_of, make_trainer, write_run

KEY = "vrt.conv_last.weight"


def test_warm_up_is_linear_and_the_cosine_ends_at_the_floor():
    factors = [learning_rate_factor(step, 4, 9, 0.1) for step in range(9)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[6] == pytest.approx(0.1 + 0.9 * 0.5)  # half way down the cosine
    assert factors[8] == pytest.approx(0.1)


def test_a_warm_up_longer_than_the_run_is_cut_to_a_tenth():
    assert learning_rate_factor(9, 5000, 100, 0.0) == 1.0
    assert learning_rate_factor(99, 5000, 100, 0.0) == pytest.approx(0.0)


def schedule_of(total_steps: int, steps: int):
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [w], "lr": lr} for w, lr in zip(weights, (2e-4, 3e-5), strict=True)]
    optimizer, rates = torch.optim.AdamW(groups), []
    schedule = WarmupCosine(
        optimizer, peak=2e-4, warmup_steps=2, total_steps=total_steps, eta_min=1e-7
    )
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return optimizer, schedule, rates


@pytest.mark.parametrize("length", [10, 1000])
def test_a_loaded_schedule_gives_the_rates_of_its_own_length(length):
    """Bit for bit those of a run that had this length from the start."""
    assert schedule_of(4, steps=4)[2] == pytest.approx([1e-4, 2e-4, 2e-4, 1e-7])
    old_optimizer, old, _ = schedule_of(10, steps=7)
    expected = [group["lr"] for group in schedule_of(length, steps=7)[0].param_groups]
    optimizer, schedule, _ = schedule_of(length, steps=0)
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


# ---------------------------------------------------------------- Muon


def newton_schulz(x):
    """Five steps on the matrix itself."""
    a, b, c = NEWTON_SCHULZ
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def test_singular_values_become_about_equal():
    """Matrices of one, two and no others with as many rows."""
    generator, shapes = torch.Generator().manual_seed(1), ((24, 396), (40, 12), (7, 7), (24, 9))
    matrices = [torch.randn(shape, generator=generator) for shape in (*shapes, (9, 24))]
    results = orthogonalize([*matrices, torch.zeros(24, 30)])
    assert not results.pop().any()
    for matrix, result in zip(matrices, results, strict=True):
        torch.testing.assert_close(result, newton_schulz(matrix), atol=1e-5, rtol=0)
        values = torch.linalg.svdvals(result)
        assert 0.65 < values.min() <= values.max() < 1.25
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        middle = u.T @ result @ v.T  # the singular vectors stay
        torch.testing.assert_close(middle, middle.diag().diag(), atol=1e-4, rtol=0)


def steps_of(kind, values, gradients, **options):
    """Return copies of parameters after steps with given gradients."""
    parameters = [nn.Parameter(value.clone()) for value in values]
    optimizer = kind(parameters, lr=0.01, weight_decay=0.1, **options)
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
        optimizer.step()
    return parameters, optimizer


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch 2.9 has the first Muon")
def test_matrices_move_as_with_the_muon_of_torch():
    """Its steps are rounded to bfloat16."""
    torch.manual_seed(2)
    start, gradients = [torch.randn(6, 20)], [[torch.randn(6, 20)] for _ in range(4)]
    (want,), _ = steps_of(torch.optim.Muon, start, gradients, adjust_lr_fn="match_rms_adamw")
    (moved,), _ = steps_of(Muon, start, gradients)
    moved_by = (want - start[0]).square().mean().sqrt()
    assert (moved - want).square().mean().sqrt() < 0.03 * moved_by


def test_layers_move_by_muon_and_the_rest_by_adamw():
    torch.manual_seed(3)
    shapes = (4, 3, 3, 3), (4,), (4, 5)
    start = [torch.randn(shape) for shape in shapes]
    gradients = [[torch.randn(4, 3, 3, 3), torch.randn(4), None] for _ in range(3)]
    (layer, bias, frozen), optimizer = steps_of(Muon, start, gradients, betas=(0.9, 0.99))
    flat = [[step[0].flatten(1)] for step in gradients]
    (matrix,), _ = steps_of(Muon, [start[0].flatten(1)], flat)
    assert torch.equal(layer.flatten(1), matrix)
    (want,), _ = steps_of(torch.optim.AdamW, [start[1]], [[s[1]] for s in gradients])
    (adams,), _ = steps_of(
        torch.optim.AdamW, [start[1]], [[s[1]] for s in gradients], betas=(0.9, 0.99)
    )
    assert torch.equal(bias, adams)
    assert not torch.equal(bias, want)  # betas arrive
    assert torch.equal(frozen, start[2])  # without a gradient nothing moves or decays
    assert set(optimizer.state) == {layer, bias}
    assert optimizer.state[layer].keys() == {"step", "momentum"}


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("muon", Muon)])
def test_the_configuration_chooses_the_optimiser(tmp_path, name, kind):
    changes = {"TRAIN__OPTIM__BETAS": [0.8, 0.9], "TRAIN__OPTIM__WEIGHT_DECAY": 0.3}
    cfg = load_config(write_run(tmp_path, TRAIN__OPTIM__NAME=name, **changes))
    optimizer = build_optimizer(nn.Linear(2, 3), cfg)
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-3, (0.8, 0.9), 0.3)


def test_matrices_with_a_gradient_that_float16_overflowed_stay():
    weight = nn.Parameter(torch.ones(2, 3))
    optimizer, scaler = Muon([weight], lr=0.1), torch.amp.GradScaler("cpu")
    for value, moves in ((math.inf, False), (1.0, True)):
        optimizer.zero_grad()
        scaler.scale((weight * value).sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert bool((weight != 1).any()) == moves


# ---------------------------------------------------------------- the average


def test_values_by_hand():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    average = WeightAverage(model, decay=0.75)
    for value, expected in ((5.0, 2.0), (2.0, 2.0), (6.0, 3.0)):
        nn.init.constant_(model.weight, value)
        average.update(model)
        assert average.model.weight.item() == expected
    assert model.weight.item() == 6.0
    assert not average.model.weight.requires_grad


def test_averaged_weights_are_validated_and_tested(tmp_path):
    trainer = make_trainer(write_run(tmp_path, TRAIN__MAX_STEPS=1, TRAIN__EMA_DECAY=0.5))
    seen = []

    def validation(model, *_, **__):
        seen.append(model)
        return 1.0

    trainer.validation = validation
    trainer.fit()
    assert seen == [trainer.average.model]
    best = checkpoint_of(tmp_path, name="best.pth")
    stored = torch.load(best, weights_only=True)
    for choice, part in (("auto", "ema"), ("ema", "ema"), ("model", "model")):
        loaded = load_model(best, None, [], weights=choice)
        assert torch.equal(loaded.model.state_dict()[KEY], stored[part][KEY])
        assert loaded.identity["weights"] == part


def test_without_an_average_the_model_itself_is_tested(tmp_path):
    trainer = make_trainer(write_run(tmp_path))
    trainer.save("last.pth")
    last = checkpoint_of(tmp_path)
    assert "ema" not in torch.load(last, weights_only=True)
    assert load_model(last, None, []).identity["weights"] == "model"
    with pytest.raises(ValueError, match="holds no averaged weights"):
        load_model(last, None, [], weights="ema")
