"""Check that the spikes of an exposure show its own blurry frame, not one before or after it.

A shift of one whole exposure leaves every name, number and length right. Only the pictures show it:
the counts of an exposure then look more like a neighbouring blurry frame than like their own. This
needs no instant of the sharp frame, and works on counts without bits as well.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

import cv2
import numpy as np

from src.data.errors import BadFileError
from src.data.exposures import frame_index
from src.data.frames import list_frames, read_image
from src.data.recordings import FrameRecord
from src.data.voxel_counts import count_source, open_voxels
from src.prepare.findings import Findings, listed, sample_places

MOVING_FRAMES = 5  # enough of them
SAMPLED_FRAMES = 15  # at most, where many of them do not move
MIN_VOTES = 2
MAX_SHIFT = 3  # exposures to both sides that are tried to name a shift
CLEAR_LEAD = 0.002  # by which one correlation must exceed another to count
MIN_CORRELATION = 0.2  # below, spikes and frame have nothing to do with each other
CLEARLY_SHOWN = 0.4
MIN_CONTRAST = 5.0  # standard deviation of 8 bit values; less shows nothing
TOO_STILL = "too still to tell exposures apart, so a shift by whole ones is not seen"
NAMES = {-1: "the frame before", 0: "its own frame", 1: "the next frame"}


@dataclass(frozen=True)
class Fit:
    """How well the spikes of a frame fit the blurry frames around it.

    Attributes:
        correlations: distance in frames (-1, 0, 1) -> correlation of the counts of the whole
            exposure with that blurry frame's grey values, both without their large-scale part.
    """

    correlations: dict[int, float]

    @property
    def best(self) -> int | None:
        """The distance of the frame that fits best; None where none is ahead of its neighbours."""
        ranked = sorted(self.correlations, key=self.correlations.__getitem__, reverse=True)
        values = [self.correlations[distance] for distance in ranked]
        if len(ranked) < 2 or values[0] - values[1] < CLEAR_LEAD or values[0] < MIN_CORRELATION:
            return None
        return ranked[0]

    @property
    def has_both_sides(self) -> bool:
        """Whether the frame before and the next one were compared."""
        return {-1, 1} <= self.correlations.keys()

    @property
    def sentence(self) -> str:
        """What the numbers say; starts with "!" where they say that something is wrong."""
        shown = ", ".join(f"{NAMES[d]} {v:.3f}" for d, v in sorted(self.correlations.items()))
        if self.best is None:
            verdict = "the frames around do not tell which of them the spikes show"
        elif self.best:
            verdict = f"! THE SPIKES FIT {NAMES[self.best].upper()} BETTER THAN THEIR OWN"
        elif self.has_both_sides:
            verdict = "the spikes fit their own frame best"
        else:
            other = max(self.correlations.keys() - {0})
            verdict = f"the spikes fit their own frame better than {NAMES[other]}, one side only"
        return f"{verdict} (correlation: {shown})"


def check_neighbours(where: str, frames: tuple[FrameRecord, ...], num_bins: int) -> Findings:
    """Compare the spikes of a sample of exposures that move with the blurry frames around them.

    Args:
        where: the sequence.
        frames: its frames.
        num_bins: K, for counts of which no bits are there.

    Raises:
        BadFileError: a file cannot be read.
    """
    looked = _look_around(frames, num_bins)
    fits = {i: fit for i, fit in looked.items() if fit.best is not None}
    if not fits:
        return Findings(notes=[f"{where}: {TOO_STILL}"])
    votes = Counter(_sign(fit.best) for fit in fits.values())
    side, count = max(((d, votes[d]) for d in (-1, 1)), key=lambda vote: vote[1])
    if count >= MIN_VOTES and 3 * count >= 2 * len(fits):
        return Findings(problems=[_problem(where, frames, num_bins, side, fits)])
    strangers = _strangers(frames, num_bins, looked)
    number = len(fits) + len(strangers)
    line = f"{where}: {votes[0]} of {number} sampled exposures fit their own blurry frame best"
    wrong = []
    for distance, way in ((-1, "before"), (1, "after")):
        names = [frames[i].name for i, fit in fits.items() if _sign(fit.best) == distance]
        wrong += [f"{listed(names)} one {way} it"] if names else []
    wrong += [f"{listed(strangers)} none around it"] if strangers else []
    if wrong:
        return Findings(notes=[f"{line}, {', '.join(wrong)}; look with --overlay"])
    return Findings(seen=[line])


def neighbours_of(frame: FrameRecord, reach: int = 1) -> dict[int, Path]:
    """Return the blurry frames around one by distance, 0 being its own.

    They are found by number in its folder, whether they can be used for training or not. A number
    that is missing there has no entry.
    """
    folder, suffix = frame.blurry.parent, frame.blurry.suffix
    numbered, step = _numbered(folder, suffix, folder.stat().st_mtime_ns)
    distances = {d: frame.index + d * step for d in range(-reach, reach + 1)}
    return {d: numbered[number] for d, number in distances.items() if number in numbered}


def fit_neighbours(spikes: np.ndarray, blurry: Mapping[int, np.ndarray]) -> Fit:
    """Correlate the counts [Hs, Ws] of an exposure with blurry frames around it.

    Args:
        spikes: counts of the whole exposure.
        blurry: distance in frames -> uint8 RGB [H, W, 3].
    """
    height, width = spikes.shape
    wanted = _details(spikes)
    correlations = {}
    for distance, image in blurry.items():
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
        small = cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA)
        correlations[distance] = _correlation(wanted, _details(small))
    return Fit(correlations)


def _look_around(frames: tuple[FrameRecord, ...], num_bins: int) -> dict[int, Fit]:
    """Return the fits of some frames by place, until enough of them tell their neighbours apart.

    Frames with a neighbour on both sides come first: with one side only, a shift to the other one
    may look right.
    """
    first = sample_places(len(frames), MOVING_FRAMES)
    more = [i for i in sample_places(len(frames), SAMPLED_FRAMES) if i not in first]
    places = sorted([*first, *more], key=lambda i: len(neighbours_of(frames[i])), reverse=True)
    fits: dict[int, Fit] = {}
    for i in places:
        fits[i] = _fit(frames[i], num_bins, 1)
        if max(fits[i].correlations.values()) < MIN_CORRELATION:  # a larger shift, or other spikes
            fits[i] = _fit(frames[i], num_bins, MAX_SHIFT)
        if sum(fit.best is not None for fit in fits.values()) == MOVING_FRAMES:
            break
    return fits


def _strangers(frames: tuple[FrameRecord, ...], num_bins: int, looked: dict[int, Fit]) -> list[str]:
    """Name the frames whose spikes show a picture, but none of those around them.

    Only where others of the sequence are shown clearly.
    """
    usual = median(fit.correlations[0] for fit in looked.values() if fit.best is not None)
    if usual < CLEARLY_SHOWN:
        return []
    unlike = [i for i, fit in looked.items() if max(fit.correlations.values()) < MIN_CORRELATION]
    return [frames[i].name for i in unlike if _shows_a_picture(frames[i], num_bins)]


def _shows_a_picture(frame: FrameRecord, num_bins: int) -> bool:
    """Whether both halves of an exposure show the same, and the blurry frame is not uniform."""
    grey = cv2.cvtColor(read_image(frame.blurry), cv2.COLOR_RGB2GRAY)
    if grey.std() < MIN_CONTRAST:
        return False
    if frame.spikes.geometry is None:
        halves = np.array_split(open_voxels(frame.spikes.path, num_bins), 2)
    elif frame.spikes.num_ticks < 2:
        return False
    else:
        halves = np.split(count_source(frame.spikes, 2), 2)
    details = [_details(half.sum(axis=0, dtype=np.float32)) for half in halves]
    return _correlation(*details) >= CLEARLY_SHOWN


def _fit(frame: FrameRecord, num_bins: int, reach: int) -> Fit:
    spikes = _exposed(frame, num_bins)
    images = {distance: read_image(path) for distance, path in neighbours_of(frame, reach).items()}
    return fit_neighbours(spikes, images)


def _exposed(frame: FrameRecord, num_bins: int) -> np.ndarray:
    """Return the counts of a whole exposure: float32 [Hs, Ws]."""
    if frame.spikes.geometry is None:
        counts = open_voxels(frame.spikes.path, num_bins)
    else:
        counts = count_source(frame.spikes, 1)
    return np.sum(counts, axis=0, dtype=np.float32)


def _problem(
    where: str, frames: tuple[FrameRecord, ...], num_bins: int, side: int, fits: dict[int, Fit]
) -> str:
    """Name the shift in exposures: the distance that most frames fit best on the wrong side."""
    wrong = [i for i, fit in fits.items() if _sign(fit.best) == side]
    found = []
    for i in wrong:
        correlations = _fit(frames[i], num_bins, MAX_SHIFT).correlations
        near = [d for d in correlations if d * side >= 0]
        found.append(abs(max(near, key=correlations.__getitem__)))
    number = max(Counter(found).items(), key=lambda item: (item[1], -item[0]))[0]
    way, place = ("early", "after") if side > 0 else ("late", "before")
    names = listed([frames[i].name for i in wrong])
    return (
        f"{where}: the spikes are {number} exposure{'s' if number > 1 else ''} {way}: in "
        f"{len(wrong)} of {len(fits)} sampled exposures they fit a blurry frame {place} their own "
        f"better ({names}); correct t0 and t1 in exposures.csv, or the numbers of the spike files, "
        "then run scripts/prepare_data.py; --overlay 20 shows it"
    )


def _sign(distance: int) -> int:
    return int(np.sign(distance))


@cache
def _numbered(folder: Path, suffix: str, changed_ns: int) -> tuple[dict[int, Path], int]:
    """Return the images of a folder by number, and the usual step from one to the next."""
    numbered = {}
    for name, path in list_frames(folder, (suffix,)).items():
        try:
            numbered[frame_index(name)] = path
        except ValueError as error:
            raise BadFileError(path, str(error)) from error
    numbers = sorted(numbered)
    steps = Counter(b - a for a, b in zip(numbers, numbers[1:], strict=False))
    return numbered, steps.most_common(1)[0][0] if steps else 1


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return the correlation of two pictures without a mean; 0 where one is uniform."""
    scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / scale if scale else 0.0


def _details(image: np.ndarray) -> np.ndarray:
    """Return the image without its mean and its large-scale brightness."""
    image = cv2.GaussianBlur(np.asarray(image, np.float32), (0, 0), 1.0)
    return image - cv2.GaussianBlur(image, (0, 0), max(2.0, image.shape[1] / 16))
