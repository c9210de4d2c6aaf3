"""GOPRO_Large_all: all sharp frames at 240 per second; GOPRO_Large beside it: the released pairs.

A sequence is named `GOPRxxxx_nn_zz`: nn source frames make a blurry frame, and the exposures of a
sequence begin zz source frames early, so that blurry frame k is the mean of source frames
[k*n - zz, k*n - zz + n). Where zz > 0 the first exposure begins before the sequence: that frame is
dropped.

The names decide only where there is nothing to compare. With the pairs the offset of each sequence
is found by searching for its first sharp frame among the source frames, every pair is checked
against the source, and the released files are the blurry and sharp frames.
"""

from functools import partial
from pathlib import Path

import numpy as np

from src.data.errors import BadFileError, DataSetError
from src.data.frames import read_image
from src.data.simulation.blur import SOURCE_FRAMES_PER_SECOND
from src.prepare.sources.frames import HighSpeedFrames, open_frames
from src.prepare.sources.gopro_folders import (
    ALL_FRAMES,
    FOLDER,
    FRAMES,
    PAIRS,
    SHARP,
    Sequence,
    find_gopro,
    understood,
)
from src.prepare.sources.plan import (
    ARRAY_OPTIONS,
    GOPRO_FRAMES,
    GOPRO_NAME,
    OUR_SPLITS,
    PlannedSequence,
    SourceOptions,
    SourcePlan,
    copy_file,
    file_size,
    find_pairs,
    make_all,
    refuse_options,
    refuse_other,
)
from src.prepare.sources.simulate import (
    SimulatedExposure,
    Simulation,
    completed,
    frame_exposure,
    planned,
    put_png,
    simulated_description,
)

# Released frames differ from recomputed ones by rounding only.
MAX_MEAN_ERROR = 1.0  # grey levels

ReleasedPairs = list[tuple[Path, Path]]  # blurry and sharp; the order is right, the numbers are not


def parse_name(folder: Path) -> tuple[int, int]:
    """Return what a folder `GOPRxxxx_nn_zz` says: frames averaged, and the offset."""
    match = GOPRO_NAME.fullmatch(folder.name.upper())
    if match is None:
        reason = "is not a sequence of GoPro; they are named like GOPR0384_11_05"
    elif int(match[1]) % 2 == 0:
        reason = f"{int(match[1])} source frames have no middle one"
    else:
        return int(match[1]), int(match[2])
    raise DataSetError(str(folder), [f"{folder.name!r}: {reason}"])


def plan(options: SourceOptions) -> SourcePlan:
    """Return what to make of GOPRO_Large_all; see `SourceOptions`."""
    named = ("frames_averaged", "stride", "frames_per_second")
    refuse_options(options, named, "the names of GoPro's sequences say it; leave it out")
    refuse_options(options, ARRAY_OPTIONS, "the sequences are frames, no spikes are read")
    found = find_gopro(options.input)
    items = [(*key, have) for key, have in found.items() if FRAMES in have]
    if not items:
        refuse_other(options.input, ALL_FRAMES, GOPRO_FRAMES)
        reason = (
            f"holds no {ALL_FRAMES}/{{train,test}}/GOPRxxxx_nn_zz/*.png; name that folder, or the "
            "one that holds it"
        )
        raise DataSetError(str(options.input), [reason, *understood(found)])
    has_pairs = any(SHARP in have for have in found.values())
    cameras = completed(options, interpolator="linear", frames_per_second=SOURCE_FRAMES_PER_SECOND)
    items = ((*item, has_pairs, options.blur_kind, cameras) for item in items)
    sequences = make_all(options.input, _sequence, items)
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
    return SourcePlan(tuple(sequences), description, tuple(notes))


def _sequence(
    split: str, name: str, have: Sequence, has_pairs: bool, blur_kind: str, cameras: SourceOptions
) -> PlannedSequence:
    folder = have[FRAMES]
    averaged, named_offset = parse_name(folder)
    frames, pairs, offset, put = open_frames(folder), None, named_offset, put_png
    if has_pairs:
        pairs = list(released_pairs(have, blur_kind).values())
        offset = find_offset(pairs[0][1], frames, averaged, hint=named_offset)
        put = partial(put_released, pairs)
    exposures, notes = exposures_of(len(frames), averaged, offset, cameras.ticks_per_frame)
    facts = {"source": ALL_FRAMES, "frames_averaged": averaged, "offset": offset}
    if pairs is not None:
        first_late = exposures[-1].index + 1 if exposures else 0
        notes += [
            f"frame {k:06d} dropped: its exposure ends after the source frames"
            for k in range(first_late, len(pairs))
        ]
        exposures = [exposure for exposure in exposures if exposure.index < len(pairs)]
        if offset != named_offset:
            notes.append(f"offset {offset} found by its pixels, its name says {named_offset}")
        num_bytes = sum(file_size(path) for pair in pairs for path in pair)
        facts |= {"pairs": len(pairs), "pairs_bytes": num_bytes}
    where = f"{OUR_SPLITS[split]}/{name}"
    num_ticks = len(frames) * cameras.ticks_per_frame
    simulation = Simulation(where, frames, exposures, num_ticks, cameras, notes, put)
    return planned(simulation, facts)


def exposures_of(
    num_frames: int, averaged: int, offset: int, ticks_per_frame: int
) -> tuple[list[SimulatedExposure], list[str]]:
    """Return the exposures [k*n - offset, k*n - offset + n) of a sequence, and notes on others."""
    starts = {k: k * averaged - offset for k in range((num_frames + offset) // averaged)}
    notes = [
        f"frame {k:06d} dropped: its exposure begins {-start} source frame(s) before the sequence"
        for k, start in starts.items()
        if start < 0
    ]
    exposures = [
        frame_exposure(k, start, averaged, ticks_per_frame)
        for k, start in starts.items()
        if start >= 0
    ]
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
    return find_pairs(have[blur_kind], have[SHARP], (".png",))


def find_offset(sharp: Path, frames: HighSpeedFrames, averaged: int, hint: int) -> int:
    """Return by how many source frames the exposures of a sequence begin early.

    The first released sharp frame is source frame (n - 1) / 2 - offset. What the name says, the
    hint, decides between source frames that are equal to each other.
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
    copy_file(released, folder / kind / f"{exposure.name}.png")
