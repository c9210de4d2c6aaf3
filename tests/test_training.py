"""Training as a user runs it: resume, kill, several processes, what a run leaves, errors."""

import json
import signal

import pytest
import torch

from src.config import load_config
from src.run_directory import RunDirectory
from tests.training_cases import (
    assert_same_state,
    checkpoint_of,
    make_trainer,
    read_checkpoint,
    resumed,
    run_train,
    train_command,
    wait_for,
    write_run,
)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_f01_f02_stop_and_resume_equals_straight_training(tmp_path, optimizer):
    """Also of the averaged weights, with other loader processes, over the edge of an epoch."""
    # 8 clips, 3 a step: step 2 is inside the first epoch, step 3 crosses its edge.
    changes = {"TRAIN__OPTIM__NAME": optimizer, "TRAIN__EMA_DECAY": 0.5, "TRAIN__BATCH_SIZE": 3}
    config = write_run(tmp_path, **changes)
    make_trainer(config, "EXP_NAME", "straight").fit()
    first = make_trainer(config, "EXP_NAME", "halves")
    first.total_steps = 2  # the schedule still spans four
    first.fit()
    assert read_checkpoint(tmp_path, "halves")["progress"]["step"] == 2
    second = resumed(config, "EXP_NAME", "halves", "TRAIN.NUM_WORKERS", "2")
    assert second.progress.step == 2
    second.fit()
    straight = read_checkpoint(tmp_path, "straight")
    assert_same_state(straight, read_checkpoint(tmp_path, "halves"))
    key = "vrt.conv_last.weight"
    assert not torch.equal(straight["ema"][key], straight["model"][key])


def test_f06_sigkill_in_the_middle_ends_with_the_same_weights(tmp_path, forks):
    config = write_run(tmp_path, TRAIN__MAX_STEPS=6, TRAIN__SAVE_EVERY=2)
    run_train(config, "EXP_NAME", "undisturbed")
    process = forks(train_command(config, "EXP_NAME", "killed"))
    wait_for(checkpoint_of(tmp_path, "killed").exists, process)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    killed_at = read_checkpoint(tmp_path, "killed")["progress"]["step"]
    assert 0 < killed_at < 6  # the kill came in the middle
    output = run_train(config, "EXP_NAME", "killed")
    assert f"resumed at step {killed_at}" in output
    assert_same_state(read_checkpoint(tmp_path, "undisturbed"), read_checkpoint(tmp_path, "killed"))


def test_a_run_leaves_scores_best_weights_pictures_and_a_record(tmp_path):
    output = run_train(
        write_run(
            tmp_path,
            TRAIN__MAX_STEPS=2,
            TRAIN__VAL_EVERY=1,
            TRAIN__VISUAL_EVERY=2,
            LOG__TENSORBOARD=True,
        )
    )
    outputs = tmp_path / "outputs"
    scores = [
        json.loads((outputs / "metrics" / f"val_run_000000{step}.json").read_text())
        for step in (1, 2)
    ]
    assert scores[1]["num_frames"] == 5
    assert "PSNR" in scores[1]["protocol"]
    table = (outputs / "logs/run/scalars.csv").read_text()
    assert "2,val/psnr_rgb," in table
    assert "2,loss/total," in table
    best = torch.load(outputs / "ckpts/run/best.pth", weights_only=True)["progress"]
    stated = scores[best["best_step"] - 1]["restored"]["mean_over_frames"]["psnr_rgb"]
    assert best["best_psnr"] == pytest.approx(stated)
    assert list((outputs / "visuals/run/step_0000002").glob("*.png"))
    shown = [path.name for path in sorted((outputs / "visuals/run/seq_000").iterdir())]
    assert [name.partition("_")[2] for name in shown] == ["blur.png", "recon.png", "sharp.png"]
    assert list((outputs / "logs/run").glob("events*"))
    record = next((outputs / "logs").glob("run_run_*.txt")).read_text()
    for words in ("== commit ==", "src/train.py", "torch==", "MAX_STEPS: 2"):
        assert words in record
    assert next((outputs / "logs").glob("train_*.log")).read_text().count("validation at step") == 2
    assert "validation at step 2" in output


def test_f14_f15_a_finished_run_reports_it_and_a_changed_configuration_is_an_error(
    tmp_path, caplog
):
    config = write_run(tmp_path, TRAIN__MAX_STEPS=1)
    make_trainer(config).fit()
    again = resumed(config)
    with caplog.at_level("INFO"):
        assert again.fit() == 0
    assert "finished already: step 1 of 1" in caplog.text
    assert "raise TRAIN.MAX_STEPS to train longer" in caplog.text
    with pytest.raises(ValueError, match=r"TRAIN\.OPTIM\.LR: the checkpoint has 0\.001"):
        resumed(config, "TRAIN.OPTIM.LR", "0.1")
    never = resumed(config, choice="never")
    assert never.progress.step == 0
    outputs = tmp_path / "outputs"
    assert len(list((outputs / "ckpts").glob("run.before-*/last.pth"))) == 1
    assert never.run.all_scores() == []  # a report would draw them as those of the new run
    assert list((outputs / "metrics").glob("run.before-*/val_run_0000001.json"))


def test_a_longer_run_continues_at_the_rate_of_its_new_schedule(tmp_path):
    config = write_run(tmp_path)
    first, later = make_trainer(config), make_trainer(config, "TRAIN.MAX_STEPS", "40")
    for _ in range(3):
        first.train_step.optimizer.step()
        first.train_step.schedule.step()
    later.checkpoints.load_state_dict(first.checkpoints.state_dict())
    steps = [trainer.train_step for trainer in (first, later)]
    rates = [step.optimizer.param_groups[0]["lr"] for step in steps]
    assert rates[1] == steps[1].schedule.get_last_lr()[0] > 100 * rates[0]


def test_f23_a_second_process_is_rejected(tmp_path, forks):
    config = write_run(tmp_path)
    with RunDirectory.of(load_config(config)).locked():
        done = forks(train_command(config))
        assert done.wait(120) == 1
    assert "run run is being trained by another process" in done.output
    assert "Traceback" not in done.output
