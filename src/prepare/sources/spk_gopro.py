"""GOPRO_Large with its published spikes (Spk-GoPro): find the clips and plan their preparation.

    GOPRO_Large/{train,test}/SEQ/{blur,blur_gamma,sharp}/NNNNNN.png   720x1280
    GOPRO_Large_spike_seq/{train,test}/SEQ/spike/NNNNNN.dat           one file per frame, 360x640
    Spike_GOPRO_Large_all/{train,test}/SEQ/spike.dat                  where there: whole clips
    GOPRO_Large_all/{train,test}/SEQ/NNNNNN.png                       where there: to compare with

SEQ is GOPRxxxx_nn_zz: nn source frames of 240 per second in a blurry frame, 8 ticks per source
frame. The published files are cut at 8 nn k although the windows begin zz source frames earlier, so
the stream of the clip (or its parts, which abut) is taken whole and the windows are stated anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from src.data.description import DataDescription
from src.data.errors import BadFileError, DataSetError, problems_of
from src.data.exposures import frame_index
from src.data.fingerprint import list_sequences
from src.data.frames import list_frames
from src.data.parallel import run_parallel, worthwhile_workers
from src.data.simulation.blur import TICKS_PER_SOURCE_FRAME
from src.prepare.prepare import default_workers
from src.prepare.sources.copying import STREAM_NAME
from src.prepare.sources.gopro import ALL_FRAMES, PAIRS, parse_clip_name
from src.prepare.sources.source import (
    OUR_SPLITS,
    SourceOptions,
    SourcePlan,
    find_downloaded,
    listed,
    refuse_options,
)
from src.prepare.sources.spk_gopro_clip import (
    THRESHOLD,
    TICKS_PER_SECOND,
    SpkGoproClip,
    SpkGoproJob,
)
from src.prepare.sources.spk_gopro_proof import ProvenOffset, prove_clip
from src.prepare.sources.spk_gopro_sizes import check_sizes, geometry_of

PER_FRAME, WHOLE = "GOPRO_Large_spike_seq", "Spike_GOPRO_Large_all"
BYTES_PER_PROOF = 24 << 20  # read to prove one clip: five frames of 720p and their spikes
# What says how to film, or how arrays lie.
NOT_FOR_THIS = (
    *("threshold", "transfer", "downscale", "interpolator", "ticks_per_frame", "frames_averaged"),
    *("stride", "frames_per_second", "seed", "axes", "key", "columns"),
)


@dataclass(frozen=True)
class Downloads:
    """The downloaded folders; what is not there is None.

    Attributes:
        pairs: blurry and sharp frames.
        whole: spikes of whole clips.
        per_frame: spikes cut into frames.
        all_frames: all frames at 240 per second, only looked at.
    """

    pairs: Path
    whole: Path | None
    per_frame: Path | None
    all_frames: Path | None

    def whole_stream(self, place: str) -> Path | None:
        """Return the stream of clip `train/SEQ`."""
        if self.whole is None:
            return None
        folder = self.whole / place
        paths = (folder / STREAM_NAME, folder / "spike" / STREAM_NAME)
        return next((path for path in paths if path.exists()), None)

    def source_frames(self, place: str) -> Path | None:
        """Return the folder of all frames of clip `train/SEQ`."""
        path = None if self.all_frames is None else self.all_frames / place
        return path if path is not None and path.is_dir() else None


def plan(options: SourceOptions) -> SourcePlan:
    """Find all clips, prove which ticks belong to which frame, and return what is to be written.

    Raises:
        DataSetError: everything that is missing or does not agree.
    """
    refuse_options(options, NOT_FOR_THIS, "frames and spikes are published, nothing is filmed")
    downloads = _find_downloads(options.input)
    clips = _find_clips(downloads, options.blur_kind)
    proofs = _prove(clips)
    problems = [problem for proof in proofs for problem in proof.problems]
    if problems:
        raise DataSetError(str(options.input), problems)
    notes = (
        *_without_frames(downloads),
        *_joined(clips),
        *(note for proof in proofs for note in proof.notes),
    )
    jobs = tuple(SpkGoproJob(clip, proof.offset) for clip, proof in zip(clips, proofs, strict=True))
    return SourcePlan(jobs, _describe(jobs, options), notes)


def _find_downloads(given: Path) -> Downloads:
    """Return the downloaded folders.

    Raises:
        DataSetError: no frames, or no spikes.
    """
    pairs, whole, per_frame, all_frames = (
        find_downloaded(given, name) for name in (PAIRS, WHOLE, PER_FRAME, ALL_FRAMES)
    )
    problems = []
    if pairs is None:
        problems.append(f"no folder {PAIRS}; it holds the blurry and sharp frames")
    if whole is None and per_frame is None:
        problems.append(f"no folder {PER_FRAME} or {WHOLE}; one of them must hold the spikes")
    if problems:
        raise DataSetError(str(given), problems)
    return Downloads(pairs, whole, per_frame, all_frames)


def _find_clips(downloads: Downloads, blur_kind: str) -> list[SpkGoproClip]:
    """Return all clips of all splits; raise all problems at once."""
    clips: list[SpkGoproClip] = []
    problems: dict[str, str] = {}  # what one config.yaml says wrong is wrong for all clips
    for theirs, ours in OUR_SPLITS.items():
        split = downloads.pairs / theirs
        for folder in list_sequences(split) if split.is_dir() else []:
            try:
                clips.append(_find_clip(folder, ours, downloads, blur_kind))
            except BadFileError as error:
                problems.setdefault(str(error.path), str(error))
            except DataSetError as error:
                problems |= {problem: problem for problem in problems_of(error)}
    if not clips and not problems:
        reason = f"no clips; {', '.join(OUR_SPLITS)} should hold folders GOPRxxxx_nn_zz"
        raise DataSetError(str(downloads.pairs), [reason])
    if problems:
        raise DataSetError(str(downloads.pairs), problems.values())
    return clips


def _find_clip(folder: Path, split: str, downloads: Downloads, blur_kind: str) -> SpkGoproClip:
    """Return one clip.

    Raises:
        BadFileError, DataSetError: names that do not fit together, missing frames or spikes.
    """
    try:
        name = parse_clip_name(folder.name)
    except ValueError as error:
        raise DataSetError(str(folder), [str(error)]) from error
    blurry = list_frames(folder / blur_kind, [".png"])
    sharp = list_frames(folder / "sharp", [".png"])
    _check_names(folder, blur_kind, blurry, sharp)
    place = f"{folder.parent.name}/{folder.name}"
    stream = downloads.whole_stream(place)
    if stream is not None:
        root, parts = downloads.whole, {STREAM_NAME: stream}
    else:
        root, parts = downloads.per_frame, _parts(folder, place, downloads.per_frame, blurry)
    files = tuple(parts.values())
    geometry = geometry_of(root, files, next(iter(blurry.values())))
    check_sizes(files, geometry, TICKS_PER_SOURCE_FRAME * name.averaged, stream is not None)
    return SpkGoproClip(
        split=split,
        name=folder.name,
        n=name.averaged,
        zz=name.offset,
        blur_kind=blur_kind,
        blurry=tuple(blurry.values()),
        sharp=tuple(sharp.values()),
        spikes=files,
        is_whole=stream is not None,
        is_joined_by_order=stream is None and set(parts) != set(blurry),
        geometry=geometry,
        source_frames=downloads.source_frames(place),
    )


def _check_names(
    folder: Path, blur_kind: str, blurry: Mapping[str, Path], sharp: Mapping[str, Path]
) -> None:
    """Refuse frames without a partner and gaps in the numbers: both would shift the windows."""
    problems = []
    if not blurry:
        problems.append(f"no .png in {blur_kind}; --blur_kind chooses between blur and blur_gamma")
    for name, missing in (
        ("sharp frame", sorted(blurry.keys() - sharp.keys())),
        (f"{blur_kind} frame", sorted(sharp.keys() - blurry.keys())),
    ):
        if missing:
            problems.append(f"{len(missing)} without a {name} of that name: {listed(missing)}")
    try:
        numbers = [frame_index(name) for name in blurry]
    except ValueError as error:
        raise DataSetError(str(folder), [*problems, str(error)]) from error
    if numbers:
        gaps = sorted(set(range(min(numbers), max(numbers) + 1)) - set(numbers))
        if gaps:
            names = listed([f"{number:06d}" for number in gaps])
            problems.append(f"{len(gaps)} frame(s) missing in the middle: {names}")
    if problems:
        raise DataSetError(str(folder), problems)


def _parts(
    folder: Path, place: str, per_frame: Path | None, blurry: Mapping[str, Path]
) -> dict[str, Path]:
    """Return the spike files of a clip, one per frame, in order."""
    if per_frame is None:
        raise DataSetError(str(folder), [f"no spikes: {WHOLE}/{place}/{STREAM_NAME} is not there"])
    parts = list_frames(per_frame / place / "spike", [".dat"])
    if not parts:
        raise DataSetError(str(folder), [f"no .dat files in {per_frame / place / 'spike'}"])
    if len(parts) != len(blurry):
        without = sorted(blurry.keys() - parts.keys())
        stray = sorted(parts.keys() - blurry.keys())
        raise DataSetError(
            str(folder),
            [
                f"{len(blurry)} frames, {len(parts)} spike files; frames without a spike file: "
                f"{listed(without)}; spike files without a frame: {listed(stray)}"
            ],
        )
    return parts


def _prove(clips: Sequence[SpkGoproClip]) -> list[ProvenOffset]:
    """Prove the offset of every clip, in several processes where there are many."""
    workers = worthwhile_workers(default_workers(), BYTES_PER_PROOF * len(clips))
    label = "matching spikes with sharp frames"
    proofs = dict(run_parallel(prove_clip, clips, workers, label))
    return [proofs[number] for number in range(len(clips))]


def _without_frames(downloads: Downloads) -> list[str]:
    """Name clips of which there are spikes and no frames."""
    clips = [
        f"{split}/{folder.name}"
        for root in (downloads.whole, downloads.per_frame)
        for split in OUR_SPLITS
        if root is not None and (root / split).is_dir()
        for folder in list_sequences(root / split)
    ]
    lonely = [clip for clip in dict.fromkeys(clips) if not (downloads.pairs / clip).is_dir()]
    return [f"not made, {PAIRS} has no such clip: {listed(lonely)}"] if lonely else []


def _joined(clips: Sequence[SpkGoproClip]) -> list[str]:
    """Say which clips have no stream of their own."""
    joined = [clip.where for clip in clips if not clip.is_whole]
    if not joined:
        return []
    return [
        f"{len(joined)} of {len(clips)} clips have no {WHOLE}/.../{STREAM_NAME}, their files per "
        f"frame are joined: {listed(joined)}"
    ]


def _describe(jobs: Sequence[SpkGoproJob], options: SourceOptions) -> DataDescription:
    sizes = {(job.clip.geometry.height, job.clip.geometry.width) for job in jobs}
    height, width = sizes.pop() if len(sizes) == 1 else (None, None)
    return DataDescription(
        source=f"{PAIRS} with the published spikes (Spk-GoPro)",
        blur_kind=options.blur_kind,
        frames_averaged=tuple(sorted({job.clip.n for job in jobs})),
        transfer="encoded",
        threshold=THRESHOLD,
        ticks_per_second=TICKS_PER_SECOND,
        spike_height=height,
        spike_width=width,
        interpolator=f"x{TICKS_PER_SOURCE_FRAME}, by the publishers of the spikes",
        offsets=tuple((job.clip.where, job.offset) for job in jobs if job.offset),
    )
