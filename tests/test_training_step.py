"""One optimiser step: accumulation, clipping, steps that are skipped, dropped samples, memory."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from src.data.normalization import Normalization, normalize_counts, to_unit
from src.engine.optim import WarmupCosine
from src.engine.processes import Ranks, choose_precision
from src.engine.progress import DroppedClips
from src.engine.step import (
    BatchTransfer,
    StepMemoryError,
    TrainingStep,
    seed_micro_batch,
    split_batch,
)
from tests.training_cases import CPU


class Mixer(nn.Module):
    """Adds a scaled mean of each frame's voxels to it; memory suffices for `room` clips."""

    def __init__(self, room: int = 100) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.5, 0.5, 0.5], dtype=torch.float32))
        self.room, self.seen, self.dtypes = room, [], set()

    def forward(self, blurry, voxels):
        if len(blurry) > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.seen.append(len(blurry))
        light = voxels.mean(dim=(2, 3, 4), keepdim=True)
        self.dtypes.add((self.scale[:, None] @ self.scale[None]).dtype)
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


BAD = SimpleNamespace(name="seq/000003", reason="truncated")
GAP = {"blur": None, "dropped": [BAD]}


def make_step(model: nn.Module, *, lr=0.1, precision=None, **options) -> TrainingStep:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return TrainingStep(
        model,
        squared_error,
        optimizer,
        WarmupCosine(optimizer, peak=lr, warmup_steps=0, total_steps=10, eta_min=0.0),
        precision or choose_precision("auto", CPU),
        BatchTransfer(CPU, Normalization(0.2, 0.7), (2, 4, 5)),
        Ranks(0, 1, CPU),
        **options,
    )


def test_four_micro_batches_equal_one_batch():
    whole = Mixer().double()
    split = copy.deepcopy(whole)
    batch = batch_of(4)
    one = make_step(whole)([batch], 0)
    four = make_step(split)([part for part, _ in split_batch(batch, 4)], 0)
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


def test_a_micro_batch_without_samples_adds_nothing():
    alone, with_gap, only_gap = Mixer(), Mixer(), Mixer()
    lone = make_step(alone, lr=0.05)([batch_of(1)], 0)  # half the gradient: one of two is there
    outcome = make_step(with_gap, lr=0.1)([GAP, batch_of(1)], 0)
    torch.testing.assert_close(alone.scale, with_gap.scale)
    assert outcome.names == ("dropped (seq/000003: truncated)", "s0:0")
    assert outcome.losses == lone.losses  # the mean is over what was there
    assert make_step(only_gap)([GAP], 0).losses["total"] == 0.0
    assert torch.equal(only_gap.scale, Mixer().scale)


def test_f54_precision_names_what_a_device_cannot_do(monkeypatch):
    assert choose_precision("auto", CPU).name == "fp32"
    for name in ("fp16", "bf16"):
        with pytest.raises(ValueError, match=f"{name} needs a GPU; on a CPU use auto or fp32"):
            choose_precision(name, CPU)
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    with pytest.raises(ValueError, match="bf16 is not supported by Tesla T4; use auto or fp16"):
        choose_precision("bf16", gpu)
    assert choose_precision("auto", gpu).name == "fp16"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert choose_precision("auto", gpu).name == choose_precision("bf16", gpu).name == "bf16"


def test_random_numbers_depend_on_seed_step_and_micro_batch_alone():
    def draw(*arguments):
        seed_micro_batch(*arguments)
        return torch.rand(1).item()

    keys = [(1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1), (2, 0, 0)]
    drawn = [draw(*key) for key in keys]
    assert len(set(drawn)) == 5
    assert drawn == [draw(*key) for key in keys]


def test_dropped_clips_are_tolerated_up_to_their_share():
    counter = DroppedClips(max_fraction=0.25, at_least=4, batch_size=1)
    counter.count([GAP])  # one of at least four
    counter.count([{"dropped": []}] * 8)
    counter.count([GAP])  # two of ten
    with pytest.raises(RuntimeError, match=r"3 of 11 samples .*0\.25; the last: seq/000003: trunc"):
        counter.count([GAP])


# ---------------------------------------------------------------- steps that do not fit


def test_f48_a_step_that_does_not_fit_is_repeated_in_parts_with_the_same_result(caplog):
    batches = [batch_of(3, seed=1), batch_of(3, seed=2)]
    large, small = Mixer(room=3), Mixer(room=1)
    whole, step = make_step(large, lr=0.05)(batches, 0), make_step(small, lr=0.05)
    parts = step(batches, 0)
    assert (large.seen, small.seen, step.pieces) == ([3, 3], [1] * 6, 3)
    torch.testing.assert_close(large.scale, small.scale, rtol=1e-6, atol=1e-7)
    assert whole.losses["total"] == pytest.approx(parts.losses["total"], rel=1e-5)
    assert "cut into 2 parts" in caplog.text


def test_f48_memory_that_lacks_in_the_update_ends_the_run():
    """Its gradients are unscaled already; float16 would not let them be unscaled again."""
    step, calls = make_step(Mixer()), []

    def out_of_memory(*_, **__):
        calls.append(1)
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")

    step.optimizer.step = out_of_memory
    with pytest.raises(StepMemoryError, match="in the update: CUDA out of memory"):
        step([batch_of(2)], 0)
    assert len(calls) == 1


@pytest.mark.parametrize(("may_retry", "clips"), [(True, 1), (False, 4)])
def test_f48_a_step_that_cannot_be_cut_names_the_settings(may_retry, clips):
    step = make_step(Mixer(room=0), may_retry=may_retry)
    with pytest.raises(StepMemoryError, match=rf"{clips} clip\(s\) of 2 frames") as caught:
        step([batch_of(clips)], 0)
    for words in ("Tried to allocate 2.00 GiB", "USE_CHECKPOINT_ATTN", "BATCH_SIZE", "CROP_SIZE"):
        assert words in str(caught.value)
