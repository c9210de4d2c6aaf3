"""Check on pictures that the spikes show the sharp frame at the instant that exposures.csv states.

For each of some frames the window of ticks whose image (TFP) fits the sharp frame best is found.
Its centre must be the stated tick, within half a tick and what the scene allows: where little
moves, or where speed changes within the exposure, a centre is known less well. The spread over the
frames of a sequence says how well; the error that one picture states of itself is too small in
small pictures, so fewer than three frames never make a problem.

Which frames move enough is decided inside their exposures, and either all of them are then looked
for before and after it or none: choosing by the result would keep those that are off by chance.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from src.data.description import DataDescription
from src.data.errors import BadFileError
from src.data.exposures import window_ticks
from src.data.frames import read_image
from src.data.recordings import FrameRecord
from src.data.spikes.matching import TfpMatch, best_tfp_centre, grey_at_spike_size
from src.data.spikes.spike_dat import SpikeFile
from src.prepare.findings import Findings, listed, sample_places

SAMPLED_FRAMES = 5
MIN_DECISIVE = 3
WIDTH_PART = 3  # the image is made of a third of the exposure: sharp, and not too noisy
MAX_WIDTH = 32
ALLOWED_TICKS = 0.5
DEVIATIONS = 3  # standard errors that a centre may be off by chance
NEAR_WHOLE = 0.15  # part of an exposure or source frame by which an offset may miss a whole number
SPREAD_TO_DEVIATION = float(np.sqrt(np.pi / 2))  # from the mean absolute one of a normal variable


@dataclass(frozen=True)
class Timing:
    """The sharp frame's tick, counted from the first tick of its window.

    Attributes:
        name: the frame.
        stated: by exposures.csv.
        measured: centre of the best TFP window.
        error: standard error of `measured` from the picture alone.
    """

    name: str
    stated: float
    measured: float
    error: float

    @property
    def offset(self) -> float:
        """Ticks by which the spikes show the sharp frame too late."""
        return self.measured - self.stated


def check_timing(
    where: str,
    frames: tuple[FrameRecord, ...],
    ticks_per_second: float | None,
    description: DataDescription | None,
) -> Findings:
    """Compare the best TFP centre with the stated tick on a sample of frames that move.

    Raises:
        BadFileError: a file cannot be read.
    """
    usable = [
        i
        for i, frame in enumerate(frames)
        if frame.t_sharp is not None and frame.spikes.geometry is not None
    ]
    if not usable:
        why = "no spikes" if frames and frames[0].spikes.geometry is None else "no t_sharp"
        where_to = "" if why == "no spikes" else " in exposures.csv"
        return Findings(
            notes=[f"{where}: {why}{where_to}, so TFP centre against sharp frame is not checked"]
        )
    sampled = [usable[place] for place in sample_places(len(usable), SAMPLED_FRAMES)]
    timings = measure(frames, sampled, ticks_per_second)
    if not timings:
        most = max(frames[i].spikes.stop - frames[i].spikes.start for i in sampled)
        return Findings(
            notes=[
                f"{where}: too little moves in the sampled frames for their {most} ticks to show "
                "when, so TFP centre against sharp is not provable"
            ]
        )
    offsets = [timing.offset for timing in timings]
    offset, allowed = median(offsets), _allowed(timings)
    found = f"stated tick {timings[0].stated:.1f}, measured {timings[0].stated + offset:.1f}"
    if abs(offset) <= allowed:
        return Findings(seen=[f"{where}: {found}, +-{allowed - ALLOWED_TICKS:.1f}"])
    names = listed([timing.name for timing in timings])
    meaning = "".join(_meanings(offset, frames, sampled[0], description))
    line = (
        f"{where}: the spikes show the sharp frame {abs(offset):.1f} ticks too "
        f"{'late' if offset > 0 else 'early'} ({found} of the window, frames {names}; "
        f"{allowed:.1f} allowed{meaning})"
    )
    if len(timings) < MIN_DECISIVE:
        return Findings(notes=[f"{line}; fewer than {MIN_DECISIVE} frames move, so no proof"])
    advice = "correct t0, t1 and t_sharp in exposures.csv, or cut the spikes again"
    return Findings(problems=[f"{line}; {advice}, then run scripts/prepare_data.py"])


def measure(
    frames: tuple[FrameRecord, ...], places: list[int], ticks_per_second: float | None
) -> list[Timing]:
    """Find the best TFP centre of the frames at some places; those that hardly move are left out.

    It is looked for inside the exposures first. Where that puts most of them off the stated tick,
    it is looked for in all of them as far as one exposure before and after.

    Raises:
        BadFileError: a file cannot be read.
    """
    matches = {i: _match(frames, i, is_wide=False) for i in places}
    matches = {i: match for i, match in matches.items() if match.is_decisive}
    stated = {i: _stated_tick(frames[i], ticks_per_second) for i in matches}
    timings = [_timing(frames[i], stated[i], match) for i, match in matches.items()]
    at_end = [match.is_at_end for match in matches.values()]
    if not timings or not (_is_off(timings) or 2 * sum(at_end) > len(at_end)):
        return timings
    return [_timing(frames[i], stated[i], _match(frames, i, is_wide=True)) for i in matches]


def _match(frames: tuple[FrameRecord, ...], i: int, *, is_wide: bool) -> TfpMatch:
    """Find the best centre of frame i, counted from the first tick of its window."""
    frame = frames[i]
    source, length = frame.spikes, frame.spikes.stop - frame.spikes.start
    size = (source.geometry.height, source.geometry.width)
    sharp = grey_at_spike_size(read_image(frame.sharp), size)
    width = max(1, min(MAX_WIDTH, length // WIDTH_PART))
    spikes, lead = _read(frame, 0, 0), 0
    if is_wide:
        before, after, lead = _around(frames, i)
        spikes = np.concatenate([*before, spikes, *after])
    match = best_tfp_centre(spikes, sharp, width=width)
    return replace(match, centre=match.centre - lead)


def _timing(frame: FrameRecord, stated: float, match: TfpMatch) -> Timing:
    error = match.centre_error if np.isfinite(match.centre_error) else 0.0
    return Timing(frame.name, stated, match.centre, error)


def _is_off(timings: list[Timing]) -> bool:
    return abs(median(timing.offset for timing in timings)) > _allowed(timings)


def _stated_tick(frame: FrameRecord, ticks_per_second: float | None) -> float:
    """Return the tick of the sharp frame from the first tick of the window."""
    length = frame.spikes.stop - frame.spikes.start
    if ticks_per_second is None:  # a file of one exposure says its rate by its length
        return (frame.t_sharp - frame.t0) * length / (frame.t1 - frame.t0)
    start, _ = window_ticks(frame.t0, frame.t1, ticks_per_second)
    return frame.t_sharp * ticks_per_second - start


def _around(
    frames: tuple[FrameRecord, ...], i: int
) -> tuple[list[np.ndarray], list[np.ndarray], int]:
    """Return the ticks before and after a window, as far as they are there, and how many before."""
    frame = frames[i]
    length = frame.spikes.stop - frame.spikes.start
    before, after = [], []
    if any(other.spikes.path != frame.spikes.path for other in frames):  # a file per exposure
        tolerance = (frame.t1 - frame.t0) / length / 2  # half a tick in seconds
        if i > 0 and abs(frames[i - 1].t1 - frame.t0) < tolerance:
            before = [_read(frames[i - 1], 0, 0)]
        if i + 1 < len(frames) and abs(frames[i + 1].t0 - frame.t1) < tolerance:
            after = [_read(frames[i + 1], 0, 0)]
        return before, after, sum(len(part) for part in before)
    num_ticks = SpikeFile(frame.spikes.path, frame.spikes.geometry).num_ticks
    lead = min(length, frame.spikes.start)
    tail = min(length, num_ticks - frame.spikes.stop)
    whole = _read(frame, lead, tail)
    return [whole[:lead]], [whole[len(whole) - tail :]], lead


def _read(frame: FrameRecord, lead: int, tail: int) -> np.ndarray:
    """Return the ticks of a window and some before and after it: uint8 [S, H, W]."""
    source = frame.spikes
    try:
        file = SpikeFile(source.path, source.geometry)
        return file.read(source.start - lead, source.stop + tail)
    except (OSError, ValueError) as error:
        raise BadFileError(source.path, str(error)) from error


def _allowed(timings: list[Timing]) -> float:
    """Return the ticks by which the median offset may miss 0.

    Its standard error is that of the pictures, or of the spread over them where that is more. The
    mean absolute deviation stands for the spread: of a few frames, the median one is often too
    small by chance.
    """
    offsets = np.array([timing.offset for timing in timings])
    pictures = float(np.sqrt(np.mean([timing.error**2 for timing in timings])))
    spread = SPREAD_TO_DEVIATION * float(np.mean(np.abs(offsets - np.median(offsets))))
    return ALLOWED_TICKS + DEVIATIONS * max(pictures, spread) / np.sqrt(len(timings))


def _meanings(
    offset: float, frames: tuple[FrameRecord, ...], i: int, description: DataDescription | None
) -> Iterable[str]:
    """Say where the offset is a whole number of exposures or of source frames."""
    frame = frames[i]
    length = frame.spikes.stop - frame.spikes.start
    other = frames[i + 1] if i + 1 < len(frames) else frames[i - 1]
    stride = abs(other.t0 - frame.t0) * length / (frame.t1 - frame.t0) if other != frame else length
    units = [("exposure", stride)]
    for count in () if description is None else description.frames_averaged:
        if length % count == 0 and length > count:
            units.append(("source frame", length / count))
    for name, ticks in units:
        number = offset / ticks
        if round(number) and abs(number - round(number)) <= NEAR_WHOLE:
            count = abs(round(number))
            yield f"; that is {count} {name}{'s' if count > 1 else ''}"
            return
