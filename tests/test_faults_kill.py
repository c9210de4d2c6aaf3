"""F02, F04, F06, F17: runs that go on, and that are killed again and again."""

import re
import shutil
import subprocess
import sys
import time

import pytest
import torch

from src.data.samplers import epoch_order
from src.paths import REPO_ROOT
from tests.training_cases import (
    assert_same_state,
    make_trainer,
    one_thread,
    read_checkpoint,
    run_train,
    write_run,
)

NUM_KILLS, SECONDS, STEPS = 20, 120, 60


@pytest.mark.slow
def test_f06_random_kills_end_with_the_same_weights(tmp_path):
    config = write_run(
        tmp_path,
        TRAIN__MAX_STEPS=STEPS,
        TRAIN__SAVE_EVERY=2,
        TRAIN__VAL_EVERY=10,
        TRAIN__GRADIENT_ACCUMULATION_STEPS=1,
        TRAIN__EMA_DECAY=0.9,
    )
    run_train(config, "EXP_NAME", "straight")
    done = subprocess.run(
        [
            *(sys.executable, str(REPO_ROOT / "tests" / "kill_cases.py")),
            *(str(config), str(NUM_KILLS), str(SECONDS)),
        ],
        env=one_thread(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    told = re.search(r"killed (\d+) of \d+ times \((.*)\), then exit (\d+)", done.stdout)
    assert told is not None, done.stdout + done.stderr
    resumed = len(re.findall(r"resumed at step [1-9]", done.stdout + done.stderr))
    print(f"{told[0]}; {resumed} starts resumed")  # noqa: T201 (it depends on the machine)
    assert resumed >= 1  # else straight runs would be compared
    wanted = 3 if told[2].endswith("s were over") else NUM_KILLS // 2  # at its end: a fast machine
    assert int(told[1]) >= wanted, told[0]
    assert told[3] == "0", done.stdout
    straight, killed = read_checkpoint(tmp_path, "straight"), read_checkpoint(tmp_path, "killed")
    assert_same_state(straight, killed)
    assert straight["progress"] == killed["progress"]  # the best score and its step, too
    assert straight["ema"].keys() == killed["ema"].keys()
    assert all(bool((killed["ema"][key] == value).all()) for key, value in straight["ema"].items())


def go_on_from_the_middle(folder, config, run: str, *overrides: str, processes: int = 1) -> dict:
    """Resume the straight run's checkpoint of step 2 of 4 under another name; return the end."""
    checkpoints = folder / "outputs" / "ckpts"
    (checkpoints / run).mkdir()
    shutil.copy(checkpoints / "straight" / "previous.pth", checkpoints / run / "last.pth")
    output = run_train(config, "EXP_NAME", run, *overrides, processes=processes)
    assert "resumed at step 2" in output
    return read_checkpoint(folder, run)


BROKEN_WRITES = [sys.executable, str(REPO_ROOT / "tests" / "broken_writes.py")]


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_f07_sigkill_while_a_large_checkpoint_grows_leaves_the_older_one(tmp_path, processes):
    trainer = make_trainer(write_run(tmp_path))
    trainer.step(next(trainer.batches()))
    assert trainer.save("last.pth")
    folder = trainer.run.checkpoints
    before = (folder / "last.pth").read_bytes()
    process = processes([*BROKEN_WRITES, "large", str(folder)])
    assert process.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size > 1_000_000 for path in folder.glob(".partial-*")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stdout.read()
    process.kill()
    assert process.wait() < 0  # it had not come to its end
    (half,) = folder.glob(".partial-*-last.pth")
    assert half.stat().st_size > 1_000_000
    assert (folder / "last.pth").read_bytes() == before
    again = make_trainer(tmp_path / "run.yaml")
    with again.run.locked():
        again.resume("auto")
    assert again.progress.step == 1
    assert not list(folder.glob(".partial-*"))


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_f07_sigkill_before_any_call_of_the_writing_leaves_a_whole_file(tmp_path):
    done = subprocess.run(
        [*BROKEN_WRITES, "points", str(tmp_path / "run")],
        env=one_thread(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    # torch.save, link, two of flush and rename each; then one without a kill
    assert done.stdout.split() == ["2"] * 4 + ["3"] * 4


@pytest.mark.slow
def test_f02_resume_with_other_workers_across_the_edge_of_an_epoch(tmp_path):
    # 8 clips, 3 a step: step 2 is inside the first epoch, step 3 crosses its edge.
    config = write_run(
        tmp_path, TRAIN__SAVE_EVERY=2, TRAIN__BATCH_SIZE=3, TRAIN__GRADIENT_ACCUMULATION_STEPS=1
    )
    run_train(config, "EXP_NAME", "straight", "TRAIN.NUM_WORKERS", "2")
    resumed = go_on_from_the_middle(tmp_path, config, "resumed", "TRAIN.NUM_WORKERS", "0")
    assert_same_state(read_checkpoint(tmp_path, "straight"), resumed)


@pytest.mark.slow
def test_f04_f13_two_processes_go_on_bit_for_bit_and_one_in_their_place(tmp_path):
    config = write_run(tmp_path, TRAIN__SAVE_EVERY=2, TRAIN__GRADIENT_ACCUMULATION_STEPS=1)
    run_train(config, "EXP_NAME", "straight", processes=2)
    resumed = go_on_from_the_middle(tmp_path, config, "resumed", processes=2)
    straight = read_checkpoint(tmp_path, "straight")
    assert_same_state(straight, resumed)
    split = ("TRAIN.GRADIENT_ACCUMULATION_STEPS", "2")
    alone = go_on_from_the_middle(tmp_path, config, "alone", *split)
    assert alone["progress"]["step"] == straight["progress"]["step"]
    for name, weight in straight["model"].items():  # its sums have another order
        torch.testing.assert_close(weight, alone["model"][name], rtol=1e-4, atol=1e-5, msg=name)


def test_f17_a_loader_starts_at_step_200_000_in_a_moment(tmp_path):
    config = write_run(tmp_path)
    trainer = make_trainer(config, "TRAIN.MAX_STEPS", "300000")
    trainer.progress.step = 200_000
    started = time.perf_counter()
    batch = next(trainer.batches())[0]
    assert time.perf_counter() - started < 5
    # Two micro-batches of one clip a step, eight clips: position 400,000 begins epoch 50,000.
    index = int(epoch_order(5, 50_000, 8)[0])
    assert torch.equal(batch["blur"][0], torch.as_tensor(trainer.dataset[(50_000, index)]["blur"]))
