"""Prove from the data which ticks belong to which frame, before anything is written.

Names and tables say where a frame lies in its spike stream; the sharp frames and the spikes show
it. What does not agree stops the preparation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from src.data.bad_samples import BadFileError
from src.data.frames import read_image
from src.data.simulation.blur import TICKS_PER_SOURCE_FRAME
from src.data.spikes.matching import TfpMatch, best_tfp_centre, grey_at_spike_size
from src.data.spikes.spike_dat import BIT_ORDERS, SpikeGeometry
from src.data.spikes.spike_parts import SpikeParts, check_rate

TFP_WIDTH = 17
NUM_PROOF_FRAMES = 5
# Neighbouring offsets are 8 ticks apart; a match further than this from all of them is none.
MAX_DEVIATION_TICKS = 2.0
# A frame that is textured by this much and not shown by its spikes is not of this recording.
MIN_TEXTURE = 0.05
MIN_CORRELATION = 0.5
# By how much another bit order or orientation must fit better before the stated one is wrong.
CLEARLY_BETTER_DB = 0.5


@dataclass(frozen=True)
class FrameProof:
    """Where the sharp frame of one blurry frame was found.

    Attributes:
        sharp: the sharp frame.
        tick: the tick at which its spikes fit best, from the start of the stream.
        is_decisive: False where the scene is still and the tick is chance.
    """

    sharp: Path
    tick: float
    is_decisive: bool


@dataclass(frozen=True)
class OffsetProof:
    """By how many source frames the windows of a clip begin early, as its spikes show it.

    Attributes:
        offset: source frames; None where the clip is still and shows nothing.
        deviation_ticks: largest distance of a match from the tick that this offset states.
        frames: what was looked at.
    """

    offset: int | None
    deviation_ticks: float
    frames: tuple[FrameProof, ...]


def prove_offset(
    stream: SpikeParts, sharp_frames: Sequence[tuple[int, Path]], n: int, highest: int
) -> OffsetProof:
    """Find the offset of a clip by matching some of its sharp frames with its spikes.

    Args:
        stream: the spikes of the whole clip, 8 ticks per source frame.
        sharp_frames: blurry frame number k from 0, and the sharp frame of it.
        n: source frames averaged.
        highest: the largest offset that could be.

    Raises:
        BadFileError: a frame that cannot be read or that its spikes do not show, matches at ticks
            that are no offset, or frames that show different offsets; the ticks are named.
    """
    centre = TICKS_PER_SOURCE_FRAME * (n - 1) // 2
    proofs, shifts = [], []
    for k, path in _spread(sharp_frames, NUM_PROOF_FRAMES):
        stated = TICKS_PER_SOURCE_FRAME * n * k + centre
        reach = TICKS_PER_SOURCE_FRAME * (highest + 1)
        grey = read_grey(path, stream.geometry)
        match, first = match_around(stream, grey, stated, (reach, TICKS_PER_SOURCE_FRAME))
        if match is None:
            continue
        if grey.std() >= MIN_TEXTURE and match.correlation < MIN_CORRELATION:
            raise _stranger(match, path, stream, stated)
        proofs.append(FrameProof(path, first + match.centre, match.is_decisive))
        if match.is_decisive:
            shifts.append((stated - first - match.centre) / TICKS_PER_SOURCE_FRAME)
    if not shifts:
        return OffsetProof(None, 0.0, tuple(proofs))
    offset = round(float(np.median(shifts)))
    deviation = float(np.abs(np.array(shifts) - offset).max() * TICKS_PER_SOURCE_FRAME)
    if deviation > MAX_DEVIATION_TICKS or not 0 <= offset <= highest:
        raise BadFileError(stream.files[0].path, _disagreement(proofs, shifts, n, highest))
    return OffsetProof(offset, deviation, tuple(proofs))


def check_reading(
    paths: Sequence[Path],
    geometry: SpikeGeometry,
    sharp: Path,
    tick: float,
    width: int = TFP_WIDTH,
) -> tuple[SpikeGeometry, str] | None:
    """Say whether another bit order or orientation shows the sharp frame better than the stated.

    Args:
        paths: files of the stream.
        geometry: as stated.
        sharp: a sharp frame.
        tick: where it lies in the stream.
        width: ticks of the TFP image, odd.

    Returns:
        The better reading and a sentence that names it; None where the stated one is best.
    """
    grey = read_grey(sharp, geometry)
    scores: dict[SpikeGeometry, float] = {}
    for bit_order in BIT_ORDERS:
        for flip_rows in (True, False):
            reading = replace(geometry, bit_order=bit_order, flip_rows=flip_rows)
            match, _ = match_around(SpikeParts(paths, reading), grey, round(tick), (0, 0), width)
            if match is None:
                return None
            scores[reading] = match.score_db
    best = max(scores, key=scores.__getitem__)
    if scores[best] < scores[geometry] + CLEARLY_BETTER_DB:
        return None
    return best, (
        f"read with bit_order {geometry.bit_order} and flip_rows {_yaml(geometry.flip_rows)} its "
        f"spikes show {sharp.name} with {scores[geometry]:.1f} dB, with bit_order {best.bit_order} "
        f"and flip_rows {_yaml(best.flip_rows)} with {scores[best]:.1f} dB; state the latter"
    )


def read_grey(frame: Path, geometry: SpikeGeometry) -> np.ndarray:
    """Read a frame as grey values of the size of the spikes: float32 [Hs, Ws] in 0..1.

    Raises:
        BadFileError: it cannot be read.
    """
    return grey_at_spike_size(read_image(frame), (geometry.height, geometry.width))


def match_around(
    stream: SpikeParts,
    grey: np.ndarray,
    around: int,
    reach: tuple[int, int],
    width: int = TFP_WIDTH,
) -> tuple[TfpMatch | None, int]:
    """Match a sharp frame with TFP centres up to `reach` ticks before and after `around`.

    Args:
        stream: the spikes.
        grey: the frame, see `read_grey`.
        around: tick of the stream.
        reach: ticks before and after it; those before the stream are left out.
        width: ticks of the TFP image, odd.

    Returns:
        The match, its ticks counted from the second value; None where the stream ends too early.
    """
    half = width // 2
    first = max(around - reach[0] - half, 0)
    stop = around + reach[1] + half + 1
    if stop > stream.num_ticks or stop - first < width:
        return None, first
    return best_tfp_centre(stream.read(first, stop), grey, width=width), first


def _stranger(match: TfpMatch, sharp: Path, stream: SpikeParts, stated: int) -> BadFileError:
    """Return why spikes show nothing of a frame that has something to show."""
    path = stream.files[0].path
    if match.gain == 0:  # no window has two different pixels: the spikes themselves may be dead
        last = min(stated + TFP_WIDTH, stream.num_ticks)
        around = stream.read(max(last - 2 * TFP_WIDTH, 0), last)
        try:
            check_rate(float(around.mean()), path, len(around))
        except BadFileError as error:
            return error
    return BadFileError(
        path,
        f"the spikes around tick {stated} of its stream do not show {sharp.name} (correlation "
        f"{match.correlation:.2f} at best, {MIN_CORRELATION} is needed). Frames and spikes are "
        "not of the same clip, some are missing, or the size or bit order is wrong",
    )


def _spread(items: Sequence[tuple[int, Path]], count: int) -> list[tuple[int, Path]]:
    """Return up to `count` items evenly spread, the first one left out where there are others.

    The window of the first frame of a clip may begin before its stream.
    """
    usable = items[1:] if len(items) > 1 else items
    picks = np.unique(np.linspace(0, len(usable) - 1, min(count, len(usable))).round().astype(int))
    return [usable[i] for i in picks]


def _disagreement(
    proofs: Sequence[FrameProof], shifts: Sequence[float], n: int, highest: int
) -> str:
    ticks = ", ".join(f"{p.sharp.name} at {p.tick:.1f}" for p in proofs if p.is_decisive)
    early = ", ".join(f"{shift:.2f}" for shift in shifts)
    return (
        f"the spikes show the sharp frames at ticks that fit no offset of 0 to {highest} source "
        f"frames: {ticks}; that is {early} source frames before where n={n} puts them without an "
        "offset. Frames and spikes are not of the same clip, or some are missing"
    )


def _yaml(value: bool) -> str:
    return str(value).lower()
