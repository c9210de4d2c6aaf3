"""Write the user's own sequence in our layout, and prove its spikes on what was written."""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from src.data.errors import BadFileError
from src.data.exposures import EXPOSURES_NAME, frame_index, window_ticks, write_exposures
from src.data.spikes.arrays import array_shape
from src.data.spikes.convert import write_dat
from src.data.spikes.dense_files import EventFile
from src.data.spikes.spike_dat import write_sidecar
from src.data.spikes.spike_parts import SpikeParts, check_rate
from src.prepare.sources.copying import (
    STREAM_NAME,
    copy_file,
    file_size,
    pieces_sha256,
    refuse_cut_short,
    sample_sha256,
)
from src.prepare.sources.recorded_clip import DAT, DENSE, EVENTS, RecordedClip
from src.prepare.sources.recorded_proof import prove_recorded
from src.prepare.sources.source import listed

# What `.dat` files of ours look like, as the sensors write them.
OUR_BIT_ORDER, OUR_FLIP_ROWS = "little", True


@dataclass(frozen=True)
class RecordedJob:
    """Copies frames, converts spikes to `.dat`; see `ClipJob`.

    Attributes:
        clip: the sequence.
    """

    clip: RecordedClip

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
        """Frames and spike files."""
        return len(self.clip.blurry) + len(self.clip.spikes.files)

    @property
    def num_exposures(self) -> int:
        """Blurry frames."""
        return len(self.clip.blurry)

    @cached_property
    def out_bytes(self) -> int:
        """Frames as they are; spikes as they are packed, of a list no more than the list takes."""
        spikes = self.clip.spikes
        frames = sum(file_size(path) for path in (*self.clip.blurry, *self.clip.sharp))
        if spikes.layout != DENSE:
            return frames + sum(file_size(path) for path in spikes.files)
        shapes = [array_shape(path, spikes.key) for path in spikes.files]
        return frames + sum(math.prod(shape) // 8 for shape in shapes)

    @property
    def seconds(self) -> float:
        """From the first exposure to the end of the last."""
        exposures = self.clip.exposures.values()
        return max(e.t1 for e in exposures) - min(e.t0 for e in exposures)

    @cached_property
    def identity(self) -> Mapping[str, object]:
        """Everything the output depends on; where the input lies is not part of it."""
        clip, spikes = self.clip, self.clip.spikes
        paths = (*clip.blurry, *clip.sharp, *spikes.files)
        text = "\n".join(f"{path.parent.name}/{path.name} {file_size(path)}" for path in paths)
        text += "".join(f"\n{index} {exposure}" for index, exposure in clip.exposures.items())
        return {
            "source": "folders",
            "kind": "recorded frames and spikes",
            "spikes": spikes.describe(),
            "key": spikes.key,
            "bit_order": spikes.sidecar.bit_order,
            "flip_rows": spikes.sidecar.flip_rows,
            "inputs_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "spikes_sha256": pieces_sha256(spikes.files),
            "frames_sha256": sample_sha256([*clip.blurry, *clip.sharp]),
        }

    def write(self, folder: Path, advance: Callable[[int], None]) -> list[str]:
        """Write blur, sharp, spike and exposures.csv; return what the user should know.

        Raises:
            BadFileError: a file that cannot be read, spikes without a spike, or spikes that show
                the sharp frames elsewhere or better when read in another way.
            DataSetError: images whose end is missing.
        """
        clip = self.clip
        refuse_cut_short(f"{clip.split}/{clip.name}", (*clip.blurry, *clip.sharp))
        for blurry, sharp in zip(clip.blurry, clip.sharp, strict=True):
            for source, kind in ((blurry, "blur"), (sharp, "sharp")):
                copy_file(source, folder / kind / source.name)
            advance(1)
        write_exposures(folder / EXPOSURES_NAME, clip.exposures)
        targets = []
        for number in range(len(clip.spikes.files)):
            targets.append(self._convert(number, folder / "spike"))
            advance(1)
        sidecar = replace(clip.spikes.sidecar, bit_order=OUR_BIT_ORDER, flip_rows=OUR_FLIP_ROWS)
        write_sidecar(folder / "spike", sidecar)
        notes = [f"recorded frames; spikes: {clip.spikes.describe()}", *clip.notes]
        if not clip.spikes.is_per_frame:
            notes += self._leaving(SpikeParts(targets, sidecar.geometry).num_ticks)
        return [*notes, prove_recorded(clip, targets, sidecar.geometry)]

    def _convert(self, number: int, folder: Path) -> Path:
        """Write one spike file as `.dat` in our bit order; return its path."""
        spikes = self.clip.spikes
        path, stated = spikes.files[number], spikes.sidecar.geometry
        name = f"{self.clip.blurry[number].stem}.dat" if spikes.is_per_frame else STREAM_NAME
        ours = replace(stated, bit_order=OUR_BIT_ORDER, flip_rows=OUR_FLIP_ROWS)
        if spikes.layout == DAT and stated == ours:
            SpikeParts([path], stated).join_into(folder / name)
            return folder / name
        try:
            source = spikes.open(number)
            if spikes.layout == EVENTS:
                source.num_ticks = self._end_of(source)
            rate = write_dat(source, folder / name, ours)
        except (OSError, ValueError) as error:
            raise BadFileError(path, str(error).removeprefix(f"{path}: ")) from error
        check_rate(rate, path, source.num_ticks)
        return folder / name

    def _end_of(self, events: EventFile) -> int:
        """Return the ticks of a list of events: its last spike is not its end.

        The last exposure is, where it is near; a table in another unit must not make it longer.

        Raises:
            ValueError: times of another unit, or from another beginning than the exposures.
        """
        unit = events.time_step
        if unit > 1:
            raise ValueError(
                f"all times are multiples of {unit}, so they are no ticks; divide them by {unit}"
            )
        exposures = self.clip.exposures.values()
        rate = self.clip.spikes.sidecar.ticks_per_second
        windows = [window_ticks(e.t0, e.t1, rate) for e in exposures]
        last = max(stop for _, stop in windows)
        if events.first_tick >= last:
            raise ValueError(
                f"its spikes begin at tick {events.first_tick}, the exposures end at {last}; t "
                f"counts from time 0 of {EXPOSURES_NAME}: subtract where it begins"
            )
        longest = max(stop - start for start, stop in windows)
        end = events.num_ticks + min(longest, events.num_ticks)
        return max(events.num_ticks, min(end, last))

    def _leaving(self, num_ticks: int) -> list[str]:
        """Name the frames whose exposure leaves the stream.

        Raises:
            BadFileError: all of them do.
        """
        rate = self.clip.spikes.sidecar.ticks_per_second
        leaving = []
        for path in self.clip.blurry:
            exposure = self.clip.exposures[frame_index(path.stem)]
            start, stop = window_ticks(exposure.t0, exposure.t1, rate)
            if start < 0 or stop > num_ticks:
                leaving.append(path.stem)
        if len(leaving) == len(self.clip.blurry):
            raise BadFileError(
                self.clip.spikes.files[0],
                f"has {num_ticks} ticks, {num_ticks / rate:g} s at {rate:g} ticks/s; no exposure "
                f"of {EXPOSURES_NAME} lies in that. Is the tick rate right, and the unit of times?",
            )
        if not leaving:
            return []
        return [
            f"{len(leaving)} exposures leave the spikes, which have {num_ticks} ticks, and cannot "
            f"be used: {listed(leaving)}"
        ]
