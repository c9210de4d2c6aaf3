"""The released pairs beside GOPRO_Large_all: found, compared, refused where they differ."""

import shutil

import numpy as np
import pytest

from src.data.frames import read_image
from src.prepare.sources.gopro import find_offset
from src.prepare.sources.plan import find_pairs
from src.prepare.sources.video import open_frames
from tests.source_cases import (
    SMALL_GOPRO,
    Drift,
    GoproClip,
    prepare,
    write_config,
    write_gopro,
    write_released,
)


@pytest.fixture
def small(tmp_path):
    write_gopro(tmp_path / "down", SMALL_GOPRO)
    write_config(tmp_path, tmp_path / "ours")
    return tmp_path


def test_equal_source_frames_leave_the_name_to_decide(tmp_path):
    """The camera gave the same picture twice; source frame 2, of offset 3, is meant."""
    write_gopro(tmp_path / "down", SMALL_GOPRO)
    folder = tmp_path / "down/GOPRO_Large_all/train/GOPR0374_11_03"
    shutil.copy(folder / "000014.png", folder / "000013.png")
    pairs = find_pairs(tmp_path / "down/GOPRO_Large/train/GOPR0374_11_03")
    released = next(iter(pairs.values()))[1]
    found = {hint: find_offset(released, open_frames(folder), 11, hint) for hint in (3, 4, 5)}
    assert found == {3: 3, 4: 4, 5: 4}


def test_pairs_of_another_recording_are_refused(small, capsys):
    for clip in SMALL_GOPRO:
        folder = small / "down/GOPRO_Large" / clip.split / clip.name
        write_released(folder / "sharp" / "000001.png", Drift(99).at(0))
    assert prepare(small / "ours.yaml", "gopro", small / "down") == 1
    printed = capsys.readouterr().err
    for clip in SMALL_GOPRO:  # all clips are listed
        assert (
            f"{clip.name}: sharp/000001.png equals none of the first {(clip.n + 1) // 2}" in printed
        )
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


def test_a_missing_pair_is_found_by_what_follows(small, capsys):
    folder = small / "down/GOPRO_Large/train/GOPR0374_11_03"
    for kind in ("blur", "sharp"):
        (folder / kind / "000002.png").unlink()
    assert prepare(small / "ours.yaml", "gopro", small / "down") == 1
    printed = capsys.readouterr().err
    assert "000003.png: differs from" in printed
    assert "after 1 comes 3" in printed


def test_blur_without_sharp_is_named(small, capsys):
    (small / "down/GOPRO_Large/train/GOPR0374_11_03/sharp/000002.png").unlink()
    assert prepare(small / "ours.yaml", "gopro", small / "down") == 1
    assert "1 without a sharp frame of that name: 000002" in capsys.readouterr().err


def test_pairs_whose_exposure_leaves_the_clip_are_dropped_by_name(tmp_path, capsys):
    clips = (SMALL_GOPRO[0], GoproClip("test", "GOPR0385_07_00", 16, pairs=3))
    write_gopro(tmp_path / "down", clips)
    assert prepare(write_config(tmp_path, tmp_path / "ours"), "gopro", tmp_path / "down") == 0
    printed = capsys.readouterr().out
    assert "val/GOPR0385_07_00: frame 000002 dropped: its exposure ends after the source" in printed
