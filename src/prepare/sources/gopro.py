"""GoPro in every layout that is published, and what is made of GOPRO_Large_all.

    GOPRO_Large/{train,test}/SEQ/{blur,blur_gamma,sharp}/NNNNNN.png    as released
    GOPRO_Large/{train_GT,train_GT_blurred,test_GT,...}/SEQ/NNNNNN.png as KAIR and VRT have it
    GOPRO_Large_all/{train,test}/SEQ/NNNNNN.png                        all source frames
    GOPRO_Large_spike_seq/{train,test}/SEQ/spike/NNNNNN.dat            spikes, one file per frame
    Spike_GOPRO_Large_all/{train,test}/SEQ/spike.dat                   spikes of whole sequences

What lies in a folder says what it is; names of the folders above the splits, their depth and the
case of all names do not matter. Source frames were taken at 240 per second.

A sequence is named `GOPRxxxx_nn_zz`: nn source frames make a blurry frame, and the exposures of a
sequence begin zz source frames early, so that blurry frame k is the mean of source frames
[k*n - zz, k*n - zz + n). Where zz > 0 the first exposure begins before the sequence: that frame is
dropped.

The names decide only where there is nothing to compare. With the pairs the offset of each sequence
is found by searching for its first sharp frame among the source frames, every pair is checked
against the source, and the released files are the blurry and sharp frames.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from src.data.description import FILE_NAME as DESCRIPTION_NAME
from src.data.errors import BadFileError, DataSetError, listed
from src.data.frames import list_sequences, read_image
from src.data.simulation.blur import SOURCE_FRAMES_PER_SECOND
from src.prepare.sources import planning
from src.prepare.sources.high_speed import HighSpeedFrames, open_frames
from src.prepare.sources.simulate import (
    SimulatedExposure,
    Simulation,
    completed,
    frame_exposure,
    planned,
    put_png,
    simulated_description,
)

ALL_FRAMES, PAIRS, SPIKES_PER_FRAME, SPIKE_STREAMS = DOWNLOADED = (
    *("GOPRO_Large_all", "GOPRO_Large", "GOPRO_Large_spike_seq", "Spike_GOPRO_Large_all"),
)
SPLIT_NAME = re.compile(r"(train|test)(?:_gt)?(?:_blur(?:red)?)?")
MAX_DEPTH = 3  # folders above a split that are walked
# What a sequence can have: folders, or the file of a stream. FOLDER is where it was seen first.
FOLDER, FRAMES, SPIKES, STREAM = "folder", "frames", "spike", "stream"
BLUR, BLUR_GAMMA, SHARP = PICTURES = "blur", "blur_gamma", "sharp"
NAMES = {BLUR: "blurry frames", BLUR_GAMMA: "blurry frames (gamma)", SHARP: "sharp frames"}
NAMES |= {FRAMES: "source frames", SPIKES: "spikes", STREAM: "spikes of whole sequences"}
# Released frames differ from recomputed ones by rounding only.
MAX_MEAN_ERROR = 1.0  # grey levels

ReleasedPairs = list[tuple[Path, Path]]  # blurry and sharp; the order is right, the numbers are not
Sequence = dict[str, Path]  # what it has -> where


def find_gopro(given: Path) -> dict[tuple[str, str], Sequence]:
    """Return (split, name) -> what there is of a sequence, in order; splits are train and test.

    Looked at is `given`, and what lies beside it where it is one of the downloaded folders.
    """
    known = [name.lower() for name in DOWNLOADED]
    roots = [given]
    if given.name.lower() in known:
        roots += [p for p in sorted(given.parent.iterdir()) if p.name.lower() in known]
    found: dict[tuple[str, str], Sequence] = defaultdict(dict)
    problems = []
    for folder in dict.fromkeys(split for root in roots for split in _splits(root, MAX_DEPTH)):
        split = SPLIT_NAME.fullmatch(folder.name.lower())[1]
        for sequence in list_sequences(folder):
            is_gopro = planning.GOPRO_NAME.fullmatch(sequence.name.upper())
            have = found[split, sequence.name.upper() if is_gopro else sequence.name]
            have.setdefault(FOLDER, sequence)
            for what, place in _parts_of(sequence).items():
                if have.setdefault(what, place) != place:
                    problems.append(f"{what} of {split}/{sequence.name}: {have[what]} and {place}")
    if problems:
        advice = "leave one of them; nothing says which is meant"
        raise DataSetError(f"{given}: found twice", [*problems[:5], advice])
    return dict(sorted(found.items()))


def split_folder(place: Path) -> Path:
    """Return the folder of the split in which something of a sequence lies."""
    return next(path for path in place.parents if SPLIT_NAME.fullmatch(path.name.lower()))


def understood(sequences: Mapping[tuple[str, str], Sequence]) -> list[str]:
    """Say where what was found, one line each."""
    places: dict[str, set[Path]] = defaultdict(set)
    for have in sequences.values():
        for what, place in have.items():
            if what in NAMES:
                places[what].add(split_folder(place))
    return [
        f"{NAMES[what]}: {listed([str(path) for path in sorted(paths)])}"
        for what, paths in sorted(places.items())
    ]


def _splits(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the folders of splits at or below a folder."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_dir():
            continue
        if SPLIT_NAME.fullmatch(path.name.lower()):
            yield path
        elif depth > 1 and not (path / DESCRIPTION_NAME).is_file():  # that is data of ours
            yield from _splits(path, depth - 1)


def _parts_of(sequence: Path) -> Sequence:
    """Return what the folder of a sequence holds."""
    inside = {path.name.lower(): path for path in sorted(sequence.iterdir())}
    parts = {what: inside[what] for what in (*PICTURES, SPIKES) if what in inside}
    for folder in (sequence, parts.get(SPIKES, sequence)):
        if (folder / planning.STREAM_NAME).exists():
            parts[STREAM] = folder / planning.STREAM_NAME
    endings = {path.suffix.lower() for path in inside.values()}
    if endings & set(planning.IMAGE_EXTS):
        split = sequence.parent.name.lower()
        parts[BLUR if "_blur" in split else SHARP if "_gt" in split else FRAMES] = sequence
    elif ".dat" in endings and STREAM not in parts:
        parts[SPIKES] = sequence
    return parts


def parse_name(folder: Path) -> tuple[int, int]:
    """Return what a folder `GOPRxxxx_nn_zz` says: frames averaged, and the offset."""
    match = planning.GOPRO_NAME.fullmatch(folder.name.upper())
    if match is None:
        reason = "is not a sequence of GoPro; they are named like GOPR0384_11_05"
    elif int(match[1]) % 2 == 0:
        reason = f"{int(match[1])} source frames have no middle one"
    else:
        return int(match[1]), int(match[2])
    raise DataSetError(str(folder), [f"{folder.name!r}: {reason}"])


def plan(options: planning.SourceOptions) -> planning.SourcePlan:
    """Return what to make of GOPRO_Large_all; see `SourceOptions`."""
    named = ("frames_averaged", "stride", "frames_per_second")
    planning.refuse_options(options, named, "the names of GoPro's sequences say it; leave it out")
    planning.refuse_options(
        options, planning.ARRAY_OPTIONS, "the sequences are frames, no spikes are read"
    )
    found = find_gopro(options.input)
    items = [(*key, have) for key, have in found.items() if FRAMES in have]
    if not items:
        planning.refuse_other(options.input, ALL_FRAMES, planning.GOPRO_FRAMES)
        reason = (
            f"holds no {ALL_FRAMES}/{{train,test}}/GOPRxxxx_nn_zz/*.png; name that folder, or the "
            "one that holds it"
        )
        raise DataSetError(str(options.input), [reason, *understood(found)])
    has_pairs = any(SHARP in have for have in found.values())
    cameras = completed(options, interpolator="linear", frames_per_second=SOURCE_FRAMES_PER_SECOND)
    items = ((*item, has_pairs, options.blur_kind, cameras) for item in items)
    sequences = planning.make_all(options.input, _sequence, items)
    notes = understood(found)
    if has_pairs:
        source = f"{ALL_FRAMES} with the pairs of {PAIRS}"
        others = [f"{split}/{name}" for (split, name), have in found.items() if FRAMES not in have]
        notes += [f"{where}: not made, {ALL_FRAMES} has no such sequence" for where in others]
    else:
        source = f"{ALL_FRAMES}, offsets of its clips by their names, unchecked"
        notes.append(
            f"no {PAIRS} beside {ALL_FRAMES}: blurry frames are computed, and the offsets of "
            "sequences are taken from their names without a check"
        )
    description = simulated_description(source, cameras, sequences)
    return planning.SourcePlan(tuple(sequences), description, tuple(notes))


def _sequence(
    split: str,
    name: str,
    have: Sequence,
    has_pairs: bool,
    blur_kind: str,
    cameras: planning.SourceOptions,
) -> planning.PlannedSequence:
    folder = have[FRAMES]
    averaged, named_offset = parse_name(folder)
    frames, pairs, offset, put = open_frames(folder), None, named_offset, put_png
    if has_pairs:
        pairs = list(released_pairs(have, blur_kind).values())
        offset = find_offset(pairs[0][1], frames, averaged, hint=named_offset)
        put = partial(put_released, pairs)
    num_ticks = len(frames) * cameras.ticks_per_frame
    count = (len(frames) + offset) // averaged if pairs is None else len(pairs)
    names = [f"{k:06d}" for k in range(count)]
    exposures, notes = exposures_of(names, num_ticks, averaged, offset, cameras.ticks_per_frame)
    facts = {"source": ALL_FRAMES, "frames_averaged": averaged, "offset": offset}
    if pairs is not None:
        if offset != named_offset:
            notes.append(f"offset {offset} found by its pixels, its name says {named_offset}")
        num_bytes = sum(planning.file_size(path) for pair in pairs for path in pair)
        facts |= {"pairs": len(pairs), "pairs_bytes": num_bytes}
    where = f"{planning.OUR_SPLITS[split]}/{name}"
    simulation = Simulation(where, frames, exposures, num_ticks, cameras, notes, put)
    return planned(simulation, facts)


def exposures_of(
    names: list[str], num_ticks: int, averaged: int, offset: int, ticks_per_frame: int
) -> tuple[list[SimulatedExposure], list[str]]:
    """Return the exposures [k*n - offset, k*n - offset + n) of frames, and notes on others."""
    exposures, notes = [], []
    for k, name in enumerate(names):
        exposure = frame_exposure(k, k * averaged - offset, averaged, ticks_per_frame)
        early, dropped = offset - k * averaged, f"frame {name} dropped: its exposure"
        if early > 0:
            notes.append(f"{dropped} begins {early} source frame(s) before the sequence")
        elif exposure.stop_tick > num_ticks:
            notes.append(f"{dropped} ends after tick {num_ticks}, the end of the sequence")
        else:
            exposures.append(exposure)
    return exposures, notes


# ---------------------------------------------------------------- the released pairs


def released_pairs(have: Sequence, blur_kind: str) -> dict[int, tuple[Path, Path]]:
    """Return number -> (blurry, sharp) of a sequence."""
    missing = [what for what in (blur_kind, SHARP) if what not in have]
    if missing:
        found = ", ".join(sorted(have.keys() - {FOLDER}))
        reason = f"no frames of kind {' and '.join(missing)}; found: {found}"
        hint = "; --blur_kind chooses between blur and blur_gamma" * (blur_kind in missing)
        raise DataSetError(str(have[FOLDER]), [reason + hint])
    return planning.find_pairs(have[blur_kind], have[SHARP], (".png",))


def find_offset(sharp: Path, frames: HighSpeedFrames, averaged: int, hint: int) -> int:
    """Return by how many source frames the exposures of a sequence begin early.

    The first sharp frame is source frame (n - 1) / 2 - offset; `hint` decides between equal ones.
    """
    middle = (averaged - 1) // 2
    first = read_image(sharp)
    errors = [mean_error(first, read_image(path)) for path in frames.files[: middle + 1]]
    best = int(np.argmin(errors))
    if 0 <= middle - hint < len(errors) and errors[middle - hint] == errors[best]:
        best = middle - hint
    if not errors[best] < MAX_MEAN_ERROR:
        reason = (
            f"sharp/{sharp.name} equals none of the first {len(errors)} source frames in "
            f"{frames.path}: the nearest is {frames.files[best].name} with a mean error of "
            f"{errors[best]:.2f} grey levels, below {MAX_MEAN_ERROR:g} is needed; is one of the "
            "two another version?"
        )
        raise DataSetError(str(sharp.parents[1]), [reason])
    return middle - best


def mean_error(image: np.ndarray, other: np.ndarray) -> float:
    """Return the mean absolute difference of two uint8 images; infinite where sizes differ."""
    if image.shape != other.shape:
        return float("inf")
    return float(np.abs(image.astype(np.int16) - other).mean())


def put_released(
    pairs: ReleasedPairs, folder: Path, exposure: SimulatedExposure, kind: str, image: np.ndarray
) -> None:
    """Copy the released frame of an exposure byte for byte under our name; see `put_png`."""
    released = pairs[exposure.index][kind == "sharp"]
    error = mean_error(read_image(released), image)
    if not error < MAX_MEAN_ERROR:
        made = "its source frame" if kind == "sharp" else "the mean of its source frames"
        raise BadFileError(
            released,
            f"differs from {made} by {error:.2f} grey levels on average, below "
            f"{MAX_MEAN_ERROR:g} is needed (frame {exposure.name} of ours); it is another version, "
            "or frames before it are missing",
        )
    planning.copy_file(released, folder / kind / f"{exposure.name}.png")
