"""The demo data set: photographs set in motion, seen by an RGB camera and a spike camera.

A source frame is an instantaneous picture, 240 of them per second. A blurry frame is the mean of n
of them, its sharp counterpart the middle one. The spike sensor has half the resolution and reads
out 8 times per source frame; its light is rendered at every tick, nothing is interpolated.
"""

import functools
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from src.data.description import (
    FILE_NAME,
    DataDescription,
    fingerprint_data,
    read_description,
    write_description,
)
from src.data.errors import DataSetError
from src.data.exposures import EXPOSURES_NAME, Exposure, write_exposures
from src.data.frames import write_png
from src.data.parallel import locked, run_parallel
from src.data.simulation.blur import (
    SOURCE_FRAMES_PER_SECOND,
    TICKS_PER_SOURCE_FRAME,
    synthesize_blur,
)
from src.data.simulation.simulator import SpikeSimulator
from src.data.spikes.spike_dat import SpikeSidecar, write_sidecar, write_spikes
from src.metrics.psnr_ssim import psnr
from src.prepare.demo_scenes import CutOut, Scene, camera_motion, object_motion
from src.prepare.sources.simulate import frame_exposure

THRESHOLD = 2.0
TICKS_PER_SECOND = SOURCE_FRAMES_PER_SECOND * TICKS_PER_SOURCE_FRAME
# To be raised whenever the same seed gives other bytes than before.
VERSION = 1
SPLITS = ("train", "val")
LOCK_NAME, SCENE_NAME = ".making", "scene.yaml"


@dataclass(frozen=True)
class SequencePlan:
    """What one sequence shows."""

    split: str  # "train" or "val"
    name: str  # its folder
    background: str  # file name of a photograph
    objects: tuple[CutOut, ...]  # the objects before it, from back to front
    num_averaged: int  # source frames per blurry frame, odd
    blur_px: float  # root-mean-square shift of the image centre in one exposure, in RGB pixels


@dataclass(frozen=True)
class DemoPlan:
    """The whole data set."""

    sequences: tuple[SequencePlan, ...]
    num_frames: int = 12  # blurry frames per sequence
    size: tuple[int, int] = (192, 256)  # of the RGB frames; the spike sensor has half of both

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


# ---------------------------------------------------------------- writing a data root


@dataclass(frozen=True)
class SequenceReport:
    """What came out: PSNR of blurry against sharp in dB, mean over frames, and the mean rate."""

    plan: Any
    blurry_psnr_db: float
    spike_rate: float


class Planned(NamedTuple):
    """A sequence to make."""

    path: str  # SPLIT/SEQUENCE
    num_frames: int
    text: str  # of its scene.yaml; empty: it has none
    plan: Any


def fill_root(
    output: Path,
    description: DataDescription,
    planned: Iterable[Planned],
    make: Callable[[Path, Any], SequenceReport],
    num_workers: int,
    on_done: Callable[[SequenceReport], None] = lambda report: None,
    *,
    wait: bool,
) -> list[SequenceReport]:
    """Make the sequences that are not there yet; return what came out, in order.

    Each is made in a hidden folder and renamed, so a run that was stopped can be repeated. Other
    data, a sequence that was changed or, unless it should `wait`, another process there are a
    DataSetError.
    """
    _refuse_other_data(output, description.source)
    with locked(output / LOCK_NAME, wait=wait) as is_free:
        if not is_free:
            raise DataSetError(str(output), ["another process is writing scenes there; wait"])
        if read_description(output) is None:
            write_description(output, description)
        missing = [sequence for sequence in planned if not _is_there(output, sequence)]
        write, reports = functools.partial(_write_hidden, make, output), {}
        for number, reports[number] in run_parallel(write, missing, num_workers, "scenes"):
            on_done(reports[number])
        if missing or not read_description(output).fingerprint:
            splits = [split for split in SPLITS if (output / split).is_dir()]
            fingerprint = fingerprint_data(output, splits)
            write_description(output, replace(description, fingerprint=fingerprint))
    return [reports[number] for number in sorted(reports)]


def _refuse_other_data(output: Path, source: str) -> None:
    there = [path for path in output.glob("*") if path.name != LOCK_NAME]
    found = read_description(output)
    if output.is_file() or (there and found is None):
        problem = f"is no folder with a {FILE_NAME}, so it is not known whose data these are"
    elif found is not None and found.source != source:
        problem = f"holds other data ({found.source!r}), wanted is {source!r}"
    else:
        return
    raise DataSetError(str(output), [f"{problem}; choose another --output, nothing was changed"])


