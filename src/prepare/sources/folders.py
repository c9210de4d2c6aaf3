"""The user's own data: `DIR/{train,val}/SEQ`, simulated from sharp frames, or recorded already.

    SEQ/000000.png ... , SEQ/NAME.mp4 or a file SEQ.mp4     sharp high-speed frames to simulate from
    SEQ/NAME.mraw or SEQ.mraw, with NAME.cihx or NAME.cih   the same, from a high-speed camera
    SEQ/{blur,sharp,exposures.csv} with spike.* or spike/   recorded: converted into our layout

The kind of a sequence is detected from its files; a mixture is refused.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from src.data.errors import DataSetError, refuse_undecodable
from src.data.spikes.arrays import ARRAY_SUFFIXES
from src.prepare.sources import planning
from src.prepare.sources.high_speed import RECORDING_EXTS, open_frames
from src.prepare.sources.mraw import HEADER_EXTS, MRAW_EXTS
from src.prepare.sources.recorded import KIND as RECORDED_KIND
from src.prepare.sources.recorded import plan_recorded
from src.prepare.sources.simulate import (
    Simulation,
    completed,
    planned,
    regular_exposures,
    simulated_description,
)

SPLITS = ("train", "val")
SHARP_KIND = "sharp high-speed frames"
MAX_RATE_ERROR = 1e-3
RECORDED_NAMES = ("blur", "sharp", "spike", "exposures.csv")
EXPECTED = (
    "a sequence holds sharp high-speed frames (images, one video file or one .mraw), or blur/, "
    "sharp/, exposures.csv and spikes (spike.dat, .npy, .npz, .h5 or a folder spike/)"
)


def plan(options: planning.SourceOptions) -> planning.SourcePlan:
    """Return what to make of the user's folders; see `SourceOptions`."""
    planning.refuse_other(
        options.input, "a folder of own sequences", planning.RECORDED, planning.GOPRO_FRAMES
    )
    entries = [
        (split, path)
        for split in SPLITS
        if (options.input / split).is_dir()
        for path in sorted((options.input / split).iterdir())
        if not path.name.startswith(".") and path.suffix.lower() not in HEADER_EXTS
    ]
    found = planning.make_all(options.input, _classify, entries)
    problems = []
    if not found:
        present = ", ".join(sorted(path.name for path in options.input.iterdir())) or "nothing"
        problems.append(f"no sequences in {' and '.join(SPLITS)}; found {present}. {EXPECTED}")
    names = [where for where, _, _ in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems += [f"{name} is there as a folder and as a video; which is meant?" for name in twice]
    kinds = {kind for _, kind, _ in found}
    if len(kinds) > 1:
        named = "; ".join(f"{where}: {kind}" for where, kind, _ in found)
        problems.append(f"two kinds of sequences, which cannot share a description: {named}")
    if problems:
        raise DataSetError(str(options.input), problems)
    paths = {where: path for where, _, path in found}
    return (
        _plan_simulated(paths, options) if kinds == {SHARP_KIND} else plan_recorded(paths, options)
    )


def _classify(split: str, path: Path) -> tuple[str, str, Path]:
    """Return `SPLIT/SEQUENCE`, the kind of a sequence, and its folder or video."""
    refuse_undecodable([path])
    if not path.is_dir():
        if path.is_file() and path.suffix.lower() in RECORDING_EXTS:
            return f"{split}/{path.stem}", SHARP_KIND, path
        what = "a link that leads nowhere" if path.is_symlink() else "neither a folder nor a video"
        raise DataSetError(str(path), [f"is {what}; {EXPECTED}"])
    inside = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    inside = [entry for entry in inside if not _is_file(entry, HEADER_EXTS)]
    images = [entry for entry in inside if _is_file(entry, planning.IMAGE_EXTS)]
    videos = [entry for entry in inside if _is_file(entry, RECORDING_EXTS)]
    recorded = [
        entry
        for entry in inside
        if entry.name in RECORDED_NAMES
        or (entry.stem == "spike" and entry.suffix.lower() in (".dat", *ARRAY_SUFFIXES))
    ]
    where = f"{split}/{path.name}"
    if recorded and not images and not videos:
        return where, RECORDED_KIND, path
    if not recorded and bool(images) != bool(videos) and len(videos) <= 1:
        return where, SHARP_KIND, videos[0] if videos else path
    found = [f"{len(images)} images"] * bool(images)
    found += [entry.name for entry in [*videos, *recorded]]
    found += [entry.name for entry in inside if entry not in [*images, *videos, *recorded]]
    raise DataSetError(str(path), [f"holds {', '.join(found) or 'nothing'}; {EXPECTED}"])


def _is_file(path: Path, suffixes: Sequence[str]) -> bool:
    return path.suffix.lower() in suffixes and not path.is_dir()


def _plan_simulated(
    paths: Mapping[str, Path], options: planning.SourceOptions
) -> planning.SourcePlan:
    planning.refuse_options(
        options, planning.ARRAY_OPTIONS, "the sequences hold sharp frames, no spikes"
    )
    problems = []
    if options.frames_averaged is None:
        problems.append("--frames_averaged is needed: how many of them make a blurry frame (odd)")
    is_known = all(path.suffix.lower() in MRAW_EXTS for path in paths.values())
    if options.frames_per_second is None and not is_known:
        problems.append("--frames_per_second is needed: no file says how fast they were recorded")
    if problems:
        raise DataSetError(str(options.input), problems)
    averaged = options.frames_averaged
    stride = averaged if options.stride is None else options.stride
    items = ((where, path, options, averaged, stride) for where, path in paths.items())
    sequences = planning.make_all(options.input, _simulated, items)
    rates = sorted({sequence.identity["frames_per_second"] for sequence in sequences})
    if len(rates) > 1:
        reason = f"recorded at {rates} frames per second; make one DATA.ROOT per rate"
        raise DataSetError(str(options.input), [reason])
    cameras = completed(options, interpolator="none", frames_per_second=rates[0])
    notes = [
        f"{sequence.where}: {SHARP_KIND}, {sequence.num_inputs} in {paths[sequence.where].name}"
        for sequence in sequences
    ]
    notes.append(
        f"simulated with {cameras.ticks_per_frame} tick(s) per frame (interpolator "
        f"{cameras.interpolator}), {averaged} frames per exposure, one every {stride} frames"
    )
    source = f"own frames of {options.input.name}"
    description = simulated_description(source, cameras, sequences)
    return planning.SourcePlan(tuple(sequences), description, tuple(notes))


def _simulated(
    where: str, path: Path, options: planning.SourceOptions, averaged: int, stride: int
) -> planning.PlannedSequence:
    frames = open_frames(path)
    notes, stated, given = list(frames.notes), frames.frames_per_second, options.frames_per_second
    if None not in (stated, given) and abs(given / stated - 1) > MAX_RATE_ERROR:
        notes.append(f"--frames_per_second {given:g} is used, its header states {stated:g}")
    cameras = completed(options, interpolator="none", frames_per_second=stated)
    exposures = regular_exposures(len(frames), averaged, stride, cameras.ticks_per_frame)
    num_ticks = len(frames) * cameras.ticks_per_frame  # the last frame is held for its ticks
    facts = {"frames_averaged": averaged, "stride": stride, "source": "folders", "kind": SHARP_KIND}
    return planned(Simulation(where, frames, exposures, num_ticks, cameras, notes), facts)
