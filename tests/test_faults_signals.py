"""F03, F08 to F12: a training that is asked to stop finishes its step, saves, and leaves."""

import itertools
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from scripts import launch
from scripts.launch import code_of_command
from src import train
from src.config import ConfigError, get_defaults
from src.engine import checkpoint, signals
from src.engine.log import log_thread_error
from src.engine.signals import (
    EXIT_CODE_FILE,
    REPEAT_SECONDS,
    STOPPING,
    StopSignals,
    exit_code,
    forget_handed_on,
    hand_on,
)
from src.paths import REPO_ROOT
from tests.forked import torchrun
from tests.training_cases import (
    assert_same_state,
    make_trainer,
    one_thread,
    read_checkpoint,
    train_command,
    write_run,
)

FAULTY = Path(__file__).with_name("faulty_train.py")
LAUNCH = str(REPO_ROOT / "scripts" / "launch.py")


def ask_at(trainer, call: int, number: int = signal.SIGTERM) -> None:
    """Let the signal come between the `call`-th forward and backward pass (from 0)."""
    loss_fn, calls = trainer.train_step.loss_fn, itertools.count()

    def interrupted(*args):
        if next(calls) == call:
            trainer.stop.ask(number)
        return loss_fn(*args)

    trainer.train_step.loss_fn = interrupted


@pytest.mark.parametrize("call", [2, 3])  # the first and the second half of the second step
def test_f03_f08_a_signal_inside_an_accumulated_step_lets_it_finish(tmp_path, call):
    config = write_run(
        tmp_path, TRAIN__MAX_STEPS=3, TRAIN__SAVE_EVERY=100, TRAIN__GRADIENT_ACCUMULATION_STEPS=2
    )
    straight = make_trainer(config, "EXP_NAME", "straight")
    assert straight.fit() == 0
    stopped = make_trainer(config, "EXP_NAME", "stopped")
    ask_at(stopped, call)
    assert stopped.fit() == signal.SIGTERM
    assert read_checkpoint(tmp_path, "stopped")["progress"]["step"] == 2
    second = make_trainer(config, "EXP_NAME", "stopped")
    second.resume("auto")
    assert second.fit() == 0
    assert_same_state(read_checkpoint(tmp_path, "straight"), read_checkpoint(tmp_path, "stopped"))


def test_f11_a_signal_before_the_first_step_leaves_nothing_behind(tmp_path):
    config = write_run(tmp_path)
    trainer = make_trainer(config)
    trainer.stop.ask(signal.SIGTERM)
    assert trainer.fit() == signal.SIGTERM
    assert trainer.progress.step == 0
    assert not list((tmp_path / "outputs" / "ckpts").rglob("*.pth"))


def test_f11_a_signal_in_validation_leaves_between_tiles_and_it_is_made_up_for(tmp_path):
    config = write_run(tmp_path, TRAIN__MAX_STEPS=2, TRAIN__VAL_EVERY=1, VAL__TILE_FRAMES=2)
    make_trainer(config, "EXP_NAME", "straight").fit()
    stopped = make_trainer(config, "EXP_NAME", "stopped")
    tiles = []

    def at_a_tile():
        tiles.append(1)
        if len(tiles) == 2:
            stopped.stop.ask(signal.SIGTERM)
        type(stopped.stop).raise_if_asked(stopped.stop)

    stopped.validation.stop.raise_if_asked = at_a_tile
    assert stopped.fit() == signal.SIGTERM
    assert len(tiles) == 2  # of many
    assert stopped.progress.step == 1
    assert not list((tmp_path / "outputs" / "ckpts" / "stopped").glob("best.pth"))
    second = make_trainer(config, "EXP_NAME", "stopped")
    second.resume("auto")
    second.fit()
    states = [read_checkpoint(tmp_path, run) for run in ("straight", "stopped")]
    assert min(state["progress"].pop("compute_s") for state in states) > 0
    assert states[0]["progress"] == states[1]["progress"]  # the best score, too
    assert_same_state(*states)


