"""GOPRO_Large with its published spikes (Spk-GoPro): find, check and write its sequences.

    GOPRO_Large/{train,test}/SEQ/{blur,blur_gamma,sharp}/NNNNNN.png   720x1280
    GOPRO_Large_spike_seq/{train,test}/SEQ/spike/NNNNNN.dat           one file per frame, 360x640
    Spike_GOPRO_Large_all/{train,test}/SEQ/spike.dat                  optional: whole sequences
    GOPRO_Large_all/{train,test}/SEQ/NNNNNN.png                       optional: to compare with

SEQ is GOPRxxxx_nn_zz: nn source frames of 240 per second in a blurry frame, 8 ticks per source
frame. The published files are cut at 8 nn k although the exposures begin zz source frames earlier,
so the stream of the sequence (or its parts, which abut) is taken whole and the exposures are stated
anew. The offset is measured, not taken from the name.
"""

import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from src.data.description import DataDescription
from src.data.errors import BadFileError, DataSetError, listed, problems_of
from src.data.exposures import EXPOSURES_NAME, frame_index
from src.data.frames import list_frames
from src.data.parallel import run_parallel, worthwhile_workers
from src.data.recordings import FrameRecord
from src.data.simulation.blur import SOURCE_FRAMES_PER_SECOND, TICKS_PER_SOURCE_FRAME
from src.data.spikes.spike_dat import (
    SpikeFile,
    SpikeGeometry,
    SpikeParts,
    SpikeSidecar,
    check_rate,
    locate_sidecar,
    write_dat,
    write_sidecar,
)
from src.data.voxel_counts import SpikeWindow
from src.paths import atomic_write
from src.prepare.frame_checks import sample_evenly
from src.prepare.prepare import default_workers
from src.prepare.sources import gopro, planning
from src.prepare.sources.high_speed import image_size, open_frames
from src.prepare.sources.simulate import SimulatedExposure, frame_exposure
from src.prepare.spikes_match_frames import (
    TIMING_SAMPLES,
    better_bits,
    measure_timings,
    order_text,
    sample_bits,
    why_unlike,
)

TICKS_PER_SECOND = float(SOURCE_FRAMES_PER_SECOND * TICKS_PER_SOURCE_FRAME)
THRESHOLD = 2.0  # of the published spikes
EXPOSURES_IN_TICKS = "frame_idx,t0[ticks],t1[ticks],t_sharp[ticks]"
# A sharp frame may be found so many ticks, and standard errors, from where the offset puts it.
MAX_TICKS_OFF, MAX_ERRORS = 2.0, 3.0
BYTES_PER_SEQUENCE = 24 << 20  # read to measure one offset: five frames of 720p and their spikes
# What says how to simulate, or how arrays lie.
NOT_FOR_THIS = (
    *("threshold", "transfer", "downscale", "interpolator", "ticks_per_frame", "frames_averaged"),
    *("stride", "frames_per_second", "seed", "axes", "key", "columns"),
)


@dataclass(frozen=True)
class PublishedSequence:
    """The files of one sequence, found and counted but not read."""

    where: str  # `SPLIT/SEQUENCE` of the output, with GOPRxxxx_nn_zz
    averaged: int  # source frames in a blurry frame
    named_offset: int  # that the name states
    blur_kind: str
    pairs: tuple[tuple[Path, Path], ...]  # (blurry, sharp) in order
    spikes: tuple[Path, ...]  # the stream of the sequence, or its consecutive parts in order
    is_whole: bool  # whether `spikes` is the published stream
    is_joined_by_order: bool  # whether parts and frames have different names
    geometry: SpikeGeometry
    source_frames: Path | None  # folder of all frames, None where it was not downloaded

    @property
    def stream(self) -> SpikeParts:
        """The spikes of the whole sequence."""
        return SpikeParts(self.spikes, self.geometry)


