"""F03, F08 to F12: a training that is asked to stop finishes its step, saves, and exits."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.launch import code_of_command
from src.engine import checkpoint
from src.engine.signals import (
    EXIT_CODE_FILE,
    REPEAT_SECONDS,
    STOPPING,
    StopSignals,
    clear_exit_code,
    exit_code,
    report_exit_code,
)
from src.paths import REPO_ROOT
from tests.forked import torchrun
from tests.training_cases import (
    assert_same_state,
    checkpoint_of,
    make_trainer,
    one_thread,
    read_checkpoint,
    resumed,
    train_command,
    wait_for,
    write_run,
)

FAULTY = Path(__file__).with_name("faulty_train.py")
LAUNCH = str(REPO_ROOT / "scripts" / "launch.py")
LONG = {"TRAIN__MAX_STEPS": 1000, "TRAIN__SAVE_EVERY": 1}


def ask_at(trainer, call: int) -> None:
    """Let SIGTERM come between the `call`-th forward and backward pass (from 0)."""
    loss_fn, calls = trainer.train_step.loss_fn, itertools.count()

    def interrupted(*args):
        if next(calls) == call:
            trainer.ranks.stop.ask(signal.SIGTERM)
        return loss_fn(*args)

    trainer.train_step.loss_fn = interrupted


def test_f03_f08_a_signal_inside_an_accumulated_step_lets_it_finish(tmp_path):
    config = write_run(
        tmp_path, TRAIN__MAX_STEPS=2, TRAIN__SAVE_EVERY=100, TRAIN__GRADIENT_ACCUMULATION_STEPS=2
    )
    assert make_trainer(config, "EXP_NAME", "straight").fit() == 0
    stopped = make_trainer(config, "EXP_NAME", "stopped")
    ask_at(stopped, call=0)
    assert stopped.fit() == signal.SIGTERM
    assert read_checkpoint(tmp_path, "stopped")["progress"]["step"] == 1
    assert resumed(config, "EXP_NAME", "stopped").fit() == 0
    assert_same_state(read_checkpoint(tmp_path, "straight"), read_checkpoint(tmp_path, "stopped"))


def test_f11_a_signal_before_the_first_step_leaves_nothing_behind(tmp_path):
    trainer = make_trainer(write_run(tmp_path))
    trainer.ranks.stop.ask(signal.SIGTERM)
    assert trainer.fit() == signal.SIGTERM
    assert trainer.progress.step == 0
    assert not list((tmp_path / "outputs" / "ckpts").rglob("*.pth"))


def test_f11_a_signal_in_validation_leaves_between_tiles_and_it_is_repeated(tmp_path):
    config = write_run(tmp_path, TRAIN__MAX_STEPS=1, VAL__TILE_FRAMES=2)
    make_trainer(config, "EXP_NAME", "straight").fit()
    stopped = make_trainer(config, "EXP_NAME", "stopped")
    stop, tiles = stopped.ranks.stop, []

    def at_a_tile():
        tiles.append(1)
        if len(tiles) == 2:
            stop.ask(signal.SIGTERM)
        StopSignals.raise_if_asked(stop)

    stop.raise_if_asked = at_a_tile
    assert stopped.fit() == signal.SIGTERM
    assert len(tiles) == 2  # of many
    assert stopped.progress.step == 1
    assert not checkpoint_of(tmp_path, "stopped", "best.pth").exists()
    resumed(config, "EXP_NAME", "stopped").fit()
    states = [read_checkpoint(tmp_path, run) for run in ("straight", "stopped")]
    assert min(state["progress"].pop("compute_s") for state in states) > 0
    assert states[0]["progress"] == states[1]["progress"]  # the best score, too
    assert_same_state(*states)


def test_f11_a_signal_while_saving_lets_the_file_be_written(tmp_path, monkeypatch):
    trainer, written = make_trainer(write_run(tmp_path, TRAIN__SAVE_EVERY=1)), []
    write = checkpoint.save_checkpoint

    def interrupted(path, state, **options):
        trainer.ranks.stop.ask(signal.SIGTERM)
        write(path, state, **options)
        written.append(path.name)

    monkeypatch.setattr(checkpoint, "save_checkpoint", interrupted)
    assert trainer.fit() == signal.SIGTERM
    assert written == ["last.pth"]  # once: it holds this step already
    assert read_checkpoint(tmp_path)["progress"]["step"] == 1


@pytest.mark.parametrize(
    ("code", "reported", "received", "expected"),
    [
        (0, "0", [], 0),
        (0, "85", [], 85),  # a rank was asked: torchrun gets 0, so that it restarts nothing
        (1, "143", [signal.SIGTERM], 143),
        (1, "0", [], 1),  # the other rank has failed
        (1, "0", [signal.SIGTERM], 1),
        (1, "", [signal.SIGUSR1], 85),  # while the ranks were starting
        (1, "1", [signal.SIGUSR1], 1),
        (-9, "", [], 137),
        (1, "", [], 1),
        (0, "", [signal.SIGTERM], 0),
    ],
)
def test_the_code_of_the_launcher_by_hand(code, reported, received, expected):
    assert code_of_command(code, reported, received) == expected


def test_exit_codes_and_what_is_reported_to_the_launcher(tmp_path, monkeypatch):
    assert [exit_code(number) for number in (0, *STOPPING)] == [0, 143, 130, 85]
    file = tmp_path / "code"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert report_exit_code(143) == 143  # without our launcher it would be unknown
    monkeypatch.setenv(EXIT_CODE_FILE, str(file))
    assert (report_exit_code(85), file.read_text()) == (0, "85")
    clear_exit_code()
    assert not file.exists()
    assert report_exit_code(1) == 1
    monkeypatch.setenv("LOCAL_RANK", "1")  # one process of a machine writes and clears
    assert report_exit_code(85) == 0
    clear_exit_code()
    assert file.read_text() == "1"


def test_f08_loader_processes_of_a_training_leave_signals_to_it(tmp_path):
    batches = make_trainer(write_run(tmp_path, TRAIN__NUM_WORKERS=1)).batches()
    next(batches)
    (worker,) = multiprocessing.active_children()
    for number in STOPPING:
        os.kill(worker.pid, number)
    next(batches)
    assert worker.is_alive()


def script(text: str) -> list[str]:
    """Return the command that runs a text as Python with the repository on its path."""
    return [sys.executable, "-c", f"import sys\nsys.path.insert(0, {str(REPO_ROOT)!r})\n{text}"]


LAUNCHING = """
import os, signal, subprocess
from scripts.launch import Launcher
start = subprocess.Popen
def interrupted(*arguments, **options):
    if sys.argv[1] == "interrupted":
        signal.raise_signal(signal.SIGTERM)
    return start(*arguments, **options)
