"""Tiles in time and space: where they lie, what each one weighs, how they become one result.

Every axis is planned by itself. A plan gives each tile a weight per position, and the weights of
all tiles at a position sum to one; the weight of a tile in the clip is the product over the axes.
Two rules make the weights:

- `smooth`: neighbours fade into each other over all that they share; nothing fades at the ends of
  the axis. A network that returns its input gives exactly the input.
- `reference`: the published VRT test procedure. Border strips of half the overlap are cut off in
  space, clips are averaged in time, and whole axes are mirrored up to full windows.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from src.inference.mirroring import mirror_to, mirrored_to_multiple
from src.inference.tile_settings import TileSettings


@dataclass(frozen=True)
class AxisPlan:
    """Tiles along one axis.

    Attributes:
        starts: First position of each tile, ascending, in input positions.
        size: Length of every tile, in input positions.
        weights: float32 [tiles, size * scale]; over all tiles they sum to one at every position.
    """

    starts: tuple[int, ...]
    size: int
    weights: np.ndarray


def plan_axis(
    length: int,
    size: int,
    overlap: int,
    *,
    blend: str = "smooth",
    scale: int = 1,
    grid: int = 1,
    cut_borders: bool = True,
) -> AxisPlan:
    """Lay tiles over an axis.

    The last tile is moved inwards, never shortened; one tile covers an axis that is shorter.

    Args:
        length: Positions on the axis.
        size: Positions per tile; 0: one tile.
        overlap: Positions that neighbours share at least.
        blend: `smooth` or `reference`.
        scale: Output positions per input position.
        grid: Starts and sizes are multiples of this; `length` must be one. With `smooth` the size
            and the step are rounded to it.
        cut_borders: In `reference`, cut half the overlap off at inner borders instead of averaging.

    Raises:
        ValueError: if `reference` tiles do not lie on the grid, or leave positions uncovered.
    """
    starts, size = _lay_tiles(length, size, overlap, grid, to_grid=blend == "smooth")
    if any(position % grid for position in (*starts, size)):
        raise ValueError(
            f"tiles of {size} pixels at {list(starts)} do not lie on the grid of {grid} pixels on "
            f"which RGB and spikes both have whole pixels; use multiples of {grid} for the tile "
            f"and its overlap, or blend 'smooth'"
        )
    if blend == "smooth":
        weights = _fading_weights(starts, size, scale)
    else:
        weights = _cut_weights(len(starts), size * scale, overlap if cut_borders else 0)
    parts = [slice(start * scale, (start + size) * scale) for start in starts]
    total = np.zeros(length * scale)
    for part, row in zip(parts, weights, strict=True):
        total[part] += row
    if total.min() <= 0:
        raise ValueError(
            f"tiles of {size} with overlap {overlap} leave parts of {length} uncovered in blend "
            f"'reference'; use a smaller overlap, or blend 'smooth'"
        )
    weights /= np.stack([total[part] for part in parts])
    return AxisPlan(starts, size, weights.astype(np.float32))


def _lay_tiles(
    length: int, size: int, overlap: int, grid: int, *, to_grid: bool
) -> tuple[tuple[int, ...], int]:
    """Return the starts of the tiles and their size; with `to_grid` as multiples of the grid."""
    if to_grid:
        size = math.ceil(size / grid) * grid
    size = length if size == 0 else min(size, length)
    step = size - overlap
    if to_grid:
        step = step // grid * grid
    return (*range(0, length - size, max(step, grid)), length - size), size


def _fading_weights(starts: tuple[int, ...], size: int, scale: int) -> np.ndarray:
    """Return [tiles, size * scale] weights that rise and fall as sin^2 over what neighbours share.

    sin^2 of one tile and cos^2 of the next sum to one; where the last tile was moved so far that
    three tiles meet, the division by the sum restores that.
    """
    weights = np.ones((len(starts), size * scale))
    for i in range(1, len(starts)):
        shared = (starts[i - 1] + size - starts[i]) * scale
        if shared > 0:
            ramp = np.sin(0.5 * np.pi * (np.arange(shared) + 0.5) / shared) ** 2
            weights[i, :shared] *= ramp
            weights[i - 1, -shared:] *= ramp[::-1]
    return weights


def _cut_weights(num_tiles: int, size: int, overlap: int) -> np.ndarray:
    """Return [tiles, size] weights: 0 on the strips that are cut off at inner borders, else 1.

    The strips count output positions and are not multiplied by the scale. Without overlap the
    published rule cuts whole tiles away; here nothing is cut then.
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

    Args:
        run_clip: Takes the frame numbers of one clip, returns its result [t, ...].
        plan: The clips, over positions in `frame_indices`.
        frame_indices: Frame numbers in the order in which the clips see them.
        clips: Yield only what these consecutive clips complete, see `frames_of_clips`; earlier
            clips that reach into it are run too, so that the frames are those of the whole video
            bit for bit. None: all.
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
            position = start + offset
            if position < wanted.start:
                continue
            part = result[offset] if weight == 1.0 else result[offset] * weight
            if position in open_frames:
                open_frames[position] += part
            else:
                open_frames[position] = part
        result = part = None  # nothing of this clip but the open frames lives on
        complete = frames_of_clips(plan, len(frame_indices), range(number, number + 1))
        for position in range(max(complete.start, wanted.start), complete.stop):
            yield open_frames.pop(position)


