import numpy as np
import pytest

from src.pictures.strips import GAP_PX, ZOOM, Column, busiest_region, make_strip

SCORES = {"psnr_rgb": 31.416, "ssim_rgb": 0.91234, "psnr_y": None, "ssim_y": None, "lpips": None}


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


def test_strip_shows_each_image_and_its_detail_enlarged():
    first, last = grey(50), grey(50)
    last[100:140, 200:260] = 250
    strip = make_strip([Column("blur", first), Column("recon", grey(120)), Column("sharp", last)])
    label = 480 // 16
    assert strip.shape == (label + 240 + GAP_PX + 240, 3 * 480 + 2 * GAP_PX, 3)
    top, bottom = label + 10, label + 240 + GAP_PX + 10
    for number, value in ((0, 50), (1, 120)):
        left = number * (480 + GAP_PX)
        assert (strip[top, left + 10] == value).all()
        assert (strip[bottom, left + 10] == value).all()
    detail = strip[label + 240 + GAP_PX :, 2 * (480 + GAP_PX) :, 0]
    assert (detail == 250).sum() == 40 * 60 * ZOOM**2  # every pixel of the change, repeated


def test_labels_hold_caption_and_scores():
    assert Column("recon", grey(0), SCORES).label == "recon  31.42 dB  0.912"
    assert Column("recon", grey(0), SCORES | {"psnr_rgb": float("inf")}).label.startswith(
        "recon  inf"
    )
    blank = make_strip([Column("", grey(50)), Column("", grey(50))])
    text = make_strip([Column("a long caption " * 9, grey(50)), Column("", grey(50))])
    changed = np.argwhere((blank != text).any(axis=2))
    assert len(changed) > 100
    assert changed[:, 0].max() < 480 // 16  # the text stays in its bar
    assert changed[:, 1].max() < 480


def test_small_frames_are_enlarged_and_odd_sizes_fit():
    image = np.random.default_rng(0).integers(0, 256, (65, 100, 3), dtype=np.uint8)
    strip = make_strip([Column("blur", image)] * 4)
    assert strip.shape == (25 + 65 * 4 + GAP_PX + 21 * 12, 4 * 400 + 3 * GAP_PX, 3)


def test_columns_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"a \[240, 480, 3\], b \[240, 400, 3\]"):
        make_strip([Column("a", grey(0)), Column("b", grey(0, (240, 400)))])
    with pytest.raises(ValueError, match="got none"):
        make_strip([])
