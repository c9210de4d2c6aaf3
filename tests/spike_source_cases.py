"""Miniatures of GOPRO_Large with its published spikes, byte by byte as they are downloaded."""

from pathlib import Path

import numpy as np

from src.data.exposures import read_exposures
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


RECORDED_FRAMES, RECORDED_RATE = 5, 2000.0


def write_recorded(folder, seed=0, t_sharp=True, unit="ticks"):
    """Write blur, sharp and exposures.csv of a recording with gaps; return its spikes [S, H, W].

    Source frame j is at tick 8 j; exposure k is [56 k + 8, 56 k + 48), its sharp tick 56 k + 24.
    """
    source = moving_texture(7 * RECORDED_FRAMES + 1, SIZE, seed)
    factor = {"ticks": 1, "ms": 1e3 / RECORDED_RATE}[unit]
    rows = [f"frame_idx,t0[{unit}],t1[{unit}]" + f",t_sharp[{unit}]" * t_sharp]
    for k in range(RECORDED_FRAMES):
        write_png(folder / "blur" / f"img_{k:03d}.png", synthesize_blur(source[7 * k + 1 :][:5]))
        write_png(folder / "sharp" / f"img_{k:03d}.png", source[7 * k + 3])
        ticks = (56 * k + 8, 56 * k + 48, 56 * k + 24)[: 3 if t_sharp else 2]
        rows.append(",".join(map(str, (k, *(tick * factor for tick in ticks)))))
    (folder / "exposures.csv").write_text("\n".join(rows) + "\n")
    return crossfaded_spikes(source, seed)


def write_stated(path, **more):
    """Write what a spike file does not say: size and tick rate."""
    lines = {"height": SPIKE_SIZE[0], "width": SPIKE_SIZE[1], "ticks_per_second": RECORDED_RATE}
    text = "".join(f"{key}: {value}\n" for key, value in (lines | more).items())
    path.write_text(text)
