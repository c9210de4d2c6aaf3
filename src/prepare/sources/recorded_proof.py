"""Look for the user's sharp frames in their spikes: are times and the order of bits right."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from src.data.errors import BadFileError
from src.data.exposures import EXPOSURES_NAME, frame_index, window_ticks
from src.data.spikes.matching import TfpMatch, best_tfp_centre
from src.data.spikes.spike_dat import SpikeGeometry
from src.data.spikes.spike_parts import SpikeParts
from src.prepare.check_pairs import SWAPPED_RATIO, edge_ratio
from src.prepare.sources.recorded_clip import DAT, RecordedClip
from src.prepare.sources.spike_proof import MIN_CORRELATION as MIN_SHARP_CORRELATION
from src.prepare.sources.spike_proof import MIN_TEXTURE, check_reading, match_around, read_grey

NUM_FRAMES = 5
MIN_WIDTH = 9
MAX_CELLS = 100_000_000  # pixels times ticks that are unpacked at a time
# So well must the spikes of a whole exposure show the blurry frame, where it has any texture.
MIN_CORRELATION = 0.3
# An offset stops the preparation where it is more than both: ticks, part of the exposure.
MAX_DEVIATION_TICKS, MAX_DEVIATION = 2.0, 0.05


@dataclass(frozen=True)
class FoundFrame:
    """A sharp frame and where its spikes show it.

    Attributes:
        sharp: the frame.
        parts: files of the stream it was looked for in.
        length: ticks of its exposure.
        width: ticks of the TFP images.
        tick: best centre, from the first tick of the parts.
        stated: tick of the sharp frame by the table, None where it does not say.
        match: scores and whether they decide.
        blur_correlation: of the spikes of the exposure with the blurry frame; None where that is
            too uniform to tell.
    """

    sharp: Path
    parts: tuple[Path, ...]
    length: int
    width: int
    tick: float
    stated: float | None
    match: TfpMatch
    blur_correlation: float | None


def prove_recorded(clip: RecordedClip, targets: Sequence[Path], geometry: SpikeGeometry) -> str:
    """Compare some sharp frames with the converted spikes; return what was seen.

    Args:
        clip: the sequence.
        targets: its spikes as `.dat`: a stream, or one file per frame.
        geometry: how their bits lie.

    Raises:
        BadFileError: the spikes fit better in another bit order or upside down, do not show the
            blurry frames, or show the sharp frames elsewhere than the table of exposures says.
    """
    picks = np.linspace(0, len(clip.sharp) - 1, min(NUM_FRAMES, len(clip.sharp))).round()
    looked = [_find(clip, int(number), targets, geometry) for number in np.unique(picks)]
    found = [frame for frame in looked if frame is not None]
    if not found:
        return "its exposures are too short or leave the spikes: nothing to compare"
    best = max(found, key=lambda frame: frame.match.correlation)
    other = check_reading(best.parts, geometry, best.sharp, best.tick, best.width)
    if other is not None:
        raise BadFileError(clip.spikes.files[0], _other_reading(clip, geometry, other[0]))
    decisive = [frame for frame in found if frame.match.is_decisive]
    shown = [frame for frame in decisive if frame.match.correlation >= MIN_SHARP_CORRELATION]
    if 2 * len(shown) > len(found):  # the spikes are of these frames; the time may be wrong
        _judge(clip, shown)
    _refuse_strangers(clip, found)
    return _judge(clip, decisive)


def _find(
    clip: RecordedClip, number: int, targets: Sequence[Path], geometry: SpikeGeometry
) -> FoundFrame | None:
    """Look for one sharp frame; None where its exposure leaves the spikes or is too short."""
    sharp = clip.sharp[number]
    exposure = clip.exposures[frame_index(sharp.stem)]
    rate = clip.spikes.sidecar.ticks_per_second
    start, stop = window_ticks(exposure.t0, exposure.t1, rate)
    origin = start if clip.spikes.is_per_frame else 0
    parts = (targets[number],) if clip.spikes.is_per_frame else tuple(targets)
    stream = SpikeParts(parts, geometry)
    if start < 0 or stop - origin > stream.num_ticks:
        return None
    length = stop - start
    width = max(length // 4 | 1, MIN_WIDTH)
    middle = (start + stop) // 2 - origin
    widest = MAX_CELLS // (geometry.height * geometry.width) // 2 - width
    reach = max(min(length + width, widest), 0)  # finds tables that are one exposure off
    after = min(reach, stream.num_ticks - middle - width // 2 - 1)
    if after < 0:
        return None
    grey = read_grey(sharp, geometry)
    match, first = match_around(stream, grey, middle, (reach, after), width)
    if match is None:
        return None
    stated = None if exposure.t_sharp is None else exposure.t_sharp * rate - origin
    shown = _blur_correlation(clip.blurry[number], stream, middle, min(length // 2, reach))
    return FoundFrame(sharp, parts, length, width, first + match.centre, stated, match, shown)


def _blur_correlation(blurry: Path, stream: SpikeParts, middle: int, reach: int) -> float | None:
    """Return how well the ticks around the middle of an exposure show the blurry frame."""
    grey = read_grey(blurry, stream.geometry)
    if grey.std() < MIN_TEXTURE:
        return None
    spikes = stream.read(max(middle - reach, 0), min(middle + reach + 1, stream.num_ticks))
    return best_tfp_centre(spikes, grey, width=len(spikes)).correlation


def _refuse_strangers(clip: RecordedClip, found: Sequence[FoundFrame]) -> None:
    """Refuse spikes of something else than the frames, or of a wrong size or order of axes."""
    shown = [f.blur_correlation for f in found if f.blur_correlation is not None]
    if not shown or np.median(shown) >= MIN_CORRELATION:
        return
    sidecar = clip.spikes.sidecar
    raise BadFileError(
        clip.spikes.files[0],
        f"its spikes do not show the blurry frames (correlation {np.median(shown):.2f}, at least "
        f"{MIN_CORRELATION} is needed): check that they belong together, their size "
        f"({sidecar.height}x{sidecar.width}), the order of axes or columns, rate and exposures",
    )


def _judge(clip: RecordedClip, decisive: Sequence[FoundFrame]) -> str:
    """Compare the ticks of sharp frames with what the table says.

    Raises:
        BadFileError: they differ.
    """
    if not decisive:
        return "its scene is too still to prove with its spikes when frames were exposed"
    if decisive[0].stated is None:
        return (
            f"{EXPOSURES_NAME} has no column t_sharp, so nothing says where its sharp frames "
            "should lie: alignment is not proven. Spikes show "
            + ", ".join(f"{frame.sharp.name} at tick {frame.tick:.1f}" for frame in decisive)
        )
    errors = [frame.tick - frame.stated for frame in decisive]
    median = float(np.median(errors))
    limit = max(MAX_DEVIATION_TICKS, MAX_DEVIATION * decisive[0].length)
    if abs(median) <= limit:
        return _seen(decisive, limit)
    rate = clip.spikes.sidecar.ticks_per_second
    ticks = ", ".join(
        f"{frame.sharp.name} stated at {frame.stated:.1f}, shown at {frame.tick:.1f}"
        for frame in decisive
    )
    is_beyond = 2 * sum(frame.match.is_at_end for frame in decisive) > len(decisive)
    at_least = "at least " if is_beyond else ""
    side = "after" if median > 0 else "before"
    raise BadFileError(
        clip.spikes.files[0],
        f"its spikes show the sharp frames {at_least}{abs(median):.1f} ticks "
        f"({abs(median) / rate:.6f} s) {side} the t_sharp of {EXPOSURES_NAME}: {ticks}; correct "
        f"the table, the tick rate, or the beginning of the spikes{_swapped(clip, decisive)}",
    )


def _swapped(clip: RecordedClip, decisive: Sequence[FoundFrame]) -> str:
    """Ask whether blurry and sharp frames were exchanged, where the blurry ones are the sharper."""
    places = [clip.sharp.index(frame.sharp) for frame in decisive]
    ratios = [edge_ratio(clip.blurry[i], clip.sharp[i]) for i in places]
    if np.median(ratios) <= SWAPPED_RATIO:
        return ""
    return "; but first: frames in blur are sharper than those in sharp, are the folders swapped?"


def _seen(decisive: Sequence[FoundFrame], limit: float) -> str:
    """Say how exactly the table is right, and where single frames lie elsewhere."""
    off = [frame for frame in decisive if abs(frame.tick - frame.stated) > limit]
    near = [abs(frame.tick - frame.stated) for frame in decisive if frame not in off]
    line = f"{len(near)} sharp frames lie within {max(near, default=limit):.1f} ticks"
    if not off:
        return line
    ticks = ", ".join(f"{f.sharp.name} (stated {f.stated:.1f}, shown {f.tick:.1f})" for f in off)
    return f"{line}, but not {ticks}: are these frames named and timed rightly?"


def _other_reading(clip: RecordedClip, ours: SpikeGeometry, better: SpikeGeometry) -> str:
    """Say how the user's file should be read, when our copy of it reads better in another way."""
    stated = clip.spikes.sidecar
    is_swapped, is_upside_down = (
        better.bit_order != ours.bit_order,
        better.flip_rows != ours.flip_rows,
    )
    if clip.spikes.layout != DAT:
        axes = "; --axes may be wrong too" if is_swapped else ""
        return f"its spikes are upside down; store the array with its rows reversed{axes}"
    orders = {"little": "big", "big": "little"}
    reading = replace(
        stated,
        bit_order=orders[stated.bit_order] if is_swapped else stated.bit_order,
        flip_rows=stated.flip_rows != is_upside_down,
    )
    return (
        f"its spikes show the sharp frames best with bit_order: {reading.bit_order} and flip_rows: "
        f"{str(reading.flip_rows).lower()}, stated are {stated.bit_order} and "
        f"{str(stated.flip_rows).lower()}; correct the .yaml beside it"
    )
