"""What the check sees in pictures and spikes; every fault is made in a data set that was right."""

import dataclasses
import math
import re

import numpy as np
import pytest

from src.data.description import read_description
from src.data.exposures import read_exposures, write_exposures
from src.data.frames import read_image
from src.data.recordings import Recording
from src.data.spikes.matching import grey_at_spike_size
from src.data.spikes.spike_dat import SpikeFile, SpikeGeometry, write_spikes
from src.data.voxel_counts import count_frame
from src.prepare import spikes_match_frames
from src.prepare.checks import check_rates
from src.prepare.exposure_shift import (
    ExposureFit,
    check_exposures,
    frames_around,
    sample_exposures,
    shift_of,
    shifted_side,
)
from src.prepare.frame_checks import PreparedSplit
from src.prepare.overlay import draw_overlay
from src.prepare.spikes_match_frames import (
    Timing,
    allowed_ticks,
    check_content,
    check_sequence,
    is_certain,
    needs_wider_search,
    sample_bits,
)
from tests.data_cases import copy_root, scan, write_miniature
from tests.prepare_cases import run, write_config
from tests.spike_cases import random_spikes
from tests.timed_cases import WINDOW, write_timed

GEOMETRY = SpikeGeometry(32, 48)


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    root = tmp_path_factory.mktemp("exposures") / "mini"
    return write_miniature(root, sequences=1, frames=9, n=11, size=(96, 128), spikes="stream")


@pytest.fixture
def mini(miniature, tmp_path):
    return copy_root(miniature, tmp_path / "mini")


def look(folder, description=None):
    found = scan(folder)
    assert found.frames
    return check_sequence("train/a", found.frames, found.ticks_per_second, description)


def rewrite_spikes(folder, change, geometry=GEOMETRY):
    for path in (folder / "spike").glob("*.dat"):
        file = SpikeFile(path, GEOMETRY)
        write_spikes(path, change(file.read(0, file.num_ticks)), geometry)


@pytest.mark.parametrize("stream", [True, False])
def test_right_data_have_no_problem_and_say_what_was_measured(tmp_path, stream):
    root = write_timed(tmp_path / "timed", stream=stream)
    config = write_config(root, tmp_path / "timed.yaml")
    assert run(config) == 0
    assert run(config, "--check_only") == 0
    findings = look(root / "train/a")
    assert (findings.problems, findings.notes) == ([], [])
    assert findings.seen[0].startswith("train/a: stated tick 24.0, measured 2")


@pytest.mark.parametrize(
    ("ticks", "meaning"),
    [(8, "1 source frame"), (-16, "2 source frames"), (3, None)],
)
@pytest.mark.parametrize("stream", [True, False])
def test_spikes_at_the_wrong_time_are_named_with_their_offset(tmp_path, stream, ticks, meaning):
    root = write_timed(tmp_path / "timed", stream=stream, ticks_late=ticks)
    (problem,) = look(root / "train/a", read_description(root)).problems
    direction = "late" if ticks > 0 else "early"
    match = re.search(
        rf"([0-9.]+) ticks too {direction} \(stated tick 24.0, measured ([0-9.]+) ", problem
    )
    assert float(match.group(1)) == pytest.approx(abs(ticks), abs=0.5)
    assert float(match.group(2)) == pytest.approx(24 + ticks, abs=0.5)
    assert (f"; that is {meaning})" in problem) if meaning else ("that is" not in problem)
    assert "correct t0, t1 and t_sharp in exposures.csv" in problem


def change_exposures(folder, change):
    """Write the table that `change(number, exposure, all of them)` gives; None drops a line."""
    path = folder / "exposures.csv"
    rows = read_exposures(path, None)
    changed = {i: change(i, exposure, rows) for i, exposure in rows.items()}
    write_exposures(path, {i: exposure for i, exposure in changed.items() if exposure})


