"""Spike camera recordings in `.dat` files: one bit per pixel and tick, and the YAML beside them.

A `.dat` file has no header. Tick follows tick, in a tick row follows row, and eight pixels share a
byte, the first one in the least significant bit. The sensor stores rows bottom-up, so an upright
image needs its rows reversed. Height, width, tick rate and threshold are not in the file; they come
from a sidecar (ours, or the `config.yaml` of SpikeCV) or from the user. Errors are a ValueError
that names the file.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np
import yaml

from src.data.errors import BadFileError, other_kind, refuse_other_kind
from src.data.yaml_text import load_plain_mapping, read_small_text, states_key
from src.paths import atomic_write

SIDECAR_NAME = "spike.yaml"
SPIKECV_NAME = "config.yaml"
SPIKECV_SIZES = {"spike_h": "height", "spike_w": "width"}
BIT_ORDERS = ("little", "big")
NUMBER = (int, float, type(None))
LARGEST = sys.float_info.max  # whole numbers above it cannot be multiplied by times
UNPACKED_BYTES = 32 << 20  # of spikes that are held in memory to be packed

USUAL_SIZES = {
    (250, 400): "first spike camera, REDS sets",
    (250, 416): "first spike camera with 16 header columns at the right, which are not pixels",
    (360, 640): "Spk-GoPro",
    (384, 384): "Spk-X4K",
    (180, 320): "S-SDM GoPro",
    (250, 250): "UHSR",
    (96, 128): "the demo data",
    (1000, 1000): "SPS100",
    (1000, 1024): "SPS100 with its synchronization columns",
    (720, 1280): "full GoPro frames",
}


@dataclass(frozen=True)
class SpikeGeometry:
    """How the bits of one tick lie in the file."""

    height: int
    width: int
    bit_order: str = "little"  # "little": the first of eight pixels is the least significant bit
    flip_rows: bool = True  # the file stores the bottom row first

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"spike size {self.height}x{self.width}: both must be at least 1")
        if self.bit_order not in BIT_ORDERS:
            raise ValueError(f"bit_order is {self.bit_order!r}; write one of {BIT_ORDERS}")
        if self.height * self.width % 8:
            raise ValueError(
                f"spike size {self.height}x{self.width}: {self.height * self.width} pixels are no "
                "multiple of 8, and readers disagree how such a tick is padded; crop or pad the "
                "recording to a width that is a multiple of 8"
            )

    @property
    def tick_bytes(self) -> int:
        """Bytes of one tick."""
        return self.height * self.width // 8


class TickReader(Protocol):
    """Something that gives ranges of its ticks, such as `SpikeFile`."""

    num_ticks: int

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return ticks [start, stop) upright as 0 and 1: uint8 [S, H, W]."""
        ...


