"""Prepared data with one fault each: what the two checks say of it, and that they write nothing."""

import os
import shutil

import cv2
import numpy as np
import pytest
import torch

from src.config import load_config
from src.data.errors import DataSetError
from src.data.exposures import read_exposures, write_exposures
from src.data.frames import read_image, write_png
from src.engine.processes import Ranks
from src.paths import REPO_ROOT
from src.prepare.checks import quick_check
from src.prepare.frame_checks import merged
from src.train import reject_wrong_data
from tests.prepare_cases import flip_bits, rewrite, run, silence, state_of, write_prepared
from tests.training_cases import run_ranks, write_run

RGB = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
LOG = "out/logs/align_mini.txt"


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def encode(path, image):
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())


def loop(path):
    path.unlink()
    path.symlink_to(path.name)


def exchange_times(path, first, second):
    rows = read_exposures(path, None)
    write_exposures(path, {**rows, first: rows[second], second: rows[first]})


def set_norm(config, mean, std):
    lines = config.read_text().splitlines()
    lines = [f"    MEAN: {mean}" if "MEAN" in line else line for line in lines]
    lines = [f"    STD: {std}" if "STD" in line else line for line in lines]
    config.write_text("\n".join(lines) + "\n")


def cut_an_exposure_of_a_stream(root, _config):
    """Put the files of a sequence together into one stream, and shorten its last exposure."""
    folder = root / "train/seq_001"
    files = sorted((folder / "spike").glob("*.dat"))
    data = b"".join(path.read_bytes() for path in files)
    for path in files:
        path.unlink()
    (folder / "spike/spike.dat").write_bytes(data)
    rewrite(folder / "exposures.csv", f",{28 / 240!r}", f",{21 / 240 + 50 / 1920!r}")


def in_train(change):
    return lambda root, config: change(root / "train/seq_000")


# What both checks see without opening a frame: name -> change of root and configuration, a line.
RECORDS = {
    "other mean": (lambda r, c: set_norm(c, "0.2", "0.4"), "DATA.NORM: MEAN 0.2, STD 0.4 in the"),
    "spikes changed": (
        lambda r, c: flip_bits(r / "train/seq_001/spike/000001.dat"),
        "train/seq_001: its voxels were made from other spikes, another window or number of bins",
    ),
    "voxels cut": (
        lambda r, c: cut(r / "val/seq_000/spike_vox/000001.npy"),
        "its voxel file has not the size it was written with (000001)",
    ),
    "event count": (
        lambda r, c: rewrite(c.parent / LOG, f"000,0,0.0,{7 / 240!r},", f"000,0,0.0,{7 / 240!r},1"),
        "the voxels hold",
    ),
    "exposure changed": (
        lambda r, c: rewrite(r / "train/seq_000/exposures.csv", "0,0.0,", "0,0.0001,"),
        "train/seq_000: the alignment log has another exposure (000000)",
    ),
    "windows of two lengths": (
        cut_an_exposure_of_a_stream,
        "train/seq_001: windows have 56 ticks but 000003 50",
    ),
    "time goes back": (
        lambda r, c: exchange_times(r / "train/seq_000/exposures.csv", 2, 3),
        "train/seq_000: exposures go back in time (000003); correct exposures.csv",
    ),
    "log gone": (
        lambda r, c: (c.parent / LOG).unlink(),
        "align_mini.txt: cannot be read (No such file or directory); run scripts/prepare_data.py",
    ),
    "sequence gone": (
        lambda r, c: shutil.rmtree(r / "train/seq_001"),
        "sequences train/seq_001 do not exist",
    ),
    "no validation": (
        lambda r, c: shutil.rmtree(r / "val"),
        "val: no such folder; put one folder per sequence there, or name another one in",
    ),
    "other bins": (lambda r, c: rewrite(c, "DATA:\n", "DATA:\n  K: 16\n"), "number of bins"),
    "frame gone": (
        in_train(lambda s: (s / "blur/000002.png").unlink()),
        "dataset.yaml: train: frames was 8, is 7",
    ),
    "frame changed": (
        in_train(
            lambda s: write_png(s / "sharp/000000.png", 255 - read_image(s / "sharp/000000.png"))
        ),
        "dataset.yaml: train: ends_sha256 was ",
    ),
    "frame cut": (
        lambda r, c: cut(r / "val/seq_000/sharp/000002.png"),
        "cut short or cannot be read: ",
    ),
    "frame empty": (
        in_train(lambda s: (s / "blur/000002.png").write_bytes(b"")),
        "seq_000/blur/000002.png; copy them again",
    ),
    "description gone": (lambda r, c: (r / "dataset.yaml").unlink(), "dataset.yaml: missing"),
    "description broken": (
        lambda r, c: (r / "dataset.yaml").write_text("source: [1]\n"),
        "source: expected a text, got [1]",
    ),
}


