"""Pages keep their panels' pixels and proportions; text fits into its bar."""

import cv2
import numpy as np
import pytest

from src.pictures.panels import (
    ALARM_COLOUR,
    GAP_PX,
    Panel,
    draw_label,
    draw_lines,
    make_page,
    scale_to_width,
    to_grey,
    write_page,
)


def flat(value, size=(30, 40)):
    return np.full((*size, 3), value, np.uint8)


def test_panels_lie_in_rows_below_their_captions():
    page = make_page([[Panel("a", flat(10)), Panel("b", flat(20))], [Panel("c", flat(30))]], 160)
    label, picture = 18, 120
    assert page.shape == (3 * GAP_PX + 2 * (label + picture), 2 * 160 + 3 * GAP_PX, 3)
    top = GAP_PX + label
    assert (page[top : top + picture, GAP_PX : GAP_PX + 160] == 10).all()
    assert (page[top : top + picture, 2 * GAP_PX + 160 : -GAP_PX] == 20).all()
    assert (page[-GAP_PX - picture : -GAP_PX, GAP_PX : GAP_PX + 160] == 30).all()
    assert (page[-GAP_PX - picture :, 2 * GAP_PX + 160 :] == 255).all()


def test_lines_make_a_page_longer_and_warnings_are_red():
    plain = make_page([[Panel("a", flat(0))]], 200)
    text = "six words that need several lines here " * 3
    longer = make_page([[Panel("a", flat(0))]], 200, [text, "! wrong"])
    assert longer.shape[0] > plain.shape[0] + 4 * 11
    is_red = (draw_lines(["! wrong"], 200, 12) == ALARM_COLOUR).all(axis=2)
    assert is_red.any()
    assert not (draw_lines(["right"], 200, 12) == ALARM_COLOUR).all(axis=2).any()


@pytest.mark.parametrize("text", ["short", "a caption that is far too long for so narrow a panel"])
def test_a_label_fits(text):
    bar = draw_label(text, 200, 20)
    assert bar.shape == (20, 200, 3)
    ink = np.flatnonzero((bar < 128).all(axis=2).any(axis=0))
    assert ink.min() >= 2
    assert ink.max() < 198


def test_scaling_keeps_proportions_and_square_pixels():
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    assert np.array_equal(scale_to_width(image, 24), image.repeat(3, 0).repeat(3, 1))
    assert scale_to_width(image, 12).shape == (9, 12, 3)
    assert scale_to_width(image, 4)[0, 0, 0] == pytest.approx(image[:2, :2, 0].mean(), abs=1)


def test_grey_levels():
    assert to_grey(np.array([[-1, 0, 1, 2, 9]]), 2)[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_files(tmp_path):
    page = make_page([[Panel("a", flat(90, (60, 80)))]], 160)
    for name in ("page.png", "page.jpg"):
        write_page(tmp_path / name, page)
        read = cv2.imread(str(tmp_path / name))[..., ::-1].astype(int)
        assert np.abs(read - page).mean() < 2
    with pytest.raises(ValueError, match=r"\.png or \.jpg"):
        write_page(tmp_path / "page.gif", page)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.jpg", "page.png"]


def test_what_cannot_be_a_page():
    with pytest.raises(ValueError, match="at least one panel"):
        make_page([[Panel("a", flat(0))], []], 100)
    with pytest.raises(ValueError, match="uint8"):
        make_page([[Panel("a", flat(0).astype(np.float32))]], 100)
