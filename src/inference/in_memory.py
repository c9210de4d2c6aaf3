"""Restores frames and spikes that are in memory, for notebooks and other programs."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from tqdm import tqdm

from src.data.datasets.voxelizer import bin_of_tick, centred_bins, ticks_per_bin, voxelize
from src.inference.load import LoadedModel
from src.inference.restore import build_restorer, to_range, to_uint8


def restore_frames(  # noqa: PLR0913 (all but `loaded` and `frames` are named)
    loaded: LoadedModel,
    frames: np.ndarray | torch.Tensor,
    *,
    voxels: np.ndarray | torch.Tensor | None = None,
    bits: np.ndarray | torch.Tensor | Sequence[np.ndarray] | None = None,
    events: np.ndarray | torch.Tensor | None = None,
    exposures: Sequence[tuple[float, float]] | None = None,
    spike_size: tuple[int, int] | None = None,
    instants: Sequence[float] | None = None,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> np.ndarray | torch.Tensor:
    """Restore consecutive blurry frames with the spikes of their exposures, as src/test.py does.

    Args:
        loaded: What `src.inference.load.load_model` returns; its VAL keys say how to tile.
        frames: An array [T, H, W, 3] or a tensor [T, 3, H, W], RGB, uint8 or floats in 0..1.
        voxels: Spike counts [T, K, h, w].
        bits: Zeros and ones: one [S, h, w] per frame, of any S, or one for all with `exposures`.
        events: Rows (t, y, x) or (t, y, x, p), with `exposures` and `spike_size`.
        exposures: Begin and end of the exposure of each frame, the end excluded: in ticks of the
            bits, or in the unit of the events.
        spike_size: Height and width of the sensor of the events.
        instants: The part of each exposure that has passed at the instant to restore, 0 to 1; the
            middle by default. For models with `DATA.CENTER_SHARP`.
        device: `cuda`, `cpu`, or `auto` for a GPU where there is one.
        progress: Show a bar.

    Returns:
        The restored frames; kind, layout and dtype are those of `frames`.

    Raises:
        ValueError: Shapes, values or spikes that do not fit the model or each other.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    given = {"voxels": voxels, "bits": bits, "events": events}
    given = {kind: spikes for kind, spikes in given.items() if spikes is not None}
    use_spikes = loaded.cfg.MODEL.USE_SPIKE
    if len(given) != use_spikes:
        needed = "give one of voxels, bits, events" if use_spikes else "it takes no spikes"
        raise ValueError(f"the model of {loaded.identity['file']}: {needed}; got {[*given]}")
    if instants is not None and not loaded.cfg.DATA.CENTER_SHARP:
        raise ValueError(
            f"the model of {loaded.identity['file']} was trained without DATA.CENTER_SHARP and "
            "restores one instant alone; leave instants out"
        )
    sequence = ArraySequence(frames, instants)
    for kind, spikes in given.items():
        sequence.add_spikes(kind, spikes, loaded.cfg.DATA.K, exposures, spike_size)
    if use_spikes and loaded.cfg.DATA.MATCH_LIGHT and not sequence.ticks:  # rates do not matter
        sequence.ticks = [np.zeros(loaded.cfg.DATA.K, np.int32)] * len(sequence)
    restorer = build_restorer(loaded.cfg, loaded.model.to(device), device)
    is_float = sequence.frames.dtype.kind == "f"
    restored = restorer.restore(sequence, convert=to_range if is_float else to_uint8)
    bar = tqdm(restored, total=len(sequence), unit="frame", disable=not progress)
    images = np.stack([np.asarray(image) for _, image in bar])
    is_tensor = isinstance(frames, torch.Tensor)
    if is_tensor != is_float:  # floats come as [3, H, W], bytes as [H, W, 3]
        images = np.moveaxis(images, *((3, 1) if is_tensor else (1, 3)))
    images = np.ascontiguousarray(images, sequence.frames.dtype)
    return torch.from_numpy(images) if is_tensor else images


