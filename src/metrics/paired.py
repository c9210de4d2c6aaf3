"""Paired differences of two methods on the same frames, with bootstrap intervals.

Frames of one sequence look alike, so they are no independent samples: an interval that draws single
frames is too narrow. Both are given:

- `over_frames`: every frame is drawn by itself (Efron's percentile bootstrap);
- `over_sequences`: whole sequences are drawn, with all their frames (a block bootstrap whose blocks
  are the sequences). It says how the difference would vary on other recordings, and needs several.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 10_000
LEVEL = 0.95
DRAWN_AT_ONCE = 4_000_000
FEW_SEQUENCES = 6  # below it, resampled means are too few different ones for a 95% interval


@dataclass(frozen=True)
class Interval:
    """A percentile interval of a mean, `low` to `high`."""

    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """Second method less first, frame by frame, over the frames that both have a value for."""

    mean: float  # infinite where one method alone is perfect
    num_frames: int
    share_positive: float  # of the frames, where the difference is above 0
    over_frames: Interval | None  # None for fewer than two frames, or infinite ones
    over_sequences: Interval | None  # None for fewer than two sequences
    num_sequences: int


def paired_difference(
    first: Sequence[float | None],
    second: Sequence[float | None],
    sequences: Sequence[str],
    *,
    seed: int = 0,
) -> PairedDifference | None:
    """Return the differences of two methods, `seed` for the resampling; None without any.

    There is one value and one sequence name per frame. Frames that either method has no value for
    are left out. Two infinite values (both methods perfect) differ by 0.
    """
    pairs = [
        (0.0 if a == b else b - a, name)
        for a, b, name in zip(first, second, sequences, strict=True)
        if a is not None and b is not None
    ]
    if not pairs:
        return None
    differences = np.array([value for value, _ in pairs], np.float64)
    names = [name for _, name in pairs]
    groups = [differences[[n == name for n in names]] for name in dict.fromkeys(names)]
    is_finite = bool(np.isfinite(differences).all())
    rng = np.random.default_rng(seed)
    return PairedDifference(
        mean=math.fsum(differences) / len(differences) if is_finite else float(differences.sum()),
        num_frames=len(differences),
        share_positive=float((differences > 0).mean()),
        over_frames=_bootstrap(differences[:, None], rng) if is_finite else None,
        over_sequences=_bootstrap(groups, rng) if is_finite else None,
        num_sequences=len(groups),
    )


def _bootstrap(groups: Sequence[np.ndarray], rng: np.random.Generator) -> Interval | None:
    """Draw as many groups as there are, each with all its frames; the mean is over frames."""
    if len(groups) < 2:
        return None
    sums, counts = (np.array([f(group) for group in groups]) for f in (np.sum, len))
    rows, means = max(1, DRAWN_AT_ONCE // len(groups)), []
    for done in range(0, NUM_RESAMPLES, rows):
        drawn = rng.integers(len(groups), size=(min(rows, NUM_RESAMPLES - done), len(groups)))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(float(low), float(high))