class SpikeFile:
    """One `.dat` file, of which ranges of ticks are read; it holds no open file."""

    def __init__(self, path: str | Path, geometry: SpikeGeometry) -> None:
        self.path = Path(path)
        self.geometry = geometry
        size = self.path.stat().st_size
        self.num_ticks, rest = divmod(size, geometry.tick_bytes)
        if rest or self.num_ticks == 0:
            if (kind := other_kind(self.path)) is not None:
                raise ValueError(f"{self.path}: is {kind}")
            raise ValueError(f"{self.path}: {_why_no_whole_ticks(size, geometry)}")

    def packed(
        self,
        start: int,
        stop: int,
        rows: tuple[int, int] | None = None,
        together: int | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield ticks [start, stop) as stored: uint8 [n, h, W/8], valid until the next block.

        `together` is n; `rows` are the first row and the row after the last, in file order. Others
        are not read. Rows are read, not mapped: pages of a map would be fetched one by one, at
        twice the cost.
        """
        height, width = self.geometry.height, self.geometry.width
        if width % 8:
            raise ValueError(
                f"{self.path}: rows of {width} pixels do not start at whole bytes; use read()"
            )
        check_range(self.path, start, stop, self.num_ticks)
        top, bottom = rows or (0, height)
        first, last, together = top * width // 8, bottom * width // 8, together or stop - start
        buffer = np.empty((min(together, stop - start), last - first), np.uint8)
        for begin in range(start, stop, together):
            block = buffer[: stop - begin]
            self._fill(block, begin, first)
            yield block.reshape(len(block), bottom - top, width // 8)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return ticks [start, stop) upright as 0 and 1: uint8 [S, H, W]."""
        check_range(self.path, start, stop, self.num_ticks)
        stored = np.empty((stop - start, self.geometry.tick_bytes), np.uint8)
        self._fill(stored, start, 0)
        bits = np.unpackbits(stored, axis=1, bitorder=self.geometry.bit_order)
        bits = bits.reshape(stop - start, self.geometry.height, self.geometry.width)
        return np.ascontiguousarray(bits[:, ::-1]) if self.geometry.flip_rows else bits

    def _fill(self, block: np.ndarray, begin: int, first_byte: int) -> None:
        """Read bytes of ticks from `begin` on, each from its byte `first_byte` on: [n, bytes]."""
        tick_bytes = self.geometry.tick_bytes
        is_whole = block.shape[1] == tick_bytes  # then they lie side by side
        with self.path.open("rb", buffering=0) as file:
            for i, piece in enumerate(block.reshape(1, -1) if is_whole else block):
                file.seek((begin + i) * tick_bytes + first_byte)
                rest = memoryview(piece)
                while len(rest):  # a single read may bring less
                    num_read = file.readinto(rest)
                    if not num_read:
                        raise ValueError(
                            f"{self.path}: has become shorter than the {self.num_ticks} ticks that "
                            "it had when it was opened; copy it again"
                        )
                    rest = rest[num_read:]


class SpikeParts:
    """Files in order of time; the first tick of each follows the last of the one before."""

    def __init__(self, paths: Sequence[Path], geometry: SpikeGeometry) -> None:
        self.geometry = geometry
        self.files = []
        for path in paths:
            refuse_other_kind(path)
            try:
                self.files.append(SpikeFile(path, geometry))
            except (OSError, ValueError) as error:
                raise BadFileError(path, str(error).removeprefix(f"{path}: ")) from error
        self._starts = [0, *accumulate(file.num_ticks for file in self.files)]
        self.num_ticks = self._starts[-1]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return ticks [start, stop) upright as 0 and 1: uint8 [S, H, W]."""
        check_range(self.files[0].path, start, stop, self.num_ticks)
        return np.concatenate(
            [
                file.read(max(start - begin, 0), min(stop - begin, file.num_ticks))
                for file, begin in zip(self.files, self._starts, strict=False)
                if begin < stop and start < begin + file.num_ticks
            ]
        )


def write_spikes(path: str | Path, spikes: np.ndarray, geometry: SpikeGeometry) -> None:
    """Write upright spikes [S, H, W] of 0 and 1 to a `.dat` file, whole or not at all."""
    spikes = np.asarray(spikes)
    if spikes.ndim != 3 or spikes.shape[1:] != (geometry.height, geometry.width) or not len(spikes):
        raise ValueError(
            f"{path}: spikes have shape {spikes.shape}; [S, {geometry.height}, {geometry.width}] "
            "with at least one tick is needed"
        )
    check_binary(spikes, path)
    with atomic_write(path) as partial:
        partial.write_bytes(pack_spikes(spikes.astype(np.uint8, copy=False), geometry))


def pack_spikes(spikes: np.ndarray, geometry: SpikeGeometry) -> bytes:
    """Return upright spikes [S, H, W] of 0 and 1 as the bytes of a `.dat` file, unchecked."""
    stored = spikes[:, ::-1] if geometry.flip_rows else spikes
    packed = np.packbits(stored.reshape(len(spikes), -1), axis=1, bitorder=geometry.bit_order)
    return packed.tobytes()


def write_dat(source: TickReader, path: Path, geometry: SpikeGeometry, origin: Path) -> None:
    """Write all ticks of `source` to a `.dat`, whole or not at all; never a dead stream."""
    ones, step = 0, max(UNPACKED_BYTES // (geometry.height * geometry.width), 1)
    with atomic_write(path) as partial:
        with partial.open("wb") as target:
            for start in range(0, source.num_ticks, step):
                spikes = source.read(start, min(start + step, source.num_ticks))
                if spikes.shape[1:] != (geometry.height, geometry.width):
                    needed = f"{geometry.height}x{geometry.width} is needed"
                    raise ValueError(f"{origin}: ticks of {spikes.shape[1:]}, {needed}")
                ones += int(np.count_nonzero(spikes))
                target.write(pack_spikes(spikes, geometry))
        num_pixels = source.num_ticks * geometry.height * geometry.width
        check_rate(ones / num_pixels, origin, source.num_ticks)


def check_range(path: Path, start: int, stop: int, num_ticks: int) -> None:
    """Refuse ticks [start, stop) that are none, or do not all lie in [0, num_ticks)."""
    if not 0 <= start < stop <= num_ticks:
        raise ValueError(
            f"{path}: ticks [{start}, {stop}) requested, the file has [0, {num_ticks}); check the "
            "exposure times, the tick rate and the spike size"
        )


def check_binary(spikes: np.ndarray, where: str | Path) -> None:
    """Refuse values other than 0 and 1."""
    if spikes.dtype != np.bool_ and np.any((spikes != 0) & (spikes != 1)):
        raise ValueError(
            f"{where}: values from {spikes.min()} to {spikes.max()}; only 0 and 1 are spikes "
            "(packed bytes and counts are not)"
        )


def check_rate(rate: float, path: Path, num_ticks: int) -> None:
    """Refuse a stream without any spike or without any pause, by a BadFileError."""
    if rate in (0.0, 1.0):
        found = "no spike at all" if rate == 0 else "nothing but spikes"
        raise BadFileError(
            path, f"has {found} in {num_ticks} ticks; this is no recording, copy the file again"
        )


@dataclass(frozen=True)
class SpikeSidecar:
    """What a `.dat` file does not say about itself; None where the source does not say it."""

    height: int
    width: int
    ticks_per_second: float | None = None
    threshold: float | None = None  # in full-scale intensity times ticks
    bit_order: str = "little"
    flip_rows: bool = True

    def __post_init__(self) -> None:
        _ = self.geometry  # refuses what cannot be

    @property
    def geometry(self) -> SpikeGeometry:
        """The part that reading bits needs."""
        return SpikeGeometry(self.height, self.width, self.bit_order, self.flip_rows)


def read_sidecar(
    dat_path: str | Path, otherwise: Mapping[str, object] | None = None
) -> SpikeSidecar | None:
    """Return what a sidecar of `dat_path` states, see `locate_sidecar`, or None."""
    found = locate_sidecar(dat_path, otherwise)
    return None if found is None else found[1]


def locate_sidecar(
    dat_path: str | Path, otherwise: Mapping[str, object] | None = None
) -> tuple[Path, SpikeSidecar] | None:
    """Return the sidecar of `dat_path` and what it states; None where there is none.

    It is `<stem>.yaml` beside it, `spike.yaml` in its folder, or a SpikeCV `config.yaml` with
    `spike_h` and `spike_w` there or up to two folders above. Entries of `otherwise` hold where it
    states none.
    """
    dat_path = Path(dat_path)
    for path in (dat_path.with_suffix(".yaml"), dat_path.parent / SIDECAR_NAME):
        if path.is_file():
            return path, _parse_sidecar(path, _read_mapping(path), otherwise or {})
    for folder in list(dat_path.absolute().parents)[:3]:
        path = folder / SPIKECV_NAME
        if not states_key(path, *SPIKECV_SIZES):  # another program's
            continue
        entries = _read_mapping(path)
        missing = [key for key in SPIKECV_SIZES if key not in entries]
        if missing:
            raise ValueError(f"{path}: {missing[0]} is missing; spike_h and spike_w are needed")
        sizes = {ours: entries[theirs] for theirs, ours in SPIKECV_SIZES.items()}
        return path, _parse_sidecar(path, sizes, otherwise or {})
    return None


def write_sidecar(folder: str | Path, sidecar: SpikeSidecar) -> Path:
    """Write `spike.yaml` for all `.dat` files of `folder`; return its path."""
    path = Path(folder) / SIDECAR_NAME
    with atomic_write(path) as partial:
        partial.write_text(yaml.safe_dump(asdict(sidecar), sort_keys=False), encoding="utf-8")
    return path


def _read_mapping(path: Path) -> dict[str, object]:
    return load_plain_mapping(read_small_text(path), str(path))


def _parse_sidecar(path: Path, entries: dict, otherwise: Mapping[str, object]) -> SpikeSidecar:
    """Complete a sidecar's entries with others, and check names, types and values."""
    entries = {**entries, **{k: v for k, v in otherwise.items() if entries.get(k) is None}}
    kinds = {
        "height": int,
        "width": int,
        "ticks_per_second": NUMBER,
        "threshold": NUMBER,
        "bit_order": str,
        "flip_rows": bool,
    }
    problems = [f"unknown key {key!r}" for key in entries if key not in kinds]
    problems += [f"{key} is missing" for key in ("height", "width") if key not in entries]
    for key in (key for key in kinds if key in entries):
        value = entries[key]
        if not isinstance(value, kinds[key]) or (isinstance(value, bool) and key != "flip_rows"):
            problems.append(f"{key} is {value!r}")
        elif kinds[key] == NUMBER and value is not None and not 0 < value <= LARGEST:
            problems.append(f"{key} is {value!r}, it must be above 0 and finite")
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}; known keys: {', '.join(kinds)}")
    try:
        return SpikeSidecar(**entries)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _why_no_whole_ticks(size: int, geometry: SpikeGeometry) -> str:
    """Say which sizes fit, and which usual sensor sizes would fit this file."""
    tick_bytes = geometry.tick_bytes
    ticks = size // tick_bytes
    nearest = [f"{n * tick_bytes} ({n} ticks)" for n in (ticks, ticks + 1) if n > 0]
    others = [
        f"{height}x{width} ({8 * size // (height * width)} ticks)"
        for height, width in USUAL_SIZES
        if size and 8 * size % (height * width) == 0
    ]
    hint = f"; usual sizes that divide the file: {', '.join(others)}" if others else ""
    return (
        f"{size} bytes are {size / tick_bytes:.2f} ticks of {geometry.height}x{geometry.width} "
        f"({tick_bytes} bytes each); sizes that fit: {', '.join(nearest)}{hint}. Correct the spike "
        "size; if the file was cut short, copy or download it again"
    )
