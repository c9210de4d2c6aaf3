import os
import shutil

import numpy as np
import pytest

from src.data.frames import read_image, write_png
from src.prepare.findings import merged
from tests.prepare_cases import (
    rewrite,
    run,
    silence,
    state_of,
    touch_later,
)


def cut_an_exposure_of_a_stream(root, _config):
    """Put the files of a sequence together into one stream, and shorten its last exposure."""
    folder = root / "train/seq_001"
    files = sorted((folder / "spike").glob("*.dat"))
    data = b"".join(path.read_bytes() for path in files)
    for path in files:
        path.unlink()
    (folder / "spike/spike.dat").write_bytes(data)
    rewrite(folder / "exposures.csv", f",{28 / 240!r}", f",{21 / 240 + 50 / 1920!r}")


FAULTS = {
    "sharp frame missing": (
        lambda r, c: (r / "train/seq_000/sharp/000001.png").unlink(),
        "train/seq_000: dropped: no sharp frame of this name (seq_000/000001)",
    ),
    "stray spikes": (
        lambda r, c: shutil.copy(
            r / "train/seq_000/spike/000001.dat", r / "train/seq_000/spike/000009.dat"
        ),
        "train/seq_000: without a blurry frame: spike file (seq_000/000009)",
    ),
    "truncated frame": (
        lambda r, c: silence(r / "val/seq_000/blur/000001.png"),
        "val/seq_000/blur/000001.png: truncated",
    ),
    "size of a frame": (
        lambda r, c: write_png(r / "val/seq_000/sharp/000001.png", np.zeros((64, 98, 3), np.uint8)),
        "frames are (64, 96) but sharp/000001.png (64, 98)",
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
        lambda r, c: touch_later(r / "train/seq_001/spike/000001.dat"),
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
        lambda r, c: rewrite(
            c.parent / "out/logs/align_mini.txt",
            f"train/seq_000,0,0.0,{7 / 240!r},",
            f"train/seq_000,0,0.0,{7 / 240!r},1",
        ),
        "the voxels hold",
    ),
    "exposure in the log": (
        lambda r, c: rewrite(
            c.parent / "out/logs/align_mini.txt", "train/seq_000,0,0.0,", "train/seq_000,0,0.001,"
        ),
        "train/seq_000: the alignment log has another exposure (000000)",
    ),
    "no log": (
        lambda r, c: (c.parent / "out/logs/align_mini.txt").unlink(),
        "align_mini.txt: cannot be read",
    ),
    "sequence gone": (
        lambda r, c: shutil.rmtree(r / "train/seq_001"),
        "sequences ['train/seq_001'] do not exist",
    ),
    "normalization": (
        lambda r, c: rewrite(c, "STD: 0.", "STD: 9."),
        "DATA.NORM: MEAN ",
    ),
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
        lambda r, c: write_png(
            r / "train/seq_000/sharp/000000.png",
            255 - read_image(r / "train/seq_000/sharp/000000.png"),
        ),
        "dataset.yaml: train: ends_sha256 was ",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_check_only_names_every_fault(prepared_config, fault, capsys):
    change, expected = FAULTS[fault]
    folder = prepared_config.parent
    assert run(prepared_config, "--check_only") == 0
    change(folder / "mini", prepared_config)
    before = state_of(folder)
    assert run(prepared_config, "--check_only") == 1
    assert expected in capsys.readouterr().out
    assert state_of(folder) == before


def test_check_only_lists_all_faults_at_once(prepared_config, capsys):
    root = prepared_config.parent / "mini"
    chosen = ("sharp frame missing", "truncated frame", "cut voxels", "event count", "clip")
    for name in chosen:
        FAULTS[name][0](root, prepared_config)
    assert run(prepared_config, "--check_only") == 1
    told = capsys.readouterr().out
    for name in chosen:
        assert FAULTS[name][1] in told


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
    assert "train/seq_000: 000002: " in (told := capsys.readouterr().out)
    assert "spikes counted now" in told


def test_lines_of_equal_text_become_one():
    lines = [f"train/{name}: is still" for name in "abcde"] + ["val/x: dark", "val/y: is still"]
    assert merged(lines) == ["train/a, train/b, train/c and 3 more: is still", "val/x: dark"]
