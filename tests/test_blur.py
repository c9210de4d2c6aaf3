"""Blur synthesis: means of encoded values and of light, rounded once."""

import numpy as np
import pytest

from src.data.simulation.blur import BlurAccumulator, synthesize_blur
from src.data.simulation.simulator import rgb_to_intensity, simulate_spikes


def solid(*values):
    return np.stack([np.full((2, 2, 3), value, np.uint8) for value in values])


def test_the_mean_is_rounded_once():
    assert (synthesize_blur(solid(1, 2, 2)) == 2).all()  # 1.67
    assert (synthesize_blur(solid(1, 1, 2)) == 1).all()  # 1.33
    # Rounding after each pair would give 2: mean(mean(0, 1), mean(1, 2)) by halves upward.
    assert (synthesize_blur(solid(0, 1, 1, 2)) == 1).all()
    assert (synthesize_blur(solid(255, 255, 255)) == 255).all()  # no overflow of uint8


@pytest.mark.parametrize(("transfer", "gamma"), [("encoded", None), ("linear", 2.2)])
def test_spikes_of_a_transfer_match_the_blur_of_that_transfer(transfer, gamma):
    """The mean of the spikes is the blurry frame, in the light that both integrate."""
    grey = np.random.default_rng(1).integers(0, 256, (400, 4, 4, 1), dtype=np.uint8)
    frames = grey.repeat(3, axis=-1)
    spikes = simulate_spikes(rgb_to_intensity(frames, transfer), threshold=1.0, seed=1)
    mean = spikes.mean(axis=0)
    seen = 255 * (mean if gamma is None else mean ** (1 / gamma))
    blurry = synthesize_blur(frames, gamma)[..., 0].astype(float)
    other = synthesize_blur(frames, None if gamma else 2.2)[..., 0].astype(float)
    assert np.abs(seen - blurry).max() < 1.5
    assert np.abs(seen - other).min() > 5


@pytest.mark.parametrize("gamma", [None, 2.2])
def test_a_weight_is_a_repetition(gamma):
    frames = np.random.default_rng(3).integers(0, 256, (3, 8, 12, 3), dtype=np.uint8)
    accumulator = BlurAccumulator((8, 12), 400, gamma)  # sums above 16 bits
    for frame, weight in zip(frames, (1, 299, 100), strict=True):
        accumulator.add(frame, weight)
    repeated = synthesize_blur(np.repeat(frames, (1, 299, 100), axis=0), gamma)
    difference = np.abs(accumulator.mean().astype(int) - repeated)
    assert difference.max() <= (0 if gamma is None else 1)


@pytest.mark.parametrize("gamma", [None, 2.2])
@pytest.mark.parametrize("n", [1, 2, 7, 11, 300])
def test_the_streamed_mean_is_the_mean(n, gamma):
    frames = np.random.default_rng(n).integers(0, 256, (n, 8, 12, 3), dtype=np.uint8)
    frames[:, 0] = 255
    if gamma is None:
        mean = frames.mean(axis=0, dtype=np.float64)
    else:
        mean = 255 * np.mean((frames / 255.0) ** gamma, axis=0) ** (1 / gamma)
    assert np.array_equal(synthesize_blur(frames, gamma), np.rint(mean).clip(0, 255))


def test_what_cannot_be_averaged_is_refused():
    accumulator = BlurAccumulator((2, 2), 3)
    accumulator.add(solid(4)[0], 2)
    for call, message in (
        (accumulator.mean, "1 of the weight 3 is missing"),
        (lambda: accumulator.add(solid(4)[0], 2), "weight 2, but 1 of the total is missing"),
        (lambda: accumulator.add(np.zeros((2, 3, 3), np.uint8)), r"uint8 \(2, 2, 3\) fits"),
        (lambda: synthesize_blur(np.zeros((3, 2, 2, 3))), "float64"),
        (lambda: synthesize_blur(solid(4)[:0]), "total_weight=0"),
        (lambda: synthesize_blur(solid(4), 0.0), "gamma=0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
