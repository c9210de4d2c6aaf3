"""Decoded frames that are kept: on disk, where a crop is read without decoding, or in memory.

On disk, a folder `frame_cache` of a sequence holds `blur.npy` and `sharp.npy`, uint8 [N, H, W, 3],
and beside each a `.json` that names the files it was made from. Arrays are written frame by frame
under a partial name, and renamed when they are complete; a file that is newer than its array is
decoded again. Everything can be deleted at any time.
"""

import errno
import json
import logging
import math
import os
import shutil
import sys
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from src.data.errors import DAMAGED, BadFileError, DataSetError, listed
from src.data.frames import ImageReader, read_image
from src.data.parallel import locked, run_parallel, worthwhile_workers
from src.data.voxel_counts import Crop
from src.paths import atomic_write

logger = logging.getLogger(__name__)

FORMAT = 1
FOLDER = "frame_cache"
RESERVED_BYTES = 1 << 30  # of the disk, for checkpoints and logs
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
READS_PER_LOG_LINE = 10_000


# ---------------------------------------------------------------- on disk


@dataclass(frozen=True)
class StoredFrame:
    """Where a decoded frame lies: from byte `start` of the file at `path`, height and width."""

    path: Path
    start: int
    size: tuple[int, int]


class FrameStore:
    """Reads crops of stored frames; each reading maps one frame and copies the crop out of it."""

    def __init__(self, frames: Mapping[Path, StoredFrame]) -> None:
        self._frames = dict(frames)

    def __contains__(self, path: object) -> bool:
        return path in self._frames

    def __len__(self) -> int:
        return len(self._frames)

    def size_of(self, path: Path) -> tuple[int, int]:
        """Return height and width of a stored frame."""
        return self._frames[path].size

    def read(self, path: Path, crop: Crop | None = None) -> np.ndarray:
        """Return a copy of a stored frame: uint8 [h, w, 3], of the crop (y, x, h, w)."""
        frame = self._frames[path]
        y, x, height, width = crop or (0, 0, *frame.size)
        try:
            pixels = np.memmap(frame.path, np.uint8, "r", frame.start, (*frame.size, 3))
        except (OSError, ValueError) as error:
            raise BadFileError(frame.path, f"was changed while it was in use: {error}") from error
        return np.array(pixels[y : y + height, x : x + width], subok=False)


def _arrays_of(files: Iterable[Path]) -> dict[Path, list[Path]]:
    """Return the array that lies beside each folder -> the files of that folder."""
    arrays: dict[Path, list[Path]] = {}
    for path in files:
        array = path.parents[1] / FOLDER / f"{path.parent.name}.npy"
        arrays.setdefault(array, []).append(path)
    return arrays


def decoded_bytes(files: Iterable[Path]) -> int:
    """Return the bytes of all frames, from the first one of each folder that can be decoded."""
    total = 0
    for folder in _arrays_of(files).values():
        for path in folder:
            try:
                total += len(folder) * read_image(path).nbytes
                break
            except BadFileError:
                continue
    return total


def store_frames(
    files: Iterable[Path], root: Path, workers: int = 1
) -> tuple[FrameStore, list[str]]:
    """Bring the arrays of all files up to date; return what is stored, and lines on what was done.

    Files that cannot be decoded, or are not of the size of their folder's first, are left out and
    named. The disk of `root` must have room. Several processes may do so at once.
    """
    arrays = _arrays_of(files)
    stale = {array: files for array, files in arrays.items() if _stored(array, files) is None}
    lines = _make(stale, root, workers) if stale else []
    frames: dict[Path, StoredFrame] = {}
    left_out: list[str] = []
    for array, files in arrays.items():
        stored = _stored(array, files)
        frames |= stored or {}
        left_out += [] if stored is None else [str(path) for path in files if path not in stored]
    if not stale:
        lines.append(f"frame cache: {len(frames)} frames up to date")
    if left_out:
        lines.append(f"frame cache: cannot be read, or have another size: {listed(left_out, 5)}")
    return FrameStore(frames), lines


def _make(arrays: Mapping[Path, list[Path]], root: Path, workers: int) -> list[str]:
    """Write arrays where the disk has room for all of them; say what was done."""
    needed = decoded_bytes(path for files in arrays.values() for path in files)
    free = shutil.disk_usage(root).free
    what = f"frame cache: {len(arrays)} arrays of {needed / 1e9:.2f} GB below {root}"
    if needed + RESERVED_BYTES > free:
        return [
            f"{what} do not fit, {free / 1e9:.2f} GB are free; frames are decoded at every "
            "reading. Make room, or set DATA.FRAME_CACHE False"
        ]
    logger.info("%s, %.2f GB free", what, free / 1e9)
    workers = worthwhile_workers(workers, needed)
    for wait in (False, True):  # first what no other process holds
        tasks = [(array, files, wait) for array, files in arrays.items()]
        results = [why for _, why in run_parallel(_write, tasks, workers, "decoding frames")]
        problems = [f"frame cache: {why}; decoded at every reading" for why in results if why]
        if not problems:
            return [f"{what}: written"]
    return problems


def _write(task: tuple[Path, list[Path], bool]) -> str | None:
    """Write an array that is not fresh; return why it is not there, or None where it is."""
    array, files, wait = task
    try:
        with locked(array.with_suffix(".lock"), wait=wait) as is_mine:
            if not is_mine:
                return f"{array}: another process is writing it"
            if _stored(array, files) is None:
                _decode_all(array, files)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        return f"{array}: {error.strerror}"
    return None


