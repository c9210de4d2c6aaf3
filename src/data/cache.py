"""Decoded frames kept in memory: a least-recently-used cache with a byte limit, and its filling."""

import logging
import os
import sys
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from src.data.errors import BadFileError, DataSetError
from src.data.frames import read_image
from src.data.recordings import ImageReader, Recording

logger = logging.getLogger(__name__)

READS_PER_LOG_LINE = 10_000


@dataclass
class CacheStatistics:
    """What a cache did so far: answered from memory, read from disk, thrown out."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of the reads that memory answered; 0 before the first."""
        reads = self.hits + self.misses
        return self.hits / reads if reads else 0.0


class FrameCache:
    """Reads images and keeps the latest ones, up to a number of bytes.

    Every process has its own. A cache that was filled before worker processes are forked is shared
    with them; sent to a process in any other way it arrives empty.

    Args:
        max_bytes: most bytes of pixels to keep.
        read: reads a file that is not kept.
    """

    def __init__(self, max_bytes: int, read: ImageReader = read_image) -> None:
        self.max_bytes = max_bytes
        self.statistics = CacheStatistics()
        self.num_bytes = 0
        self._read_file = read
        self._images: OrderedDict[Path, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self._images)

    def __getstate__(self) -> dict:
        return {"max_bytes": self.max_bytes, "read": self._read_file}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

    def read(self, path: Path) -> np.ndarray:
        """Return an image, uint8 [H, W, 3], that must not be written to.

        Raises:
            BadFileError: the file cannot be read; nothing is kept then.
        """
        image = self._images.get(path)
        if image is None:
            self.statistics.misses += 1
            image = self._read_file(path)
            image.flags.writeable = False
            self._keep(path, image)
        else:
            self.statistics.hits += 1
            self._images.move_to_end(path)
        self._log_now_and_then()
        return image

    def _keep(self, path: Path, image: np.ndarray) -> None:
        if image.nbytes > self.max_bytes:
            return
        self._images[path] = image
        self.num_bytes += image.nbytes
        while self.num_bytes > self.max_bytes:
            _, oldest = self._images.popitem(last=False)
            self.num_bytes -= oldest.nbytes
            self.statistics.evictions += 1

    def _log_now_and_then(self) -> None:
        numbers = self.statistics
        if (numbers.hits + numbers.misses) % READS_PER_LOG_LINE == 0:
            logger.info(
                "frame cache of process %d: %.0f %% of %d reads from memory, %.2f GB held",
                os.getpid(),
                100 * numbers.hit_rate,
                numbers.hits + numbers.misses,
                self.num_bytes / 1e9,
            )


def preload(cache: FrameCache, recordings: Iterable[Recording]) -> None:
    """Read all frames of the recordings into the cache, with a progress bar.

    Files that cannot be read are left for the samples that need them to name.

    Raises:
        DataSetError: they do not fit into the cache or into free memory; nothing was read.
    """
    recordings = list(recordings)
    needed = sum(estimate_bytes(recording) for recording in recordings)
    _refuse_if_too_large(needed, cache.max_bytes, available_memory_bytes())
    paths = [path for r in recordings for frame in r.frames for path in (frame.blurry, frame.sharp)]
    unreadable = 0
    for path in tqdm(paths, "preloading frames", unit="file", disable=not sys.stderr.isatty()):
        try:
            cache.read(path)
        except BadFileError:
            unreadable += 1
    logger.info(
        "preloaded %d frames, %.2f GB; %d could not be read",
        len(cache),
        cache.num_bytes / 1e9,
        unreadable,
    )
    cache.statistics = CacheStatistics()


def estimate_bytes(recording: Recording) -> int:
    """Return the bytes that all blurry and sharp frames of a recording take when decoded."""
    try:
        height, width = recording.frame_size
    except BadFileError:
        return 0
    return 2 * len(recording) * height * width * 3


def available_memory_bytes() -> int | None:
    """Return the memory that can be had without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _refuse_if_too_large(needed: int, limit: int, available: int | None) -> None:
    problems = []
    if needed > limit:
        problems.append(
            f"all decoded frames take {needed / 1e9:.2f} GB, DATA.CACHE_SIZE_GB is "
            f"{limit / 1e9:.2f}; raise it, or set DATA.PRELOAD False"
        )
    if available is not None and needed > available:
        problems.append(
            f"all decoded frames take {needed / 1e9:.2f} GB, this machine has "
            f"{available / 1e9:.2f} GB free; set DATA.PRELOAD False"
        )
    if problems:
        raise DataSetError("preloading", problems)
