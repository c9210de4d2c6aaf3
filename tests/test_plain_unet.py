"""The plain U-Net of a comparison: it learns, repeats itself, resumes, and is trained once."""

import signal
from itertools import repeat

import pytest
import torch
from torch import nn

from benchmarks import plain_unet
from benchmarks.plain_unet import (
    LR_END,
    Budget,
    PlainUNet,
    Training,
    load_trained,
    train_beside,
    weights_path,
)
from src.config import load_config
from src.engine.optim import Muon
from src.engine.signals import StopSignals
from tests.training_cases import write_run


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("unet"))


def trained(config, name, budget, *overrides, stop=None):
    cfg = load_config(config, ["EXP_NAME", name, *overrides])
    train_beside(cfg, budget, StopSignals() if stop is None else stop)
    return torch.load(weights_path(cfg), weights_only=True)


def same(first, second):
    return all(torch.equal(first["model"][key], value) for key, value in second["model"].items())


@pytest.mark.parametrize(
    ("factor", "size", "spikes"),
    [(2, (34, 46), (17, 23)), (1, (9, 8), (9, 8)), (3, (40, 64), (15, 24)), (2, (8, 16), (8, 16))],
)
def test_any_size_goes_through(factor, size, spikes):
    model = PlainUNet(5, factor)
    blurry, voxels = torch.rand(1, 2, 3, *size), torch.rand(1, 2, 5, *spikes)
    assert torch.equal(model(blurry, voxels), blurry)  # a new one restores nothing
    nn.init.ones_(model.last.bias)
    assert torch.equal(model(blurry, voxels), blurry + 1)


def test_its_size_is_as_documented():
    assert sum(p.numel() for p in PlainUNet(32, 2).parameters()) == pytest.approx(0.4e6, rel=0.1)


def test_it_learns_one_clip(config, monkeypatch):
    load = plain_unet.build_train_loader
    monkeypatch.setattr(
        plain_unet, "build_train_loader", lambda *a, **b: repeat(next(iter(load(*a, **b))))
    )
    training = Training(load_config(config))
    losses = []
    training.run(Budget(steps=60), lambda: losses.append(training.loss) or True)
    assert len(losses) == 60
    assert losses[-1] < 0.8 * losses[0]


def test_a_step_has_the_clips_of_a_run_with_more(config):
    """And what was stored for a run with fewer still counts as trained."""
    few, many = (load_config(config, ["TRAIN.BATCH_SIZE", n]) for n in ("1", "3"))
    assert [Training(cfg).cfg.TRAIN.BATCH_SIZE for cfg in (few, many)] == [2, 3]
    assert "clips" not in plain_unet.inputs_of(few)
    assert plain_unet.inputs_of(many)["clips"] == 3


def test_it_has_the_optimiser_of_the_run(config):
    """And one that had another optimiser does not count as trained."""
    adamw, muon = (load_config(config, ["TRAIN.OPTIM.NAME", name]) for name in ("adamw", "muon"))
    kinds = [type(Training(cfg).optimizer) for cfg in (adamw, muon)]
    assert kinds == [torch.optim.AdamW, Muon]
    assert plain_unet.inputs_of(adamw) != plain_unet.inputs_of(muon)


class StopAfter:
    """A signal that comes in a step; it is looked for once after each."""

    def __init__(self, steps):
        self.numbers = iter([0] * (steps - 1) + [signal.SIGTERM])

    @property
    def number(self):
        return next(self.numbers)


def test_steps_and_seed_decide_and_a_stop_changes_nothing(config):
    straight = trained(config, "straight", Budget(steps=4))
    halfway = trained(config, "stopped", Budget(steps=4), stop=StopAfter(2))
    assert (halfway["step"], halfway["is_finished"]) == (2, False)
    assert load_trained(load_config(config, ["EXP_NAME", "stopped"])) is None
    assert same(straight, trained(config, "stopped", Budget(steps=4)))
    assert not same(straight, trained(config, "seed", Budget(steps=4), "SEED", "6"))


def test_it_is_trained_once_for_equal_inputs(config, capsys):
    first = trained(config, "once", Budget(seconds=0.5))
    assert first["compute_s"] >= 0.5
    assert first["optimizer"]["param_groups"][0]["lr"] == pytest.approx(LR_END, rel=10)
    cfg = load_config(config, ["EXP_NAME", "once"])
    path = weights_path(cfg)
    before = path.stat().st_mtime_ns
    trained(config, "once", Budget(seconds=0.5), "VAL.TILE_SIZE", "32")
    assert "trained already" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == before
    other = load_trained(cfg)
    assert other.record["step"] == first["step"]
    assert len(other.record["sha256"]) == 64
    assert load_trained(load_config(config, ["EXP_NAME", "once", "DATA.NORM.MEAN", "0.9"])) is None
    assert trained(config, "once", Budget(steps=1))["step"] == 1
    assert "trained on other inputs or for another time" in capsys.readouterr().out
