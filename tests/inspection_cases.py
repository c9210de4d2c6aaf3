"""Recordings of a moving scene in any size, for the tests of what a spike file is."""

from functools import cache

import numpy as np

from src.data.simulation.simulator import SpikeSimulator


def scene(height, width, seed=0):
    """Smooth random light [H, W] in 0..1 with structure at several scales, not periodic."""
    rng = np.random.default_rng(seed)
    light = np.zeros((height, width))
    for cell in (4, 11, 29):
        coarse = rng.random((height // cell + 2, width // cell + 2))
        fine = coarse.repeat(cell, axis=0).repeat(cell, axis=1)
        for axis in (0, 1):
            for _ in range(2):
                fine = (fine + np.roll(fine, 1, axis) + np.roll(fine, -1, axis)) / 3
        light += fine[cell // 2 : cell // 2 + height, cell // 2 : cell // 2 + width]
    light -= light.min()
    return light / light.max()


@cache
def drifting_spikes(height, width, num_ticks, seed=0, threshold=2.0):
    """Spikes uint8 [S, H, W] of a scene that moves by one pixel every fourth tick."""
    light = scene(height, width + num_ticks // 4 + 1, seed)
    simulator = SpikeSimulator(height, width, seed=seed, threshold=threshold)
    views = (light[None, :, q // 4 : q // 4 + width] for q in range(num_ticks))
    return np.concatenate([simulator.expose(view) for view in views])


def pack(spikes, bit_order="little", flip_rows=True):
    """Bytes of a `.dat` file: uint8 [N]."""
    stored = spikes[:, ::-1] if flip_rows else spikes
    return np.packbits(stored.reshape(-1), bitorder=bit_order)
