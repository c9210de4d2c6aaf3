"""Miniature data roots whose spikes see motion within a source frame, with t_sharp stated."""

from pathlib import Path

import numpy as np

from src.data.description import DataDescription, fingerprint_data, write_description
from src.data.exposures import Exposure, write_exposures
from src.data.frames import write_png
from src.data.simulation.blur import synthesize_blur
from src.data.simulation.simulator import simulate_spikes
from src.data.spikes.matching import grey_at_spike_size
from src.data.spikes.spike_dat import SpikeGeometry, SpikeSidecar, write_sidecar, write_spikes
from tests.data_cases import TICKS_PER_FRAME, TICKS_PER_SECOND, moving_texture
from tests.spike_cases import blur_window

N = 7
WINDOW = N * TICKS_PER_FRAME


def crossfaded_spikes(frames, seed=0, ticks_late=0):
    """Spikes [8 (N - 1) + 1, H/2, W/2] of frames that fade into each other linearly."""
    size = frames.shape[1] // 2, frames.shape[2] // 2
    grey = np.stack([grey_at_spike_size(frame, size) for frame in frames])
    parts = np.arange(TICKS_PER_FRAME)[:, None, None] / TICKS_PER_FRAME
    light = [a + (b - a) * parts for a, b in zip(grey, grey[1:], strict=False)]
    light = np.concatenate([*light, grey[-1:]])
    return simulate_spikes(np.roll(light, ticks_late, axis=0), 2.0, seed=seed)


def write_timed(root, **options):
    """Write train/a and val/b, see `write_timed_sequence`."""
    for seed, name in enumerate(("train/a", "val/b")):
        write_timed_sequence(root / name, seed=seed, **options)
    description = DataDescription(
        source="timed",
        blur_kind="blur",
        frames_averaged=(N,),
        transfer="encoded",
        threshold=2.0,
        ticks_per_second=TICKS_PER_SECOND,
        interpolator="linear",
        fingerprint=fingerprint_data(root, ("train", "val")),
    )
    write_description(root, description)
    return Path(root)


def write_timed_sequence(
    folder, *, seed=0, frames=6, size=(64, 96), stream=True, speed=1, ticks_late=0
):
    """Write a sequence; `ticks_late`: the spikes lag behind what exposures.csv states."""
    source = moving_texture(frames * N * speed + 1, size, seed)
    source = source[::speed] if speed else np.repeat(source, frames * N + 1, axis=0)
    bits = crossfaded_spikes(source, seed, ticks_late)
    geometry = SpikeGeometry(size[0] // 2, size[1] // 2)
    exposures = {}
    for k in range(frames):
        window = blur_window(k, N)
        shown = source[window.first_frame : window.stop_frame]
        write_png(folder / "blur" / f"{k:06d}.png", synthesize_blur(shown))
        write_png(folder / "sharp" / f"{k:06d}.png", source[window.sharp_frame])
        exposures[k] = Exposure(window.t0, window.t1, t_sharp=window.sharp_frame / 240)
        if not stream:
            exposed = bits[window.start_tick : window.stop_tick]
            write_spikes(folder / "spike" / f"{k:06d}.dat", exposed, geometry)
    if stream:
        write_spikes(folder / "spike" / "spike.dat", bits, geometry)
    sidecar = SpikeSidecar(geometry.height, geometry.width, TICKS_PER_SECOND, threshold=2.0)
    write_sidecar(folder / "spike", sidecar)
    write_exposures(folder / "exposures.csv", exposures)
