"""F41 to F45 and F48: numbers that are not finite, and a step that does not fit into memory."""

import json
import math
import shutil

import pytest
import torch
from torch import nn

from src.engine.checkpoint import load_checkpoint, named_tensors, save_checkpoint
from src.engine.progress import Progress
from src.engine.step import Precision, StepMemoryError, StepOutcome, split_batch
from tests.test_ranks import FAULTY, write_two_rank_run
from tests.test_training_step import Mixer, batch_of, make_step
from tests.training_cases import make_trainer, read_checkpoint, run_ranks, write_run

FINE = StepOutcome({"total": 0.5}, 1.0, True, ("s0:0",), {"all": 1e-3})
BROKEN = StepOutcome({"total": math.nan}, math.inf, False, ("s0:0",), {"all": 1e-3}, ("w",))


def spoil(trainer, steps: set[int]) -> None:
    """Make a gradient of these steps (from 0) NaN, the loss staying as it is."""
    weight = next(p for p in trainer.model.parameters() if p.requires_grad)
    weight.register_hook(lambda grad: grad * math.nan if trainer.progress.step in steps else grad)


def test_f41_f43_nan_in_gradients_alone_skips_the_step_and_nothing_moves(tmp_path):
    config = write_run(tmp_path, TRAIN__MAX_STEPS=3, TRAIN__EMA_DECAY=0.5, TRAIN__GRAD_CLIP=1.0)
    trainer, states = make_trainer(config), []
    spoil(trainer, {1})
    for batches in trainer.batches():
        outcome = trainer.step(batches)
        state = trainer.checkpoints.state_dict()
        states.append({part: _copy(state[part]) for part in ("model", "ema", "optimizer")})
        assert math.isfinite(outcome.losses["total"])
    assert trainer.progress.skipped_steps == 1
    assert _equal(states[0], states[1])  # weights, average and optimiser
    assert not _equal(states[1], states[2])
    assert trainer.train_step.schedule.last_epoch == 2  # of three steps


def test_f41_f45_nan_on_one_of_two_ranks_skips_the_step_on_both(tmp_path):
    config = write_two_rank_run(tmp_path, TRAIN__VAL_EVERY=1, TRAIN__EMA_DECAY=0.5)
    command = [str(FAULTY), "nan", "--config", str(config)]
    codes, output = run_ranks(command, tmp_path, processes=2)
    assert codes == [0, 0], output
    assert output.count("step 3 skipped, its gradients are not finite") == 2
    kept = [(tmp_path / f"digests_{rank}.jsonl").read_text() for rank in (0, 1)]
    assert kept[0] == kept[1]
    steps = [json.loads(line) for line in kept[0].splitlines()]
    assert [step["skipped"] for step in steps] == [0, 0, 1, 1]
    digests = [step["digest"] for step in steps]
    assert digests[1] == digests[2]  # weights, average and optimiser
    assert len(set(digests)) == 3
    for name in ("last.pth", "best.pth", "previous.pth"):
        state = load_checkpoint(tmp_path / "outputs" / "ckpts" / "run" / name)
        assert all(bool(tensor.isfinite().all()) for _, tensor in named_tensors(state))
        assert state["progress"]["best_psnr"] > 0


def test_f42_repeated_nan_stops_with_a_file_and_last_is_from_before(tmp_path):
    config = write_run(tmp_path, TRAIN__MAX_STEPS=40, TRAIN__GRADIENT_ACCUMULATION_STEPS=1)
    trainer = make_trainer(config)
    spoil(trainer, set(range(2, 40)))
    with pytest.raises(
        FloatingPointError, match="10 steps in a row .* names clips.*previous.pth or"
    ):
        trainer.fit()
    assert read_checkpoint(tmp_path)["progress"]["step"] == 2
    path = tmp_path / "outputs" / "logs" / "nonfinite_run_0000012.json"
    content = json.loads(path.read_text())
    steps = content["ranks"][0]
    assert [entry["step"] for entry in steps] == list(range(3, 13))
    assert all(len(entry["names"]) == 1 and len(entry["broken"]) == 1 for entry in steps)
    assert steps[0]["grad_norm"] == "nan"


def judge(trainer, *outcomes) -> None:
    for outcome in outcomes:
        trainer.progress.step += 1
        trainer.skipped.judge(outcome)


def test_f42_good_steps_between_start_the_count_over_and_a_resume_does_not(tmp_path):
    config = write_run(tmp_path)
    trainer = make_trainer(config)
    judge(trainer, *[BROKEN] * 9, FINE, *[BROKEN] * 9)
    trainer.save("last.pth")
    again = make_trainer(config)
    again.resume("auto")
    assert again.progress.skipped_steps == 18
    shutil.rmtree(again.run.logs, ignore_errors=True)
    again.run.logs.write_text("a file where the folder was")  # the reason is told all the same
    with pytest.raises(FloatingPointError, match=r"10 steps in a row .* could not be written \("):
        judge(again, BROKEN)


