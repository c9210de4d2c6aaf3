"""Prove by how many source frames the windows of a published clip begin early."""

from dataclasses import dataclass

from src.data.errors import BadFileError, DataSetError, problems_of
from src.data.simulation.blur import TICKS_PER_SOURCE_FRAME
from src.data.spikes.spike_parts import SpikeParts
from src.prepare.sources.released_pairs import ReleasedPairs, find_offset
from src.prepare.sources.spike_proof import OffsetProof, check_reading, prove_offset
from src.prepare.sources.spk_gopro_clip import SpkGoproClip
from src.prepare.sources.video import open_folder


@dataclass(frozen=True)
class ProvenOffset:
    """The offset of a clip, what the user should know of it, or why there is none.

    Attributes:
        offset: source frames by which the windows begin early.
        notes: sentences.
        problems: sentences; the clip cannot be used where there are any.
    """

    offset: int
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def prove_clip(clip: SpkGoproClip) -> ProvenOffset:
    """Find the offset of a clip from its frames and spikes, and check how its bits are read.

    Where the source frames of the clip are there too, its first sharp frame is looked for among
    them; what they say and what the spikes say must agree.
    """
    try:
        by_pixels = None if clip.source_frames is None else _offset_by_pixels(clip)
        highest = max((clip.n - 1) // 2, clip.zz, by_pixels or 0)
        stream = SpikeParts(clip.spikes, clip.geometry)
        proof = prove_offset(stream, list(enumerate(clip.sharp)), clip.n, highest)
        proven = _judge(clip, by_pixels, proof)
        clip.windows(proven.offset)  # refuses a stream that is cut short
    except (BadFileError, DataSetError) as error:
        problems = tuple(f"{clip.where}: {problem}" for problem in problems_of(error))
        return ProvenOffset(clip.zz, problems=problems)
    return proven


def _offset_by_pixels(clip: SpkGoproClip) -> int:
    pairs = ReleasedPairs(clip.sharp[0].parents[1], clip.blurry, clip.sharp, num_bytes=0)
    return find_offset(pairs, open_folder(clip.source_frames), clip.n, hint=clip.zz)


def _judge(clip: SpkGoproClip, by_pixels: int | None, proof: OffsetProof) -> ProvenOffset:
    """Compare what frames, spikes and the name say."""
    if proof.offset is None:
        return _judge_still(clip, by_pixels)
    if by_pixels is not None and by_pixels != proof.offset:
        return ProvenOffset(
            by_pixels,
            problems=(
                f"{clip.where}: its sharp frames equal the source frames with an offset of "
                f"{by_pixels}, its spikes show them with one of {proof.offset}; frames and spikes "
                "are not of the same clip",
            ),
        )
    decisive = [frame for frame in proof.frames if frame.is_decisive]
    best = min(decisive, key=lambda frame: frame.error)
    other = check_reading(clip.spikes, clip.geometry, best.sharp, best.tick)
    if other is not None:
        return ProvenOffset(proof.offset, problems=(f"{clip.where}: {other[1]}",))
    notes = [
        f"{clip.where}: its spikes show {frame.sharp.name} at tick {frame.tick:.1f}, "
        f"{abs(frame.shift - proof.offset) * TICKS_PER_SOURCE_FRAME:.1f} ticks from where the "
        f"other frames put it (uncertain by {frame.error:.1f}); its scene moves too little there"
        for frame in proof.outliers
    ]
    if proof.offset != clip.zz:
        notes.append(
            f"{clip.where}: the name states an offset of {clip.zz} source frames, the data show "
            f"{proof.offset}, which is used"
        )
    elif proof.offset:
        notes.append(
            f"{clip.where}: windows begin {proof.offset} source frame(s) early, as name and data "
            f"say (spikes within {proof.deviation_ticks:.1f} ticks); published files are cut "
            f"{TICKS_PER_SOURCE_FRAME * proof.offset} ticks late"
        )
    return ProvenOffset(proof.offset, notes=tuple(notes))


def _judge_still(clip: SpkGoproClip, by_pixels: int | None) -> ProvenOffset:
    offset = clip.zz if by_pixels is None else by_pixels
    if clip.is_joined_by_order:
        return ProvenOffset(
            offset,
            problems=(
                f"{clip.where}: frames and spike files have different names, and the scene is too "
                "still to show which belong together; rename the spike files like the frames",
            ),
        )
    said = "its name" if by_pixels is None else "the source frames"
    return ProvenOffset(
        offset,
        notes=(
            f"{clip.where}: too still for its spikes to show the offset; {offset} is taken from "
            f"{said}",
        ),
    )
