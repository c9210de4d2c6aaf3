"""Clips in time and tiles in space: how a video is cut, and how the parts become one result.

Every axis is planned separately. A plan gives each tile a weight per position, and the weights of
all tiles at a position sum to one; the weight of a tile in the clip is the product over the axes.
Two rules make the weights:

- `smooth`: adjacent tiles fade into each other over their overlap; nothing fades at the ends of
  the axis. A network that returns its input gives exactly the input.
- `reference`: the published VRT test procedure. Border strips of half the overlap are cut off in
  space, clips are averaged in time, and whole axes are mirrored up to full windows.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

BLENDS = ("smooth", "reference")
SMALLEST_TILE_PX = 64  # VRT's coarsest windows cover 64 pixels


@dataclass(frozen=True)
class TileSettings:
    """How a video is cut."""

    frames: int = 12  # per clip; 0: all at once
    size_px: int = 256  # side of a square tile in RGB pixels; 0: whole frames
    overlap_frames: int = 2
    overlap_px: int = 24
    blend: str = "smooth"
    window: tuple[int, int, int] = (6, 8, 8)  # of VRT's attention: frames, rows, columns

    def __post_init__(self) -> None:
        if self.blend not in BLENDS:
            raise ValueError(f"blend: expected one of {', '.join(BLENDS)}, got {self.blend!r}")
        for what, size, overlap in (
            ("frames", self.frames, self.overlap_frames),
            ("size_px", self.size_px, self.overlap_px),
        ):
            if size < 0 or overlap < 0:
                raise ValueError(f"tile {what} {size} and overlap {overlap} must not be negative")
            if size and overlap >= size:
                raise ValueError(f"tile {what} {size} must be larger than the overlap {overlap}")
        if self.blend == "reference" and self.size_px % self.window[2]:
            raise ValueError(
                f"tile size_px {self.size_px}: blend 'reference' needs a multiple of the window "
                f"{self.window[2]}"
            )

    def halved(self, height: int, width: int) -> "TileSettings | None":
        """Return settings with tiles of half the side, for frames of that size; None at the end.

        Whole frames first become tiles of half the longer side. The overlap is kept between an
        eighth and half of the tile. The result is a multiple of 8 pixels.
        """
        longest = max(height, width)
        size = min(self.size_px, longest) if self.size_px else longest
        half = max(SMALLEST_TILE_PX, math.ceil(size / 16) * 8)
        if half >= size:
            return None
        overlap = min(max(self.overlap_px, half // 8), half // 2)
        return replace(self, size_px=half, overlap_px=overlap)

    def describe(self) -> str:
        """Return the settings as words for a report."""
        frames = f"{self.frames} frames overlap {self.overlap_frames}" if self.frames else "all"
        space = f"{self.size_px} px overlap {self.overlap_px}" if self.size_px else "whole frames"
        return f"tiles: {frames} x {space}, blend {self.blend}"


@dataclass(frozen=True)
class AxisPlan:
    """Tiles along one axis."""

    starts: tuple[int, ...]  # ascending
    size: int  # of every tile
    weights: np.ndarray  # float32 [tiles, size]; at every position those of all tiles sum to one


def plan_axis(
    length: int,
    size: int,
    overlap: int,
    *,
    blend: str = "smooth",
    grid: int = 1,
    cut_borders: bool = True,
) -> AxisPlan:
    """Lay tiles of `size` (0: one tile) over an axis; adjacent ones share `overlap` at least.

    The last tile is moved inwards, never shortened; one tile covers an axis that is shorter. Starts
    and sizes are multiples of `grid`, as `length` is: `smooth` rounds them to it, `reference` has
    an error. `cut_borders` cuts half the overlap off inner borders of `reference` tiles.
    """
    unit = grid if blend == "smooth" else 1
    size = min(math.ceil(size / unit) * unit or length, length)
    step = max((size - overlap) // unit * unit, grid)
    starts = (*range(0, length - size, step), length - size)
    if any(position % grid for position in (*starts, size)):
        raise ValueError(
            f"tiles of {size} pixels at {list(starts)} do not lie on the grid of {grid} pixels on "
            f"which RGB and spikes both have whole pixels; use multiples of {grid} for the tile "
            "and its overlap, or blend 'smooth'"
        )
    if blend == "smooth":
        weights = _fading_weights(starts, size)
    else:
        weights = _cut_weights(len(starts), size, overlap if cut_borders else 0)
    parts, total = [slice(start, start + size) for start in starts], np.zeros(length)
    for part, row in zip(parts, weights, strict=True):
        total[part] += row
    if total.min() <= 0:
        raise ValueError(
            f"tiles of {size} with overlap {overlap} leave parts of {length} uncovered in blend "
            "'reference'; use a smaller overlap, or blend 'smooth'"
        )
    weights /= np.stack([total[part] for part in parts])
    return AxisPlan(starts, size, weights.astype(np.float32))


def _fading_weights(starts: tuple[int, ...], size: int) -> np.ndarray:
    """Return [tiles, size] weights that rise and fall as sin^2 over the overlap.

    sin^2 of one tile and cos^2 of the next sum to one; where the last tile was moved so far that
    three tiles meet, the division by the sum restores that.
    """
    weights = np.ones((len(starts), size))
    for i in range(1, len(starts)):
        shared = starts[i - 1] + size - starts[i]
        if shared > 0:
            ramp = np.sin(0.5 * np.pi * (np.arange(shared) + 0.5) / shared) ** 2
            weights[i, :shared] *= ramp
            weights[i - 1, -shared:] *= ramp[::-1]
    return weights


def _cut_weights(num_tiles: int, size: int, overlap: int) -> np.ndarray:
    """Return [tiles, size] weights: 0 on the strips that are cut off at inner borders, else 1.

    Without overlap the published rule cuts whole tiles away; here nothing is cut then.
    """
    weights = np.ones((num_tiles, size))
    weights[1:, : overlap // 2] = 0
    weights[:-1, size - math.ceil(overlap / 2) :] = 0
    return weights


def blend_clips(
    run_clip: Callable[[list[int]], torch.Tensor],
    plan: AxisPlan,
    frame_indices: list[int],
    clips: range | None = None,
) -> Iterator[torch.Tensor]:
    """Yield the frames of a video in order, each one as soon as no later clip touches it.

    `run_clip` takes the frame numbers of one clip, returns its result [t, ...]. With `clips` only
    what these consecutive ones complete is yielded; earlier clips that reach into it are run too,
    so that the frames are those of the whole video bit for bit.
    """
    clips = range(len(plan.starts)) if clips is None else clips
    if not clips:
        return
    wanted = frames_of_clips(plan, len(frame_indices), clips)
    first = next(n for n, start in enumerate(plan.starts) if start + plan.size > wanted.start)
    open_frames: dict[int, torch.Tensor] = {}
    for number in range(first, clips.stop):
        start = plan.starts[number]
        result = run_clip(frame_indices[start : start + plan.size])
        for offset, weight in enumerate(plan.weights[number].tolist()):
            if (position := start + offset) < wanted.start:
                continue
            part = result[offset] if weight == 1.0 else result[offset] * weight
            if position in open_frames:
                open_frames[position] += part
            else:
                open_frames[position] = part
        result = part = None  # free all of this clip but the open frames
        complete = frames_of_clips(plan, len(frame_indices), range(number, number + 1))
        for position in range(max(complete.start, wanted.start), complete.stop):
            yield open_frames.pop(position)


def frames_of_clips(plan: AxisPlan, num_frames: int, clips: range) -> range:
    """Return the frames that consecutive clips of a plan complete: no later clip touches them."""
    if not clips:
        return range(0)
    ends = (*plan.starts[1:], num_frames)
    return range(plan.starts[clips.start], ends[clips.stop - 1])


def share_out(num_clips: Sequence[int], rank: int, world_size: int) -> list[tuple[int, range]]:
    """Return this rank's part: numbers of recordings with the clips of each.

    The clips of all recordings, `num_clips` each, are concatenated and cut into pieces that differ
    by one clip at most. A rank whose piece begins inside a recording also has to run the clips
    before it that reach into it (`blend_clips`), usually one. With more ranks than clips some have
    nothing.
    """
    total = sum(num_clips)
    begin, end = (total * edge // world_size for edge in (rank, rank + 1))
    shares, before = [], 0
    for recording, count in enumerate(num_clips):
        first, last = max(begin - before, 0), min(end - before, count)
        if first < last:
            shares.append((recording, range(first, last)))
        before += count
    return shares


def blend_tiles(
    run_tile: Callable[[slice, slice], torch.Tensor], rows: AxisPlan, columns: AxisPlan
) -> torch.Tensor:
    """Return the result [..., H, W] of all tiles of one clip, on the CPU.

    `run_tile` takes the rows and columns of one tile.
    """
    whole = None
    for i, top in enumerate(rows.starts):
        for j, left in enumerate(columns.starts):
            bottom, right = top + rows.size, left + columns.size
            tile = run_tile(slice(top, bottom), slice(left, right)).cpu()
            if len(rows.starts) == len(columns.starts) == 1:
                return tile
            if whole is None:
                height, width = rows.starts[-1] + rows.size, columns.starts[-1] + columns.size
                whole = tile.new_zeros(*tile.shape[:-2], height, width)
            weight = torch.from_numpy(np.outer(rows.weights[i], columns.weights[j]))
            whole[..., top:bottom, left:right] += tile * weight
    return whole


def plan_time(num_frames: int, settings: TileSettings) -> tuple[AxisPlan, list[int]]:
    """Return the clips of a video and the frame numbers of their positions."""
    indices = list(range(num_frames))
    if settings.blend == "reference" and settings.frames == 0:
        indices = mirrored_to_multiple(num_frames, settings.window[0])
    tile = len(indices), settings.frames, settings.overlap_frames
    return plan_axis(*tile, blend=settings.blend, cut_borders=False), indices


def plan_space(
    size: tuple[int, int], settings: TileSettings, *, grids: tuple[int, int] = (1, 1)
) -> tuple[AxisPlan, AxisPlan]:
    """Return the plans of rows and columns for frames of `size` (H, W)."""
    tile, overlap, blend = settings.size_px, settings.overlap_px, settings.blend
    rows, columns = (
        plan_axis(length, tile, overlap, blend=blend, grid=grid)
        for length, grid in zip(size, grids, strict=True)
    )
    return rows, columns


def padded_size(size: tuple[int, int], settings: TileSettings) -> tuple[int, int]:
    """Return (H, W) enlarged to whole windows where `reference` runs on whole frames."""
    if settings.blend != "reference" or settings.size_px:
        return size
    height, width = map(len, map(mirrored_to_multiple, size, settings.window[1:]))
    return height, width


def mirrored_to_multiple(length: int, multiple: int) -> list[int]:
    """Return positions 0..length-1, then the last ones backwards up to a multiple.

    The last position is repeated. At most `length` positions are appended, as published.
    """
    positions = list(range(length))
    return positions + positions[::-1][: -length % multiple]


def mirror_to(clip: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return [..., H, W] enlarged to `size` by its last rows and columns in reverse order."""
    for axis, length in zip((-2, -1), size, strict=True):
        missing = length - clip.shape[axis]
        if missing:
            tail = clip.narrow(axis, clip.shape[axis] - missing, missing).flip(axis)
            clip = torch.cat([clip, tail], dim=axis)
    return clip
