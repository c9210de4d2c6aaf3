"""Prepared data with one fault each: what `--check_only` says of it, and that it writes nothing."""

import os
import shutil

import cv2
import numpy as np
import pytest

from src.data.frames import read_image, write_png
from src.prepare.findings import merged
from tests.prepare_cases import flip_bits, rewrite, run, silence, state_of

RGB = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
LOG = "out/logs/align_mini.txt"


def encode(path, image):
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())


def loop(path):
    path.unlink()
    path.symlink_to(path.name)


def cut_an_exposure_of_a_stream(root, _config):
    """Put the files of a sequence together into one stream, and shorten its last exposure."""
    folder = root / "train/seq_001"
    files = sorted((folder / "spike").glob("*.dat"))
    data = b"".join(path.read_bytes() for path in files)
    for path in files:
        path.unlink()
    (folder / "spike/spike.dat").write_bytes(data)
    rewrite(folder / "exposures.csv", f",{28 / 240!r}", f",{21 / 240 + 50 / 1920!r}")


def make_empty_sequence(root, _config):
    for kind in ("blur", "sharp", "spike"):
        (root / "train/seq_009" / kind).mkdir(parents=True)


def change_in_train(change):
    return lambda root, config: change(root / "train/seq_000")


FAULTS = {
    "stray spikes": (
        change_in_train(lambda s: shutil.copy(s / "spike/000001.dat", s / "spike/000009.dat")),
        "train/seq_000: without a blurry frame: spike file (seq_000/000009)",
    ),
    "truncated frame": (
        lambda r, c: silence(r / "val/seq_000/blur/000001.png"),
        "val/seq_000/blur/000001.png: truncated",
    ),
    "length of a window": (
        lambda r, c: rewrite(r / "train/seq_000/exposures.csv", repr(7 / 240), repr(6 / 240)),
        "dropped: exposure and spike file differ in length: [0 s, 0.025 s) is 48 ticks",
    ),
    "lengths of windows": (
        cut_an_exposure_of_a_stream,
        "train/seq_001: windows have 56 ticks but 000003 50",
    ),
    "changed spikes": (
        lambda r, c: flip_bits(r / "train/seq_001/spike/000001.dat"),
        "train/seq_001: its voxels were made from other spikes",
    ),
    "cut voxels": (
        lambda r, c: (r / "train/seq_001/spike_vox/000001.npy").write_bytes(b"1"),
        "its voxel file has not the size it was written with (000001)",
    ),
    "changed voxels": (
        lambda r, c: np.save(
            r / "train/seq_001/spike_vox/000000.npy", np.zeros((32, 32, 48), np.uint8)
        ),
        "000000.npy: differs from the spikes; delete it",
    ),
    "event count": (
        lambda r, c: rewrite(c.parent / LOG, f"000,0,0.0,{7 / 240!r},", f"000,0,0.0,{7 / 240!r},1"),
        "the voxels hold",
    ),
    "exposure in the log": (
        lambda r, c: rewrite(c.parent / LOG, "train/seq_000,0,0.0,", "train/seq_000,0,0.001,"),
        "train/seq_000: the alignment log has another exposure (000000)",
    ),
    "no log": (lambda r, c: (c.parent / LOG).unlink(), "align_mini.txt: cannot be read"),
    "sequence gone": (
        lambda r, c: shutil.rmtree(r / "train/seq_001"),
        "sequences ['train/seq_001'] do not exist",
    ),
    "normalization": (lambda r, c: rewrite(c, "STD: 0.", "STD: 9."), "DATA.NORM: MEAN "),
    "crop": (
        lambda r, c: rewrite(c, "CROP_SIZE: 32", "CROP_SIZE: 80"),
        "frames of 64x96 are below the crop 80",
    ),
    "clip": (
        lambda r, c: rewrite(c, "CLIP_LEN: 3", "CLIP_LEN: 5"),
        "4 usable frames, a clip needs 5",
    ),
    "description": (
        lambda r, c: (r / "dataset.yaml").write_text("source: [1]\n"),
        "source: expected a text, got [1]",
    ),
    "fingerprint": (
        change_in_train(
            lambda s: write_png(s / "sharp/000000.png", 255 - read_image(s / "sharp/000000.png"))
        ),
        "dataset.yaml: train: ends_sha256 was ",
    ),
    "blurry frame missing": (
        change_in_train(lambda s: (s / "blur/000001.png").unlink()),
        "train/seq_000: without a blurry frame: sharp frame (seq_000/000001); spike file",
    ),
    "sharp frame missing": (
        change_in_train(lambda s: (s / "sharp/000002.png").unlink()),
        "train/seq_000: dropped: no sharp frame of this name (seq_000/000002)",
    ),
    "spikes missing": (
        change_in_train(lambda s: (s / "spike/000002.dat").unlink()),
        "train/seq_000: dropped: no spike file of this name (seq_000/000002)",
    ),
    "exposure missing": (
        change_in_train(lambda s: rewrite(s / "exposures.csv", f"3,{21 / 240!r}", f"7,{21 / 240}")),
        "train/seq_000: dropped: no record of its exposure (seq_000/000003)",
    ),
    "kind: 16 bit": (
        change_in_train(lambda s: encode(s / "blur/000001.png", RGB.astype(np.uint16) * 257)),
        "blur/000001.png: uint16 pixels; 8 bit is needed",
    ),
    "kind: transparent": (
        change_in_train(lambda s: encode(s / "sharp/000001.png", np.dstack([RGB, RGB[..., 0]]))),
        "sharp/000001.png: has transparent pixels; flatten it",
    ),
    "kind: other size": (
        change_in_train(lambda s: write_png(s / "blur/000001.png", RGB[:60])),
        "frames are (64, 96) but blur/000001.png (60, 96)",
    ),
    "kind: link to itself": (
        change_in_train(lambda s: loop(s / "blur/000001.png")),
        "blur/000001.png: cannot be read: Too many levels of symbolic links",
    ),
    "kind: empty sequence": (
        make_empty_sequence,
        "seq_009/blur: no image files; blurry frames are needed",
    ),
    "kind: short sequence": (
        change_in_train(
            lambda s: [path.unlink() for k in (2, 3) for path in s.glob(f"*/00000{k}.*")]
        ),
        "seq_000: 2 usable frames, a clip needs 3",
    ),
    "kind: no sequence": (
        lambda r, c: [shutil.rmtree(folder) for folder in (r / "train").iterdir()],
        "train: is empty; one folder per sequence is needed",
    ),
}


