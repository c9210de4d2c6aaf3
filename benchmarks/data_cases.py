"""The data that benchmarks/data.py measures on, made in a folder of its own."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import skimage.data

from src.data.datasets.spike_deblur_dataset import ClipSettings, SpikeDeblurDataset
from src.data.frame_cache import FrameStore, store_frames
from src.data.frames import write_png
from src.data.recordings import FrameRecord, Recording
from src.data.spikes.spike_dat import SpikeGeometry, write_spikes
from src.data.transforms import AugmentSettings
from src.data.voxel_counts import Crop, SpikeWindow, count_frame, read_voxels
from tests.source_cases import GoproClip, write_gopro

FRAMES_PER_CLIP = 5


@dataclass(frozen=True)
class Scale:
    """How large everything is. The spikes have the size of the frames."""

    size: tuple[int, int] = (720, 1280)
    crop_px: int = 256
    num_frames: int = 20
    num_ticks: int = 56
    num_bins: int = 32
    num_events: int = 1_000_000
    num_source_frames: int = 330
    num_clips: int = min(4, os.cpu_count() or 1)

    @property
    def num_bytes(self) -> int:
        """Disk that is taken: counts as bytes and as float32, bits, frames, and source frames."""
        pixels = self.size[0] * self.size[1]
        per_frame = 5 * self.num_bins + self.num_ticks / 8 + 2 * 3 * 3
        source_frames = self.num_clips * self.num_source_frames * 2  # the second: what is made
        return int(self.num_frames * pixels * per_frame + 1.5 * pixels * source_frames)


FULL, QUICK = Scale(), Scale((64, 96), 32, 6, 56, 32, 5000, 22, 1)


class BenchmarkData:
    """One sequence with everything in every form.

    Args:
        root: an empty folder.
        scale: how large.
    """

    def __init__(self, root: Path, scale: Scale) -> None:
        self.root, self.scale = root, scale
        self.geometry = SpikeGeometry(*scale.size)
        records = [self._make_frame(k) for k in range(scale.num_frames)]
        files = [path for record in records for path in (record.blurry, record.sharp)]
        self.jpegs = {path: path.with_suffix(".jpg") for path in files}
        self.store, _ = store_frames(files, root)
        self.packed = Recording(
            "packed", [replace(r, voxels=None) for r in records], scale.num_bins
        )
        self.cached = Recording("cached", records, scale.num_bins)

    def float_file(self, i: int) -> Path:
        """Return the float32 counts of frame i."""
        return self.root / f"float/{i:06d}.npy"

    def files(self) -> Iterable[Path]:
        """Return all files."""
        return (path for path in self.root.rglob("*") if path.is_file())

    def crops(self, seed: int = 0) -> Callable[[], tuple[int, Crop]]:
        """Return a function that draws the first frame and the crop of a clip."""
        rng = np.random.default_rng(seed)
        (height, width), side = self.scale.size, self.scale.crop_px

        def draw() -> tuple[int, Crop]:
            start = int(rng.integers(self.scale.num_frames - FRAMES_PER_CLIP + 1))
            y, x = (int(rng.integers(n - side + 1)) for n in (height, width))
            return start, (y, x, side, side)

        return draw

    def dataset(
        self, recording: Recording, store: FrameStore | None = None, *, as_uint8: bool = True
    ) -> SpikeDeblurDataset:
        """Return the training clips of a recording, flipped and transposed as in training."""
        if store is not None:
            recording = recording.with_store(store)
        augment = AugmentSettings(flip=True, transpose=True)
        clips = ClipSettings(FRAMES_PER_CLIP, self.scale.crop_px, augment)
        return SpikeDeblurDataset([recording], clips, as_uint8=as_uint8)

    def downloaded(self, num_clips: int) -> Path:
        """Write GOPRO_Large_all with so many clips, and return its folder."""
        clips = [
            GoproClip("train", f"GOPR{number:04d}_11_00", self.scale.num_source_frames)
            for number in range(num_clips)
        ]
        write_gopro(self.root / "downloaded", clips, pairs=False, size=self.scale.size)
        return self.root / "downloaded/GOPRO_Large_all"

    def _make_frame(self, k: int) -> FrameRecord:
        """Write one frame: a photograph with noise, and bits that fire at random."""
        rng = np.random.default_rng(k)
        height, width = self.scale.size
        photograph = (skimage.data.coffee, skimage.data.rocket)[k % 2]()
        sharp = cv2.resize(photograph, (width, height), interpolation=cv2.INTER_CUBIC)
        noise = rng.integers(-2, 3, sharp.shape)
        sharp = np.clip(sharp + noise, 0, 255).astype(np.uint8)
        paths = {kind: self.root / kind / f"{k:06d}.png" for kind in ("blur", "sharp")}
        for path, image in zip(paths.values(), (cv2.blur(sharp, (9, 1)), sharp), strict=True):
            write_png(path, image)
            cv2.imwrite(str(path.with_suffix(".jpg")), image[..., ::-1])
        source = SpikeWindow(self._write_spikes(k, rng), self.geometry, 0, self.scale.num_ticks)
        voxels = self.root / f"spike_vox/{k:06d}.npy"
        count_frame(source, self.scale.num_bins, voxels)
        counts = read_voxels(voxels, self.scale.num_bins)
        self.float_file(k).parent.mkdir(exist_ok=True)
        np.save(self.float_file(k), counts.astype(np.float32))
        times = {"t0": k / 100, "t1": (k + 1) / 100}
        images = {"blurry": paths["blur"], "sharp": paths["sharp"]}
        return FrameRecord(f"{k:06d}", k, **times, **images, spikes=source, voxels=voxels)

    def _write_spikes(self, k: int, rng: np.random.Generator) -> Path:
        path = self.root / f"spike/{k:06d}.dat"
        spikes = rng.integers(0, 256, (self.scale.num_ticks, *self.scale.size), np.uint8) < 90
        write_spikes(path, spikes, self.geometry)
        return path
