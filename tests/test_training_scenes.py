"""Training scenes: what is drawn and rendered, how the folder is filled, what training reads."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from benchmarks.plain_unet import Training
from scripts.make_training_scenes import main as script_main
from scripts.make_training_scenes import summary
from scripts.prepare_data import main as prepare_main
from src.config import load_config
from src.data.build import build_train_dataset
from src.data.description import content_of, read_description
from src.data.errors import DataSetError
from src.data.exposures import read_exposures
from src.data.frames import read_image
from src.data.inputs import InputFolders, scan_inputs
from src.data.parallel import locked
from src.data.scanning import scan_settings
from src.data.simulation.simulator import SpikeNoise
from src.inference.load import SMALL_MODEL, load_model
from src.inference.restore import build_restorer
from src.metrics.psnr_ssim import psnr
from src.paths import REPO_ROOT
from src.prepare import demo, training_scenes
from src.prepare.sources.planning import SourceOptions
from src.prepare.sources.simulate import DEFAULT_TICKS_PER_FRAME
from src.prepare.training_scenes import (
    PHOTOGRAPHS,
    ScenePlan,
    TrainingScene,
    draw_motion,
    draw_plan,
    expose,
    make_training_scenes,
    mean_light,
    photograph,
    simulate_scene,
)

SEED = 3
CONFIG = REPO_ROOT / "configs/deblur/vrt_spike_small.yaml"
drawn = draw_plan


def small(seed: int, split: str, index: int, *options) -> ScenePlan:
    """The plan of a scene with fewer, shorter and certainly moving exposures."""
    plan = drawn(seed, split, index, *options)
    changes = {"num_frames": 4, "ticks": 24, "sharp_tick": 11, "stride": (24, 30, 18)[index % 3]}
    changes |= {"frames_averaged": 0}
    return replace(plan, **changes, camera_px=6.0, downscale=1 + (index + 1) % 2)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three small scenes and one of the val split."""
    root = tmp_path_factory.mktemp("scenes") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_scenes, "draw_plan", small)
        assert len(make_training_scenes(root, SEED, {"train": 3, "val": 1})) == 4
    return root


@pytest.fixture
def copy(made, tmp_path, monkeypatch):
    """A copy that a test may damage, made by small plans."""
    monkeypatch.setattr(training_scenes, "draw_plan", small)
    return Path(shutil.copytree(made, tmp_path / "data"))