def test_f11_a_signal_while_saving_lets_the_file_be_written(tmp_path, monkeypatch):
    config = write_run(tmp_path, TRAIN__MAX_STEPS=3)
    trainer, written = make_trainer(config), []
    write = checkpoint.save_checkpoint

    def interrupted(path, state, **options):
        trainer.stop.ask(signal.SIGTERM)
        write(path, state, **options)
        written.append(path.name)

    monkeypatch.setattr(checkpoint, "save_checkpoint", interrupted)
    assert trainer.fit() == signal.SIGTERM
    assert written == ["last.pth"]  # once: it holds this step already
    assert read_checkpoint(tmp_path)["progress"]["step"] == 1


def test_a_signal_after_the_end_changes_nothing(tmp_path):
    config = write_run(tmp_path, TRAIN__MAX_STEPS=1)
    trainer = make_trainer(config)
    ask_at(trainer, 0)
    assert trainer.fit() == signal.SIGTERM  # its validation is still to come
    again = make_trainer(config)
    again.resume("auto")
    assert again.fit() == 0
    assert again.progress.validated_step == 1


def test_exit_codes_are_those_of_the_page():
    assert [exit_code(number) for number in (0, *STOPPING)] == [0, 143, 130, 85]


@pytest.mark.parametrize(
    ("code", "handed_on", "received", "expected"),
    [
        (0, "0", [], 0),
        (0, "85", [], 85),  # a rank was asked: torchrun is told 0, so that it starts nothing again
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
def test_the_code_of_the_launcher_by_hand(code, handed_on, received, expected):
    assert code_of_command(code, handed_on, received) == expected


def test_the_code_of_an_earlier_attempt_is_forgotten(tmp_path, monkeypatch):
    monkeypatch.setenv(EXIT_CODE_FILE, str(tmp_path / "code"))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert hand_on(85) == 0
    assert (tmp_path / "code").read_text() == "85"
    forget_handed_on()
    assert not (tmp_path / "code").exists()
    assert hand_on(1) == 1
    monkeypatch.setenv("LOCAL_RANK", "1")  # one process of a machine writes and forgets
    assert hand_on(85) == 0
    forget_handed_on()
    assert (tmp_path / "code").read_text() == "1"
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert hand_on(143) == 143
    monkeypatch.delenv(EXIT_CODE_FILE)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert hand_on(143) == 143  # without our launcher nobody else would know it


def test_a_start_forgets_the_code_before_it_and_hands_on_its_own(tmp_path, monkeypatch):
    code, seen = tmp_path / "code", []

    def load(*_):
        seen.append(code.exists())
        if len(seen) == 1:
            raise ConfigError("a.yaml", ["wrong"])
        return get_defaults()

    def join(device, stall_minutes, stop):
        seen.append(stop)
        raise RuntimeError("nobody is there")

    code.write_text("85")
    monkeypatch.setenv(EXIT_CODE_FILE, str(code))
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", "a.yaml", "DEVICE", "cpu"])
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # put back at the end
    monkeypatch.setattr(train, "load_config", load)
    monkeypatch.setattr(train, "join_ranks", join)
    with pytest.raises(SystemExit) as end:
        train.main()
    assert (end.value.code, code.read_text()) == (2, "2")
    assert (train.main(), code.read_text()) == (1, "1")
    assert seen[:2] == [False, False]
    assert isinstance(seen[2], StopSignals)  # for the other ranks to hear
    assert threading.excepthook is log_thread_error


@pytest.fixture(name="handlers")
def _handlers():
    """Give back the handlers of signals that a test installs."""
    numbers = (*STOPPING, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_f08_a_loader_process_passes_over_the_first_request_to_stop():
    signals.leave_stopping_to_the_parent()
    for number in STOPPING:
        signal.raise_signal(number)  # a whole group of processes gets it
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)] == [
        *(signal.SIG_IGN, signal.SIG_IGN),
    ]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # a second one ends it


def test_f08_loader_processes_of_a_training_leave_signals_to_it(tmp_path):
    trainer = make_trainer(write_run(tmp_path, TRAIN__NUM_WORKERS=1))
    batches = trainer.batches()
    next(batches)
    (worker,) = multiprocessing.active_children()
    for number in STOPPING:  # a whole group of processes gets them
        os.kill(worker.pid, number)
    next(batches)
    assert worker.is_alive()


UNMOVED = "trap '' USR1; kill -USR1 $PPID; sleep 0.2; touch {}"


@pytest.mark.usefixtures("handlers")
def test_the_launcher_does_not_begin_a_command_after_a_signal(tmp_path):
    job = launch.Job()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    commands = [["bash", "-c", UNMOVED.format(tmp_path / name)] for name in ("first", "second")]
    assert job.run(commands, dict(os.environ)) == 85
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


@pytest.mark.usefixtures("handlers")
def test_a_signal_while_a_command_is_being_started_is_passed_on(monkeypatch):
    start = subprocess.Popen

    def interrupted(*arguments, **options):
        signal.raise_signal(signal.SIGTERM)
        return start(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    assert launch.Job().run([["sleep", "5"]], dict(os.environ)) == 143


WAITING = """
import sys, time
sys.path.insert(0, {root!r})
from src.engine.signals import StopSignals
stop = StopSignals()
stop.listen()
print("ready", flush=True)
while not stop.number:
    time.sleep(0.01)
print("asked", flush=True)
time.sleep(60)
"""


def test_f08_a_second_signal_leaves_at_once_but_not_an_echo_of_the_first():
    command = [sys.executable, "-c", WAITING.format(root=str(REPO_ROOT))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)  # F12: a closed terminal
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGTERM)  # the launcher passes on what the group has got
        time.sleep(REPEAT_SECONDS + 0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == 143


WAITING_FOR_A_RANK = """
import sys
sys.path.insert(0, {root!r})
from src.engine import processes
from src.train import main, stop
stop.listen()
processes.JOIN_SECONDS = 0.3
print("ready", flush=True)
sys.exit(main())
"""


def test_f11_ranks_that_wait_for_each_other_at_the_start_leave_at_a_signal(tmp_path, processes):
    """The other rank never comes."""
    config, handed_on = write_run(tmp_path), tmp_path / "code"
    code = WAITING_FOR_A_RANK.format(root=str(REPO_ROOT))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    store = TCPStore("127.0.0.1", int(port), is_master=True, wait_for_workers=False)
    group = {
        "RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": store.host, "MASTER_PORT": port,
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    environment = {**one_thread(), **group, EXIT_CODE_FILE: str(handed_on)}
    process = processes(
        [sys.executable, "-c", code, "--config", str(config), "DEVICE", "cpu"], env=environment
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(3)
    assert process.poll() is None  # it waits
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=20) == 85
    assert handed_on.read_text() == "85"


PARENT = """
import subprocess, sys
sys.path.insert(0, {root!r})
from src.engine.signals import adopt_orphans, end_orphans
adopt_orphans()
leaves_a_child = "import subprocess; subprocess.Popen(['sleep', '60'], start_new_session=True)"
subprocess.run([sys.executable, "-c", leaves_a_child])
print(len(open("/proc/self/task/%d/children" % __import__("os").getpid()).read().split()))
end_orphans(15, 5.0)
print("none is left", flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux gives orphans to an ancestor")
def test_what_torchrun_leaves_behind_is_ended(processes):
    """A signal that comes while it starts its processes makes it forget them."""
    process = processes([sys.executable, "-c", PARENT.format(root=str(REPO_ROOT))])
    output, _ = process.communicate(timeout=20)
    assert output.split("\n")[:2] == ["1", "none is left"]


def wait_for_checkpoint(process: subprocess.Popen, folder: Path) -> None:
    last = folder / "outputs" / "ckpts" / "run" / "last.pth"
    deadline = time.monotonic() + 120
    while not last.exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate(timeout=60)[0]
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_f08_f09_the_process_saves_and_ends_with_the_code_of_the_signal(
    tmp_path, forks, number, code
):
    config = write_run(tmp_path, TRAIN__MAX_STEPS=1000, TRAIN__NUM_WORKERS=2)
    process = forks(train_command(config))
    wait_for_checkpoint(process, tmp_path)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == code, output
    assert f"stopped by {signal.Signals(number).name} at step" in output
    assert "Traceback" not in output


def test_f09_f10_two_ranks_stop_at_one_step_and_the_launcher_says_why(tmp_path, processes):
    config = write_run(tmp_path, TRAIN__MAX_STEPS=1000, TRAIN__NUM_WORKERS=1, TRAIN__RGB_TWIN=False)
    command = [sys.executable, LAUNCH, "--config", str(config), "--num_processes", "2"]
    process = processes(command, cwd=tmp_path)
    wait_for_checkpoint(process, tmp_path)
    process.send_signal(signal.SIGUSR1)
    output = process.communicate(timeout=90)[0]
    assert process.returncode == 85, output
    assert output.count("stopped by SIGUSR1 at step") == 1  # the main rank tells


def children(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_f10_a_signal_to_one_rank_stops_all_at_one_step(tmp_path, forks):
    config = write_run(tmp_path, TRAIN__MAX_STEPS=1000)
    process = forks([*torchrun(2), *train_command(config)[1:]])
    wait_for_checkpoint(process, tmp_path)
    os.kill(children(process.pid)[1], signal.SIGTERM)
    output = process.communicate(timeout=90)[0]
    assert process.returncode == 1  # torchrun's own
    step = read_checkpoint(tmp_path)["progress"]["step"]
    assert f"stopped by SIGTERM at step {step} of" in output


@pytest.mark.nightly
def test_f10_f11_two_ranks_leave_a_validation_that_one_of_them_is_slow_in(tmp_path, forks):
    """The signal comes to the one that waits; the slow one hears of it through the store."""
    config = write_run(tmp_path, TRAIN__VAL_EVERY=1, TRAIN__GRADIENT_ACCUMULATION_STEPS=1)
    handed_on = tmp_path / "code"
    environment = {**one_thread(), EXIT_CODE_FILE: str(handed_on)}
    command = [*torchrun(2), FAULTY, "slow", "--config", config, "TRAIN.STALL_MINUTES", "0.2"]
    process = forks(command, environment)
    deadline = time.monotonic() + 180  # two starts on a busy machine
    while not config.with_suffix(".happened").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(1)  # the other rank is done with its share
    os.kill(children(process.pid)[0], signal.SIGUSR1)
    asked_at = time.monotonic()
    output, _ = process.communicate(timeout=120)
    assert time.monotonic() - asked_at < 60  # a tile takes 120
    assert (process.returncode, handed_on.read_text()) == (0, "85"), output
    assert "validation at step 1 stopped; it is repeated on resume" in output
    assert "stopped by SIGUSR1 at step 1 of 4" in output
    assert read_checkpoint(tmp_path)["progress"]["validated_step"] == 0


@pytest.mark.nightly
def test_f10_a_signal_to_one_rank_is_no_reason_to_start_again(tmp_path, processes):
    config = write_run(tmp_path, TRAIN__MAX_STEPS=1000, TRAIN__RGB_TWIN=False)
    command = [sys.executable, LAUNCH, "--config", str(config)]
    process = processes([*command, "--num_processes", "2", "--max_restarts", "3"], cwd=tmp_path)
    wait_for_checkpoint(process, tmp_path)
    (torchrun,) = children(process.pid)
    os.kill(children(torchrun)[1], signal.SIGUSR1)
    output = process.communicate(timeout=90)[0]
    assert process.returncode == 85, output
    assert output.count("stopped by SIGUSR1 at step") == 1
    assert "resumed" not in output


def test_f11_a_signal_while_modules_are_imported_is_remembered(tmp_path, processes):
    config = write_run(tmp_path, TRAIN__MAX_STEPS=1000)
    process = processes(train_command(config), cwd=tmp_path)
    time.sleep(0.7)  # torch takes longer
    process.send_signal(signal.SIGUSR1)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 85, output
    assert "stopped by SIGUSR1 at step 0 of 1000" in output


@pytest.mark.nightly
def test_f11_an_early_signal_to_the_launcher_ends_two_ranks_that_import(tmp_path, processes):
    config = write_run(tmp_path, TRAIN__MAX_STEPS=1000, TRAIN__RGB_TWIN=False)
    command = [sys.executable, LAUNCH, "--config", str(config), "--num_processes", "2"]
    process = processes(command, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while sum(len(children(pid)) for pid in children(process.pid)) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.7)  # torch takes longer
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 85, output
    assert not list((tmp_path / "outputs" / "ckpts").rglob("*.pth"))


def test_f12_a_closed_pipe_does_not_end_the_training(tmp_path):
    config = write_run(tmp_path, TRAIN__MAX_STEPS=2)
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        train_command(config), cwd=tmp_path, env=one_thread(), stdout=writer, check=False
    )
    os.close(writer)
    assert done.returncode == 0
    assert read_checkpoint(tmp_path)["progress"]["step"] == 2
    log = next((tmp_path / "outputs" / "logs").glob("train_*.log")).read_text()
    assert "validation at step 2" in log
