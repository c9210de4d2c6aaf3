"""Are spikes of this exposure, or of one before or after it? A shift by whole exposures.

Such a shift leaves every name, number and length right. The counts of an exposure are compared with
the blurry frames around it, so neither the instant of a sharp frame nor single bits are needed.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import median

import cv2
import numpy as np

from src.data.errors import BadFileError, listed
from src.data.exposures import frame_index
from src.data.frames import list_frames, read_grey, read_image
from src.data.recordings import FrameRecord
from src.data.voxel_counts import count_window, open_voxels
from src.prepare.frame_checks import Findings, sample_evenly

# Correlations of spikes with a picture: below UNLIKE they have nothing in common, from SHOWN on the
# spikes show the picture.
UNLIKE, SHOWN = 0.2, 0.4
MIN_CONTRAST = 0.02  # standard deviation of grey values 0..1; less shows nothing

MOVING_EXPOSURES, EXPOSURE_SAMPLES = 5, 15  # so many that move are enough; at most so many are read
MIN_VOTES = 2
MAX_SHIFT = 3  # exposures to both sides that are tried to name a shift
CLEAR_LEAD = 0.002  # by which one correlation must exceed another to count
TOO_STILL = "too still to tell exposures apart, so a shift by whole ones is not seen"
FRAME_NAMES = {-1: "the frame before", 0: "its own frame", 1: "the next frame"}


@dataclass(frozen=True)
class ExposureFit:
    """How well the spikes of an exposure fit the blurry frames around it.

    `correlations`: distance in frames (-1, 0, 1) -> correlation of the counts of the whole exposure
    with the grey values of that blurry frame, both without their large-scale part.
    """

    correlations: dict[int, float]

    @property
    def best(self) -> int | None:
        """The distance of the frame that fits best; None where none is clearly ahead."""
        ranked = sorted(self.correlations, key=self.correlations.__getitem__, reverse=True)
        values = [self.correlations[distance] for distance in ranked]
        if len(ranked) < 2 or values[0] - values[1] < CLEAR_LEAD or values[0] < UNLIKE:
            return None
        return ranked[0]

    @property
    def sentence(self) -> str:
        """What the numbers say; starts with "!" where they say that something is wrong."""
        shown = ", ".join(f"{FRAME_NAMES[d]} {v:.3f}" for d, v in sorted(self.correlations.items()))
        if self.best is None:
            result = "the frames around do not tell which of them the spikes show"
        elif self.best:
            result = f"! THE SPIKES FIT {FRAME_NAMES[self.best].upper()} BETTER THAN THEIR OWN"
        elif {-1, 1} <= self.correlations.keys():
            result = "the spikes fit their own frame best"
        else:
            other = FRAME_NAMES[max(self.correlations.keys() - {0})]
            result = f"the spikes fit their own frame better than {other}, one side only"
        return f"{result} (correlation: {shown})"


def check_exposures(
    where: str, frames: tuple[FrameRecord, ...], num_bins: int, *, is_doubtful: bool = False
) -> Findings:
    """Compare the spikes of a sample of exposures that move with the blurry frames around them.

    Where they do not look like the sharp frames (`is_doubtful`), a shift must show clearly.
    """
    fits = sample_exposures(frames, num_bins)
    votes = {i: int(np.sign(fit.best)) for i, fit in fits.items() if fit.best is not None}
    if not votes:
        return Findings(notes=[f"{where}: {TOO_STILL}"])
    early, own, late = (
        [frames[i].name for i, vote in votes.items() if vote == side] for side in (1, 0, -1)
    )
    side = shifted_side(votes.values())
    if side:
        wide = [_fit(frames[i], num_bins, MAX_SHIFT) for i, vote in votes.items() if vote == side]
        number = shift_of(wide, side)
        direction, place = ("early", "after") if side > 0 else ("late", "before")
        line = (
            f"{where}: the spikes are {number} exposure{'s' if number > 1 else ''} {direction}: in "
            f"{len(wide)} of {len(votes)} sampled exposures they fit a blurry frame {place} their "
            f"own better ({listed(early if side > 0 else late)}); correct t0 and t1 in "
            "exposures.csv, or the numbers of the spike files, then run scripts/prepare_data.py; "
            "--overlay 20 shows it"
        )
        is_shown = median(max(fit.correlations.values()) for fit in wide) >= SHOWN
        is_problem = is_shown or not is_doubtful
        return Findings(problems=[line]) if is_problem else Findings(notes=[line])
    unlike = _unlike_all(frames, num_bins, fits)
    number = len(votes) + len(unlike)
    line = f"{where}: {len(own)} of {number} sampled exposures fit their own blurry frame best"
    kinds = ((late, "one before"), (early, "one after"), (unlike, "none around"))
    wrong = ", ".join(f"{listed(names)} {which} it" for names, which in kinds if names)
    if wrong:
        return Findings(notes=[f"{line}, {wrong}; look with --overlay"])
    return Findings(seen=[line])


def shifted_side(votes: Iterable[int]) -> int:
    """Return -1 or 1 where two thirds of the distances, and at least two, are on that side."""
    counts = Counter(int(np.sign(vote)) for vote in votes)
    side = max((-1, 1), key=counts.__getitem__)
    is_shift = counts[side] >= MIN_VOTES and 3 * counts[side] >= 2 * counts.total()
    return side if is_shift else 0


def shift_of(fits: Iterable[ExposureFit], side: int) -> int:
    """Return the number of exposures on a side that most fits show; the smaller of a draw."""
    found = Counter()
    for fit in fits:
        near = [d for d in fit.correlations if d * side >= 0]
        found[abs(max(near, key=fit.correlations.__getitem__))] += 1
    return max(found.items(), key=lambda item: (item[1], -item[0]))[0]


def sample_exposures(frames: tuple[FrameRecord, ...], num_bins: int) -> dict[int, ExposureFit]:
    """Return the fits of some frames by place, until enough of them tell exposures apart.

    Frames with one on both sides come first: with one side only, a shift to the other one may look
    right.
    """
    first = sample_evenly(len(frames), MOVING_EXPOSURES)
    places = dict.fromkeys([*first, *sample_evenly(len(frames), EXPOSURE_SAMPLES)])
    fits: dict[int, ExposureFit] = {}
    for i in sorted(places, key=lambda i: len(frames_around(frames[i])), reverse=True):
        fits[i] = _fit(frames[i], num_bins, 1)
        if max(fits[i].correlations.values()) < UNLIKE:  # a larger shift, or other spikes
            fits[i] = _fit(frames[i], num_bins, MAX_SHIFT)
        if sum(fit.best is not None for fit in fits.values()) == MOVING_EXPOSURES:
            break
    return fits


def frames_around(frame: FrameRecord, reach: int = 1) -> dict[int, Path]:
    """Return the blurry frames around one by distance, those that are not used for training too."""
    folder, suffix = frame.blurry.parent, frame.blurry.suffix
    numbered, step = _numbered(folder, suffix, folder.stat().st_mtime_ns)
    distances = {d: frame.index + d * step for d in range(-reach, reach + 1)}
    return {d: numbered[number] for d, number in distances.items() if number in numbered}


@cache
def _numbered(folder: Path, suffix: str, changed_ns: int) -> tuple[dict[int, Path], int]:
    """Return the images of a folder by number, and the usual step from one to the next."""
    numbered = {}
    for name, path in list_frames(folder, (suffix,)).items():
        try:
            numbered[frame_index(name)] = path
        except ValueError as error:
            raise BadFileError(path, str(error)) from error
    steps = Counter(b - a for a, b in pairwise(sorted(numbered)))
    return numbered, steps.most_common(1)[0][0] if steps else 1


def fit_exposure(spikes: np.ndarray, blurry: Mapping[int, np.ndarray]) -> ExposureFit:
    """Correlate the counts [Hs, Ws] of an exposure with blurry frames [H, W, 3] by distance."""
    wanted, correlations = _details(spikes), {}
    for distance, image in blurry.items():
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
        small = cv2.resize(grey, spikes.shape[::-1], interpolation=cv2.INTER_AREA)
        correlations[distance] = correlation(wanted, _details(small))
    return ExposureFit(correlations)


def _fit(frame: FrameRecord, num_bins: int, reach: int) -> ExposureFit:
    images = {distance: read_image(path) for distance, path in frames_around(frame, reach).items()}
    return fit_exposure(_counts(frame, num_bins, 1)[0], images)


def _counts(frame: FrameRecord, num_bins: int, parts: int) -> list[np.ndarray]:
    """Return the counts of so many parts of an exposure: float32 [Hs, Ws] each."""
    if frame.spikes.geometry is None:
        pieces = np.array_split(open_voxels(frame.spikes.path, num_bins), parts)
    else:
        pieces = np.split(count_window(frame.spikes, parts), parts)
    return [piece.sum(axis=0, dtype=np.float32) for piece in pieces]


def _unlike_all(
    frames: tuple[FrameRecord, ...], num_bins: int, fits: Mapping[int, ExposureFit]
) -> list[str]:
    """Name the frames whose spikes show a picture in both halves, but none of those around them.

    Only where others of the sequence are shown clearly; a uniform blurry frame shows none.
    """
    usual = median(fit.correlations[0] for fit in fits.values() if fit.best is not None)
    if usual < SHOWN:
        return []
    names = []
    for frame in (frames[i] for i, f in fits.items() if max(f.correlations.values()) < UNLIKE):
        grey = read_grey(frame.blurry)
        if grey.std() >= MIN_CONTRAST * 255 and frame.spikes.num_ticks != 1:
            halves = map(_details, _counts(frame, num_bins, 2))
            names += [frame.name] if correlation(*halves) >= SHOWN else []
    return names


def _details(image: np.ndarray) -> np.ndarray:
    """Return the image without its mean and its large-scale brightness."""
    image = cv2.GaussianBlur(np.asarray(image, np.float32), (0, 0), 1.0)
    return image - cv2.GaussianBlur(image, (0, 0), max(2.0, image.shape[1] / 16))


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return the correlation of two pictures; 0 where one of them is uniform."""
    first = first - first.mean(dtype=np.float64)
    second = second - second.mean(dtype=np.float64)
    scale = np.sqrt(np.sum(first * first) * np.sum(second * second))
    return float(np.sum(first * second) / scale) if scale > 0 else 0.0
