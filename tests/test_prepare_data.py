import importlib.util
import os
import shutil

import numpy as np
import pytest
import yaml
from data_cases import copy_root, write_miniature

from src.config import load_config
from src.data.alignment import read_alignment
from src.data.build import (
    build_train_dataset,
    build_train_loader,
    build_val_recordings,
    workers_that_fit,
)
from src.data.datasets.voxelizer import voxelize_spikes
from src.data.frames import read_image, write_png
from src.data.preparation import counting
from src.data.preparation.counting import count_frames
from src.data.spikes.spike_dat import SpikeFile, SpikeGeometry
from src.data.voxel_cache import read_index
from src.paths import REPO_ROOT

CONFIG = """\
# what it is
DATA:
  ROOT: {root}
  CROP_SIZE: 32
  CLIP_LEN: 3
  NORM:
    MEAN: 0.0   # of log1p(count)
    STD: 1.0
TRAIN:
  NUM_WORKERS: 0
  GRADIENT_ACCUMULATION_STEPS: 2
LOG:
  SAVE_DIR: {out}
"""


def load_script():
    path = REPO_ROOT / "scripts/prepare_data.py"
    spec = importlib.util.spec_from_file_location("prepare_data", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


prepare_data = load_script()


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_miniature(tmp_path_factory.mktemp("prepare") / "mini", sequences=2, frames=4)


@pytest.fixture
def root(original, tmp_path):
    return copy_root(original, tmp_path / "mini")


@pytest.fixture
def config(root, tmp_path):
    path = tmp_path / "mini.yaml"
    path.write_text(CONFIG.format(root=root, out=tmp_path / "out"))
    return path


def run(config, *arguments):
    return prepare_data.main(["--config", str(config), "--workers", "1", *arguments])


def all_counts(root, split):
    """The obvious way: every bit of every file, unpacked."""
    counts = []
    for path in sorted((root / split).glob("*/spike/*.dat")):
        file = SpikeFile(path, SpikeGeometry(32, 48))
        counts.append(voxelize_spikes(file.read(0, file.num_ticks), 32))
    return np.stack(counts)


def state_of(*folders):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_preparing_writes_voxels_log_and_numbers(root, config, tmp_path, capsys):
    assert run(config) == 0
    told = capsys.readouterr().out
    assert "voxels: 12 frames counted" in told
    assert "train: 2 sequences, 8 frames, 8 aligned" in told
    counts = all_counts(root, "train")
    paths = sorted((root / "train").glob("*/spike_vox/*.npy"))
    for path, expected in zip(paths, counts, strict=True):
        stored = np.load(path)
        assert stored.dtype == np.uint8
        assert np.array_equal(stored, expected)
    log = read_alignment([tmp_path / "out/logs/align_mini.txt"])
    assert [e.event_count for e in log.records["train/seq_000"].values()] == counts[:4].sum(
        axis=(1, 2, 3)
    ).tolist()
    assert log.records["val/seq_000"][3].t1 == 28 / 240
    logs = np.log1p(counts.astype(np.float64))
    norm = yaml.safe_load(config.read_text())["DATA"]["NORM"]
    assert norm == {"MEAN": float(f"{logs.mean():.6g}"), "STD": float(f"{logs.std():.6g}")}
    assert config.read_text() == CONFIG.format(root=root, out=tmp_path / "out").replace(
        "MEAN: 0.0 ", f"MEAN: {norm['MEAN']} "
    ).replace("STD: 1.0", f"STD: {norm['STD']}")
    assert not list(tmp_path.rglob(".partial*"))


def test_a_second_run_does_nothing(root, config, tmp_path, capsys):
    assert run(config) == 0
    before = state_of(root, tmp_path / "out", config.parent)
    capsys.readouterr()
    assert run(config) == 0
    told = capsys.readouterr().out
    assert told.count("up to date") == 4
    assert state_of(root, tmp_path / "out", config.parent) == before
    assert run(config, "--check_only") == 0
    assert "no problem found" in capsys.readouterr().out
    assert state_of(root, tmp_path / "out", config.parent) == before


def test_only_what_changed_is_counted_again(root, config, capsys):
    assert run(config) == 0
    (root / "train/seq_000/spike_vox/000002.npy").unlink()
    path = root / "train/seq_001/spike/000001.dat"
    bits = bytearray(path.read_bytes())
    bits[100] ^= 255
    path.write_bytes(bits)
    capsys.readouterr()
    assert run(config) == 0
    assert "voxels: 2 frames counted" in (told := capsys.readouterr().out)
    assert "10 up to date" in told
    counts = all_counts(root, "train")
    assert np.array_equal(np.load(root / "train/seq_001/spike_vox/000001.npy"), counts[5])
    assert run(config, "--check_only") == 0


def test_interrupted_counting_keeps_what_is_done(root, config, monkeypatch, capsys):
    calls = []

    def interrupt(task):
        calls.append(task)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return count_frames(task)

    monkeypatch.setattr(counting, "FRAMES_PER_TASK", 2)
    monkeypatch.setattr(counting, "count_frames", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    monkeypatch.undo()
    assert run(config) == 0
    assert "voxels: 8 frames counted" in (told := capsys.readouterr().out)
    assert "4 up to date" in told


def test_bits_without_a_cache(root, config, capsys):
    assert run(config, "DATA.USE_PRECOMPUTED_VOXELS", "False") == 0
    assert not list(root.rglob("*.npy"))
    text = config.read_text()
    counted = build_val_recordings(load_config(config, ["DATA.USE_PRECOMPUTED_VOXELS", "False"]))[
        0
    ].read_counts(2, (1, 2, 8, 9))
    capsys.readouterr()
    assert run(config) == 0
    assert "voxels: 12 frames counted" in capsys.readouterr().out  # now to be stored
    assert config.read_text() == text
    stored = build_val_recordings(load_config(config))[0]
    assert stored.frames[2].voxels is not None
    assert np.array_equal(stored.read_counts(2, (1, 2, 8, 9)), counted)


@pytest.mark.parametrize("spikes", ["stream", "voxels"])
def test_other_layouts_give_the_same_numbers(original, tmp_path, spikes, capsys):
    root = write_miniature(tmp_path / "mini", sequences=2, frames=4, spikes=spikes)
    config = tmp_path / "a.yaml"
    config.write_text(CONFIG.format(root=root, out=tmp_path / "out"))
    before = state_of(root)
    assert run(config) == 0
    mean = np.log1p(all_counts(original, "train").astype(np.float64)).mean()
    assert yaml.safe_load(config.read_text())["DATA"]["NORM"]["MEAN"] == float(f"{mean:.6g}")
    after = state_of(root)
    assert {path: after[path] for path in before} == before  # nothing of the user's is touched
    capsys.readouterr()
    assert run(config) == 0
    assert "voxels: 12 frames up to date" in capsys.readouterr().out
    assert run(config, "--check_only") == 0


def test_trainer_gets_the_prepared_data(config):
    assert run(config) == 0
    cfg = load_config(config)
    dataset = build_train_dataset(cfg)
    assert len(dataset) == 4
    loader = build_train_loader(cfg, dataset, rank=0, world_size=1, start_step=1, num_steps=2)
    batches = list(loader)
    assert len(batches) == 4
    assert batches[0]["blur"].shape == (1, 3, 3, 32, 32)
    assert str(batches[0]["spike_vox"].dtype) == "torch.uint8"
    floats = build_train_dataset(cfg, as_uint8=False)[0]
    assert str(floats["spike_vox"].dtype) == "torch.float32"
    assert [len(recording) for recording in build_val_recordings(cfg)] == [4]


def test_cached_and_preloaded_frames_are_the_same(config):
    assert run(config) == 0
    plain = build_train_dataset(load_config(config))
    options = ["DATA.USE_RAM_CACHE", "True", "DATA.PRELOAD", "True"]
    cached = build_train_dataset(load_config(config, options))
    for key in ((0, 0), (0, 1), (3, 2)):
        for name in ("blur", "sharp", "spike_vox"):
            assert plain[key][name].equal(cached[key][name])


def test_missing_geometry_ends_with_advice(root, config, capsys):
    for path in root.rglob("spike.yaml"):
        path.unlink()
    assert run(config) == 1
    told = capsys.readouterr().err
    assert told.count("'height: 250', 'width: 400'") == 3
    assert "spike_height" in told
    assert not list(root.rglob("spike_vox"))


def test_file_that_cannot_be_counted_is_named(tmp_path, capsys):
    root = write_miniature(tmp_path / "mini", sequences=1, frames=4, spikes="voxels")
    config = tmp_path / "a.yaml"
    config.write_text(CONFIG.format(root=root, out=tmp_path / "out"))
    (root / "train/seq_000/spike_vox/000001.npy").write_bytes(b"broken")
    assert run(config) == 0
    assert "train: seq_000/000001 not counted: " in capsys.readouterr().out
    log = read_alignment([tmp_path / "out/logs/align_mini.txt"])
    assert list(log.records["train/seq_000"]) == [0, 2, 3]
    assert run(config, "--check_only") == 1


def rewrite(path, old, new):
    path.write_text(path.read_text().replace(old, new, 1))


def touch_later(path):
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))


