"""One spike stream that is stored in one or several consecutive `.dat` files."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import numpy as np

from src.data.errors import BadFileError
from src.data.spikes.spike_dat import SpikeFile, SpikeGeometry
from src.paths import atomic_write

CHUNK_BYTES = 4 << 20
_ONES = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


class SpikeParts:
    """Files that abut: the first tick of each follows the last of the one before.

    Args:
        paths: the files in order of time; at least one.
        geometry: how their bits lie.

    Raises:
        BadFileError: a file that cannot be opened or is no whole number of ticks.
    """

    def __init__(self, paths: Sequence[Path], geometry: SpikeGeometry) -> None:
        self.geometry = geometry
        self.files = tuple(_open(path, geometry) for path in paths)
        self._starts = [0, *accumulate(file.num_ticks for file in self.files)]

    @property
    def num_ticks(self) -> int:
        """Ticks of all files together."""
        return self._starts[-1]

    def path_at(self, tick: float) -> Path:
        """Return the file that holds a tick; the first or last one where none does."""
        number = bisect_right(self._starts, tick) - 1
        return self.files[min(max(number, 0), len(self.files) - 1)].path

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return ticks [start, stop) upright as 0 and 1: uint8 [S, H, W].

        Raises:
            ValueError: the range leaves the stream.
        """
        if not 0 <= start < stop <= self.num_ticks:
            raise ValueError(
                f"{self.files[0].path}: ticks [{start}, {stop}) asked, the stream has "
                f"[0, {self.num_ticks})"
            )
        pieces = []
        while start < stop:
            part = bisect_right(self._starts, start) - 1
            begin = self._starts[part]
            end = min(stop, self._starts[part + 1])
            pieces.append(self.files[part].read(start - begin, end - begin))
            start = end
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def join_into(self, path: Path, advance: Callable[[int], None] | None = None) -> float:
        """Write all files as one, in pieces, whole or not at all; return the rate of spikes.

        Args:
            path: the `.dat` to write.
            advance: called with the number of files done since the last call.

        Raises:
            BadFileError: no spike at all, or nothing but spikes; nothing is written then.
        """
        ones = 0
        with atomic_write(path) as partial:
            with partial.open("wb") as target:
                for file in self.files:
                    ones += _append(file.path, target)
                    if advance is not None:
                        advance(1)
            rate = ones / (self.num_ticks * self.geometry.height * self.geometry.width)
            check_rate(rate, self.files[0].path, self.num_ticks)
        return rate


def check_rate(rate: float, path: Path, num_ticks: int) -> None:
    """Refuse a stream without any spike or without any pause.

    Raises:
        BadFileError: the rate is 0 or 1.
    """
    if rate in (0.0, 1.0):
        found = "no spike at all" if rate == 0 else "nothing but spikes"
        raise BadFileError(
            path, f"has {found} in {num_ticks} ticks; this is no recording, copy the file again"
        )


def _open(path: Path, geometry: SpikeGeometry) -> SpikeFile:
    try:
        return SpikeFile(path, geometry)
    except (OSError, ValueError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise BadFileError(path, reason) from error


def _append(path: Path, target: BinaryIO) -> int:
    """Copy a file in pieces; return the number of ones in it."""
    ones = 0
    with path.open("rb") as source:
        while chunk := source.read(CHUNK_BYTES):
            ones += int(_ONES[np.frombuffer(chunk, np.uint8)].sum(dtype=np.int64))
            target.write(chunk)
    return ones
