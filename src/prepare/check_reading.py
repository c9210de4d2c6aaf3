"""Check on pictures that spikes are read the way they were written, and that they are spikes.

The image of the rate (TFP) of an exposure must look like its sharp frame, and must do so more with
the stated order of bits and rows than with any other. The wrong order of bits still looks like a
picture, so an eye does not catch it; the correlation does.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from src.data.description import BIT_ORDERS, FILE_NAME, DataDescription
from src.data.errors import BadFileError
from src.data.frames import read_image
from src.data.recordings import FrameRecord
from src.data.spikes.matching import grey_at_spike_size
from src.data.spikes.spike_dat import SIDECAR_NAME, SpikeFile
from src.data.voxel_counts import VoxelEntry
from src.prepare.findings import Findings, listed, sample_places

SAMPLED_FRAMES = 3
CLEARLY_BETTER = 0.01  # of a correlation; the wrong order of bits costs 0.05 on real frames
UNLIKE, LIKE = 0.2, 0.4
INVERTED = -0.5
MIN_CONTRAST = 0.02  # standard deviation of grey values 0..1; less shows nothing
GAMMA = 2.2  # from encoded grey values to light
THRESHOLD_FACTOR = 1.3  # clipping, noise and dark frames move the estimate
HIGHEST_RATE, LOWEST_RATE = 0.98, 0.001

Way = tuple[str, bool]  # bit order, flip of the rows


@dataclass(frozen=True)
class Reading:
    """How the spikes of one exposure fit its sharp frame.

    Attributes:
        name: the frame.
        stated: the way of reading that is written beside the spikes.
        correlations: with the sharp frame, by way of reading.
        rate: spikes per pixel and tick.
        light: mean of the sharp frame in 0..1, by what a sensor may integrate.
    """

    name: str
    stated: Way
    correlations: Mapping[Way, float]
    rate: float
    light: Mapping[str, float]


def sample_readings(frames: tuple[FrameRecord, ...]) -> list[Reading]:
    """Read a sample of exposures in all ways; frames without contrast are left out.

    Raises:
        BadFileError: a file cannot be read.
    """
    frames = tuple(frame for frame in frames if frame.spikes.geometry is not None)
    readings = [read_ways(frames[i]) for i in sample_places(len(frames), SAMPLED_FRAMES)]
    return [reading for reading in readings if reading is not None]


def find_wrong_way(where: str, frame: FrameRecord, readings: list[Reading]) -> str | None:
    """Say where another way of reading fits clearly better than the stated one, and what to write.

    Args:
        where: the sequence.
        frame: one of its frames, for the places that state the way.
        readings: of `sample_readings`.
    """
    if not readings:
        return None
    stated, average = readings[0].stated, _average(readings)
    better = max(average, key=average.__getitem__)
    if average[better] < LIKE or average[better] - average[stated] <= CLEARLY_BETTER:
        return None
    lines = []
    if better[0] != stated[0]:
        lines.append(f"'bit_order: {better[0]}'")
    if better[1] != stated[1]:
        lines.append(f"'flip_rows: {str(better[1]).lower()}'")
    return (
        f"{where}: spikes read as bit_order {stated[0]}, flip_rows {str(stated[1]).lower()} "
        f"correlate {average[stated]:.3f} with the sharp frames, as bit_order {better[0]}, "
        f"flip_rows {str(better[1]).lower()} {average[better]:.3f}; write {' and '.join(lines)} "
        f"into {_places(frame.spikes.path)}"
    )


def find_unlike(where: str, readings: list[Reading]) -> str | None:
    """Say where spikes do not look like their sharp frames, however they are read."""
    if not readings:
        return None
    correlation = _average(readings)[readings[0].stated]
    if correlation < INVERTED:
        return (
            f"{where}: the brighter the sharp frame, the fewer spikes (correlation "
            f"{correlation:.2f}); 0 and 1 are exchanged, write the spikes again"
        )
    if correlation < UNLIKE:
        return (
            f"{where}: the spikes do not look like the sharp frames in any of four ways to read "
            f"them (correlation {correlation:.2f}); see scripts/inspect_spikes.py for their size, "
            "and whether they belong to this sequence and show the same part of the scene"
        )
    return None


def find_other_threshold(
    where: str, readings: list[Reading], description: DataDescription | None
) -> str | None:
    """Say where the number of spikes fits another threshold than the stated one.

    In the mean a pixel fires light / threshold times per tick.
    """
    if description is None or description.threshold is None or not readings:
        return None
    rate = sum(reading.rate for reading in readings)
    if description.transfer not in readings[0].light or rate == 0:
        return None
    found = sum(reading.light[description.transfer] for reading in readings) / rate
    if 1 / THRESHOLD_FACTOR < found / description.threshold < THRESHOLD_FACTOR:
        return None
    return (
        f"{where}: as many spikes as a threshold of {found:.2g} gives, dataset.yaml says "
        f"{description.threshold:g} with {description.transfer} light"
    )


def read_ways(frame: FrameRecord) -> Reading | None:
    """Correlate the rate over an exposure with the sharp frame; None where there is no contrast.

    Raises:
        BadFileError: a file cannot be read.
    """
    source = frame.spikes
    size = (source.geometry.height, source.geometry.width)
    sharp = grey_at_spike_size(read_image(frame.sharp), size)
    if sharp.std() < MIN_CONTRAST:
        return None
    correlations, rate = {}, 0.0
    for order, flip in product(BIT_ORDERS, (False, True)):
        geometry = replace(source.geometry, bit_order=order, flip_rows=flip)
        try:
            spikes = SpikeFile(source.path, geometry).read(source.start, source.stop)
        except (OSError, ValueError) as error:
            raise BadFileError(source.path, str(error)) from error
        correlations[order, flip] = _correlation(spikes.sum(axis=0, dtype=np.int32), sharp)
        rate = float(spikes.mean())  # the same in every way
    stated = (source.geometry.bit_order, source.geometry.flip_rows)
    light = {"encoded": float(sharp.mean()), "linear": float((sharp**GAMMA).mean())}
    return Reading(frame.name, stated, correlations, rate, light)


def check_rates(
    where: str, frames: tuple[FrameRecord, ...], entries: Mapping[str, VoxelEntry]
) -> Findings:
    """Look at the share of ones in every counted window: none, all, or hardly any.

    Spikes that somebody else counted have no known number of ticks; only silence is seen there.
    """
    findings = Findings()
    silent, full, rates = [], [], {}
    for frame in frames:
        entry = entries.get(frame.name)
        if entry is None:
            continue
        rate = _rate(frame, entry)
        if entry.event_count == 0:
            silent.append(frame.name)
        elif rate is not None:
            rates[frame.name] = rate
            if rate > HIGHEST_RATE:
                full.append(frame.name)
    if silent:
        findings.problems.append(
            f"{where}: not a single spike in the window ({listed(silent)}); write these spikes "
            "again or delete the frames"
        )
    if full:
        findings.problems.append(
            f"{where}: nearly every bit is 1 ({listed(full)}); no camera does that, see "
            "scripts/inspect_spikes.py"
        )
    findings.notes += [f"{where}: {line}" for line in _dark(rates)]
    return findings


def _dark(rates: Mapping[str, float]) -> Iterable[str]:
    dark = [name for name, rate in rates.items() if rate < LOWEST_RATE]
    if dark:
        yield f"hardly a spike, below {LOWEST_RATE:g} per pixel and tick ({listed(dark)})"


def _rate(frame: FrameRecord, entry: VoxelEntry) -> float | None:
    """Return spikes per pixel and tick; None where the ticks are not known."""
    geometry, source = frame.spikes.geometry, frame.spikes
    if geometry is None:
        return None
    return entry.event_count / ((source.stop - source.start) * geometry.height * geometry.width)


def _average(readings: list[Reading]) -> dict[Way, float]:
    return {
        way: float(np.mean([reading.correlations[way] for reading in readings]))
        for way in readings[0].correlations
    }


def _places(spikes: Path) -> str:
    """Return the files that say how the bits of a file lie."""
    beside = [spikes.with_suffix(".yaml"), spikes.parent / SIDECAR_NAME]
    found = [str(path) for path in beside if path.is_file()][:1]
    root = spikes.parents[3] if len(spikes.parents) > 3 else spikes.parent
    return " and ".join([*found, str(root / FILE_NAME)])


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return the correlation of two pictures, 0 where one of them is uniform."""
    a, b = a - a.mean(dtype=np.float64), b - b.mean(dtype=np.float64)
    scale = np.sqrt(np.sum(a * a) * np.sum(b * b))
    return float(np.sum(a * b) / scale) if scale > 0 else 0.0
