import numpy as np
import pytest

from src.data.transforms import (
    AugmentSettings,
    Orientation,
    SpikeDefects,
    crop_grid,
    damage_counts,
    draw_crop,
    draw_orientation,
    orient_frames,
    orient_voxels,
)
from tests.spike_cases import voxelize_spikes_twin


@pytest.mark.parametrize(
    ("frame_size", "spike_size", "crop"),
    [
        ((64, 96), (32, 48), 32),
        ((48, 72), (32, 48), 24),  # 3:2
        ((24, 40), (24, 40), 16),
        ((32, 48), (64, 96), 16),  # finer spikes
        ((60, 90), (20, 45), 30),  # other ratio per axis
    ],
)
def test_crop_shows_the_same_scene_region(frame_size, spike_size, crop):
    """Both modalities hold the scene coordinate of their pixel's upper left corner."""
    scene = [
        np.stack(np.meshgrid(*(np.arange(n) * (720.0 / n) for n in size), indexing="ij"))
        for size in (frame_size, spike_size)
    ]
    grid = crop_grid(frame_size, spike_size, crop)
    rng = np.random.default_rng(0)
    origins = set()
    for _ in range(200):
        frame_crop, spike_crop = draw_crop(rng, grid)
        cut = []
        for image, (y, x, h, w) in zip(scene, (frame_crop, spike_crop), strict=True):
            assert y >= 0
            assert x >= 0
            assert y + h <= image.shape[1]
            assert x + w <= image.shape[2]
            cut.append(image[:, y : y + h, x : x + w])
        assert frame_crop[2:] == (crop, crop)
        assert np.allclose(cut[0][:, 0, 0], cut[1][:, 0, 0])  # same corner
        ends = [
            (y + h) / size[0]
            for (y, _, h, _), size in zip(
                (frame_crop, spike_crop), (frame_size, spike_size), strict=True
            )
        ]
        assert ends[0] == pytest.approx(ends[1])  # same end
        origins.add(frame_crop[:2])
    rows = {row for row, _ in origins}
    assert min(rows) == 0
    assert max(rows) == (frame_size[0] - crop) // grid.frame_step[0] * grid.frame_step[0]


def test_crops_by_hand():
    grid = crop_grid((720, 1280), (360, 640), 256)
    assert (grid.frame_step, grid.spike_step) == ((2, 2), (1, 1))
    assert grid.spike_crop_size == (128, 128)
    crops = draw_crop(np.random.default_rng(0), crop_grid((64, 64), (32, 32), 64))
    assert crops == ((0, 0, 64, 64), (0, 0, 32, 32))
    with pytest.raises(ValueError, match="64x96 are smaller than the crop of 72"):
        draw_crop(np.random.default_rng(0), crop_grid((64, 96), (32, 48), 72))
    with pytest.raises(ValueError, match=r"crop of 256 RGB .* sizes that fit: \[255, 258\]"):
        crop_grid((720, 1080), (480, 720), 256)
    with pytest.raises(ValueError, match="resize the frames or the spikes"):
        crop_grid((721, 1281), (360, 640), 256)


def test_orientation_by_hand():
    frames = np.arange(4, dtype=np.uint8).reshape(1, 1, 2, 2)  # 0 1 / 2 3
    pictures = {
        Orientation(): [[0, 1], [2, 3]],
        Orientation(flip_rows=True): [[2, 3], [0, 1]],
        Orientation(flip_columns=True): [[1, 0], [3, 2]],
        Orientation(transpose=True): [[0, 2], [1, 3]],
        Orientation(flip_rows=True, transpose=True): [[2, 0], [3, 1]],
    }
    for orientation, expected in pictures.items():
        assert orient_frames(frames, orientation)[0, 0].tolist() == expected
        assert orient_voxels(frames, orientation)[0, 0].tolist() == expected


def test_reversed_bins_are_those_of_the_reversed_stream():
    spikes = np.random.default_rng(1).integers(0, 2, (2, 24, 3, 4), dtype=np.uint8)
    voxels = np.stack([voxelize_spikes_twin(frame, 8) for frame in spikes])
    backwards = np.stack([voxelize_spikes_twin(frame[::-1], 8) for frame in spikes[::-1]])
    assert np.array_equal(orient_voxels(voxels, Orientation(reverse=True)), backwards)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("size", [(3, 4), (33, 65), (1, 1)])
