"""Folders or a video that the user gives for testing: sequences, read by the rules of training."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from src.data.description import find_description
from src.data.errors import BadFileError, DataSetError, listed, problems_of
from src.data.exposures import EXPOSURES_NAME, read_exposures
from src.data.frames import ImageReader, list_frames, read_image
from src.data.recordings import Recording
from src.data.scanning import (
    PER_FRAME,
    STREAM,
    Parts,
    ScanSettings,
    by_reason,
    find_spikes,
    join_frames,
    number_frames,
)
from src.data.video import VideoInput
from src.data.voxel_counts import INDEX_NAME, read_index

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InputFolders:
    """What the user gives for testing."""

    blurry: Path  # folder of frames, of sequences, or a video
    spikes: Path | None = None  # the same with `.npy` counts or `.dat` spikes
    sharp: Path | None = None  # the same with the ground truth
    spike_size: tuple[int, int] | None = None  # of `.dat` spikes; None: as files say
    frames: Mapping[str, Path] = field(default_factory=dict)  # by name, of a video
    read: ImageReader = read_image


def find_inputs(
    blurry: Path,
    spikes: Path | None = None,
    sharp: Path | None = None,
    spike_size: tuple[int, int] | None = None,
) -> InputFolders:
    """Return what the user gives for testing, where `blurry` may be a video."""
    inputs = InputFolders(blurry, spikes, sharp, spike_size)
    if not blurry.is_file():
        return inputs
    video = VideoInput(blurry)
    for note in video.notes:
        logger.info("%s: %s", blurry, note)
    return replace(inputs, frames=video.frames, read=video.read)


def scan_inputs(inputs: InputFolders, settings: ScanSettings) -> list[Recording]:
    """Return all sequences of the folders given for testing, sorted by name.

    The rules are those of `scan_sequence`, but a frame without spikes or sharp frame, where these
    are given, is an error. Spikes in `SEQ/spike` are counted where stored counts are out of date.
    """
    images = settings.image_exts
    if inputs.frames:
        blurry = {inputs.blurry.stem: inputs.blurry}
    else:
        blurry = _find_folders(inputs.blurry, ("blur",), images)
    sharp = spikes = None
    if inputs.sharp is not None:
        sharp = _find_folders(inputs.sharp, ("sharp",), images)
    if inputs.spikes is not None:
        inner = dict.fromkeys((settings.voxel_dir, settings.spike_dir, "spike_vox", "spike"))
        spikes = _find_folders(inputs.spikes, tuple(inner), (".npy", ".dat"))
    problems: list[str] = []
    recordings = []
    for name, folder in blurry.items():
        try:
            frames = inputs.frames or list_frames(folder, images)
            indices = number_frames(folder, frames)
            truth = None
            if sharp is not None:
                truth = list_frames(_partner(name, blurry, sharp, inputs.sharp), images)
            parts = Parts(settings.num_bins, truth)
            if spikes is not None:
                partner = _partner(name, blurry, spikes, inputs.spikes)
                parts = _with_spikes(parts, partner, frames, inputs.spike_size, settings)
        except (BadFileError, DataSetError) as error:
            problems += problems_of(error)
            continue
        found, dropped = join_frames(name, parts, frames, indices)
        problems += [by_reason(dropped)] if dropped else []
        recordings.append(Recording(name, found, settings.num_bins, inputs.read))
    if problems:
        raise DataSetError(str(inputs.blurry), problems)
    return recordings


def _with_spikes(
    parts: Parts,
    folder: Path,
    blurry: Mapping[str, Path],
    size: tuple[int, int] | None,
    settings: ScanSettings,
) -> Parts:
    """Return the parts of a sequence with the spikes in a folder of `.npy` or `.dat` files."""
    folder = folder.absolute()  # "." has no name and no parent
    bits = folder.with_name(settings.spike_dir)
    is_cache = (folder / INDEX_NAME).is_file() and bool(list_frames(bits, [".dat"]))
    if not is_cache:  # what is given is all there is; voxels count before bits
        bits = folder / "none" if list_frames(folder, [".npy"]) else folder
    spikes = find_spikes(bits, folder, find_description(folder), blurry, size)
    table, rate = bits.parent / EXPOSURES_NAME, spikes.ticks_per_second
    exposures = None
    can_check_lengths = spikes.kind == PER_FRAME and rate is not None and table.is_file()
    if spikes.kind == STREAM or can_check_lengths:
        exposures = read_exposures(table, rate)
    cache = {"voxel_folder": folder, "index": read_index(folder), "counts_stale": True}
    return replace(parts, spikes=spikes, exposures=exposures, **(cache if is_cache else {}))


def _find_folders(
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
    entries = [entry for entry in root.iterdir() if entry.is_dir() and entry.name[0] != "."]
    found = {
        entry.name: folder
        for entry in sorted(entries, key=_natural_order)
        if (folder := _folder_with_files(entry, inner_names, endings)) is not None
    }
    if not found:
        folders = [str(root), f"{root}/SEQ", *(f"{root}/SEQ/{n}" for n in inner_names)]
        raise DataSetError(str(root), [f"no {', '.join(endings)} files in {' or '.join(folders)}"])
    return found


def _folder_with_files(
    folder: Path, inner_names: tuple[str, ...], endings: tuple[str, ...]
) -> Path | None:
    for candidate in (folder, *(folder / name for name in inner_names)):
        files = candidate.iterdir() if candidate.is_dir() else ()
        if any(path.suffix.lower() in endings and path.name[0] != "." for path in files):
            return candidate
    return None


def _partner(name: str, blurry: Mapping[str, Path], others: Mapping[str, Path], root: Path) -> Path:
    """Return the folder that belongs to a sequence; a lone one belongs to a lone one."""
    if len(blurry) == len(others) == 1:
        return next(iter(others.values()))
    if name not in others:
        raise DataSetError(
            str(root), [f"sequence {name} is not in it; it has {listed(list(others))}"]
        )
    return others[name]


def _natural_order(path: Path) -> list[tuple[str, int]]:
    """Return a key that sorts `f2` before `f10`."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", path.name)]