def silence(path):
    path.write_bytes(bytes(path.stat().st_size))


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
        "train/seq_001: its voxels were made from another 000001.dat",
    ),
    "cut voxels": (
        lambda r, c: (r / "train/seq_001/spike_vox/000001.npy").write_bytes(b"1"),
        "000001.npy has not the size it was written with (000001)",
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


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    root = write_miniature(folder / "mini", sequences=2, frames=4)
    config = folder / "mini.yaml"
    config.write_text(CONFIG.format(root=root, out=folder / "out"))
    assert run(config) == 0
    return folder


@pytest.fixture
def prepared_config(prepared, tmp_path):
    folder = copy_root(prepared, tmp_path / "copy")
    config = folder / "mini.yaml"
    rewrite(config, str(prepared), str(folder))
    rewrite(config, str(prepared), str(folder))
    return config


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


def test_several_logs_are_for_reading_only(config, capsys):
    assert run(config, "DATA.ALIGN_LOG_PATHS", "[a.txt, b.txt]") == 1
    assert "name one, or none" in capsys.readouterr().err


def test_config_error_ends_with_1(config, capsys):
    assert run(config, "DATA.CLIP_LENGHT", "3") == 1
    assert "did you mean 'DATA.CLIP_LEN'" in capsys.readouterr().err


def test_f38_fewer_workers_where_shared_memory_is_small(caplog):
    assert workers_that_fit(8, 10**6, None) == 8
    assert workers_that_fit(8, 10**6, 24 * 10**6) == 8
    assert caplog.text == ""
    assert workers_that_fit(8, 10**6, 20 * 10**6) == 6
    assert "using 6. In Docker give --shm-size" in caplog.text
    assert workers_that_fit(8, 10**9, 10**6) == 0


def test_index_holds_only_present_frames(root, config):
    assert run(config) == 0
    for kind in ("blur/000003.png", "sharp/000003.png", "spike/000003.dat"):
        (root / "train/seq_000" / kind).unlink()
    (root / "train/seq_000/spike_vox/000000.npy").unlink()  # makes the index be written
    assert run(config) == 0
    assert sorted(read_index(root / "train/seq_000/spike_vox")) == ["000000", "000001", "000002"]
