"""Files that change while a run reads them, and after their voxels were counted."""

import os

import numpy as np
import pytest

from src.config import load_config
from src.data.build import build_train_dataset
from src.data.datasets.spike_deblur_dataset import ClipSettings, SpikeDeblurDataset
from src.data.errors import BadSample
from src.data.exposures import read_alignment
from src.data.scanning import scan_split
from tests.data_cases import align, settings_of, write_miniature
from tests.prepare_cases import flip_bits, run, touch_later
from tests.training_cases import make_trainer, write_run


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (flip_bits, "written again since"),
        (lambda path: path.write_bytes(path.read_bytes()[: 10 * 192]), "and has 1920 now"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_f40_spikes_that_change_under_a_run_are_not_used(prepared_config, change, words):
    """Whether voxels come from the cache, which now lies, or from the bits."""
    path = prepared_config.parent / "mini/train/seq_000/spike/000001.dat"
    cached = build_train_dataset(load_config(prepared_config))
    counted = build_train_dataset(
        load_config(prepared_config, ["DATA.USE_PRECOMPUTED_VOXELS", "False"])
    )
    before = cached[3]["spike_vox"]
    os.utime(path, ns=(0, path.stat().st_mtime_ns))  # to be read is no change
    assert not isinstance(cached[0], BadSample)
    change(path)
    for dataset in (cached, counted):
        sample = dataset[0]  # frames 0, 1, 2 of seq_000
        assert isinstance(sample, BadSample)
        assert sample.name == "seq_000 frames [0, 1, 2]"
        assert "000001.dat" in sample.reason
        assert words in sample.reason
        if change is flip_bits:
            assert "Stop the run, run scripts/prepare_data.py, start" in sample.reason
    assert cached[3]["spike_vox"].equal(before)  # the other sequence is as it was


def test_f40_voxels_that_change_under_a_run(tmp_path):
    root = write_miniature(tmp_path / "mini", sequences=1, frames=3, spikes="voxels")
    log = read_alignment([align(root, tmp_path / "log.txt")])
    recordings = scan_split(settings_of(root), "train", log)
    dataset = SpikeDeblurDataset(recordings, ClipSettings(3, 32))
    assert not isinstance(dataset[0], BadSample)
    np.save(root / "train/seq_000/spike_vox/000001.npy", np.zeros((16, 32, 48), np.uint8))
    assert isinstance(dataset[0], BadSample)
    assert "changed under the run" in dataset[0].reason


def test_f40_too_many_changes_end_the_run(tmp_path):
    trainer = make_trainer(write_run(tmp_path, TRAIN__MAX_STEPS=50))
    for path in (tmp_path / "data/train").rglob("*.dat"):
        touch_later(path)
    with pytest.raises(RuntimeError, match=r"samples could not be read, more than .*changed under"):
        trainer.fit()


def test_f40_frames_changed_after_preparing_are_found_before_the_next_run(prepared_config, capsys):
    path = prepared_config.parent / "mini/train/seq_000/sharp/000000.png"
    path.write_bytes((prepared_config.parent / "mini/train/seq_001/sharp/000000.png").read_bytes())
    assert run(prepared_config, "--check_only") == 1
    assert "dataset.yaml: train: ends_sha256 was" in capsys.readouterr().out
