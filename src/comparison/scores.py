"""Both models on the same frames, side by side, with the scores of each frame."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from src.data.recordings import Recording
from src.inference.evaluate import describe_protocol
from src.inference.restore import NonFiniteOutputError, Restorer
from src.metrics.lpips_metric import LpipsMetric
from src.metrics.motion_edges import MotionEdges, find_motion_edges, score_motion_edges
from src.metrics.report import METRICS, FrameScores, Scores, score_frame, summarize

BLURRY, TWIN, SPIKE = METHODS = ("blurry input", "RGB-only twin", "VRT+Spike")
EDGE_METRICS = ("edge_sharpness", "edge_error")
ALL_METRICS = (*METRICS, *EDGE_METRICS)


@dataclass(frozen=True)
class FrameImages:
    """One frame in all versions, uint8 RGB [H, W, 3]."""

    blurry: np.ndarray
    twin: np.ndarray
    spike: np.ndarray
    sharp: np.ndarray
    edges: MotionEdges


@dataclass(frozen=True)
class ComparedFrame:
    """The scores of one frame: method to metric to value; None where it was not measured."""

    sequence: str
    frame: str
    scores: dict[str, Scores]


@dataclass(frozen=True)
class ComparedFrames:
    """All frames of a comparison.

    Attributes:
        frames: In the order of the recordings.
        protocol: How the numbers came about.
        notes: What is missing and why.
        inputs_sha256: Over names, blurry frames, sharp frames and spike counts: results with the
            same value were measured on the same frames.
        seconds_per_frame: Time of the twin's and of VRT+Spike's network.
    """

    frames: list[ComparedFrame]
    protocol: str
    notes: list[str]
    inputs_sha256: str
    seconds_per_frame: dict[str, float]

    def values(self, method: str, metric: str) -> list[float | None]:
        """Return one value per frame."""
        return [frame.scores[method][metric] for frame in self.frames]

    @property
    def sequences(self) -> list[str]:
        """To which recording each frame belongs."""
        return [frame.sequence for frame in self.frames]

    def means(self, method: str, sequence: str | None = None) -> Scores:
        """Return the means over all frames, or over those of one sequence.

        Motion edges are averaged over the frames that have enough of them.
        """
        chosen = [f for f in self.frames if sequence in (None, f.sequence)]
        rows = [FrameScores(f.sequence, f.frame, f.scores[method]) for f in chosen]
        return {**summarize(rows)["mean_over_frames"], **_edge_means(chosen, method)}

    def means_over_sequences(self, method: str) -> Scores:
        """Return the means over the means of the sequences."""
        rows = [self.means(method, name) for name in dict.fromkeys(self.sequences)]
        return {metric: _mean([row[metric] for row in rows]) for metric in ALL_METRICS}


def _edge_means(frames: list[ComparedFrame], method: str) -> Scores:
    return {
        metric: _mean([f.scores[method][metric] for f in frames], leave_out=True)
        for metric in EDGE_METRICS
    }


def _mean(values: list[float | None], *, leave_out: bool = False) -> float | None:
    """Return the mean; None if a value is missing, or with `leave_out` if all are."""
    known = [value for value in values if value is not None]
    if not known or (len(known) < len(values) and not leave_out):
        return None
    return sum(known) / len(known)


def compare_frames(
    twin: Restorer,
    spike: Restorer,
    recordings: Iterable[Recording],
    *,
    lpips: LpipsMetric | None,
    notes: list[str],
    on_frame: Callable[[ComparedFrame, FrameImages], None],
) -> ComparedFrames:
    """Restore every frame with both models, side by side, and score it; hash the inputs.

    Args:
        twin: The RGB-only model with its tiles.
        spike: VRT+Spike with the same tiles.
        recordings: What to restore.
        lpips: The metric where its weights were found.
        notes: Why it is missing.
        on_frame: Called for every frame, for pictures and progress.

    Raises:
        NonFiniteOutputError: naming the recording.
        ValueError: memory ran out for one model, so that the two were cut differently.
    """
    tiles, digest, rows = twin.settings, hashlib.sha256(), []
    for recording in recordings:
        try:
            pairs = zip(twin.restore(recording), spike.restore(recording), strict=True)
            for (i, without), (_, restored) in pairs:
                images = _read_images(recording, i, without, restored)
                _hash_inputs(digest, recording, i, images)
                rows.append(_score(recording, i, images, lpips))
                on_frame(rows[-1], images)
        except NonFiniteOutputError as error:
            raise NonFiniteOutputError(f"{recording.name}: {error}") from error
    if twin.settings != spike.settings:
        raise ValueError(
            f"memory did not do for one model: the twin ran with {twin.settings.describe()}, "
            f"VRT+Spike with {spike.settings.describe()}; give both smaller tiles (VAL.TILE_SIZE)"
        )
    count = max(1, len(rows))
    seconds = {TWIN: twin.seconds / count, SPIKE: spike.seconds / count}
    protocol = describe_protocol(spike, tiles.describe())
    return ComparedFrames(rows, protocol, notes, digest.hexdigest(), seconds)


def _read_images(recording: Recording, i: int, twin: np.ndarray, spike: np.ndarray) -> FrameImages:
    sharp = recording.read_sharp(i)
    before = recording.read_sharp(i - 1) if i > 0 else None
    after = recording.read_sharp(i + 1) if i + 1 < len(recording) else None
    edges = find_motion_edges(sharp, before, after)
    return FrameImages(recording.read_blurry(i), twin, spike, sharp, edges)


def _hash_inputs(
    digest: "hashlib._Hash", recording: Recording, i: int, images: FrameImages
) -> None:
    digest.update(f"{recording.name}/{recording.frames[i].name}\n".encode())
    for array in (images.blurry, images.sharp, recording.read_counts(i)):
        digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())


def _score(
    recording: Recording, i: int, images: FrameImages, lpips: LpipsMetric | None
) -> ComparedFrame:
    scores = {}
    versions = (images.blurry, images.twin, images.spike)
    for method, image in zip(METHODS, versions, strict=True):
        edges = score_motion_edges(image, images.edges)
        scores[method] = {
            **score_frame(image, images.sharp, lpips),
            "edge_sharpness": None if edges is None else edges.sharpness,
            "edge_error": None if edges is None else edges.error,
        }
    return ComparedFrame(recording.name, recording.frames[i].name, scores)
