"""One rank fails, hangs or dies: the run ends in bounded time and names the rank."""

import json
import logging
import os
import signal
import threading
import time
import warnings
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.distributed import DistNetworkError, HashStore

from scripts import launch
from src.engine import checkpoint, stall, validation
from src.engine.log import Scalars
from src.engine.processes import Ranks, join_ranks, reporting_nondeterminism, set_determinism
from src.engine.signals import StoppedError, StopSignals
from src.engine.stall import STAGES, RankState, StallWatch
from src.run_directory import RunDirectory
from tests.forked import torchrun
from tests.training_cases import (
    CPU,
    assert_same_state,
    checkpoint_of,
    make_trainer,
    one_thread,
    read_checkpoint,
    resumed,
    run_ranks,
    run_train,
    write_run,
)

FAULTY = Path(__file__).with_name("faulty_train.py")
LONGEST_S = 240


def run_faulty(forks, config: Path, fault: str, *overrides: str, restarts: int = 0):
    """Return (exit code, output, seconds after the fault) of two ranks of which one has a fault."""
    command = [*torchrun(2, restarts), FAULTY, fault, "--config", config, *overrides]
    environment = {
        **one_thread(),
        **(launch.OWN_STORE_PER_ATTEMPT if restarts else {}),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "3",
    }
    process = forks(command, environment)
    code = process.wait(LONGEST_S)
    return code, process.output, time.time() - config.with_suffix(".happened").stat().st_mtime


def write_two_rank_run(folder: Path, **changes: object) -> Path:
    return write_run(folder, TRAIN__LOG_EVERY=1, TRAIN__SAVE_EVERY=1, **changes)


def test_f50_the_rank_that_raises_is_named_and_the_others_leave(tmp_path, forks):
    config = write_two_rank_run(tmp_path)
    code, output, seconds = run_faulty(forks, config, "raise")
    assert code != 0
    assert "rank 1: the disk of rank 1 is on fire" in output
    assert "Root Cause" in output
    assert seconds < 90
    assert read_checkpoint(tmp_path)["progress"]["step"] == 2  # what was done is kept


def test_f51_the_rank_that_hangs_is_named_in_finite_time(tmp_path):
    """Without torchrun, which ends the others: the one that hangs ends a little later by itself."""
    config = write_two_rank_run(tmp_path, TRAIN__STALL_MINUTES=0.1)
    command = [str(FAULTY), "hang", "--config", str(config)]
    codes, output = run_ranks(command, tmp_path, processes=2)
    assert codes == [stall.EXIT_STALLED] * 2, output
    host = os.uname().nodename
    assert f"the others wait for rank 1 on {host} (loading data, 2 steps done)" in output
    assert time.time() - config.with_suffix(".happened").stat().st_mtime < 30


@pytest.mark.nightly
@pytest.mark.parametrize("fault", ["hang", "stop", "absent"])
def test_f51_a_rank_that_hangs_under_torchrun_is_named(tmp_path, forks, fault):
    # While a rank starts up the limit is six times as long, and a fast one reports its two steps
    # only after the fault.
    minutes = 0.05 if fault == "absent" else 0.1
    config = write_two_rank_run(tmp_path, TRAIN__STALL_MINUTES=minutes)
    code, output, seconds = run_faulty(forks, config, fault)
    assert code != 0
    assert "the others wait for rank 1" in output
    assert seconds < 90


def test_f53_processes_that_torchrun_restarts_resume(tmp_path, forks):
    """Also if the first start had `--resume never`."""
    config = write_two_rank_run(tmp_path, TRAIN__MAX_STEPS=3)
    code, output, _ = run_faulty(forks, config, "kill", "--resume", "never", restarts=1)
    assert code == 0, output
    assert "resumed at step 2" in output
    run_train(config, "EXP_NAME", "undisturbed", processes=2)
    assert_same_state(read_checkpoint(tmp_path), read_checkpoint(tmp_path, "undisturbed"))


# ---------------------------------------------------------------- the stall watch by hand


class Left(BaseException):
    """Replaces the end of the process."""


@pytest.fixture(name="ends")
def _ends(monkeypatch):
    """Let the end of the process raise `Left`; return an event for its end in a thread."""
    left = threading.Event()

    def leave(code):
        left.set()
        raise Left(code)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(logging, "shutdown", lambda: None)
    return left


