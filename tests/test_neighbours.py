"""A shift by whole exposures is found without t_sharp, in every layout, and nothing else is."""

import dataclasses
import re

import numpy as np
import pytest
from data_cases import copy_root, scan, write_miniature
from film_cases import WINDOW, write_film
from prepare_cases import run, write_config

from src.data.alignment import read_exposures, write_exposures
from src.data.preparation.check_content import ContentTask, look_at
from src.data.preparation.neighbours import Fit, check_neighbours, neighbours_of
from src.data.preparation.overlay import draw_overlay
from src.data.recordings import Recording


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    root = tmp_path_factory.mktemp("neighbours") / "mini"
    return write_miniature(root, sequences=1, frames=9, n=11, size=(96, 128), spikes="stream")


@pytest.fixture
def root(original, tmp_path):
    return copy_root(original, tmp_path / "mini")


def move_exposures(folder, number):
    """State every exposure `number` exposures later, so that the spikes come early."""
    path = folder / "exposures.csv"
    rows = read_exposures(path, None)
    moved = {
        i: dataclasses.replace(rows[i], t0=rows[i + number].t0, t1=rows[i + number].t1)
        for i in rows
        if i + number in rows
    }
    write_exposures(path, moved)


@pytest.mark.parametrize(
    ("number", "expected"),
    [(1, "1 exposure early"), (-1, "1 exposure late"), (2, "2 exposures early")],
)
def test_a_shift_by_whole_exposures_without_t_sharp(root, tmp_path, capsys, number, expected):
    config = write_config(root, tmp_path / "mini.yaml")
    assert run(config) == 0
    for folder in (root / "train/seq_000", root / "val/seq_000"):
        move_exposures(folder, number)
    for arguments in ([], ["--check_only"], ["--check_only", "--overlay", "2"]):
        assert run(config, *arguments) == 1
        told = capsys.readouterr().out
        for name in ("train/seq_000", "val/seq_000"):
            assert told.count(f"{name}: the spikes are {expected}: in 5 of 5") == (
                1 + ("--overlay" in arguments)
            )
    assert run(config, "--accept", "tried") == 0


def test_the_right_data_pass_and_the_overlay_says_so_per_sequence(root, tmp_path, capsys):
    config = write_config(root, tmp_path / "mini.yaml")
    assert run(config, "--overlay", "2") == 0
    told = capsys.readouterr().out
    for name in ("train/seq_000", "val/seq_000"):
        assert f"{name}: 5 of 5 sampled exposures fit their own blurry frame best" in told


def test_films_of_a_whole_exposure_late(tmp_path):
    root = write_film(tmp_path / "film", ticks_late=WINDOW)
    found = scan(root / "train/a")
    findings = look_at(ContentTask("a", found.frames, found.ticks_per_second, None))
    assert "1 exposure late" in findings.problems[0]


@pytest.mark.parametrize("late", [False, True])
def test_counts_without_bits_are_compared_too(tmp_path, late):
    root = write_miniature(tmp_path / "mini", sequences=1, frames=6, n=11, spikes="voxels")
    files = sorted((root / "train/seq_000/spike_vox").glob("*.npy"))
    if late:
        for path, counts in zip(files[1:], [np.load(path) for path in files[:-1]], strict=True):
            np.save(path, counts)
    findings = check_neighbours("a", scan(root / "train/seq_000").frames, 32)
    assert bool(findings.problems) == late
    assert all("1 exposure late" in problem for problem in findings.problems)


def test_single_frames_never_make_a_problem(root):
    """One exposure of nine is stated wrongly: that is told and stops nothing."""
    path = root / "train/seq_000/exposures.csv"
    rows = read_exposures(path, None)
    write_exposures(path, {**rows, 4: dataclasses.replace(rows[4], t0=rows[5].t0, t1=rows[5].t1)})
    findings = check_neighbours("a", scan(root / "train/seq_000").frames, 32)
    assert findings.problems == []
    assert "000004 one after it; look with --overlay" in findings.notes[0]


@pytest.mark.parametrize(
    ("other", "expected"),
    [(4, "4 of 5 .* best, 000003 one after it"), (7, "4 of 6 .* 000007 one after it, 000003 none")],
)
def test_single_frames_are_told_although_the_others_are_right_to_the_tick(
    tmp_path, other, expected
):
    """Two frames changed their names: the median of the ticks does not see that."""
    folder = write_film(tmp_path / "film", frames=10) / "train/a"
    for kind in ("blur", "sharp"):
        first, second = folder / kind / "000003.png", folder / kind / f"{other:06d}.png"
        pictures = first.read_bytes(), second.read_bytes()
        first.write_bytes(pictures[1])
        second.write_bytes(pictures[0])
    found = scan(folder)
    findings = look_at(ContentTask("a", found.frames, found.ticks_per_second, None))
    assert findings.problems == []
    assert "a: stated tick 24.0, measured 24." in findings.seen[0]
    assert re.search(expected, findings.notes[0])


def test_a_still_scene_is_a_note(tmp_path):
    root = write_film(tmp_path / "film", speed=0)
    findings = check_neighbours("a", scan(root / "train/a").frames, 32)
    assert (findings.problems, findings.seen) == ([], [])
    assert "too still" in findings.notes[0]


def test_neighbours_are_taken_by_number_aligned_or_not(root):
    """The next frame has no exposure any more, so the last usable one had no neighbour there."""
    folder = root / "train/seq_000"
    move_exposures(folder, 1)  # frame 8 loses its exposure
    (folder / "blur/000002.png").unlink()
    frames = scan(folder, use_voxel_cache=False).frames
    assert [frame.index for frame in frames] == [0, 1, 3, 4, 5, 6, 7]
    assert [sorted(neighbours_of(frame)) for frame in frames] == [
        [0, 1],
        [-1, 0],
        [0, 1],
        *[[-1, 0, 1]] * 4,
    ]
    fit = draw_overlay(Recording("seq_000", frames, 32), len(frames) - 1)[1]
    assert fit.sentence.startswith("! THE SPIKES FIT THE NEXT FRAME")


def test_one_side_is_called_one_side():
    assert "one side only" in Fit({-1: 0.5, 0: 0.9}).sentence
    assert "one side" not in Fit({-1: 0.5, 0: 0.9, 1: 0.5}).sentence
    assert Fit({0: 0.1, 1: 0.19}).best is None
