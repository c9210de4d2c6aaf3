import sys
from importlib import import_module

import numpy as np
import pytest
import yaml

from src.config import load_config
from src.data.build import build_train_dataset, build_train_loader, build_val_recordings
from src.data.exposures import read_alignment
from src.data.spikes.spike_dat import SpikeFile, SpikeGeometry
from src.data.voxel_counts import read_index
from src.prepare import prepare as preparing
from src.prepare.prepare import count_frames
from tests.data_cases import write_miniature
from tests.prepare_cases import CONFIG, run, state_of, write_config
from tests.spike_cases import voxelize_spikes_twin


@pytest.fixture
def config(root, tmp_path):
    return write_config(root, tmp_path / "mini.yaml")


def all_counts(root, split):
    """The obvious way: every bit of every file, unpacked."""
    counts = []
    for path in sorted((root / split).glob("*/spike/*.dat")):
        file = SpikeFile(path, SpikeGeometry(32, 48))
        counts.append(voxelize_spikes_twin(file.read(0, file.num_ticks), 32))
    return np.stack(counts)


def test_preparing_writes_voxels_log_and_numbers(root, config, tmp_path, capsys):
    assert run(config) == 0
    printed = capsys.readouterr().out
    assert "voxels: 12 frames counted" in printed
    assert "train: 2 sequences, 8 frames, 8 aligned" in printed
    counts = all_counts(root, "train")
    paths = sorted((root / "train").glob("*/spike_vox/*.npy"))
    for path, expected in zip(paths, counts, strict=True):
        stored = np.load(path)
        assert stored.dtype == np.uint8
        assert np.array_equal(stored, expected)
    log = read_alignment([tmp_path / "out/logs/align_mini.txt"])
    assert [e.num_spikes for e in log.records["train/seq_000"].values()] == counts[:4].sum(
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
    printed = capsys.readouterr().out
    assert printed.count("up to date") == 5
    assert state_of(root, tmp_path / "out", config.parent) == before
    assert run(config, "--check_only") == 0
    assert "no problem found" in capsys.readouterr().out
    assert state_of(root, tmp_path / "out", config.parent) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("DATA.ALIGN_LOG_PATHS", "[a.txt, b.txt]"), "name one, or none"),
        (("DATA.CLIP_LENGHT", "3"), "did you mean 'DATA.CLIP_LEN'"),
        (("DATA.TRAIN_SPLIT", "none"), "none: no such folder"),
    ],
)
def test_errors_end_with_1(config, arguments, message, capsys):
    assert run(config, *arguments) == 1
    assert message in capsys.readouterr().err


def test_only_what_changed_is_counted_again(root, config, capsys):
    assert run(config) == 0
    (root / "train/seq_000/spike_vox/000002.npy").unlink()
    path = root / "train/seq_001/spike/000001.dat"
    bits = bytearray(path.read_bytes())
    bits[100] ^= 255
    path.write_bytes(bits)
    capsys.readouterr()
    assert run(config) == 0
    assert "voxels: 2 frames counted" in (printed := capsys.readouterr().out)
    assert "10 up to date" in printed
    counts = all_counts(root, "train")
    assert np.array_equal(np.load(root / "train/seq_001/spike_vox/000001.npy"), counts[5])
    assert run(config, "--check_only") == 0
    for kind in ("blur/000003.png", "sharp/000003.png", "spike/000003.dat"):
        (root / "train/seq_000" / kind).unlink()
    (root / "train/seq_000/spike_vox/000000.npy").unlink()  # makes the index be written
    assert run(config) == 0
    assert sorted(read_index(root / "train/seq_000/spike_vox")) == ["000000", "000001", "000002"]


def test_interrupted_counting_keeps_what_is_done(root, config, monkeypatch, capsys):
    calls = []

    def interrupt(frames, num_bins):
        calls.append(frames)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return count_frames(frames, num_bins)

    monkeypatch.setattr(preparing, "FRAMES_PER_TASK", 2)
    monkeypatch.setattr(preparing, "count_frames", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    monkeypatch.undo()
    assert run(config) == 0
    assert "voxels: 8 frames counted" in (printed := capsys.readouterr().out)
    assert "4 up to date" in printed


def test_bits_without_a_cache(root, config, capsys):
    assert run(config, "DATA.USE_PRECOMPUTED_VOXELS", "False") == 0
    assert not list(root.rglob("spike_vox/*.npy"))
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
def test_other_layouts_give_the_same_numbers(miniature, tmp_path, spikes, capsys):
    root = write_miniature(tmp_path / "mini", sequences=2, frames=4, spikes=spikes)
    config = write_config(root, tmp_path / "a.yaml")
    before = state_of(root)
    assert run(config) == 0
    mean = np.log1p(all_counts(miniature, "train").astype(np.float64)).mean()
    assert yaml.safe_load(config.read_text())["DATA"]["NORM"]["MEAN"] == float(f"{mean:.6g}")
    after = state_of(root)
    before.pop(root / "dataset.yaml")  # got the result of the content's check
    assert {path: after[path] for path in before} == before  # nothing of the user's is touched
    printed = capsys.readouterr().out
    assert ("val/seq_000: voxels without bits, so" in printed) == (spikes == "voxels")
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
    options = ["DATA.USE_RAM_CACHE", "True", "DATA.PRELOAD", "True"]
    cached = build_train_dataset(load_config(config, options))
    for key in ((0, 0), (0, 1), (3, 2)):
        for name in ("blur", "sharp", "spike_vox"):
            assert dataset[key][name].equal(cached[key][name])


def test_file_that_cannot_be_counted_is_named(tmp_path, capsys):
    root = write_miniature(tmp_path / "mini", sequences=1, frames=4, spikes="voxels")
    config = write_config(root, tmp_path / "a.yaml")
    (root / "train/seq_000/spike_vox/000001.npy").write_bytes(b"broken")
    assert run(config) == 0
    assert "train: seq_000/000001 not counted: " in capsys.readouterr().out
    log = read_alignment([tmp_path / "out/logs/align_mini.txt"])
    assert list(log.records["train/seq_000"]) == [0, 2, 3]
    assert run(config, "--check_only") == 1


@pytest.mark.parametrize(
    "words",
    [
        "inspect_spikes a.dat --output {}",
        "make_demo_data --output {}",
        "make_training_scenes --scenes 1 --output {}",
        "make_real_video --output {}",
        "visualize sequence --output {}/a.jpg",
        "prepare_data --source folders --input . --config {config} DATA.ROOT {}",
    ],
)
@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_where_a_folder_is_to_be_written_is_reported_first(
    config, tmp_path, monkeypatch, capsys, words, place
):
    (tmp_path / "file").touch()
    script, *words = words.format(tmp_path / place, config=config).split()
    monkeypatch.setattr(sys, "argv", [script, *words])
    with pytest.raises(SystemExit) as end:
        sys.exit(import_module(f"scripts.{script}").main())
    assert end.value.code == (1 if script == "prepare_data" else 2)
    assert f"{tmp_path / 'file'} is a file; name another folder" in capsys.readouterr().err
