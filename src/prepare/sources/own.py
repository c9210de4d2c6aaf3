"""The user's own data: `DIR/{train,val}/SEQ`, simulated from sharp frames, or recorded already.

    SEQ/000000.png ... , SEQ/NAME.mp4 or a file SEQ.mp4     sharp high-speed frames to simulate from
    SEQ/{blur,sharp,exposures.csv} with spike.* or spike/   recorded: converted into our layout

What a sequence is, is seen from what lies in it; a mixture is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from src.data.description import DataDescription, read_description
from src.data.errors import BadFileError, DataSetError, problems_of, refuse_undecodable
from src.data.spikes.arrays import ARRAY_SUFFIXES
from src.prepare.sources.plan import (
    ARRAY_OPTIONS,
    GOPRO_PAIRS,
    GOPRO_SPIKES,
    X4K,
    SourceOptions,
    SourcePlan,
    refuse_options,
    refuse_other,
)
from src.prepare.sources.recorded import RecordedSequence, find_recorded
from src.prepare.sources.simulate import (
    SimulatedSequence,
    cameras_of,
    own_sequence,
    simulated_description,
)
from src.prepare.sources.video import IMAGE_EXTS, VIDEO_EXTS, open_frames

SPLITS = ("train", "val")
SHARP, RECORDED = "sharp high-speed frames", "recorded frames and spikes"
SIMULATION_OPTIONS = (
    *("blur_kind", "threshold", "transfer", "downscale", "interpolator", "ticks_per_frame"),
    *("frames_averaged", "stride", "frames_per_second", "seed"),
)
RECORDED_NAMES = ("blur", "sharp", "spike", "exposures.csv")
EXPECTED = (
    "a sequence holds sharp high-speed frames (images or one video file), or blur/, sharp/, "
    "exposures.csv and spikes (spike.dat, .npy, .npz, .h5 or a folder spike/)"
)


@dataclass(frozen=True)
class _Found:
    """One sequence of the user; `path` is its folder, or the video of its sharp frames."""

    split: str
    name: str
    kind: str
    path: Path

    @property
    def where(self) -> str:
        return f"{self.split}/{self.name}"


def plan(options: SourceOptions) -> SourcePlan:
    """Return what to make of the user's folders; see `SourceOptions`.

    Raises:
        DataSetError: everything that is missing, unclear or contradictory.
    """
    refuse_other(options.input, "a folder of own sequences", (GOPRO_PAIRS, GOPRO_SPIKES, X4K))
    found, problems = _find_sequences(options.input)
    kinds = {sequence.kind for sequence in found}
    if len(kinds) > 1:
        named = "; ".join(f"{sequence.where}: {sequence.kind}" for sequence in found)
        problems.append(f"two kinds of sequences, which cannot share a description: {named}")
    if problems:
        raise DataSetError(str(options.input), problems)
    return _plan_simulated(found, options) if kinds == {SHARP} else _plan_recorded(found, options)


def _find_sequences(root: Path) -> tuple[list[_Found], list[str]]:
    """Return the sequences of both splits and what is wrong with them."""
    sequences, problems = [], []
    for split in SPLITS:
        folder = root / split
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if path.name.startswith("."):
                continue
            try:
                refuse_undecodable([path])
                sequences.append(_classify(split, path))
            except DataSetError as error:
                problems += problems_of(error)
    if not sequences and not problems:
        found = ", ".join(sorted(path.name for path in root.iterdir())) or "nothing"
        problems.append(f"no sequences in {' and '.join(SPLITS)}; found {found}. {EXPECTED}")
    names = [sequence.where for sequence in sequences]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems += [f"{name} is there as a folder and as a video; which is meant?" for name in twice]
    return sequences, problems


def _classify(split: str, path: Path) -> _Found:
    """Say what a sequence is, from the names in it.

    Raises:
        DataSetError: neither or both; what was found is listed.
    """
    if not path.is_dir():
        if path.is_file() and path.suffix.lower() in VIDEO_EXTS:
            return _Found(split, path.stem, SHARP, path)
        what = "a link that leads nowhere" if path.is_symlink() else "neither a folder nor a video"
        raise DataSetError(str(path), [f"is {what}; {EXPECTED}"])
    inside = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    images = [entry for entry in inside if _is_file(entry, IMAGE_EXTS)]
    videos = [entry for entry in inside if _is_file(entry, VIDEO_EXTS)]
    recorded = [entry for entry in inside if entry.name in RECORDED_NAMES or _is_spikes(entry)]
    if recorded and not images and not videos:
        return _Found(split, path.name, RECORDED, path)
    if not recorded and bool(images) != bool(videos) and len(videos) <= 1:
        return _Found(split, path.name, SHARP, videos[0] if videos else path)
    others = [entry.name for entry in inside if entry not in [*images, *videos, *recorded]]
    found = [f"{len(images)} images"] * bool(images)
    found += [*(entry.name for entry in dict.fromkeys([*videos, *recorded])), *others]
    raise DataSetError(str(path), [f"holds {', '.join(found) or 'nothing'}; {EXPECTED}"])


def _is_file(path: Path, suffixes: Sequence[str]) -> bool:
    return path.suffix.lower() in suffixes and not path.is_dir()


def _is_spikes(path: Path) -> bool:
    return path.stem == "spike" and path.suffix.lower() in (".dat", *ARRAY_SUFFIXES)


def _plan_simulated(found: Sequence[_Found], options: SourceOptions) -> SourcePlan:
    refuse_options(options, ARRAY_OPTIONS, "the sequences hold sharp frames, no spikes")
    problems = [
        f"--{name} is needed to simulate from sharp frames: {why}"
        for name, why in (
            ("frames_per_second", "no file says how fast they were recorded"),
            ("frames_averaged", "how many of them make a blurry frame (odd)"),
        )
        if getattr(options, name) is None
    ]
    if problems:
        raise DataSetError(str(options.input), problems)
    averaged, facts = options.frames_averaged, {"source": "folders", "kind": SHARP}
    cameras = cameras_of(options, interpolator="none", frames_per_second=options.frames_per_second)
    sequences: list[SimulatedSequence] = []
    for one in found:
        try:
            frames = open_frames(one.path)
            sequences.append(
                own_sequence(one.where, frames, cameras, averaged, options.stride, facts)
            )
        except (BadFileError, DataSetError) as error:
            problems += problems_of(error)
    if problems:
        raise DataSetError(str(options.input), list(dict.fromkeys(problems)))
    source = f"own frames of {options.input.name}"
    description = simulated_description(source, cameras, sequences, {averaged})
    notes = [
        f"{one.where}: {SHARP}, {sequence.num_inputs} in {one.path.name}"
        for one, sequence in zip(found, sequences, strict=True)
    ]
    notes.append(
        f"simulated with {cameras.ticks_per_frame} tick(s) per frame (interpolator "
        f"{cameras.interpolator}), {averaged} frames per exposure, one every "
        f"{averaged if options.stride is None else options.stride} frames"
    )
    return SourcePlan(tuple(sequences), description, tuple(notes))


def _plan_recorded(found: Sequence[_Found], options: SourceOptions) -> SourcePlan:
    reason = (
        "the sequences are recorded, nothing is simulated; dataset.yaml of the input describes them"
    )
    refuse_options(options, SIMULATION_OPTIONS, reason)
    problems: list[str] = []
    stated = read_description(options.input)
    sequences: list[RecordedSequence] = []
    for one in found:
        try:
            sequences.append(find_recorded(one.path, one.split, options, stated))
        except (BadFileError, DataSetError) as error:
            problems += problems_of(error)
    if problems:
        raise DataSetError(str(options.input), problems)
    notes = [f"{s.where}: {RECORDED}; {s.spikes.describe()}" for s in sequences]
    return SourcePlan(tuple(sequences), _describe(sequences, stated, options.input), tuple(notes))


def _describe(
    sequences: Sequence[RecordedSequence], stated: DataDescription | None, root: Path
) -> DataDescription:
    """Return what the user's dataset.yaml says, completed by what all sequences share."""
    sidecars = [sequence.spikes.sidecar for sequence in sequences]
    sizes = {(sidecar.height, sidecar.width) for sidecar in sidecars}
    rates = {sidecar.ticks_per_second for sidecar in sidecars}
    thresholds = {sidecar.threshold for sidecar in sidecars}
    height, width = sizes.pop() if len(sizes) == 1 else (None, None)
    said = DataDescription(source=f"own recordings of {root.name}") if stated is None else stated
    threshold = thresholds.pop() if len(thresholds) == 1 else None
    return DataDescription(
        source=said.source,
        blur_kind=said.blur_kind,
        frames_averaged=said.frames_averaged,
        transfer=said.transfer,
        threshold=said.threshold if threshold is None else threshold,
        ticks_per_second=rates.pop() if len(rates) == 1 else None,
        spike_height=height,
        spike_width=width,
        interpolator=said.interpolator,
        offsets=said.offsets,
    )
