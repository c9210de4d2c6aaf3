"""Which blurry frame belongs to which sharp one: by hand, and in data sets with one fault."""

import shutil

import numpy as np
import pytest

from src.data.frames import read_image, write_png
from src.prepare.frame_checks import check_pairs, compare_pair
from tests.data_cases import scan
from tests.prepare_cases import run, write_config
from tests.timed_cases import write_timed


def pairs(folder):
    return check_pairs("train/a", scan(folder).frames)


@pytest.mark.parametrize(
    ("blurry", "margin_db"),
    [(100, 20 * np.log10(2)), (115, -20 * np.log10(5))],  # 25 from its own, 5 from the one before
)
def test_margin_by_hand(timed, blurry, margin_db):
    """Uniform pictures: errors 10^2 to the own sharp frame, 20^2 and 40^2 to those beside it."""
    folder = timed / "train/a"
    for name, value in (("000001", 120), ("000002", 90), ("000003", 60)):
        write_png(folder / f"sharp/{name}.png", np.full((64, 96, 3), value, np.uint8))
    pictures = (np.full((64, 96), value, np.float32) for value in (blurry, 90))
    found = compare_pair(scan(folder).frames, 2, *pictures)
    assert found[0] == pytest.approx(margin_db, abs=1e-2)


@pytest.mark.parametrize(("shift", "words"), [(1, "1 later"), (-1, "1 earlier"), (2, "2 later")])
def test_shifted_sharp_frames_are_named_with_the_shift(timed, shift, words):
    folder = timed / "train/a"
    (folder / "sharp").rename(folder / "old")
    (folder / "sharp").mkdir()
    for i in range(6):
        # the sharp frame of blurry frame i now carries the name i + shift
        if 0 <= i + shift < 6:
            shutil.copy(folder / f"old/{i:06d}.png", folder / f"sharp/{i + shift:06d}.png")
    (problem,) = pairs(folder).problems
    assert "sampled blurry frames resemble the sharp frame before or after more" in problem
    assert f"most fit the sharp frame {words}: rename the sharp frames" in problem


def test_one_wrong_pair_is_named_and_right_ones_are_silent(timed):
    folder = timed / "train/a"
    findings = pairs(folder)
    assert (findings.notes, findings.problems) == ([], [])
    shutil.copy(folder / "blur/000002.png", folder / "blur/000003.png")
    (problem,) = pairs(folder).problems
    assert problem.startswith("train/a: 1 of 5 sampled blurry frames resemble")
    assert "(000003)" in problem


def test_swapped_folders_are_seen(timed, tmp_path, capsys):
    for folder in (timed / "train/a", timed / "val/b"):
        (folder / "blur").rename(folder / "x")
        (folder / "sharp").rename(folder / "blur")
        (folder / "x").rename(folder / "sharp")
    config = write_config(timed, tmp_path / "timed.yaml")
    assert run(config) == 1
    assert run(config, "--check_only") == 1
    printed = capsys.readouterr().out
    assert "train/a: blurry frames are sharper than sharp ones" in printed
    assert "val/b: blurry frames are sharper" in printed


def test_blurry_frames_that_are_their_sharp_frames(timed, tmp_path, capsys):
    for name in ("000001", "000004"):
        shutil.copy(timed / f"train/a/sharp/{name}.png", timed / f"train/a/blur/{name}.png")
    config = write_config(timed, tmp_path / "timed.yaml")
    assert run(config) == 0
    capsys.readouterr()
    assert run(config, "--check_only") == 1
    printed = capsys.readouterr().out
    assert "train/a: 2 of 6 blurry frames are pixel for pixel their sharp frames" in printed
    assert "(000001, 000004)" in printed


def test_a_sequence_in_both_splits_and_one_twice(timed, tmp_path, capsys):
    shutil.copytree(timed / "train/a", timed / "val/c")
    shutil.copytree(timed / "train/a", timed / "train/d")
    shutil.copy(timed / "train/a/sharp/000002.png", timed / "val/b/sharp/000004.png")
    config = write_config(timed, tmp_path / "timed.yaml")
    assert run(config) == 0
    capsys.readouterr()
    assert run(config, "--check_only") == 1
    printed = capsys.readouterr().out
    assert (
        "train/a and val/c share 6 sharp frames: validation would see what was trained" in printed
    )
    assert "train/d and val/c share 6 sharp frames" in printed
    assert "train/a and val/b share 1 sharp frames" in printed
    assert "train/a and train/d share 6 sharp frames: the same scene counts twice" in printed


def test_pictures_of_still_scenes_may_be_equal(tmp_path):
    root = write_timed(tmp_path / "timed", speed=0)
    frame = scan(root / "train/a").frames[0]
    assert np.array_equal(read_image(frame.blurry), read_image(frame.sharp))
    config = write_config(root, tmp_path / "timed.yaml")
    assert run(config) == 0
    assert run(config, "--check_only") == 0


def test_sharp_frames_of_another_size_are_no_pairs(timed):
    folder = timed / "train/a"
    for path in (folder / "sharp").iterdir():
        write_png(path, read_image(path)[::2, ::2].copy())
    (problem,) = pairs(folder).problems
    assert "sharp frames have another size than their blurry frames" in problem
    assert "64x96 and 32x48" in problem
