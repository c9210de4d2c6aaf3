"""GOPRO_Large_all with and without its pairs: windows, offsets, the released files as the truth."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from src.data.description import read_description
from src.data.errors import DataSetError
from src.data.exposures import read_alignment, read_exposures
from src.data.frames import read_image
from src.data.simulation.blur import blur_window, synthesize_blur
from src.data.spikes.spike_dat import SpikeFile, read_sidecar
from src.prepare.sources.gopro import exposures_of, parse_name
from tests.source_cases import (
    GOPRO_CLIPS,
    SMALL_GOPRO,
    Drift,
    norm_of,
    prepare,
    tick_errors,
    write_config,
    write_gopro,
)

OFFSETS = (
    ("train/GOPR0372_07_01", 1),
    ("train/GOPR0374_11_03", 3),
    ("val/GOPR0384_11_05", 5),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gopro")
    write_gopro(folder / "down")
    config = write_config(folder, folder / "ours")
    assert prepare(config, "gopro", folder / "down") == 0
    return folder


def sequences(made):
    splits = {"train": "train", "test": "val"}
    return {clip: made / "ours" / splits[clip.split] / clip.name for clip in GOPRO_CLIPS}


def test_the_instant_of_every_sharp_frame_is_the_stated_tick(made):
    """The TFP image that fits best lies within half a tick, for every kind of clip."""
    kinds = set()
    for clip, folder in sequences(made).items():
        for index, error in tick_errors(folder, width=15).items():
            assert abs(error) <= 0.5, (clip.name, index, error)
        kinds.add((clip.n, clip.zz))
    assert kinds == {(7, 0), (7, 1), (11, 3), (13, 0), (11, 5)}


def test_the_measurement_sees_a_shift_of_one_source_frame(made, tmp_path):
    folder = shutil.copytree(sequences(made)[GOPRO_CLIPS[0]], tmp_path / "shifted")
    path = folder / "spike" / "spike.dat"
    tick_bytes = read_sidecar(path).geometry.tick_bytes
    path.write_bytes(path.read_bytes()[8 * tick_bytes :])
    errors = tick_errors(folder, width=15)
    assert all(abs(error + 8) <= 0.5 for error in errors.values())


def test_windows_and_sharp_ticks_by_hand(made):
    exposures = read_exposures(sequences(made)[GOPRO_CLIPS[4]] / "exposures.csv", None)
    assert list(exposures) == [1, 2]  # frame 0 begins 5 source frames before the clip
    assert [round(t * 1920) for t in (exposures[1].t0, exposures[1].t1, exposures[1].t_sharp)] == [
        *(6 * 8, 17 * 8, 11 * 8)
    ]
    for clip, folder in sequences(made).items():
        for k, exposure in read_exposures(folder / "exposures.csv", None).items():
            window = blur_window(k, clip.n, clip.zz)
            assert (exposure.t0, exposure.t1) == (window.t0, window.t1)
            assert exposure.t_sharp == window.sharp_frame / 240


def test_released_files_are_copied_byte_for_byte(made):
    for clip, folder in sequences(made).items():
        released = made / "down/GOPRO_Large" / clip.split / clip.name
        names = sorted(path.stem for path in (folder / "blur").iterdir())
        assert names == [f"{k:06d}" for k in range(1 if clip.zz else 0, clip.num_pairs)]
        for name in names:
            theirs = f"{clip.first_pair + int(name):06d}.png"
            for kind in ("blur", "sharp"):
                ours = (folder / kind / f"{name}.png").read_bytes()
                assert ours == (released / kind / theirs).read_bytes()


def test_description_log_and_numbers(made):
    description = read_description(made / "ours")
    assert description.source == "GOPRO_Large_all with the pairs of GOPRO_Large"
    assert description.offsets == OFFSETS
    assert description.frames_averaged == (7, 11, 13)
    assert (description.blur_kind, description.transfer, description.threshold) == (
        *("blur", "encoded", 2.0),
    )
    assert (description.interpolator, description.ticks_per_second) == ("linear", 1920)
    assert (description.spike_height, description.spike_width) == (48, 64)
    assert [entry.frames for entry in description.fingerprint] == [3 + 2 + 2 + 3, 2]
    log = read_alignment([made / "out/logs/align_ours.txt"])
    assert set(log.records) == {
        f"{'val' if clip.split == 'test' else 'train'}/{clip.name}" for clip in GOPRO_CLIPS
    }
    assert norm_of(made / "ours.yaml")["MEAN"] > 0


def test_the_stream_covers_the_clip_and_has_its_light(made):
    clip = GOPRO_CLIPS[0]
    path = sequences(made)[clip] / "spike" / "spike.dat"
    stream = SpikeFile(path, read_sidecar(path).geometry)
    assert stream.num_ticks == 24 * 8
    rate = stream.read(0, stream.num_ticks).mean()
    scene = Drift(0)
    grey = np.mean([scene.at(j) @ (0.299, 0.587, 0.114) for j in range(24)]) / 255
    assert abs(2 * rate - grey) < 0.01


def test_a_second_run_makes_nothing(made, capsys):
    before = {path: path.stat().st_mtime_ns for path in (made / "ours").rglob("*")}
    capsys.readouterr()
    assert prepare(made / "ours.yaml", "gopro", made / "down/GOPRO_Large_all") == 0
    printed = capsys.readouterr().out
    assert "5 sequences were there already" in printed
    assert "val/GOPR0384_11_05: frame 000000 dropped: its exposure begins 5 source fr" in printed
    assert {path: path.stat().st_mtime_ns for path in (made / "ours").rglob("*")} == before


@pytest.fixture
def small(tmp_path):
    write_gopro(tmp_path / "down", SMALL_GOPRO)
    write_config(tmp_path, tmp_path / "ours")
    return tmp_path


def test_gamma_takes_the_other_folder(small):
    assert prepare(small / "ours.yaml", "gopro", small / "down", "--blur_kind", "blur_gamma") == 0
    ours = small / "ours/val/GOPR0385_07_00/blur/000001.png"
    theirs = small / "down/GOPRO_Large/test/GOPR0385_07_00"
    assert ours.read_bytes() == (theirs / "blur_gamma/000002.png").read_bytes()
    assert ours.read_bytes() != (theirs / "blur/000002.png").read_bytes()
    assert read_description(small / "ours").blur_kind == "blur_gamma"


def test_a_wrong_name_gives_way_to_the_pixels(small, capsys):
    """The clip was cut with an offset of 3, whatever its name says."""
    for part in ("GOPRO_Large_all", "GOPRO_Large"):
        folder = small / "down" / part / "train"
        (folder / "GOPR0374_11_03").rename(folder / "GOPR0374_11_00")
    assert prepare(small / "ours.yaml", "gopro", small / "down") == 0
    printed = capsys.readouterr().out
    assert "GOPR0374_11_00: offset 3 found by its pixels, its name says 0" in printed
    assert read_description(small / "ours").offsets == (("train/GOPR0374_11_00", 3),)
    folder = small / "ours/train/GOPR0374_11_00"
    assert max(map(abs, tick_errors(folder, width=15).values())) <= 0.5


def test_the_folder_can_be_named_from_inside(small, monkeypatch):
    monkeypatch.chdir(small / "down/GOPRO_Large_all")
    assert prepare(small / "ours.yaml", "gopro", ".") == 0
    assert "with the pairs" in read_description(small / "ours").source


def test_without_pairs_blur_is_computed_and_the_name_decides(tmp_path, caplog):
    write_gopro(tmp_path / "down", SMALL_GOPRO, pairs=False)
    config = write_config(tmp_path, tmp_path / "ours")
    with caplog.at_level("INFO"):
        assert prepare(config, "gopro", tmp_path / "down") == 0
    assert "taken from their names without a check" in caplog.text
    description = read_description(tmp_path / "ours")
    assert "unchecked" in description.source
    assert description.offsets == (("train/GOPR0374_11_03", 3),)
    folder, scene = tmp_path / "ours/train/GOPR0374_11_03", Drift(0)
    frames = np.stack([scene.at(j) for j in range(8, 19)])
    assert np.array_equal(read_image(folder / "blur/000001.png"), synthesize_blur(frames))
    assert np.array_equal(read_image(folder / "sharp/000001.png"), frames[5])
    assert max(map(abs, tick_errors(folder, width=15).values())) <= 0.5


def test_no_interpolator_is_one_tick_per_frame(small):
    assert prepare(small / "ours.yaml", "gopro", small / "down", "--interpolator", "none") == 0
    description = read_description(small / "ours")
    assert (description.interpolator, description.ticks_per_second) == ("none", 240)
    folder = small / "ours/train/GOPR0374_11_03"
    assert (folder / "spike/spike.dat").stat().st_size == 36 * 48 * 64 // 8
    assert read_exposures(folder / "exposures.csv", None)[1].t_sharp == 13 / 240
    assert max(map(abs, tick_errors(folder, width=3).values())) <= 0.5


def test_linear_light_goes_with_gamma(small):
    options = ("--transfer", "linear", "--blur_kind", "blur_gamma", "--threshold", "1.5")
    assert prepare(small / "ours.yaml", "gopro", small / "down", *options) == 0
    description = read_description(small / "ours")
    assert (description.transfer, description.threshold) == ("linear", 1.5)
    folder = small / "ours/val/GOPR0385_07_00"
    path = folder / "spike/spike.dat"
    bits = SpikeFile(path, read_sidecar(path).geometry).read(0, 56)
    blurry = read_image(folder / "blur/000000.png") / 255.0
    assert abs(1.5 * bits.mean() - (blurry**2.2 @ (0.299, 0.587, 0.114)).mean()) < 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--stride", 3), "--stride 3 does not apply: the names of GoPro's sequences say it"),
        (("--threshold", 0.5), "1 or more is needed"),
        (("--threshold", -1), "--threshold -1.0: a number above 0"),
        (("--interpolator", "none", "--ticks_per_frame", 8), "need light between the frames"),
        (("--downscale", 5), "frames of 96x128 cannot be divided by --downscale 5"),
        (("DATA.VAL_SPLIT", "test"), "sources write train and val"),
    ],
)
def test_options_that_cannot_be(small, arguments, message, capsys):
    assert prepare(small / "ours.yaml", "gopro", small / "down", *arguments) == 1
    assert message in capsys.readouterr().err
    assert not (small / "ours").exists()


def test_a_folder_without_clips(tmp_path, capsys):
    (tmp_path / "down").mkdir()
    assert prepare(write_config(tmp_path, tmp_path / "ours"), "gopro", tmp_path / "down") == 1
    assert "holds no GOPRO_Large_all/{train,test}/GOPRxxxx_nn_zz" in capsys.readouterr().err


def test_names_and_windows_by_hand():
    assert parse_name(Path("down/GOPR0384_11_05")) == (11, 5)
    for wrong in ("GOPR0384_11", "GOPR0384_10_00", "seq_000"):
        with pytest.raises(DataSetError, match=wrong):
            parse_name(Path("down") / wrong)
    windows, notes = exposures_of(36, 11, 5, 8)
    assert [(w.index, w.start_tick, w.stop_tick, w.sharp_tick) for w in windows] == [
        (1, 48, 136, 88),
        (2, 136, 224, 176),
    ]
    assert notes == [
        "frame 000000 dropped: its exposure begins 5 source frame(s) before the sequence"
    ]
