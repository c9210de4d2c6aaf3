"""One optimiser step: accumulation, clipping, steps that are skipped, what dropped samples do."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from src.data.normalization import Normalization, normalize_counts, to_unit
from src.engine.optim import GradientRules, WarmupCosine, freeze
from src.engine.progress import DroppedClips
from src.engine.step import BatchPlacer, Precision, StepDraws, TrainingStep, choose_precision

CPU = torch.device("cpu")


class Mixer(nn.Module):
    """Adds a scaled mean of each frame's voxels to it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.5, 0.5, 0.5], dtype=torch.float32))

    def forward(self, blurry, voxels):
        light = voxels.mean(dim=(2, 3, 4), keepdim=True)
        return blurry + self.scale.view(3, 1, 1) * light


def squared_error(restored, sharp):
    loss = (restored - sharp).square().mean()
    return loss, {"charbonnier": loss}


def batch_of(clips: int, seed: int = 0) -> dict:
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (2, clips, 2, 3, 4, 4), generator=g, dtype=torch.uint8)
    counts = torch.randint(0, 3, (clips, 2, 5, 4, 4), generator=g, dtype=torch.uint8)
    meta = [{"seq": f"s{i}", "frame_idx": [i, i + 1]} for i in range(clips)]
    return {
        "blur": images[0], "sharp": images[1], "spike_vox": counts, "meta": meta, "dropped": [],
    }  # fmt: skip


def part_of(batch: dict, clips: slice) -> dict:
    return {name: value[clips] for name, value in batch.items()}


def make_step(model: nn.Module, *, lr=0.1, grad_clip=0.0, precision=None) -> TrainingStep:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    schedule = WarmupCosine(optimizer, peak=lr, warmup_steps=0, total_steps=10, eta_min=0.0)
    return TrainingStep(
        model,
        squared_error,
        optimizer,
        schedule,
        precision or choose_precision("auto", CPU),
        BatchPlacer(CPU, Normalization(0.2, 0.7), (2, 4, 5)),
        GradientRules(grad_clip),
        StepDraws(1),
    )


def test_four_micro_batches_equal_one_batch():
    whole = Mixer().double()
    split = copy.deepcopy(whole)
    batch = batch_of(4)
    one = make_step(whole)([batch], 0)
    four = make_step(split)([part_of(batch, slice(i, i + 1)) for i in range(4)], 0)
    torch.testing.assert_close(whole.scale, split.scale, rtol=0, atol=1e-7)
    assert one.losses["total"] == pytest.approx(four.losses["total"], rel=1e-6)
    assert four.names == ("s0:0", "s1:1", "s2:2", "s3:3")


def test_step_equals_the_obvious_loop():
    model, twin = Mixer(), Mixer()
    batch = batch_of(2)
    outcome = make_step(model, grad_clip=0.01)([batch], 0)
    blurry, sharp = to_unit(batch["blur"]), to_unit(batch["sharp"])
    voxels = normalize_counts(batch["spike_vox"], Normalization(0.2, 0.7))
    loss, _ = squared_error(twin(blurry, voxels), sharp)
    loss.backward()
    gradient = twin.scale.grad
    assert outcome.grad_norm == pytest.approx(gradient.norm().item(), rel=1e-5)
    assert outcome.grad_norm > 0.01  # so that clipping does something
    expected = twin.scale.detach() - 0.1 * 0.01 * gradient / gradient.norm()
    torch.testing.assert_close(model.scale.detach(), expected, rtol=1e-5, atol=1e-7)


def test_f41_a_step_that_is_not_finite_changes_nothing():
    model = Mixer()
    step = make_step(model)
    with torch.no_grad():
        model.scale[0] = math.nan
    before = model.scale.detach().clone()
    outcome = step([batch_of(1)], 0)
    assert not outcome.is_finite
    torch.testing.assert_close(model.scale.detach(), before, equal_nan=True)
    assert step.schedule.last_epoch == 0  # the schedule did not advance either


def test_a_micro_batch_without_samples_adds_nothing():
    alone, with_gap = Mixer(), Mixer()
    bad = SimpleNamespace(name="seq/000003", reason="truncated")
    nothing = {"blur": None, "dropped": [bad]}
    batch = batch_of(1)
    lone = make_step(alone, lr=0.05)([batch], 0)  # half the gradient: one of two is there
    outcome = make_step(with_gap, lr=0.1)([nothing, batch], 0)
    torch.testing.assert_close(alone.scale, with_gap.scale)
    assert outcome.names == ("dropped (seq/000003: truncated)", "s0:0")
    assert outcome.losses == lone.losses  # the mean is over what was there
    only_gaps = Mixer()
    before = only_gaps.scale.detach().clone()
    assert make_step(only_gaps)([nothing], 0).losses["total"] == 0.0
    assert torch.equal(only_gaps.scale.detach(), before)


def test_bf16_autocast_reaches_the_model():
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, blurry, voxels):
            result = self.linear(blurry)
            seen.append(result.dtype)
            return result

    assert make_step(Spy(), precision=Precision("bf16", "cpu"))([batch_of(1)], 0).is_finite
    assert seen == [torch.bfloat16]


def test_f54_precision_says_what_a_cpu_cannot_do():
    assert choose_precision("auto", CPU).name == "fp32"
    for name in ("fp16", "bf16"):
        with pytest.raises(ValueError, match=f"{name} needs a GPU; on a CPU use auto or fp32"):
            choose_precision(name, CPU)


def test_random_numbers_are_a_function_of_run_step_and_place():
    def draw(draws, step, micro_batch):
        draws.seed(step, micro_batch)
        return torch.rand(1).item()

    one = [draw(StepDraws(1), step, micro) for step in (0, 1) for micro in (0, 1)]
    assert len({*one, draw(StepDraws(2), 0, 0)}) == 5
    two = [draw(StepDraws(1, rank, 2), step, 0) for step in (0, 1) for rank in (0, 1)]
    assert one == two  # one rank with two micro-batches, two ranks with one


def test_frozen_parts_are_found_by_name():
    model = nn.ModuleDict(
        {"spynet": nn.Linear(1, 1), "stage1": nn.ModuleDict({"pa_deform": nn.Linear(1, 1)})}
    )
    freeze(model, ["spynet"])
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == [
        "spynet.weight",
        "spynet.bias",
    ]


def test_dropped_clips_are_tolerated_up_to_their_share():
    bad = SimpleNamespace(name="seq/000003", reason="truncated")
    counter = DroppedClips(max_fraction=0.25, at_least=4, batch_size=1)
    counter.count([{"dropped": [bad]}])  # one of at least four
    counter.count([{"dropped": []}] * 8)
    counter.count([{"dropped": [bad]}])  # two of ten
    with pytest.raises(RuntimeError, match=r"3 of 11 samples .*0\.25; the last: seq/000003: trunc"):
        counter.count([{"dropped": [bad]}])