@pytest.mark.parametrize("fault", RECORDS)
def test_what_is_wrong_is_named_before_a_training(prepared_config, fault):
    change, expected = RECORDS[fault]
    assert quick_check(load_config(prepared_config)) == []
    change(prepared_config.parent / "mini", prepared_config)
    problems = quick_check(load_config(prepared_config))
    assert any(expected in problem for problem in problems), problems


# What only --check_only sees; faults of one group are made in one data set.
GROUPS = {
    "files": {
        "stray spikes": (
            in_train(lambda s: shutil.copy(s / "spike/000001.dat", s / "spike/000009.dat")),
            "train/seq_000: without a blurry frame: spike file (seq_000/000009)",
        ),
        "truncated frame": (
            lambda r, c: silence(r / "val/seq_000/blur/000001.png"),
            "val/seq_000/blur/000001.png: truncated",
        ),
        "window of another length": (
            lambda r, c: rewrite(r / "val/seq_000/exposures.csv", repr(7 / 240), repr(6 / 240)),
            "dropped: exposure and spike file differ in length: [0 s, 0.025 s) is 48 ticks",
        ),
        "changed voxels": (
            lambda r, c: np.save(
                r / "train/seq_001/spike_vox/000000.npy", np.zeros((32, 32, 48), np.uint8)
            ),
            "000000.npy: differs from the spikes; delete it",
        ),
        "crop": (
            lambda r, c: rewrite(c, "CROP_SIZE: 32", "CROP_SIZE: 80"),
            "frames of 64x96 are below the crop 80",
        ),
        "clip": (
            lambda r, c: rewrite(c, "CLIP_LEN: 3", "CLIP_LEN: 5"),
            "4 usable frames, a clip needs 5",
        ),
        **{name: RECORDS[name] for name in ("spikes changed", "event count", "other mean")},
    },
    "description": {"broken": RECORDS["description broken"]},
    "missing": {
        "blurry frame": (
            in_train(lambda s: (s / "blur/000001.png").unlink()),
            "train/seq_000: without a blurry frame: sharp frame (seq_000/000001); spike file",
        ),
        "sharp frame": (
            in_train(lambda s: (s / "sharp/000002.png").unlink()),
            "train/seq_000: dropped: no sharp frame of this name (seq_000/000002)",
        ),
        "spikes": (
            lambda r, c: (r / "train/seq_001/spike/000002.dat").unlink(),
            "train/seq_001: dropped: no spike file of this name (seq_001/000002)",
        ),
        "exposure": (
            lambda r, c: rewrite(
                r / "val/seq_000/exposures.csv", f"3,{21 / 240!r}", f"7,{21 / 240}"
            ),
            "val/seq_000: dropped: no record of its exposure (seq_000/000003)",
        ),
    },
    "kinds": {
        "16 bit": (
            in_train(lambda s: encode(s / "blur/000001.png", RGB.astype(np.uint16) * 257)),
            "blur/000001.png: uint16 pixels; 8 bit is needed",
        ),
        "transparent": (
            in_train(lambda s: encode(s / "sharp/000001.png", np.dstack([RGB, RGB[..., 0]]))),
            "sharp/000001.png: has transparent pixels; flatten it",
        ),
        "other size": (
            in_train(lambda s: write_png(s / "blur/000002.png", RGB[:60])),
            "frames are (64, 96) but blur/000002.png (60, 96)",
        ),
        "link to itself": (
            in_train(lambda s: loop(s / "blur/000003.png")),
            "blur/000003.png: cannot be read: Too many levels of symbolic links",
        ),
        "empty sequence": (
            lambda r, c: [(r / "train/seq_009" / k).mkdir(parents=True) for k in ("blur", "sharp")],
            "seq_009/blur: no image files; blurry frames are needed",
        ),
        "short sequence": (
            lambda r, c: [p.unlink() for k in (2, 3) for p in r.glob(f"train/*1/*/00000{k}.*")],
            "seq_001: 2 usable frames, a clip needs 3",
        ),
    },
    "no sequence": {
        "all": (
            lambda r, c: [shutil.rmtree(folder) for folder in (r / "train").iterdir()],
            "train: is empty; one folder per sequence is needed",
        )
    },
}


def check_names(config, group, capsys):
    for change, _ in GROUPS[group].values():
        change(config.parent / "mini", config)
    before = state_of(config.parent)
    assert run(config, "--check_only") == 1
    printed = capsys.readouterr().out
    assert [name for name, (_, line) in GROUPS[group].items() if line not in printed] == []
    assert state_of(config.parent) == before


