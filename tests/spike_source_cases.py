"""Miniatures of GOPRO_Large with its published spikes, byte by byte as they are downloaded."""

from pathlib import Path

import numpy as np

from src.data.alignment import read_exposures
from src.data.frames import list_frames, read_image, write_png
from src.data.simulation.blur import synthesize_blur
from src.data.simulation.simulator import simulate_spikes
from src.data.spikes.matching import best_tfp_centre, grey_at_spike_size
from src.data.spikes.spike_dat import SpikeFile, SpikeGeometry, read_sidecar, write_spikes
from tests.data_cases import moving_texture

SIZE, SPIKE_SIZE = (64, 96), (32, 48)
GEOMETRY = SpikeGeometry(*SPIKE_SIZE)
SPIKECV_CONFIG = """\
# parameters
filename: GOPRO_Large_spike_seq
spike_w: 48
spike_h: 32
is_labeled: true
labeled_data_type: [1]
labeled_data_suffix: png
"""


def write_gopro_clip(
    root,
    clip,
    *,
    split="train",
    frames=4,
    first=1,
    whole=False,
    per_frame=True,
    still=False,
    all_frames=False,
):
    """Write one clip as published; return its source frames uint8 [N, H, W, 3].

    The clip was filmed zz frames longer than it was released: blurry frame k is the mean of filmed
    frames [k n, k n + n), and the released frames and the spikes begin at filmed frame zz. The
    published script cuts the spikes at 8 n k, whatever zz is.
    """
    root, (n, zz) = Path(root), (int(part) for part in clip.split("_")[1:])
    filmed = moving_texture(frames * n + zz + 1, SIZE, seed=n + zz)
    if still:
        filmed = np.repeat(filmed[:1], len(filmed), axis=0)
    for k in range(frames):
        exposed = filmed[k * n : k * n + n]
        pictures = {
            "blur": synthesize_blur(exposed),
            "blur_gamma": synthesize_blur(exposed, 2.2),
            "sharp": exposed[(n - 1) // 2],
        }
        for kind, picture in pictures.items():
            folder = root / "GOPRO_Large" / split / clip / kind
            write_png(folder / f"{first + k:06d}.png", picture)
    released = filmed[zz:]
    spikes = crossfaded_spikes(released, seed=n)
    for j, frame in enumerate(released if all_frames else ()):
        write_png(root / "GOPRO_Large_all" / split / clip / f"{j + 1:06d}.png", frame)
    if whole:
        write_spikes(root / "Spike_GOPRO_Large_all" / split / clip / "spike.dat", spikes, GEOMETRY)
    if per_frame:
        folder = root / "GOPRO_Large_spike_seq"
        for k in range(frames):
            cut = spikes[8 * n * k : 8 * n * (k + 1)]
            assert len(cut) == 8 * n
            write_spikes(folder / split / clip / "spike" / f"{first + k:06d}.dat", cut, GEOMETRY)
        (folder / "config.yaml").write_text(SPIKECV_CONFIG)
    return released


def crossfaded_spikes(frames, seed=0, threshold=2.0, steps=8):
    """Spikes [8 (N - 1) + 1, H/2, W/2] of frames that fade into each other linearly."""
    size = frames.shape[1] // 2, frames.shape[2] // 2
    grey = [grey_at_spike_size(frame, size) for frame in frames]
    light = [
        a + (b - a) * i / steps for a, b in zip(grey, grey[1:], strict=False) for i in range(steps)
    ]
    return simulate_spikes([*light, grey[-1]], threshold, seed=seed)


def read_stream(folder):
    """All spikes of a prepared sequence, and its ticks per second."""
    (path,) = list_frames(folder / "spike", [".dat"]).values()
    sidecar = read_sidecar(path)
    file = SpikeFile(path, sidecar.geometry)
    return file.read(0, file.num_ticks), sidecar.ticks_per_second


def deviations(folder, width=17):
    """Ticks from the stated instant of each sharp frame to the best TFP centre, by frame name."""
    spikes, rate = read_stream(folder)
    exposures = read_exposures(folder / "exposures.csv", rate)
    found = {}
    for name, path in list_frames(folder / "sharp", [".png"]).items():
        stated = exposures[int(name)].t_sharp * rate
        grey = grey_at_spike_size(read_image(path), spikes.shape[1:])
        match = best_tfp_centre(spikes, grey, width=width)
        assert match.is_decisive
        found[name] = match.centre - stated
    return found
