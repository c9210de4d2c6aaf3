"""F02, F04, F06, F07, F17: runs that resume, and that are killed again and again."""

import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.forked import Forked
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

NUM_KILLS, SECONDS, STEPS = 20, 120, 60
BROKEN_WRITES = Path(__file__).with_name("broken_writes.py")
needs_sigkill = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")


@pytest.mark.nightly
def test_f06_random_kills_end_with_the_same_weights(tmp_path, forks):
    config = write_run(
        tmp_path, TRAIN__MAX_STEPS=STEPS, TRAIN__SAVE_EVERY=2, TRAIN__VAL_EVERY=10,
        TRAIN__EMA_DECAY=0.9,
    )  # fmt: skip
    run_train(config, "EXP_NAME", "straight")
    command, last = train_command(config, "EXP_NAME", "killed"), checkpoint_of(tmp_path, "killed")
    draws, starts, deadline = random.Random(7), [], time.monotonic() + SECONDS
    while len(starts) < NUM_KILLS and time.monotonic() < deadline:
        starts.append(forks(command))
        if not kill_at_random(starts[-1], draws, last):
            break  # the run has come to its end
    is_late = time.monotonic() > deadline
    killed = [start.returncode for start in starts].count(-signal.SIGKILL)
    starts.append(forks(command))
    assert starts[-1].wait(300) == 0, starts[-1].output
    num_resumed = sum("resumed at step" in start.output for start in starts)
    print(f"killed {killed} of {NUM_KILLS} times; {num_resumed} starts resumed")  # noqa: T201
    assert num_resumed >= 1  # else straight runs would be compared
    assert killed >= (3 if is_late else NUM_KILLS // 2)
    ours, other = read_checkpoint(tmp_path, "straight"), read_checkpoint(tmp_path, "killed")
    assert_same_state(ours, other)
    assert min(state["progress"].pop("compute_s") for state in (ours, other)) > 0
    assert ours["progress"] == other["progress"]  # the best score and its step, too


def kill_at_random(training: Forked, draws: random.Random, last: Path) -> bool:
    """Kill it, at the latest a moment after its first checkpoint; return whether it still ran."""

    def written_at():
        return last.stat().st_mtime_ns if last.exists() else 0

    before, until = written_at(), time.monotonic() + draws.uniform(0.1, 10.0)
    while time.monotonic() < until and written_at() == before:
        time.sleep(0.005)
    time.sleep(min(draws.uniform(0.0, 0.2), max(0.0, until - time.monotonic())))
    training.send_signal(signal.SIGKILL)
    return training.wait(60) == -signal.SIGKILL


@needs_sigkill
def test_f07_sigkill_while_a_large_checkpoint_grows_leaves_the_older_one(tmp_path, forks):
    trainer = make_trainer(write_run(tmp_path))
    trainer.step(next(trainer.batches()))
    assert trainer.save("last.pth")
    folder, last = trainer.run.checkpoints, checkpoint_of(tmp_path)
    before = last.read_bytes()
    process = forks([BROKEN_WRITES, "large", folder])
    wait_for(lambda: any(p.stat().st_size > 1e6 for p in folder.glob(".partial-*")), process, 60)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) < 0  # it had not come to its end
    (half,) = folder.glob(".partial-*-last.pth")
    assert half.stat().st_size > 1_000_000
    assert last.read_bytes() == before
    with trainer.run.locked():
        assert resumed(tmp_path / "run.yaml").progress.step == 1
    assert not list(folder.glob(".partial-*"))


@needs_sigkill
def test_f07_sigkill_before_any_call_of_the_writing_leaves_a_whole_file(tmp_path, forks):
    process = forks([BROKEN_WRITES, "points", tmp_path / "run"])
    assert process.wait(60) == 0, process.output
    # torch.save, link, two of flush and rename each; then one without a kill
    assert process.output.split() == ["2"] * 4 + ["3"] * 4


def resume_from_the_middle(folder, config, run: str, *overrides: str, processes: int = 1) -> dict:
    """Resume the straight run's checkpoint of step 1 of 2 under another name; return the end."""
    checkpoint_of(folder, run).parent.mkdir()
    shutil.copy(checkpoint_of(folder, "straight", "previous.pth"), checkpoint_of(folder, run))
    if processes == 1:
        trainer = resumed(config, "EXP_NAME", run, *overrides)
        assert trainer.progress.step == 1
        trainer.fit()
    else:
        output = run_train(config, "EXP_NAME", run, *overrides, processes=processes)
        assert "resumed at step 1" in output
    return read_checkpoint(folder, run)


def test_f04_f13_two_processes_resume_bit_for_bit_and_one_resumes_their_run(tmp_path):
    config = write_run(tmp_path, TRAIN__MAX_STEPS=2, TRAIN__SAVE_EVERY=1)
    run_train(config, "EXP_NAME", "straight", processes=2)
    straight = read_checkpoint(tmp_path, "straight")
    assert_same_state(straight, resume_from_the_middle(tmp_path, config, "resumed", processes=2))
    split = ("TRAIN.GRADIENT_ACCUMULATION_STEPS", "2")
    alone = resume_from_the_middle(tmp_path, config, "alone", *split)
    assert alone["progress"]["step"] == straight["progress"]["step"]
    for name, weight in straight["model"].items():  # its sums have another order
        torch.testing.assert_close(weight, alone["model"][name], rtol=1e-4, atol=1e-5, msg=name)