def watching(*positions, stall_s=30.0, **state) -> list[StallWatch]:
    """Return the watches of ranks that were seen at these positions, at time 0."""
    count = len(positions)
    watches = [StallWatch(HashStore(), n, count, stall_s, StopSignals()) for n in range(count)]
    times = {"moved_at": 0.0, "beat_at": 1e9, **state}
    for watch in watches:
        watch.ranks = {r: RankState(**times, position=p) for r, p in enumerate(positions)}
    return watches


DATA, STEP = ((4, STAGES.index(stage), 0) for stage in ("loading data", "computing a step"))


def test_who_is_late_by_hand():
    assert watching(STEP, DATA, STEP)[0].late_ranks(3.0) == [1]
    assert watching(STEP, STEP)[0].late_ranks(3.0) == []
    assert watching((*STEP[:2], 7), STEP)[0].late_ranks(3.0) == []  # a larger share
    assert watching((4, 0, 0), (3, 8, 0))[0].late_ranks(3.0) == [1]
    watch = watching(STEP, DATA, beat_at=9.0)[0]
    watch.ranks[0].beat_at = -9.0
    assert watch.late_ranks(9.0) == [0]  # its thread is silent
    order = [stall.STARTING, (4, 0, 0), DATA, STEP, (5, 0, 0)]
    assert order == sorted(order)


@pytest.mark.usefixtures("ends")
def test_the_first_rank_in_time_warns_and_then_ends_the_run(caplog):
    watches = watching(DATA, STEP, STEP)
    for now in (9.0, 11.0, 12.0):
        for watch in watches:
            watch.judge(now)
        assert caplog.text.count("nothing has moved for 11 s") == (now > 9)
    assert "the others wait for rank 0 on ? (loading data, 4 steps done)" in caplog.text
    watches[0].judge(31.0)
    watches[2].judge(31.0)
    with pytest.raises(Left, match=str(stall.EXIT_STALLED)):
        watches[1].judge(31.0)
    with pytest.raises(Left):
        watches[2].judge(46.0)  # the other one has not ended the run
    starting = watching(stall.STARTING, DATA)[1]
    starting.judge(59.0)  # six times as long
    with pytest.raises(Left):
        starting.judge(181.0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_rank_that_does_not_move_without_the_store_ends_by_itself(ends, caplog):
    def gone(*_):
        raise DistNetworkError("Connection was lost")

    store = SimpleNamespace(set_timeout=lambda _: None, set=gone)
    watch = StallWatch(store, 1, 2, 0.3, StopSignals())
    watch.at("computing a step", 4)
    watch.start()
    assert ends.wait(10)
    watch.stop()
    assert "(computing a step, 4 steps done), and rank 0 or torchrun" in caplog.text
    assert "Connection was lost" in caplog.text


def test_positions_and_signals_travel_through_the_store():
    store, stops = HashStore(), [StopSignals() for _ in range(3)]
    first, second, _ = (StallWatch(store, n, 3, 0.6, stops[n]) for n in range(3))
    first.at("validating", 7)
    first.part_done()
    stops[1].ask(signal.SIGUSR1)
    second.exchange()  # the others have written nothing yet
    first.exchange()
    second.exchange()
    seen = second.ranks[0]
    assert seen.position == (7, STAGES.index("validating"), 1)
    assert (seen.describe(), seen.host) == ("validating, 7 steps done", os.uname().nodename)
    assert second.ranks[2].describe() == "starting up"
    assert (stops[0].number, stops[0].elsewhere) == (0, signal.SIGUSR1)
    with pytest.raises(StoppedError, match="SIGUSR1"):
        stops[0].raise_if_asked()
    stops[0].ask(signal.SIGTERM)  # its own first one, so it still saves
    assert stops[0].number == signal.SIGTERM


def test_f51_a_main_rank_that_writes_is_behind_those_that_wait_for_it(tmp_path, monkeypatch):
    """Else the others would be reported for a disk that hangs."""
    stages, events = [], []
    watch = SimpleNamespace(part_done=lambda: None)
    watch.at = lambda stage, _: stages.append(STAGES.index(stage))

    def note(owner, name, what):
        function = getattr(owner, name)

        def noted(*args, **kwargs):
            events.append((what, stages[-1]))
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, noted)

    trainer = make_trainer(write_run(tmp_path, TRAIN__MAX_STEPS=1))
    trainer.ranks = trainer.validation.ranks = Ranks(0, 1, CPU, watch)
    note(checkpoint, "save_checkpoint", "write")
    note(validation, "atomic_write", "write")
    note(validation, "write_png", "write")
    note(Ranks, "largest", "wait")
    note(Ranks, "gather", "wait")
    trainer.fit()
    assert [what for what, _ in groupby(events, itemgetter(0))] == ["wait", "write"] * 3
    for index, (what, stage) in enumerate(events):
        waits = [later for kind, later in events[index:] if kind == "wait"]
        assert what == "wait" or not waits or stage < waits[0]


