"""Builders and slow twins shared by the tests of spike files, events and voxels."""

from types import SimpleNamespace

import numpy as np


def random_spikes(num_ticks: int, height: int, width: int, rate: float = 0.3, seed: int = 0):
    """Return spikes uint8 [S, H, W] of 0 and 1, with at least one of each."""
    spikes = (np.random.default_rng(seed).random((num_ticks, height, width)) < rate).astype(
        np.uint8
    )
    assert 0 < spikes.sum() < spikes.size
    return spikes


def dense_to_events(spikes):
    """Return the ones of dense spikes [S, H, W] as rows (t, y, x), sorted by t: int64 [N, 3]."""
    return np.argwhere(spikes)


def voxelize_twin(events, t0, t1, H, W, K):
    """The obvious voxelizer: one event after the other, by np.add.at with three indices."""
    grid = np.zeros((K, H, W), np.float32)
    t = events[:, 0].astype(np.float64)
    bins = np.clip(np.floor((t - t0) / (t1 - t0) * K), 0, K - 1).astype(int)
    np.add.at(grid, (bins, events[:, 1].astype(int), events[:, 2].astype(int)), 1)
    return grid


def voxelize_spikes_twin(spikes, K):
    """Count dense spikes tick by tick in Python integers."""
    num_ticks = len(spikes)
    grid = np.zeros((K, *spikes.shape[1:]), np.int64)
    for q in range(num_ticks):
        grid[q * K // num_ticks] += spikes[q]
    return grid


def blur_window(k, n, offset=0):
    """Source frames, ticks and seconds of blurry frame k of n source frames, 240 per second."""
    first = k * n - offset
    frames = {"first_frame": first, "stop_frame": first + n, "sharp_frame": first + n // 2}
    ticks = {"start_tick": 8 * first, "stop_tick": 8 * (first + n)}
    return SimpleNamespace(**frames, **ticks, t0=first / 240, t1=(first + n) / 240)