def test_what_cannot_be_checked_is_a_note_and_no_problem(timed, tmp_path):
    still = look(write_timed(tmp_path / "still", speed=0) / "train/a")
    assert still.problems == []
    assert "blur against sharp cannot be checked" in still.notes[0]
    assert "too little moves" in still.notes[1]
    change_exposures(timed / "train/a", lambda _, e, __: dataclasses.replace(e, t_sharp=None))
    findings = look(timed / "train/a")
    assert findings.problems == []
    assert "no t_sharp in exposures.csv" in findings.notes[0]


@pytest.mark.parametrize(
    ("written", "line"),
    [
        (SpikeGeometry(32, 48, "big"), "write 'bit_order: big' into"),
        (SpikeGeometry(32, 48, flip_rows=False), "write 'flip_rows: false' into"),
        (SpikeGeometry(32, 48, "big", False), "write 'bit_order: big' and 'flip_rows: false' into"),
    ],
)
def test_f35_wrong_bit_order_or_rows_say_what_to_write(timed, written, line):
    rewrite_spikes(timed / "train/a", lambda bits: bits, written)
    (problem,) = look(timed / "train/a").problems
    assert f"{line} {timed / 'train/a/spike/spike.yaml'}" in problem
    assert str(timed / "dataset.yaml") in problem
    rewrite_spikes(timed / "val/b", lambda bits: bits, GEOMETRY)
    assert look(timed / "val/b").problems == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda bits: 1 - bits, "0 and 1 are exchanged"),
        (lambda bits: random_spikes(*bits.shape), "do not look like the sharp frames"),
    ],
)
def test_spikes_that_show_something_else(timed, change, expected):
    rewrite_spikes(timed / "train/a", change)
    (problem,) = look(timed / "train/a").problems
    assert expected in problem


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "train/a: not a single spike in the window (0"), (1, "nearly every bit is 1")],
)
def test_f35_all_zeros_and_all_ones(timed, tmp_path, capsys, value, expected):
    rewrite_spikes(timed / "train/a", lambda bits: np.full_like(bits, value))
    config = write_config(timed, tmp_path / "timed.yaml")
    text = config.read_text()
    assert run(config) == 1
    if value == 0:  # a deviation of 0 would make the configuration unusable
        assert config.read_text() == text
        assert "all voxels hold the same count" in capsys.readouterr().err
    assert run(config, "--check_only") == 1
    assert expected in capsys.readouterr().out


def test_frames_with_hardly_a_spike_are_a_note(timed):
    def thin_out(bits):
        kept = np.zeros_like(bits)
        kept[::56, :, 0] = 1
        return kept

    rewrite_spikes(timed / "train/a", thin_out)
    frames = scan(timed / "train/a").frames
    entries = {frame.name: count_frame(frame.spikes, 32, None) for frame in frames}
    findings = check_rates("train/a", frames, entries)
    assert findings.problems == []
    assert "train/a: hardly a spike, below 0.001 per pixel and tick (000000, " in findings.notes[0]


@pytest.mark.parametrize(("threshold", "transfer"), [(1.0, "encoded"), (2.0, "linear")])
def test_another_threshold_than_stated_is_a_note(timed, threshold, transfer):
    description = read_description(timed)
    assert look(timed / "train/a", description).notes == []
    other = dataclasses.replace(description, threshold=threshold, transfer=transfer)
    findings = look(timed / "train/a", other)
    assert findings.problems == []
    (note,) = findings.notes
    assert f"dataset.yaml says {threshold:g} with {transfer} light" in note
    if transfer == "encoded":
        found = float(re.search(r"threshold of ([0-9.]+) gives", note).group(1))
        assert found == pytest.approx(2.0, abs=0.1)  # what the spikes were made with


