import numpy as np
import pytest

from src.metrics.paired import paired_difference

INF = float("inf")


def test_differences_by_hand():
    found = paired_difference([1.0, 2.0, None, 4.0], [2.0, 1.5, 9.0, 5.0], ["a", "a", "a", "b"])
    assert found.mean == pytest.approx((1.0 - 0.5 + 1.0) / 3)
    assert (found.num_frames, found.num_sequences) == (3, 2)
    assert found.share_positive == pytest.approx(2 / 3)
    assert paired_difference([None], [1.0], ["a"]) is None


def test_interval_over_two_sequences_by_hand():
    """Drawn are aa, ab, ba, bb, of 2 and 1 frames: the mean is 1, 2, 2, 4."""
    found = paired_difference([0.0] * 3, [1.0, 1.0, 4.0], ["a", "a", "b"])
    assert (found.over_sequences.low, found.over_sequences.high) == (1.0, 4.0)
    assert found.mean == 2.0


def test_a_constant_difference_has_no_spread():
    values = np.arange(8.0)
    found = paired_difference(values, values + 0.5, ["a"] * 4 + ["b"] * 4)
    for interval in (found.over_frames, found.over_sequences):
        assert (interval.low, interval.high) == (0.5, 0.5)


def test_interval_over_frames_is_that_of_the_normal_distribution():
    rng = np.random.default_rng(3)
    noise = rng.normal(0.2, 1.0, 400)
    found = paired_difference(np.zeros(400), noise, ["a"] * 400)
    half = 1.96 * noise.std() / 20
    assert found.over_frames.low == pytest.approx(noise.mean() - half, abs=0.01)
    assert found.over_frames.high == pytest.approx(noise.mean() + half, abs=0.01)
    assert found.over_sequences is None  # one sequence says nothing about others


def test_frames_that_are_alike_need_the_interval_over_sequences():
    """Ten sequences of 50 equal frames are ten samples, not 500."""
    levels = np.random.default_rng(5).normal(size=10).repeat(50)
    found = paired_difference(np.zeros(500), levels, [f"s{i // 50}" for i in range(500)])
    width = found.over_frames.high - found.over_frames.low
    assert found.over_sequences.high - found.over_sequences.low > 5 * width


def test_the_result_is_a_function_of_the_seed():
    first, second = np.zeros(30), np.random.default_rng(1).normal(size=30)
    names = [f"s{i % 3}" for i in range(30)]
    same = [paired_difference(first, second, names, seed=4) for _ in range(2)]
    assert same[0] == same[1]
    assert paired_difference(first, second, names, seed=5).over_frames != same[0].over_frames


def test_perfect_frames_are_infinite_differences_or_none():
    both = paired_difference([INF, 1.0], [INF, 2.0], ["a", "b"])
    assert both.mean == 0.5
    one = paired_difference([30.0, 1.0], [INF, 2.0], ["a", "b"])
    assert (one.mean, one.over_frames, one.over_sequences) == (INF, None, None)
