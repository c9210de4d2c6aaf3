"""Parts that are frozen at first: bit for bit the run that does not touch them, also resumed."""

import copy

import pytest
import torch
from torch import nn

from src.config import get_defaults
from src.engine.optim import (
    PartRule,
    build_optimizer,
    build_schedule,
    freeze,
    optimizer_groups,
)
from tests.training_cases import (
    assert_same_state,
    make_trainer,
    read_checkpoint,
    resumed,
    run_train,
    write_run,
)

JOINS_AT = 2
RECIPE = {
    "MODEL__SPYNET": "",
    "TRAIN__GROUPS__SPYNET__FREEZE_STEPS": JOINS_AT,
    "TRAIN__GROUPS__SPYNET__LR_MULTIPLIER": 0.125,
    "TRAIN__GROUPS__DEFORM__FREEZE_STEPS": 1,
    "TRAIN__GROUPS__DEFORM__LR_MULTIPLIER": 0.5,
}


class Parts(nn.Module):
    """A flow estimator, a deformable part and the rest, one weight each."""

    def __init__(self) -> None:
        super().__init__()
        self.spynet = nn.Linear(1, 1, bias=False)
        self.stage1 = nn.ModuleDict({"pa_deform": nn.Linear(1, 1, bias=False)})
        self.body = nn.Linear(1, 1, bias=False)

    def forward(self, x):
        return self.body(self.stage1["pa_deform"](self.spynet(x)))


def config(**keys):
    cfg = get_defaults()
    for name, value in keys.items():
        part, key = name.split("__")
        cfg.TRAIN.GROUPS[part][key] = value
    return cfg


def test_parts_get_groups_of_their_own_in_a_fixed_order():
    model = Parts()
    rules = [PartRule("spynet", 3, 0.125), PartRule("deform", 3, 0.5)]
    groups = optimizer_groups(model, rules, lr=8.0)
    assert [(g["name"], g["lr"], len(g["params"])) for g in groups] == [
        ("rest", 8.0, 1),
        ("spynet", 1.0, 1),
        ("deform", 4.0, 1),
    ]
    (only,) = optimizer_groups(model, [], lr=8.0)
    assert only.keys() == {"params", "lr"}  # as in checkpoints from before there were groups
    assert only["params"] == list(model.parameters())
    freeze(model, ["spynet"])
    with pytest.raises(ValueError, match=r"TRAIN\.GROUPS\.SPYNET: the model has no trained param"):
        optimizer_groups(model, rules, lr=8.0)


def test_every_group_follows_the_schedule_at_its_share():
    cfg = config(SPYNET__LR_MULTIPLIER=0.125)
    cfg.TRAIN.OPTIM.LR, cfg.TRAIN.SCHED.ETA_MIN, cfg.TRAIN.SCHED.WARMUP_STEPS = 8.0, 0.8, 2
    optimizer = build_optimizer(Parts(), cfg)
    schedule = build_schedule(optimizer, cfg, total_steps=4)
    rates = []
    for _ in range(4):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert rates == [pytest.approx(r) for r in ([4.0, 0.5], [8.0, 1.0], [8.0, 1.0], [0.8, 0.1])]


@pytest.mark.parametrize("stop", [JOINS_AT - 1, JOINS_AT, JOINS_AT + 1])
def test_f05_resume_around_the_step_at_which_a_part_joins(straight, stop):
    folder, file = straight
    name = f"stopped_{stop}"
    first = make_trainer(file, "EXP_NAME", name)
    first.total_steps = stop
    first.fit()
    second = resumed(file, "EXP_NAME", name)
    assert second.progress.step == stop
    second.fit()
    assert_same_state(read_checkpoint(folder, "straight"), read_checkpoint(folder, name))


@pytest.fixture(scope="module", name="straight")
def _straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unfreeze")
    file = write_run(folder, **RECIPE)
    trainer = make_trainer(file, "EXP_NAME", "straight")
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.fit()
    after = trainer.model.state_dict()
    moved = [name for name in after if not torch.equal(after[name], before[name])]
    assert any("spynet." in name for name in moved)
    assert any("pa_deform." in name for name in moved)
    return folder, file


def test_f05_a_run_does_not_touch_the_part_before_it_joins(straight):
    _, file = straight
    overrides = ("TRAIN.MAX_STEPS", "2")
    groups = make_trainer(file, "EXP_NAME", "later", *overrides)
    twin = make_trainer(
        file, "EXP_NAME", "never", *overrides, "TRAIN.FREEZE", "[spynet]",
        "TRAIN.GROUPS.SPYNET.FREEZE_STEPS", "0", "TRAIN.GROUPS.SPYNET.LR_MULTIPLIER", "1",
    )  # fmt: skip
    for trainer in (groups, twin):
        trainer.fit()
    ours, other = groups.model.state_dict(), twin.model.state_dict()
    assert all(torch.equal(ours[name], other[name]) for name in other)


LAST = JOINS_AT + 1


@pytest.mark.parametrize(
    "stops",
    [(JOINS_AT, LAST), pytest.param((JOINS_AT - 1, JOINS_AT, LAST), marks=pytest.mark.nightly)],
)
def test_f05_two_ranks_with_recomputation_cross_the_step(tmp_path, stops):
    """Non-reentrant checkpointing under DDP, stopped at the step; nightly before it, too."""
    # A run that is made longer follows the longer schedule, which is constant here.
    constant = {"TRAIN__SCHED__WARMUP_STEPS": 0, "TRAIN__SCHED__ETA_MIN": 1e-3}
    recompute = {"MODEL__USE_CHECKPOINT_ATTN": True, "MODEL__USE_CHECKPOINT_FFN": True}
    steps = {"TRAIN__MAX_STEPS": LAST, "TRAIN__SAVE_EVERY": LAST}
    file = write_run(tmp_path, **RECIPE, **constant, **recompute, **steps)
    output = run_train(file, "EXP_NAME", "straight", processes=2)
    assert f"step {JOINS_AT}: spynet is trained from here on" in output
    for stop in stops:
        run_train(file, "EXP_NAME", "stopped", "TRAIN.MAX_STEPS", str(stop), processes=2)
        assert read_checkpoint(tmp_path, "stopped")["progress"]["step"] == stop
    assert_same_state(read_checkpoint(tmp_path, "straight"), read_checkpoint(tmp_path, "stopped"))
