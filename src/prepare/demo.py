"""The demo data set: photographs set in motion, seen by an RGB camera and a spike camera.

A source frame is an instantaneous picture, 240 of them per second. A blurry frame is the mean of n
of them, its sharp counterpart the middle one. The spike sensor has half the resolution and reads
out 8 times per source frame; its light is rendered at every tick, nothing is interpolated.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np

from src.data.description import (
    DataDescription,
    fingerprint_data,
    fingerprint_differences,
    read_description,
    write_description,
)
from src.data.errors import DataSetError
from src.data.exposures import EXPOSURES_NAME, Exposure, write_exposures
from src.data.frames import write_png
from src.data.parallel import run_parallel
from src.data.simulation.blur import (
    SOURCE_FRAMES_PER_SECOND,
    TICKS_PER_SOURCE_FRAME,
    blur_window,
    synthesize_blur,
)
from src.data.simulation.simulator import SpikeSimulator
from src.data.spikes.spike_dat import SpikeSidecar, write_sidecar, write_spikes
from src.metrics.psnr_ssim import psnr
from src.prepare.demo_scenes import CutOut, Scene, camera_motion, object_motion

logger = logging.getLogger(__name__)

THRESHOLD = 2.0
TICKS_PER_SECOND = SOURCE_FRAMES_PER_SECOND * TICKS_PER_SOURCE_FRAME
# To be raised whenever the same seed gives other bytes than before.
VERSION = 1
SPLITS = ("train", "val")


@dataclass(frozen=True)
class SequencePlan:
    """What one sequence shows.

    Attributes:
        split: "train" or "val".
        name: its folder.
        background: file name of a photograph.
        pieces: the objects before it, from back to front.
        num_averaged: source frames per blurry frame, odd.
        blur_px: root-mean-square shift of the image centre during one exposure, in RGB pixels.
    """

    split: str
    name: str
    background: str
    pieces: tuple[CutOut, ...]
    num_averaged: int
    blur_px: float


@dataclass(frozen=True)
class DemoPlan:
    """The whole data set.

    Attributes:
        sequences: what is simulated.
        num_frames: blurry frames per sequence.
        size: (height, width) of the RGB frames; the spike sensor has half of both.
    """

    sequences: tuple[SequencePlan, ...]
    num_frames: int = 12
    size: tuple[int, int] = (192, 256)

    def source(self, seed: int) -> str:
        """Say which data this is; equal texts mean equal bytes."""
        height, width = self.size
        counts = [sum(plan.split == split for plan in self.sequences) for split in SPLITS]
        return (
            f"demo scenes version {VERSION}, seed {seed}, {counts[0]}+{counts[1]} sequences of "
            f"{self.num_frames} frames, {height}x{width}, instantaneous source frames"
        )


def demo_plan() -> DemoPlan:
    """Return the shipped data set: no photograph of a validation sequence occurs in training."""
    eye = CutOut("chelsea.png", (205, 130), (95, 80), edge_px=6)
    fur = CutOut("chelsea.png", (240, 150), (95, 85), edge_px=1.5, num_lobes=5)
    face = CutOut("astronaut.png", (222, 115), (62, 78), edge_px=5)
    helmet = CutOut("astronaut.png", (400, 420), (88, 70), edge_px=1.5)
    coin = CutOut("coins.png", (338, 185), (32, 32), edge_px=2, photo_px=1.0)
    tissue = CutOut("ihc.png", (300, 405), (85, 80), edge_px=1.5, num_lobes=7)
    leaves = CutOut("grass.png", (250, 250), (70, 60), edge_px=4, num_lobes=3)
    stones = CutOut("gravel.png", (260, 260), (80, 70), edge_px=1.5, num_lobes=4)
    cup = CutOut("coffee.png", (300, 125), (115, 100), edge_px=2, photo_px=2.0)
    engine = CutOut("motorcycle_left.png", (365, 240), (95, 80), edge_px=3, num_lobes=5)
    return DemoPlan(
        (
            SequencePlan("train", "seq_000", "astronaut.png", (fur,), 11, 9.0),
            SequencePlan("train", "seq_001", "ihc.png", (face,), 7, 8.0),
            SequencePlan("train", "seq_002", "chelsea.png", (coin, tissue), 11, 11.0),
            SequencePlan("train", "seq_003", "rocket.jpg", (stones, eye), 7, 10.0),
            SequencePlan("train", "seq_004", "camera.png", (helmet,), 11, 8.0),
            SequencePlan("train", "seq_005", "gravel.png", (leaves, face), 7, 7.0),
            SequencePlan("val", "seq_100", "motorcycle_left.png", (cup,), 11, 8.0),
            SequencePlan("val", "seq_101", "coffee.png", (engine,), 7, 9.0),
        )
    )


@dataclass(frozen=True)
class SequenceReport:
    """What came out: PSNR of blurry against sharp in dB, mean over frames, and the mean rate."""

    plan: SequencePlan
    blurry_psnr_db: float
    spike_rate: float


def make_demo_data(
    output: str | Path,
    seed: int,
    plan: DemoPlan,
    num_workers: int = 1,
    on_done: Callable[[SequenceReport], None] = lambda report: None,
) -> list[SequenceReport] | None:
    """Write the data set, or nothing where it is there already.

    Everything is made in a hidden folder beside `output`, which is renamed when it is complete. The
    same seed, which draws motion and spikes, gives the same bytes. A DataSetError says that
    `output` holds other data, or demo data that was changed.
    `on_done` is called after each sequence.

    Returns:
        one report per sequence in the order of the plan, or None if nothing was to do.
    """
    output = Path(output)
    if _is_complete(output, plan.source(seed)):
        return None
    output.parent.mkdir(parents=True, exist_ok=True)
    for leftover in output.parent.glob(f".partial-*-{output.name}"):
        logger.warning("%s: left by an interrupted run; delete it if none is running", leftover)
    with TemporaryDirectory(
        prefix=".partial-", suffix=f"-{output.name}", dir=output.parent
    ) as name:
        root = Path(name) / output.name
        # The longest first, so that no process waits for another at the end.
        order = sorted(
            range(len(plan.sequences)), key=lambda index: -plan.sequences[index].num_averaged
        )
        make = functools.partial(simulate_sequence, root, plan, seed)
        reports = {}
        for number, report in run_parallel(make, order, num_workers, "demo data"):
            reports[order[number]] = report
            on_done(report)
        write_description(root, _describe(root, seed, plan))
        try:
            root.replace(output)
        except OSError:  # no error where another run made the same data meanwhile
            if not _is_complete(output, plan.source(seed)):
                raise
    return [reports[index] for index in range(len(plan.sequences))]


def simulate_sequence(root: Path, plan: DemoPlan, seed: int, index: int) -> SequenceReport:
    """Render, simulate and write one sequence below `root`; see the module's first lines."""
    cv2.setNumThreads(1)
    sequence = plan.sequences[index]
    scene, spike_seed = build_scene(plan, index, seed)
    height, width = plan.size
    sensor = SpikeSimulator(height // 2, width // 2, seed=spike_seed, threshold=THRESHOLD)
    sidecar = SpikeSidecar(height // 2, width // 2, float(TICKS_PER_SECOND), THRESHOLD)
    folder = root / sequence.split / sequence.name
    write_sidecar(folder / "spike", sidecar)
    exposures, scores, rates = {}, [], []
    for k in range(plan.num_frames):
        window = blur_window(k, sequence.num_averaged)
        numbers = range(window.first_frame, window.stop_frame)
        frames = np.stack([scene.rgb(j / SOURCE_FRAMES_PER_SECOND) for j in numbers])
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


def build_scene(plan: DemoPlan, index: int, seed: int) -> tuple[Scene, int]:
    """Draw the motion of a sequence; return its scene and the seed of its spike sensor."""
    rng = np.random.default_rng([seed, index])
    sequence = plan.sequences[index]
    height, width = plan.size
    exposure = sequence.num_averaged / SOURCE_FRAMES_PER_SECOND
    duration = plan.num_frames * exposure
    speed_px = sequence.blur_px / exposure
    camera = camera_motion(rng, speed_px, duration)
    reach_px = (0.3 * width, 0.2 * height)
    objects = tuple((piece, object_motion(rng, reach_px, speed_px)) for piece in sequence.pieces)
    scene = Scene(sequence.background, objects, camera, plan.size, duration)
    return scene, int(rng.integers(2**31))


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


def _is_complete(output: Path, source: str) -> bool:
    """Return whether `output` holds this very data; False where there is nothing yet."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    description = read_description(output) if output.is_dir() else None
    if description is None:
        problem = "is not demo data; choose another --output, nothing was changed"
    elif description.source != source:
        problem = (
            f"holds other data ({description.source!r}), wanted is {source!r}; delete that folder "
            "or choose another --output, nothing was changed"
        )
    else:
        changes = fingerprint_differences(description.fingerprint, fingerprint_data(output, SPLITS))
        if not changes:
            return True
        problem = (
            f"was changed after it was made ({'; '.join(changes)}); delete that folder and run "
            "this again"
        )
    raise DataSetError(str(output), [problem])
