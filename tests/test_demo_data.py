"""Demo data on a miniature: alignment, content, same bytes, and nothing of others overwritten."""

import dataclasses
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from scripts.make_demo_data import main as script_main
from src.data.description import fingerprint_data, read_description
from src.data.frames import read_image
from src.data.simulation.blur import synthesize_blur
from src.data.simulation.simulator import SpikeSimulator, rgb_to_intensity
from src.data.spikes.reconstruct import tfp
from src.data.spikes.spike_dat import SpikeFile, read_sidecar
from src.metrics.psnr_ssim import psnr
from src.prepare import demo
from src.prepare.demo import DemoPlan, SequencePlan, demo_plan, make_demo_data
from src.prepare.demo_scenes import CutOut
from tests.spike_cases import blur_window

COIN = CutOut("coins.png", (338, 185), (32, 32), edge_px=2, photo_px=2.0)
MINIATURE = DemoPlan(
    (
        SequencePlan("train", "seq_000", "astronaut.png", (COIN,), 11, 7.0),
        SequencePlan("val", "seq_100", "gravel.png", (COIN,), 7, 7.0),
    ),
    num_frames=3,
    size=(64, 96),
)
SEED = 5


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The miniature, made once: its folder and its reports."""
    root = tmp_path_factory.mktemp("demo") / "data"
    return root, make_demo_data(root, SEED, MINIATURE)


@pytest.fixture
def copy(made, tmp_path):
    """A copy of the miniature that a test may damage."""
    return Path(shutil.copytree(made[0], tmp_path / "data"))


def all_bytes(root):
    files = (path for path in root.rglob("[!.]*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def frames_of(root, sequence):
    """Yield number, blurry, sharp, spikes of each frame of a sequence."""
    folder = root / sequence.split / sequence.name
    for k in range(MINIATURE.num_frames):
        path = folder / "spike" / f"{k:06d}.dat"
        file = SpikeFile(path, read_sidecar(path).geometry)
        yield (
            k,
            read_image(folder / "blur" / f"{k:06d}.png"),
            read_image(folder / "sharp" / f"{k:06d}.png"),
            file.read(0, file.num_ticks),
        )


# ---------------------------------------------------------------- content


@pytest.mark.parametrize("index", [0, 1])
def test_the_best_tfp_centre_is_the_stated_tick(made, index):
    """Within half a tick of 4(n-1): 40 of 88 ticks for n = 11, 24 of 56 for n = 7."""
    sequence = MINIATURE.sequences[index]
    stated = {11: 40, 7: 24}[sequence.num_averaged]
    centres = np.arange(stated - 6, stated + 7)
    error = np.zeros(len(centres))
    for _, _, sharp, spikes in frames_of(made[0], sequence):
        assert len(spikes) == 8 * sequence.num_averaged
        truth = rgb_to_intensity(sharp, downscale=2)
        images = [tfp(spikes, centre, 17, threshold=2.0) for centre in centres]
        error += [np.mean((image - truth) ** 2) for image in images]
    curvature, slope, _ = np.polyfit(centres - stated, error, 2)
    assert curvature > 0
    assert abs(slope / (2 * curvature)) < 0.5
    assert centres[error.argmin()] == stated


@pytest.mark.parametrize("index", [0, 1])
def test_frames_are_the_mean_and_the_middle_of_the_source_frames(made, index):
    sequence = MINIATURE.sequences[index]
    scene, _ = demo.build_scene(MINIATURE, index, SEED)
    for k, blurry, sharp, _ in frames_of(made[0], sequence):
        window = blur_window(k, sequence.num_averaged)
        source = [scene.rgb(j / 240) for j in range(window.first_frame, window.stop_frame)]
        assert np.array_equal(blurry, synthesize_blur(np.stack(source)))
        assert np.array_equal(sharp, source[(sequence.num_averaged - 1) // 2])
    scores = [psnr(blurry, sharp) for _, blurry, sharp, _ in frames_of(made[0], sequence)]
    report = made[1][index]
    assert (report.plan, report.blurry_psnr_db) == (sequence, pytest.approx(np.mean(scores)))
    assert 14 < report.blurry_psnr_db < 30  # as in published sets
    assert 0.1 < report.spike_rate < 0.4


def test_spikes_of_all_frames_are_one_exposure_with_the_membrane_carried(made):
    sequence = MINIATURE.sequences[1]
    scene, spike_seed = demo.build_scene(MINIATURE, 1, SEED)
    light = np.stack([scene.half_grey(q / 1920) for q in range(3 * 56)])
    whole = SpikeSimulator(32, 48, seed=spike_seed, threshold=2.0).expose(light)
    parts = [spikes for _, _, _, spikes in frames_of(made[0], sequence)]
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("index", [0, 1])
def test_the_spike_sensor_sees_the_rgb_picture_at_half_size(index):
    scene, _ = demo.build_scene(MINIATURE, index, SEED)
    for seconds in (0.0, 0.05, 0.07):
        seen, expected = scene.half_grey(seconds), rgb_to_intensity(scene.rgb(seconds), downscale=2)
        assert np.abs(seen - expected).mean() < 0.02
        shifted = np.roll(expected, 1, axis=1)
        assert np.abs(seen - expected).mean() < 0.3 * np.abs(seen - shifted).mean()


def test_the_shipped_plan_separates_photographs_and_samples_them_finely_enough():
    plan, seen = demo_plan(), {"train": set(), "val": set()}
    for index, sequence in enumerate(plan.sequences):
        seen[sequence.split] |= {sequence.background, *(p.photograph for p in sequence.objects)}
        assert 1.0 <= demo.build_scene(plan, index, 123)[0].photo_px <= 2.0
    assert not seen["train"] & seen["val"]
    assert len({sequence.background for sequence in plan.sequences}) == 8
    assert [sequence.split for sequence in plan.sequences] == ["train"] * 6 + ["val"] * 2
    assert {sequence.num_averaged for sequence in plan.sequences} == {7, 11}
    assert all(sequence.objects for sequence in plan.sequences)
    assert all(side % 16 == 0 for side in plan.size)


# ---------------------------------------------------------------- layout


def test_layout_exposures_and_description(made):
    root, _ = made
    description = read_description(root)
    assert description.source == MINIATURE.source(SEED)
    assert (description.blur_kind, description.transfer) == ("blur", "encoded")
    assert description.frames_averaged == (7, 11)
    assert (description.threshold, description.ticks_per_second) == (2.0, 1920.0)
    assert (description.spike_height, description.spike_width) == (32, 48)
    assert description.fingerprint == fingerprint_data(root, ("train", "val"))
    rows = (root / "train/seq_000/exposures.csv").read_text().splitlines()
    assert rows[0] == "frame_idx,t0[s],t1[s],t_sharp[s]"
    assert rows[3] == f"2,{22 / 240!r},0.1375,0.1125"  # the worked row: sharp at tick 216
    assert len(rows) == 4
    sidecar = read_sidecar(root / "val/seq_100/spike/000000.dat")
    assert (sidecar.height, sidecar.width, sidecar.ticks_per_second) == (32, 48, 1920.0)
    assert len(all_bytes(root)) == 1 + 2 * (3 * 3 + 2)


def test_bytes_depend_on_the_seed_and_not_on_the_number_of_processes(made, tmp_path):
    make_demo_data(tmp_path / "again", SEED, MINIATURE, num_workers=2)
    assert all_bytes(tmp_path / "again") == all_bytes(made[0])
    make_demo_data(tmp_path / "other", SEED + 1, MINIATURE)
    ours, theirs = all_bytes(made[0]), all_bytes(tmp_path / "other")
    assert {name for name in ours if ours[name] == theirs[name]} == {
        f"{folder}/{name}"
        for folder in ("train/seq_000", "val/seq_100")
        for name in ("exposures.csv", "spike/spike.yaml")
    }


# ---------------------------------------------------------------- the output folder


def test_complete_data_is_left_alone_and_other_data_are_refused(copy, monkeypatch, capsys):
    """What `fill_root` does with the rest is proved by the tests of training scenes."""
    (copy / "train/seq_000/spike_vox").mkdir()  # what preparation adds does not matter
    before = {p: p.stat().st_mtime_ns for p in copy.rglob("*")}
    assert make_demo_data(copy, SEED, MINIATURE) == []
    assert {p: p.stat().st_mtime_ns for p in copy.rglob("*")} == before
    monkeypatch.setattr(sys, "argv", ["make_demo_data.py", "--output", str(copy)])
    assert script_main() == 1
    assert "holds other data ('demo scenes version 1, seed 5" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in copy.rglob("*")} == before


def test_a_run_that_failed_is_repeated(tmp_path, made):
    missing = dataclasses.replace(MINIATURE.sequences[1], background="none.png")
    broken = dataclasses.replace(MINIATURE, sequences=(MINIATURE.sequences[0], missing))
    with pytest.raises(FileNotFoundError, match=r"none\.png: .*does not carry"):
        make_demo_data(tmp_path, SEED, broken)
    assert [report.plan.name for report in make_demo_data(tmp_path, SEED, MINIATURE)] == ["seq_100"]
    assert all_bytes(tmp_path) == all_bytes(made[0])
