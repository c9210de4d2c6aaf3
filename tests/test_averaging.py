"""The moving average of the weights: its values, what is validated, saved, resumed and tested."""

import math

import pytest
import torch
from torch import nn

from src.engine.optim import WeightAverage
from src.inference.load import load_model
from tests.model_cases import build_tiny_vrt, build_with_spike, clip_and_voxels
from tests.training_cases import assert_same_state, make_trainer, read_checkpoint, write_run


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


def test_an_opened_vrt_is_averaged_independently():
    model = build_with_spike(build_tiny_vrt()).eval()
    average = WeightAverage(model, decay=0.5)
    inputs = clip_and_voxels()
    before = model(*inputs)
    assert average.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(average.model(*inputs), before)
    average.update(model)
    assert not torch.equal(average.model(*inputs), before)


def test_resumed_average_equals_the_straight_one(tmp_path):
    config = write_run(tmp_path, TRAIN__EMA_DECAY=0.5, TRAIN__SAVE_EVERY=2)
    straight = make_trainer(config, "EXP_NAME", "straight")
    straight.fit()
    first = make_trainer(config, "EXP_NAME", "halves")
    first.total_steps = 2
    first.fit()
    second = make_trainer(config, "EXP_NAME", "halves")
    second.resume("auto")
    second.fit()
    states = read_checkpoint(tmp_path, "straight"), read_checkpoint(tmp_path, "halves")
    assert_same_state(*states)
    averaged = [state["ema"] for state in states]
    assert all(torch.equal(averaged[0][key], averaged[1][key]) for key in averaged[0])
    key = "vrt.conv_last.weight"
    assert not torch.equal(averaged[0][key], states[0]["model"][key])


def test_averaged_weights_are_validated_and_tested(tmp_path):
    config = write_run(tmp_path, TRAIN__MAX_STEPS=1, TRAIN__EMA_DECAY=0.5)
    trainer = make_trainer(config)
    seen = []

    def validation(model, *_, **__):
        seen.append(model)
        return 1.0

    trainer.validation = validation
    trainer.fit()
    assert seen == [trainer.average.model]
    best = trainer.run.checkpoints / "best.pth"
    stored = torch.load(best, weights_only=True)
    key = "vrt.conv_last.weight"
    for choice, part in (("auto", "ema"), ("ema", "ema"), ("model", "model")):
        loaded = load_model(best, None, [], weights=choice)
        assert torch.equal(loaded.model.state_dict()[key], stored[part][key])
        assert loaded.identity["weights"] == part


def test_without_an_average_the_model_itself_is_tested(tmp_path):
    config = write_run(tmp_path, TRAIN__MAX_STEPS=1)
    trainer = make_trainer(config)
    trainer.fit()
    last = trainer.run.checkpoints / "last.pth"
    assert "ema" not in read_checkpoint(tmp_path)
    assert load_model(last, None, []).identity["weights"] == "model"
    with pytest.raises(ValueError, match="holds no averaged weights"):
        load_model(last, None, [], weights="ema")


def test_f41_a_skipped_step_leaves_the_average_alone(tmp_path):
    trainer = make_trainer(write_run(tmp_path, TRAIN__EMA_DECAY=0.5))
    before = {key: value.clone() for key, value in trainer.average.state_dict().items()}
    with torch.no_grad():
        trainer.model.vrt.conv_last.bias[0] = math.nan
    outcome = trainer.step(next(trainer.batches()))
    assert not outcome.is_finite
    after = trainer.average.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
