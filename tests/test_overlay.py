"""Overlays say which frame the spikes fit; they are grey where both match, coloured elsewhere."""

import re
import shutil
from urllib.parse import unquote

import cv2
import numpy as np
import pytest

from src.data.frames import read_image
from src.data.recordings import Recording
from src.prepare.exposure_shift import ExposureFit, fit_exposure
from src.prepare.overlay import draw_overlay, outline, red_cyan, write_overlays
from tests.data_cases import scan, write_miniature


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    return write_miniature(
        tmp_path_factory.mktemp("overlay") / "mini", sequences=1, frames=5, n=11, size=(96, 128)
    )


@pytest.fixture(scope="module")
def shifted(right, tmp_path_factory):
    """The same with the spikes of each exposure one file later."""
    root = tmp_path_factory.mktemp("overlay") / "shifted"
    shutil.copytree(right, root)
    files = sorted((root / "train" / "seq_000" / "spike").glob("*.dat"))
    contents = [path.read_bytes() for path in files]
    for path, bits in zip(files[1:], contents[:-1], strict=True):
        path.write_bytes(bits)
    return root


def recording_of(root):
    found = scan(root / "train" / "seq_000", use_voxel_cache=False)
    return Recording("seq_000", found.frames, 32)


def colourfulness(image):
    return np.abs(image[..., 0].astype(int) - image[..., 1]).mean()


def test_spikes_fit_their_own_frame_and_a_shift_is_named(right, shifted):
    page, fit = draw_overlay(recording_of(right), 2)
    assert fit.best == 0
    assert fit.correlations[0] > 0.95 > 0.5 > max(fit.correlations[-1], fit.correlations[1])
    assert not fit.sentence.startswith("!")
    wrong_page, wrong = draw_overlay(recording_of(shifted), 2)
    assert wrong.best == -1
    assert wrong.sentence.startswith("! THE SPIKES FIT THE FRAME BEFORE")
    assert page.dtype == wrong_page.dtype == np.uint8
    assert page.shape == wrong_page.shape
    own = np.s_[-250:-10, 420:800]  # the middle picture of the last row
    assert colourfulness(wrong_page[own]) > 3 * colourfulness(page[own])


def test_first_and_last_frame_have_one_frame_beside_them(right):
    recording = recording_of(right)
    assert sorted(draw_overlay(recording, 0)[1].correlations) == [0, 1]
    assert sorted(draw_overlay(recording, 4)[1].correlations) == [-1, 0]


def test_a_scene_without_motion_shows_nothing(right):
    recording = recording_of(right)
    blurry = recording.read_blurry(2)
    spikes = recording.read_counts(2).sum(axis=0)
    fit = fit_exposure(spikes, {-1: blurry, 0: blurry, 1: blurry})
    assert fit.best is None
    assert "do not tell" in fit.sentence
    assert fit_exposure(np.zeros((48, 64)), {0: blurry, 1: blurry}).correlations == {0: 0, 1: 0}
    assert ExposureFit({0: 0.9}).best is None


def test_fringes_are_grey_where_both_agree_in_place(right):
    grey = cv2.cvtColor(recording_of(right).read_sharp(1), cv2.COLOR_RGB2GRAY)
    image = np.dstack([grey] * 3)
    assert colourfulness(red_cyan(image, grey / 255 * 17)) < 1  # brightness does not count
    assert colourfulness(red_cyan(image, np.roll(grey, 4, axis=1) / 255)) > 5


def test_outlines_lie_on_the_edges_of_the_spikes():
    image = np.full((80, 160, 3), 100, np.uint8)
    spikes = np.zeros((80, 160))
    spikes[20:60, 50:110] = 5
    drawn = outline(image, spikes)
    rows, columns = np.nonzero((drawn == (255, 60, 0)).all(axis=2))
    assert len(rows) > 150
    inside = (abs(rows - 40) < 17) & (abs(columns - 80) < 27)
    assert not inside.any()
    assert rows.min() >= 17
    assert rows.max() <= 62
    assert columns.min() >= 47
    assert columns.max() <= 112


def test_pages_and_index(right, tmp_path):
    recordings = [recording_of(right)]
    index, *pages = write_overlays(recordings, 3, tmp_path / "a", seed=1)
    assert len(pages) == 3
    text = index.read_text()
    assert re.findall(r'<img src="([^"]*)"', text) == [path.name for path in pages]
    assert "3 of 3 fit their own frame best" in text
    assert [p.name for p in write_overlays(recordings, 3, tmp_path / "b", seed=1)[1:]] == [
        path.name for path in pages
    ]
    odd = Recording("a #1 50%?", recordings[0].frames, 32)
    index, *everything = write_overlays([odd], 20, tmp_path / "c", seed=2)
    addresses = re.findall('src="([^"]+)"', index.read_text())
    assert [unquote(address) for address in addresses] == [path.name for path in everything]
    assert len(everything) == 5
    assert "#" not in "".join(addresses)
    assert read_image(pages[0]).shape[1] == 3 * 400 + 4 * 6
    with pytest.raises(ValueError, match="0 of 5 frames requested"):
        write_overlays(recordings, 0, tmp_path, seed=1)
