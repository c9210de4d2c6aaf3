"""Miniature data roots whose spikes see motion within a source frame, with t_sharp stated."""

import numpy as np

from src.data.description import DataDescription, fingerprint_data, write_description
from src.data.exposures import Exposure, write_exposures
from src.data.frames import write_png
from src.data.simulation.blur import blur_window, synthesize_blur
from src.data.simulation.simulator import simulate_spikes
from src.data.spikes.matching import grey_at_spike_size
from src.data.spikes.spike_dat import SpikeGeometry, SpikeSidecar, write_sidecar, write_spikes
from tests.data_cases import TICKS_PER_FRAME, TICKS_PER_SECOND, moving_texture

N = 7
WINDOW = N * TICKS_PER_FRAME


def write_film(root, *, frames=6, size=(64, 96), stream=True, speed=1, ticks_late=0):
    """Write train/a and val/b; `ticks_late`: the spikes lag behind what exposures.csv states."""
    for seed, name in enumerate(("train/a", "val/b")):
        write_film_sequence(root / name, frames, size, stream, speed, ticks_late, seed)
    description = DataDescription(
        source="film",
        blur_kind="blur",
        frames_averaged=(N,),
        transfer="encoded",
        threshold=2.0,
        ticks_per_second=TICKS_PER_SECOND,
        interpolator="linear",
        fingerprint=fingerprint_data(root, ("train", "val")),
    )
    write_description(root, description)
    return root


def write_film_sequence(folder, frames, size, stream, speed, ticks_late, seed):
    source, bits = film(frames * N + 1, size, speed, ticks_late, seed)
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


def film(num_frames, size, speed, ticks_late, seed):
    """Source frames [N, H, W, 3] and bits [8 (N - 1), H/2, W/2] of frames cross-faded linearly."""
    source = moving_texture((num_frames - 1) * speed + 1, size, seed)
    source = source[::speed] if speed else np.repeat(source, num_frames, axis=0)
    half = (size[0] // 2, size[1] // 2)
    grey = [grey_at_spike_size(frame, half) for frame in source]
    light = [
        a + (b - a) * i / TICKS_PER_FRAME
        for a, b in zip(grey, grey[1:], strict=False)
        for i in range(TICKS_PER_FRAME)
    ]
    light = np.roll(np.stack(light), ticks_late, axis=0)
    return source, simulate_spikes(light, 2.0, seed=seed)
