"""All methods on the same frames, side by side, with the scores of each frame."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from src.data.recordings import Recording
from src.inference.restore import NonFiniteOutputError
from src.metrics.lpips_metric import LpipsMetric
from src.metrics.motion_edges import MotionEdges, find_motion_edges, score_motion_edges
from src.metrics.report import FrameScores, score_frame

BLURRY, RGB_ONLY, SPIKE = "blurry input", "RGB-only baseline", "VRT+Spike"
NO_LEARNING, UNET, BOUND = "no learning", "plain U-Net", "bound at spike resolution"

# From a recording to the number and the uint8 RGB [H, W, 3] of every frame, in order.
Method = Callable[[Recording], Iterator[tuple[int, np.ndarray]]]


@dataclass(frozen=True)
class FrameImages:
    """One frame by all methods and its sharp one, uint8 RGB [H, W, 3], with its motion edges."""

    versions: dict[str, np.ndarray]
    sharp: np.ndarray
    edges: MotionEdges


def blurry_frames(recording: Recording) -> Iterator[tuple[int, np.ndarray]]:
    """Yield what is to be restored, as the first of all methods."""
    yield from ((i, recording.read_blurry(i)) for i in range(len(recording)))


def compare_frames(
    methods: Mapping[str, Method],
    recordings: Iterable[Recording],
    *,
    lpips: LpipsMetric | None,
    on_frame: Callable[[FrameScores, FrameImages], None],
) -> tuple[list[FrameScores], str]:
    """Restore every frame with all methods, the first is `blurry_frames`, and score it.

    Return the scores, and a hash over names, blurry frames, sharp frames and spike counts: results
    with the same hash were measured on the same frames. `on_frame` is called for every frame.
    """
    digest, rows = hashlib.sha256(), []
    for recording in recordings:
        try:
            for results in zip(*(run(recording) for run in methods.values()), strict=True):
                i, restored = results[0][0], (image for _, image in results)
                images = _with_edges(recording, i, dict(zip(methods, restored, strict=True)))
                digest.update(f"{recording.name}/{recording.frames[i].name}\n".encode())
                for array in (images.versions[BLURRY], images.sharp, recording.read_counts(i)):
                    digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
                scores = {
                    name: score_frame(image, images.sharp, lpips)
                    | score_motion_edges(image, images.edges)
                    for name, image in images.versions.items()
                }
                rows.append(FrameScores(recording.name, recording.frames[i].name, scores))
                on_frame(rows[-1], images)
        except NonFiniteOutputError as error:
            raise NonFiniteOutputError(f"{recording.name}: {error}") from error
    return rows, digest.hexdigest()


def _with_edges(recording: Recording, i: int, versions: dict[str, np.ndarray]) -> FrameImages:
    sharp = recording.read_sharp(i)
    before = recording.read_sharp(i - 1) if i > 0 else None
    after = recording.read_sharp(i + 1) if i + 1 < len(recording) else None
    return FrameImages(versions, sharp, find_motion_edges(sharp, before, after))