subprocess.Popen = interrupted
commands = [["bash", "-c", command] for command in sys.argv[2:]]
sys.exit(Launcher().run(commands, dict(os.environ)))
"""


def test_the_launcher_does_not_begin_a_command_after_a_signal(tmp_path, processes):
    """A closed terminal and Ctrl-Z are none."""
    kills = "".join(f"kill -{name} $PPID; " for name in ("HUP", "TSTP", "USR1"))
    first = f"trap '' USR1; {kills} sleep 0.2; touch {tmp_path}/first"
    process = processes([*script(LAUNCHING), "", first, f"touch {tmp_path}/second"])
    assert process.wait(20) == 85, process.stdout.read()
    assert "Ctrl-C saves and ends it" in process.stdout.read()
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
    assert processes([*script(LAUNCHING), "interrupted", "sleep 5"]).wait(20) == 143


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ties a child's life to its parent")
def test_a_killed_launcher_takes_the_training_with_it(tmp_path, processes):
    trained = tmp_path / "pid"
    process = processes([*script(LAUNCHING), "", f"echo $$ > {trained}; exec sleep 60"])
    wait_for(lambda: trained.exists() and trained.read_text().strip(), process, 20)
    command = Path(f"/proc/{trained.read_text().strip()}/cmdline")
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while command.exists() and command.read_bytes():
        assert time.monotonic() < deadline, "the training outlived its launcher"
        time.sleep(0.05)


WAITING = """
import time
from src.engine.signals import StopSignals
stop = StopSignals()
stop.listen()
print("ready", flush=True)
while not stop.number:
    time.sleep(0.01)
