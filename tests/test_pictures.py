"""Pages and strips keep the pixels and proportions of what they show; text fits into its bar."""

import numpy as np
import pytest

from src.pictures.panels import (
    ALARM_COLOUR,
    GAP_PX,
    ZOOM,
    Panel,
    busiest_region,
    draw_label,
    draw_lines,
    make_page,
    make_strip,
    scale_to_width,
    scored,
)


def grey(value, size=(240, 480)):
    return np.full((*size, 3), value, np.uint8)


def test_region_is_where_the_versions_differ():
    first, last = grey(100, (60, 90)), grey(100, (60, 90))
    last[40:55, 60:85] += 50
    rows, columns = busiest_region(first, last)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (20, 30)
    assert rows.start <= 40 < 55 <= rows.stop
    assert columns.start <= 60 < 85 <= columns.stop
    assert busiest_region(first, first) == (slice(0, 20), slice(0, 30))


def test_strip_shows_each_image_and_its_detail_enlarged_in_rows():
    versions = [grey(10 * k, (240, 480)) for k in range(6)]
    versions[5][100:140, 200:260] = 250
    strip = make_strip([Panel("", image) for image in versions], 4)
    label, step = 480 // 16, 480 + GAP_PX
    assert strip.shape == (4 * (label + 240 + GAP_PX) + GAP_PX, 4 * step + GAP_PX, 3)
    tops = [GAP_PX + k * (label + 240 + GAP_PX) + label for k in range(4)]
    for top, values in zip(tops, ([0, 10, 20, 30],) * 2 + ([40, 50, 255, 255],) * 2, strict=True):
        assert strip[top + 5, GAP_PX + 9 : -GAP_PX : step, 0].tolist() == values
    detail = strip[tops[3] : tops[3] + 240, GAP_PX + step : 2 * step, 0]
    assert (detail == 250).sum() == 40 * 60 * ZOOM**2  # every pixel of the change, repeated


def test_captions_hold_the_scores():
    scores = {"psnr_rgb": 31.416, "ssim_rgb": 0.91234}
    assert scored("recon", grey(0), scores).caption == "recon  31.42 dB  0.912"
    assert scored("recon", grey(0), scores | {"ssim_rgb": None}).caption == "recon  31.42 dB  -"


def test_columns_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"a \[240, 480, 3\], b \[240, 400, 3\]"):
        make_strip([Panel("a", grey(0)), Panel("b", grey(0, (240, 400)))])
    with pytest.raises(ValueError, match="got none"):
        make_strip([])


def test_panels_lie_in_rows_below_their_captions():
    page = make_page(
        [
            [Panel("a", grey(10, (30, 40))), Panel("b", grey(20, (30, 40)))],
            [Panel("c", grey(30, (30, 40)))],
        ],
        160,
    )
    label, picture = 18, 120
    assert page.shape == (3 * GAP_PX + 2 * (label + picture), 2 * 160 + 3 * GAP_PX, 3)
    top = GAP_PX + label
    assert (page[top : top + picture, GAP_PX : GAP_PX + 160] == 10).all()
    assert (page[top : top + picture, 2 * GAP_PX + 160 : -GAP_PX] == 20).all()
    assert (page[-GAP_PX - picture : -GAP_PX, GAP_PX : GAP_PX + 160] == 30).all()
    assert (page[-GAP_PX - picture :, 2 * GAP_PX + 160 :] == 255).all()


def test_lines_make_a_page_longer_and_warnings_are_red():
    plain = make_page([[Panel("a", grey(0, (30, 40)))]], 200)
    text = "six words that need several lines here " * 3
    longer = make_page([[Panel("a", grey(0, (30, 40)))]], 200, [text, "! wrong"])
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


def test_what_cannot_be_a_page():
    with pytest.raises(ValueError, match="at least one panel"):
        make_page([[Panel("a", grey(0, (30, 40)))], []], 100)
    with pytest.raises(ValueError, match="uint8"):
        make_page([[Panel("a", grey(0, (30, 40)).astype(np.float32))]], 100)
