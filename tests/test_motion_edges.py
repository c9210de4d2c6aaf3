import numpy as np
import pytest

from src.metrics.motion_edges import find_motion_edges, gradient_of, score_motion_edges


def scores_of(image, edges):
    scores = score_motion_edges(image, edges)
    return scores["edge_sharpness"], scores["edge_error"]


def picture(row, height=60) -> np.ndarray:
    """Every row the same grey levels."""
    return np.broadcast_to(np.array(row, np.uint8)[None, :, None], (height, len(row), 3)).copy()


SHARP = picture([0, 0, 0, 0, 100, 100, 100, 100])
SHIFTED = picture([0, 0, 100, 100, 100, 100, 100, 100])
SOFT = picture([0, 0, 0, 25, 75, 100, 100, 100])


def test_gradient_of_a_ramp():
    ramp = np.arange(6.0)[None].repeat(4, 0) * 3
    dx, dy = gradient_of(ramp)
    assert (dx[:, 1:-1] == 3).all()
    assert (dx[:, 0] == 1.5).all()  # half at the border, where the last pixel is repeated
    assert (dy == 0).all()


def test_motion_edges_by_hand():
    edges = find_motion_edges(SHARP, SHIFTED, None)
    # Pixels 2 and 3 change; the gradient is 100 / 2 at pixels 3 and 4. Pixel 3 is both.
    assert edges.mask[0].tolist() == [False, False, False, True, False, False, False, False]
    assert np.array_equal(edges.mask, find_motion_edges(SHARP, None, SHIFTED).mask)
    assert not find_motion_edges(SHARP, None, None).mask.any()
    assert not find_motion_edges(SHARP, SHARP, SHARP).mask.any()


def test_scores_by_hand():
    edges = find_motion_edges(SHARP, SHIFTED, None)
    steep = picture([0, 0, 0, 0, 200, 200, 200, 200])
    # SOFT at pixel 3: (75 - 0) / 2 for (100 - 0) / 2
    for image, expected in (
        (SHARP, (1, 0)),
        (SOFT, (0.75, 0.25)),
        (picture([50] * 8), (0, 1)),
        (steep, (2, 1)),
    ):
        assert scores_of(image, edges) == pytest.approx(expected)


def test_an_edge_in_another_direction_is_no_sharpness_but_an_error():
    edges = find_motion_edges(SHARP, SHIFTED, None)
    stripes = np.zeros_like(SHARP)
    stripes[(np.arange(60) // 2) % 2 == 1] = 100
    sharpness, error = scores_of(stripes, edges)
    assert sharpness == pytest.approx(0)
    assert error > 1


def test_a_frame_where_little_moves_is_not_measured():
    few = find_motion_edges(SHARP[:49], SHIFTED[:49], None)
    assert scores_of(SHARP[:49], few) == (None, None)
    assert scores_of(SHARP[:50], find_motion_edges(SHARP[:50], SHIFTED[:50], None))[0] == 1