def check_names(config, fault, capsys):
    change, expected = FAULTS[fault]
    change(config.parent / "mini", config)
    before = state_of(config.parent)
    assert run(config, "--check_only") == 1
    assert expected in capsys.readouterr().out
    assert state_of(config.parent) == before


@pytest.mark.parametrize("fault", [name for name in FAULTS if "missing" in name])
def test_f34_whatever_is_missing_is_found_by_name(prepared_config, fault, capsys):
    check_names(prepared_config, fault, capsys)


@pytest.mark.parametrize("fault", [name for name in FAULTS if "kind: " in name])
def test_f36_kinds_of_images_links_and_folders(prepared_config, fault, capsys):
    check_names(prepared_config, fault, capsys)


@pytest.mark.parametrize(
    "fault", [name for name in FAULTS if "missing" not in name and "kind: " not in name]
)
def test_check_only_names_every_fault(prepared_config, fault, capsys):
    check_names(prepared_config, fault, capsys)


def test_a_link_in_a_circle_is_no_sequence(prepared_config, capsys):
    (prepared_config.parent / "mini/train/seq_009").symlink_to("seq_009")
    assert run(prepared_config, "--check_only") == 0


def test_check_only_lists_all_faults_at_once(prepared_config, capsys):
    chosen = ("sharp frame missing", "truncated frame", "cut voxels", "event count", "clip")
    for name in chosen:
        FAULTS[name][0](prepared_config.parent / "mini", prepared_config)
    assert run(prepared_config, "--check_only") == 1
    printed = capsys.readouterr().out
    assert [name for name in chosen if FAULTS[name][1] not in printed] == []


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
