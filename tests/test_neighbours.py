"""A shift by whole exposures is found without t_sharp, in every layout, and nothing else is."""

import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import pytest

from src.data.exposures import read_exposures, write_exposures
from src.data.recordings import Recording
from src.prepare import neighbours
from src.prepare.check_content import ContentTask, check_content, look_at
from src.prepare.counting import PreparedSplit
from src.prepare.neighbours import Fit, check_neighbours, neighbours_of
from src.prepare.overlay import draw_overlay
from tests.data_cases import copy_root, scan, write_miniature
from tests.film_cases import WINDOW, write_film
from tests.prepare_cases import run, write_config


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
    assert run(config, "--overlay", "2") == 1  # what is accepted is still told


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
    (problem,) = findings.problems  # it is not called another recording besides
    assert "1 exposure late" in problem


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


def test_the_counts_of_a_file_have_the_bins_of_the_configuration(tmp_path):
    root = write_miniature(
        tmp_path / "mini", sequences=1, frames=4, n=11, spikes="voxels", num_bins=16
    )
    found = scan(root / "train/seq_000", num_bins=16)
    findings = check_content([PreparedSplit("train", [found])], None, 16, 1)
    assert "not compared" not in str(findings.notes)
    assert "fit their own blurry frame best" in str(findings.seen)


def fit_of(best):
    """Return a fit whose best frame is at a distance; None: that of a still scene."""
    values = {-3: 0.3, -2: 0.3, -1: 0.5, 0: 0.5, 1: 0.5, 2: 0.3, 3: 0.3}
    return Fit(values if best is None else {**values, best: 0.9})


def named(count):
    return tuple(SimpleNamespace(name=f"{i:06d}", number=i) for i in range(count))


@pytest.mark.parametrize(
    ("votes", "is_problem"),
    [
        ((1, 1, 0), True),  # two of three
        ((1, 1, 0, 0, 0), False),
        ((1, 1, 1, 0, 0), False),  # three of five are less than two thirds
        ((-1, -1, -1, -1, 0), True),
        ((1, -1, 1, -1), False),
        ((1,), False),
    ],
)
def test_two_thirds_of_the_votes_make_a_problem(monkeypatch, votes, is_problem):
    fits = dict(enumerate(map(fit_of, votes)))
    monkeypatch.setattr(neighbours, "_look_around", lambda *_: fits)
    monkeypatch.setattr(neighbours, "_fit", lambda frame, *_: fits[frame.number])
    findings = check_neighbours("a", named(len(votes)), 32)
    assert bool(findings.problems) == is_problem
    assert bool(findings.notes) == (not is_problem)


@pytest.mark.parametrize(
    ("distances", "number"), [((1, 1, 2), "1 exposure early"), ((2, 1), "1 exposure"), ((3,), "3")]
)
def test_a_shift_is_named_as_most_frames_show_it(monkeypatch, distances, number):
    wide = dict(enumerate(map(fit_of, distances)))
    wide = {i: Fit({**fit.correlations, -3: 0.95}) for i, fit in wide.items()}  # the other side
    monkeypatch.setattr(neighbours, "_fit", lambda frame, *_: wide[frame.number])
    fits = dict.fromkeys(wide, fit_of(1))
    problem = neighbours._problem("a", named(len(distances)), 32, 1, fits)
    assert problem.startswith(f"a: the spikes are {number}")


def test_frames_with_neighbours_on_both_sides_come_first(root):
    """Of nine frames 0, 2, 4, 6 and 8 are sampled; the first and the last have one side only."""
    found = neighbours._look_around(scan(root / "train/seq_000").frames, 32)
    assert len(found) == 5
    assert not {0, 8} & set(found)


def test_more_frames_are_looked_at_where_few_move(monkeypatch):
    looked = []

    def fit(frame, *_):
        looked.append(frame.number)
        return fit_of(0 if frame.number in moving else None)

    monkeypatch.setattr(neighbours, "neighbours_of", lambda _: ())
    monkeypatch.setattr(neighbours, "_fit", fit)
    moving = {3, 15, 29}  # 3, 9, 15, 21 and 27 are looked at first, then the other odd ones
    found = neighbours._look_around(named(30), 32)
    assert {i for i, fit in found.items() if fit.best == 0} == moving
    assert len(looked) == 15
    looked.clear()
    moving = set(range(30))
    assert neighbours._look_around(named(30), 32).keys() == {3, 9, 15, 21, 27}
    assert len(looked) == 5


def test_numbers_may_go_in_steps_and_files_may_come_later(root, tmp_path):
    frame = scan(root / "train/seq_000").frames[0]
    for number in (0, 10, 20, 30, 35):
        (tmp_path / f"{number}.png").touch()

    def near(number):
        path = tmp_path / f"{number}.png"
        found = neighbours_of(dataclasses.replace(frame, blurry=path, index=number))
        return {distance: path.stem for distance, path in found.items()}

    assert near(10) == {-1: "0", 0: "10", 1: "20"}
    assert near(35) == {0: "35"}
    (tmp_path / "45.png").touch()
    assert near(35) == {0: "35", 1: "45"}
    single = tmp_path / "single"
    single.mkdir()
    (single / "7.png").touch()
    alone = dataclasses.replace(frame, blurry=single / "7.png", index=7)
    assert neighbours_of(alone) == {0: single / "7.png"}
