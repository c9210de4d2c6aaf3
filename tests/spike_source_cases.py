"""Miniatures of GOPRO_Large with its published spikes, and of own recordings, byte by byte."""

from pathlib import Path

import numpy as np

from src.data.frames import write_png
from src.data.simulation.blur import synthesize_blur
from src.data.spikes.spike_dat import SpikeGeometry, write_spikes
from tests.data_cases import moving_texture
from tests.timed_cases import crossfaded_spikes

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
    """Write one clip as published.

    The recording is zz frames longer than what was released: blurry frame k is the mean of recorded
    frames [k n, k n + n), and the released frames and the spikes begin at recorded frame zz. The
    published script cuts the spikes at 8 n k, whatever zz is.
    """
    root, (n, zz) = Path(root), (int(part) for part in clip.split("_")[1:])
    recorded = moving_texture(frames * n + zz + 1, SIZE, seed=n + zz)
    if still:
        recorded = np.repeat(recorded[:1], len(recorded), axis=0)
    for k in range(frames):
        exposed = recorded[k * n : k * n + n]
        pictures = {
            "blur": synthesize_blur(exposed),
            "blur_gamma": synthesize_blur(exposed, 2.2),
            "sharp": exposed[(n - 1) // 2],
        }
        for kind, picture in pictures.items():
            folder = root / "GOPRO_Large" / split / clip / kind
            write_png(folder / f"{first + k:06d}.png", picture)
    released = recorded[zz:]
    spikes = crossfaded_spikes(released, seed=n)
    for j, frame in enumerate(released if all_frames else ()):
        write_png(root / "GOPRO_Large_all" / split / clip / f"{j + 1:06d}.png", frame)
    if whole:
        write_spikes(root / "Spike_GOPRO_Large_all" / split / clip / "spike.dat", spikes, GEOMETRY)
    if per_frame:
        folder = root / "GOPRO_Large_spike_seq"
        for k in range(frames):
            cut = spikes[8 * n * k : 8 * n * (k + 1)]
            write_spikes(folder / split / clip / "spike" / f"{first + k:06d}.dat", cut, GEOMETRY)
        (folder / "config.yaml").write_text(SPIKECV_CONFIG)


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