print("asked", flush=True)
time.sleep(60)
"""


def test_f08_a_second_signal_exits_at_once_but_not_an_echo_of_the_first():
    with subprocess.Popen(script(WAITING), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)  # F12: a closed terminal
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGTERM)  # the launcher forwards what the group has got
        time.sleep(REPEAT_SECONDS + 0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == 143


PARENT = """
import subprocess
from src.engine.signals import adopt_orphans, end_children
adopt_orphans()
leaves_a_child = "import subprocess; subprocess.Popen(['sleep', '60'], start_new_session=True)"
subprocess.run([sys.executable, "-c", leaves_a_child])
print(len(open("/proc/self/task/%d/children" % __import__("os").getpid()).read().split()))
end_children(15, 5.0)
print("none is left", flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux gives orphans to an ancestor")
def test_f11_what_torchrun_leaves_behind_is_ended(processes):
    """A signal that comes while it starts its processes makes it forget them."""
    output, _ = processes(script(PARENT)).communicate(timeout=20)
    assert output.split("\n")[:2] == ["1", "none is left"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_f08_f09_the_process_saves_and_exits_with_the_code_of_the_signal(
    tmp_path, forks, number, code
):
    config = write_run(tmp_path, **LONG, TRAIN__NUM_WORKERS=2)
    process = forks(train_command(config))
    wait_for(checkpoint_of(tmp_path).exists, process)
    process.send_signal(number)
    assert process.wait(60) == code, process.output
    assert f"stopped by {signal.Signals(number).name} at step" in process.output
    assert "Traceback" not in process.output


def children(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def launch_two(folder: Path, processes, *options: str):
    """Start the launcher with two ranks of a long training."""
    config = write_run(folder, **LONG, TRAIN__NUM_WORKERS=1, TRAIN__RGB_TWIN=False)
    command = [sys.executable, LAUNCH, "--config", str(config), "--num_processes", "2", *options]
    return processes(command, cwd=folder)


def test_f10_a_signal_to_one_rank_stops_both_after_the_same_step(tmp_path, forks):
    """torchrun restarts nothing: the ranks report the code in a file and exit with 0."""
    config, file = write_run(tmp_path, **LONG, TRAIN__NUM_WORKERS=1), tmp_path / "code"
    command = [*torchrun(2, restarts=3), *train_command(config)[1:]]
    process = forks(command, {**one_thread(), EXIT_CODE_FILE: str(file)})
    wait_for(checkpoint_of(tmp_path).exists, process)
    os.kill(children(process.pid)[1], signal.SIGUSR1)
    assert process.wait(90) == 0, process.output
    assert file.read_text() == "85"
    step = read_checkpoint(tmp_path)["progress"]["step"]
    assert process.output.count("stopped by SIGUSR1 at step") == 1  # the main rank logs it
    assert f"stopped by SIGUSR1 at step {step} of" in process.output
    assert "resumed" not in process.output


@pytest.mark.nightly
def test_f09_f10_two_ranks_stop_and_the_launcher_exits_with_the_code(tmp_path, processes):
    process = launch_two(tmp_path, processes, "--max_restarts", "3")
    wait_for(checkpoint_of(tmp_path).exists, process)
    process.send_signal(signal.SIGUSR1)
    output = process.communicate(timeout=90)[0]
    assert process.returncode == 85, output
    assert "stopped by SIGUSR1 at step" in output
    assert "resumed" not in output


@pytest.mark.nightly
def test_f10_f11_two_ranks_leave_a_validation_that_one_of_them_is_slow_in(tmp_path, forks):
    """The signal comes to the one that waits; the slow one receives it through the store."""
    config, file = write_run(tmp_path, TRAIN__VAL_EVERY=1), tmp_path / "code"
    command = [*torchrun(2), FAULTY, "slow", "--config", config, "TRAIN.STALL_MINUTES", "0.2"]
    process = forks(command, {**one_thread(), EXIT_CODE_FILE: str(file)})
    wait_for(config.with_suffix(".happened").exists, process, 180)
    time.sleep(1)  # the other rank is done with its share
    os.kill(children(process.pid)[0], signal.SIGUSR1)
    asked_at = time.monotonic()
    output, _ = process.communicate(timeout=120)
    assert time.monotonic() - asked_at < 60  # a tile takes 120
    assert (process.returncode, file.read_text()) == (0, "85"), output
    assert "validation at step 1 stopped; it is repeated on resume" in output
    assert "stopped by SIGUSR1 at step 1 of 4" in output
    assert read_checkpoint(tmp_path)["progress"]["validated_step"] == 0


@pytest.mark.parametrize("launched", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_f11_a_signal_while_modules_are_imported_is_handled_afterwards(
    tmp_path, processes, launched
):
    config = write_run(tmp_path, TRAIN__MAX_STEPS=1000, TRAIN__RGB_TWIN=False)
    command = train_command(config)
    process = processes([command[0], LAUNCH, *command[2:]] if launched else command, cwd=tmp_path)
    time.sleep(0.7)  # torch takes longer
    process.send_signal(signal.SIGUSR1)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 85, output
    assert launched or "stopped by SIGUSR1 at step 0 of 1000" in output
    assert "Traceback" not in output
    assert not list((tmp_path / "outputs").rglob("*.pth"))


@pytest.mark.nightly
def test_f11_an_early_signal_to_the_launcher_ends_two_ranks_that_import(tmp_path, processes):
    process = launch_two(tmp_path, processes)
    wait_for(lambda: sum(len(children(pid)) for pid in children(process.pid)) == 2, process, 60)
    time.sleep(0.7)  # torch takes longer
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 85, output
    assert not list((tmp_path / "outputs" / "ckpts").rglob("*.pth"))


CLOSED_PIPE = """
import os, sys
from src import train
reader, writer = os.pipe()
os.close(reader)
os.dup2(writer, 1)
sys.stdout = open(1, "w", closefd=False)  # the former one takes it for a file
sys.exit(train.main())
"""


def test_f12_a_closed_pipe_does_not_end_the_training(tmp_path, forks):
    config = write_run(tmp_path, TRAIN__MAX_STEPS=1)
    (tmp_path / "closed.py").write_text(CLOSED_PIPE)
    done = forks([tmp_path / "closed.py", "--config", config])
    assert done.wait(120) == 0, done.output
    assert read_checkpoint(tmp_path)["progress"]["step"] == 1
    log = next((tmp_path / "outputs" / "logs").glob("train_*.log")).read_text()
    assert "validation at step 1" in log
