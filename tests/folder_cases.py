"""Small folders of frames and spikes, as users give them for testing."""

import numpy as np

from src.data.frames import write_png
from src.data.spikes.spike_dat import SpikeGeometry, SpikeSidecar, write_sidecar, write_spikes

SPIKE_SIZE = (16, 24)
FRAME_SIZE = (32, 48)
NUM_BINS = 4
NUM_TICKS = 12


def spikes_of(number, num_ticks=NUM_TICKS):
    random = np.random.default_rng([7, number])
    return (random.random((num_ticks, *SPIKE_SIZE)) < 0.3).astype(np.uint8)


def counts_of(number):
    """Counts of the spikes above by the plain rule: 12 ticks in 4 bins of 3."""
    return spikes_of(number).reshape(NUM_BINS, 3, *SPIKE_SIZE).sum(axis=1).astype(np.uint8)


def image_of(number, kind):
    random = np.random.default_rng([number, kind])
    return random.integers(0, 256, (*FRAME_SIZE, 3), dtype=np.uint8)


def write_images(folder, names, kind=0):
    for number, name in enumerate(names):
        write_png(folder / f"{name}.png", image_of(number, kind))


def write_voxels(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        np.save(folder / f"{name}.npy", counts_of(number))


def write_dats(folder, names, sidecar=True):
    for number, name in enumerate(names):
        write_spikes(folder / f"{name}.dat", spikes_of(number), SpikeGeometry(*SPIKE_SIZE))
    if sidecar:
        write_sidecar(folder, SpikeSidecar(*SPIKE_SIZE))
