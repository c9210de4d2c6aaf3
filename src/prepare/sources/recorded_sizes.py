"""What the user states of spikes that do not say it themselves: size, tick rate, order of axes."""

from itertools import permutations
from pathlib import Path

from src.data.description import DataDescription
from src.data.spikes.events import AXES, find_axes
from src.data.spikes.find import contradiction, described_sidecar, entries_of
from src.data.spikes.spike_dat import SpikeSidecar, read_sidecar
from src.prepare.sources.source import SourceOptions


def stated_sidecar(path: Path, description: DataDescription | None) -> SpikeSidecar | None:
    """Return what a file beside the spikes or dataset.yaml says of them; None: nothing.

    Raises:
        ValueError: the two contradict each other, or one cannot be read.
    """
    beside, overall = read_sidecar(path, entries_of(description)), described_sidecar(description)
    if beside is None or overall is None:
        return beside or overall
    problem = contradiction(path, beside, overall)
    if problem is not None:
        raise ValueError(f"{path}: {problem}")
    return beside


def with_rate(sidecar: SpikeSidecar, path: Path) -> SpikeSidecar:
    """Return a sidecar that states the tick rate.

    Raises:
        ValueError: it does not.
    """
    if sidecar.ticks_per_second is None:
        raise ValueError(
            f"{path} does not say ticks_per_second; write 'source: NAME' and 'ticks_per_second: "
            "20000' into dataset.yaml beside train and val, or ticks_per_second, height and width "
            f"into {path.with_name('spike.yaml')}"
        )
    return sidecar


def size_needed(path: Path) -> str:
    """Say what nobody states of packed spikes or a list, and where to write it."""
    sidecar = path.with_name("spike.yaml")  # holds for every file of its folder
    return (
        f"{path} does not say height, width and ticks_per_second; write lines like 'height: 250', "
        f"'width: 400' and 'ticks_per_second: 20000' into {sidecar}, or 'source: NAME', "
        "spike_height, spike_width and ticks_per_second into dataset.yaml beside train and val"
    )


def axes_and_size(
    shape: tuple[int, ...], stated: SpikeSidecar | None, options: SourceOptions, path: Path
) -> tuple[str, tuple[int, int]]:
    """Return the order of the axes of dense spikes, and height and width.

    Raises:
        ValueError: nobody says, or what is said does not fit the shape.
    """
    axes = None if options.axes is None else options.axes.upper().replace("T", "S")
    if stated is not None:
        if axes is not None and sorted(axes) == sorted(AXES):
            _refuse_axes(shape, stated, options.axes, path)
        fitting = _orders(shape, (stated.height, stated.width))
        if axes is None and len(fitting) > 1:
            raise ValueError(
                f"{path}: shape {shape} with a sensor of {stated.height}x{stated.width}; give "
                f"--axes {' or '.join(fitting)}"
            )
        axes = find_axes(shape, stated.height, stated.width, axes, path)
    if axes is None:
        raise ValueError(
            f"{path}: shape {shape}; state the order of its axes, such as --axes THW or --axes "
            f"HWT, or its size: {size_needed(path)}"
        )
    if sorted(axes) != sorted(AXES):
        raise ValueError(f"--axes {options.axes}: name T, H and W once each")
    return axes, (shape[axes.index("H")], shape[axes.index("W")])


def _refuse_axes(shape: tuple[int, ...], stated: SpikeSidecar, axes: str, path: Path) -> None:
    """Refuse an order of axes that does not fit the stated size; name the one that does.

    Raises:
        ValueError: it does not fit.
    """
    size = stated.height, stated.width
    orders = _orders(shape, size)
    if axes.upper().replace("S", "T") in orders:
        return
    found = "x".join(map(str, shape))
    advice = f"--axes {' or '.join(orders)} does" if orders else "no order does; correct the size"
    raise ValueError(
        f"{path}: --axes {axes} does not fit: the array is {found}, the sensor {size[0]}x{size[1]} "
        f"(height x width); {advice}"
    )


def _orders(shape: tuple[int, ...], size: tuple[int, int]) -> list[str]:
    """Return the orders of axes in which a shape has this height and width."""
    return [order for order in map("".join, permutations("THW")) if _size_by(shape, order) == size]


def _size_by(shape: tuple[int, ...], order: str) -> tuple[int, int]:
    return shape[order.index("H")], shape[order.index("W")]