def test_f34_whatever_is_missing_is_found_by_name(prepared_config, capsys):
    check_names(prepared_config, "missing", capsys)


@pytest.mark.parametrize("group", ["kinds", "no sequence"])
def test_f36_kinds_of_images_links_and_folders(prepared_config, group, capsys):
    check_names(prepared_config, group, capsys)


@pytest.mark.parametrize("group", ["files", "description"])
def test_check_only_names_every_fault_at_once(prepared_config, group, capsys):
    check_names(prepared_config, group, capsys)


def test_a_link_in_a_circle_is_no_sequence(prepared_config):
    (prepared_config.parent / "mini/train/seq_009").symlink_to("seq_009")
    assert run(prepared_config, "--check_only") == 0


def test_f35_window_without_a_spike(prepared_config, capsys):
    silence(prepared_config.parent / "mini/train/seq_000/spike/000001.dat")
    assert run(prepared_config) == 0
    assert run(prepared_config, "--check_only") == 1
    assert "not a single spike in the window (000001)" in capsys.readouterr().out


@pytest.mark.parametrize("use_cache", ["True", "False"])
def test_spikes_changed_without_a_trace_are_found_by_counting_again(
    prepared_config, capsys, use_cache
):
    path = prepared_config.parent / "mini/train/seq_000/spike/000002.dat"
    status = path.stat()
    bits = bytearray(path.read_bytes())
    bits[50] = 255 - bits[50] if bits[50].bit_count() != 4 else 255
    path.write_bytes(bits)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert run(prepared_config, "--check_only", "DATA.USE_PRECOMPUTED_VOXELS", use_cache) == 1
    assert "train/seq_000: 000002: " in (printed := capsys.readouterr().out)
    assert "spikes counted now" in printed


def test_lines_of_equal_text_become_one():
    lines = [f"train/{name}: is still" for name in "abcde"] + ["val/x: dark", "val/y: is still"]
    assert merged(lines) == ["train/a, train/b, train/c and 3 more: is still", "val/x: dark"]


# ---------------------------------------------------------------- before a training


def test_a_model_that_starts_from_weights_may_keep_their_numbers(prepared_config, tmp_path, caplog):
    weights = tmp_path / "weights.pth"
    weights.touch()
    set_norm(prepared_config, "0.2", "0.4")
    pretrained = ["MODEL.PRETRAINED", str(weights)]
    assert quick_check(load_config(prepared_config, pretrained)) == []
    assert "right if MODEL.PRETRAINED was trained with the former" in caplog.text
    set_norm(prepared_config, "0.0", "1.0")
    assert "DATA.NORM: MEAN 0.0" in quick_check(load_config(prepared_config, pretrained))[0]


def test_a_frame_that_lacks_its_spikes_stops_no_training(tmp_path):
    """It is left out, which scanning logs; the rest is as good as before."""
    prepared_config = write_prepared(tmp_path)
    (tmp_path / "mini/train/seq_000/spike/000003.dat").unlink()
    assert run(prepared_config) == 0
    assert quick_check(load_config(prepared_config)) == []


def test_three_thousand_stale_voxels_are_one_line(prepared_config):
    root = prepared_config.parent / "mini"
    for path in root.rglob("*.dat"):
        flip_bits(path)
    problems = quick_check(load_config(prepared_config))
    assert [problem.count("made from other spikes") for problem in problems[:4]] == [1, 1, 1, 0]
    assert "DATA.NORM is not checked" in problems[3]
    assert "changed: train/seq_000/spike/000000.dat" in problems[4]
    assert max(map(len, problems)) < 500


def test_every_rank_ends_with_the_problems_of_the_main_one(prepared_config, monkeypatch):
    cfg = load_config(prepared_config)
    reject_wrong_data(cfg, Ranks(0, 1, torch.device("cpu")))
    monkeypatch.setattr(Ranks, "gather", lambda self, value: [["a is wrong"], value])
    with pytest.raises(DataSetError, match="1 problem.*\n  a is wrong"):
        reject_wrong_data(cfg, Ranks(1, 2, torch.device("cpu")))


@pytest.mark.nightly
def test_training_on_changed_data_ends_on_both_ranks(tmp_path):
    prepared_config = write_run(tmp_path)
    flip_bits(tmp_path / "data/train/seq_000/spike/000001.dat")
    command = [str(REPO_ROOT / "src/train.py"), "--config", str(prepared_config)]
    codes, output = run_ranks(command, tmp_path, processes=2)
    assert 0 not in codes
    assert "train/seq_000: its voxels were made from other spikes" in output
    assert "run scripts/prepare_data.py with this configuration" in output
    assert not list((tmp_path / "outputs").rglob("*.pth"))
