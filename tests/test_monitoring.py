"""What a run reports: times, the alignment's reach, the line of the log."""

import copy
import math
import re
import sys

import pytest
import torch
from torch import nn
from yacs.config import CfgNode

from src.config import get_defaults
from src.engine.alignment_watch import AlignmentWatch, Reach, alarms, scalars_of
from src.engine.log import TRACKERS, Clock, StepLog, open_trackers, profiled
from src.engine.progress import StepOutcome
from tests.training_cases import make_trainer, write_run
from third_party.VRT.models.deformable import FlowGuidedDeformConv
from third_party.VRT.models.warping import pixel_grid

CPU, NAN = torch.device("cpu"), math.nan


class Hand:
    """A clock that is set by hand."""

    seconds = 0.0

    def __call__(self):
        return self.seconds

    def spend(self, seconds):
        self.seconds += seconds


def test_time_left_by_hand():
    hand = Hand()
    clock = Clock(CPU, hand)
    assert clock.seconds_left(900, 1000, 100) is None  # resumed, nothing measured yet
    hand.spend(500)  # building the model is no step
    clock.start()
    hand.spend(30)
    clock.step_done()  # the slow first step is all there is
    assert clock.seconds_left(901, 1000, 100) == 30 * 99
    with clock.validation():
        hand.spend(50)
    hand.spend(2)
    clock.step_done()
    assert clock.step_s == 2  # validation is no part of a step
    for step, total, validations in (
        (906, 1000, 1), (800, 1000, 3), (801, 1050, 3), (1000, 1000, 1), (1050, 1050, 1),
    ):  # fmt: skip
        left = 2 * (total - step) + 50 * validations
        assert clock.seconds_left(step, total, 100) == left


def test_a_step_costs_the_seconds_of_the_cores_without_validation(monkeypatch):
    hand, cores = Hand(), Hand()
    monkeypatch.setattr("time.process_time", cores)
    clock = Clock(CPU, hand)
    cores.spend(500)
    clock.start()
    for seconds in (3, 4):  # more than the clock shows: two threads
        hand.spend(2)
        cores.spend(seconds)
        with clock.validation():
            cores.spend(50)
        clock.step_done()
        assert clock.compute_s == seconds


def test_a_profile_has_the_steps_after_the_second(tmp_path):
    with profiled(tmp_path, 1) as step_done:
        for number in range(4):
            (torch.add if number == 2 else torch.mul)(torch.ones(8), 1.0)
            step_done()
    table = (tmp_path / "profile.txt").read_text()
    assert "aten::add" in table
    assert "aten::mul" not in table
    assert (tmp_path / "trace.json.gz").stat().st_size > 100
    with profiled(tmp_path / "none", 0) as step_done:
        step_done()
    assert not (tmp_path / "none").exists()


def make_stage(max_residue=5.0) -> FlowGuidedDeformConv:
    torch.manual_seed(0)
    module = FlowGuidedDeformConv(4, 2, 2, max_residue)
    nn.init.normal_(module.conv_offset[6].weight, std=0.3)
    nn.init.normal_(module.conv_offset[6].bias, std=0.5)
    return module


def inputs_of(flow: float) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(1)
    frames = [torch.rand(3, 4, 6, 7, generator=g) for _ in range(3)]
    flows = [torch.zeros(3, 2, 6, 7) for _ in range(2)]
    flows[1][:, 0], flows[1][:, 1] = 0.6 * flow, 0.8 * flow
    return (*frames, *flows)


class Net(nn.Module):
    def __init__(self, stage):
        super().__init__()
        self.stage2 = nn.ModuleDict({"pa_deform": stage})

    def forward(self, *inputs):
        return self.stage2["pa_deform"](*inputs)


