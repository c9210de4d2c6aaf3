"""What the check sees in pictures and spikes; every fault is made in a data set that was right."""

import dataclasses
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest

from src.data.description import read_description
from src.data.exposures import read_exposures, write_exposures
from src.data.frames import read_image
from src.data.spikes.matching import grey_at_spike_size
from src.data.spikes.spike_dat import SpikeFile, SpikeGeometry, write_spikes
from src.data.voxel_counts import count_frame
from src.prepare import check_content, check_timing
from src.prepare.check_content import ContentTask, look_at
from src.prepare.check_reading import check_rates, read_ways
from src.prepare.check_timing import Timing, _allowed, measure
from tests.data_cases import copy_root, scan
from tests.film_cases import write_film, write_film_sequence
from tests.prepare_cases import run, write_config
from tests.spike_cases import random_spikes

GEOMETRY = SpikeGeometry(32, 48)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_film(tmp_path_factory.mktemp("film") / "film")


@pytest.fixture
def root(original, tmp_path):
    return copy_root(original, tmp_path / "film")


def look(folder, description=None):
    found = scan(folder)
    assert found.frames
    return look_at(ContentTask("train/a", found.frames, found.ticks_per_second, description))


def rewrite_spikes(folder, change, geometry=GEOMETRY):
    for path in (folder / "spike").glob("*.dat"):
        file = SpikeFile(path, GEOMETRY)
        write_spikes(path, change(file.read(0, file.num_ticks)), geometry)


@pytest.mark.parametrize("stream", [True, False])
def test_right_data_have_no_problem_and_say_what_was_measured(tmp_path, stream):
    root = write_film(tmp_path / "film", stream=stream)
    config = write_config(root, tmp_path / "film.yaml")
    assert run(config) == 0
    assert run(config, "--check_only") == 0
    findings = look(root / "train/a")
    assert (findings.problems, findings.notes) == ([], [])
    assert findings.seen[0].startswith("train/a: stated tick 24.0, measured 2")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("i", [1, 3])
def test_the_measured_tick_is_the_stated_one(tmp_path, stream, i):
    write_film_sequence(tmp_path / "train/a", 5, (64, 96), stream, 1, 0, seed=7)
    found = scan(tmp_path / "train/a")
    (timing,) = measure(found.frames, [i], found.ticks_per_second)
    assert timing.stated == 24
    assert timing.measured == pytest.approx(24, abs=0.5)


@pytest.mark.parametrize(
    ("ticks", "meaning"),
    [(8, "1 source frame"), (-16, "2 source frames"), (3, None)],
)
@pytest.mark.parametrize("stream", [True, False])
def test_spikes_at_the_wrong_time_are_named_with_their_offset(tmp_path, stream, ticks, meaning):
    root = write_film(tmp_path / "film", stream=stream, ticks_late=ticks)
    (problem,) = look(root / "train/a", read_description(root)).problems
    way = "late" if ticks > 0 else "early"
    match = re.search(
        rf"([0-9.]+) ticks too {way} \(stated tick 24.0, measured ([0-9.]+) ", problem
    )
    assert float(match.group(1)) == pytest.approx(abs(ticks), abs=0.5)
    assert float(match.group(2)) == pytest.approx(24 + ticks, abs=0.5)
    assert (f"; that is {meaning})" in problem) if meaning else ("that is" not in problem)
    assert "correct t0, t1 and t_sharp in exposures.csv" in problem


def test_a_wrong_t_sharp_is_a_problem_of_the_whole_check(root, tmp_path, capsys):
    path = root / "train/a/exposures.csv"
    late = {
        index: dataclasses.replace(e, t_sharp=e.t_sharp + 4 / 1920)
        for index, e in read_exposures(path, None).items()
    }
    config = write_config(root, tmp_path / "film.yaml")
    write_exposures(path, late)
    assert run(config) == 1
    assert "train/a: the spikes show the sharp frame 4." in capsys.readouterr().out
    assert run(config, "--check_only") == 1
    told = capsys.readouterr().out
    assert "train/a: the spikes show the sharp frame 4." in told
    assert "stated tick 28.0, measured 2" in told
    assert "val/b: stated tick 24.0, measured 2" in told


def test_less_than_three_frames_that_move_are_no_proof(tmp_path):
    root = write_film(tmp_path / "film", frames=2, ticks_late=8)
    findings = look(root / "train/a")
    assert findings.problems == []
    assert "fewer than 3 frames move, so no proof" in "".join(findings.notes)


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
def test_all_frames_are_looked_for_wider_or_none(monkeypatch, shifted, at_end, is_wide):
    """A frame that seems off is not searched wider alone: that made chance look decisive."""
    wide = []

    def match(frames, i, *, is_wide):
        wide.extend([i] * is_wide)
        values = {"centre": 24.0 + 9 * (i in shifted), "centre_error": np.inf}
        return SimpleNamespace(**values, is_at_end=i in at_end, is_decisive=i != 5)

    monkeypatch.setattr(check_timing, "_match", match)
    monkeypatch.setattr(check_timing, "_stated_tick", lambda *_: 24.0)
    frames = tuple(SimpleNamespace(name=str(i)) for i in range(6))
    timings = measure(frames, list(range(6)), None)
    assert wide == ([0, 1, 2, 3, 4] if is_wide else [])
    assert [(timing.offset, timing.error) for timing in timings] == [
        (9 * (i in shifted), 0.0) for i in range(5)
    ]


