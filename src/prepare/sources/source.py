"""What a raw source is: options in, a plan of clips and a data description out.

Every module of this folder that reads a downloaded data set has one function
`plan(options) -> SourcePlan`; it looks at the folder, writes nothing, and lists every problem. What
runs the plan is `src/prepare/sources/run.py`.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from src.data.description import DataDescription
from src.data.errors import DataSetError
from src.data.simulation.simulator import TRANSFERS

# Kinds of blur that can be made from sharp frames, and the camera curve of each (GoPro's names).
BLUR_GAMMAS: Mapping[str, float | None] = {"blur": None, "blur_gamma": 2.2}
INTERPOLATORS = ("none", "linear")
# The splits of a downloaded data set and what they are called in ours.
OUR_SPLITS: Mapping[str, str] = {"train": "train", "test": "val"}
# How arrays of spikes lie; means nothing where no spikes are read.
ARRAY_OPTIONS = ("axes", "key", "columns")
MAX_NAMES = 20  # in one line
# Folders as they come out of the archives; they usually lie side by side.
DOWNLOADED = ("GOPRO_Large_all", "GOPRO_Large", "GOPRO_Large_spike_seq", "Spike_GOPRO_Large_all")


@dataclass(frozen=True)
class SourceOptions:
    """What the command line says; None is the default of the source.

    Attributes:
        input: the downloaded folder, or the folder that holds it and its siblings.
        blur_kind: "blur" (mean of encoded frames) or "blur_gamma" (mean of light, power 2.2).
        threshold: firing threshold of simulated spikes, in full-scale intensity times ticks.
        transfer: what simulated spikes integrate, "encoded" grey values or "linear" light.
        downscale: RGB pixels per spike pixel, in each direction.
        interpolator: what makes the light between source frames, "none" or "linear".
        ticks_per_frame: readouts of the spike sensor per source frame; needs an interpolator.
        frames_averaged: source frames (or ticks, see the source) in one blurry frame.
        stride: from the start of one exposure to the start of the next, in the same unit.
        frames_per_second: of the source frames.
        seed: of the simulated sensor.
        axes: order of the axes of spike arrays, such as "THW".
        key: name of the array in a container of several.
        columns: order of the columns of event lists.

    Raises:
        DataSetError: values that cannot be, all of them.
    """

    input: Path
    blur_kind: str = "blur"
    threshold: float = 2.0
    transfer: str = "encoded"
    downscale: int = 2
    interpolator: str | None = None
    ticks_per_frame: int | None = None
    frames_averaged: int | None = None
    stride: int | None = None
    frames_per_second: float | None = None
    seed: int = 0
    axes: str | None = None
    key: str | None = None
    columns: str = "tyxp"

    def __post_init__(self) -> None:
        problems = [
            f"--{name} {value!r}: choose one of {', '.join(choices)}"
            for name, value, choices in (
                ("blur_kind", self.blur_kind, tuple(BLUR_GAMMAS)),
                ("transfer", self.transfer, TRANSFERS),
                ("interpolator", self.interpolator or "none", INTERPOLATORS),
            )
            if value not in choices
        ]
        for name in (
            *("threshold", "downscale", "ticks_per_frame", "frames_averaged"),
            *("stride", "frames_per_second"),
        ):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                problems.append(f"--{name} {value}: a number above 0 is needed")
        if self.seed < 0:
            problems.append(f"--seed {self.seed}: it must not be negative")
        if problems:
            raise DataSetError("options of the source", problems)


def refuse_options(options: SourceOptions, names: Iterable[str], reason: str) -> None:
    """Refuse options that were given, and mean nothing to a source.

    Args:
        options: what the command line says.
        names: fields of it that do not apply; one that has its default value counts as not given.
        reason: why they do not apply.

    Raises:
        DataSetError: one sentence for each of them.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    problems = [
        f"--{name} {getattr(options, name)} does not apply: {reason}"
        for name in names
        if getattr(options, name) != defaults[name]
    ]
    if problems:
        raise DataSetError("options of the source", problems)


class ClipJob(Protocol):
    """One sequence of the output, not made yet. It is picklable and holds no frames.

    Attributes:
        split: our split, "train" or "val".
        name: folder of the sequence.
        num_units: frames to read, for the progress bar.
        num_exposures: blurry frames that will be written.
        out_bytes: estimate of what will be written, voxels not counted.
        seconds: length of the recording.
        identity: everything the output depends on, as JSON values.
    """

    split: str
    name: str
    num_units: int
    num_exposures: int
    out_bytes: int
    seconds: float
    identity: Mapping[str, object]

    def write(self, folder: Path, advance: Callable[[int], None]) -> list[str]:
        """Write blur, sharp, spike and exposures.csv into an empty folder.

        Args:
            folder: where to write; it exists and is empty.
            advance: to be called with the number of units done since the last call.

        Returns:
            notes for the user, such as frames that were dropped, by name.

        Raises:
            BadFileError: an input file that cannot be used.
            DataSetError: inputs that contradict each other.
        """
        ...


@dataclass(frozen=True)
class SourcePlan:
    """What is to be made.

    Attributes:
        jobs: the sequences.
        description: of the data set that they make, without fingerprint.
        notes: what the user should know before it starts.
    """

    jobs: tuple[ClipJob, ...]
    description: DataDescription
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Caches:
    """What preparation writes beside a source's own files, for the estimate of disk use.

    Attributes:
        num_bins: K of the voxels; None: voxels are not stored.
        frame_downscale: RGB pixels per spike pixel in each direction, of the decoded training
            frames; None: frames are not stored.
    """

    num_bins: int | None = None
    frame_downscale: int | None = None


def find_downloaded(given: Path, name: str) -> Path | None:
    """Return the downloaded folder `name`: `given` itself, a folder in it, or one beside it.

    Beside it is looked only where `given` is a downloaded folder itself. None: there is none.
    """
    folders = [given] if given.name == name else [given / name]
    if given.name in DOWNLOADED:
        folders.append(given.parent / name)
    return next((folder for folder in folders if folder.is_dir()), None)


def listed(names: Sequence[str]) -> str:
    """Return names in one line, of many the first ones."""
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return (", ".join(names[:MAX_NAMES]) or "none") + more
