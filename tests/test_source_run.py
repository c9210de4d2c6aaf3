"""Running a source plan: kill and resume, shards, processes, mixtures, disk, other owners."""

import re
import shutil
import signal
import subprocess
import sys

import pytest

from src.data.description import read_description
from src.paths import REPO_ROOT
from tests.source_cases import GoproClip, bytes_of, prepare, write_config, write_gopro, write_x4k

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
sys.path[:0] = [{repo!r}, {tests!r}]
from tests.source_cases import prepare
from src.prepare.sources import simulate
from pathlib import Path
shown, original = [], simulate.BlurCamera.show
def show(self, frame):
    shown.append(1)
    if len(shown) == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    original(self, frame)
simulate.BlurCamera.show = show
prepare(Path({config!r}), "gopro", Path({down!r}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("at", [10, 70])
def test_a_killed_run_goes_on(downloaded, whole, tmp_path, at, capsys):
    config = write_config(tmp_path, tmp_path / "ours")
    code = KILLED.format(
        repo=str(REPO_ROOT),
        tests=str(REPO_ROOT / "tests"),
        at=at,
        config=str(config),
        down=str(downloaded),
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)  # noqa: S603
    assert done.returncode == -signal.SIGKILL
    hidden = [path for path in (tmp_path / "ours").rglob(".making-*") if path.is_dir()]
    assert len(hidden) == 1  # it died inside a clip
    finished = len(list((tmp_path / "ours").glob("*/*/source.json")))
    assert finished == (0 if at == 10 else 2)
    assert prepare(config, "gopro", downloaded) == 0
    told = capsys.readouterr().out
    assert f"{4 - finished} sequences made" in told
    assert ("2 sequences were there already" in told) == (finished == 2)
    assert not list((tmp_path / "ours").rglob(".making-*"))
    assert bytes_of(tmp_path / "ours") == bytes_of(whole)


def test_two_shards_equal_one_run(downloaded, whole, tmp_path, capsys):
    config = write_config(tmp_path, tmp_path / "ours")
    for shard in ("1/2", "0/2"):
        assert prepare(config, "gopro", downloaded, "--shard", shard) == 0
        told = capsys.readouterr().out
        assert "2 sequences made" in told
        assert "when parts 0 to 1 all are, run the same command without --shard" in told
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
    told = capsys.readouterr().err
    assert message in told
    assert "nothing was changed; choose an empty DATA.ROOT" in told
    assert bytes_of(whole) == before


def test_other_frames_under_the_same_name_are_refused(downloaded, whole, tmp_path, capsys):
    down = shutil.copytree(downloaded, tmp_path / "down")
    (down / "GOPRO_Large_all/train/GOPR0372_07_00/000016.png").unlink()
    (down / "GOPRO_Large_all/test/GOPR0384_11_05/000030.png").unlink()
    assert prepare(whole.parent / "whole.yaml", "gopro", down) == 1
    told = capsys.readouterr().err
    assert "GOPR0372_07_00 was made with source_frames 16, now 15; source_bytes " in told
    assert "3 problem(s)" in told  # that one, another one and the advice


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
        kind: float(value) * 1e3
        for value, kind in re.findall(r"([\d.]+) kB for ([\w ]+) \(", caplog.text)
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


def test_another_length_of_exposures_is_no_further_sequence(tmp_path, capsys):
    root, downloaded = tmp_path / "ours", write_x4k(tmp_path / "down", X4K)
    config = write_config(tmp_path, root)
    assert prepare(config, "x4k1000fps", downloaded, "--shard", "0/2") == 0
    assert prepare(config, "x4k1000fps", downloaded, "--shard", "1/2", "--frames_averaged", 9) == 1
    assert "says frames_averaged: (17,), now it would be (9,)" in capsys.readouterr().err
