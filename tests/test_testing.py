"""src/test.py from the command line to the files it leaves, with a very small VRT."""

import json
import signal

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from src import test as entry
from src.config import config_to_text, load_config
from src.data.description import DataDescription, write_description
from src.data.frames import read_image, write_png
from src.data.inputs import InputFolders, scan_inputs
from src.data.scanning import scan_settings
from src.data.video import VideoInput
from src.engine.checkpoint import save_checkpoint
from src.inference import load
from src.inference.load import load_model
from src.inference.restore import (
    build_restorer,
    evaluate,
    report_on,
)
from src.models import compiled
from src.models.build import build_model
from src.models.weights import write_exported
from src.paths import REPO_ROOT
from src.pictures.animation import write_video
from tests.folder_cases import (
    FRAME_SIZE,
    NUM_BINS,
    image_of,
    write_dats,
    write_images,
    write_voxels,
)

NAMES = ["000000", "000001"]
THREE = [*NAMES, "000002"]
VRT = {
    "upscale": 1,
    "window_size": [2, 2, 2],
    "depths": [1] * 9,
    "indep_reconsts": [8],
    "embed_dims": [8] * 9,
    "num_heads": [2] * 9,
    "pa_frames": 2,
    "deformable_groups": 2,
}


@pytest.fixture(scope="module", name="root")
def _root(tmp_path_factory):
    """A split of two sequences, configurations and checkpoints with and without spikes."""
    root = tmp_path_factory.mktemp("testing")
    for name in ("one", "two"):
        write_images(root / "val" / name / "blur", NAMES)
        write_images(root / "val" / name / "sharp", NAMES, kind=1)
        write_dats(root / "val" / name / "spike", NAMES)
    write_voxels(root / "vox", NAMES)
    (root / "vrt.yaml").write_text(yaml.safe_dump(VRT))
    for name in ("spikes", "rgb"):
        config = {
            "DATA": {"ROOT": str(root), "K": NUM_BINS, "NORM": {"MEAN": 0.25, "STD": 0.5}},
            "MODEL": {"USE_SPIKE": name == "spikes", "VRT_CFG": str(root / "vrt.yaml")},
            "VAL": {
                "LPIPS": False,
                "TILE_FRAMES": 2,
                "TILE_SIZE": 32,
                "OVERLAP_FRAMES": 1,
                "OVERLAP_SIZE": 8,
            },
            "LOG": {"SAVE_DIR": str(root / "outputs")},
        }
        config["MODEL"]["CHANNELS_PER_SCALE"] = [8] * 4
        (root / f"{name}.yaml").write_text(yaml.safe_dump(config))
        cfg = load_config(root / f"{name}.yaml")
        model = build_model(cfg)
        torch.manual_seed(0)
        for parameter in model.parameters():  # a new fusion is the identity; this one is not
            parameter.data.add_(0.02 * torch.randn_like(parameter))
        state = {"model": model.state_dict(), "config": config_to_text(cfg)}
        save_checkpoint(best_of(root, name), state | {"progress": {"step": 7}})
    weights = model.vrt.state_dict()
    torch.save({"params": weights}, root / "weights.pth")
    save_file(weights, root / "weights.safetensors")
    content = (root / "weights.safetensors").read_bytes()
    (root / "cut.safetensors").write_bytes(content[: len(content) // 2])
    (root / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\nsize 9\n")
    (root / "page.safetensors").write_text("<!DOCTYPE html><html>Sign in</html>")
    torch.save({}, root / "torch.safetensors")
    write_exported(root / "exported.safetensors", torch.load(best_of(root, "rgb")), {})
    part = {key: value for key, value in weights.items() if not key.startswith("stage")}
    torch.save(part, root / "part.pth")
    return root


def best_of(root, name):
    return root / "outputs" / "ckpts" / name / "best.pth"


def newest_report(root):
    return json.loads(max((root / "outputs" / "metrics").glob("test_*.json")).read_text())


def run(root, output, *arguments, expected=0):
    """Run src/test.py on one sequence, unless the arguments name another input."""
    for old in (root / "outputs" / "metrics").glob("test_*.json"):
        old.unlink()
    one = ["--input_blur", str(root / "val/one"), "--output", str(output)]
    assert entry.main([*one, *map(str, arguments)]) == expected


def test_command_line_restores_scores_and_reports(root, tmp_path, forks):
    split, checkpoint = root / "val", best_of(root, "spikes")
    command = [REPO_ROOT / "src" / "test.py"]
    command += ["--input_blur", split, "--input_spike_vox", split, "--input_sharp", split]
    command += ["--output", tmp_path / "out", "--ckpt", checkpoint]
    done = forks(command)
    assert done.wait(120) == 0, done.output
    written = sorted(path.relative_to(tmp_path) for path in (tmp_path / "out").rglob("*.*"))
    assert [str(path) for path in written] == [
        f"out/{s}/{n}.png" for s in ("one", "two") for n in NAMES
    ]
    report = newest_report(root)
    assert report["checkpoint"]["step"] == 7
    assert report["checkpoint"]["file"] == str(checkpoint)
    assert report["frames"] == {"one": 2, "two": 2}
    assert report["seconds_per_frame"] > report["model_seconds_per_frame"] > 0
    assert 0.05 < report["peak_memory_gib"] < 50
    assert "2 frames overlap 1 x 32 px overlap 8, blend smooth" in report["protocol"]
    assert report["scores"]["blurry"]["mean_over_frames"]["psnr_rgb"] < 15
    assert f"{report['scores']['restored']['mean_over_frames']['psnr_rgb']:.3f}" in done.output
    assert "K: 4" in report["config"]
    assert str(tmp_path / "out") in done.output
    assert report["scores"]["notes"] == report["notes"]

    # The same numbers as validation during training, from the written files too.
    loaded = load_model(checkpoint, None, [])
    sequences = scan_inputs(InputFolders(split, split, split), scan_settings(loaded.cfg))
    restorer = build_restorer(loaded.cfg, loaded.model, "cpu")
    rows = []
    for sequence, i, image, scores in evaluate(restorer, sequences, score_blurry=True):
        path = tmp_path / "out" / sequence.name / f"{sequence.frames[i].name}.png"
        assert np.array_equal(read_image(path), image)
        rows.append(scores)
    assert report_on(restorer, rows).to_json()["frames"] == report["scores"]["frames"]


def test_voxels_and_bits_give_the_same_pictures(root, tmp_path):
    checkpoint = ["--ckpt", best_of(root, "spikes"), "--tile", 0, 0]
    run(root, tmp_path / "a", *checkpoint, "--input_spike_vox", root / "vox")
    run(root, tmp_path / "b", *checkpoint, "--input_spike_vox", root / "val/one/spike")
    run(root, tmp_path / "c", *checkpoint, "--input_spike_vox", root / "vox", "DATA.NORM.MEAN", 0.5)
    first, same, other = (read_image(tmp_path / x / "000001.png") for x in "abc")
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)  # spikes and their normalisation reach the model
    assert newest_report(root)["scores"] is None


@pytest.mark.nightly
def test_compiled_parts_give_the_same_pictures(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compiled, "BACKEND", "eager")  # no compiler, which takes minutes
    spikes = ["--ckpt", best_of(root, "spikes"), "--input_spike_vox", root / "vox"]
    run(root, tmp_path / "a", *spikes)
    run(root, tmp_path / "b", *spikes, "--compile")
    assert "parts are compiled" in capsys.readouterr().out
    first, second = (read_image(tmp_path / x / "000001.png").astype(int) for x in "ab")
    assert abs(first - second).max() <= 1


def test_checkpoints_and_plain_weights_without_spikes(root, tmp_path, capsys, monkeypatch):
    tiles = ["--tile", 0, 40, "--tile_overlap", 0, 16, "VAL.BLEND", "reference"]
    config = ["--config", root / "rgb.yaml", *tiles]
    run(root, tmp_path / "a", *config)
    run(root, tmp_path / "b", *config, "--ckpt", root / "weights.pth")
    run(root, tmp_path / "c", *config, "--ckpt", root / "weights.safetensors")
    capsys.readouterr()
    run(root, tmp_path / "d", *config, "--ckpt", best_of(root, "rgb"), "--input_spike_vox", "x")
    logged = capsys.readouterr().out
    assert "spikes are not read" in logged
    assert f"{root / 'rgb.yaml'} is not read" in logged  # the checkpoint has its own
    monkeypatch.setattr(load, "SMALL_MODEL", root / "exported.safetensors")
    run(root, tmp_path / "e", *tiles)
    assert "no --ckpt: the small model of this project restores" in capsys.readouterr().out
    images = [read_image(tmp_path / x / "000001.png") for x in "abcde"]
    assert images[0].shape == (*FRAME_SIZE, 3)
    assert all(np.array_equal(images[0], image) for image in images)
    assert "all x 40 px overlap 16, blend reference" in newest_report(root)["protocol"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--ckpt absent.pth", "checkpoint absent.pth does not exist"),
        ("--ckpt {root}/outputs/ckpts/rgb", "is a folder; give a file in it: best.pth"),
        ("--ckpt {root}/weights.pth", "without a configuration; add --config FILE"),
        ("--ckpt {root}/rgb.yaml", "cannot be read as weights"),
        ("--ckpt {root}/cut.safetensors", "damaged or cut short"),
        ("--ckpt {root}/pointer.pth", "a pointer of Git LFS"),
        ("--ckpt {root}/page.safetensors", "it is a web page in place of the data"),
        ("--ckpt {root}/torch.safetensors", "it is a ZIP archive, as torch.save writes"),
        ("--config {root}/rgb.yaml --ckpt {root}/part.pth", "of VRT's"),
        ("--config {root}/spikes.yaml", "needs spikes; give --input_spike_vox DIR"),
        ("--config {root}/spikes.yaml --input_spike_vox {root}/val MODEL.USE_SPIKE false",
         "was MODEL changed by an override?"),
        ("--config {root}/rgb.yaml VAL.BLENT smooth", "did you mean 'VAL.BLEND'"),
        ("--config {root}/rgb.yaml --tile 1 8", "VAL.TILE_SIZE: expected 0"),
        ("--config {root}/rgb.yaml --precision fp16", "needs a GPU"),
        ("--config {root}/rgb.yaml --device cuda", "DEVICE is cuda"),
        ("--config {root}/rgb.yaml --input_sharp {root}/vox", "no .png"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_reported_in_a_sentence(root, tmp_path, capsys, arguments, message):
    run(root, tmp_path / "out", *arguments.format(root=root).split(), expected=2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("seq", "lies in"),  # it would be read as frames by the next test
        ("seq/sharp", "lies in"),
        ("seq/restored", "lies in"),
        ("root/val/restored", "lies in"),
        ("file", "is a file; name another"),
        ("file/below", "is a file; name another"),
        ("old", "holds 2 pictures"),
    ],
)
def test_results_go_where_nothing_is_mixed_up(root, tmp_path, capsys, output, message):
    write_images(tmp_path / "seq/blur", NAMES)
    write_images(tmp_path / "seq/sharp", NAMES, kind=1)
    (tmp_path / "root/val/a").mkdir(parents=True)
    write_description(tmp_path / "root", DataDescription("own"))
    (tmp_path / "file").touch()
    write_images(tmp_path / "old", ["000001", "000009"])  # of a longer clip
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    given = ["--input_blur", tmp_path / "seq/blur", "--config", root / "rgb.yaml"]
    run(root, tmp_path / output, *given, expected=2)
    assert message in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_pictures_that_stay_in_the_output_are_noted(root, tmp_path):
    write_images(tmp_path, ["000001", "000009"])
    run(root, tmp_path, "--config", root / "rgb.yaml", "--overwrite")
    assert not np.array_equal(read_image(tmp_path / "000001.png"), image_of(0, 0))
    assert any("not of this test: 000009.png" in note for note in newest_report(root)["notes"])


def test_a_video_is_restored_as_its_frames_are(root, tmp_path, capsys):
    frames = [image_of(i, 0) for i in range(2)]
    write_video(tmp_path / "clip.mp4", frames, 25, lossless=True)
    spikes = ["--input_spike_vox", root / "vox", "--input_sharp", root / "val/one"]
    given = ["--ckpt", best_of(root, "spikes"), *spikes]
    run(root, tmp_path / "a", *given)
    expected = newest_report(root)["scores"]["frames"]
    run(root, tmp_path / "b", *given, "--input_blur", tmp_path / "clip.mp4")
    assert [
        row | {"sequence": "one"} for row in newest_report(root)["scores"]["frames"]
    ] == expected
    (tmp_path / "notes.mp4").write_text("no video")
    run(root, tmp_path / "c", *given, "--input_blur", tmp_path / "notes.mp4", expected=2)
    assert "cannot be opened as a video" in capsys.readouterr().err


def test_frames_of_a_video_are_read_in_any_order(tmp_path):
    frames = [image_of(i, 0) for i in range(7)]
    write_video(tmp_path / "clip.mp4", frames, 25, lossless=True)
    video = VideoInput(tmp_path / "clip.mp4")
    for i in (0, 3, 3, 1, 4, 2, 6, 0, 5):  # two at a distance, one before both
        assert np.array_equal(video.read(video.frames[f"{i:06d}"]), frames[i])
    assert len(video.frames) == 7


def test_ctrl_c_leaves_the_report_so_far(root, tmp_path, monkeypatch):
    def write_first(path, image):
        if path.stem == NAMES[1]:
            signal.raise_signal(signal.SIGINT)
        write_png(path, image)

    monkeypatch.setattr(entry, "write_png", write_first)
    sharp = ["--input_sharp", root / "val"]
    run(root, tmp_path, "--config", root / "rgb.yaml", *sharp, expected=130)
    report = newest_report(root)
    assert "stopped by Ctrl-C after 1 of 2 frames" in report["notes"]
    assert [row["frame"] for row in report["scores"]["frames"]] == NAMES[:1]


def test_a_frame_that_is_missing_in_the_middle_is_noted(root, tmp_path):
    write_images(tmp_path / "in", ["000000", "000002", "000004", "000008"])
    run(root, tmp_path / "out", "--config", root / "rgb.yaml", "--input_blur", tmp_path / "in")
    assert "missing between 000004 and 000008;" in newest_report(root)["notes"][0]


def test_files_are_checked_before_the_first_frame(root, tmp_path, capsys):
    write_images(tmp_path / "in/blur", THREE)
    write_images(tmp_path / "in/sharp", THREE)
    write_voxels(tmp_path / "in/spike_vox", THREE)
    path = tmp_path / "in/sharp/000002.png"
    path.write_bytes(path.read_bytes()[:-40])
    folders = [f"--input_{what}={tmp_path / 'in'}" for what in ("blur", "sharp", "spike_vox")]
    run(root, tmp_path / "out", "--config", root / "spikes.yaml", *folders, expected=2)
    assert str(path) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
