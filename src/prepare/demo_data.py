"""The demo data set: photographs set in motion, filmed by an RGB camera and a spike camera.

A source frame is an instantaneous picture, 240 of them per second. A blurry frame is the mean of n
of them, its sharp counterpart the middle one. The spike sensor has half the resolution and reads
out 8 times per source frame; its light is rendered at every tick, nothing is interpolated.
"""

import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from src.data.description import (
    DataDescription,
    fingerprint_data,
    fingerprint_differences,
    read_description,
    write_description,
)
from src.data.exposures import EXPOSURES_NAME, Exposure, write_exposures
from src.data.frames import write_png
from src.data.simulation.blur import (
    SOURCE_FRAMES_PER_SECOND,
    TICKS_PER_SOURCE_FRAME,
    blur_window,
    synthesize_blur,
)
from src.data.simulation.simulator import SpikeSimulator
from src.data.spikes.spike_dat import SpikeSidecar, write_sidecar, write_spikes
from src.metrics.psnr_ssim import psnr
from src.prepare.demo_motion import camera_motion, object_motion
from src.prepare.demo_plan import SPLITS, DemoPlan, SequencePlan
from src.prepare.demo_scenes import Scene, SceneObject

logger = logging.getLogger(__name__)

THRESHOLD = 2.0
TICKS_PER_SECOND = SOURCE_FRAMES_PER_SECOND * TICKS_PER_SOURCE_FRAME


@dataclass(frozen=True)
class SequenceReport:
    """What came out: PSNR of blurry against sharp in dB, mean over frames, and the mean rate."""

    plan: SequencePlan
    blurry_psnr_db: float
    spike_rate: float


class DemoDataError(RuntimeError):
    """The output folder holds something else; the message says what to do."""


def make_demo_data(
    output: str | Path,
    seed: int,
    plan: DemoPlan,
    num_workers: int = 1,
    on_done: Callable[[SequenceReport], None] | None = None,
) -> list[SequenceReport] | None:
    """Write the data set, or nothing where it is there already.

    Everything is made in a partial folder beside `output`, which is renamed when it is complete.

    Args:
        output: data root to make.
        seed: draws motion and spikes; the same seed gives the same bytes.
        plan: what to film.
        num_workers: processes.
        on_done: called after each sequence, in the order in which they finish.

    Returns:
        one report per sequence in the order of the plan, or None if nothing was to do.

    Raises:
        DemoDataError: `output` holds other data, or demo data that was changed.
    """
    output = Path(output)
    if _is_complete(output, plan.source(seed)):
        return None
    partial = output.with_name(f".partial-{os.getpid()}-{output.name}")
    for leftover in output.parent.glob(f".partial-*-{output.name}"):
        logger.warning("%s: left by an interrupted run; delete it if none is running", leftover)
    try:
        partial.mkdir(parents=True)
        reports = _film_all(partial, seed, plan, num_workers, on_done)
        write_description(partial, _describe(partial, seed, plan))
        _put_in_place(partial, output, plan.source(seed))
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return reports