def test_reach_equals_the_positions_that_are_sampled():
    net, inputs = Net(make_stage()), inputs_of(flow=10.0)
    positions = []
    module = net.stage2["pa_deform"]
    sampling = module.sampling

    def kept(*arguments):
        positions.append(sampling(*arguments)[0])
        return sampling(*arguments)

    module.sampling = kept
    watch = AlignmentWatch(net)
    with watch.observing():
        net(*inputs)
    reach = watch.reaches()["stage2"]
    # From -1..1 back to pixels; then less the pixel itself, the tap of the kernel and the flow.
    size = torch.tensor([7.0, 6.0]).view(2, 1, 1, 1)
    sampled = (positions[0] + 1) * (size - 1) / 2
    taps = torch.tensor([[x, y] for y in (-1.0, 0.0, 1.0) for x in (-1.0, 0.0, 1.0)])
    centre = pixel_grid(inputs[0])[:, None] + taps.T[:, :, None, None]
    flows = torch.stack(inputs[3:], dim=1)[:, :, :, None]
    residue = sampled - centre - flows
    length = residue.pow(2).sum(dim=2).sqrt()
    assert reach.offset_mean == pytest.approx(length.mean().item(), rel=1e-4)
    assert reach.offset_max == pytest.approx(length.max().item(), rel=1e-4)
    assert reach.saturation == pytest.approx(residue.abs().mean().item() / 5, rel=1e-4)
    assert reach.flow_mean == pytest.approx(5.0)  # half of the flows are 10 pixels, half 0
    assert reach.pixel == 2.0


def test_watching_changes_nothing_and_leaves_nothing():
    net, inputs = Net(make_stage()), inputs_of(1.0)
    before = net(*inputs)
    watch = AlignmentWatch(net)
    with watch.observing():
        during = net(*inputs)
        during.sum().backward()
    assert torch.equal(before, during)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    net(*inputs)  # outside the block
    first = watch.reaches()
    copy.deepcopy(net)(*inputs)
    assert watch.reaches() == first
    with watch.observing():
        pass
    assert watch.reaches() == {}
    without = AlignmentWatch(nn.Conv2d(1, 1, 1))
    with without.observing():
        pass
    assert without.reaches() == {} == scalars_of({})


def test_f46_an_alignment_that_explodes_raises_an_alarm():
    net = Net(make_stage())
    watch = AlignmentWatch(net)

    def observed(flow):
        with watch.observing():
            net(*inputs_of(flow))
        return watch.reaches()

    assert alarms(observed(10.0)) == []
    (sentence,) = alarms(observed(60.0))  # a mean of 30 of its pixels is 60 at full resolution
    assert "stage2: the mean flow is 60 px at full resolution" in sentence
    nn.init.constant_(net.stage2["pa_deform"].conv_offset[6].bias, 3.0)
    reaches = observed(10.0)
    (sentence,) = alarms(reaches)
    assert re.match(r"stage2: the alignment offsets are at \d\d% of their bound", sentence)
    assert scalars_of(reaches)["alignment/alarms"] == 1
    for reach, words in (
        (Reach(NAN, NAN, 0.0, NAN, 1.0), "offsets;"),
        (Reach(NAN, NAN, NAN, NAN, 1.0), "offsets, mean flow;"),
        (Reach(0.1, 0.1, math.inf, 0.1, 1.0), "mean flow;"),  # reported once, not in pixels
    ):
        (sentence,) = alarms({"stage1": reach})
        assert sentence.startswith(f"stage1: not finite in the alignment: {words}")


def outcome(loss=0.5, *, is_finite=True, rates=None):
    rates = {"rest": 2e-4, "spynet": 2.5e-5} if rates is None else rates
    return StepOutcome({"total": loss}, 0.25, is_finite, ("a:0",), rates)


class KeptScalars:
    """Replaces TensorBoard."""

    def __init__(self):
        self.values = {}

    def add(self, step, values):
        self.values.update({tag: (step, value) for tag, value in values.items()})


def test_an_alarm_is_logged_when_it_begins(caplog):
    log = StepLog("exp", Clock(CPU))
    one, other = Reach(9.0, 10.0, 1.0, 0.9, 1.0), Reach(8.0, 10.0, 1.0, 0.8, 1.0)
    logged = []
    for reaches in ({"stage1": one}, {"stage1": other, "stage2": one}, {}, {"stage1": other}):
        caplog.clear()
        log.add(outcome(1.0))
        log.write(1, 10, 10, KeptScalars(), reaches)
        logged.append([r.getMessage()[12:18] for r in caplog.records if r.levelname == "WARNING"])
    assert logged == [["stage1"], ["stage2"], [], ["stage1"]]