def plan(options: planning.SourceOptions) -> planning.SourcePlan:
    """Find all sequences and measure which ticks belong to which frame."""
    planning.refuse_options(
        options, NOT_FOR_THIS, "frames and spikes are published, nothing is simulated"
    )
    there = gopro.find_gopro(options.input)
    problems = []
    if not any(gopro.SHARP in have for have in there.values()):
        problems.append(
            f"no {gopro.PAIRS}; it holds the blurry and sharp frames, in one of the layouts"
        )
    if not any(have.keys() & {gopro.SPIKES, gopro.STREAM} for have in there.values()):
        problems.append(
            f"no {gopro.SPIKES_PER_FRAME} or {gopro.SPIKE_STREAMS}; one must hold the spikes"
        )
    if problems:
        problems[-1] += "; needed are GOPRxxxx_nn_zz in {train,test}, see docs/DATA_SOURCES.md"
        raise DataSetError(str(options.input), problems)
    with_pairs = {key: have for key, have in there.items() if have.keys() & set(gopro.PICTURES)}
    unused = [f"{split}/{name}" for split, name in there if (split, name) not in with_pairs]
    items = ((*key, have, options.blur_kind) for key, have in with_pairs.items())
    found = planning.make_all(options.input, _find_sequence, items)
    workers = worthwhile_workers(default_workers(), BYTES_PER_SEQUENCE * len(found))
    tasks = run_parallel(_try_to_plan, found, workers, "matching spikes with sharp frames")
    results = [result for _, result in sorted(tasks, key=lambda task: task[0])]
    problems = [line for sequence, lines in results if sequence is None for line in lines]
    if problems:
        raise DataSetError(str(options.input), problems)
    notes = gopro.understood(there)
    if unused:
        notes.append(f"not made, {gopro.PAIRS} has no such sequence: {listed(unused)}")
    notes += [line for _, lines in results for line in lines]
    sequences = tuple(sequence for sequence, _ in results)
    description = DataDescription(
        source=f"{gopro.PAIRS} with the published spikes (Spk-GoPro)",
        blur_kind=options.blur_kind,
        transfer="encoded",
        threshold=THRESHOLD,
        ticks_per_second=TICKS_PER_SECOND,
        interpolator=f"x{TICKS_PER_SOURCE_FRAME}, by the publishers of the spikes",
        **planning.collected(sequences),
    )
    return planning.SourcePlan(sequences, description, tuple(notes))


# ---------------------------------------------------------------- finding


def _find_sequence(
    split: str, name: str, have: gopro.Sequence, blur_kind: str
) -> PublishedSequence:
    folder = have[gopro.FOLDER]
    averaged, offset = gopro.parse_name(folder)
    pairs = gopro.released_pairs(have, blur_kind)
    gaps = sorted(set(range(min(pairs), max(pairs))) - pairs.keys())
    if gaps:  # the exposures after it would be shifted
        names = listed([f"{number:06d}" for number in gaps])
        reason = f"{len(gaps)} frame(s) missing in the middle: {names}"
        raise DataSetError(str(folder), [reason])
    names = [blurry.stem for blurry, _ in pairs.values()]
    parts = _spike_files(folder, have, names)
    spikes = tuple(parts.values())
    geometry = _geometry_of(spikes[0], next(iter(pairs.values()))[0])
    stream = SpikeParts(spikes, geometry)
    if gopro.STREAM not in have:
        _check_lengths(stream, TICKS_PER_SOURCE_FRAME * averaged)
    return PublishedSequence(
        where=f"{planning.OUR_SPLITS[split]}/{name}",
        averaged=averaged,
        named_offset=offset,
        blur_kind=blur_kind,
        pairs=tuple(pairs.values()),
        spikes=spikes,
        is_whole=gopro.STREAM in have,
        is_joined_by_order=gopro.STREAM not in have and set(parts) != set(names),
        geometry=geometry,
        source_frames=have.get(gopro.FRAMES),
    )


