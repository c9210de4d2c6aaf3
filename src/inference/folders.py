"""Folders that a user gives for testing, joined frame by frame by name."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.data.datasets.voxelizer import ticks_per_bin
from src.data.description import read_description
from src.data.errors import BadFileError, DataSetError
from src.data.exposures import EXPOSURES_NAME, frame_index, read_exposures, window_ticks
from src.data.frames import list_frames, read_image
from src.data.spikes.find import described_sidecar, entries_of
from src.data.spikes.spike_dat import SpikeFile, SpikeGeometry, SpikeSidecar, read_sidecar
from src.data.voxel_counts import SpikeSource, count_source, read_index

BLUR_FOLDERS = ("blur",)
SHARP_FOLDERS = ("sharp",)
SPIKE_FOLDERS = ("spike_vox", "spike")
SPIKE_ENDINGS = (".npy", ".dat")


@dataclass(frozen=True)
class FolderFrame:
    """One frame to restore.

    Attributes:
        name: File name without ending, the same in all folders.
        blurry: Its image.
        spikes: The spikes of its exposure; None where none were given.
        sharp: The ground truth; None where none was given.
    """

    name: str
    blurry: Path
    spikes: SpikeSource | None = None
    sharp: Path | None = None


@dataclass(frozen=True)
class FolderSequence:
    """The frames of one sequence in the order of their names, numbers counting as numbers."""

    name: str
    frames: tuple[FolderFrame, ...]
    num_bins: int

    def __len__(self) -> int:
        return len(self.frames)

    def read_blurry(self, i: int) -> np.ndarray:
        """Return blurry frame `i` as uint8 RGB [H, W, 3]."""
        return read_image(self.frames[i].blurry)

    def read_sharp(self, i: int) -> np.ndarray:
        """Return sharp frame `i` as uint8 RGB [H, W, 3]."""
        return read_image(self.frames[i].sharp)

    def read_counts(self, i: int) -> np.ndarray:
        """Return the spike counts of frame `i`, [K, Hs, Ws]."""
        return count_source(self.frames[i].spikes, self.num_bins)

    def bin_ticks(self, i: int) -> np.ndarray:
        """Return the ticks of each bin of frame `i`: int64 [K].

        Raises:
            DataSetError: nobody says how many ticks were counted.
        """
        spikes = self.frames[i].spikes
        if spikes.num_ticks is None:
            raise DataSetError(
                str(spikes.path),
                [
                    "the model divides counts by the ticks of their bins (DATA.BIN_NORMALIZE), "
                    "and how many ticks these voxels hold is not known; give the .dat files "
                    "in place of the voxels, or leave the index.json beside them that "
                    "scripts/prepare_data.py wrote"
                ],
            )
        return ticks_per_bin(spikes.num_ticks, self.num_bins)


@dataclass(frozen=True)
class InputFolders:
    """What the user gave.

    Attributes:
        blurry: Folder of frames, of sequence folders, or of sequence folders with `blur` in them.
        spikes: The same with `.npy` counts (`spike_vox`) or `.dat` spikes (`spike`).
        sharp: The same with the ground truth (`sharp`).
        image_endings: Endings of image files.
        num_bins: Voxel bins per exposure, K.
        geometry: How bits lie in `.dat` files; None: as the files beside them say.
    """

    blurry: Path
    spikes: Path | None
    sharp: Path | None
    image_endings: tuple[str, ...]
    num_bins: int
    geometry: SpikeGeometry | None = None


def find_sequences(inputs: InputFolders) -> list[FolderSequence]:
    """Return all sequences, sorted by name, every frame with its partners.

    Files without a blurry frame of their name are passed over.

    Raises:
        DataSetError: naming every frame or sequence that lacks a partner, folders without frames,
            and spikes of unknown geometry.
    """
    blurry = _sequence_folders(inputs.blurry, BLUR_FOLDERS, inputs.image_endings)
    spikes = sharp = None
    if inputs.spikes is not None:
        spikes = _sequence_folders(inputs.spikes, SPIKE_FOLDERS, SPIKE_ENDINGS)
    if inputs.sharp is not None:
        sharp = _sequence_folders(inputs.sharp, SHARP_FOLDERS, inputs.image_endings)
    problems: list[str] = []
    sequences = []
    for name, folder in blurry.items():
        spike_folder = _partner(name, blurry, spikes, inputs.spikes, problems)
        sharp_folder = _partner(name, blurry, sharp, inputs.sharp, problems)
        frames = list_frames(folder, inputs.image_endings)
        names = sorted(frames, key=_natural_order)
        try:
            found = {} if spike_folder is None else _spikes_of(spike_folder, names, inputs)
        except (BadFileError, DataSetError) as error:
            problems.append(str(error))
            continue
        clear = {} if sharp_folder is None else list_frames(sharp_folder, inputs.image_endings)
        if spike_folder is not None:
            problems.extend(_missing(name, names, found, spike_folder, "spikes"))
        if sharp_folder is not None:
            problems.extend(_missing(name, names, clear, sharp_folder, "sharp frame"))
        members = [FolderFrame(n, frames[n], found.get(n), clear.get(n)) for n in names]
        sequences.append(FolderSequence(name, tuple(members), inputs.num_bins))
    if problems:
        raise DataSetError(str(inputs.blurry), problems)
    return sequences


def _sequence_folders(
    root: Path, inner_names: tuple[str, ...], endings: tuple[str, ...]
) -> dict[str, Path]:
    """Return sequence name -> folder that holds its files; one entry if `root` is a sequence."""
    if not root.is_dir():
        reason = "is a file; name the folder that holds it" if root.exists() else "no such folder"
        raise DataSetError(str(root), [reason])
    here = _folder_with_files(root, inner_names, endings)
    if here is not None:
        name = root.resolve().name
        return {root.resolve().parent.name if name in inner_names else name: here}
    found = {}
    for entry in sorted(root.iterdir(), key=lambda path: _natural_order(path.name)):
        if entry.is_dir() and not entry.name.startswith("."):
            folder = _folder_with_files(entry, inner_names, endings)
            if folder is not None:
                found[entry.name] = folder
    if not found:
        places = " or ".join([str(root), f"{root}/SEQ", *(f"{root}/SEQ/{n}" for n in inner_names)])
        raise DataSetError(str(root), [f"no {', '.join(endings)} files in {places}"])
    return found


def _folder_with_files(
    folder: Path, inner_names: tuple[str, ...], endings: tuple[str, ...]
) -> Path | None:
    for candidate in (folder, *(folder / name for name in inner_names)):
        if candidate.is_dir() and any(
            path.suffix.lower() in endings and not path.name.startswith(".")
            for path in candidate.iterdir()
        ):
            return candidate
    return None


def _partner(
    name: str,
    blurry: Mapping[str, Path],
    others: Mapping[str, Path] | None,
    root: Path | None,
    problems: list[str],
) -> Path | None:
    """Return the folder that belongs to a sequence; a lone one belongs to a lone one."""
    if others is None:
        return None
    if len(blurry) == len(others) == 1:
        return next(iter(others.values()))
    if name not in others:
        problems.append(f"sequence {name} is not in {root}, which has {', '.join(others)}")
    return others.get(name)


def _missing(
    sequence: str, names: list[str], partners: Mapping[str, object], folder: Path, what: str
) -> list[str]:
    missing = [name for name in names if name not in partners]
    if not missing:
        return []
    return [f"{sequence}: no {what} in {folder} for {len(missing)} frames: {', '.join(missing)}"]


def _spikes_of(folder: Path, names: list[str], inputs: InputFolders) -> dict[str, SpikeSource]:
    """Return frame name -> spikes for one folder of voxels or of `.dat` files."""
    voxels = list_frames(folder, [".npy"])
    if voxels:
        return _voxel_sources(folder, voxels)
    files = list_frames(folder, [".dat"])
    only = next(iter(files.values()))
    if len(files) == 1 and (len(names) > 1 or only.stem not in names):
        return _cut_stream(only, names, inputs)
    return {name: _whole_file(path, inputs) for name, path in files.items() if name in names}


def _voxel_sources(folder: Path, voxels: Mapping[str, Path]) -> dict[str, SpikeSource]:
    """Return the voxels of each frame, with their ticks where the index beside them says so."""
    index = read_index(folder)
    sources = {}
    for name, path in voxels.items():
        entry = index.get(name)
        start, stop = (0, 0) if entry is None else (entry.start, entry.stop)
        sources[name] = SpikeSource(path, None, start, stop)
    return sources


def _whole_file(path: Path, inputs: InputFolders) -> SpikeSource:
    geometry = _geometry(path, inputs, _stated(path))
    try:
        return SpikeSource(path, geometry, 0, SpikeFile(path, geometry).num_ticks)
    except ValueError as error:
        raise BadFileError(path, str(error)) from error


def _cut_stream(path: Path, names: list[str], inputs: InputFolders) -> dict[str, SpikeSource]:
    """Return the ticks of every exposure in the one stream of a sequence."""
    stated = _stated(path)
    geometry = _geometry(path, inputs, stated)
    ticks_per_second = None if stated is None else stated.ticks_per_second
    if ticks_per_second is None:
        problem = f"{path.name} is a stream, but no file beside it says ticks_per_second"
        raise DataSetError(str(path), [problem])
    exposures = read_exposures(path.parent.parent / EXPOSURES_NAME, ticks_per_second)
    sources = {}
    for name in names:
        exposure = exposures.get(frame_index(name))
        if exposure is not None:
            start, stop = window_ticks(exposure.t0, exposure.t1, ticks_per_second)
            sources[name] = SpikeSource(path, geometry, start, stop)
    return sources


def _stated(path: Path) -> SpikeSidecar | None:
    """Return what a file beside a `.dat` and a dataset.yaml above say of it; None: nothing."""
    overall = None
    for folder in list(path.resolve().parents)[:4]:
        overall = overall or read_description(folder)
    return read_sidecar(path, entries_of(overall)) or described_sidecar(overall)


def _geometry(path: Path, inputs: InputFolders, stated: SpikeSidecar | None) -> SpikeGeometry:
    """Return how the bits lie: as the command line says, else as stated.

    Raises:
        DataSetError: nobody says.
    """
    if inputs.geometry is not None:
        return inputs.geometry
    if stated is None:
        problem = "the size of the spike sensor is not known; give it as --spike_size HEIGHT WIDTH"
        raise DataSetError(str(path), [problem])
    return stated.geometry


def _natural_order(name: str) -> list[tuple[str, int]]:
    """Return a key that sorts `f2` before `f10`."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]