def test_the_line_of_a_resumed_run_by_hand(caplog):
    """Steps 901 to 910 of 1000 take 2 s each, the first 30 s; a validation is due at the end."""
    hand, scalars = Hand(), KeptScalars()
    log = StepLog("exp", Clock(CPU, hand))
    for step in range(901, 911):
        with log.clock.measure("data"):
            hand.spend(0.5)
        with log.clock.measure("forward"):
            hand.spend(29.5 if step == 901 else 1.5)
        log.add(outcome(step - 900, is_finite=step != 910))
    saturated = Reach(9.0, 10.0, 1.0, 0.9, 1.0)
    with caplog.at_level("INFO"):
        log.write(910, 1000, 1000, scalars, {"stage1": saturated})
    line, alarm = caplog.messages
    assert line.startswith("exp step 910/1000: loss 5.00000, lr 2.00e-04, gradient 0.250, 2.000 s")
    assert line.endswith("left 03:00 without validation")  # how long one takes is not known yet
    assert "(data 10%, forward 90%)" in line
    assert alarm.startswith("exp step 910: stage1: the alignment offsets are at 90%")
    assert scalars.values["loss/total"] == (910, 5.0)  # the skipped step does not count
    assert scalars.values["time/data_s"] == (910, 0.5)
    assert scalars.values["lr/spynet"] == (910, 2.5e-5)
    assert scalars.values["alignment/alarms"] == (910, 1.0)
    hand.spend(2)
    log.add(outcome(7.0))
    with log.clock.validation():
        hand.spend(60)
    with caplog.at_level("INFO"):
        log.write(911, 1000, 1000, scalars, {})
    assert caplog.messages[-1].endswith("left 03:58")  # 89 steps of 2 s, one validation of 60 s
    assert scalars.values["loss/total"] == (911, 7.0)  # started over


TRACKER = """
calls = []
def init(**options): calls.append(options)
def log(values, step):
    if step > 1: raise ConnectionError("the service is gone")
    calls.append((step, values))
def finish(): calls.append("finished")
"""


def install(monkeypatch, folder, name, code):
    """Let `import name` find a module of this code until the test ends."""
    (folder / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(sys.modules, name, None)
    del sys.modules[name]


@pytest.mark.parametrize("name", TRACKERS)
def test_scalars_go_to_a_tracker(name, tmp_path, monkeypatch):
    """A run that asks for it sends its scalars; a service that breaks does not end the run."""
    install(monkeypatch, tmp_path, name, TRACKER)
    config = write_run(tmp_path / "run", TRAIN__MAX_STEPS=2, TRAIN__LOG_EVERY=1)
    assert make_trainer(config, f"LOG.{name.upper()}", "true").fit() == 0
    begun, (step, values), *others = sys.modules[name].calls
    title, folder = TRACKERS[name]
    assert begun[title] == "run"
    assert str(tmp_path / "run/outputs/logs/run") in begun[folder]
    assert begun["config"]["TRAIN"]["MAX_STEPS"] == 2
    assert step == 1
    table = (tmp_path / "run/outputs/logs/run/scalars.csv").read_text(encoding="utf-8")
    assert f"1,loss/total,{values['loss/total']}" in table
    assert "2,loss/total," in table
    assert not others  # neither scalars nor `finish` after the service has failed


def test_a_tracker_that_is_wanted_must_work(tmp_path, monkeypatch):
    wanted = CfgNode({"WANDB": True, "SWANLAB": False})
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it was not installed
    with pytest.raises(RuntimeError, match="LOG.WANDB is true, but .*; pip install wandb, or"):
        open_trackers(wanted, "run", tmp_path, {})
    wanted.WANDB, wanted.SWANLAB = False, True
    code = TRACKER.replace("calls.append(options)", "raise KeyError('no account')")
    install(monkeypatch, tmp_path, "swanlab", code)
    with pytest.raises(RuntimeError, match=r"LOG.SWANLAB .*no account.*SWANLAB_MODE=offline"):
        open_trackers(wanted, "run", tmp_path, {})
    assert open_trackers(get_defaults().LOG, "run", tmp_path, {}) == []