def _is_there(root: Path, sequence: Planned) -> bool:
    """Return whether a sequence is there, whole; a DataSetError where it is changed."""
    folder, n = root / sequence.path, sequence.num_frames
    if not folder.exists():
        return False
    found = [len(list((folder / name).glob("[!.]*"))) for name in ("blur", "sharp", "spike")]
    file = folder / SCENE_NAME
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    if found == [n, n, n + 1] and (folder / EXPOSURES_NAME).is_file() and text == sequence.text:
        return True
    problem = "was changed after it was made; delete that folder and run this again"
    raise DataSetError(str(folder), [problem])


def _write_hidden(
    make: Callable[[Path, Any], SequenceReport], root: Path, sequence: Planned
) -> SequenceReport:
    cv2.setNumThreads(1)
    folder = root / sequence.path
    partial = folder.with_name(f".{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was stopped
    report = make(partial, sequence.plan)
    if sequence.text:
        (partial / SCENE_NAME).write_text(sequence.text, encoding="utf-8")
    partial.replace(folder)
    return report


def write_sequence(
    folder: Path,
    plan: Any,
    sidecar: SpikeSidecar,
    frames: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray, Exposure]],
) -> SequenceReport:
    """Write the files of a sequence: blurry and sharp frame, spikes, exposure of each frame."""
    write_sidecar(folder / "spike", sidecar)
    exposures, scores, rates = {}, [], []
    for k, (blurry, sharp, spikes, exposure) in enumerate(frames):
        write_png(folder / "blur" / f"{k:06d}.png", blurry)
        write_png(folder / "sharp" / f"{k:06d}.png", sharp)
        write_spikes(folder / "spike" / f"{k:06d}.dat", spikes, sidecar.geometry)
        exposures[k] = exposure
        scores.append(psnr(blurry, sharp))
        rates.append(spikes.mean())
    write_exposures(folder / EXPOSURES_NAME, exposures)
    return SequenceReport(plan, float(np.mean(scores)), float(np.mean(rates)))


# ---------------------------------------------------------------- the demo


def make_demo_data(
    output: str | Path,
    seed: int,
    plan: DemoPlan,
    num_workers: int = 1,
    on_done: Callable[[SequenceReport], None] = lambda report: None,
) -> list[SequenceReport]:
    """Write the sequences of the data set that are not there yet, see `fill_root`.

    The same seed, which draws motion and spikes, gives the same bytes.
    """
    height, width = plan.size
    description = DataDescription(
        source=plan.source(seed),
        blur_kind="blur",
        frames_averaged=tuple(sorted({sequence.num_averaged for sequence in plan.sequences})),
        transfer="encoded",
        threshold=THRESHOLD,
        ticks_per_second=float(TICKS_PER_SECOND),
        spike_height=height // 2,
        spike_width=width // 2,
        interpolator="none",
    )
    planned = [
        Planned(f"{sequence.split}/{sequence.name}", plan.num_frames, "", index)
        for index, sequence in enumerate(plan.sequences)
    ]
    make = functools.partial(simulate_sequence, plan, seed)
    return fill_root(Path(output), description, planned, make, num_workers, on_done, wait=True)


def simulate_sequence(plan: DemoPlan, seed: int, folder: Path, index: int) -> SequenceReport:
    """Render, simulate and write one sequence; see the module's first lines."""
    sequence = plan.sequences[index]
    scene, spike_seed = build_scene(plan, index, seed)
    height, width = plan.size
    sensor = SpikeSimulator(height // 2, width // 2, seed=spike_seed, threshold=THRESHOLD)

    def expose(k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, Exposure]:
        n = sequence.num_averaged
        e = frame_exposure(k, k * n, n, TICKS_PER_SOURCE_FRAME)
        frames = range(k * n, (k + 1) * n)
        pictures = np.stack([scene.rgb(j / SOURCE_FRAMES_PER_SECOND) for j in frames])
        ticks = range(e.start_tick, e.stop_tick)
        light = np.stack([scene.half_grey(q / TICKS_PER_SECOND) for q in ticks])
        t0, t1, t_sharp = (q / TICKS_PER_SECOND for q in (e.start_tick, e.stop_tick, e.sharp_tick))
        exposure = Exposure(t0, t1, t_sharp=t_sharp)
        return synthesize_blur(pictures), pictures[n // 2], sensor.expose(light), exposure

    sidecar = SpikeSidecar(height // 2, width // 2, float(TICKS_PER_SECOND), THRESHOLD)
    return write_sequence(folder, sequence, sidecar, map(expose, range(plan.num_frames)))


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
    objects = tuple((part, object_motion(rng, reach_px, speed_px)) for part in sequence.objects)
    scene = Scene(sequence.background, objects, camera, plan.size, duration)
    return scene, int(rng.integers(2**31))