def test_of_many_right_sequences_not_all_are_listed(timed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(spikes_match_frames, "MAX_SEEN", 1)
    config = write_config(timed, tmp_path / "timed.yaml")
    assert run(config) == 0
    assert run(config, "--check_only") == 0
    printed = capsys.readouterr().out
    assert "train/a: stated tick 24.0" in printed
    assert "val/b: stated tick" not in printed
    assert "1 more sequences show their sharp frames as stated" in printed


def test_two_frames_are_enough_for_a_large_offset_and_not_for_a_small_one(tmp_path):
    problems = look(write_timed(tmp_path / "8", frames=2, ticks_late=8) / "train/a").problems
    assert re.search(r"(7\.[89]|8\.[012]) ticks too late", problems[0])
    findings = look(write_timed(tmp_path / "1", frames=2, ticks_late=1) / "train/a")
    assert findings.problems == []
    assert "fewer than 3 frames move, so this is not certain" in "".join(findings.notes)


def timings(*offsets, error=0.0, at_end=()):
    return [
        Timing(str(i), 24.0, 24.0 + offset, error, i in at_end) for i, offset in enumerate(offsets)
    ]


@pytest.mark.parametrize(
    ("shifted", "at_end", "is_wide"),
    [
        ((2,), (), False),
        ((0, 1), (0, 1), False),  # less than half of them
        ((0, 1, 2), (), True),
        ((), (0, 1, 2), True),
        ((0, 1, 2, 3, 4), (), True),
    ],
)
def test_all_frames_are_searched_wider_or_none(shifted, at_end, is_wide):
    """A frame that seems off is not searched wider alone: that made chance look decisive."""
    found = timings(*(9 * (i in shifted) for i in range(5)), at_end=at_end)
    assert needs_wider_search(found) == is_wide


def test_what_an_offset_may_be_by_hand():
    spread = math.sqrt(math.pi / 2)  # from the mean distance of a normal variable
    assert allowed_ticks(timings(0, 0, 0, 5)) == pytest.approx(0.5 + 3 * 1.25 * spread / 2)
    assert allowed_ticks(timings(2, 2, 2, 2)) == 0.5
    assert allowed_ticks(timings(2, 2, 2, 2, error=0.2)) == pytest.approx(0.5 + 3 * 0.2 / 2)


def test_how_many_frames_make_an_offset_certain():
    assert is_certain(timings(1, 1, 1), 56)
    assert not is_certain(timings(2.5, 2.5), 56)  # 5% of the exposure are 2.8 ticks
    assert is_certain(timings(3, 3), 56)
    assert not is_certain(timings(3, 1), 56)
    assert not is_certain(timings(30), 56)


def test_correlations_by_hand(timed):
    """The picture of the rate correlates with the sharp frame as numpy says, in every order."""
    frame = scan(timed / "train/a").frames[2]
    source, sharp = frame.spikes, grey_at_spike_size(read_image(frame.sharp), (32, 48))
    fit = sample_bits((frame,))
    assert len(fit.correlations) == 4
    for geometry, found in fit.correlations.items():
        counts = SpikeFile(source.path, geometry).read(source.start, source.stop).sum(axis=0)
        expected = np.corrcoef(counts.ravel(), sharp.ravel())[0, 1]
        assert found == pytest.approx(expected, abs=1e-6)


# ---------------------------------------------------------------- shifts by whole exposures


def move_exposures(folder, number):
    """State every exposure `number` exposures later, so that the spikes come early."""

    def moved(i, exposure, rows):
        other = rows.get(i + number)
        return other and dataclasses.replace(exposure, t0=other.t0, t1=other.t1)

    change_exposures(folder, moved)


@pytest.mark.parametrize(
    ("number", "expected"), [(-1, "1 exposure late"), (2, "2 exposures early")]
)
def test_shifts_in_both_directions_are_named_with_their_size(mini, number, expected):
    move_exposures(mini / "train/seq_000", number)
    (problem,) = check_exposures("a", scan(mini / "train/seq_000").frames, 32).problems
    assert problem.startswith(f"a: the spikes are {expected}: in 5 of 5")


def test_a_shift_by_a_whole_exposure_without_t_sharp(mini, tmp_path, capsys):
    config = write_config(mini, tmp_path / "mini.yaml")
    assert run(config, "--overlay", "2") == 0
    printed = capsys.readouterr().out
    names = ("train/seq_000", "val/seq_000")
    for name in names:
        assert f"{name}: 5 of 5 sampled exposures fit their own blurry frame best" in printed
        move_exposures(mini / name, 1)
    for arguments in ([], ["--check_only", "--overlay", "2"]):
        assert run(config, *arguments) == 1
        printed = capsys.readouterr().out
        for name in names:
            found = printed.count(f"{name}: the spikes are 1 exposure early: in 5 of 5")
            assert found == 1 + ("--overlay" in arguments)
    assert run(config, "--accept", "tried") == 0
    assert run(config, "--overlay", "2") == 1  # what is accepted is still printed


def test_a_whole_exposure_late_with_t_sharp(tmp_path):
    root = write_timed(tmp_path / "timed", ticks_late=WINDOW)
    found = scan(root / "train/a")
    findings = check_sequence("a", found.frames, found.ticks_per_second, None)
    (problem,) = findings.problems  # it is not called another recording besides
    assert "1 exposure late" in problem


@pytest.mark.parametrize("late", [False, True])
def test_counts_without_bits_are_compared_too(tmp_path, late):
    root = write_miniature(tmp_path / "mini", sequences=1, frames=6, n=11, spikes="voxels")
    files = sorted((root / "train/seq_000/spike_vox").glob("*.npy"))
    if late:
        for path, counts in zip(files[1:], [np.load(path) for path in files[:-1]], strict=True):
            np.save(path, counts)
    findings = check_exposures("a", scan(root / "train/seq_000").frames, 32)
    assert bool(findings.problems) == late
    assert all("1 exposure late" in problem for problem in findings.problems)


def test_single_frames_never_make_a_problem(mini):
    """One exposure of nine is stated wrongly: that is a note and stops nothing."""

    def late(i, exposure, rows):
        is_it = i == 4
        return dataclasses.replace(exposure, t0=rows[5].t0, t1=rows[5].t1) if is_it else exposure

    change_exposures(mini / "train/seq_000", late)
    findings = check_exposures("a", scan(mini / "train/seq_000").frames, 32)
    assert findings.problems == []
    assert "000004 one after it; look with --overlay" in findings.notes[0]


@pytest.mark.parametrize(
    ("other", "expected"),
    [(4, "4 of 5 .* best, 000003 one after it"), (7, "4 of 6 .* 000007 one after it, 000003 none")],
)
def test_single_frames_are_noted_although_the_others_are_right(tmp_path, other, expected):
    """Two frames changed their names: the median of the ticks does not see that."""
    folder = write_timed(tmp_path / "timed", frames=10) / "train/a"
    for kind in ("blur", "sharp"):
        first, second = folder / kind / "000003.png", folder / kind / f"{other:06d}.png"
        pictures = first.read_bytes(), second.read_bytes()
        first.write_bytes(pictures[1])
        second.write_bytes(pictures[0])
    found = scan(folder)
    findings = check_sequence("a", found.frames, found.ticks_per_second, None)
    assert findings.problems == []
    assert "a: stated tick 24.0, measured 24." in findings.seen[0]
    assert re.search(expected, findings.notes[0])


def test_frames_around_are_taken_by_number_aligned_or_not(mini):
    """The next frame has no exposure any more, so the last usable one had none on that side."""
    folder = mini / "train/seq_000"
    move_exposures(folder, 1)  # frame 8 loses its exposure
    (folder / "blur/000002.png").unlink()
    frames = scan(folder, use_voxel_cache=False).frames
    assert [frame.index for frame in frames] == [0, 1, 3, 4, 5, 6, 7]
    assert [sorted(frames_around(frame)) for frame in frames] == [
        [0, 1],
        [-1, 0],
        [0, 1],
        *[[-1, 0, 1]] * 4,
    ]
    fit = draw_overlay(Recording("seq_000", frames, 32), len(frames) - 1)[1]
    assert fit.sentence.startswith("! THE SPIKES FIT THE NEXT FRAME")


def test_one_side_is_called_one_side():
    assert "one side only" in ExposureFit({-1: 0.5, 0: 0.9}).sentence
    assert "one side" not in ExposureFit({-1: 0.5, 0: 0.9, 1: 0.5}).sentence
    assert ExposureFit({0: 0.1, 1: 0.19}).best is None


def test_the_counts_of_a_file_have_the_bins_of_the_configuration(tmp_path):
    root = write_miniature(
        tmp_path / "mini", sequences=1, frames=4, n=11, spikes="voxels", num_bins=16
    )
    found = scan(root / "train/seq_000", num_bins=16)
    findings = check_content([PreparedSplit("train", [found])], None, 16, 1)
    assert "not compared" not in str(findings.notes)
    assert "fit their own blurry frame best" in str(findings.seen)


def test_numbers_may_go_in_steps_and_files_may_come_later(mini, tmp_path):
    frame = scan(mini / "train/seq_000").frames[0]
    for number in (0, 10, 20, 30, 35):
        (tmp_path / f"{number}.png").touch()

    def near(number):
        path = tmp_path / f"{number}.png"
        found = frames_around(dataclasses.replace(frame, blurry=path, index=number))
        return {distance: path.stem for distance, path in found.items()}

    assert near(10) == {-1: "0", 0: "10", 1: "20"}
    assert near(35) == {0: "35"}
    (tmp_path / "45.png").touch()
    assert near(35) == {0: "35", 1: "45"}
    single = tmp_path / "single"
    single.mkdir()
    (single / "7.png").touch()
    alone = dataclasses.replace(frame, blurry=single / "7.png", index=7)
    assert frames_around(alone) == {0: single / "7.png"}


def fit_of(best):
    """Return a fit whose best frame is at a distance; None: that of a still scene."""
    values = {-3: 0.3, -2: 0.3, -1: 0.5, 0: 0.5, 1: 0.5, 2: 0.3, 3: 0.3}
    return ExposureFit(values if best is None else {**values, best: 0.9})


@pytest.mark.parametrize(
    ("votes", "side"),
    [
        ((1, 1, 0), 1),  # two of three
        ((1, 1, 0, 0, 0), 0),
        ((1, 1, 1, 0, 0), 0),  # three of five are less than two thirds
        ((-1, -2, -1, -3, 0), -1),
        ((1, -1, 1, -1), 0),
        ((1,), 0),
    ],
)
def test_two_thirds_of_the_votes_are_a_shift(votes, side):
    assert shifted_side(votes) == side
    assert [fit_of(vote).best for vote in votes] == list(votes)
    assert fit_of(None).best is None


@pytest.mark.parametrize(("distances", "number"), [((1, 1, 2), 1), ((2, 1), 1), ((3,), 3)])
def test_a_shift_is_as_large_as_most_frames_show_it(distances, number):
    fits = [ExposureFit({**fit_of(d).correlations, -3: 0.95}) for d in distances]  # another side
    assert shift_of(fits, 1) == number


def test_frames_with_others_on_both_sides_come_first(mini):
    """Of nine frames 0, 2, 4, 6 and 8 are sampled; the first and the last have one side only."""
    found = sample_exposures(scan(mini / "train/seq_000").frames, 32)
    assert len(found) == 5
    assert not {0, 8} & set(found)


def test_more_frames_are_looked_at_where_few_move(tmp_path):
    still = scan(write_timed(tmp_path / "still", frames=12, speed=0) / "train/a").frames
    assert len(sample_exposures(still, 32)) == 12
    moving = scan(write_timed(tmp_path / "moving", frames=12) / "train/a").frames
    assert len(sample_exposures(moving, 32)) == 5
