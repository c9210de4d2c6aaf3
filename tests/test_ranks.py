"""One rank fails, hangs or dies: the run ends in bounded time and says which one it was."""

import json
import logging
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.distributed import DistNetworkError, HashStore

from scripts import launch
from src.config import load_config
from src.engine import checkpoint, stall, validation
from src.engine import processes as engine_processes
from src.engine.log import Scalars
from src.engine.processes import Ranks, join_ranks
from src.engine.signals import StoppedError, StopSignals
from src.engine.stall import (
    STAGES,
    START_FACTOR,
    Place,
    StallWatch,
    Watched,
    late_ranks,
    seconds_still,
)
from src.engine.trainer import Trainer
from src.run_directory import RunDirectory
from tests.forked import torchrun
from tests.training_cases import (
    assert_same_state,
    make_trainer,
    one_thread,
    read_checkpoint,
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
    began = time.time()
    process = forks(command, environment)
    output, _ = process.communicate(timeout=LONGEST_S)
    happened = config.with_suffix(".happened")
    began = happened.stat().st_mtime if happened.exists() else began
    return process.returncode, output, time.time() - began


def write_two_rank_run(folder: Path, **changes: object) -> Path:
    return write_run(folder, TRAIN__GRADIENT_ACCUMULATION_STEPS=1, TRAIN__LOG_EVERY=1, **changes)


def test_f50_the_rank_that_raises_is_named_and_the_others_leave(tmp_path, forks):
    config = write_two_rank_run(tmp_path)
    code, output, seconds = run_faulty(forks, config, "raise")
    assert code != 0
    assert "rank 1: the disk of rank 1 is on fire" in output
    assert "Root Cause" in output
    assert seconds < 90
    assert read_checkpoint(tmp_path)["progress"]["step"] == 2  # what was done is kept


@pytest.mark.parametrize("fault", ["hang", pytest.param("stop", marks=pytest.mark.nightly)])
def test_f51_the_rank_that_hangs_is_named_in_finite_time(tmp_path, forks, fault):
    config = write_two_rank_run(tmp_path, TRAIN__STALL_MINUTES=0.2)
    code, output, seconds = run_faulty(forks, config, fault)
    assert code != 0
    host = os.uname().nodename
    assert f"the others wait for rank 1 on {host}" in output
    # A process that stops as a whole was last heard up to a beat before.
    assert "2 steps done" in output or fault == "stop"
    assert seconds < 90


@pytest.mark.nightly
def test_f51_a_rank_that_never_joins_is_named(tmp_path, forks):
    config = write_two_rank_run(tmp_path, TRAIN__STALL_MINUTES=0.05)  # six times at the start
    code, output, seconds = run_faulty(forks, config, "absent")
    assert code != 0
    assert "the others wait for rank 1" in output
    assert seconds < 90


def test_f53_processes_that_torchrun_starts_again_go_on(tmp_path, forks):
    """They do not start over, although the first start was asked to."""
    config = write_two_rank_run(tmp_path)
    code, output, _ = run_faulty(forks, config, "kill", "--resume", "never", restarts=1)
    assert code == 0, output
    assert "resumed at step 2" in output
    killed = read_checkpoint(tmp_path)
    run_train(config, "EXP_NAME", "undisturbed", processes=2)
    assert_same_state(killed, read_checkpoint(tmp_path, "undisturbed"))


def watched(*places, moved_at=0.0, beat_at=0.0) -> dict[int, Watched]:
    return {r: Watched(place, "host", 1, moved_at, beat_at) for r, place in enumerate(places)}


def test_places_are_in_the_order_of_the_loop():
    order = [Place(4, STAGES.index(stage)) for stage in STAGES]
    assert order == sorted(order)
    assert Place() < order[0] < Place(5, 0)
    assert Place(4, 0, part=3) == Place(4, 0, part=9)  # a share that is larger is not behind


class Noting:
    """Stands for the heartbeat of a main rank; notes where that is when things happen."""

    def __init__(self) -> None:
        self.stage, self.events = "", []

    def at(self, stage: str, step: int) -> None:
        del step
        self.stage = stage

    def part_done(self) -> None:
        pass

    def note(self, what: str, function):
        def noted(*args, **kwargs):
            self.events.append((what, STAGES.index(self.stage)))
            return function(*args, **kwargs)

        return noted


def test_f51_a_main_rank_that_writes_is_behind_those_that_wait_for_it(tmp_path, monkeypatch):
    """Else a disk that hangs would be blamed on the others."""
    config = write_run(tmp_path, TRAIN__MAX_STEPS=1)
    place = Noting()
    cfg = load_config(config)
    ranks = Ranks(0, 1, torch.device("cpu"), place)
    trainer = Trainer(cfg, ranks, RunDirectory.of(cfg))
    for module, name in (
        (checkpoint, "save_checkpoint"), (validation, "atomic_write"), (validation, "write_png"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, place.note("write", getattr(module, name)))
    for name in ("largest", "gather"):
        monkeypatch.setattr(Ranks, name, place.note("wait", getattr(Ranks, name)))
    trainer.fit()
    words = [what for what, _ in place.events]
    assert words == ["wait", "write", "wait", "write", "write", "write", "wait", "write"]
    for index, (what, stage) in enumerate(place.events):
        waits = [later for kind, later in place.events[index:] if kind == "wait"]
        assert what == "wait" or not waits or stage < waits[0]


def test_who_is_late_by_hand():
    data, step = (Place(4, STAGES.index(s)) for s in ("loading data", "computing a step"))
    assert late_ranks(watched(step, data, step), now=3.0, silence_s=5.0) == [1]
    assert late_ranks(watched(step, step), now=3.0, silence_s=5.0) == []
    silent = watched(step, step, beat_at=9.0)
    silent[0].beat_at = 1.0
    assert late_ranks(silent, now=9.0, silence_s=5.0) == [0]


def test_movement_of_any_rank_counts():
    ranks = watched(Place(1, 0), Place(1, 0))
    message = {"step": 1, "stage": 0, "part": 1, "beat": 1, "host": "h"}
    ranks[1].update(message, now=7.0)  # one more frame of a validation
    assert seconds_still(ranks, now=9.0) == 2.0
    ranks[1].update(message, now=8.0)
    assert seconds_still(ranks, now=9.0) == 2.0


class Left(BaseException):
    """Stands for the end of the process."""


def watch_of(store, rank: int, world_size: int, stall_s: float, stop=None) -> StallWatch:
    return StallWatch(store, rank, world_size, stall_s, StopSignals() if stop is None else stop)


def test_the_first_rank_in_time_warns_and_then_ends_the_run(monkeypatch, caplog):
    monkeypatch.setattr(stall.os, "_exit", lambda code: (_ for _ in ()).throw(Left(code)))
    monkeypatch.setattr(logging, "shutdown", lambda: None)
    watches = [watch_of(HashStore(), rank, 3, stall_s=30.0) for rank in range(3)]
    step = STAGES.index("computing a step")
    ranks = watched(Place(4, step - 1), Place(4, step), Place(4, step), beat_at=100.0)
    for watch in watches:
        watch.judge(ranks, now=9.0)
    assert caplog.text == ""
    for watch in watches:
        watch.judge(ranks, now=11.0)
        watch.judge(ranks, now=12.0)
    assert caplog.text.count("nothing has moved for 11 s") == 1
    assert "the others wait for rank 0 on host (loading data, 4 steps done)" in caplog.text
    watches[0].judge(ranks, now=31.0)
    watches[2].judge(ranks, now=31.0)
    with pytest.raises(Left, match=str(stall.EXIT_STALLED)):
        watches[1].judge(ranks, now=31.0)
    with pytest.raises(Left):
        watches[2].judge(ranks, now=46.0)  # nobody has ended it


class GoneStore:
    """A store whose keeper is gone."""

    def set_timeout(self, _):
        pass

    def set(self, *_):
        raise DistNetworkError("Connection was lost")


def test_a_rank_that_stands_still_without_the_store_ends_by_itself(monkeypatch, caplog):
    left = threading.Event()
    monkeypatch.setattr(stall.os, "_exit", lambda _: left.set())
    monkeypatch.setattr(logging, "shutdown", lambda: None)
    watch = watch_of(GoneStore(), 1, 2, stall_s=0.3)
    watch.at("computing a step", 4)
    watch.start()
    assert left.wait(10)
    watch.stop()
    assert "(computing a step, 4 steps done), and rank 0 or torchrun" in caplog.text
    assert "Connection was lost" in caplog.text


def test_places_travel_through_the_store_and_so_do_signals():
    store, stops = HashStore(), [StopSignals() for _ in range(3)]
    first, second, _ = (watch_of(store, n, 3, stall_s=0.6, stop=stops[n]) for n in range(3))
    first.at("validating", 7)
    first.part_done()
    stops[1].ask(signal.SIGUSR1)
    second.exchange()  # the others have written nothing yet
    first.exchange()
    assert json.loads(store.get("0")) == {
        **{"step": 7, "stage": STAGES.index("validating"), "part": 1, "beat": 1, "asked": 0},
        "host": os.uname().nodename,
    }
    assert (stops[0].number, stops[0].elsewhere) == (0, signal.SIGUSR1)
    with pytest.raises(StoppedError, match="SIGUSR1"):
        stops[0].raise_if_asked()
    stops[0].ask(signal.SIGTERM)  # its own first one, so it still saves
    assert stops[0].number == signal.SIGTERM
    assert Place(7, STAGES.index("validating")).describe() == "validating, 7 steps done"
    assert Place().describe() == "starting up"


def test_ranks_meet_in_python_and_leave_where_one_does_not_come():
    store, stop = HashStore(), StopSignals()
    ranks = [Ranks(n, 2, torch.device("cpu"), None, store, stop) for n in range(2)]
    waiting = threading.Thread(target=ranks[0].meet, args=("start", 30.0))
    waiting.start()
    assert waiting.is_alive()
    ranks[1].meet("start", 30.0)
    waiting.join(5)
    assert not waiting.is_alive()
    stop.ask(signal.SIGTERM)
    with pytest.raises(StoppedError, match="not all ranks have come to: validation 3"):
        ranks[0].meet("validation 3", 0.2)
    Ranks(0, 1, torch.device("cpu")).meet("start", 0.0)  # alone


def test_f11_a_rank_that_leaves_a_validation_alone_saves_the_run_before(tmp_path, monkeypatch):
    def meet(ranks, name, patience_s):
        raise StoppedError(f"not all ranks have come to: {name}")

    monkeypatch.setattr(Ranks, "meet", meet)
    config = write_run(tmp_path, TRAIN__VAL_EVERY=1, TRAIN__SAVE_EVERY=100)
    trainer = make_trainer(config)
    with pytest.raises(StoppedError, match="validation 1"):
        trainer.fit()
    again = make_trainer(config)
    again.resume("auto")
    assert (again.progress.step, again.progress.validated_step) == (1, 0)


def test_f51_a_rank_may_wait_for_hours_where_the_stall_watch_judges(monkeypatch):
    class Begun(Exception):
        pass

    def begin(backend, timeout):
        raise Begun(timeout.total_seconds())

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda *_, **__: iter([(store, 0, 2)]))
    # A watch that runs would end this process.
    monkeypatch.setattr(StallWatch, "start", lambda watch: watching.append(watch.stop_signals))
    monkeypatch.setattr(torch.distributed, "init_process_group", begin)
    stop, watching, store = StopSignals(), [], HashStore()
    store.set("vrt_spike/0/start/1", "here")  # the other rank
    with pytest.raises(Begun) as begun, join_ranks(torch.device("cpu"), 0.2, stop):
        pass
    assert begun.value.args[0] > 6 * 60 * START_FACTOR  # seconds; 24 would end healthy runs
    assert watching == [stop]  # from before the group, which would wait without a word
    with pytest.raises(Begun) as begun, join_ranks(torch.device("cpu"), stall_minutes=0):
        pass
    assert begun.value.args[0] == engine_processes.NEVER.total_seconds()
    assert len(watching) == 1


def test_f52_more_ranks_than_clips_validate_as_one(tmp_path):
    """One recording of two clips on three ranks: the scores are those of one rank."""
    config = write_run(
        tmp_path, TRAIN__MAX_STEPS=1, TRAIN__GRADIENT_ACCUMULATION_STEPS=1, VAL__TILE_FRAMES=3
    )
    run_train(config, "EXP_NAME", "three", processes=3)
    best = tmp_path / "outputs" / "ckpts" / "three" / "best.pth"
    cfg = load_config(config, ["EXP_NAME", "one"])
    trainer = Trainer(cfg, Ranks(0, 1, torch.device("cpu")), RunDirectory.of(cfg))
    trainer.model.load_state_dict(torch.load(best, weights_only=True)["model"])
    trainer.validation(
        trainer.model, 1, Scalars(tmp_path, enabled=False, first_step=0), is_last=True
    )
    one, three = (
        json.loads((tmp_path / "outputs" / "metrics" / f"val_{n}_0000001.json").read_text())
        for n in ("one", "three")
    )
    assert one["num_frames"] == three["num_frames"] == 5
    assert one["frames"] == three["frames"]
    assert one["restored"] == three["restored"]
    pictures = tmp_path / "outputs" / "visuals"
    assert [p.name for p in (pictures / "three" / "step_0000001").iterdir()] == [
        p.name for p in (pictures / "one" / "step_0000001").iterdir()
    ]
