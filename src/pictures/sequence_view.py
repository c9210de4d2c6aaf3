"""What a sequence shows, frame by frame: blurry, TFP, TFI, voxel bins, sharp."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from einops import rearrange

from src.data.datasets.voxelizer import ticks_per_bin
from src.data.description import read_description
from src.data.errors import DataSetError
from src.data.frames import list_frames
from src.data.recordings import Recording
from src.data.scanning import ScanSettings, scan_sequence
from src.data.simulation.simulator import CAMERA_GAMMA
from src.data.spikes.reconstruct import tfi, tfp
from src.data.spikes.spike_dat import SpikeFile, read_sidecar
from src.data.voxel_counts import SpikeWindow
from src.pictures.panels import GAP_PX, Panel, make_page, to_grey

ROUNDING = 1e-6  # of a tick: t_sharp in seconds is rarely a whole tick to the last digit
BIN_GROUPS = 9
TFP_PART = 3  # a TFP image takes this part of an exposure
WHITE_QUANTILE = 0.995


@dataclass(frozen=True)
class SequenceView:
    """A sequence ready to be drawn."""

    name: str  # SPLIT/SEQUENCE
    recording: Recording
    threshold: float | None  # gain of the images; None: unknown, each has its own scale
    is_linear: bool = False  # the spikes integrate linear light, shown with the camera curve


@dataclass(frozen=True)
class SpikeImages:
    """What the spikes of one exposure show, and at one instant of it."""

    tfp: Panel
    tfi: Panel | None  # None where there are voxels and no spikes
    bins: Panel
    bin_now: Panel


def open_sequence(folder: Path, num_bins: int) -> SequenceView:
    """Find out what a sequence folder `DATA_ROOT/SPLIT/SEQUENCE` holds.

    Spikes are counted into `num_bins` bins; stored voxels without spikes keep their number.
    """
    folder = folder.absolute()
    if not (folder / "blur").is_dir():
        missing = "no folder blur in it" if folder.is_dir() else "no such folder"
        raise DataSetError(str(folder), [f"{missing}; give a folder of one sequence"])
    root = folder.parents[1]
    description = read_description(root)
    voxels = list_frames(folder / "spike_vox", [".npy"])
    spikes = list_frames(folder / "spike", [".dat"])
    if voxels and not spikes:
        num_bins = len(np.load(next(iter(voxels.values())), mmap_mode="r", allow_pickle=False))
    scan = scan_sequence(folder, ScanSettings(root, num_bins, use_voxel_cache=False), description)
    if not scan.frames:
        reasons = [f"{entry.frame}: {entry.reason}" for entry in scan.dropped[:5]]
        raise DataSetError(str(folder), ["no frame can be drawn", *reasons])
    threshold = read_sidecar(next(iter(spikes.values()))).threshold if spikes else None
    if threshold is None and description is not None:
        threshold = description.threshold
    is_linear = description is not None and description.transfer == "linear"
    recording = Recording(folder.name, scan.frames, num_bins)
    return SequenceView(f"{folder.parent.name}/{folder.name}", recording, threshold, is_linear)


def draw_strip(view: SequenceView, indices: Sequence[int], panel_width: int) -> np.ndarray:
    """Return a page, uint8 RGB [h, w, 3], with a row of panels per frame of `indices`."""
    rows = []
    for i in indices:
        images, frame = spike_images(view, i), view.recording.frames[i]
        caption = f"blurry {frame.name}, {frame.t0 * 1e3:.2f} to {frame.t1 * 1e3:.2f} ms"
        panels = (
            Panel(caption, view.recording.read_blurry(i)),
            *(images.tfp, images.tfi, images.bins),
            Panel("sharp", view.recording.read_sharp(i)),
        )
        rows.append([panel for panel in panels if panel is not None])
    return make_page(rows, panel_width, [_title(view)])


def draw_frames(
    view: SequenceView, indices: Sequence[int], steps: int, panel_width: int
) -> Iterator[np.ndarray]:
    """Yield the pages of a video, all of one size; the spikes run through each exposure.

    There are `steps` pages per frame, from the start of its exposure to the end.
    """
    for i in indices:
        frame = view.recording.frames[i]
        blurry = Panel("blurry", view.recording.read_blurry(i))
        sharp = Panel("sharp", view.recording.read_sharp(i))
        for step in range(steps):
            part = (step + 0.5) / steps
            images = spike_images(view, i, part)
            second = (images.bin_now, images.tfi, images.bins)
            line = (
                f"{view.name} / {frame.name}: exposure {frame.t0 * 1e3:.2f} to "
                f"{frame.t1 * 1e3:.2f} ms, spikes at "
                f"{(frame.t0 + (frame.t1 - frame.t0) * part) * 1e3:.2f} ms"
            )
            rows = [[blurry, images.tfp, sharp], [panel for panel in second if panel is not None]]
            yield make_page(rows, panel_width, [line])


def spike_images(view: SequenceView, i: int, at: float | None = None) -> SpikeImages:
    """Return what the spikes of frame `i` show when a part `at` of its exposure has passed.

    None is the instant of the sharp frame, where the exposures say it, else the middle.
    """
    frame = view.recording.frames[i]
    if at is None:
        at = 0.5
        if frame.t_sharp is not None:
            at = (frame.t_sharp - frame.t0) / (frame.t1 - frame.t0)
    counts = view.recording.read_counts(i).astype(np.float32)
    number = _number_at(at, len(counts))
    caption = f"bin {number} of {len(counts)}, white = {counts.max():g} spikes"
    bin_now = Panel(caption, to_grey(counts[number], float(counts.max())))
    if frame.spikes.geometry is None:  # voxels have no ticks and so no intervals
        width = max(1, len(counts) // TFP_PART)
        first = min(max(int(at * len(counts)) - width // 2, 0), len(counts) - width)
        summed = counts[first : first + width].sum(axis=0)
        caption = f"counts, bins {first} to {first + width - 1} of {len(counts)}"
        image = _shown(view, summed, float(np.quantile(summed, WHITE_QUANTILE)))
        return SpikeImages(
            Panel(caption, image), None, _bins(counts, np.ones(len(counts))), bin_now
        )
    spikes = read_ticks(frame.spikes)
    tick, width = _number_at(at, len(spikes)), max(1, len(spikes) // TFP_PART)
    gain = 1.0 if view.threshold is None else view.threshold
    counted = tfp(spikes, tick, width, gain)
    interval, has_interval = tfi(spikes, tick, gain)
    white = 1.0 if view.threshold is not None else float(np.quantile(counted, WHITE_QUANTILE))
    shown = f"{has_interval.mean():.0%} of the pixels"
    return SpikeImages(
        Panel(f"TFP, {width} of {len(spikes)} ticks", _shown(view, counted, white)),
        Panel(f"TFI, tick {frame.spikes.start + tick}, in {shown}", _shown(view, interval, white)),
        _bins(counts, ticks_per_bin(len(spikes), len(counts))),
        bin_now,
    )


def read_ticks(spikes: SpikeWindow) -> np.ndarray:
    """Return the spikes of an exposure: uint8 [S, H, W]."""
    return SpikeFile(spikes.path, spikes.geometry).read(spikes.start, spikes.stop)


def _bins(counts: np.ndarray, ticks: np.ndarray) -> Panel:
    """Return the bins [K, H, W] in up to nine groups, in the order of reading, as one picture.

    Groups are divided by their ticks [K], of which they need not have equally many.
    """
    groups = np.array_split(np.arange(len(counts)), min(BIN_GROUPS, len(counts)))
    images = [counts[group].sum(axis=0) / max(1, ticks[group].sum()) for group in groups]
    white = float(np.quantile(np.stack(images), WHITE_QUANTILE))
    columns = math.ceil(math.sqrt(len(images)))
    gap = max(1, round(GAP_PX * columns * counts.shape[2] / 800))
    spaces = ((0, -len(images) % columns), (0, gap), (0, gap), (0, 0))
    cells = np.pad([to_grey(image, white) for image in images], spaces, constant_values=255)
    page = rearrange(cells, "(r c) h w rgb -> (r h) (c w) rgb", c=columns)[:-gap, :-gap]
    return Panel(f"{len(counts)} bins in {len(groups)} groups, in order of time", page)


def _number_at(at: float, count: int) -> int:
    """Return which of `count` ticks or bins of an exposure holds an instant, `at` of it."""
    return min(int(at * count + ROUNDING), count - 1)


def _shown(view: SequenceView, values: np.ndarray, white: float) -> np.ndarray:
    if view.is_linear:
        values, white = np.clip(values / max(white, 1e-12), 0, 1) ** (1 / CAMERA_GAMMA), 1.0
    return to_grey(values, white)


def _title(view: SequenceView) -> str:
    (height, width), (rows, columns) = view.recording.frame_size, view.recording.spike_size
    gain = "not known, white = brightest" if view.threshold is None else f"{view.threshold:g}"
    return (
        f"{view.name}: frames {height}x{width}, spikes {rows}x{columns}, threshold {gain}; TFP and "
        "TFI at the instant of the sharp frame"
    )
