"""X4K1000FPS: overlapping exposures with both ends included, from images and from videos."""

import shutil

import numpy as np
import pytest

from src.data.description import read_description
from src.data.exposures import read_exposures
from src.data.frames import read_image, write_png
from tests.source_cases import (
    Drift,
    prepare,
    tick_errors,
    write_config,
    write_video,
    write_x4k,
)

NAMES = {
    "train/002__occ008.320": "train/002/occ008.320",
    "train/012__occ010.101": "train/012/occ010.101",
    "val/Type1__TEST01_003_f0433": "test/Type1/TEST01_003_f0433",
}
SMALL = {"train/002/occ008.320": 65, "test/Type1/TEST01_003_f0433": 33}


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory):
    return write_x4k(tmp_path_factory.mktemp("x4k") / "down")


@pytest.fixture(scope="module")
def made(downloaded):
    """Made twice: `none` with 17 frames every 4, `linear` with 65 ticks every 15."""
    folder = downloaded.parent
    for interpolator in ("none", "linear"):
        config = write_config(folder, folder / interpolator)
        assert prepare(config, "x4k1000fps", downloaded, "--interpolator", interpolator) == 0
    return folder


@pytest.mark.parametrize(("interpolator", "width"), [("none", 5), ("linear", 15)])
def test_the_instant_of_every_sharp_frame_is_the_stated_tick(made, interpolator, width):
    for name in NAMES:
        for index, error in tick_errors(made / interpolator / name, width).items():
            assert abs(error) <= 0.5, (name, index, error)


def test_windows_by_hand(made):
    """With cross-fades 257 ticks per clip; exposure e = 65, sharp at (e - 1) / 2, every 15."""
    folder = made / "linear/train/002__occ008.320"
    assert (folder / "spike/spike.dat").stat().st_size == 257 * 48 * 64 // 8
    exposures = read_exposures(folder / "exposures.csv", None)
    assert len(exposures) == (257 - 65) // 15 + 1 == 13
    ticks = [tuple(round(4000 * t, 6) for t in (e.t0, e.t1, e.t_sharp)) for e in exposures.values()]
    assert ticks[:3] == [(0, 65, 32), (15, 80, 47), (30, 95, 62)]
    assert exposures[0].t1 == 0.01625  # 16.25 ms
    exposures = read_exposures(made / "none/train/002__occ008.320/exposures.csv", None)
    assert len(exposures) == (65 - 17) // 4 + 1
    assert (exposures[1].t0, exposures[1].t1, exposures[1].t_sharp) == (0.004, 0.021, 0.012)


def test_descriptions_say_what_was_done(made):
    none, linear = (read_description(made / name) for name in ("none", "linear"))
    assert (none.interpolator, none.ticks_per_second, none.frames_averaged) == ("none", 1000, (17,))
    assert (linear.interpolator, linear.ticks_per_second) == ("linear", 4000)
    assert linear.frames_averaged == (65,)
    assert none.source == linear.source == "X4K1000FPS"
    assert [entry.frames for entry in none.fingerprint] == [26, 5]


def test_options_choose_the_exposure(downloaded, tmp_path):
    options = ("--interpolator", "linear", "--frames_averaged", 33, "--stride", 16)
    config = write_config(tmp_path, tmp_path / "ours")
    assert prepare(config, "x4k1000fps", downloaded, *options) == 0
    exposures = read_exposures(tmp_path / "ours/train/002__occ008.320/exposures.csv", None)
    assert [round(4000 * exposures[1].t_sharp), round(4000 * exposures[1].t1)] == [32, 49]
    sharp = read_image(tmp_path / "ours/train/002__occ008.320/sharp/000001.png")
    assert np.array_equal(sharp, read_image(downloaded / "train/002/occ008.320/0008.png"))


@pytest.mark.parametrize("folder", ["train", "encoded_train"])
def test_videos_take_the_place_of_folders(tmp_path, folder):
    places = {place.replace("train", folder, 1): count for place, count in SMALL.items()}
    write_x4k(tmp_path / "down", places, as_video=True)
    config = write_config(tmp_path, tmp_path / "ours")
    assert prepare(config, "x4k1000fps", tmp_path / "down") == 0
    sequence = tmp_path / "ours/train/002__occ008.320"
    assert len(list((sequence / "blur").iterdir())) == 13
    assert max(map(abs, tick_errors(sequence, 5).values())) <= 0.5


def test_folders_win_over_videos_and_both_may_be_there(tmp_path):
    """Some sequences are decoded, others not yet, and one is there as both."""
    write_x4k(tmp_path / "down", {"encoded_train/012/occ010.101": 65}, as_video=True)
    write_x4k(tmp_path / "down", SMALL)
    write_video(tmp_path / "down/train/002/occ008.320.mp4", [Drift(7).at(j) for j in range(65)])
    assert prepare(write_config(tmp_path, tmp_path / "ours"), "x4k1000fps", tmp_path / "down") == 0
    names = sorted(path.name for path in (tmp_path / "ours/train").iterdir())
    assert names == ["002__occ008.320", "012__occ010.101"]
    sharp = read_image(tmp_path / "ours/train/002__occ008.320/sharp/000000.png")
    assert np.array_equal(sharp, read_image(tmp_path / "down/train/002/occ008.320/0008.png"))


def test_f36_faults_are_named(tmp_path, capsys):
    down = write_x4k(tmp_path / "down", SMALL)
    (down / "train/002/occ008.320/0064.png").unlink()
    write_png(down / "test/Type1/TEST01_003_f0433/0031.png", Drift(1, (48, 128)).at(0))
    config = write_config(tmp_path, tmp_path / "ours")
    assert prepare(config, "x4k1000fps", down) == 1
    assert "64 frames, sequences of train have 65" in capsys.readouterr().err
    shutil.rmtree(down / "train")
    assert prepare(config, "x4k1000fps", down) == 1
    printed = capsys.readouterr().err
    assert "0031.png: is (48, 128), the first frame of its folder (96, 128)" in printed
    assert not (tmp_path / "ours/val/Type1__TEST01_003_f0433").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--frames_averaged", 16), "--frames_averaged 16: an odd number"),
        (("--frames_averaged", 67), "65 ticks: too few for one exposure of 67"),
    ],
)
def test_options_that_cannot_be(downloaded, tmp_path, arguments, message, capsys):
    config = write_config(tmp_path, tmp_path / "ours")
    assert prepare(config, "x4k1000fps", downloaded, *arguments) == 1
    assert message in capsys.readouterr().err


def test_a_folder_without_sequences(tmp_path, capsys):
    (tmp_path / "down").mkdir()
    assert prepare(write_config(tmp_path, tmp_path / "ours"), "x4k1000fps", tmp_path / "down") == 1
    assert "holds no sequences; needed are train/002/occ008.320" in capsys.readouterr().err
