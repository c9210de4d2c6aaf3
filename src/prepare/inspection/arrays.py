"""What an array with three axes is: whether it holds spikes, and which of its axes is time."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from src.prepare.inspection.array_samples import ArraySample
from src.prepare.inspection.findings import (
    Block,
    Findings,
    Question,
    describe_rate,
    middle_ticks,
    size_name,
)
from src.prepare.inspection.packed import inspect_bytes

ORDERS_OF_TIME = ("THW", "HTW", "HWT")  # time is the first, second, third axis
MIN_DEVIATIONS = 8.0
ROWS_FIRST = (
    "rows are taken to come before columns: a picture and its mirror image along the diagonal "
    "cannot be told apart by numbers; look at the picture"
)


def inspect_dense(sample: ArraySample, question: Question) -> Findings:
    """Inspect an array of three axes.

    Args:
        sample: the array or its leading part.
        question: what the user says.
    """
    name = f"array {sample.key}" if sample.key else "array"
    measured = [f"{name} has shape {list(sample.shape)} and holds {sample.values.dtype}"]
    if not sample.is_whole:
        measured.append(f"looked at: the leading part, {list(sample.values.shape)}")
    unfit = _unfit(sample.values, question, measured)
    if unfit is not None:
        return unfit
    values = (sample.values != 0).astype(np.uint8)
    alike = [_next_alike(values, axis) for axis in range(3)]
    numbers = ", ".join(f"axis {axis} {value:+.4f}" for axis, value in enumerate(alike))
    measured.append(f"correlation with the next value along each axis: {numbers}")
    ranked = sorted(range(3), key=alike.__getitem__)
    error = 1 / np.sqrt(values.size)
    deviations = (alike[ranked[1]] - alike[ranked[0]]) / error
    found = ORDERS_OF_TIME[ranked[0]] if deviations > MIN_DEVIATIONS else None
    verdict, is_right, order = _judge(sample.shape, found, deviations, question)
    if order is None:
        return Findings(verdict, is_right, tuple(measured))
    upright = values.transpose([order.index(axis) for axis in "THW"])
    start, stop = middle_ticks(upright.shape[0], upright.shape[1] * upright.shape[2])
    spikes = upright[start:stop, ::-1] if question.flip_rows else upright[start:stop]
    lines, warnings = describe_rate(spikes)
    if question.reference is not None:
        warnings.append("the reference is used with packed spikes only")
    warnings = [*([ROWS_FIRST] if question.axes is None else []), *warnings]
    block = Block(spikes, start, sample.shape[order.index("T")])
    return Findings(verdict, is_right, (*measured, *lines), tuple(warnings), block)


def _unfit(values: np.ndarray, question: Question, measured: list[str]) -> Findings | None:
    """Return findings where the values are no spikes: more than two of them, or all the same."""
    if np.any((values != 0) & (values != 1)):
        distinct = np.unique(values)
        listed = ", ".join(f"{value:g}" for value in distinct[:4].astype(float))
        verdict = (
            f"holds {len(distinct)} distinct values ({listed}, ...) instead of 0 and 1: no spikes"
        )
        if values.dtype != np.uint8:
            return Findings(verdict, False, tuple(measured))
        packed = inspect_bytes(
            np.ascontiguousarray(values).reshape(-1), replace(question, height=None, width=None)
        )
        return replace(
            packed,
            verdict=f"{verdict}, perhaps packed bytes taken for pixels; its bytes read as bits: "
            f"{packed.verdict}",
            is_right=False,
            measured=(*measured, *packed.measured),
        )
    if values.min() == values.max():
        verdict = f"all values are {values.min():g}: nothing shows the order of the axes"
        return Findings(verdict, False, tuple(measured))
    return None


def _judge(
    shape: Sequence[int], found: str | None, deviations: float, question: Question
) -> tuple[str, bool, str | None]:
    """Return the verdict, whether what was given can be right, and the order of axes to draw."""
    given = None if question.axes is None else question.axes.upper().replace("S", "T")
    if given is not None and sorted(given) != sorted("THW"):
        return f"axes {given!r} cannot be right: name T, H and W once each", False, found
    if found is None:
        verdict = (
            f"which axis is time cannot be known: no axis stands out ({deviations:.0f} deviations);"
            " noise, or ticks that all are the same"
        )
        return verdict, given is not None, given
    time = found.index("T")
    sure = f"values along it agree less than along the others, {deviations:.0f} deviations"
    if given is not None and given.index("T") != time:
        return f"axes {given} cannot be right: axis {time} is time ({sure}): {found}", False, found
    order = given or found
    size = shape[order.index("H")], shape[order.index("W")]
    if question.size is not None and question.size != size:
        height, width = question.size
        verdict = f"{height}x{width} cannot be right: axes {order} are {size_name(*size)}"
        return verdict, False, order
    ticks = shape[time]
    return f"axes {order}: {ticks} ticks of {size_name(*size)}; {sure}", True, order


def _next_alike(values: np.ndarray, axis: int) -> float:
    """Return the correlation of 0/1 values with their successors along an axis."""
    mean = float(values.mean(dtype=np.float64))
    moved = np.moveaxis(values, axis, 0)
    if len(moved) < 2 or mean in (0.0, 1.0):
        return 0.0
    both = float((moved[:-1] & moved[1:]).mean(dtype=np.float64))
    first, second = (float(part.mean(dtype=np.float64)) for part in (moved[:-1], moved[1:]))
    return (both - mean * (first + second) + mean * mean) / (mean * (1 - mean))
