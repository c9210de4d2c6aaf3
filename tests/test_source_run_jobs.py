"""Running a source plan of toys: failures, killed workers, owners of hidden folders."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.data.description import DataDescription, read_description, write_content
from src.data.errors import DataSetError
from src.paths import REPO_ROOT
from src.prepare.sources.plan import SourcePlan
from src.prepare.sources.run import put_in_place, remove_abandoned, run_plan, write_root_description


@dataclasses.dataclass(frozen=True)
class Toy:
    """A sequence of one small file; `deed` is what else it does."""

    name: str
    deed: str = ""
    split: str = "train"
    num_inputs: int = 3
    num_exposures: int = 1
    out_bytes: int = 10
    seconds: float = 1.0

    @property
    def identity(self):
        return {"name": self.name}

    def write(self, folder):
        (folder / "file").write_text(self.name)
        if self.deed == "sleep":
            write_whole(folder / "pid", str(os.getpid()))
            time.sleep(60)
        if self.deed == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.deed == "fail":
            raise DataSetError("toy", ["cannot be made"])
        if self.deed == "full":
            raise OSError(28, "No space left on device")
        return [f"made {self.name}"]


def write_whole(path, text):
    path.with_suffix(".part").write_text(text)
    path.with_suffix(".part").rename(path)


def toys(*jobs):
    return SourcePlan(jobs, DataDescription("toys"), ())


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("deed", "message"),
    [("fail", "train/b: toy: cannot be made"), ("full", "train/b: .*No space left on device")],
)
def test_one_that_fails_does_not_keep_the_others(tmp_path, workers, deed, message):
    plan = toys(Toy("a"), Toy("b", deed), Toy("c"))
    with pytest.raises(DataSetError, match=message) as caught:
        run_plan(plan, tmp_path, workers=workers)
    assert "2 of 3 sequences were made and are kept; run it again" in str(caught.value)
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == ["a", "c"]
    lines = run_plan(toys(Toy("a"), Toy("b"), Toy("c")), tmp_path, workers=workers)
    assert lines == [
        *("2 sequences were there already", "1 sequences made"),
        *("train/a: made a", "train/b: made b", "train/c: made c"),
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_f37_a_killed_worker_is_explained(tmp_path):
    plan = toys(*(Toy(f"a{i}") for i in range(3)), Toy("b", "die", num_inputs=1))
    with pytest.raises(DataSetError, match="a worker process was killed, probably for lack of"):
        run_plan(plan, tmp_path, workers=2)
    plan = toys(*(Toy(f"a{i}") for i in range(3)), Toy("b", num_inputs=1))
    run_plan(plan, tmp_path, workers=1)
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == ["a0", "a1", "a2", "b"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs locks")
def test_hidden_folders_of_the_living_stay(tmp_path):
    with put_in_place(tmp_path, Toy("a")) as (folder, _):
        (folder / "half").write_text("half")
        dead = folder.with_name(".making-host-99999-b")
        dead.mkdir()
        Path(f"{dead}.lock").touch()
        remove_abandoned(tmp_path, ["train"])
        assert (folder / "half").exists()
        assert not dead.exists()
        assert not Path(f"{dead}.lock").exists()
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == ["a"]


def test_two_runs_that_make_the_same_do_not_collide(tmp_path):
    with put_in_place(tmp_path, Toy("a")) as (folder, _):
        (folder / "file").write_text("mine")
        place = tmp_path / "train/a"
        shutil.copytree(folder, place)
        (place / "source.json").write_text('{"identity": {"name": "a"}, "notes": []}')
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == ["a"]


def test_a_missing_split_is_announced(tmp_path, caplog):
    with caplog.at_level("INFO"):
        run_plan(toys(Toy("a")), tmp_path, workers=1)
    assert "no sequences for val: a training needs val too" in caplog.text


SLEEPY = """
import sys, time
sys.path[:0] = [{repo!r}, {tests!r}]
from pathlib import Path
from src.prepare.sources.run import run_plan
from test_source_run_jobs import Toy, toys
if __name__ == "__main__":
    run_plan(toys(Toy("a", "sleep"), Toy("b", "sleep")), Path({root!r}), workers=2)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_worker_processes_end_with_their_parent(tmp_path):
    code = tmp_path / "sleepy.py"
    tests = str(REPO_ROOT / "tests")
    code.write_text(SLEEPY.format(repo=str(REPO_ROOT), tests=tests, root=str(tmp_path / "ours")))
    program = subprocess.Popen([sys.executable, str(code)])  # noqa: S603
    try:
        wait_until(lambda: len(list(tmp_path.glob("ours/train/.making-*/pid"))) == 2)
    finally:
        program.kill()
        program.wait()
    workers = [int(path.read_text()) for path in tmp_path.glob("ours/train/.making-*/pid")]
    wait_until(lambda: not any(map(is_running, workers)))


def wait_until(is_so, seconds=30):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.is_file() or status.read_text().split()[2] != "Z"


def test_a_run_that_made_nothing_does_not_pin_its_options(tmp_path):
    with pytest.raises(DataSetError) as caught:
        run_plan(toys(Toy("a", "fail")), tmp_path, workers=1)
    assert caught.value.problems == ("train/a: toy: cannot be made",)  # and no count among them
    assert "0 of 1 sequences were made and are kept; run it again" in str(caught.value)
    other = SourcePlan((Toy("a"),), DataDescription("toys", threshold=3.0), ())
    run_plan(other, tmp_path, workers=1)
    assert read_description(tmp_path).threshold == 3.0
    with pytest.raises(DataSetError, match=r"threshold: 3.0, now it would be"):
        run_plan(toys(Toy("a")), tmp_path, workers=1)


def test_a_verdict_on_the_content_is_no_other_description(tmp_path):
    run_plan(toys(Toy("a")), tmp_path, workers=1)
    write_content(tmp_path, "failed")
    assert run_plan(toys(Toy("a")), tmp_path, workers=1) == [
        *("1 sequences were there already", "train/a: made a"),
    ]


def test_a_sequence_at_work_pins_the_options(tmp_path):
    write_root_description(tmp_path, DataDescription("toys"))
    other = SourcePlan((Toy("b"),), DataDescription("toys", threshold=3.0), ())
    with put_in_place(tmp_path, Toy("a")), pytest.raises(DataSetError, match="threshold"):
        run_plan(other, tmp_path, workers=1)


def test_records_of_older_versions_stay_accepted(tmp_path):
    run_plan(toys(Toy("a")), tmp_path, workers=1)
    plan = toys(Hashed("a"))
    assert run_plan(plan, tmp_path, workers=1)[0] == "1 sequences were there already"
    shutil.rmtree(tmp_path / "train/a")
    run_plan(plan, tmp_path, workers=1)
    with pytest.raises(DataSetError, match="spikes_sha256 'one', now 'two'"):
        run_plan(toys(Hashed("a", spikes="two")), tmp_path, workers=1)


@dataclasses.dataclass(frozen=True)
class Hashed(Toy):
    """A toy whose record says more than that of an older version."""

    spikes: str = "one"

    @property
    def identity(self):
        return {"name": self.name, "spikes_sha256": self.spikes}
