"""Scenes: where pixels land, how pieces are cut and laid over each other, how things move."""

import numpy as np
import pytest

from src.prepare.demo_scenes import (
    CutOut,
    Scene,
    SmoothMotion,
    blend_over,
    camera_motion,
    cut_out,
    load_photograph,
    pose_matrix,
    premultiply,
    to_grey,
)

STILL = SmoothMotion(np.ones(1), np.zeros((1, 4)), np.zeros((1, 4)), np.zeros(4))


def moved(x=0.0, y=0.0, log_zoom=0.0, angle=0.0):
    rest = np.array([x, y, log_zoom, angle])
    return SmoothMotion(np.ones(1), np.zeros((1, 4)), np.zeros((1, 4)), rest)


def block_mean(image, size):
    """Mean over size x size pixels, in float."""
    height, width = image.shape[:2]
    blocks = image.reshape(height // size, size, width // size, size, *image.shape[2:])
    return blocks.mean(axis=(1, 3), dtype=np.float64)


# ---------------------------------------------------------------- rendering


@pytest.mark.parametrize(("x", "y"), [(0, 0), (3, 0), (0, -5), (-7, 2)])
def test_pixels_are_area_means_of_the_photograph_around_its_middle(x, y):
    """A camera that shifts the world by (x, y) sees the photograph (-2x, -2y) from its middle."""
    scene = Scene("gravel.png", (), moved(x, y), (32, 48), duration=1.0)
    assert scene.photo_px == 2.0
    top, left = 256 - 32 - 2 * y, 256 - 48 - 2 * x
    part = load_photograph("gravel.png")[top : top + 64, left : left + 96]
    assert np.abs(scene.rgb(0.3) - block_mean(part, 2)).max() <= 0.5
    half = scene.half_grey(0.3)
    assert half.shape == (16, 24)
    assert half.dtype == np.float32
    assert np.abs(255 * half - block_mean(to_grey(part), 4)).max() <= 0.75


def test_rotation_and_zoom_turn_the_picture_around_its_middle():
    scene = Scene("gravel.png", (), moved(angle=np.pi / 2), (32, 32), duration=1.0)
    upright = Scene("gravel.png", (), STILL, (32, 32), duration=1.0)
    turned = np.rot90(upright.rgb(0.0), -1)  # y points down: a positive angle is clockwise
    assert np.abs(scene.rgb(0.0).astype(int) - turned).max() <= 1
    zoomed = Scene("gravel.png", (), moved(log_zoom=np.log(2)), (32, 32), duration=1.0)
    middle = upright.rgb(0.0)[8:24, 8:24]
    error = np.abs(block_mean(zoomed.rgb(0.0), 2) - middle)
    assert error.mean() < 12  # softer: half the photograph pixels per pixel
    assert (
        error.mean() < 0.4 * np.abs(block_mean(zoomed.rgb(0.0), 2) - np.roll(middle, 1, 0)).mean()
    )


def test_an_object_lies_where_its_pose_says():
    piece = CutOut("coins.png", (338, 185), (16, 16), photo_px=2.0)
    background = Scene("gravel.png", (), STILL, (64, 64), 1.0).rgb(0.0)
    shown = Scene("gravel.png", ((piece, moved(10, -6)),), STILL, (64, 64), 1.0)
    y, x = np.nonzero(np.any(shown.rgb(0.0) != background, axis=-1))
    assert abs((x.min() + x.max() + 1) / 2 - (32 + 10)) <= 0.5
    assert abs((y.min() + y.max() + 1) / 2 - (32 - 6)) <= 0.5
    assert abs((x.max() + 1 - x.min()) - 16) <= 2  # a radius of 16 photograph pixels is 8 RGB ones
    camera_too = Scene("gravel.png", ((piece, moved(10, -6)),), moved(-9), (64, 64), 1.0)
    empty = Scene("gravel.png", (), moved(-9), (64, 64), 1.0)
    x = np.nonzero(np.any(camera_too.rgb(0.0) != empty.rgb(0.0), axis=-1))[1]
    assert abs((x.min() + x.max() + 1) / 2 - (32 + 10 - 9)) <= 0.5


# ---------------------------------------------------------------- pieces


def test_outline_of_a_piece():
    photograph = np.full((60, 80, 3), 100, np.uint8)
    colours, opacity = cut_out(photograph, CutOut("x", (40, 30), (20, 10), edge_px=1))
    assert colours.shape == (*opacity.shape, 3)
    middle_y, middle_x = (side // 2 for side in opacity.shape)
    assert opacity[middle_y, middle_x] == 255
    assert opacity[0, 0] == 0
    assert (opacity[middle_y] > 127).sum() == 40
    assert (opacity[:, middle_x] > 127).sum() == 20
    soft = cut_out(photograph, CutOut("x", (40, 30), (16, 10), edge_px=8))[1]
    assert ((soft > 0) & (soft < 255)).sum() > 3 * ((opacity > 0) & (opacity < 255)).sum()
    lobes = cut_out(photograph, CutOut("x", (40, 30), (20, 20), num_lobes=4))[1]
    assert np.array_equal(lobes, lobes[::-1, ::-1])
    assert not np.array_equal(lobes, lobes[:, ::-1])
    with pytest.raises(ValueError, match="leaves the photograph of 60x80"):
        cut_out(photograph, CutOut("x", (10, 30), (20, 10)))
    with pytest.raises(FileNotFoundError, match=r"none\.png.*pip install"):
        load_photograph("none.png")


@pytest.mark.parametrize("is_grey", [True, False])
def test_blending_equals_its_twin(is_grey):
    rng = np.random.default_rng(0)
    shape = (6, 7) if is_grey else (6, 7, 3)
    image, colours = (rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(2))
    opacity = rng.integers(0, 256, (6, 7), dtype=np.uint8)
    opacity[0] = 255
    opacity[1] = 0
    share = (opacity if is_grey else opacity[..., None]) / 255.0
    blended = blend_over(image, premultiply(colours, opacity))
    assert np.abs(blended - (share * colours + (1 - share) * image)).max() <= 1
    assert np.array_equal(blended[0], colours[0])
    assert np.array_equal(blended[1], image[1])


# ---------------------------------------------------------------- motion


def test_motion_is_a_sum_of_sinusoids():
    amplitudes = np.array([[1.0, 2, 0, 0], [3, 0, 0.5, 0.25]])
    motion = SmoothMotion(np.array([2.0, 4.0]), amplitudes, np.zeros((2, 4)), np.zeros(4))
    half = np.sqrt(0.5)  # an eighth of a turn, and a quarter
    assert np.allclose(motion.at(0.0625), (half + 3, 2 * half, 0.5, 0.25))
    matrix = pose_matrix([5.0, 7.0, np.log(2.0), np.pi / 2])
    assert np.allclose(matrix @ [1, 0, 1], [5, 9, 1])
    assert np.allclose(matrix @ [0, 1, 1], [3, 7, 1])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_camera_has_the_given_speed(seed):
    motion = camera_motion(np.random.default_rng(seed), 200.0, 0.5)
    times = np.linspace(0, 0.5, 5001)
    poses = np.array([motion.at(seconds) for seconds in times])
    speeds = np.diff(poses[:, :2], axis=0) / 1e-4
    assert np.sqrt((speeds**2).sum(axis=1).mean()) == pytest.approx(200, rel=0.01)
    assert (np.ptp(poses, axis=0) > [5, 5, 0.02, 0.01]).all()  # shake, zoom and rotation
