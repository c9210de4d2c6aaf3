"""TFP and TFI by hand, against twins, and as inverses of the simulator."""

import numpy as np
import pytest

from src.data.simulation.simulator import simulate_spikes
from src.data.spikes.reconstruct import tfi, tfp
from tests.spike_cases import random_spikes


def stream(bits):
    return np.array(bits, np.uint8).reshape(-1, 1, 1)


def test_tfp_windows_by_hand():
    spikes = stream([1, 0, 0, 1, 1, 0])
    assert tfp(spikes, 2, 3, 2.0) == pytest.approx(2 / 3)  # ticks 1, 2, 3
    assert tfp(spikes, 3, 2, 2.0) == pytest.approx(1.0)  # ticks 2, 3
    assert tfp(spikes, 0, 4, 2.0) == pytest.approx(1.0)  # cut to ticks 0, 1
    assert tfp(spikes, 5, 4, 2.0) == pytest.approx(4 / 3)  # cut to ticks 3, 4, 5
    assert tfp(spikes, 3, 6, 1.0).dtype == np.float32


@pytest.mark.parametrize(("centre", "width"), [(9, 2), (-3, 4), (2, 0)])
def test_tfp_of_an_empty_window_is_refused(centre, width):
    with pytest.raises(ValueError, match="has none of the stream's 6"):
        tfp(stream([1] * 6), centre, width, 2.0)


def test_tfi_equals_its_twin():
    spikes = random_spikes(30, 5, 6, rate=0.1)
    for tick in range(30):
        image, has_interval = tfi(spikes, tick, 2.0)
        for y, x in np.ndindex(5, 6):
            ones = np.flatnonzero(spikes[:, y, x])
            before, after = ones[ones <= tick], ones[ones > tick]
            assert has_interval[y, x] == bool(len(before) and len(after))
            first, last = [-1, *before][-1], [*after, 30][0]  # the ends count as spikes
            assert image[y, x] == pytest.approx(2.0 / (last - first))
    assert not has_interval.all()


def test_a_tick_outside_the_stream_is_refused():
    for tick in (-1, 3):
        with pytest.raises(ValueError, match=f"tick {tick} lies outside the stream of 3"):
            tfi(stream([1, 1, 1]), tick, 2.0)
    with pytest.raises(ValueError, match=r"\[S, H, W\]"):
        tfp(np.ones((3, 4), np.uint8), 1, 1, 2.0)


def test_both_give_the_light_back_with_the_threshold_as_gain():
    light = np.linspace(0.1, 1, 30).reshape(5, 6)
    spikes = simulate_spikes(np.broadcast_to(light, (400, 5, 6)), threshold=2.0, seed=1)
    assert np.abs(tfp(spikes, 200, 400, 2.0) - light).max() <= 2 / 400 + 1e-6
    image, has_interval = tfi(spikes, 200, 2.0)
    assert has_interval.all()
    # An interval is a whole number of ticks next to 2 / light.
    assert np.abs(2.0 / image - 2.0 / light).max() < 1