def test_what_an_offset_may_be_by_hand():
    def timings(*offsets, error=0.0):
        return [Timing(str(i), 24.0, 24.0 + offset, error) for i, offset in enumerate(offsets)]

    spread = math.sqrt(math.pi / 2)  # from the mean distance of a normal variable
    assert _allowed(timings(0, 0, 0, 5)) == pytest.approx(0.5 + 3 * 1.25 * spread / 2)
    assert _allowed(timings(2, 2, 2, 2)) == 0.5
    assert _allowed(timings(2, 2, 2, 2, error=0.2)) == pytest.approx(0.5 + 3 * 0.2 / 2)


def test_a_still_scene_is_not_provable_and_no_problem(tmp_path):
    root = write_film(tmp_path / "film", speed=0)
    findings = look(root / "train/a")
    assert findings.problems == []
    assert "sharp against blur cannot be proven" in findings.notes[0]
    assert "TFP centre against sharp is not provable" in findings.notes[1]


def test_without_t_sharp_the_check_says_that_it_is_blind(root):
    path = root / "train/a/exposures.csv"
    write_exposures(
        path,
        {
            index: dataclasses.replace(e, t_sharp=None)
            for index, e in read_exposures(path, None).items()
        },
    )
    findings = look(root / "train/a")
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
def test_f35_wrong_bit_order_or_rows_say_what_to_write(root, written, line):
    rewrite_spikes(root / "train/a", lambda bits: bits, written)
    (problem,) = look(root / "train/a").problems
    assert f"{line} {root / 'train/a/spike/spike.yaml'}" in problem
    assert str(root / "dataset.yaml") in problem
    rewrite_spikes(root / "val/b", lambda bits: bits, GEOMETRY)
    assert look(root / "val/b").problems == []


def test_correlations_by_hand(root):
    """The picture of the rate correlates with the sharp frame as numpy says."""
    frame = scan(root / "train/a").frames[2]
    spikes = SpikeFile(frame.spikes.path, GEOMETRY).read(frame.spikes.start, frame.spikes.stop)
    sharp = grey_at_spike_size(read_image(frame.sharp), (32, 48))
    expected = np.corrcoef(spikes.mean(axis=0).ravel(), sharp.ravel())[0, 1]
    reading = read_ways(frame)
    assert reading.correlations["little", True] == pytest.approx(expected, abs=1e-6)
    flipped = np.corrcoef(spikes[:, ::-1].mean(axis=0).ravel(), sharp.ravel())[0, 1]
    assert reading.correlations["little", False] == pytest.approx(flipped, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda bits: 1 - bits, "0 and 1 are exchanged"),
        (lambda bits: random_spikes(*bits.shape), "do not look like the sharp frames"),
    ],
)
def test_spikes_that_show_something_else(root, change, expected):
    rewrite_spikes(root / "train/a", change)
    (problem,) = look(root / "train/a").problems
    assert expected in problem


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "train/a: not a single spike in the window (0"), (1, "nearly every bit is 1")],
)
def test_f35_all_zeros_and_all_ones(root, tmp_path, capsys, value, expected):
    rewrite_spikes(root / "train/a", lambda bits: np.full_like(bits, value))
    config = write_config(root, tmp_path / "film.yaml")
    text = config.read_text()
    assert run(config) == 1
    if value == 0:  # a deviation of 0 would make the configuration unusable
        assert config.read_text() == text
        assert "all voxels hold the same count" in capsys.readouterr().err
    assert run(config, "--check_only") == 1
    assert expected in capsys.readouterr().out


def test_frames_with_hardly_a_spike_are_a_note(root):
    def thin_out(bits):
        kept = np.zeros_like(bits)
        kept[::56, :, 0] = 1
        return kept

    rewrite_spikes(root / "train/a", thin_out)
    frames = scan(root / "train/a").frames
    entries = {frame.name: count_frame(frame.spikes, 32, None) for frame in frames}
    findings = check_rates("train/a", frames, entries)
    assert findings.problems == []
    assert "train/a: hardly a spike, below 0.001 per pixel and tick (000000, " in findings.notes[0]


@pytest.mark.parametrize(("threshold", "transfer"), [(1.0, "encoded"), (2.0, "linear")])
def test_another_threshold_than_stated_is_a_note(root, threshold, transfer):
    description = read_description(root)
    assert look(root / "train/a", description).notes == []
    other = dataclasses.replace(description, threshold=threshold, transfer=transfer)
    findings = look(root / "train/a", other)
    assert findings.problems == []
    (note,) = findings.notes
    assert f"dataset.yaml says {threshold:g} with {transfer} light" in note
    if transfer == "encoded":
        found = float(re.search(r"threshold of ([0-9.]+) gives", note).group(1))
        assert found == pytest.approx(2.0, abs=0.1)  # what the spikes were made with


def test_of_many_right_sequences_not_all_are_told(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check_content, "MAX_SEEN", 1)
    config = write_config(root, tmp_path / "film.yaml")
    assert run(config) == 0
    assert run(config, "--check_only") == 0
    told = capsys.readouterr().out
    assert "train/a: stated tick 24.0" in told
    assert "val/b: stated tick" not in told
    assert "1 more sequences show their sharp frames as stated" in told