def film_sequence(root: Path, plan: DemoPlan, index: int, seed: int) -> SequenceReport:
    """Render, simulate and write one sequence below `root`; see the module's first lines."""
    cv2.setNumThreads(1)
    sequence = plan.sequences[index]
    scene, spike_seed = _build_scene(plan, index, seed)
    height, width = plan.size
    sensor = SpikeSimulator(height // 2, width // 2, seed=spike_seed, threshold=THRESHOLD)
    sidecar = SpikeSidecar(height // 2, width // 2, float(TICKS_PER_SECOND), THRESHOLD)
    folder = root / sequence.split / sequence.name
    write_sidecar(folder / "spike", sidecar)
    exposures, scores, rates = {}, [], []
    for k in range(plan.num_frames):
        window = blur_window(k, sequence.num_averaged)
        frames = np.stack(
            [
                scene.rgb(j / SOURCE_FRAMES_PER_SECOND)
                for j in range(window.first_frame, window.stop_frame)
            ]
        )
        blurry = synthesize_blur(frames)
        sharp = frames[window.sharp_frame - window.first_frame]
        ticks = range(window.start_tick, window.stop_tick)
        spikes = sensor.expose(np.stack([scene.half_grey(q / TICKS_PER_SECOND) for q in ticks]))
        write_png(folder / "blur" / f"{k:06d}.png", blurry)
        write_png(folder / "sharp" / f"{k:06d}.png", sharp)
        write_spikes(folder / "spike" / f"{k:06d}.dat", spikes, sidecar.geometry)
        t_sharp = window.sharp_frame / SOURCE_FRAMES_PER_SECOND
        exposures[k] = Exposure(window.t0, window.t1, t_sharp=t_sharp)
        scores.append(psnr(blurry, sharp))
        rates.append(spikes.mean())
    write_exposures(folder / EXPOSURES_NAME, exposures)
    return SequenceReport(sequence, float(np.mean(scores)), float(np.mean(rates)))


def _build_scene(plan: DemoPlan, index: int, seed: int) -> tuple[Scene, int]:
    """Draw the motion of a sequence; return its scene and the seed of its spike sensor."""
    rng = np.random.default_rng([seed, index])
    sequence = plan.sequences[index]
    height, width = plan.size
    exposure = sequence.num_averaged / SOURCE_FRAMES_PER_SECOND
    duration = plan.num_frames * exposure
    speed_px = sequence.blur_px / exposure
    camera = camera_motion(rng, speed_px, duration)
    reach_px = (0.3 * width, 0.2 * height)
    objects = tuple(
        SceneObject(piece, object_motion(rng, reach_px, speed_px)) for piece in sequence.pieces
    )
    scene = Scene(sequence.background, objects, camera, plan.size, duration)
    return scene, int(rng.integers(2**31))


def _film_all(
    root: Path,
    seed: int,
    plan: DemoPlan,
    num_workers: int,
    on_done: Callable[[SequenceReport], None] | None,
) -> list[SequenceReport]:
    """Film the sequences in worker processes; a failure of one stops all."""
    indices = range(len(plan.sequences))
    reports: dict[int, SequenceReport] = {}
    num_workers = min(num_workers, len(indices))
    if num_workers < 2:
        for index in indices:
            reports[index] = film_sequence(root, plan, index, seed)
            if on_done:
                on_done(reports[index])
        return [reports[index] for index in indices]
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        # The longest first, so that no worker waits for another at the end.
        order = sorted(indices, key=lambda index: -plan.sequences[index].num_averaged)
        futures = {pool.submit(film_sequence, root, plan, i, seed): i for i in order}
        try:
            for future in as_completed(futures):
                reports[futures[future]] = future.result()
                if on_done:
                    on_done(future.result())
        finally:
            pool.shutdown(cancel_futures=True)
    return [reports[index] for index in indices]


def _describe(root: Path, seed: int, plan: DemoPlan) -> DataDescription:
    height, width = plan.size
    return DataDescription(
        source=plan.source(seed),
        blur_kind="blur",
        frames_averaged=tuple(sorted({sequence.num_averaged for sequence in plan.sequences})),
        transfer="encoded",
        threshold=THRESHOLD,
        ticks_per_second=float(TICKS_PER_SECOND),
        spike_height=height // 2,
        spike_width=width // 2,
        interpolator="none",
        fingerprint=fingerprint_data(root, SPLITS),
    )


def _put_in_place(partial: Path, output: Path, source: str) -> None:
    """Rename the finished folder; another run that made the same data meanwhile is no error."""
    try:
        partial.replace(output)
    except OSError:
        if not _is_complete(output, source):
            raise


def _is_complete(output: Path, source: str) -> bool:
    """Return whether `output` holds this very data; False where there is nothing yet."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    description = read_description(output) if output.is_dir() else None
    if description is None:
        raise DemoDataError(
            f"{output} exists and is not demo data; choose another --output, nothing was changed"
        )
    if description.source != source:
        raise DemoDataError(
            f"{output} holds other data ({description.source!r}), wanted is {source!r}; delete "
            "that folder or choose another --output, nothing was changed"
        )
    changes = fingerprint_differences(description.fingerprint, fingerprint_data(output, SPLITS))
    if changes:
        raise DemoDataError(
            f"{output} was changed after it was made ({'; '.join(changes)}); delete that folder "
            "and run this again"
        )
    return True
