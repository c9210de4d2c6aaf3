"""By how many source frames the exposures of a published sequence begin early, as its spikes show.

Neighbouring offsets are 8 ticks apart. Some sharp frames are searched for in the stream, and the
offset that they agree on is taken; frames that show different offsets, or spikes that do not show
them at all, are an error.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.data.errors import BadFileError
from src.data.frames import read_image
from src.data.simulation.blur import TICKS_PER_SOURCE_FRAME
from src.data.spikes.matching import TfpMatch, best_tfp_centre, grey_at_spike_size
from src.data.spikes.spike_dat import SpikeParts, check_rate
from src.prepare.content import CLEARLY_BETTER, SHOWN, bit_correlations, order_text

TFP_WIDTH = 17
NUM_FRAMES = 5
# Standard deviation of grey values 0..1; a flatter frame need not show in so few ticks.
MIN_TEXTURE = 0.05
# A match further than this from all offsets is none.
MAX_DEVIATION_TICKS = 2.0
# A frame that shows another offset is passed over only where its own match is this uncertain.
MAX_ERRORS = 3.0
MIN_ERROR_TICKS = 0.1


@dataclass(frozen=True)
class FoundFrame:
    """Where a sharp frame was found; only in scenes that move the tick is no chance."""

    sharp: Path
    tick: float  # at which its spikes fit best, from the start of the stream
    error: float  # standard error of the tick
    shift: float  # source frames by which it lies before the tick of a sequence without an offset

    def deviation(self, offset: int) -> float:
        """Return the ticks from where the frame was found to where an offset puts it."""
        return abs(self.shift - offset) * TICKS_PER_SOURCE_FRAME


def measure_offset(
    stream: SpikeParts, sharp_frames: Sequence[Path], n: int, highest: int
) -> tuple[int | None, list[FoundFrame]]:
    """Find the offset of a sequence by matching some of its sharp frames with its spikes.

    Args:
        stream: the spikes of the whole sequence, 8 ticks per source frame.
        sharp_frames: of blurry frames 0, 1, 2 ...
        n: source frames averaged.
        highest: the largest offset that could be.

    Returns:
        the offset, None where the scene is still and shows nothing; and the frames that show it.
    """
    centre = TICKS_PER_SOURCE_FRAME * (n - 1) // 2
    found = []
    for k in _spread(len(sharp_frames)):
        path, stated = sharp_frames[k], TICKS_PER_SOURCE_FRAME * n * k + centre
        first = max(stated - TICKS_PER_SOURCE_FRAME * (highest + 1) - TFP_WIDTH // 2, 0)
        stop = stated + TICKS_PER_SOURCE_FRAME + TFP_WIDTH // 2 + 1
        if stop > stream.num_ticks or stop - first < TFP_WIDTH:
            continue
        grey = _read_grey(path, stream)
        match = best_tfp_centre(stream.read(first, stop), grey, width=TFP_WIDTH)
        if grey.std() >= MIN_TEXTURE and match.correlation < SHOWN:
            raise _not_shown(match, path, stream, stated)
        tick = first + match.centre
        if match.is_decisive:
            shift = (stated - tick) / TICKS_PER_SOURCE_FRAME
            found.append(FoundFrame(path, tick, match.centre_error, shift))
    return offset_of(stream, found, n, highest) if found else None, found


def offset_of(stream: SpikeParts, found: Sequence[FoundFrame], n: int, highest: int) -> int:
    """Return the offset that frames agree on; see `measure_offset`."""
    offset, is_shared = judge_shifts(found)
    if is_shared and 0 <= offset <= highest:
        return offset
    worst = max(found, key=lambda frame: frame.deviation(offset))
    ticks = ", ".join(f"{frame.sharp.name} at {frame.tick:.1f}" for frame in found)
    early = ", ".join(f"{frame.shift:.2f}" for frame in found)
    raise BadFileError(
        stream.path_at(worst.tick),
        f"the spikes show the sharp frames at ticks that fit no offset of 0 to {highest} source "
        f"frames: {ticks}; that is {early} source frames before where n={n} puts them without an "
        "offset. Frames and spikes are not of the same sequence, or some are missing",
    )


def judge_shifts(found: Sequence[FoundFrame]) -> tuple[int, bool]:
    """Return the offset that frames show, and whether they agree on it.

    They do where their median, weighted by the inverse variance of each match, lies within
    `MAX_DEVIATION_TICKS` of it, most of them round to it, and none of the others is sure of itself.
    """
    ordered = sorted(found, key=lambda frame: frame.shift)
    weights = np.array([max(frame.error, MIN_ERROR_TICKS) ** -2.0 for frame in ordered])
    number = int(np.searchsorted(weights.cumsum(), weights.sum() / 2))
    middle = ordered[min(number, len(ordered) - 1)].shift
    offset = round(middle)
    others = [frame for frame in found if round(frame.shift) != offset]
    is_sure = [
        frame.deviation(offset) > MAX_DEVIATION_TICKS + MAX_ERRORS * frame.error for frame in others
    ]
    is_near = abs(middle - offset) * TICKS_PER_SOURCE_FRAME <= MAX_DEVIATION_TICKS
    return offset, is_near and 2 * len(others) < len(found) and not any(is_sure)


def other_order(stream: SpikeParts, frame: FoundFrame) -> str | None:
    """Say where another order of bits or rows shows a sharp frame better than the stated one."""
    first = max(round(frame.tick) - TFP_WIDTH // 2, 0)
    stop = min(first + TFP_WIDTH, stream.num_ticks)
    counts = stream.read(first, stop).sum(axis=0, dtype=np.int32)
    found = bit_correlations(counts, stream.geometry, _read_grey(frame.sharp, stream))
    best, stated = max(found, key=found.__getitem__), stream.geometry
    if found[best] < SHOWN or found[best] - found[stated] <= CLEARLY_BETTER:
        return None
    return (
        f"read with {order_text(stated)} its spikes show {frame.sharp.name} with a correlation of "
        f"{found[stated]:.2f}, with {order_text(best)} of {found[best]:.2f}; state the latter"
    )


def _read_grey(frame: Path, stream: SpikeParts) -> np.ndarray:
    size = stream.geometry.height, stream.geometry.width
    return grey_at_spike_size(read_image(frame), size)


def _not_shown(match: TfpMatch, sharp: Path, stream: SpikeParts, stated: int) -> BadFileError:
    """Return why spikes show nothing of a frame that has something to show."""
    path, geometry = stream.path_at(stated), stream.geometry
    if (
        match.correlation == 0
    ):  # no window has two different pixels: the spikes themselves may be dead
        last = min(stated + TFP_WIDTH, stream.num_ticks)
        around = stream.read(max(last - 2 * TFP_WIDTH, 0), last)
        try:
            check_rate(float(around.mean()), path, len(around))
        except BadFileError as error:
            return error
    return BadFileError(
        path,
        f"the spikes around tick {stated} of its stream do not show {sharp.name} (correlation "
        f"{match.correlation:.2f} at best, {SHOWN} is needed). Frames and spikes are not of the "
        "same sequence, some are missing, or the size or bit order is wrong: read as "
        f"{geometry.height}x{geometry.width}, {order_text(geometry)}. What fits the file shows: "
        f"python scripts/inspect_spikes.py {shlex.quote(str(path))} --reference "
        f"{shlex.quote(str(sharp))}",
    )


def _spread(count: int) -> list[int]:
    """Return up to `NUM_FRAMES` evenly spread places, without the first where there are others.

    The exposure of the first frame of a sequence may begin before its stream.
    """
    first = min(1, count - 1)
    usable = count - first
    places = np.linspace(0, usable - 1, min(NUM_FRAMES, usable)).round()
    return [first + int(place) for place in np.unique(places)]
