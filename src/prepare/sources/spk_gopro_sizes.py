"""The size of published spikes: stated by a config.yaml, or half that of the frames; checked."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from src.data.errors import BadFileError, DataSetError
from src.data.spikes.spike_dat import SpikeGeometry, locate_sidecar
from src.prepare.sources.copying import STREAM_NAME, file_size
from src.prepare.sources.source import MAX_NAMES
from src.prepare.sources.video import image_size


def geometry_of(root: Path, files: Sequence[Path], frame: Path) -> SpikeGeometry:
    """Return how the bits lie: as a config.yaml says, else half the size of the frames.

    Args:
        root: the downloaded folder of spikes.
        files: spikes of the clip.
        frame: one of its frames.

    Raises:
        BadFileError: an unreadable file, or a size of another shape than the frames.
    """
    try:
        located = locate_sidecar(files[0]) or locate_sidecar(root / STREAM_NAME)
    except ValueError as error:
        raise BadFileError(files[0], str(error)) from error
    height, width = image_size(frame)
    if located is None:
        return SpikeGeometry(height // 2, width // 2)
    path, sidecar = located
    if sidecar.height * width != sidecar.width * height:
        raise BadFileError(
            path,
            f"says height {sidecar.height} and width {sidecar.width} of the spikes, which is not "
            f"the shape of frames of {height}x{width}; published spikes have half their size: "
            f"correct it to {height // 2} and {width // 2}. What the files themselves show: "
            f"python scripts/inspect_spikes.py {shlex.quote(str(files[0]))}",
        )
    return sidecar.geometry


def check_sizes(files: Sequence[Path], geometry: SpikeGeometry, ticks: int, is_whole: bool) -> None:
    """Refuse parts that are not one exposure long; only the last may end early.

    Args:
        files: the parts, or the stream of the clip.
        geometry: how their bits lie.
        ticks: of an exposure.
        is_whole: whether `files` is the stream of the clip, which may have any whole ticks.

    Raises:
        DataSetError: every part that does not fit.
    """
    problems = []
    for path in files:
        found, rest = divmod(file_size(path), geometry.tick_bytes)
        is_short_end = not rest and 0 < found < ticks and path == files[-1]
        if rest or not (is_whole or found == ticks or is_short_end):
            problems.append(
                f"{path.name}: {file_size(path)} bytes are "
                f"{file_size(path) / geometry.tick_bytes:.2f} ticks of "
                f"{geometry.height}x{geometry.width}; "
                + ("whole ticks are needed" if is_whole else f"{ticks} ticks are needed")
            )
    if problems:
        more = [f"and {len(problems) - MAX_NAMES} more"] if len(problems) > MAX_NAMES else []
        advice = "the size comes from config.yaml beside the spikes, or is half that of the frames"
        raise DataSetError(str(files[0].parent), [*problems[:MAX_NAMES], *more, advice])
