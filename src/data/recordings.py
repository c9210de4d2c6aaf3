"""One sequence: its frames, joined by name, and how to read them."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from src.data.datasets.voxelizer import centred_bins, ticks_per_bin
from src.data.errors import BadFileError, DataSetError, FileState, listed, refuse_changed
from src.data.exposures import EXPOSURES_NAME, read_exposures
from src.data.frame_cache import FrameStore
from src.data.frames import ImageReader, read_image
from src.data.voxel_counts import Crop, SpikeWindow, count_window, open_voxels, read_voxels

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FrameRecord:
    """One blurry frame with what belongs to it; only a blurry one is always there."""

    name: str  # file name without ending, of frames and spikes
    index: int  # the number at its end
    blurry: Path
    sharp: Path | None
    t0: float | None = None  # exposure window [t0, t1) in seconds
    t1: float | None = None
    t_sharp: float | None = None  # instant of the sharp frame; None: unknown, as in the log
    spikes: SpikeWindow | None = None
    voxels: Path | None = None  # stored counts [K, Hs, Ws]; None: count from `spikes`
    seen: FileState | None = None  # of the spike file, which must not change later


class Recording:
    """The aligned frames of one sequence, in order of their numbers.

    `read` reads an image file as uint8 [H, W, 3], or takes it from a cache; frames in `store` are
    decoded already and not read by it.
    """

    def __init__(
        self,
        name: str,
        frames: Sequence[FrameRecord],
        num_bins: int,
        read: ImageReader = read_image,
        store: FrameStore | None = None,
    ) -> None:
        self.name = name
        self.frames = tuple(frames)
        self.num_bins = num_bins
        self._read = read
        self._store = store

    def __len__(self) -> int:
        return len(self.frames)

    def with_store(self, store: FrameStore) -> "Recording":
        """Return the same recording, which takes what it can from decoded frames on disk."""
        return Recording(self.name, self.frames, self.num_bins, self._read, store)

    @property
    def files(self) -> list[Path]:
        """All image files, blurry and sharp."""
        return [path for frame in self.frames for path in (frame.blurry, frame.sharp)]

    @cached_property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of the first blurry frame that can be read."""
        return self._first(lambda frame: self._size_of(frame.blurry))

    @cached_property
    def spike_size(self) -> tuple[int, int]:
        """Height and width of the spikes in pixels."""
        spikes = self.frames[0].spikes if self.frames else None
        if spikes is not None and spikes.geometry is not None:  # the same for all frames
            return spikes.geometry.height, spikes.geometry.width
        return self._first(lambda frame: open_voxels(frame.spikes.path, self.num_bins).shape[1:])

    @cached_property
    def sharp_instants(self) -> list[float]:
        """The part of its exposure that has passed at the instant of each sharp frame.

        It is the middle where the exposures of the sequence do not state it.
        """
        exposures, path = self.frames, self.frames[0].blurry.absolute().parents[1] / EXPOSURES_NAME
        if exposures[0].t_sharp is None and path.is_file():
            known = read_exposures(path, ticks_per_second=1.0)  # any unit: ratios
            exposures = [known.get(frame.index, frame) for frame in self.frames]
        return [0.5 if e.t_sharp is None else (e.t_sharp - e.t0) / (e.t1 - e.t0) for e in exposures]

    def centred_bins(self, i: int) -> np.ndarray:
        """Return which bin of frame i takes the place of each bin, see `DATA.CENTER_SHARP`."""
        return centred_bins(self.num_bins, self.sharp_instants[i])

    def read_blurry(self, i: int, crop: Crop | None = None) -> np.ndarray:
        """Read blurry frame i: uint8 [h, w, 3], of the crop (y, x, h, w) in its pixels."""
        return self._read_image(self.frames[i].blurry, crop)

    def read_sharp(self, i: int, crop: Crop | None = None) -> np.ndarray:
        """Read sharp frame i: uint8 [h, w, 3]; see `read_blurry`."""
        return self._read_image(self.frames[i].sharp, crop)

    def read_counts(
        self, i: int, crop: Crop | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Read the voxel counts of frame i: [K, h, w], of the crop (y, x, h, w) in spike pixels.

        The dtype is uint8, or that of `read_voxels`; `out` is filled if it fits. Spikes that
        changed since they were found are an error.
        """
        frame = self.frames[i]
        if frame.seen is not None:
            refuse_changed(frame.spikes.path, frame.seen)
        if frame.voxels is None and frame.spikes.geometry is not None:
            return count_window(frame.spikes, self.num_bins, crop, out)
        path = frame.voxels or frame.spikes.path
        return read_voxels(path, self.num_bins, crop, self.spike_size, out)

    def check(self, *, any_shape: bool = False) -> None:
        """Read every file once; a DataSetError names all that cannot be used.

        With `any_shape` the spikes need not have the aspect ratio of the frames.
        """
        problems: dict[str, None] = {}  # in order, each once
        for i, frame in enumerate(self.frames):
            parts = {self.read_blurry: True, self.read_sharp: frame.sharp is not None}
            parts[self.read_counts] = frame.spikes is not None
            for read in (read for read, is_there in parts.items() if is_there):
                try:
                    read(i)
                except BadFileError as error:
                    problems[str(error)] = None
        if not (problems or any_shape) and self.frames[0].spikes is not None:
            (height, width), (rows, columns) = self.frame_size, self.spike_size
            # Equal shapes, up to a spike pixel that rounding may add or lose.
            if abs(rows * width - height * columns) >= max(height, width):
                problems[
                    f"{self.name}: spikes of {rows}x{columns} do not have the shape of the frames "
                    f"of {height}x{width}. If both show the same part of the scene, with pixels "
                    "of another shape, add DATA.AUGMENT.TRANSPOSE False, as in training"
                ] = None
        if problems:
            raise DataSetError(self.name, problems)

    def read_clip_counts(self, times: Sequence[int], crop: Crop | None = None) -> np.ndarray:
        """Read the counts of several frames: [T, K, h, w]; bytes are counted in place."""
        size = self.spike_size if crop is None else crop[2:]
        clip = np.empty((len(times), self.num_bins, *size), np.uint8)
        outs = list(clip)
        grids = [self.read_counts(i, crop, out) for i, out in zip(times, outs, strict=True)]
        are_in = all(grid is out for grid, out in zip(grids, outs, strict=True))
        return clip if are_in else np.stack(grids)

    def bin_ticks(self, i: int) -> np.ndarray:
        """Return the ticks of each bin of frame i: int32 [K]; zeros where they are not known."""
        num_ticks = self.frames[i].spikes.num_ticks
        if num_ticks is None:
            return np.zeros(self.num_bins, np.int32)
        return ticks_per_bin(num_ticks, self.num_bins).astype(np.int32)

    def _read_image(self, path: Path, crop: Crop | None) -> np.ndarray:
        is_stored = self._store is not None and path in self._store
        image = None if is_stored else self._read(path)
        size = self._store.size_of(path) if is_stored else image.shape[:2]
        if size != self.frame_size:
            height, width = self.frame_size
            raise BadFileError(
                path,
                f"is {size[0]}x{size[1]}, the frames of {self.name} are {height}x{width}",
            )
        if is_stored:
            return self._store.read(path, crop)
        y, x, height, width = crop or (0, 0, *size)
        return image[y : y + height, x : x + width]

    def _size_of(self, path: Path) -> tuple[int, int]:
        if self._store is not None and path in self._store:
            return self._store.size_of(path)
        return self._read(path).shape[:2]

    def _first(self, size_of: Callable[[FrameRecord], tuple[int, int]]) -> tuple[int, int]:
        """Return the size of the first frame that has one."""
        last_error = BadFileError(self.name, "has no frames")
        for frame in self.frames:
            try:
                return tuple(size_of(frame))
            except BadFileError as error:
                last_error = error
        raise last_error


def require_known_ticks(recordings: Sequence[Recording], *, match_light: bool = False) -> None:
    """Refuse voxels without spikes, where the ticks of their bins are not known.

    With `match_light` the rate does not matter: all bins count as equally long, with a warning.
    """
    unknown = [r.name for r in recordings if any(f.spikes.num_ticks is None for f in r.frames)]
    if unknown and match_light:
        where = f"sequences {listed(unknown)} have voxels but no spikes"
        logger.warning("%s: all bins of an exposure count as equally long", where)
    elif unknown:
        reason = (
            f"sequences {listed(unknown)} have voxels but no spikes, so the ticks of their bins "
            "are not known; add the .dat files, or the index.json that scripts/prepare_data.py "
            "writes beside the voxels, or set DATA.BIN_NORMALIZE False and divide the voxels "
            "before they are stored"
        )
        raise DataSetError("DATA.BIN_NORMALIZE", [reason])
