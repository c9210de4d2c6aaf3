"""Training as a user runs it: resume, kill, several processes, dry run, errors."""

import json
import signal
import time

import pytest
import torch

from src.config import load_config
from src.run_directory import RunDirectory
from tests.training_cases import (
    assert_same_state,
    make_trainer,
    read_checkpoint,
    run_train,
    train_command,
    write_run,
)

STEPS_OF_THE_KILLED_RUN = 8


def test_f01_stop_and_resume_equals_straight_training(tmp_path):
    config = write_run(tmp_path)
    straight = make_trainer(config, "EXP_NAME", "straight")
    straight.fit()
    first = make_trainer(config, "EXP_NAME", "halves")
    first.total_steps = 2  # the schedule still spans four
    first.fit()
    assert read_checkpoint(tmp_path, "halves")["progress"]["step"] == 2
    second = make_trainer(config, "EXP_NAME", "halves", "TRAIN.NUM_WORKERS", "2")
    second.resume("auto")
    assert second.progress.step == 2
    second.fit()
    assert_same_state(read_checkpoint(tmp_path, "straight"), read_checkpoint(tmp_path, "halves"))


def test_f06_sigkill_in_the_middle_ends_with_the_same_weights(tmp_path, forks):
    config = write_run(tmp_path, TRAIN__MAX_STEPS=STEPS_OF_THE_KILLED_RUN, TRAIN__SAVE_EVERY=2)
    run_train(config, "EXP_NAME", "undisturbed")
    command = train_command(config, "EXP_NAME", "killed")
    last = tmp_path / "outputs" / "ckpts" / "killed" / "last.pth"
    process = forks(command)
    deadline = time.monotonic() + 120
    while not last.exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.output
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    killed_at = read_checkpoint(tmp_path, "killed")["progress"]["step"]
    assert 0 < killed_at < STEPS_OF_THE_KILLED_RUN  # the kill came in the middle
    output = run_train(config, "EXP_NAME", "killed")
    assert f"resumed at step {killed_at}" in output
    assert_same_state(read_checkpoint(tmp_path, "undisturbed"), read_checkpoint(tmp_path, "killed"))
    assert "finished already" in run_train(config, "EXP_NAME", "killed")


def test_two_processes_equal_one(tmp_path):
    config = write_run(tmp_path, TRAIN__MAX_STEPS=2)
    initial = make_trainer(config).model.state_dict()
    run_train(config, "EXP_NAME", "one", "TRAIN.GRADIENT_ACCUMULATION_STEPS", "2")
    run_train(config, "EXP_NAME", "two", "TRAIN.GRADIENT_ACCUMULATION_STEPS", "1", processes=2)
    one, two = read_checkpoint(tmp_path, "one"), read_checkpoint(tmp_path, "two")
    moved = 0.0
    for name, weight in one["model"].items():
        torch.testing.assert_close(weight, two["model"][name], rtol=1e-4, atol=1e-5, msg=name)
        if weight.is_floating_point():
            moved = max(moved, (weight - initial[name]).abs().max().item())
    assert moved > 1e-3  # training did change the weights


def test_a_run_leaves_scores_best_weights_pictures_and_a_record(tmp_path):
    config = write_run(
        tmp_path,
        TRAIN__MAX_STEPS=2,
        TRAIN__VAL_EVERY=1,
        TRAIN__VISUAL_EVERY=2,
        LOG__TENSORBOARD=True,
    )
    output = run_train(config)
    outputs = tmp_path / "outputs"
    scores = json.loads((outputs / "metrics" / "val_run_0000002.json").read_text())
    assert scores["num_frames"] == 5
    assert "PSNR" in scores["protocol"]
    best = torch.load(outputs / "ckpts" / "run" / "best.pth", weights_only=True)
    assert best["progress"]["best_psnr"] == pytest.approx(
        json.loads(
            (outputs / "metrics" / f"val_run_{best['progress']['best_step']:07d}.json").read_text()
        )["restored"]["mean_over_frames"]["psnr_rgb"]
    )
    assert list((outputs / "visuals" / "run" / "step_0000002").glob("*.png"))
    assert list((outputs / "logs" / "run").glob("events*"))
    record = next((outputs / "logs").glob("run_run_*.txt")).read_text()
    for words in ("== commit ==", "src/train.py", "torch==", "MAX_STEPS: 2"):
        assert words in record
    assert next((outputs / "logs").glob("train_*.log")).read_text().count("validation at step") == 2
    assert "validation at step 2" in output


