"""One clip of GOPRO_Large with its published spikes: its windows, and writing it as a sequence."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from src.data.errors import BadFileError
from src.data.exposures import EXPOSURES_NAME, frame_index
from src.data.simulation.blur import (
    SOURCE_FRAMES_PER_SECOND,
    TICKS_PER_SOURCE_FRAME,
    BlurWindow,
    blur_window,
)
from src.data.spikes.spike_dat import SpikeGeometry, SpikeSidecar, write_sidecar
from src.data.spikes.spike_parts import SpikeParts
from src.paths import atomic_write
from src.prepare.sources.copying import (
    STREAM_NAME,
    copy_file,
    file_size,
    pieces_sha256,
    refuse_cut_short,
)

TICKS_PER_SECOND = float(SOURCE_FRAMES_PER_SECOND * TICKS_PER_SOURCE_FRAME)
THRESHOLD = 2.0  # of the published spikes
EXPOSURES_IN_TICKS = "frame_idx,t0[ticks],t1[ticks],t_sharp[ticks]"


@dataclass(frozen=True)
class SpkGoproClip:
    """The files of one clip, found and counted but not read.

    Attributes:
        split: our split.
        name: of the clip, GOPRxxxx_nn_zz.
        n: source frames averaged.
        zz: the offset that the name states.
        blur_kind: "blur" or "blur_gamma".
        blurry, sharp: the frames in order; the same names.
        spikes: the stream of the clip, or its consecutive parts in order.
        is_whole: whether `spikes` is the published stream of the clip.
        is_joined_by_order: whether parts and frames have different names.
        geometry: how the bits lie.
        source_frames: folder of all frames of the clip, None where it was not downloaded.
    """

    split: str
    name: str
    n: int
    zz: int
    blur_kind: str
    blurry: tuple[Path, ...]
    sharp: tuple[Path, ...]
    spikes: tuple[Path, ...]
    is_whole: bool
    is_joined_by_order: bool
    geometry: SpikeGeometry
    source_frames: Path | None = None

    @property
    def where(self) -> str:
        """What messages call the clip."""
        return f"{self.split}/{self.name}"

    def windows(self, offset: int) -> tuple[list[tuple[int, BlurWindow]], list[str]]:
        """Return (k, window) of the frames whose exposure lies in the stream, and who does not.

        Raises:
            BadFileError: more than the last frame ends after the stream, or no frame is left.
        """
        num_ticks = SpikeParts(self.spikes, self.geometry).num_ticks
        windows, dropped, late = [], [], []
        for k, path in enumerate(self.blurry):
            if k * self.n < offset:
                before = offset - k * self.n
                dropped.append(
                    f"{self.where}: {path.stem} is left out: its exposure begins {before} source "
                    "frame(s) before the recording"
                )
                continue
            window = blur_window(k, self.n, offset)
            if window.stop_tick > num_ticks:
                late.append(path.stem)
                continue
            windows.append((k, window))
        if not windows and not late:
            raise BadFileError(
                self.blurry[0].parent,
                f"the exposures of all its {len(self.blurry)} frames begin before the recording "
                f"({offset} source frames early); leave the clip out",
            )
        if len(late) > 1 or not windows:
            raise BadFileError(
                self.spikes[0],
                f"the spikes of {self.where} have {num_ticks} ticks, its {len(self.blurry)} frames "
                f"of {TICKS_PER_SOURCE_FRAME * self.n} need "
                f"{TICKS_PER_SOURCE_FRAME * self.n * len(self.blurry)}; files are cut short, copy "
                "them again",
            )
        dropped += [
            f"{self.where}: {stem} is left out: its exposure ends after tick {num_ticks}, the end "
            "of the spikes"
            for stem in late
        ]
        return windows, dropped


@dataclass(frozen=True)
class SpkGoproJob:
    """Write one clip: frames copied, spikes as one stream, windows in ticks; see `ClipJob`."""

    clip: SpkGoproClip
    offset: int

    @property
    def split(self) -> str:
        """Our split."""
        return self.clip.split

    @property
    def name(self) -> str:
        """Folder of the sequence."""
        return self.clip.name

    @property
    def num_units(self) -> int:
        """Files to copy."""
        return len(self.clip.blurry) + len(self.clip.spikes)

    @cached_property
    def num_exposures(self) -> int:
        """Blurry frames that will be written."""
        return len(self.clip.windows(self.offset)[0])

    @cached_property
    def out_bytes(self) -> int:
        """Bytes of all files that are copied."""
        return sum(size for _, size in self._inputs())

    @property
    def seconds(self) -> float:
        """Length of the recording."""
        return len(self.clip.blurry) * self.clip.n / SOURCE_FRAMES_PER_SECOND

    @cached_property
    def identity(self) -> Mapping[str, object]:
        """Everything the output depends on."""
        clip = self.clip
        listing = "\n".join(f"{name} {size}" for name, size in self._inputs())
        return {
            "source": "spk_gopro",
            "clip": clip.where,
            "frames_averaged": clip.n,
            "offset": self.offset,
            "blur_kind": clip.blur_kind,
            "spikes": "stream of the clip" if clip.is_whole else "one file per frame",
            "spike_size": [clip.geometry.height, clip.geometry.width],
            "inputs_sha256": hashlib.sha256(listing.encode()).hexdigest(),
            "spikes_sha256": pieces_sha256(clip.spikes),
        }

    def write(self, folder: Path, advance: Callable[[int], None]) -> list[str]:
        """Write blur, sharp, spike and exposures.csv; return the frames left out, as sentences.

        Raises:
            BadFileError: a file that cannot be read, or spikes without a spike.
            DataSetError: images whose end is missing.
        """
        clip = self.clip
        windows, notes = clip.windows(self.offset)
        used = [k for k, _ in windows]
        images = [frames[k] for frames in (clip.blurry, clip.sharp) for k in used]
        refuse_cut_short(clip.where, images)
        stream = SpikeParts(clip.spikes, clip.geometry)
        stream.join_into(folder / "spike" / STREAM_NAME, advance)
        geometry = clip.geometry
        sidecar = SpikeSidecar(geometry.height, geometry.width, TICKS_PER_SECOND, THRESHOLD)
        write_sidecar(folder / "spike", sidecar)
        rows = [EXPOSURES_IN_TICKS]
        for k, window in windows:
            blurry, sharp = clip.blurry[k], clip.sharp[k]
            for source, kind in ((blurry, "blur"), (sharp, "sharp")):
                copy_file(source, folder / kind / source.name)
            times = window.start_tick, window.stop_tick, window.start_tick + window.sharp_tick
            rows.append(",".join(map(str, (frame_index(blurry.stem), *times))))
            advance(1)
        advance(len(clip.blurry) - len(windows))
        with atomic_write(folder / EXPOSURES_NAME) as path:
            path.write_text("\n".join(rows) + "\n", encoding="utf-8")
        return notes

    def _inputs(self) -> list[tuple[str, int]]:
        """Return name and size of every input file."""
        paths = (*self.clip.blurry, *self.clip.sharp, *self.clip.spikes)
        return [(f"{path.parent.name}/{path.name}", file_size(path)) for path in paths]
