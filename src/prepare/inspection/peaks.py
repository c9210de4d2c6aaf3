"""Which distance stands out among all, and by how much."""

from dataclasses import dataclass

import numpy as np

from src.prepare.inspection.autocorrelation import deviation, mean_autocorrelation, row_advantage

MIN_SURENESS = 12.0  # in deviations; the largest of a million chance values reaches 5 to 7
MIN_ROW_SURENESS = 5.0  # only a few dozen widths divide a tick
CLEAR = 3.0  # deviations by which a width must beat its multiples
BESIDE = (-8, -4, 4, 8)
SHARE_OF_BEST = 0.4  # a peak or dip this large, relative to the largest, is no echo of another one
LONGEST_SIDE_RATIO = 6


@dataclass(frozen=True)
class Found:
    """A number read off the bits, and how sure it is.

    Attributes:
        value: the number; None where nothing stands out.
        strength: height of the peak or depth of the dip, as a difference of correlations.
        sureness: the same in deviations of what chance gives.
    """

    value: int | None
    strength: float
    sureness: float


@dataclass(frozen=True)
class FoundWidth(Found):
    """A width.

    Attributes:
        likely: widths that come into question, the likeliest first, also where none stands out.
        as_good: multiples of it that fit as well, in a periodic scene.
    """

    likely: tuple[int, ...] = ()
    as_good: tuple[int, ...] = ()


def best_width(image: np.ndarray) -> FoundWidth:
    """Return the width at which the rows of flat pictures [N, H*W] are most alike.

    Of the widths that divide a picture the best must beat all others but its own multiples and
    divisors, which share its rows.
    """
    pixels = image.shape[1]
    shortest = max(2, int(np.sqrt(pixels / LONGEST_SIDE_RATIO)))
    longest = min(pixels // 2, int(np.sqrt(pixels * LONGEST_SIDE_RATIO)))
    widths = np.array([w for w in range(shortest, longest + 1) if pixels % w == 0])
    if not len(widths):
        return FoundWidth(None, 0.0, 0.0)
    alike = mean_autocorrelation(list(image), float(image.mean()))[widths]
    usual, best = float(np.median(alike)), int(np.argmax(alike))
    is_origin = (widths[best] % widths == 0) & (
        alike - usual >= (1 - SHARE_OF_BEST / 2) * (alike[best] - usual)
    )
    width = int(widths[np.argmax(is_origin)])
    rivals = [[int(w)] for w in widths if w % width and width % w]
    rivals.append([width + d for d in BESIDE if width + d > 0])
    tests = [row_advantage(image, width, rival) for rival in rivals]
    strength, sureness = min(tests, key=lambda test: test[1])
    as_good = [
        int(w)
        for w in widths
        if w > width and w % width == 0 and row_advantage(image, width, [int(w)])[1] < CLEAR
    ]
    likely = widths[np.argsort(-alike)][:3].tolist()
    value = width if sureness >= MIN_ROW_SURENESS else None
    return FoundWidth(value, strength, sureness, tuple(likely), tuple(as_good))


def deepest_dip(places: np.ndarray, values: np.ndarray) -> Found:
    """Return the place of the largest value if it stands out, or the place it is an echo of.

    A tick shows at all its multiples: a smaller place whose multiple the best one is, with a value
    not much below, is the true one.
    """
    spread = deviation(values)
    best = int(np.argmax(values))
    largest = float(values[best])
    if largest / spread < MIN_SURENESS:
        return Found(None, largest, largest / spread)
    is_origin = (places[best] % places == 0) & (values >= SHARE_OF_BEST * largest)
    first = int(np.argmax(is_origin))
    return Found(int(places[first]), float(values[first]), float(values[first]) / spread)
