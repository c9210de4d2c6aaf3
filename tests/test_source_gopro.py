"""GOPRO_Large_all with and without its pairs: windows, offsets, the released files as the truth."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from src.data.description import read_description
from src.data.errors import DataSetError
from src.data.exposures import read_alignment, read_exposures
from src.data.frames import read_image
from src.data.simulation.blur import synthesize_blur
from src.data.spikes.spike_dat import SpikeFile, read_sidecar
from src.prepare.sources.gopro import exposures_of, find_offset, parse_name
from src.prepare.sources.high_speed import open_frames
from src.prepare.sources.planning import find_pairs
from tests.source_cases import (
    GOPRO_CLIPS,
    SMALL_GOPRO,
    Drift,
    GoproClip,
    norm_of,
    prepare,
    tick_errors,
    write_config,
    write_gopro,
    write_released,
)
from tests.spike_cases import blur_window

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


@pytest.fixture
def small(tmp_path):
    write_gopro(tmp_path / "down", SMALL_GOPRO)
    write_config(tmp_path, tmp_path / "ours")
    return tmp_path


def test_gamma_takes_the_other_folder_and_goes_with_linear_light(small):
    options = ("--transfer", "linear", "--blur_kind", "blur_gamma", "--threshold", "1.5")
    assert prepare(small / "ours.yaml", "gopro", small / "down", *options) == 0
    description = read_description(small / "ours")
    assert (description.blur_kind, description.transfer) == ("blur_gamma", "linear")
    assert description.threshold == 1.5
    folder = small / "ours/val/GOPR0385_07_00"
    theirs = small / "down/GOPRO_Large/test/GOPR0385_07_00"
    copied = (folder / "blur/000001.png").read_bytes()
    assert copied == (theirs / "blur_gamma/000002.png").read_bytes()
    assert copied != (theirs / "blur/000002.png").read_bytes()
    path = folder / "spike/spike.dat"
    bits = SpikeFile(path, read_sidecar(path).geometry).read(0, 56)
    blurry = read_image(folder / "blur/000000.png") / 255.0
    assert abs(1.5 * bits.mean() - (blurry**2.2 @ (0.299, 0.587, 0.114)).mean()) < 0.01


def test_a_wrong_name_gives_way_to_the_pixels(small, capsys, monkeypatch):
    """The sequence was cut with an offset of 3, whatever its name says; its folder is "."."""
    for part in ("GOPRO_Large_all", "GOPRO_Large"):
        folder = small / "down" / part / "train"
        (folder / "GOPR0374_11_03").rename(folder / "GOPR0374_11_00")
    monkeypatch.chdir(small / "down/GOPRO_Large_all")
    assert prepare(small / "ours.yaml", "gopro", ".") == 0
    note = "GOPR0374_11_00: offset 3 found by its pixels, its name says 0"
    assert note in capsys.readouterr().out
    assert read_description(small / "ours").offsets == (("train/GOPR0374_11_00", 3),)
    folder = small / "ours/train/GOPR0374_11_00"
    assert max(map(abs, tick_errors(folder, width=15).values())) <= 0.5


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
    exposures, notes = exposures_of(["0", "1", "2", "3"], 36 * 8, 11, 5, 8)
    ticks = [(e.index, e.start_tick, e.stop_tick, e.sharp_tick) for e in exposures]
    assert ticks == [(1, 48, 136, 88), (2, 136, 224, 176)]
    assert notes == [
        "frame 0 dropped: its exposure begins 5 source frame(s) before the sequence",
        "frame 3 dropped: its exposure ends after tick 288, the end of the sequence",
    ]


# ---------------------------------------------------------------- the released pairs


def test_equal_source_frames_leave_the_name_to_decide(tmp_path):
    """The camera gave the same picture twice; source frame 2, of offset 3, is meant."""
    write_gopro(tmp_path / "down", SMALL_GOPRO)
    folder = tmp_path / "down/GOPRO_Large_all/train/GOPR0374_11_03"
    shutil.copy(folder / "000014.png", folder / "000013.png")
    released = tmp_path / "down/GOPRO_Large/train/GOPR0374_11_03"
    pairs = find_pairs(released / "blur", released / "sharp")
    released = next(iter(pairs.values()))[1]
    found = {hint: find_offset(released, open_frames(folder), 11, hint) for hint in (3, 4, 5)}
    assert found == {3: 3, 4: 4, 5: 4}


def test_pairs_of_another_recording_are_refused(small, capsys):
    for clip in SMALL_GOPRO:
        folder = small / "down/GOPRO_Large" / clip.split / clip.name
        write_released(folder / "sharp" / "000001.png", Drift(99).at(0))
    assert prepare(small / "ours.yaml", "gopro", small / "down") == 1
    printed = capsys.readouterr().err
    for clip in SMALL_GOPRO:  # all are listed
        name = f"{clip.name}: sharp/000001.png"
        assert f"{name} equals none of the first {(clip.n + 1) // 2}" in printed
    assert not (small / "ours").exists()


@pytest.mark.parametrize(("levels", "is_accepted"), [(0.5, True), (2, False)])
@pytest.mark.parametrize("kind", ["blur", "sharp"])
def test_a_released_frame_that_differs_is_named(small, kind, levels, is_accepted, capsys):
    path = small / "down/GOPRO_Large/train/GOPR0374_11_03" / kind / "000003.png"
    image = read_image(path).astype(int)
    image[: len(image) if levels == 2 else len(image) // 2] += 2 if levels == 2 else 1
    write_released(path, image.astype(np.uint8))
    status = prepare(small / "ours.yaml", "gopro", small / "down")
    assert status == (0 if is_accepted else 1)
    if not is_accepted:
        printed = capsys.readouterr().err
        assert f"{kind}/000003.png: differs from" in printed
        assert "by 2.00 grey levels" in printed
        assert "frame 000002 of ours" in printed
        assert "1 of 2 sequences were made and are kept" in printed
        assert not (small / "ours/train/GOPR0374_11_03").exists()


def test_a_missing_pair_is_found(small, capsys):
    """The pairs after it are shifted, which their pixels show."""
    for kind in ("blur", "sharp"):
        (small / "down/GOPRO_Large/train/GOPR0374_11_03" / kind / "000002.png").unlink()
    assert prepare(small / "ours.yaml", "gopro", small / "down") == 1
    assert "000003.png: differs from" in capsys.readouterr().err


def test_pairs_whose_exposure_leaves_the_clip_are_dropped_by_name(tmp_path, capsys):
    clips = (SMALL_GOPRO[0], GoproClip("test", "GOPR0385_07_00", 16, pairs=3))
    write_gopro(tmp_path / "down", clips)
    assert prepare(write_config(tmp_path, tmp_path / "ours"), "gopro", tmp_path / "down") == 0
    printed = capsys.readouterr().out
    assert "val/GOPR0385_07_00: frame 000002 dropped: its exposure ends after tick" in printed