def test_every_orientation_equals_its_twin_and_leaves_the_argument(dtype, size):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 3, *size)).astype(dtype)
    frames = np.moveaxis(np.ascontiguousarray(np.moveaxis(frames, 1, -1)), -1, 1)  # as decoded
    before = frames.copy()
    for number in range(16):
        orientation = Orientation(*(bool(number >> bit & 1) for bit in range(4)))
        for orient in (orient_frames, orient_voxels):
            result = orient(frames, orientation)
            expected = orient_twin(frames, orientation, orient is orient_voxels)
            assert (result.dtype, result.flags.c_contiguous) == (dtype, True)
            assert np.array_equal(result, expected)
    assert np.array_equal(frames, before)


def orient_twin(array, orientation, is_voxels):
    """The obvious way: views of NumPy."""
    if orientation.reverse:
        array = array[::-1, ::-1] if is_voxels else array[::-1]
    if orientation.flip_rows:
        array = array[..., ::-1, :]
    if orientation.flip_columns:
        array = array[..., ::-1]
    return np.swapaxes(array, -1, -2) if orientation.transpose else array


def test_every_orientation_is_drawn_equally_often():
    rng = np.random.default_rng(2)
    settings = AugmentSettings(flip=True, transpose=True, reverse=True)
    drawn = [draw_orientation(rng, settings) for _ in range(1600)]
    counts = [drawn.count(orientation) for orientation in set(drawn)]
    assert len(counts) == 16
    assert min(counts) > 60
    assert max(counts) < 140


# ---------------------------------------------------------------- defects of spikes

TICKS = np.tile(np.array([3, 2, 3, 2], np.int32), (2, 1))  # [T, K]


def counts_up_to_ticks(seed=0, size=(60, 80), dtype=np.uint8):
    rng = np.random.default_rng(seed)
    return rng.integers(0, TICKS[..., None, None] + 1, (2, 4, *size)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_thinning_keeps_each_spike_with_one_probability(dtype):
    counts = counts_up_to_ticks(dtype=dtype)
    before = counts.copy()
    thin = damage_counts(np.random.default_rng(1), counts, TICKS, SpikeDefects(kept=0.7))
    assert thin.dtype == dtype
    assert np.array_equal(counts, before)
    assert (thin <= counts).all()
    assert thin.sum() / counts.sum() == pytest.approx(0.7, abs=0.01)
    kept = thin[counts == 3]  # binomial: mean 2.1, variance 3 * 0.7 * 0.3
    assert (kept.mean(), kept.var()) == pytest.approx((2.1, 0.63), abs=0.04)


def test_a_rate_scales_the_mean_and_respects_the_ticks():
    counts = counts_up_to_ticks()
    few = damage_counts(np.random.default_rng(1), counts, TICKS, SpikeDefects(rate=0.6))
    assert few.sum() / counts.sum() == pytest.approx(0.6, abs=0.01)
    assert set(np.unique(few[counts == 2])) == {1, 2}  # 1.2 is rounded to one of them
    many = damage_counts(np.random.default_rng(1), counts, TICKS, SpikeDefects(rate=2.0))
    assert np.array_equal(many, np.minimum(2 * counts, TICKS[..., None, None]))
    unknown = damage_counts(np.random.default_rng(1), counts, 0 * TICKS, SpikeDefects(rate=2.0))
    assert np.array_equal(unknown, 2 * counts)
    full = np.full_like(counts, 200)
    assert (
        damage_counts(np.random.default_rng(1), full, 0 * TICKS, SpikeDefects(rate=2.0)) == 255
    ).all()
    real = counts * np.float32(0.5)
    scaled = damage_counts(np.random.default_rng(1), real, 0 * TICKS, SpikeDefects(0.5, 1.5))
    assert np.allclose(scaled, 0.75 * real)


def test_bad_pixels_are_the_same_in_a_whole_clip():
    counts = counts_up_to_ticks()
    damaged = damage_counts(
        np.random.default_rng(1), counts, TICKS, SpikeDefects(dead=0.05, hot=0.03)
    )
    changed = (damaged != counts).any(axis=(0, 1))
    is_dead = (damaged == 0).all(axis=(0, 1))
    is_hot = (damaged == TICKS[..., None, None]).all(axis=(0, 1))
    assert (is_dead | is_hot | ~changed).all()
    assert is_dead.mean() == pytest.approx(0.05, abs=0.012)
    assert is_hot.mean() == pytest.approx(0.03, abs=0.01)