class ArraySequence:
    """Frames and spikes in memory, read like a `Recording`."""

    def __init__(
        self, frames: np.ndarray | torch.Tensor, instants: Sequence[float] | None = None
    ) -> None:
        self.frames = as_array(frames)
        if isinstance(frames, torch.Tensor):
            self.frames = np.moveaxis(self.frames, 1, -1)
        shape, dtype = self.frames.shape, self.frames.dtype
        is_float = dtype.kind == "f"
        if len(shape) != 4 or shape[3] != 3 or 0 in shape or not (is_float or dtype == np.uint8):
            raise ValueError(
                f"frames are {dtype} {list(frames.shape)}; an array [T, H, W, 3] or a tensor "
                "[T, 3, H, W] is needed, uint8 or floats in 0..1"
            )
        if is_float and not (self.frames.min() >= 0 and self.frames.max() <= 1):
            raise ValueError("frames are floats outside 0..1; divide 8 bit values by 255")
        self.instants = [0.5] * len(self.frames) if instants is None else list(instants)
        if len(self.instants) != len(self.frames) or not all(0 <= x <= 1 for x in self.instants):
            raise ValueError(f"instants {instants}: one of each frame is needed, 0 to 1")
        self.counts: list[np.ndarray] = []
        self.ticks: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self.frames)

    def read_blurry(self, i: int) -> np.ndarray:
        """Return frame i, [H, W, 3]."""
        return self.frames[i]

    def read_counts(self, i: int) -> np.ndarray:
        """Return the spikes of frame i, [K, h, w]."""
        return self.counts[i]

    def bin_ticks(self, i: int) -> np.ndarray:
        """Return the ticks of each bin of frame i, int32 [K]."""
        if not self.ticks:
            raise ValueError("DATA.BIN_NORMALIZE needs the ticks of every bin; give bits")
        return self.ticks[i]

    def centred_bins(self, i: int) -> np.ndarray:
        """Return which bin of frame i takes the place of each bin, see `DATA.CENTER_SHARP`."""
        return centred_bins(len(self.counts[i]), self.instants[i])

    def add_spikes(
        self,
        kind: str,
        spikes: np.ndarray | torch.Tensor | Sequence[np.ndarray],
        num_bins: int,
        exposures: Sequence[tuple[float, float]] | None,
        size: tuple[int, int] | None,
    ) -> None:
        """Count the spikes of every frame into bins; see `restore_frames`."""
        parts = spikes if exposures is None or kind == "voxels" else exposures
        if len(parts) != len(self) or (kind == "events" and None in (exposures, size)):
            raise ValueError(
                f"{kind}: {len(parts)} for {len(self)} frames; one exposure of each frame is "
                "needed, for events their exposures and spike_size, too"
            )
        if kind == "voxels":
            self.counts = list(as_array(spikes))
        elif kind == "events":
            events = as_array(spikes)
            for t0, t1 in exposures:
                inside = events[(events[:, 0] >= t0) & (events[:, 0] < t1)]
                self.counts.append(voxelize(inside, t0, t1, *size, num_bins))
        else:
            stream = None if exposures is None else as_array(spikes)
            for part in parts:
                bits = as_array(part) if stream is None else stream[slice(*part)]
                wanted = len(bits) if stream is None else part[1] - part[0]
                if bits.ndim != 3 or not 0 < len(bits) == wanted or not np.isin(bits, (0, 1)).all():
                    raise ValueError(
                        f"bits {list(bits.shape)} of {part if stream is not None else 'a frame'}: "
                        "zeros and ones [S, h, w] are needed, exposures inside the stream"
                    )
                bounds = np.searchsorted(bin_of_tick(len(bits), num_bins), range(num_bins + 1))
                counts = [bits[a:b].sum(axis=0, dtype=np.int32) for a, b in pairwise(bounds)]
                self.counts.append(np.stack(counts))
                self.ticks.append(ticks_per_bin(len(bits), num_bins).astype(np.int32))
        (height, width), shapes = self.frames.shape[1:3], {grid.shape for grid in self.counts}
        for shape in shapes:
            is_grid = len(shape) == 3 and shape[0] == num_bins and len(shapes) == 1
            # Equal shapes, up to a spike pixel that rounding may add or lose.
            if not is_grid or abs(shape[1] * width - height * shape[2]) >= max(height, width):
                raise ValueError(
                    f"{kind} give grids {sorted(map(list, shapes))}; K={num_bins} bins with the "
                    f"aspect ratio of the frames, {height} x {width}, are needed"
                )


def as_array(values: np.ndarray | torch.Tensor) -> np.ndarray:
    """Return an array or a tensor of any device as an array."""
    return np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values)
