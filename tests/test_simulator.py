"""Integrate-and-fire simulator: by hand, against a pixel-by-pixel twin, and by its invariants."""

import numpy as np
import pytest

from src.data.simulation.simulator import (
    SpikeNoise,
    SpikeSimulator,
    rgb_to_intensity,
    simulate_spikes,
)

ALL_NOISE = SpikeNoise(
    photons=50.0,
    gain_sigma=0.1,
    dark_mean=0.02,
    dark_sigma=0.01,
    temporal_sigma=0.05,
    threshold_sigma=0.05,
)


def moving_intensity(num_ticks, height=3, width=4, seed=0):
    return np.random.default_rng(seed).random((num_ticks, height, width))


def simulate_twin(intensity, start, threshold):
    """One pixel after the other, one tick after the other, in Python floats."""
    spikes = np.zeros(intensity.shape, np.uint8)
    for y, x in np.ndindex(intensity.shape[1:]):
        u = float(start[y, x])
        for q, value in enumerate(intensity[:, y, x]):
            u += float(value)
            if u >= threshold:
                spikes[q, y, x] = 1
                u -= threshold
    return spikes


@pytest.mark.parametrize("threshold", [1.0, 2.0, 5.3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_with_and_without_maps_of_the_sensor_equals_the_twin(threshold, dtype):
    intensity = moving_intensity(60).astype(dtype)
    quick = SpikeSimulator(3, 4, seed=5, threshold=threshold)
    # A threshold of its own for every pixel, all of them the same: the path for noise.
    noise = SpikeNoise(sensor_seed=1)
    general = SpikeSimulator(3, 4, seed=5, threshold=threshold, noise=noise)
    start = quick.membrane
    spikes = quick.expose(intensity)
    assert spikes.dtype == np.uint8
    assert np.array_equal(spikes, simulate_twin(intensity, start, threshold))
    assert np.array_equal(spikes, general.expose(intensity))
    assert np.array_equal(quick.membrane, general.membrane)


def test_total_of_spikes_is_the_floor_of_the_charge():
    """Exact, since all numbers are binary fractions: floor((sum I + u0) / theta)."""
    intensity = np.random.default_rng(3).integers(0, 257, (101, 6, 7)) / 256
    start = SpikeSimulator(6, 7, seed=4, threshold=2.0).membrane
    spikes = simulate_spikes(intensity, threshold=2.0, seed=4)
    expected = np.floor((intensity.sum(axis=0) + start) / 2.0)
    assert np.array_equal(spikes.sum(axis=0), expected)


def test_the_start_is_uniform_below_the_threshold():
    start = SpikeSimulator(100, 100, seed=9, threshold=5.0).membrane
    assert start.min() >= 0
    assert start.max() < 5
    assert abs(start.mean() - 2.5) < 0.1
    assert abs(start.std() - 5 / np.sqrt(12)) < 0.1


@pytest.mark.parametrize("noise", [SpikeNoise(), ALL_NOISE])
@pytest.mark.parametrize("chunks", [[40], [1, 39], [7, 0, 13, 20]])
def test_chunks_equal_one_pass_and_another_seed_does_not(noise, chunks):
    intensity = moving_intensity(40)
    simulator = SpikeSimulator(3, 4, seed=6, noise=noise)
    parts = [simulator.expose(part) for part in np.split(intensity, np.cumsum(chunks)[:-1])]
    whole = simulate_spikes(iter(intensity), seed=6, noise=noise)
    assert np.array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(whole, simulate_spikes(intensity, seed=8, noise=noise))


# ---------------------------------------------------------------- noise


def charges(noise, num_ticks=4, level=0.5):
    """What each tick adds to the membrane, with a threshold that is never reached."""
    simulator = SpikeSimulator(64, 64, seed=11, threshold=1e6, noise=noise)
    before, added = simulator.membrane, []
    for _ in range(num_ticks):
        simulator.expose(np.full((1, 64, 64), level))
        added.append(simulator.membrane - before)
        before = simulator.membrane
    return np.stack(added)


@pytest.mark.parametrize(
    ("noise", "mean", "deviation", "is_fixed"),
    [
        (SpikeNoise(), 0.5, 0.0, True),
        (SpikeNoise(photons=200), 0.5, np.sqrt(0.5 / 200), False),
        (SpikeNoise(temporal_sigma=0.1), 0.5, 0.1, False),
        (SpikeNoise(gain_sigma=0.1), 0.5, 0.05, True),
        (SpikeNoise(dark_mean=0.2, dark_sigma=0.02), 0.7, 0.02, True),
    ],
)
def test_each_noise_has_its_size(noise, mean, deviation, is_fixed):
    added = charges(noise)
    assert abs(added.mean() - mean) < 0.01
    assert added[0].std() == pytest.approx(deviation, rel=0.1, abs=1e-8)
    assert np.allclose(added[0], added[1], atol=1e-8) == is_fixed


@pytest.mark.parametrize("part", ["photons", "temporal_sigma", "gain_sigma", "dark_sigma"])
def test_switching_one_noise_off_leaves_the_others(part):
    """Without the multiplied gain all parts add up, so each one's share is the same in any mix."""
    values = {"photons": 200.0, "temporal_sigma": 0.1, "dark_sigma": 0.02, "gain_sigma": 0.1}
    del values["photons" if part == "gain_sigma" else "gain_sigma"]
    everything = charges(SpikeNoise(dark_mean=0.2, **values))
    only_this = charges(SpikeNoise(dark_mean=0.2, **{part: values.pop(part)}))
    without = charges(SpikeNoise(dark_mean=0.2, **values))
    nothing = charges(SpikeNoise(dark_mean=0.2))
    assert np.abs(only_this - nothing).max() > 0.01
    assert np.allclose(everything - without, only_this - nothing, atol=1e-8)


def test_thresholds_differ_from_pixel_to_pixel_and_stay():
    level = np.full((2000, 16, 16), 0.5)
    noise = SpikeNoise(threshold_sigma=0.1)
    rates = simulate_spikes(level, seed=1, noise=noise).mean(axis=0)
    assert abs((1 / rates).std() / (1 / rates).mean() - 0.1) < 0.02
    again = simulate_spikes(level, seed=2, noise=noise).mean(axis=0)
    assert np.abs(again - rates).max() <= 1 / 1000  # another clip, the same sensor
    other = SpikeNoise(threshold_sigma=0.1, sensor_seed=1)
    assert np.abs(simulate_spikes(level, seed=1, noise=other).mean(axis=0) - rates).max() > 0.02


def test_noise_does_not_pile_up_above_the_threshold():
    noise = SpikeNoise(dark_mean=0.5)
    simulator = SpikeSimulator(2, 2, seed=1, threshold=1.0, noise=noise)
    simulator.expose(np.ones((100, 2, 2)))
    assert simulator.membrane.max() < 1.0 + 1e-9


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: simulate(np.full((2, 2, 2), 128, np.uint8)), r"128.0; \[0, 1\] is needed"),
        (lambda: simulate(np.full((2, 2, 2), -0.1)), r"\[0, 1\] is needed"),
        (lambda: simulate(np.full((2, 2, 2), np.nan)), r"\[0, 1\] is needed"),
        (lambda: simulate(np.zeros((2, 2))), r"intensity \[H, W\]"),
        (lambda: simulate(np.zeros((0, 2, 2))), "at least one intensity"),
        (lambda: simulate(np.full((1, 2, 2), 0.8), threshold=0.5), "0.8 exceeds the threshold 0.5"),
        (lambda: SpikeSimulator(2, 3, seed=1).expose(np.zeros((1, 3, 2))), r"\[S, 2, 3\]"),
        (lambda: SpikeSimulator(8, 8, seed=1, threshold=0.0), "all must be above 0"),
        (lambda: simulate(noise=SpikeNoise(threshold_sigma=0.9)), "gives a threshold below 0"),
        (lambda: SpikeNoise(photons=0), "photons is 0"),
        (lambda: SpikeNoise(gain_sigma=-1), "gain_sigma is -1"),
        (lambda: SpikeNoise(dark_mean=np.nan), "dark_mean is nan"),
        (lambda: rgb_to_intensity(np.zeros((4, 4, 3))), "uint8"),
        (lambda: rgb_to_intensity(np.zeros((4, 4), np.uint8)), "uint8"),
        (lambda: rgb_to_intensity(np.zeros((4, 4, 3), np.uint8), "gamma"), "transfer is 'gamma'"),
        (lambda: rgb_to_intensity(np.zeros((4, 6, 3), np.uint8), "linear", 4), "image of 4x6"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def simulate(intensity=np.zeros((1, 8, 8)), **settings):  # noqa: B008 (never changed)
    return simulate_spikes(intensity, seed=1, **settings)


# ---------------------------------------------------------------- light from RGB


@pytest.mark.parametrize("transfer", ["encoded", "linear"])
@pytest.mark.parametrize("downscale", [1, 2, 4])
def test_light_equals_the_plain_formula(transfer, downscale):
    rgb = np.random.default_rng(1).integers(0, 256, (2, 24, 16, 3), dtype=np.uint8)
    rgb[0, :8] = 255
    values = (rgb / 255) ** (2.2 if transfer == "linear" else 1) @ (0.299, 0.587, 0.114)
    expected = np.zeros((2, 24 // downscale, 16 // downscale))
    for y in range(downscale):
        for x in range(downscale):
            expected += values[:, y::downscale, x::downscale] / downscale**2
    light = rgb_to_intensity(rgb, transfer, downscale)
    assert np.abs(light - expected).max() < 1e-6
    assert light.max() <= 1