def bytes_below(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---------------------------------------------------------------- what is drawn


def test_plans_cover_what_they_promise():
    plans = [draw_plan(0, "train", index) for index in range(600)]
    assert [draw_plan(0, "train", i) for i in (5, 400)] == [plans[5], plans[400]]
    assert draw_plan(1, "train", 5) != plans[5] != replace(draw_plan(0, "val", 5), split="train")

    def span(name):
        values = np.array([getattr(plan, name) for plan in plans])
        return values.min(), values.max()

    ranges = {
        "ticks": (15, 160),
        "threshold": (1, 4),
        "softness_px": (0.2, 0.7),
        "camera_px": (0, 30),
        "num_frames": (8, 12),
        "downscale": (1, 2),
    }
    for name, (low, high) in ranges.items():
        least, most = span(name)
        assert low <= least <= low + 0.1 * (high - low) + 1e-9, name
        assert high - 0.1 * (high - low) - 1e-9 <= most <= high, name
    videos = [plan for plan in plans if plan.frames_averaged]
    usual = [
        plan
        for plan in videos
        if plan.ticks == DEFAULT_TICKS_PER_FRAME * plan.frames_averaged and not plan.shot
    ]
    assert [len(usual) / 600, len(videos) / 600] == pytest.approx([0.67, 0.835], abs=0.06)
    assert {plan.frames_averaged for plan in usual} == {7, 9, 11, 13}
    assert {(p.gamma, p.threshold, p.noise, p.read, p.dead, p.jpeg_quality) for p in usual} == {
        (1.0, SourceOptions.threshold, SpikeNoise(), 0.0, 0.0, 0)
    }
    assert all(plan.shot > 0 for plan in plans if plan not in usual)
    for plan in videos:
        step = plan.ticks / plan.frames_averaged
        assert (plan.stride, plan.sharp_tick) == (plan.ticks, plan.frames_averaged // 2 * step)
    plans = [plan for plan in plans if not plan.frames_averaged]
    strides = np.array([plan.stride / plan.ticks for plan in plans])
    assert [np.mean(strides == 1), np.mean(strides > 1), np.mean(strides < 1)] == pytest.approx(
        [0.5, 0.3, 0.2], abs=0.1
    )
    assert strides.min() >= 0.49  # an exposure shares ticks with the one before it only
    assert {plan.gamma for plan in plans} == {1.0, 2.2}
    assert all(abs(p.sharp_tick / p.ticks - 0.5) < 0.25 for p in plans)
    assert {len(plan.object_px) for plan in plans} == {2, 3, 4, 5, 6}
    objects_px = np.array([px for plan in plans for px in plan.object_px])
    assert 140 < objects_px.max() <= 150
    assert np.mean(objects_px == 0) == pytest.approx(0.1, abs=0.05)
    assert all(side % 16 == 0 for plan in plans for side in plan.size)  # whole bytes of spikes
    assert {draw_plan(0, "train", index, "half").downscale for index in range(40)} == {2}
    assert {draw_plan(0, "train", index, "full").downscale for index in range(40)} == {1}
    for plan in [*plans[:20], *usual[:5]]:  # the two options change nothing else
        fixed = draw_plan(0, "train", plan.index, "half", 2)
        assert fixed.threshold == 2.0
        assert replace(fixed, downscale=plan.downscale, threshold=plan.threshold) == plan


def test_half_the_motions_change_direction_within_an_exposure():
    """Fast shakes have at most the speed of the swing; then both are scaled by 0.3 to 1."""
    motions = [draw_motion(np.random.default_rng(seed), 10, 10, 0.3) for seed in range(400)]
    speeds = np.array([m.amplitudes[:, 0] * m.frequencies_hz for m in motions])
    fast = np.abs(speeds[:, 2:] / speeds[:, :1])
    assert np.mean(fast.any(axis=1)) == pytest.approx(0.5, abs=0.08)
    assert 0.06 <= fast[fast > 0].min() < fast.max() <= 1 / 0.3
    assert all(0.7 <= f <= 3 for m in motions for f in m.frequencies_hz[2:])
    for motion in motions[:20]:
        times = np.linspace(0, 10, 2001)
        steps = np.diff([motion.at(t)[:2] for t in times], axis=0)
        assert np.sqrt((steps**2).sum(axis=1).mean()) * 200 == pytest.approx(10, rel=0.02)


def test_a_still_scene_is_no_number_missing_from_the_summary(tmp_path):
    plan = draw_plan(0, "train", 0)
    reports = [demo.SequenceReport(plan, psnr_db, 0.1) for psnr_db in (20.0, np.inf)]
    assert summary(reports, 1.0, tmp_path)[1].endswith("from 20 to inf")
    assert "nan" not in "".join(summary(reports, 1.0, tmp_path))


def test_photographs_of_validation_are_in_no_training_split():
    train, val = set(PHOTOGRAPHS["train"]), set(PHOTOGRAPHS["val"])
    assert not train & val
    assert not any("motorcycle" in name for name in train)  # left and right show the same
    for sequence in demo.demo_plan().sequences:
        if sequence.split == "val":
            assert not {sequence.background, *(p.photograph for p in sequence.objects)} & train
    for name in train | val:
        assert training_scenes._photograph_of(name).shape[2] == 3


def test_textures_of_validation_are_photographs(monkeypatch):
    used = []
    photo = training_scenes._photograph_of
    monkeypatch.setattr(training_scenes, "_photograph_of", lambda n: used.append(n) or photo(n))
    monkeypatch.setattr(training_scenes, "dead_leaves", lambda *_: pytest.fail("drawn shapes"))
    for index in range(4):
        TrainingScene(SEED, drawn(SEED, "val", index))
    assert set(used) <= set(PHOTOGRAPHS["val"])


def test_the_small_model_of_the_project_restores_a_scene_it_never_saw(made):
    loaded = load_model(None)
    assert SMALL_MODEL.stat().st_size <= 6e6
    val = made / "val"
    recording = scan_inputs(InputFolders(val, val, val), scan_settings(loaded.cfg))[0]
    gains = []
    for i, restored in build_restorer(loaded.cfg, loaded.model, "cpu").restore(recording):
        sharp, blurry = recording.read_sharp(i), recording.read_blurry(i)
        gains.append(psnr(restored, sharp) - psnr(blurry, sharp))
    assert np.mean(gains) > 1


# ---------------------------------------------------------------- what is rendered


def test_files_are_the_rendered_scene(made):
    """Blur, sharp frame and times, tick by tick as they are defined."""
    for index in range(2):
        plan = small(SEED, "train", index)
        scene, folder = TrainingScene(SEED, plan), made / plan.name
        exposures = read_exposures(folder / "exposures.csv", None)
        for k in range(plan.num_frames):
            start = k * plan.stride
            times = [exposures[k].t0, exposures[k].t1, exposures[k].t_sharp]
            assert np.allclose(np.array(times) * 1920, [start, start + 24, start + 11])
            pictures = [scene.rgb((start + tick) / 24) for tick in range(24)]
            sharp = read_image(folder / f"sharp/{k:06d}.png")
            assert np.array_equal(sharp, pictures[11])
            light = np.mean([(p / 255.0) ** plan.gamma for p in pictures], axis=0)
            blurry = read_image(folder / f"blur/{k:06d}.png") / 255.0
            allowed = 0.02 + (0.02 if plan.jpeg_quality else 0)
            assert np.abs(blurry - light ** (1 / plan.gamma)).mean() < allowed
            assert np.abs(sharp / 255.0 - light ** (1 / plan.gamma)).mean() > 0.002
        assert yaml.safe_load((folder / "scene.yaml").read_text())["ticks"] == 24


def test_a_scene_made_as_from_a_video_averages_a_few_pictures_and_fades_between_them(tmp_path):
    plan = small(SEED, "train", 0)
    plan = replace(plan, stride=24, sharp_tick=8, frames_averaged=3, gamma=1.0, jpeg_quality=0)
    scene = TrainingScene(SEED, plan)
    pictures, _ = next(expose(SEED, plan))
    keys = [scene.rgb(tick / 24).astype(float) for tick in (0, 8, 16, 24)]
    for tick, picture in enumerate(pictures):
        expected = keys[tick // 8] * (1 - tick % 8 / 8)
        if tick % 8:
            expected += keys[tick // 8 + 1] * (tick % 8 / 8)
        assert np.abs(picture - expected).max() <= 0.5
    simulate_scene(SEED, tmp_path / "scene", plan)
    assert np.array_equal(read_image(tmp_path / "scene/sharp/000000.png"), keys[1])
    blurry = read_image(tmp_path / "scene/blur/000000.png")
    assert np.abs(blurry - np.mean(keys[:3], axis=0)).mean() < 3
    assert np.abs(blurry - np.mean(pictures, axis=0)).mean() > 0.1


@pytest.mark.parametrize("stride", [13, 24, 31])
def test_spikes_of_all_exposures_are_one_stream(stride):
    """Shared ticks hold the same spikes; the rate is light over threshold."""
    plan = small(SEED, "train", 0)
    plan = replace(plan, num_frames=3, stride=stride, noise=SpikeNoise(), dead=0.0, hot=0.0)
    spikes, light = {}, []
    for k, (pictures, bits) in enumerate(expose(SEED, plan)):
        light.append((mean_light(pictures, plan.gamma) @ [0.299, 0.587, 0.114]).mean())
        for tick in range(24):
            same = spikes.setdefault(k * stride + tick, bits[tick])
            assert np.array_equal(same, bits[tick])
    assert len(spikes) == {13: 50, 24: 72, 31: 72}[stride]
    rate = np.mean(list(spikes.values()))
    assert rate == pytest.approx(np.mean(light) / plan.threshold, rel=0.1)


def test_dead_and_hot_pixels_stay_the_same():
    plan = replace(small(SEED, "train", 0), num_frames=2, dead=0.0, hot=0.0)
    whole, damaged = (
        np.concatenate([bits for _, bits in expose(SEED, p)])
        for p in (plan, replace(plan, dead=0.05, hot=0.03))
    )
    changed = (whole != damaged).any(axis=0)
    is_dead, is_hot = changed & ~damaged.any(axis=0), changed & damaged.all(axis=0)
    assert (is_dead | is_hot == changed).all()
    assert 0.01 < is_dead.mean() < 0.06
    assert 0.02 < is_hot.mean() < 0.04


def test_light_and_noise_of_the_camera_equal_their_formulas():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (5, 40, 40, 3), dtype=np.uint8)
    twin = np.mean((pictures / 255.0) ** 2.2, axis=0)
    assert np.abs(mean_light(pictures, 2.2) - twin).max() < 1e-6
    plan = replace(drawn(0, "train", 0), shot=1e-3, read=0.01, jpeg_quality=0, gamma=1.0)
    flat = np.full((200, 200, 3), 0.5, np.float32)
    noisy = photograph(flat, plan, rng) / 255.0
    assert noisy.mean() == pytest.approx(0.5, abs=1e-3)
    assert noisy.std() == pytest.approx(np.sqrt(1e-3 * 0.5 + 0.01**2), rel=0.05)
    quiet = replace(plan, shot=0.0, read=0.0, gamma=2.2)
    assert np.array_equal(photograph(twin.astype(np.float32), quiet, rng), rounded(twin))
    coarse = photograph(twin.astype(np.float32), replace(quiet, jpeg_quality=60), rng)
    assert 0 < np.abs(coarse.astype(int) - rounded(twin)).mean() < 60


def rounded(light):
    return np.rint(255 * light ** (1 / 2.2)).astype(np.uint8)


# ---------------------------------------------------------------- the folder


def test_a_scene_is_the_same_however_many_there_are(made, tmp_path, monkeypatch):
    monkeypatch.setattr(training_scenes, "draw_plan", small)
    make_training_scenes(tmp_path / "less", SEED, {"train": 1, "val": 1})
    for name in ("train/scene_00000", "val/scene_00000"):
        assert bytes_below(tmp_path / "less" / name) == bytes_below(made / name)


def test_what_is_missing_is_added_and_nothing_else_is_touched(copy):
    before, kept = bytes_below(copy), read_description(copy)
    assert make_training_scenes(copy, SEED, {"train": 2, "val": 1}) == []
    assert bytes_below(copy) == before
    shutil.move(copy / "train/scene_00001", copy / "train/.scene_00001")  # as a kill leaves it
    (copy / "train/.scene_00001/exposures.csv").unlink()
    reports = make_training_scenes(copy, SEED, {"train": 3, "val": 1})
    assert [report.plan.name for report in reports] == ["train/scene_00001"]
    assert bytes_below(copy) == before
    assert read_description(copy) == kept
    assert content_of(kept).startswith("accepted: ")


def test_other_and_changed_data_are_refused(copy, tmp_path, capsys):
    counts = {"train": 3, "val": 1}
    with pytest.raises(DataSetError, match=r"holds other data .*seed 3.*wanted is .*seed 4"):
        make_training_scenes(copy, 4, counts)
    with pytest.raises(DataSetError, match="wanted is .*spikes half"):
        make_training_scenes(copy, SEED, counts, "half")
    with pytest.raises(DataSetError, match="wanted is .*spikes mixed, threshold 2'"):
        make_training_scenes(copy, SEED, counts, threshold=2)
    another = locked(copy / demo.LOCK_NAME)
    with another, pytest.raises(DataSetError, match="another process is writing scenes there"):
        make_training_scenes(copy, SEED, counts)
    (copy / "train/scene_00002/blur/000001.png").unlink()
    with pytest.raises(
        DataSetError, match="(?s)scene_00002.*was changed after it was made; delete"
    ):
        make_training_scenes(copy, SEED, counts)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/photo.png").write_bytes(b"")
    assert script_main(["--scenes", "1", "--output", str(tmp_path / "mine")]) == 1
    assert "is not known whose data these are" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        script_main(["--scenes", "1", "--output", str(tmp_path / "mine/photo.png")])
    assert "is a file; name another folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["photo.png"]


def test_the_script_prints_rate_and_size(copy, capsys):
    shutil.rmtree(copy / "val/scene_00000")
    arguments = ["--scenes", "3", "--val_scenes", "1", "--seed", str(SEED), "--workers", "1"]
    assert script_main([*arguments, "--output", str(copy)]) == 0
    printed = capsys.readouterr().out
    assert "1 scenes made, 3 were there" in printed
    assert "scenes per second, 4.0 frames and " in printed
    for wrong in (["--scenes", "0"], ["--scenes", "1", "--threshold", "0.5"]):
        with pytest.raises(SystemExit):
            script_main(wrong)


# ---------------------------------------------------------------- preparation and training


def test_preparation_and_training_read_the_scenes(copy, tmp_path, capsys, monkeypatch):
    config = tmp_path / "scenes.yaml"
    shutil.copy(CONFIG, config)
    overrides = ["DATA.ROOT", str(copy), "LOG.SAVE_DIR", str(tmp_path / "out")]
    overrides += ["TRAIN.BATCH_SIZE", "1"]  # the recipe's scenes have spikes of one resolution
    command = ["--config", str(config), "--workers", "1", *overrides]
    assert prepare_main(command) == 0
    assert prepare_main([*command, "--check_only"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("stated tick 11.0, measured") >= 2
    cfg = load_config(config, overrides)
    dataset = build_train_dataset(cfg)
    sizes = {tuple(dataset[index]["spike_vox"].shape[-2:]) for index in range(len(dataset))}
    assert sizes == {(32, 32), (64, 64)} == dataset.spike_crop_sizes
    monkeypatch.setattr(torch.optim, "AdamW", lambda *_, **__: None)  # its import takes seconds
    rival = Training(load_config(config, overrides))
    assert (rival.factor, rival.cfg.TRAIN.BATCH_SIZE) == (2, 1)
    cfg = load_config(config, [*overrides, "TRAIN.BATCH_SIZE", "2"])
    with pytest.raises(DataSetError, match="do not fit into one batch; set TRAIN.BATCH_SIZE 1"):
        build_train_dataset(cfg)