def test_the_first_step_of_a_fresh_model_starts_from_plain_vrt(tmp_path):
    config = write_run(tmp_path)
    spike = make_trainer(config)
    plain = make_trainer(config, "MODEL.USE_SPIKE", "false")
    shared = {k: v for k, v in spike.model.state_dict().items() if k.startswith("vrt.")}
    assert shared.keys() == plain.model.state_dict().keys()
    assert all(torch.equal(v, plain.model.state_dict()[k]) for k, v in shared.items())


def test_f15_a_changed_configuration_is_refused_with_its_keys(tmp_path):
    config = write_run(tmp_path, TRAIN__MAX_STEPS=1)
    make_trainer(config).fit()
    changed = make_trainer(config, "TRAIN.OPTIM.LR", "0.1")
    with pytest.raises(ValueError, match=r"TRAIN\.OPTIM\.LR: the checkpoint has 0\.001"):
        changed.resume("auto")


def test_resume_never_keeps_the_earlier_run_aside(tmp_path):
    config = write_run(tmp_path, TRAIN__MAX_STEPS=1)
    make_trainer(config).fit()
    again = make_trainer(config)
    again.resume("never")
    assert again.progress.step == 0
    kept = list((tmp_path / "outputs" / "ckpts").glob("run.before-*/last.pth"))
    assert len(kept) == 1
    assert again.run.all_scores() == []  # a report would draw them as those of the new run
    assert list((tmp_path / "outputs" / "metrics").glob("run.before-*/val_run_0000001.json"))


def test_resume_from_a_path_keeps_what_the_run_had(tmp_path):
    config = write_run(tmp_path, TRAIN__MAX_STEPS=2)
    make_trainer(config).fit()
    earlier = tmp_path / "earlier.pth"
    state = read_checkpoint(tmp_path)
    state["progress"]["step"] = 1
    torch.save(state, earlier)
    again = make_trainer(config)
    again.resume(str(earlier))
    assert again.progress.step == read_checkpoint(tmp_path)["progress"]["step"] == 1
    kept = next((tmp_path / "outputs" / "ckpts").glob("run.before-*/last.pth"))
    assert torch.load(kept, weights_only=True)["progress"]["step"] == 2


def test_a_run_that_was_made_longer_goes_on_with_the_rate_of_its_new_schedule(tmp_path):
    config, longer = write_run(tmp_path), ("TRAIN.MAX_STEPS", "40")

    def after_two_steps(*overrides):
        trainer = make_trainer(config, *overrides)
        for _ in range(2):
            trainer.train_step.optimizer.step()
            trainer.train_step.schedule.step()
        return trainer

    first, resumed = after_two_steps(), make_trainer(config, *longer)
    resumed.checkpoints.load_state_dict(first.checkpoints.state_dict())
    rates = [
        [group["lr"] for group in trainer.train_step.optimizer.param_groups]
        for trainer in (first, resumed, after_two_steps(*longer))
    ]
    assert rates[0] != rates[1] == rates[2]


def test_f23_a_second_process_is_refused(tmp_path, forks):
    config = write_run(tmp_path)
    run = RunDirectory.of(load_config(config))
    with run.locked():
        done = forks(train_command(config))
        assert done.wait(120) == 1
    assert "run run is being trained by another process" in done.output
    assert "Traceback" not in done.output


def test_f14_a_finished_run_says_so(tmp_path, caplog):
    config = write_run(tmp_path, TRAIN__MAX_STEPS=1)
    make_trainer(config).fit()
    again = make_trainer(config)
    again.resume("auto")
    with caplog.at_level("INFO"):
        again.fit()
    assert "finished already: step 1 of 1" in caplog.text
    assert caplog.text.rstrip().endswith("last.pth; raise TRAIN.MAX_STEPS to train longer")


def test_a_wrong_configuration_ends_with_its_problems_and_no_traceback(tmp_path, forks):
    done = forks(train_command(write_run(tmp_path), "DATA.CLIP_LENGHT", "3"))
    assert done.wait(120) == 2
    assert "did you mean 'DATA.CLIP_LEN'?" in done.output
    assert "Traceback" not in done.output
