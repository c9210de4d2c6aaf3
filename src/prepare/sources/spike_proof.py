"""Prove from the data which ticks belong to which frame, before anything is written.

Names and tables say where a frame lies in its spike stream; the sharp frames and the spikes show
it. What does not agree stops the preparation.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from src.data.errors import BadFileError
from src.data.frames import read_image
from src.data.simulation.blur import TICKS_PER_SOURCE_FRAME
from src.data.spikes.matching import TfpMatch, best_tfp_centre, grey_at_spike_size
from src.data.spikes.spike_dat import BIT_ORDERS, SpikeGeometry
from src.data.spikes.spike_parts import SpikeParts, check_rate

TFP_WIDTH = 17
NUM_PROOF_FRAMES = 5
# Neighbouring offsets are 8 ticks apart; a match further than this from all of them is none.
MAX_DEVIATION_TICKS = 2.0
# A frame that shows another offset is passed over only where its own match is this uncertain.
MAX_ERRORS = 3.0
MIN_ERROR_TICKS = 0.1
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
        error: standard error of the tick.
        shift: source frames by which it lies before the tick of a clip without an offset.
    """

    sharp: Path
    tick: float
    is_decisive: bool
    error: float
    shift: float


@dataclass(frozen=True)
class OffsetProof:
    """By how many source frames the windows of a clip begin early, as its spikes show it.

    Attributes:
        offset: source frames; None where the clip is still and shows nothing.
        deviation_ticks: largest distance of a match from the tick that this offset states.
        frames: what was looked at.
        outliers: those of them that fit the offset badly; the others outvote them.
    """

    offset: int | None
    deviation_ticks: float
    frames: tuple[FrameProof, ...]
    outliers: tuple[FrameProof, ...] = ()


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
        BadFileError: a frame that cannot be read or that its spikes do not show, matches whose
            median is at no offset, or frames that show different offsets; the ticks are named.
    """
    centre = TICKS_PER_SOURCE_FRAME * (n - 1) // 2
    proofs = []
    for k, path in _spread(sharp_frames, NUM_PROOF_FRAMES):
        stated = TICKS_PER_SOURCE_FRAME * n * k + centre
        reach = TICKS_PER_SOURCE_FRAME * (highest + 1)
        grey = read_grey(path, stream.geometry)
        match, first = match_around(stream, grey, stated, (reach, TICKS_PER_SOURCE_FRAME))
        if match is None:
            continue
        if grey.std() >= MIN_TEXTURE and match.correlation < MIN_CORRELATION:
            raise _stranger(match, path, stream, stated)
        tick = first + match.centre
        shift = (stated - tick) / TICKS_PER_SOURCE_FRAME
        proofs.append(FrameProof(path, tick, match.is_decisive, match.centre_error, shift))
    decisive = [proof for proof in proofs if proof.is_decisive]
    if not decisive:
        return OffsetProof(None, 0.0, tuple(proofs))
    offset, is_shared = judge_shifts(decisive)
    deviations = {frame: _deviation(frame, offset) for frame in decisive}
    if not is_shared or not 0 <= offset <= highest:
        worst = max(decisive, key=deviations.__getitem__)
        raise BadFileError(stream.path_at(worst.tick), _disagreement(decisive, n, highest))
    outliers = tuple(f for f in decisive if deviations[f] > MAX_DEVIATION_TICKS)
    return OffsetProof(offset, max(deviations.values()), tuple(proofs), outliers)


def judge_shifts(decisive: Sequence[FrameProof]) -> tuple[int, bool]:
    """Return the offset that frames show, and whether they agree on it.

    They do where their median, weighted by how exact each match is, lies within
    `MAX_DEVIATION_TICKS` of it, most of them round to it, and none of the others is sure of itself.
    """
    middle = _weighted_median(decisive)
    offset = round(middle)
    others = [frame for frame in decisive if round(frame.shift) != offset]
    is_sure = [
        _deviation(frame, offset) > MAX_DEVIATION_TICKS + MAX_ERRORS * frame.error
        for frame in others
    ]
    is_near = abs(middle - offset) * TICKS_PER_SOURCE_FRAME <= MAX_DEVIATION_TICKS
    return offset, is_near and 2 * len(others) < len(decisive) and not any(is_sure)


def _deviation(frame: FrameProof, offset: int) -> float:
    """Return the ticks from where a frame was found to where an offset puts it."""
    return abs(frame.shift - offset) * TICKS_PER_SOURCE_FRAME


def _weighted_median(frames: Sequence[FrameProof]) -> float:
    """Return the median of the shifts, each with the inverse variance of its match as weight."""
    ordered = sorted(frames, key=lambda frame: frame.shift)
    weights = np.array([max(frame.error, MIN_ERROR_TICKS) ** -2.0 for frame in ordered])
    number = int(np.searchsorted(weights.cumsum(), weights.sum() / 2))
    return ordered[min(number, len(ordered) - 1)].shift


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
    path = stream.path_at(stated)
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
        "not of the same clip, some are missing, or the size or bit order is wrong: read as "
        f"{stream.geometry.height}x{stream.geometry.width}, bit_order "
        f"{stream.geometry.bit_order}. What fits the file shows: python "
        f"scripts/inspect_spikes.py {shlex.quote(str(path))} --reference "
        f"{shlex.quote(str(sharp))}",
    )


def _spread(items: Sequence[tuple[int, Path]], count: int) -> list[tuple[int, Path]]:
    """Return up to `count` items evenly spread, the first one left out where there are others.

    The window of the first frame of a clip may begin before its stream.
    """
    usable = items[1:] if len(items) > 1 else items
    picks = np.unique(np.linspace(0, len(usable) - 1, min(count, len(usable))).round().astype(int))
    return [usable[i] for i in picks]


def _disagreement(decisive: Sequence[FrameProof], n: int, highest: int) -> str:
    ticks = ", ".join(f"{frame.sharp.name} at {frame.tick:.1f}" for frame in decisive)
    early = ", ".join(f"{frame.shift:.2f}" for frame in decisive)
    return (
        f"the spikes show the sharp frames at ticks that fit no offset of 0 to {highest} source "
        f"frames: {ticks}; that is {early} source frames before where n={n} puts them without an "
        "offset. Frames and spikes are not of the same clip, or some are missing"
    )


def _yaml(value: bool) -> str:
    return str(value).lower()
