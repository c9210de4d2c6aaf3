"""Running a source plan: kill and resume, shards, processes, mixtures, disk, failures, locks."""

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from src.data.description import DataDescription, read_description, write_content
from src.data.errors import DataSetError
from src.paths import REPO_ROOT
from src.prepare.sources.planning import PlannedSequence, SourcePlan
from src.prepare.sources.run import (
    make_sequence,
    remove_abandoned,
    run_plan,
)
from tests.source_cases import GoproClip, bytes_of, prepare, write_config, write_gopro

CLIPS = (
    GoproClip("train", "GOPR0372_07_00", 16),
    GoproClip("train", "GOPR0372_07_01", 24),
    GoproClip("train", "GOPR0374_11_03", 30),
    GoproClip("test", "GOPR0384_11_05", 30),
)

X4K = {"train/002/occ008.320": 65, "test/Type1/TEST01_003_f0433": 33}


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory):
    return write_gopro(tmp_path_factory.mktemp("run") / "down", CLIPS)


@pytest.fixture(scope="module")
def whole(downloaded):
    """The data root that one undisturbed run makes."""
    folder = downloaded.parent
    assert prepare(write_config(folder, folder / "whole"), "gopro", downloaded) == 0
    return folder / "whole"


KILLED = """
import os, signal, sys
sys.path.insert(0, {repo!r})
from tests.source_cases import prepare
from src.prepare.sources import simulate
from pathlib import Path
shown, original = [], simulate.rgb_to_intensity
def show(*arguments):
    shown.append(1)
    if len(shown) == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)
simulate.rgb_to_intensity = show
prepare(Path({config!r}), "gopro", Path({down!r}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("at", [10, 70])
def test_a_killed_run_resumes(downloaded, whole, tmp_path, at, capsys):
    config = write_config(tmp_path, tmp_path / "ours")
    names = {"repo": REPO_ROOT, "config": config, "down": downloaded}
    code = KILLED.format(at=at, **{name: str(path) for name, path in names.items()})
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)  # noqa: S603
    assert done.returncode == -signal.SIGKILL
    hidden = [path for path in (tmp_path / "ours").rglob(".making-*") if path.is_dir()]
    assert len(hidden) == 1  # it died inside a clip
    finished = len(list((tmp_path / "ours").glob("*/*/source.json")))
    assert finished == (0 if at == 10 else 2)
    assert prepare(config, "gopro", downloaded) == 0
    printed = capsys.readouterr().out
    assert f"{4 - finished} sequences made" in printed
    assert ("2 sequences were there already" in printed) == (finished == 2)
    assert not list((tmp_path / "ours").rglob(".making-*"))
    assert bytes_of(tmp_path / "ours") == bytes_of(whole)


def test_two_shards_equal_one_run(downloaded, whole, tmp_path, capsys):
    config = write_config(tmp_path, tmp_path / "ours")
    for shard in ("1/2", "0/2"):
        assert prepare(config, "gopro", downloaded, "--shard", shard) == 0
        printed = capsys.readouterr().out
        assert "2 sequences made" in printed
        assert "when parts 0 to 1 all are, run the same command without --shard" in printed
        assert not (tmp_path / "out").exists()  # nothing is prepared yet
    assert prepare(config, "gopro", downloaded) == 0
    assert "4 sequences were there already" in capsys.readouterr().out
    assert bytes_of(tmp_path / "ours") == bytes_of(whole)


def test_two_processes_equal_one(downloaded, whole, tmp_path):
    config = write_config(tmp_path, tmp_path / "ours")
    assert prepare(config, "gopro", downloaded, workers=2) == 0
    assert bytes_of(tmp_path / "ours") == bytes_of(whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--blur_kind", "blur_gamma"), "blur_kind: 'blur', now it would be 'blur_gamma'"),
        (("--threshold", 3), "threshold: 2.0, now it would be 3.0"),
        (("--seed", 1), "seed 0, now 1"),
        (("--interpolator", "none"), "interpolator: 'linear', now it would be 'none'"),
    ],
)
def test_mixtures_are_refused(downloaded, whole, arguments, message, capsys):
    before = bytes_of(whole)
    config = whole.parent / "whole.yaml"
    assert prepare(config, "gopro", downloaded, *arguments) == 1
    printed = capsys.readouterr().err
    assert message in printed
    assert "nothing was changed; choose an empty DATA.ROOT" in printed
    assert bytes_of(whole) == before


def test_other_frames_under_the_same_name_are_refused(downloaded, whole, tmp_path, capsys):
    down = shutil.copytree(downloaded, tmp_path / "down")
    (down / "GOPRO_Large_all/train/GOPR0372_07_00/000016.png").unlink()
    (down / "GOPRO_Large_all/test/GOPR0384_11_05/000030.png").unlink()
    assert prepare(whole.parent / "whole.yaml", "gopro", down) == 1
    printed = capsys.readouterr().err
    assert "GOPR0372_07_00 was made with source_frames 16, now 15; source_bytes " in printed
    assert "3 problem(s)" in printed  # that one, another one and the advice


def test_a_root_with_other_sequences_is_refused(downloaded, tmp_path, capsys):
    (tmp_path / "ours/train/seq_000/blur").mkdir(parents=True)
    assert prepare(write_config(tmp_path, tmp_path / "ours"), "gopro", downloaded) == 1
    assert "seq_000 was not made by this command" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "ours").rglob("*")) == [
        *("blur", "seq_000", "train")
    ]


def test_a_full_disk_is_refused_before_it_starts(downloaded, tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert prepare(write_config(tmp_path, tmp_path / "ours"), "gopro", downloaded) == 1
    assert "that is too little" in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()


def test_disk_use_is_stated_and_about_right(downloaded, tmp_path, caplog):
    with caplog.at_level("INFO"):
        config = write_config(tmp_path, tmp_path / "ours")
        assert prepare(config, "gopro", downloaded, "DATA.USE_PRECOMPUTED_VOXELS", True) == 0
    assert (
        "4 sequences to make: 100 frames and files to read, 0.4 s of video, 8 blurry frames"
        in caplog.text
    )
    written = sum(
        path.stat().st_size
        for path in (tmp_path / "ours").rglob("*")
        if path.suffix in (".png", ".dat")
    )
    stated = {
        kind: float(value) * 1e6
        for value, kind in re.findall(r"([\d.]+) MB for ([\w ]+) \(", caplog.text)
    }
    assert 0.5 < stated["frames and spikes"] / written < 2
    assert stated["voxels"] == pytest.approx(8 * 8 * 48 * 64, rel=0.01)  # K = 8
    assert stated["decoded training frames"] == pytest.approx(6 * 2 * 96 * 128 * 3, rel=0.01)
    assert "disk, and per hour of video" in caplog.text


@pytest.mark.parametrize("shard", ["2/2", "1", "a/b", "-1/2"])
def test_shards_that_cannot_be(downloaded, tmp_path, shard):
    config = write_config(tmp_path, tmp_path / "ours")
    with pytest.raises(SystemExit):
        prepare(config, "gopro", downloaded, f"--shard={shard}")


def test_clips_that_come_later_are_added(tmp_path):
    """A clip of another n and another offset changes what dataset.yaml says of all of them."""
    config = write_config(tmp_path, tmp_path / "ours")
    downloaded = write_gopro(tmp_path / "down", CLIPS[:1] + CLIPS[3:])
    assert prepare(config, "gopro", downloaded) == 0
    before = bytes_of(tmp_path / "ours")
    assert read_description(tmp_path / "ours").offsets == (("val/GOPR0384_11_05", 5),)
    write_gopro(tmp_path / "down", CLIPS[1:3])
    assert prepare(config, "gopro", downloaded) == 0
    after = bytes_of(tmp_path / "ours")
    changed = {path for path in before if before[path] != after[path]}
    assert changed == {"dataset.yaml"}
    found = read_description(tmp_path / "ours")
    offsets = {"train/GOPR0372_07_01": 1, "train/GOPR0374_11_03": 3, "val/GOPR0384_11_05": 5}
    assert dict(found.offsets) == offsets
    assert (found.frames_averaged, found.content) == ((7, 11), "passed")
    assert bytes_of(tmp_path / "ours") == after


# ---------------------------------------------------------------- toys: sequences of one file


def toy(name, deed="", num_inputs=3, **identity):
    """Return a sequence of one small file; `deed` is what else happens while it is written."""
    write = partial(write_toy, name, deed)
    identity = {"name": name, **identity}
    return PlannedSequence("train", name, num_inputs, 1, 10, 1.0, (8, 8), identity, write)


def write_toy(name, deed, folder):
    (folder / "file").write_text(name)
    if deed == "sleep":
        (folder / "pid.part").write_text(str(os.getpid()))
        (folder / "pid.part").rename(folder / "pid")
        time.sleep(60)
    if deed == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if deed == "fail":
        raise DataSetError("toy", ["cannot be made"])
    if deed == "full":
        raise OSError(28, "No space left on device")
    return [f"made {name}"]


def toys(*sequences, **described):
    return SourcePlan(sequences, DataDescription("toys", **described))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("deed", "message"),
    [("fail", "train/b: toy: cannot be made"), ("full", "train/b: .*No space left on device")],
)
def test_one_that_fails_does_not_keep_the_others(tmp_path, workers, deed, message):
    plan = toys(toy("a"), toy("b", deed), toy("c"))
    with pytest.raises(DataSetError, match=message) as caught:
        run_plan(plan, tmp_path, workers=workers)
    assert "2 of 3 sequences were made and are kept; run it again" in str(caught.value)
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == ["a", "c"]
    lines = run_plan(toys(toy("a"), toy("b"), toy("c")), tmp_path, workers=workers)
    assert lines == [
        *("2 sequences were there already", "1 sequences made"),
        *("train/a: made a", "train/b: made b", "train/c: made c"),
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_f37_a_killed_worker_is_explained(tmp_path):
    others = [toy(f"a{i}") for i in range(3)]
    with pytest.raises(DataSetError, match="a worker process was killed, probably for lack of"):
        run_plan(toys(*others, toy("b", "die", num_inputs=1)), tmp_path, workers=2)
    run_plan(toys(*others, toy("b", num_inputs=1)), tmp_path, workers=1)
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == ["a0", "a1", "a2", "b"]


def meanwhile(act):
    """Return a toy "a" while whose writing `act(hidden folder)` is called."""

    def write(folder):
        act(folder)
        return write_toy("a", "", folder)

    return dataclasses.replace(toy("a"), write=write)


@pytest.mark.skipif(sys.platform == "win32", reason="needs locks")
def test_hidden_folders_of_the_living_stay(tmp_path):
    def clean_up(folder):
        dead = folder.with_name(".making-host-99999-b")
        dead.mkdir()
        Path(f"{dead}.lock").touch()
        remove_abandoned(tmp_path, ["train"])
        assert folder.exists()
        assert not dead.exists()
        assert not Path(f"{dead}.lock").exists()

    assert make_sequence(tmp_path, meanwhile(clean_up)) == ["made a"]
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == ["a"]


@pytest.mark.parametrize("name", ["a", "other"])
def test_two_runs_that_make_the_same_do_not_collide(tmp_path, name):
    def make_it_too(folder):
        shutil.copytree(folder, tmp_path / "train/a")
        record = f'{{"identity": {{"name": "{name}"}}, "notes": []}}'
        (tmp_path / "train/a/source.json").write_text(record)

    if name == "a":
        make_sequence(tmp_path, meanwhile(make_it_too))
    else:
        with pytest.raises(DataSetError, match="was made with name 'other', now 'a'"):
            make_sequence(tmp_path, meanwhile(make_it_too))
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == ["a"]


def test_a_missing_split_is_announced(tmp_path, caplog):
    with caplog.at_level("INFO"):
        run_plan(toys(toy("a")), tmp_path, workers=1)
    assert "no sequences for val: a training needs val too" in caplog.text


SLEEPY = """
import sys
sys.path.insert(0, {repo!r})
from pathlib import Path
from tests.test_source_run import run_plan, toy, toys
if __name__ == "__main__":
    run_plan(toys(toy("a", "sleep"), toy("b", "sleep")), Path({root!r}), workers=2)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_worker_processes_end_with_their_parent(tmp_path):
    code = tmp_path / "sleepy.py"
    code.write_text(SLEEPY.format(repo=str(REPO_ROOT), root=str(tmp_path / "ours")))
    program = subprocess.Popen([sys.executable, str(code)])  # noqa: S603
    try:
        wait_until(lambda: len(list(tmp_path.glob("ours/train/.making-*/pid"))) == 2)
    finally:
        program.kill()
        program.wait()
    workers = [int(path.read_text()) for path in tmp_path.glob("ours/train/.making-*/pid")]
    wait_until(lambda: not any(map(is_running, workers)))


def wait_until(is_so, seconds=60):
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


def test_a_checked_content_is_no_other_description(tmp_path):
    run_plan(toys(toy("a")), tmp_path, workers=1)
    write_content(tmp_path, "failed")
    assert run_plan(toys(toy("a")), tmp_path, workers=1) == [
        *("1 sequences were there already", "train/a: made a"),
    ]


def test_records_of_older_versions_stay_accepted(tmp_path):
    run_plan(toys(toy("a")), tmp_path, workers=1)
    plan = toys(toy("a", spikes_sha256="one"))
    assert run_plan(plan, tmp_path, workers=1)[0] == "1 sequences were there already"
    shutil.rmtree(tmp_path / "train/a")
    run_plan(plan, tmp_path, workers=1)
    with pytest.raises(DataSetError, match="spikes_sha256 'one', now 'two'"):
        run_plan(toys(toy("a", spikes_sha256="two")), tmp_path, workers=1)