def frames_of_clips(plan: AxisPlan, num_frames: int, clips: range) -> range:
    """Return the frames that consecutive clips complete: no later clip touches them.

    Args:
        plan: The clips.
        num_frames: Frames of the video.
        clips: Numbers of clips in the plan.
    """
    if not clips:
        return range(0)
    ends = (*plan.starts[1:], num_frames)
    return range(plan.starts[clips.start], ends[clips.stop - 1])


def blend_tiles(
    run_tile: Callable[[slice, slice], torch.Tensor], rows: AxisPlan, columns: AxisPlan
) -> torch.Tensor:
    """Return the result [..., H * scale, W * scale] of all tiles of one clip, on the CPU.

    Args:
        run_tile: Takes the rows and columns of one tile in input pixels, returns its result
            [..., h * scale, w * scale].
        rows: Plan of the vertical axis.
        columns: Plan of the horizontal axis.
    """
    scale = rows.weights.shape[1] // rows.size
    whole = None
    for i, top in enumerate(rows.starts):
        for j, left in enumerate(columns.starts):
            tile = run_tile(slice(top, top + rows.size), slice(left, left + columns.size)).cpu()
            if len(rows.starts) == len(columns.starts) == 1:
                return tile
            if whole is None:
                height, width = rows.starts[-1] + rows.size, columns.starts[-1] + columns.size
                whole = tile.new_zeros(*tile.shape[:-2], height * scale, width * scale)
            weight = torch.from_numpy(np.outer(rows.weights[i], columns.weights[j]))
            bottom, right = top + rows.size, left + columns.size
            whole[..., top * scale : bottom * scale, left * scale : right * scale] += tile * weight
    return whole


def tile_clip(
    net: Callable[[torch.Tensor], torch.Tensor],
    clip: torch.Tensor,
    settings: TileSettings,
    scale: int = 1,
) -> torch.Tensor:
    """Return `net(clip)` computed tile by tile; for any network on frames, without spikes.

    Args:
        net: Takes [B, t, C, h, w], returns [B, t, C', h * scale, w * scale].
        clip: Frames [B, T, C, H, W].
        settings: How to cut.
        scale: Enlargement by the network.

    Returns:
        [B, T, C', H * scale, W * scale] on the CPU.
    """
    num_frames, _, height, width = clip.shape[1:]
    clip_plan, indices = plan_time(num_frames, settings)
    size = padded_size((height, width), settings)
    padded = mirror_to(clip, size)
    rows, columns = plan_space(size, settings, scale=scale)

    def run_clip(frames: list[int]) -> torch.Tensor:
        part = padded[:, frames]
        whole = blend_tiles(lambda y, x: net(part[..., y, x]), rows, columns)
        return whole[..., : height * scale, : width * scale].transpose(0, 1)

    frames = list(blend_clips(run_clip, clip_plan, indices))[:num_frames]
    return torch.stack(frames, dim=1)


def plan_time(num_frames: int, settings: TileSettings) -> tuple[AxisPlan, list[int]]:
    """Return the clips of a video and the frame numbers that their positions stand for."""
    indices = list(range(num_frames))
    if settings.blend == "reference" and settings.frames == 0:
        indices = mirrored_to_multiple(num_frames, settings.window[0])
    plan = plan_axis(
        len(indices),
        settings.frames,
        settings.overlap_frames,
        blend=settings.blend,
        cut_borders=False,
    )
    return plan, indices


def plan_space(
    size: tuple[int, int],
    settings: TileSettings,
    *,
    grids: tuple[int, int] = (1, 1),
    scale: int = 1,
) -> tuple[AxisPlan, AxisPlan]:
    """Return the plans of rows and columns for frames of `size` (H, W)."""
    first, second = (
        plan_axis(
            length,
            settings.size_px,
            settings.overlap_px,
            blend=settings.blend,
            scale=scale,
            grid=grid,
        )
        for length, grid in zip(size, grids, strict=True)
    )
    return first, second


def padded_size(size: tuple[int, int], settings: TileSettings) -> tuple[int, int]:
    """Return (H, W) enlarged to whole windows where `reference` runs on whole frames."""
    if settings.blend != "reference" or settings.size_px:
        return size
    height, width = (
        len(mirrored_to_multiple(length, multiple))
        for length, multiple in zip(size, settings.window[1:], strict=True)
    )
    return height, width
