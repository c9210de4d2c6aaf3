"""Clips of blurry frames, sharp frames and spikes: what belongs to a sample, nothing else.

Reading, aligning, counting, caching and augmenting are files of their own.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from yacs.config import CfgNode

from src.data.errors import BadFileError, BadSample, DataSetError
from src.data.normalization import Normalization, normalize_counts, to_unit
from src.data.recordings import FrameRecord, Recording, require_known_ticks
from src.data.transforms import (
    AugmentSettings,
    CropGrid,
    Key,
    Orientation,
    crop_grid,
    damage_counts,
    draw_crop,
    draw_defects,
    draw_orientation,
    orient_frames,
    orient_voxels,
    sample_generator,
)


@dataclass(frozen=True)
class ClipSettings:
    """How clips of T `frames` are cut: whole or as random crops, with random changes."""

    frames: int = 5
    crop_px: int | None = None
    augment: AugmentSettings = AugmentSettings()


@dataclass(frozen=True)
class Clip:
    """T consecutive frames of a recording, the first one at `start`."""

    recording: int
    start: int


class SpikeDeblurDataset(Dataset):
    """All clips of T consecutive frames; a dropped frame interrupts a sequence.

    A key is an index, or (epoch, index); everything random depends on (seed, epoch, index) alone.
    A clip that cannot be read comes back as `BadSample`, which `collate_clips` leaves out.
    `as_uint8` leaves scaling and normalization to the receiver: blur and sharp are uint8, and
    spike_vox holds counts (uint8, or int32 or float32 where the stored ones need it).
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        settings: ClipSettings = ClipSettings(),
        *,
        norm: Normalization = Normalization(),
        seed: int = 0,
        as_uint8: bool = False,
    ) -> None:
        self.recordings = tuple(recordings)
        self.settings = settings
        self.norm = norm
        self.seed, self.as_uint8 = seed, as_uint8
        self.clips = find_clips(self.recordings, settings.frames)
        if not self.clips:
            raise DataSetError("clips", [_why_no_clips(self.recordings, settings.frames)])
        if norm.bin_normalize:
            require_known_ticks(self.recordings)
        self._grids = _crop_grids(self.recordings, settings)

    @classmethod
    def from_config(cls, cfg: CfgNode, split: str) -> "SpikeDeblurDataset":
        """Return the clips of a split as float samples.

        DATA.TRAIN_SPLIT or "train" gives random crops, DATA.VAL_SPLIT or "val" whole frames.
        """
        from src.data.build import build_train_dataset, build_val_dataset

        if split in ("train", cfg.DATA.TRAIN_SPLIT):
            return build_train_dataset(cfg, as_uint8=False)
        if split in ("val", cfg.DATA.VAL_SPLIT):
            return build_val_dataset(cfg)
        raise ValueError(f"split is {split!r}; the splits are 'train' and 'val'")

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: int | Key) -> dict[str, Any] | BadSample:
        """Return a sample as the data guide describes it.

        blur and sharp [T, 3, H, W], spike_vox [T, K, Hs, Ws], meta, and bin_ticks int32 [T, K]: the
        ticks of each bin, 0 where the spikes came as voxels of unknown ticks.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        index = range(len(self.clips))[index]
        clip = self.clips[index]
        try:
            return self._sample(clip, sample_generator(self.seed, epoch, index))
        except BadFileError as error:
            return BadSample(self.clip_name(index), str(error))

    def clip_name(self, index: int) -> str:
        """Return sequence and frames of a clip, for the log."""
        clip = self.clips[index]
        frames = [frame.index for frame in self._frames(clip)]
        return f"{self.recordings[clip.recording].name} frames {frames}"

    @property
    def spike_crop_sizes(self) -> set[tuple[int, int]]:
        """Heights and widths of random crops in spike pixels; several cannot be in one batch."""
        return {grid.spike_crop_size for grid in self._grids if isinstance(grid, CropGrid)}

    def _sample(self, clip: Clip, rng: np.random.Generator) -> dict[str, Any]:
        recording = self.recordings[clip.recording]
        frame_crop = spike_crop = None
        if self.settings.crop_px is not None:
            grid = self._grids[clip.recording]
            if isinstance(grid, BadFileError):
                raise grid
            frame_crop, spike_crop = draw_crop(rng, grid)
        orientation = draw_orientation(rng, self.settings.augment)
        times = range(clip.start, clip.start + self.settings.frames)
        blurry = np.stack([recording.read_blurry(i, frame_crop) for i in times])  # [T, H, W, 3]
        sharp = np.stack([recording.read_sharp(i, frame_crop) for i in times])
        counts = recording.read_clip_counts(times, spike_crop)  # [T, K, Hs, Ws]
        ticks = np.stack([recording.bin_ticks(i) for i in times])  # [T, K]
        if self.norm.center_sharp:
            bins = np.stack([recording.centred_bins(i) for i in times])
            ticks = np.take_along_axis(ticks, bins, axis=1)
            counts = np.take_along_axis(counts, bins[..., None, None], axis=1)
        if self.settings.augment.spikes:
            counts = damage_counts(rng, counts, ticks, draw_defects(rng))
        order = slice(None, None, -1 if orientation.reverse else 1)
        bin_ticks = torch.from_numpy(ticks[order, order].copy())
        frames = self._frames(clip)[order]
        return {
            "blur": self._image_tensor(blurry, orientation),
            "sharp": self._image_tensor(sharp, orientation),
            "spike_vox": self._voxel_tensor(counts, orientation, bin_ticks, blurry),
            "bin_ticks": bin_ticks,
            "meta": {
                "seq": recording.name,
                "frame_idx": [frame.index for frame in frames],
                "t0": [frame.t0 for frame in frames],
                "t1": [frame.t1 for frame in frames],
            },
        }

    def _frames(self, clip: Clip) -> list[FrameRecord]:
        frames = self.recordings[clip.recording].frames
        return list(frames[clip.start : clip.start + self.settings.frames])

    def _image_tensor(self, images: np.ndarray, orientation: Orientation) -> torch.Tensor:
        tensor = torch.from_numpy(orient_frames(np.moveaxis(images, -1, 1), orientation))
        return tensor if self.as_uint8 else to_unit(tensor)

    def _voxel_tensor(
        self,
        counts: np.ndarray,
        orientation: Orientation,
        bin_ticks: torch.Tensor,
        blurry: np.ndarray,
    ) -> torch.Tensor:
        if counts.dtype == np.uint16:
            counts = counts.astype(np.int32)  # few operations of torch know uint16
        tensor = torch.from_numpy(orient_voxels(counts, orientation))
        if self.as_uint8:
            return tensor
        frames = to_unit(torch.from_numpy(np.moveaxis(blurry, -1, 1)))  # their mean is what counts
        return normalize_counts(tensor, self.norm, bin_ticks, frames)


def find_clips(recordings: Sequence[Recording], num_frames: int) -> list[Clip]:
    """Return every run of T frames whose numbers are consecutive.

    They differ by the most frequent difference in the sequence; those of time stamps may be a
    hundredth longer or shorter.
    """
    clips = []
    for number, recording in enumerate(recordings):
        steps = _steps(recording)
        usual = Counter(steps).most_common(1)[0][0] if steps else 1
        is_next = [abs(step - usual) <= usual // 100 for step in steps]
        for start in range(len(recording) - num_frames + 1):
            if all(is_next[start : start + num_frames - 1]):
                clips.append(Clip(number, start))
    return clips


def _steps(recording: Recording) -> list[int]:
    return [after.index - before.index for before, after in pairwise(recording.frames)]


def _why_no_clips(recordings: Sequence[Recording], num_frames: int) -> str:
    longest = max(recordings, key=len, default=())
    if len(longest) < num_frames:
        return (
            f"no {num_frames} consecutive frames in {len(recordings)} sequences, the longest of "
            f"which has {len(longest)} frames; lower DATA.CLIP_LEN"
        )
    steps = sorted(set(_steps(longest)))
    return (
        f"no {num_frames} consecutive frames in {len(recordings)} sequences: frame numbers of "
        f"{longest.name} differ by {steps[0]} to {steps[-1]}. Where they are times or count other "
        "things, name the frames 000000, 000001 and so on, in all folders and in exposures.csv"
    )


def _crop_grids(
    recordings: Sequence[Recording], settings: ClipSettings
) -> list[CropGrid | BadFileError]:
    """Return where crops of each recording can lie, or the error that says why it has none."""
    if settings.crop_px is None:
        return []
    grids: list[CropGrid | BadFileError] = []
    problems = []
    for recording in recordings:
        try:
            grids.append(_crop_grid(recording, settings))
        except BadFileError as error:
            grids.append(error)
        except ValueError as error:
            problems.append(f"{recording.name}: {error}")
    if problems:
        raise DataSetError("crops", problems)
    return grids


def _crop_grid(recording: Recording, settings: ClipSettings) -> CropGrid:
    height, width = recording.frame_size
    if min(height, width) < settings.crop_px:
        raise BadFileError(
            recording.frames[0].blurry.parent,
            f"frames of {height}x{width} are smaller than the crop of {settings.crop_px}; "
            "lower DATA.CROP_SIZE",
        )
    grid = crop_grid((height, width), recording.spike_size, settings.crop_px)
    if settings.augment.transpose and len(set(grid.spike_crop_size)) > 1:
        raise ValueError(
            f"a square crop is {grid.spike_crop_size} spike pixels; set DATA.AUGMENT.TRANSPOSE "
            "False"
        )
    return grid
