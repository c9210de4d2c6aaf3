"""F41 to F45: numbers that are not finite."""

import json
import math
import shutil

import pytest
import torch

from src.engine.checkpoint import load_checkpoint, named_tensors, save_checkpoint
from src.engine.processes import Precision
from src.engine.progress import Progress, StepOutcome
from tests.test_ranks import FAULTY, write_two_rank_run
from tests.test_training_step import Mixer, batch_of, make_step
from tests.training_cases import (
    make_trainer,
    read_checkpoint,
    resumed,
    run_ranks,
    write_run,
)

FINE = StepOutcome({"total": 0.5}, 1.0, True, ("s0:0",), {"all": 1e-3})
BROKEN = StepOutcome({"total": math.nan}, math.inf, False, ("s0:0",), {"all": 1e-3}, ("w",))


def spoil(trainer, steps: set[int]) -> None:
    """Make a gradient of these steps (from 0) NaN; the loss is unchanged."""
    weight = next(p for p in trainer.model.parameters() if p.requires_grad)
    weight.register_hook(lambda grad: grad * math.nan if trainer.progress.step in steps else grad)


def test_f41_f45_nan_on_one_of_two_ranks_skips_the_step_on_both(tmp_path):
    config = write_two_rank_run(tmp_path, TRAIN__VAL_EVERY=2, TRAIN__EMA_DECAY=0.5)
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
    trainer = make_trainer(write_run(tmp_path, TRAIN__MAX_STEPS=40, TRAIN__SAVE_EVERY=1))
    spoil(trainer, set(range(2, 40)))
    with pytest.raises(FloatingPointError, match=r"10 steps in a row .*previous\.pth or") as caught:
        trainer.fit()
    assert read_checkpoint(tmp_path)["progress"]["step"] == 2
    path = tmp_path / "outputs" / "logs" / "nonfinite_run_0000012.json"
    assert str(path) in str(caught.value)
    (steps,) = json.loads(path.read_text())["ranks"]
    assert [entry["step"] for entry in steps] == list(range(3, 13))
    assert all(len(entry["names"]) == 1 and len(entry["broken"]) == 1 for entry in steps)
    assert steps[0]["grad_norm"] == "NaN"


def judge(trainer, *outcomes) -> None:
    for outcome in outcomes:
        trainer.progress.step += 1
        trainer.skipped.judge(outcome)


def test_f42_good_steps_between_restart_the_count_and_a_resume_does_not(tmp_path):
    config = write_run(tmp_path)
    trainer = make_trainer(config)
    judge(trainer, *[BROKEN] * 9, FINE, *[BROKEN] * 9)
    trainer.save("last.pth")
    again = resumed(config)
    assert again.progress.skipped_steps == 18
    shutil.rmtree(again.run.logs, ignore_errors=True)
    again.run.logs.write_text("a file where the folder was")  # the reason is reported all the same
    with pytest.raises(FloatingPointError, match=r"10 steps in a row .* could not be written \("):
        judge(again, BROKEN)


def test_f43_float16_may_skip_until_its_scale_is_used_up(tmp_path):
    trainer = make_trainer(write_run(tmp_path))
    scaler = trainer.skipped.scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    scaler.scale(torch.zeros(1))  # the scale exists from the first use on
    judge(trainer, *[BROKEN] * 15)
    scaler.update(0.5)
    with pytest.raises(FloatingPointError, match=r"float16's scale is 0\.5"):
        judge(trainer, BROKEN)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_f41_f43_a_step_that_is_not_finite_changes_nothing_but_the_scale(precision):
    model = Mixer()
    step = make_step(model, precision=Precision(precision, "cpu"))
    with torch.no_grad():
        model.scale[0] = 1e36  # the gradient, or the scaled one, overflows
    before = model.scale.detach().clone()
    outcome = step([batch_of(1)], 0)
    assert not outcome.is_finite
    assert torch.equal(model.scale.detach(), before)
    assert step.schedule.last_epoch == 0  # the schedule did not advance either
    if precision == "fp16":
        assert outcome.broken == ("scale",)
        assert step.scaler.get_scale() == 65536.0 / 2


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