def _spike_files(folder: Path, have: gopro.Sequence, names: list[str]) -> dict[str, Path]:
    """Return the stream of a sequence, or its files, one per frame in order, by their names."""
    if gopro.STREAM in have:
        return {have[gopro.STREAM].stem: have[gopro.STREAM]}
    parts = list_frames(have[gopro.SPIKES], [".dat"]) if gopro.SPIKES in have else {}
    if not parts:
        raise DataSetError(
            str(folder), [f"no .dat files in {have.get(gopro.SPIKES, 'any folder')}"]
        )
    if len(parts) != len(names):
        without = listed(sorted(set(names) - parts.keys())) or "none"
        unmatched = listed(sorted(parts.keys() - set(names))) or "none"
        reason = (
            f"{len(names)} frames, {len(parts)} spike files; frames without a spike file: "
            f"{without}; spike files without a frame: {unmatched}"
        )
        raise DataSetError(str(folder), [reason])
    return {name: parts[name] for name in names} if set(parts) == set(names) else parts


def _geometry_of(spikes: Path, frame: Path) -> SpikeGeometry:
    """Return how the bits lie: as a config.yaml says, else half the size of the frames."""
    above = gopro.split_folder(spikes).parent / planning.STREAM_NAME
    try:
        located = locate_sidecar(spikes) or locate_sidecar(above)
    except ValueError as error:
        raise BadFileError(spikes, str(error)) from error
    height, width = image_size(frame)
    if located is None:
        try:
            return SpikeGeometry(height // 2, width // 2)
        except ValueError as error:
            reason = f"has {height}x{width} pixels, published spikes half of that: {error}"
            raise BadFileError(frame, f"{reason}. Is it a published frame?") from error
    path, sidecar = located
    if sidecar.height * width != sidecar.width * height:
        raise BadFileError(
            path,
            f"says height {sidecar.height} and width {sidecar.width} of the spikes, which is not "
            f"the shape of frames of {height}x{width}; published spikes have half their size: "
            f"correct it to {height // 2} and {width // 2}. What the files themselves show: "
            f"python scripts/inspect_spikes.py {shlex.quote(str(spikes))}",
        )
    return sidecar.geometry


def _check_lengths(stream: SpikeParts, ticks: int) -> None:
    """Refuse parts that are not so many ticks long; only the last may end early."""
    *parts, last = stream.files
    wrong = [part for part in parts if part.num_ticks != ticks]
    wrong += [last] * (last.num_ticks > ticks)
    if wrong:
        size = f"{stream.geometry.height}x{stream.geometry.width}"
        reason = (
            f"{ticks} ticks of {size} are needed in each file, not "
            f"{listed([f'{part.num_ticks} in {part.path.name}' for part in wrong])}; the size "
            "comes from config.yaml beside the spikes, or is half that of the frames"
        )
        raise DataSetError(str(last.path.parent), [reason])


# ---------------------------------------------------------------- which ticks are whose


def _try_to_plan(found: PublishedSequence) -> tuple[planning.PlannedSequence | None, list[str]]:
    """Return the plan of a sequence and notes on its offset, or None and what is wrong."""
    try:
        offset, notes = check_offset(found)
        return _planned(found, offset), [f"{found.where}: {note}" for note in notes]
    except (BadFileError, DataSetError) as error:
        return None, [planning.with_name(found.where, line) for line in problems_of(error)]


def check_offset(found: PublishedSequence) -> tuple[int, list[str]]:
    """Return by how many source frames the exposures of a sequence begin early, and notes.

    It is measured with frames and spikes, which also have to be read in the right order of bits.
    With the source frames the first sharp frame is searched for among them; both must agree.
    """
    by_pixels, name = None, found.named_offset
    if found.source_frames is not None:
        frames = open_frames(found.source_frames)
        by_pixels = gopro.find_offset(found.pairs[0][1], frames, found.averaged, hint=name)
    offset = measure_offset(found, max((found.averaged - 1) // 2, name, by_pixels or 0))
    if offset is None and found.is_joined_by_order:
        reason = (
            "frames and spike files have different names, and the scene is too still to show "
            "which belong together; rename the spike files like the frames"
        )
        raise DataSetError(found.where, [reason])
    if offset is None:
        known, origin = (
            (name, "its name") if by_pixels is None else (by_pixels, "the source frames")
        )
        still = "too still for its spikes to show the offset"
        return known, [f"{still}; {known} is taken from {origin}"]
    if by_pixels not in (None, offset):
        reason = (
            f"its sharp frames equal the source frames with an offset of {by_pixels}, its spikes "
            f"show them with one of {offset}; frames and spikes are not of the same sequence"
        )
        raise DataSetError(found.where, [reason])
    if offset != name:
        stated = f"the name states an offset of {name} source frames, the data show {offset}"
        return offset, [f"{stated}, which is used"]
    late = f"published files are cut {TICKS_PER_SOURCE_FRAME * offset} ticks late"
    early = f"exposures begin {offset} source frame(s) early, as name and data say; {late}"
    return offset, [early] if offset else []


def measure_offset(found: PublishedSequence, highest: int) -> int | None:
    """Return the offset, 0 to `highest`, that sharp frames show in the spikes; None: a still scene.

    Ticks are joined to frames as the files are cut, without an offset. So each source frame of the
    offset makes the spikes show a sharp frame 8 ticks too early.
    """
    frames = _frames_without_offset(found)
    first = min(1, max(len(frames) - 1, 0))  # the exposure of 0 may begin before the stream
    fit = sample_bits(frames[first:])
    if fit is not None:
        check_rate(fit.rate, frames[0].spikes.path, found.stream.num_ticks)
    if (better := better_bits(fit)) is not None:
        reason = (
            f"its spikes, read with {order_text(fit.stated)}, show its sharp frames better with"
        )
        raise DataSetError(found.where, [f"{reason} {order_text(better)}; state the latter"])
    sampled = [first + i for i in sample_evenly(len(frames) - first, TIMING_SAMPLES)]
    timings = measure_timings(frames, sampled, TICKS_PER_SECOND)
    shifts = [-timing.offset / TICKS_PER_SOURCE_FRAME for timing in timings]
    offset = round(median(shifts)) if shifts else None
    is_agreed = 2 * sum(round(shift) == offset for shift in shifts) > len(shifts) and all(
        TICKS_PER_SOURCE_FRAME * abs(shift - offset) <= MAX_TICKS_OFF + MAX_ERRORS * timing.error
        for shift, timing in zip(shifts, timings, strict=True)
    )
    if shifts and is_agreed and 0 <= offset <= highest:
        return offset
    problem = why_unlike(fit)
    if shifts and problem is None:
        early = ", ".join(f"{t.name} {x:.2f}" for t, x in zip(timings, shifts, strict=True))
        problem = (
            f"its spikes show the sharp frames so many source frames early: {early}; they fit no "
            f"offset of 0 to {highest}. Frames and spikes are not of the same sequence, or some "
            "are missing"
        )
    if problem is not None:
        raise DataSetError(found.where, [problem])
    return None


def _frames_without_offset(found: PublishedSequence) -> tuple[FrameRecord, ...]:
    """Return the frames whose spikes are there, each with the ticks at which the files are cut."""
    length, frames = TICKS_PER_SOURCE_FRAME * found.averaged, []
    for k, (blurry, sharp) in enumerate(found.pairs):
        e = frame_exposure(k, k * found.averaged, found.averaged, TICKS_PER_SOURCE_FRAME)
        times = (tick / TICKS_PER_SECOND for tick in (e.start_tick, e.stop_tick, e.sharp_tick))
        start = e.start_tick if found.is_whole else 0
        path = found.spikes[0 if found.is_whole else k]
        if start + length <= SpikeFile(path, found.geometry).num_ticks:
            window = SpikeWindow(path, found.geometry, start, start + length)
            frames.append(FrameRecord(blurry.stem, k, blurry, sharp, *times, window))
    return tuple(frames)


def exposures_in_stream(
    found: PublishedSequence, offset: int
) -> tuple[list[SimulatedExposure], list[str]]:
    """Return the exposures that lie in the stream, and a note on each of the others."""
    num_ticks, averaged, count = found.stream.num_ticks, found.averaged, len(found.pairs)
    names = [blurry.stem for blurry, _ in found.pairs]
    inside, notes = gopro.exposures_of(names, num_ticks, averaged, offset, TICKS_PER_SOURCE_FRAME)
    num_late = count - len(inside) - min(count, -(-offset // averaged))
    if num_late > 1 or (num_late and not inside):
        ticks = TICKS_PER_SOURCE_FRAME * averaged
        raise BadFileError(
            found.spikes[0],
            f"the spikes of {found.where} have {num_ticks} ticks, its {count} frames of {ticks} "
            f"need {ticks * count}; files are cut short, copy them again",
        )
    if not inside:
        raise BadFileError(
            found.pairs[0][0].parent,
            f"the exposures of all its {count} frames begin before the recording ({offset} source "
            "frames early); leave the sequence out",
        )
    return inside, [f"{found.where}: {note}" for note in notes]


# ---------------------------------------------------------------- writing


def _planned(found: PublishedSequence, offset: int) -> planning.PlannedSequence:
    blurry, sharp = zip(*found.pairs, strict=True)
    inputs = (*blurry, *sharp, *found.spikes)
    size = found.geometry.height, found.geometry.width
    identity = {
        "source": "spk_gopro",
        "clip": found.where,
        "frames_averaged": found.averaged,
        "offset": offset,
        "blur_kind": found.blur_kind,
        "spikes": "stream of the clip" if found.is_whole else "one file per frame",
        "spike_size": list(size),
        "inputs_sha256": planning.inputs_sha256(inputs),
        "spikes_sha256": planning.parts_sha256(found.spikes),
    }
    return planning.PlannedSequence(
        *found.where.split("/"),
        num_inputs=len(blurry) + len(found.spikes),
        num_exposures=len(exposures_in_stream(found, offset)[0]),
        out_bytes=sum(map(planning.file_size, inputs)),
        seconds=len(blurry) * found.averaged / SOURCE_FRAMES_PER_SECOND,
        spike_size=size,
        identity=identity,
        write=partial(write_published, found, offset),
    )


def write_published(found: PublishedSequence, offset: int, folder: Path) -> list[str]:
    """Write blur, sharp, spike and exposures.csv; return the frames left out, as sentences."""
    exposures, notes = exposures_in_stream(found, offset)
    planning.refuse_cut_short(
        found.where, [path for e in exposures for path in found.pairs[e.index]]
    )
    stream, target = found.stream, folder / "spike" / planning.STREAM_NAME
    ours = SpikeGeometry(found.geometry.height, found.geometry.width)
    write_dat(stream, target, ours, found.spikes[0])
    sidecar = SpikeSidecar(ours.height, ours.width, TICKS_PER_SECOND, THRESHOLD)
    write_sidecar(folder / "spike", sidecar)
    rows = [EXPOSURES_IN_TICKS]
    for e in exposures:
        blurry, sharp = found.pairs[e.index]
        planning.copy_file(blurry, folder / "blur" / blurry.name)
        planning.copy_file(sharp, folder / "sharp" / sharp.name)
        times = e.start_tick, e.stop_tick, e.sharp_tick
        rows.append(",".join(map(str, (frame_index(blurry.stem), *times))))
    with atomic_write(folder / EXPOSURES_NAME) as path:
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return notes
