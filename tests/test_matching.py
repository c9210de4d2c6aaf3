"""The best TFP centre: by hand, against a slow twin, on moving scenes, and where there is none."""

import numpy as np
import pytest

from src.data.simulation.simulator import simulate_spikes
from src.data.spikes.matching import best_tfp_centre, grey_at_spike_size
from src.data.spikes.reconstruct import tfp
from tests.data_cases import moving_texture
from tests.spike_cases import random_spikes

SHARP_FRAME = 6


def film(size=(32, 48), num_frames=13, seed=0, threshold=2.0, speed=1):
    """Grey source frames [N, H, W] and spikes [8 N, H, W] of frames cross-faded linearly."""
    rgb = moving_texture(num_frames * speed + 1, (2 * size[0], 2 * size[1]), seed)[::speed]
    grey = np.stack([grey_at_spike_size(frame, size) for frame in rgb])
    light = [a + (b - a) * i / 8 for a, b in zip(grey, grey[1:], strict=False) for i in range(8)]
    return grey, simulate_spikes(np.stack(light), threshold, seed=seed)


def score_twin(spikes, sharp, start, width):
    """PSNR after numpy's own least squares."""
    image = tfp(spikes, start + width // 2, width, 1.0).astype(np.float64).ravel()
    columns = np.stack([image, np.ones_like(image)], axis=1)
    solution = np.linalg.lstsq(columns, sharp.ravel(), rcond=None)[0]
    return -10 * np.log10(np.mean((columns @ solution - sharp.ravel()) ** 2))


def test_by_hand():
    """A spike runs over four pixels, one per tick; the third pixel is bright at tick 2."""
    spikes = np.eye(4, dtype=np.uint8).reshape(4, 1, 4)
    match = best_tfp_centre(spikes, np.array([[0.0, 0.0, 0.6, 0.0]]), width=1)
    assert match.centres.tolist() == [0, 1, 2, 3]
    assert match.centre == 2
    # The others have a negative correlation, so only the offset 0.15 is left: MSE 0.27 / 4.
    assert match.scores[[0, 1, 3]] == pytest.approx(-10 * np.log10(0.0675))
    pairs = best_tfp_centre(spikes, np.array([[0.0, 0.6, 0.6, 0.0]]), width=2)
    assert pairs.centres.tolist() == [0.5, 1.5, 2.5]
    assert pairs.centre == 1.5


@pytest.mark.parametrize("width", [8, 9])
def test_scores_are_those_of_the_twin(width):
    grey, spikes = film()
    match = best_tfp_centre(spikes, grey[SHARP_FRAME], width=width)
    assert len(match.centres) == len(spikes) - width + 1
    for i in (0, 11, 40, len(match.scores) - 1):
        twin = score_twin(spikes, grey[SHARP_FRAME], i, width)
        assert match.scores[i] == pytest.approx(twin, abs=1e-4)
    best = int(match.scores.argmax())
    image = spikes[best : best + width].sum(axis=0)
    correlation = np.corrcoef(image.ravel(), grey[SHARP_FRAME].ravel())[0, 1]
    assert match.correlation == pytest.approx(correlation)


@pytest.mark.parametrize("width", [15, 16, 17, 32])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_centre_is_the_tick_of_the_frame(width, seed):
    """Whatever the threshold; of a part of the stream that ends before it, the end fits best."""
    grey, spikes = film(seed=seed, speed=1 + seed % 2, threshold=2 + seed)
    match = best_tfp_centre(spikes, grey[SHARP_FRAME], width=width)
    assert match.centre == pytest.approx(8 * SHARP_FRAME, abs=0.5)
    assert match.is_decisive
    assert not match.is_at_end
    part = best_tfp_centre(spikes[:48], grey[SHARP_FRAME], width=width)
    assert part.is_at_end
    assert np.array_equal(part.scores, match.scores[: len(part.scores)])


def test_without_motion_texture_or_spikes_nothing_is_shown():
    frame = moving_texture(1, (64, 96), 0)[0]
    grey = grey_at_spike_size(frame, (32, 48))
    still = simulate_spikes(np.repeat(grey[None], 96, axis=0), 2.0, seed=0)
    assert not best_tfp_centre(still, grey, width=17).is_decisive
    dead = [np.full((40, 32, 48), bit, np.uint8) for bit in (0, 1)]
    for spikes in (random_spikes(40, 32, 48), *dead):
        for sharp in (np.full((32, 48), 0.5), grey):
            match = best_tfp_centre(spikes, sharp, width=9)
            assert not match.is_decisive
            assert match.correlation < 0.5
            assert np.isfinite(match.scores).all()


def test_grey_at_spike_size_by_hand():
    rgb = np.zeros((2, 4, 3), np.uint8)
    rgb[0, 0], rgb[1, 1], rgb[0, 2] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    grey = grey_at_spike_size(rgb, (1, 2))
    assert grey.dtype == np.float32
    assert grey.tolist() == [pytest.approx([(0.299 + 0.587) / 4, 0.114 / 4])]
    white = np.full((6, 9, 3), 255, np.uint8)
    for size in ((4, 5), (6, 9), (12, 18)):
        assert grey_at_spike_size(white, size) == pytest.approx(np.ones(size))
    with pytest.raises(ValueError, match="uint8"):
        grey_at_spike_size(rgb[..., 0], (1, 2))
