"""Reading high-speed frames, and simulating against a slow twin that follows the formulas."""

import dataclasses
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from src.data.errors import BadFileError, DataSetError
from src.data.exposures import read_exposures
from src.data.frames import read_image, write_png
from src.data.simulation.blur import BlurAccumulator
from src.data.simulation.simulator import BT601, SpikeSimulator
from src.data.spikes.spike_dat import SpikeFile, read_sidecar
from src.prepare.sources import simulate
from src.prepare.sources.high_speed import image_size, open_frames
from src.prepare.sources.planning import SourceOptions
from src.prepare.sources.simulate import (
    Simulation,
    frame_weights,
    regular_exposures,
    sequence_seed,
)
from tests.source_cases import Drift

SIZE = (32, 48)
CAMERAS = SourceOptions(
    Path(),
    blur_kind="blur",
    transfer="encoded",
    threshold=2.0,
    downscale=2,
    interpolator="linear",
    ticks_per_frame=8,
    frames_per_second=240,
    seed=3,
)


def frames_of(count, seed=0):
    scene = Drift(seed, SIZE)
    return np.stack([scene.at(j) for j in range(count)])


@dataclasses.dataclass(frozen=True)
class Frames:
    """Sharp frames in memory; `count` is the number that is stated."""

    images: object
    count: int
    size: tuple = SIZE

    def __len__(self):
        return self.count

    def __iter__(self):
        return iter(self.images)


def plan_of(count, exposures, num_ticks=None, frames=None, **changes):
    cameras = dataclasses.replace(CAMERAS, **changes)
    ticks = count * cameras.ticks_per_frame if num_ticks is None else num_ticks
    frames = Frames(frames_of(count) if frames is None else frames, count)
    return Simulation("train/a", frames, exposures, ticks, cameras)


def run(plan, folder):
    """Write a sequence; return bits [S, h, w], blurry and sharp frames by index."""
    folder.mkdir()
    assert plan.write(folder) == []
    path = folder / "spike/spike.dat"
    stream = SpikeFile(path, read_sidecar(path).geometry)
    images = [
        {w.index: read_image(folder / kind / f"{w.name}.png") for w in plan.exposures}
        for kind in ("blur", "sharp")
    ]
    return stream.read(0, stream.num_ticks), *images


