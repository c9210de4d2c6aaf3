"""Do the spikes of a sequence show its frames? The answer for every check and recorded source.

Three questions, each put to a sample of frames:

- `sample_bits`: are bits and rows in the order that is stated, and do the spikes show the sharp
  frames at all? The image of the spike rate over an exposure must correlate with its sharp frame,
  with the stated order more than with any other. A wrong order of bits still looks like a picture,
  so an eye does not see it; the correlation does.
- `check_timing`: do they show the sharp frame at the instant that exposures.csv states? The window
  of ticks whose image fits the sharp frame best is searched for; its centre must be the stated
  tick.
- `check_exposures`: are they of this exposure, not of one before or after it? A shift by whole
  exposures leaves every name, number and length right. It needs no instant of the sharp frame and
  works on counts without bits as well.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np

from src.data.description import BIT_ORDERS, FILE_NAME, DataDescription
from src.data.errors import BadFileError, listed
from src.data.exposures import window_ticks
from src.data.frames import read_image
from src.data.parallel import run_parallel
from src.data.recordings import FrameRecord
from src.data.spikes.matching import TfpMatch, best_tfp_centre, grey_at_spike_size
from src.data.spikes.spike_dat import SIDECAR_NAME, SpikeFile, SpikeGeometry
from src.prepare.exposure_shift import (
    MIN_CONTRAST,
    SHOWN,
    TOO_STILL,
    UNLIKE,
    check_exposures,
    correlation,
)
from src.prepare.frame_checks import Findings, PreparedSplit, check_pairs, sample_evenly

MAX_SEEN = 50  # lines about sequences that are right

INVERTED = -0.5  # correlation of spikes with their picture where 0 and 1 are exchanged

BIT_SAMPLES = 3
CLEARLY_BETTER = 0.01  # of a correlation; the wrong order of bits costs 0.05 on real frames
GAMMA = 2.2  # from encoded grey values to light
THRESHOLD_FACTOR = 1.3  # clipping, noise and dark frames move the estimate

TIMING_SAMPLES = 5
WIDTH_PART, MAX_WIDTH = 3, 32  # the image is made of a third of the exposure: sharp, not too noisy
ALLOWED_TICKS = 0.5
DEVIATIONS = 3  # standard errors that a centre may be off by chance
SPREAD_TO_DEVIATION = float(np.sqrt(np.pi / 2))  # from the mean absolute one of a normal variable
# The error that a small picture states of its own centre is too small. So a fine offset needs the
# spread over three frames; two are enough for one above so many ticks and that part of the exposure
FRAMES_FOR_FINE, FRAMES_FOR_COARSE = 3, 2
COARSE_TICKS, COARSE_PART = 2.0, 0.05
NEAR_WHOLE = 0.15  # part of an exposure or source frame by which an offset may miss a whole number


def check_content(
    splits: list[PreparedSplit], description: DataDescription | None, num_bins: int, workers: int
) -> Findings:
    """Check samples of all sequences, in several processes."""
    tasks = [
        (f"{s.split}/{scan.name}", scan.frames, scan.ticks_per_second, description, num_bins)
        for s in splits
        for scan in s.scans
        if scan.frames
    ]
    results = run_parallel(_check_task, tasks, workers, "comparing blur, sharp and spikes")
    findings = Findings()
    for _, found in sorted(results, key=lambda result: result[0]):
        findings.include(found)
    more = len(findings.seen) - MAX_SEEN
    if more > 0:
        findings.seen[MAX_SEEN:] = [f"{more} more sequences show their sharp frames as stated"]
    return findings


def _check_task(arguments: tuple) -> Findings:
    """Check one sequence; a file that cannot be read ends its check, and is named elsewhere."""
    try:
        return check_sequence(*arguments)
    except BadFileError as error:
        return Findings(notes=[f"{arguments[0]}: not compared: {error}"])


def check_sequence(
    where: str,
    frames: tuple[FrameRecord, ...],
    ticks_per_second: float | None,
    description: DataDescription | None,
    num_bins: int = 32,
) -> Findings:
    """Check whether blur, sharp and spikes of a sequence show the same at one time.

    Without `ticks_per_second` the length of a file of one exposure tells it; `num_bins` is needed
    for counts without bits.
    """
    findings = check_pairs(where, frames)
    fit = sample_bits(frames)
    better = better_bits(fit)
    if better is not None:  # then a picture at another time means nothing
        findings.problems.append(f"{where}: {_other_bits(fit, better, frames[0].spikes.path)}")
        return findings
    unlike = why_unlike(fit)
    if other := _other_threshold(fit, description):
        findings.notes.append(f"{where}: {other}")
    timing = check_timing(where, frames, ticks_per_second, description)
    exposures = check_exposures(where, frames, num_bins, is_doubtful=unlike is not None)
    if timing.seen or timing.problems:  # to the tick, in most frames: that says more
        exposures.seen.clear()
        exposures.notes = [line for line in exposures.notes if TOO_STILL not in line]
    findings.include(timing)
    findings.include(exposures)
    if unlike and not (timing.problems or exposures.problems):  # a shifted window looks unlike, too
        findings.problems.append(f"{where}: {unlike}")
    return findings


# ---------------------------------------------------------------- order of bits and rows


@dataclass(frozen=True)
class BitFit:
    """How the spikes of a sample of exposures look like their sharp frames, in the mean."""

    stated: SpikeGeometry  # the order of bits and rows that is written beside the spikes
    correlations: Mapping[SpikeGeometry, float]  # with the sharp frames, by order
    rate: float  # spikes per pixel and tick
    light: Mapping[str, float]  # mean of the sharp frames in 0..1, by what a sensor may integrate


def sample_bits(frames: tuple[FrameRecord, ...]) -> BitFit | None:
    """Compare a sample of exposures with their sharp frames; None where these show nothing."""
    with_bits = [frame for frame in frames if frame.spikes.geometry is not None]
    found, numbers = [], []
    for frame in (with_bits[i] for i in sample_evenly(len(with_bits), BIT_SAMPLES)):
        geometry, sharp = frame.spikes.geometry, _sharp_grey(frame)
        if sharp.std() >= MIN_CONTRAST:
            spikes = _read(frame)
            found.append(bit_correlations(spikes.sum(axis=0, dtype=np.int32), geometry, sharp))
            numbers.append((spikes.mean(), sharp.mean(), (sharp**GAMMA).mean()))
    if not found:
        return None
    rate, encoded, linear = np.mean(numbers, axis=0, dtype=np.float64).tolist()
    correlations = {order: float(np.mean([fit[order] for fit in found])) for order in found[0]}
    return BitFit(geometry, correlations, rate, {"encoded": encoded, "linear": linear})


def bit_correlations(
    counts: np.ndarray, geometry: SpikeGeometry, picture: np.ndarray
) -> dict[SpikeGeometry, float]:
    """Correlate counts [H, W], read with a geometry, with a picture [H, W], in all four orders."""
    stored = counts[::-1] if geometry.flip_rows else counts
    found = {}
    for order, flip in product(BIT_ORDERS, (False, True)):
        bits = stored.reshape(-1, 8)  # eight pixels share a byte
        image = (bits if order == geometry.bit_order else bits[:, ::-1]).reshape(stored.shape)
        other = replace(geometry, bit_order=order, flip_rows=flip)
        found[other] = correlation(image[::-1] if flip else image, picture)
    return found


def better_bits(fit: BitFit | None) -> SpikeGeometry | None:
    """Return the order that shows the sharp frames clearly better than the stated; None: none."""
    if fit is None:
        return None
    best = max(fit.correlations, key=fit.correlations.__getitem__)
    lead = fit.correlations[best] - fit.correlations[fit.stated]
    return best if fit.correlations[best] >= SHOWN and lead > CLEARLY_BETTER else None


def order_text(geometry: SpikeGeometry) -> str:
    """Return an order of bits and rows in words."""
    return f"bit_order {geometry.bit_order}, flip_rows {str(geometry.flip_rows).lower()}"


def _other_bits(fit: BitFit, best: SpikeGeometry, spikes: Path) -> str:
    """Say that another order fits better, and what to write into which file beside the spikes."""
    stated, found = fit.stated, fit.correlations
    lines = [f"'bit_order: {best.bit_order}'"] * (best.bit_order != stated.bit_order)
    lines += [f"'flip_rows: {str(best.flip_rows).lower()}'"] * (best.flip_rows != stated.flip_rows)
    beside = [spikes.with_suffix(".yaml"), spikes.parent / SIDECAR_NAME]
    files = [str(path) for path in beside if path.is_file()][:1]
    root = spikes.parents[3] if len(spikes.parents) > 3 else spikes.parent
    return (
        f"spikes read as {order_text(stated)} correlate {found[stated]:.3f} with the sharp "
        f"frames, as {order_text(best)} {found[best]:.3f}; write {' and '.join(lines)} into "
        f"{' and '.join([*files, str(root / FILE_NAME)])}"
    )


def why_unlike(fit: BitFit | None) -> str | None:
    """Say where spikes do not look like their sharp frames, in whatever order they are read."""
    found = 1.0 if fit is None else fit.correlations[fit.stated]
    if found < INVERTED:
        return (
            f"the brighter the sharp frame, the fewer spikes (correlation {found:.2f}); 0 and 1 "
            "are exchanged, write the spikes again"
        )
    if found < UNLIKE:
        return (
            "the spikes do not look like the sharp frames in any order of bits and rows "
            f"(correlation {found:.2f}); check their size and order with "
            "scripts/inspect_spikes.py, whether they belong to this sequence, and whether they "
            "show the same part of the scene"
        )
    return None


def _other_threshold(fit: BitFit | None, description: DataDescription | None) -> str | None:
    """Say where the number of spikes fits another threshold than the stated one.

    In the mean a pixel fires light / threshold times per tick.
    """
    if fit is None or fit.rate == 0 or description is None or description.threshold is None:
        return None
    if description.transfer not in fit.light:
        return None
    found = fit.light[description.transfer] / fit.rate
    if 1 / THRESHOLD_FACTOR < found / description.threshold < THRESHOLD_FACTOR:
        return None
    return (
        f"as many spikes as a threshold of {found:.2g} gives, {FILE_NAME} says "
        f"{description.threshold:g} with {description.transfer} light"
    )


# ---------------------------------------------------------------- the instant of the sharp frame


@dataclass(frozen=True)
class Timing:
    """The tick of a sharp frame, counted from the first tick of its window."""

    name: str  # of the frame
    stated: float  # by exposures.csv
    measured: float  # centre of the best TFP window
    error: float  # standard error of `measured` from the picture alone
    is_at_end: bool = False  # whether the best window is the first or last of those tried

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
    """Compare the best TFP centre with the stated tick on a sample of frames that move."""
    with_bits = [i for i, frame in enumerate(frames) if frame.spikes.geometry is not None]
    usable = [i for i in with_bits if frames[i].t_sharp is not None]
    sampled = [usable[place] for place in sample_evenly(len(usable), TIMING_SAMPLES)]
    timings = measure_timings(frames, sampled, ticks_per_second)
    if not timings:
        why = "no t_sharp in exposures.csv, so TFP centre against sharp frame is not checked"
        if not with_bits:
            why = "voxels without bits, so bit order, flip, threshold and ticks are not checked"
        elif usable:
            why = "too little moves for the spikes to show when, so the time is not checked"
        return Findings(notes=[f"{where}: {why}"])
    offset, allowed = median(timing.offset for timing in timings), allowed_ticks(timings)
    found = f"stated tick {timings[0].stated:.1f}, measured {timings[0].stated + offset:.1f}"
    if abs(offset) <= allowed:
        return Findings(seen=[f"{where}: {found}, +-{allowed - ALLOWED_TICKS:.1f}"])
    names = listed([timing.name for timing in timings])
    line = (
        f"{where}: the spikes show the sharp frame {abs(offset):.1f} ticks too "
        f"{'late' if offset > 0 else 'early'} ({found} of the window, frames {names}; "
        f"{allowed:.1f} allowed{_meaning(offset, frames, sampled[0], description)})"
    )
    if not is_certain(timings, max(frames[i].spikes.num_ticks for i in sampled)):
        few = f"fewer than {FRAMES_FOR_FINE} frames move, so this is not certain"
        return Findings(notes=[f"{line}; {few}"])
    advice = "correct t0, t1 and t_sharp in exposures.csv, or cut the spikes again"
    return Findings(problems=[f"{line}; {advice}, then run scripts/prepare_data.py"])


def measure_timings(
    frames: tuple[FrameRecord, ...], places: list[int], ticks_per_second: float | None
) -> list[Timing]:
    """Find the best TFP centre of some frames; those that hardly move are left out.

    Which move enough is decided inside their exposures, and either all of them are then searched
    for around it or none: choosing by the result would keep those that are off by chance.
    """

    def timing(i: int, match: TfpMatch, lead: int = 0) -> Timing:
        error = match.centre_error if np.isfinite(match.centre_error) else 0.0
        stated = _stated_tick(frames[i], ticks_per_second)
        return Timing(frames[i].name, stated, match.centre - lead, error, match.is_at_end)

    inside = {i: _match(frames[i], _read(frames[i])) for i in places}
    moving = [i for i, match in inside.items() if match.is_decisive]
    found = [timing(i, inside[i]) for i in moving]
    if not needs_wider_search(found):
        return found
    around = ((i, *_read_around(frames, i)) for i in moving)
    return [timing(i, _match(frames[i], spikes), lead) for i, spikes, lead in around]


def needs_wider_search(timings: list[Timing]) -> bool:
    """Whether most frames are off, or at the end of what was searched."""
    if not timings:
        return False
    is_off = abs(median(timing.offset for timing in timings)) > allowed_ticks(timings)
    return is_off or 2 * sum(timing.is_at_end for timing in timings) > len(timings)


def allowed_ticks(timings: list[Timing]) -> float:
    """Return the ticks by which the median offset may miss 0.

    Half a tick, and three standard errors: of the pictures or, where that is more, of the spread
    over them, by the mean absolute deviation: the median one of a few frames is often too small.
    """
    offsets = np.array([timing.offset for timing in timings])
    pictures = float(np.sqrt(np.mean([timing.error**2 for timing in timings])))
    spread = SPREAD_TO_DEVIATION * float(np.mean(np.abs(offsets - np.median(offsets))))
    return ALLOWED_TICKS + DEVIATIONS * max(pictures, spread) / np.sqrt(len(timings))


def is_certain(timings: list[Timing], ticks: int) -> bool:
    """Whether enough frames show an offset in exposures of so many ticks; a large needs fewer."""
    coarse = max(COARSE_TICKS, COARSE_PART * ticks)
    is_coarse = all(abs(timing.offset) > coarse for timing in timings)
    return len(timings) >= (FRAMES_FOR_COARSE if is_coarse else FRAMES_FOR_FINE)


def _match(frame: FrameRecord, spikes: np.ndarray) -> TfpMatch:
    width = max(1, min(MAX_WIDTH, frame.spikes.num_ticks // WIDTH_PART))
    return best_tfp_centre(spikes, _sharp_grey(frame), width=width)


def _stated_tick(frame: FrameRecord, ticks_per_second: float | None) -> float:
    """Return the tick of the sharp frame from the first tick of the window."""
    if ticks_per_second is None:
        return (frame.t_sharp - frame.t0) * frame.spikes.num_ticks / (frame.t1 - frame.t0)
    start, _ = window_ticks(frame.t0, frame.t1, ticks_per_second)
    return frame.t_sharp * ticks_per_second - start


def _read_around(frames: tuple[FrameRecord, ...], i: int) -> tuple[np.ndarray, int]:
    """Return the ticks of a window and up to as many before and after, and how many before."""
    frame = frames[i]
    length = frame.spikes.num_ticks
    if all(other.spikes.path == frame.spikes.path for other in frames):  # one stream
        num_ticks = SpikeFile(frame.spikes.path, frame.spikes.geometry).num_ticks
        lead = min(length, frame.spikes.start)
        return _read(frame, lead, min(length, num_ticks - frame.spikes.stop)), lead
    half_tick_s = (frame.t1 - frame.t0) / length / 2
    before = [_read(f) for f in frames[max(i - 1, 0) : i] if abs(f.t1 - frame.t0) < half_tick_s]
    after = [_read(f) for f in frames[i + 1 : i + 2] if abs(f.t0 - frame.t1) < half_tick_s]
    return np.concatenate([*before, _read(frame), *after]), sum(map(len, before))


def _read(frame: FrameRecord, lead: int = 0, tail: int = 0) -> np.ndarray:
    """Return the ticks of a window and some before and after it: uint8 [S, H, W]."""
    source = frame.spikes
    try:
        file = SpikeFile(source.path, source.geometry)
        return file.read(source.start - lead, source.stop + tail)
    except (OSError, ValueError) as error:
        raise BadFileError(source.path, str(error)) from error


def _sharp_grey(frame: FrameRecord) -> np.ndarray:
    geometry = frame.spikes.geometry
    return grey_at_spike_size(read_image(frame.sharp), (geometry.height, geometry.width))


def _meaning(
    offset: float, frames: tuple[FrameRecord, ...], i: int, description: DataDescription | None
) -> str:
    """Say where the offset is a whole number of exposures or of source frames."""
    frame, length = frames[i], frames[i].spikes.num_ticks
    other = frames[i + 1] if i + 1 < len(frames) else frames[i - 1]
    stride = abs(other.t0 - frame.t0) * length / (frame.t1 - frame.t0) if other != frame else length
    averaged = () if description is None else description.frames_averaged
    whole = [length / count for count in averaged if length % count == 0 and length > count]
    for name, ticks in (("exposure", stride), *(("source frame", ticks) for ticks in whole)):
        number = abs(round(offset / ticks))
        if number and abs(abs(offset / ticks) - number) <= NEAR_WHOLE:
            return f"; that is {number} {name}{'s' if number > 1 else ''}"
    return ""
