"""Which spike files a sequence has, and which ticks of them belong to a frame."""

import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from src.data.description import DataDescription
from src.data.errors import BadFileError, DataSetError
from src.data.exposures import SNAP_TICKS, Exposure, window_ticks
from src.data.frames import list_frames
from src.data.spikes.spike_dat import (
    SIDECAR_NAME,
    SpikeFile,
    SpikeGeometry,
    SpikeSidecar,
    locate_sidecar,
)
from src.data.voxel_counts import SpikeSource, VoxelEntry, read_index

PER_FRAME, STREAM, VOXELS = "per frame", "stream", "voxels"
STATED = ("height", "width", "ticks_per_second", "bit_order", "flip_rows")


@dataclass(frozen=True)
class SequenceSpikes:
    """The spikes of one sequence.

    Attributes:
        kind: "per frame" (each `.dat` covers exactly the exposure of the frame of its name),
            "stream" (one `.dat` of the whole sequence) or "voxels" (`.npy` files, no spikes).
        files: name without ending -> file; empty for a stream.
        stream: the file of a stream.
        geometry: how bits lie; None for voxels.
        ticks_per_second: None where no file states it.
        index: of voxels, the entries of the index beside them, by frame name.
    """

    kind: str
    files: Mapping[str, Path]
    stream: Path | None
    geometry: SpikeGeometry | None
    ticks_per_second: float | None
    index: Mapping[str, VoxelEntry] = field(default_factory=dict)

    @property
    def kind_of_file(self) -> str:
        """What one of the files is called in messages."""
        return "voxel file" if self.kind == VOXELS else "spike file"

    def source_of(self, name: str, exposure: Exposure | None) -> SpikeSource:
        """Return where the spikes of a frame are.

        Only a stream needs its exposure, in seconds from the start of the sequence. A ValueError
        says that there is no file of this name or that it has not as many ticks, or that the
        exposure leaves the stream; a BadFileError, that a file cannot be read as spikes.
        """
        if self.stream is None and name not in self.files:
            raise ValueError(f"no {self.kind_of_file} of this name")
        path = self.stream or self.files[name]
        if self.kind == VOXELS:
            entry = self.index.get(name)
            is_of_it = entry is not None and entry.is_of(path)
            ticks = (entry.start, entry.stop) if is_of_it else (0, 0)
            return SpikeSource(path, None, *ticks)
        try:
            num_ticks = SpikeFile(path, self.geometry).num_ticks
        except (OSError, ValueError) as error:
            raise BadFileError(path, str(error)) from error
        rate = self.ticks_per_second
        if self.stream is None:
            if exposure is not None and rate is not None:
                expected = (exposure.t1 - exposure.t0) * rate
                if abs(expected - num_ticks) >= 1 - SNAP_TICKS:  # may be rounded up or down
                    raise ValueError(
                        f"exposure and spike file differ in length: [{exposure.t0:g} s, "
                        f"{exposure.t1:g} s) is {expected:.6g} ticks, the file has {num_ticks}"
                    )
            return SpikeSource(path, self.geometry, 0, num_ticks)
        if rate is None:
            raise ValueError(f"{path.name} is a stream, but ticks_per_second is not known")
        start, stop = window_ticks(exposure.t0, exposure.t1, rate)
        if start < 0 or stop > num_ticks:
            raise ValueError(
                f"exposure leaves the stream: [{exposure.t0:g} s, {exposure.t1:g} s) is ticks "
                f"[{start}, {stop}) of {path.name}, which has [0, {num_ticks})"
            )
        return SpikeSource(path, self.geometry, start, stop)


def find_spikes(
    spike_folder: Path,
    voxel_folder: Path,
    description: DataDescription | None,
    blurry_names: Collection[str],
    size: tuple[int, int] | None = None,
) -> SequenceSpikes:
    """Return the spikes of a sequence; `size` as in `stated_spikes`.

    A single `.dat` beside several blurry frames is the stream of the sequence; otherwise each
    `.dat` belongs to the frame of its name. Without `.dat` the voxel files are the spikes.
    """
    files = list_frames(spike_folder, [".dat"])
    if not files:
        voxels = list_frames(voxel_folder, [".npy"])
        if not voxels:
            problem = (
                f"no .dat files in {spike_folder.name} and no .npy files in {voxel_folder.name}"
            )
            raise DataSetError(str(spike_folder.parent), [problem])
        rate = None if description is None else description.ticks_per_second
        return SequenceSpikes(VOXELS, voxels, None, None, rate, read_index(voxel_folder))
    first = next(iter(files.values()))
    known = stated_spikes(first, description, size)
    for path in files.values():
        if path.with_suffix(".yaml").is_file() and stated_spikes(path, description, size) != known:
            raise DataSetError(str(path), [f"its .yaml differs from that of {first.name}"])
    if len(files) == 1 and set(files) != set(blurry_names):
        return SequenceSpikes(STREAM, {}, first, known.geometry, known.ticks_per_second)
    return SequenceSpikes(PER_FRAME, files, None, known.geometry, known.ticks_per_second)


def stated_spikes(
    path: Path, description: DataDescription | None, size: tuple[int, int] | None = None
) -> SpikeSidecar:
    """Return what is known about a `.dat`: from the file beside it, else from dataset.yaml.

    These, and `size`, height and width that the user states, must not contradict each other.
    """
    try:
        beside = locate_sidecar(path, entries_of(description))
        overall = described_sidecar(description)
        given = None if size is None else SpikeSidecar(*size, **entries_of(description))
    except ValueError as error:
        raise DataSetError(str(path), [str(error)]) from error
    stated = [(str(beside[0]), beside[1], ())] if beside else []
    stated += [("dataset.yaml of the data root", overall, STATED)] if overall else []
    stated += [("--spike_size", given, ("height", "width"))] if given else []
    if not stated:
        raise DataSetError(
            str(path),
            [
                "the size of the spike sensor is not known; a .dat file does not hold it. Write "
                f"{path.parent / SIDECAR_NAME} with lines like 'height: 250', 'width: 400', "
                "'ticks_per_second: 20000', or spike_height, spike_width and ticks_per_second "
                "into dataset.yaml at the data root; src/test.py takes it as --spike_size "
                "HEIGHT WIDTH too"
            ],
        )
    file, first, _ = stated[0]
    for other, sidecar, names in stated[1:]:
        values = {name: (getattr(first, name), getattr(sidecar, name)) for name in names}
        values = {name: v for name, v in values.items() if None not in v and v[0] != v[1]}
        if values:
            was, now = (
                ", ".join(f"{name}: {_yaml(v[side])}" for name, v in values.items())
                for side in (0, 1)
            )
            raise DataSetError(
                str(path),
                [
                    f"{file} says {was}, {other} says {now}; correct the one that is wrong. python "
                    f"scripts/inspect_spikes.py {shlex.quote(str(path))} shows what fits"
                ],
            )
    return first


def _yaml(value: object) -> str:
    """Return a number, word or truth value as YAML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def described_sidecar(description: DataDescription | None) -> SpikeSidecar | None:
    """Return what a description states of all spikes; None where it does not state their size."""
    if description is None or description.spike_height is None or description.spike_width is None:
        return None
    size = description.spike_height, description.spike_width
    return SpikeSidecar(*size, **entries_of(description))


def entries_of(description: DataDescription | None) -> dict[str, object]:
    """Return what a description states for sidecars that do not state it."""
    names = ("ticks_per_second", "threshold", "bit_order", "flip_rows")
    return {} if description is None else {name: getattr(description, name) for name in names}