def test_f43_float16_may_skip_until_its_scale_is_used_up(tmp_path):
    trainer = make_trainer(write_run(tmp_path))
    scaler = trainer.skipped.scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    scaler.scale(torch.zeros(1))  # the scale is made at first use
    judge(trainer, *[BROKEN] * 15)
    scaler.update(0.5)
    with pytest.raises(FloatingPointError, match=r"float16's scale is 0\.5"):
        judge(trainer, BROKEN)


def test_f43_float16_halves_its_scale_at_a_gradient_that_is_not_finite():
    model = Mixer()
    step = make_step(model)
    step.precision = Precision("fp16", "cpu")
    step.scaler = step.precision.scaler()
    scale = 65536.0
    batch = batch_of(1)
    with torch.no_grad():
        model.scale[0] = 1e36  # the scaled gradient overflows
    before = model.scale.detach().clone()
    outcome = step([batch], 0)
    assert not outcome.is_finite
    assert outcome.broken == ("scale",)
    assert torch.equal(model.scale.detach(), before)
    assert step.scaler.get_scale() == scale / 2


def test_f45_nan_is_neither_saved_nor_best(tmp_path):
    path = tmp_path / "last.pth"
    good = {"model": {"w": torch.zeros(2)}, "progress": {"step": 1}}
    save_checkpoint(path, good)
    before = path.read_bytes()
    for part in ("model", "ema", "optimizer"):
        bad = {**good, part: {"state": [{"w": torch.tensor([0.0, math.nan])}]}}
        with pytest.raises(ValueError, match=rf"not finite .* {part}\.state\[0\]\.w"):
            save_checkpoint(path, bad)
    assert path.read_bytes() == before
    assert not Progress().is_best(math.nan)
    assert Progress().is_best(-math.inf)
    assert Progress(best_psnr=1.0).is_best(math.inf)
    assert not Progress(best_psnr=1.0).is_best(1.0)


class Greedy(nn.Module):
    """A mixer for which memory suffices for so many clips."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.mixer, self.room, self.seen = Mixer(), room, []

    def forward(self, blurry, voxels):
        if len(blurry) > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.seen.append(len(blurry))
        return self.mixer(blurry, voxels)


def guarded(trainer, model, batches):
    step = make_step(model, lr=0.05)
    return step, trainer.memory(step, batches, 0)


def test_f48_a_step_that_does_not_fit_is_repeated_in_parts_with_the_same_result(tmp_path, caplog):
    trainer = make_trainer(write_run(tmp_path))
    batches = [batch_of(3, seed=1), batch_of(3, seed=2)]
    large, small = Greedy(3), Greedy(1)
    _, whole = guarded(trainer, large, batches)
    _, parts = guarded(trainer, small, batches)
    assert large.seen == [3, 3]
    assert small.seen == [1] * 6
    assert trainer.memory.pieces == 3
    torch.testing.assert_close(large.mixer.scale, small.mixer.scale, rtol=1e-6, atol=1e-7)
    assert whole.losses["total"] == pytest.approx(parts.losses["total"], rel=1e-5)
    assert "cut into 2 parts" in caplog.text


def test_f48_memory_that_lacks_in_the_update_ends_the_run(tmp_path):
    """Its gradients are unscaled already; float16 would not let them be unscaled again."""
    trainer = make_trainer(write_run(tmp_path))
    model = Greedy(3)
    step = make_step(model)
    calls = []

    def out_of_memory(*_, **__):
        calls.append(1)
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")

    step.optimizer.step = out_of_memory
    with pytest.raises(StepMemoryError, match="in the update: CUDA out of memory"):
        trainer.memory(step, [batch_of(2)], 0)
    assert len(calls) == 1


def test_f48_shares_count_by_clips():
    batch = batch_of(3)
    parts = split_batch(batch, 2)
    assert [share for _, share in parts] == [2 / 3, 1 / 3]
    assert torch.equal(torch.cat([part["blur"] for part, _ in parts]), batch["blur"])
    gap = {"blur": None, "dropped": []}
    assert split_batch(gap, 2) == [(gap, 1.0)]


@pytest.mark.parametrize("may_retry", [True, False])
def test_f48_a_step_that_cannot_be_cut_names_the_settings(tmp_path, may_retry):
    trainer = make_trainer(write_run(tmp_path, TRAIN__OOM_RETRY=may_retry))
    clips = 1 if may_retry else 4
    with pytest.raises(StepMemoryError, match=rf"{clips} clip\(s\) of 2 frames") as caught:
        guarded(trainer, Greedy(0), [batch_of(clips)])
    for words in ("Tried to allocate 2.00 GiB", "USE_CHECKPOINT_ATTN", "BATCH_SIZE", "CROP_SIZE"):
        assert words in str(caught.value)


def _copy(value):
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copy(part) for key, part in value.items()}
    return [_copy(part) for part in value] if isinstance(value, list) else value


def _equal(first, second) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return all(_equal(first[key], second[key]) for key in first if key != "lr")
    if isinstance(first, list):
        return all(map(_equal, first, second))
    return first == second