def twin(plan):
    """The same from whole arrays: light at every tick, its mean, its spikes."""
    c, frames = plan.cameras, plan.frames.images
    gamma = 2.2 if c.blur_kind == "blur_gamma" else 1.0
    values, p = frames / 255.0, c.ticks_per_frame
    following = np.concatenate([values[1:], values[-1:]])

    def at(q, power):
        part = q % p / p
        return (1 - part) * values[q // p] ** power + part * following[q // p] ** power

    def picture(ticks):
        return 255 * np.mean([at(q, gamma) for q in ticks], axis=0) ** (1 / gamma)

    blurry = {
        w.index: picture(range(w.start_tick, w.stop_tick, w.step_ticks)) for w in plan.exposures
    }
    sharp = {w.index: picture([w.sharp_tick]) for w in plan.exposures}
    power = 2.2 if c.transfer == "linear" else 1.0
    height, width = plan.spike_size
    light = np.stack([at(q, power) @ BT601 for q in range(plan.num_ticks)])
    light = light.reshape(-1, height, c.downscale, width, c.downscale).mean(axis=(2, 4))
    seed = sequence_seed(c.seed, plan.where)
    sensor = SpikeSimulator(height, width, seed=seed, threshold=c.threshold)
    return sensor.expose(np.clip(light, 0, 1)), blurry, sharp


PLANS = {
    "abutting, cross-fades": (30, {}, regular_exposures(30, 7, 7, 8)),
    "abutting, gamma, linear light": (
        *(24, {"blur_kind": "blur_gamma", "transfer": "linear", "threshold": 1.0}),
        regular_exposures(24, 11, 11, 8),
    ),
    "overlapping ticks": (20, {"ticks_per_frame": 4}, regular_exposures(77, 33, 15, 1)),
    "overlapping ticks, gamma": (
        *(20, {"ticks_per_frame": 4, "blur_kind": "blur_gamma"}),
        regular_exposures(77, 33, 15, 1),
    ),
    "overlapping frames": (
        *(25, {"ticks_per_frame": 1, "interpolator": "none"}),
        regular_exposures(25, 9, 2, 1),
    ),
    "gaps between exposures": (30, {}, regular_exposures(30, 5, 9, 8)),
    "one frame averaged, downscale 1": (6, {"downscale": 1}, regular_exposures(6, 1, 1, 8)),
}


@pytest.mark.parametrize("name", PLANS)
def test_streaming_equals_the_twin(tmp_path, name):
    count, changes, exposures = PLANS[name]
    plan = plan_of(count, exposures, 77 if "ticks" in name else None, **changes)
    bits, blurry, sharp = run(plan, tmp_path / "a")
    twin_bits, twin_blurry, twin_sharp = twin(plan)
    assert bits.shape == twin_bits.shape == (plan.num_ticks, *plan.spike_size)
    # The light is summed in float32 here: a pixel right at its threshold may fire a tick later.
    assert (bits != twin_bits).mean() < 1e-4
    assert np.abs(bits.sum(axis=0, dtype=int) - twin_bits.sum(axis=0, dtype=int)).max() <= 1
    assert 0.1 < bits.mean() < 0.9
    assert len(blurry) == len(plan.exposures) > 1
    for index in blurry:
        assert np.abs(blurry[index] - twin_blurry[index]).max() <= 0.5 + 1e-6
        assert np.abs(sharp[index] - twin_sharp[index]).max() <= 0.5 + 1e-6


def test_no_more_sums_are_held_than_exposures_overlap(tmp_path, monkeypatch):
    held = []

    class Counted(BlurAccumulator):
        living = 0

        def __init__(self, *arguments):
            super().__init__(*arguments)
            Counted.living += 1
            held.append(Counted.living)

        def mean(self):
            Counted.living -= 1
            return super().mean()

    monkeypatch.setattr(simulate, "BlurAccumulator", Counted)
    plan = plan_of(60, regular_exposures(60, 17, 4, 1), ticks_per_frame=1, interpolator="none")
    run(plan, tmp_path / "a")
    assert len(held) == len(plan.exposures) == 11
    assert 4 <= max(held) <= 5


def test_weights_by_hand():
    assert frame_weights([6], 4, 9) == {1: 1, 2: 1}
    assert frame_weights([8], 4, 9) == {2: 1}
    assert frame_weights([5, 6, 7, 8], 4, 9) == {1: 3, 2: 5}  # (3+2+1) : (1+2+3+4) = 6 : 10
    assert frame_weights(range(0, 56, 8), 8, 7) == dict.fromkeys(range(7), 1)
    assert frame_weights([35], 4, 9) == {8: 1}  # the last frame is held
    assert frame_weights([3, 4], 1, 9) == {3: 1, 4: 1}


def test_exposures_by_hand():
    ticks = [(w.start_tick, w.stop_tick, w.sharp_tick) for w in regular_exposures(33, 11, 11, 8)]
    assert ticks == [(0, 88, 40), (88, 176, 128), (176, 264, 216)]
    ticks = [(w.start_tick, w.stop_tick, w.sharp_tick) for w in regular_exposures(257, 65, 15, 1)]
    assert ticks[:2] == [(0, 65, 32), (15, 80, 47)]
    assert ticks[-1] == (180, 245, 212)


def test_the_seed_is_that_of_the_sequence(tmp_path):
    plan = plan_of(8, regular_exposures(8, 7, 7, 8))
    first = run(plan, tmp_path / "a")[0]
    assert np.array_equal(run(plan, tmp_path / "b")[0], first)
    other = dataclasses.replace(plan, where="train/other")
    assert not np.array_equal(run(other, tmp_path / "c")[0], first)
    assert sequence_seed(0, "train/a") != sequence_seed(1, "train/a")


def test_exposures_are_written_with_the_instant_of_the_sharp_frame(tmp_path):
    run(plan_of(15, regular_exposures(15, 7, 7, 8)), tmp_path / "clip")
    assert (tmp_path / "clip/exposures.csv").read_text().splitlines()[0] == (
        "frame_idx,t0[s],t1[s],t_sharp[s]"
    )
    exposure = read_exposures(tmp_path / "clip/exposures.csv", None)[1]
    assert (exposure.t0, exposure.t1, exposure.t_sharp) == (56 / 1920, 112 / 1920, 80 / 1920)


@pytest.mark.parametrize("count", [13, 15])
def test_another_number_of_frames_than_planned(tmp_path, count):
    with pytest.raises(ValueError, match=rf"{count} frames, 14 were planned"):
        run(plan_of(14, regular_exposures(14, 7, 7, 8), frames=frames_of(count)), tmp_path / "a")


# ---------------------------------------------------------------- frames of a recording


def write_folder(folder, names):
    for j, name in enumerate(names):
        write_png(folder / f"{name}.png", Drift(0, SIZE).at(j))
    return folder


def test_frames_come_in_order_of_their_numbers(tmp_path):
    names = [f"shot_{number}" for number in (8, 9, 10, 11)]  # as text 10 comes before 8
    found = open_frames(write_folder(tmp_path / "a", names))
    assert [path.stem for path in found.files] == names
    assert (len(found), found.size) == (4, SIZE)
    assert found.num_bytes == sum(path.stat().st_size for path in found.files)
    assert all(np.array_equal(a, b) for a, b in zip(found, frames_of(4), strict=True))
    again = pickle.loads(pickle.dumps(found))  # noqa: S301 (our own bytes)
    assert np.array_equal(next(iter(again)), frames_of(1)[0])


@pytest.mark.parametrize(
    ("names", "first", "message"),
    [
        ([], None, "no images"),
        (["first", "second"], None, "does not end in a number"),
        (["a_1", "b_1"], None, r"numbers \[1\] exist under several names"),
        (["47", "48", "50", "55"], 47, "images 49, 51 to 54 are missing between 47 and 55"),
        ([f"{2 * i:03d}" for i in range(20)], 0, "19 and 9 more are missing"),
        (["0001", "0002"], 0, "the first image has number 1, 0 is needed"),
        (["1700000000123", "1700000000456"], None, "no numbers of frames .*times; rename the 2"),
    ],
)
def test_f34_folders_that_are_no_recording(tmp_path, names, first, message):
    (tmp_path / "a").mkdir()
    write_folder(tmp_path / "a", names)
    with pytest.raises(DataSetError, match=message):
        open_frames(tmp_path / "a", first)


@pytest.mark.parametrize("fault", ["f33 truncated", "f36 another size"])
def test_f33_f36_a_broken_frame_is_named_when_it_comes(tmp_path, fault):
    folder = write_folder(tmp_path / "a", ["0", "1", "2"])
    message = r"1\.png: truncated PNG"
    if fault == "f33 truncated":
        (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:300])
    else:
        message = r"1\.png: is \(32, 64\), the first frame"
        write_png(folder / "1.png", Drift(1, (32, 64)).at(0))
    reader = iter(open_frames(folder))
    next(reader)
    with pytest.raises(BadFileError, match=message):
        next(reader)


def test_size_without_decoding(tmp_path):
    write_folder(tmp_path, ["1"])
    assert image_size(tmp_path / "1.png") == SIZE
    cv2.imwrite(str(tmp_path / "2.jpg"), frames_of(1)[0])
    assert image_size(tmp_path / "2.jpg") == SIZE
    (tmp_path / "3.png").write_bytes(b"no image")
    with pytest.raises(BadFileError, match="not an image"):
        image_size(tmp_path / "3.png")