# ---------------------------------------------------------------- joining and leaving


def test_ranks_meet_in_python_and_leave_if_one_does_not_come():
    store, stop = HashStore(), StopSignals()
    ranks = [Ranks(n, 2, CPU, None, store, stop) for n in range(2)]
    waiting = threading.Thread(target=ranks[0].meet, args=("start", 30.0))
    waiting.start()
    assert waiting.is_alive()
    ranks[1].meet("start", 30.0)
    waiting.join(5)
    assert not waiting.is_alive()
    stop.ask(signal.SIGTERM)
    with pytest.raises(StoppedError, match="not all ranks have come to: validation 3"):
        ranks[0].meet("validation 3", 0.2)
    Ranks(0, 1, CPU).meet("start", 0.0)  # alone


def test_f11_a_rank_that_leaves_a_validation_alone_saves_the_run_before(tmp_path, monkeypatch):
    def meet(ranks, name, patience_s):
        raise StoppedError(f"not all ranks have come to: {name}")

    monkeypatch.setattr(Ranks, "meet", meet)
    config = write_run(tmp_path, TRAIN__VAL_EVERY=1)
    with pytest.raises(StoppedError, match="validation 1"):
        make_trainer(config).fit()
    again = resumed(config)
    assert (again.progress.step, again.progress.validated_step) == (1, 0)


@pytest.mark.parametrize(
    ("given", "absent", "message"),
    [
        ("RANK", "WORLD_SIZE", "RANK is 2 and WORLD_SIZE 1 .* unset both"),
        ("WORLD_SIZE", "RANK", "RANK is not set and WORLD_SIZE 2 .* unset both"),
    ],
)
def test_a_rank_without_a_world_is_an_error(monkeypatch, given, absent, message):
    monkeypatch.setenv(given, "2")
    monkeypatch.delenv(absent, raising=False)
    with pytest.raises(RuntimeError, match=message):
        join_ranks(CPU, 0, StopSignals()).__enter__()


def test_operations_that_are_not_deterministic_come_into_the_record(tmp_path):
    run = RunDirectory(tmp_path, "run")
    run.record = tmp_path / "record.txt"
    try:
        set_determinism(enabled=True)
        assert torch.backends.cudnn.deterministic
        with warnings.catch_warnings(record=True) as others:
            warnings.simplefilter("always")
            with reporting_nondeterminism(run.add_nondeterministic):
                warnings.warn("another", stacklevel=1)
                for _ in range(2):
                    torch.zeros(3).put_(torch.tensor([1, 1]), torch.ones(2))
        assert [str(warning.message) for warning in others] == ["another"]
    finally:
        set_determinism(enabled=False)
        torch.backends.cudnn.benchmark = False
    assert run.record.read_text() == "not deterministic: put_\n"


def test_f52_more_ranks_than_clips_validate_as_one(tmp_path):
    """One recording of two clips on three ranks: the scores are those of one rank."""
    config = write_run(tmp_path, TRAIN__MAX_STEPS=1, VAL__TILE_FRAMES=3)
    run_train(config, "EXP_NAME", "three", processes=3)
    trainer = make_trainer(config, "EXP_NAME", "one")
    best = torch.load(checkpoint_of(tmp_path, "three", "best.pth"), weights_only=True)
    trainer.model.load_state_dict(best["model"])
    trainer.validation(trainer.model, 1, Scalars(None), is_last=True)
    outputs = tmp_path / "outputs"
    files = [outputs / "metrics" / f"val_{name}_0000001.json" for name in ("one", "three")]
    one, three = (json.loads(file.read_text()) for file in files)
    assert one["num_frames"] == three["num_frames"] == 5
    assert one["frames"] == three["frames"]
    assert one["restored"] == three["restored"]
    pictures = {path.relative_to(outputs / "visuals").parts[1:] for path in outputs.rglob("*.png")}
    assert len(list(outputs.rglob("*.png"))) == 2 * len(pictures) > 0
