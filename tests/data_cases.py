"""Miniature data roots: moving textures, their blur, and spikes made from them."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np

from src.data.description import DataDescription, fingerprint_data, write_description
from src.data.exposures import EXPOSURES_HEADER, read_exposures, write_alignment
from src.data.frames import write_png
from src.data.scanning import ScanSettings, scan_sequence
from src.data.simulation.blur import synthesize_blur
from src.data.simulation.simulator import SpikeSimulator
from src.data.spikes.spike_dat import SpikeGeometry, SpikeSidecar, write_sidecar, write_spikes
from tests.spike_cases import blur_window, voxelize_spikes_twin

TICKS_PER_FRAME, TICKS_PER_SECOND = 8, 1920


def write_miniature(
    root,
    *,
    sequences=2,
    val_sequences=1,
    frames=6,
    size=(64, 96),
    n=7,
    seed=0,
    spikes="per frame",
    num_bins=32,
):
    """Write a data root with spikes at half the RGB size; `spikes`: per frame, stream or voxels."""
    root = Path(root)
    plan = [("train", i) for i in range(sequences)] + [("val", i) for i in range(val_sequences)]
    for number, (split, i) in enumerate(plan):
        folder = root / split / f"seq_{i:03d}"
        write_sequence(folder, frames, size, n, seed * 1000 + number, spikes, num_bins)
    description = DataDescription(
        source="miniature",
        blur_kind="blur",
        frames_averaged=(n,),
        transfer="encoded",
        threshold=2.0,
        ticks_per_second=TICKS_PER_SECOND,
        fingerprint=fingerprint_data(root, [s for s in ("train", "val") if (root / s).is_dir()]),
    )
    write_description(root, description)
    return root


def write_sequence(folder, frames, size, n, seed, spikes="per frame", num_bins=32):
    """Write one sequence: a texture that moves to the right by one RGB pixel per source frame."""
    source = moving_texture(frames * n, size, seed)
    bits = simulate(source, seed)
    geometry = SpikeGeometry(size[0] // 2, size[1] // 2)
    rows = [EXPOSURES_HEADER]
    for k in range(frames):
        window = blur_window(k, n)
        write_png(
            folder / "blur" / f"{k:06d}.png",
            synthesize_blur(source[window.first_frame : window.stop_frame]),
        )
        write_png(folder / "sharp" / f"{k:06d}.png", source[window.sharp_frame])
        rows.append(f"{k},{window.t0!r},{window.t1!r}")
        exposed = bits[window.start_tick : window.stop_tick]
        if spikes == "per frame":
            write_spikes(folder / "spike" / f"{k:06d}.dat", exposed, geometry)
        if spikes == "voxels":
            (folder / "spike_vox").mkdir(exist_ok=True)
            counts = voxelize_spikes_twin(exposed, num_bins).astype(np.uint8)
            np.save(folder / "spike_vox" / f"{k:06d}.npy", counts)
    if spikes == "stream":
        write_spikes(folder / "spike" / "spike.dat", bits, geometry)
    if spikes != "voxels":
        write_sidecar(
            folder / "spike",
            SpikeSidecar(geometry.height, geometry.width, TICKS_PER_SECOND, threshold=2.0),
        )
    (folder / "exposures.csv").write_text("\n".join(rows) + "\n")


def moving_texture(num_frames, size, seed):
    """uint8 [num_frames, H, W, 3]: a smooth random texture that moves by one pixel per frame."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((size[0] // 4, (size[1] + num_frames) // 4 + 2, 3))
    texture = np.repeat(np.repeat(coarse, 4, axis=0), 4, axis=1)
    for axis in (0, 1):
        texture = (np.roll(texture, 1, axis) + 2 * texture + np.roll(texture, -1, axis)) / 4
    texture = np.rint(texture * 255).astype(np.uint8)
    return np.stack([texture[:, k : k + size[1]] for k in range(num_frames)])


def simulate(source, seed):
    """Bits [8 * frames, H/2, W/2] of the grey values, each frame shown for eight ticks."""
    grey = source.astype(np.float64) @ (0.299, 0.587, 0.114) / 255
    half = (grey[:, ::2, ::2] + grey[:, 1::2, ::2] + grey[:, ::2, 1::2] + grey[:, 1::2, 1::2]) / 4
    simulator = SpikeSimulator(*half.shape[1:], seed=seed)
    return simulator.expose(np.clip(np.repeat(half, TICKS_PER_FRAME, axis=0), 0, 1))


def settings_of(root, **changes):
    return dataclasses.replace(ScanSettings(root=Path(root), num_bins=32), **changes)


def align(root, path, splits=("train", "val")):
    """Write an alignment log from the exposures tables, with every count 0; return its path."""
    records = {}
    for split in splits:
        for folder in sorted((Path(root) / split).iterdir()):
            exposures = read_exposures(folder / "exposures.csv", TICKS_PER_SECOND)
            records[f"{split}/{folder.name}"] = {
                index: dataclasses.replace(exposure, num_spikes=0)
                for index, exposure in exposures.items()
            }
    write_alignment(path, records)
    return path


def scan(folder, **changes):
    """Scan one sequence as preparation does."""
    return scan_sequence(Path(folder), settings_of(Path(folder).parents[1], **changes), None)


def copy_root(source, target):
    """Copy a data root with its times, so that a voxel cache in it stays valid."""
    return Path(shutil.copytree(source, target))