def _decode_all(array: Path, files: list[Path]) -> None:
    """Decode the files one after the other into the array, then write what it was made from.

    A file that is left out has byte 0 in the index, and a black frame pads the array's end.
    """
    for left_over in array.parent.glob(f".partial-*-{array.name}"):
        left_over.unlink()  # of a process that was killed: this one holds the lock
    entries: dict[str, list[int]] = {}
    size, num_bytes = None, 0
    with atomic_write(array) as partial, partial.open("wb") as handle:
        for path in files:
            entries[path.name] = [*_identity(path), 0]
            try:
                image = read_image(path)
            except BadFileError:
                continue
            if size is None:
                size = image.shape[:2]
                header = {"descr": "|u1", "fortran_order": False}
                header["shape"] = (len(files), *image.shape)
                np.lib.format.write_array_header_1_0(handle, header)
                num_bytes = handle.tell() + len(files) * image.nbytes
            if image.shape[:2] == size:
                entries[path.name][2] = handle.tell()
                handle.write(image.data)
        handle.truncate(num_bytes)
    index = {"format": FORMAT, "size": size, "num_bytes": array.stat().st_size}
    with atomic_write(array.with_suffix(".json")) as partial:
        partial.write_text(json.dumps({**index, "files": entries}, indent=0), encoding="utf-8")


def _stored(array: Path, files: list[Path]) -> dict[Path, StoredFrame] | None:
    """Return where the frames of an array lie, without those left out; None if it is not fresh."""
    try:
        index = json.loads(array.with_suffix(".json").read_text(encoding="utf-8"))
        if index["format"] != FORMAT or array.stat().st_size != index["num_bytes"]:
            return None
        starts = _starts(array, index) if index["size"] else {}
        entries = {file: index["files"][file.name] for file in files}
        if any(start not in (0, starts.get(file.name)) for file, (*_, start) in entries.items()):
            return None
        if any([size, time] != _identity(file) for file, (size, time, _) in entries.items()):
            return None
        return {
            file: StoredFrame(array, start, tuple(index["size"]))
            for file, (_, _, start) in entries.items()
            if start
        }
    except DAMAGED:
        return None


def _starts(array: Path, index: Mapping) -> dict[str, int]:
    """Return where the frame of each file begins in an array that has the shape of its index."""
    shape, names = np.lib.format.open_memmap(array, mode="r").shape, index["files"]
    if shape != (len(names), *index["size"], 3):
        raise ValueError(f"{array} has shape {shape}")
    frame_bytes = math.prod(shape[1:])
    first = index["num_bytes"] - len(names) * frame_bytes
    stored = [name for name, (*_, start) in names.items() if start]  # side by side
    return {name: first + i * frame_bytes for i, name in enumerate(stored)}


def _identity(path: Path) -> list[int]:
    """Return size and time of a file; zeros where there is none."""
    try:
        status = path.stat()
    except OSError:
        return [0, 0]
    return [status.st_size, status.st_mtime_ns]


# ---------------------------------------------------------------- in memory


class FrameCache:
    """Reads images and keeps the latest ones, up to a number of bytes.

    Forked processes share what it holds by then; sent to a process in any other way it arrives
    empty.
    """

    def __init__(self, max_bytes: int, read: ImageReader = read_image) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = self.hits = self.misses = 0
        self._read_file = read
        self._images: OrderedDict[Path, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self._images)

    def __reduce__(self) -> tuple:
        return FrameCache, (self.max_bytes, self._read_file)

    @property
    def hit_rate(self) -> float:
        """Share of the reads that memory answered; 0 before the first."""
        return self.hits / max(1, self.hits + self.misses)

    def read(self, path: Path) -> np.ndarray:
        """Return an image, uint8 [H, W, 3], that must not be written to."""
        image = self._images.get(path)
        if image is None:
            self.misses += 1
            image = self._read_file(path)
            image.flags.writeable = False
            self._keep(path, image)
        else:
            self.hits += 1
            self._images.move_to_end(path)
        if (self.hits + self.misses) % READS_PER_LOG_LINE == 0:
            logger.info(
                "frame cache of process %d: %.0f %% of %d reads from memory, %.2f GB held",
                os.getpid(),
                100 * self.hit_rate,
                self.hits + self.misses,
                self.num_bytes / 1e9,
            )
        return image

    def _keep(self, path: Path, image: np.ndarray) -> None:
        if image.nbytes > self.max_bytes:
            return
        self._images[path] = image
        self.num_bytes += image.nbytes
        while self.num_bytes > self.max_bytes:
            self.num_bytes -= self._images.popitem(last=False)[1].nbytes


def preload(cache: FrameCache, files: list[Path]) -> None:
    """Read image files into the cache; a DataSetError where cache or free memory is too small.

    Files that cannot be read are left for the samples that need them to name.
    """
    needed, available = decoded_bytes(files), available_memory_bytes()
    what, problems = f"all decoded frames take {needed / 1e9:.2f} GB", []
    if needed > cache.max_bytes:
        limit = f"DATA.CACHE_SIZE_GB is {cache.max_bytes / 1e9:.2f}; raise it"
        problems.append(f"{what}, {limit}, or set DATA.PRELOAD False")
    if available is not None and needed > available:
        limit = f"this machine has {available / 1e9:.2f} GB free"
        problems.append(f"{what}, {limit}; set DATA.PRELOAD False")
    if problems:
        raise DataSetError("preloading", problems)
    unreadable = 0
    for path in tqdm(files, "preloading frames", unit="file", disable=not sys.stderr.isatty()):
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
    cache.hits = cache.misses = 0


def available_memory_bytes() -> int | None:
    """Return the memory that can be had without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    sizes = (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return next(sizes, None)
