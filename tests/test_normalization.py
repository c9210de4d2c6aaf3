"""DATA.GAIN and DATA.BIN_NORMALIZE: by hand, table against formula, from files to the network."""

import dataclasses
import logging

import cv2
import numpy as np
import pytest
import torch
import yaml

from src.config import config_from_text, load_config
from src.data import normalization
from src.data.collate_fns import collate_clips
from src.data.datasets.spike_deblur_dataset import ClipSettings, SpikeDeblurDataset
from src.data.datasets.voxelizer import ticks_per_bin
from src.data.errors import DataSetError
from src.data.exposures import read_alignment
from src.data.inputs import InputFolders, scan_inputs
from src.data.normalization import (
    Normalization,
    normalization_from,
    normalize_counts,
    to_unit,
)
from src.data.recordings import require_known_ticks
from src.data.scanning import scan_split
from src.data.transforms import AugmentSettings
from src.data.voxel_counts import count_frame, normalization_of, write_index
from src.engine.step import BatchTransfer
from src.inference.restore import Restorer
from src.inference.tiling import TileSettings
from src.prepare.checks import quick_check
from tests.data_cases import TICKS_PER_FRAME, align, scan, settings_of, write_miniature
from tests.prepare_cases import run, write_config

K = 32
NORMS = [
    Normalization(0.3, 0.4),
    Normalization(0.3, 0.4, gain=2.5),
    Normalization(0.3, 0.4, gain=0.5, bin_normalize=True),
]


def ticks_of(*windows):
    return torch.from_numpy(np.stack([ticks_per_bin(ticks, K) for ticks in windows]))


def test_values_by_hand():
    counts = torch.tensor([2, 4], dtype=torch.uint8).reshape(1, 2, 1, 1)
    norm = Normalization(0.25, 0.5, gain=3.0, bin_normalize=True)
    values = normalize_counts(counts, norm, torch.tensor([[2, 1]]))
    expected = [(np.log(4) - 0.25) / 0.5, (np.log(13) - 0.25) / 0.5]  # 2 / 2 * 3, 4 / 1 * 3
    assert values.ravel().tolist() == pytest.approx(expected, rel=1e-6)
    plain = normalize_counts(counts, Normalization(0.25, 0.5, gain=3.0))
    expected = [(np.log(7) - 0.25) / 0.5, (np.log(13) - 0.25) / 0.5]
    assert plain.ravel().tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("bin_normalize", [True, False])
def test_matched_light_by_hand(bin_normalize):
    counts = torch.arange(2 * 2 * 3 * 4 * 4).reshape(2, 2, 3, 4, 4) % 7  # 2 clips of 2 frames
    ticks = torch.tensor([3, 3, 4]).expand(2, 2, 3)
    blurry = torch.rand(2, 2, 3, 8, 8)
    norm = Normalization(0.2, 0.5, bin_normalize=bin_normalize, match_light=True)
    values = normalize_counts(counts, norm, ticks, blurry)
    for clip in range(2):
        luma = sum(w * blurry[clip, :, c].mean() for c, w in enumerate((0.299, 0.587, 0.114)))
        per_bin = ticks[clip, ..., None, None] if bin_normalize else torch.ones(1)
        mean = counts[clip].sum() / per_bin.expand(2, 3, 4, 4).sum()
        expected = (torch.log1p(counts[clip] / per_bin * luma / mean) - 0.2) / 0.5
        assert torch.allclose(values[clip], expected, atol=1e-5)
    doubled = normalize_counts(2 * counts, norm, ticks, blurry)  # half the threshold
    assert torch.allclose(values, doubled, atol=1e-5)
    silent = normalize_counts(torch.zeros_like(counts), norm, ticks, blurry)
    assert silent.eq(-0.4).all()
    with pytest.raises(ValueError, match=r"MATCH_LIGHT"):
        normalize_counts(counts, norm, ticks)


@pytest.mark.parametrize("norm", NORMS)
def test_table_gives_the_values_of_the_formula(norm, monkeypatch):
    counts = torch.arange(256, dtype=torch.uint8).repeat(2 * K).reshape(2, K, 16, 16)
    ticks = ticks_of(56, 88)
    floats = normalize_counts(counts.float(), norm, ticks)
    tables = []
    look_up = cv2.LUT
    monkeypatch.setattr(normalization.cv2, "LUT", lambda *a: tables.append(a[1]) or look_up(*a))
    before = counts.clone()
    looked_up = normalize_counts(counts, norm, ticks)
    view = normalize_counts(counts.transpose(-1, -2), norm, ticks)
    assert torch.equal(view.transpose(-1, -2), looked_up)
    assert torch.equal(counts, before)
    del tables[2 * K :]
    assert len(tables) == 2 * K
    assert len(set(map(id, tables))) == (3 if norm.bin_normalize else 1)  # 1, 2 and 3 ticks
    assert looked_up.dtype == torch.float32
    assert torch.allclose(looked_up, floats, rtol=1e-6, atol=1e-6)
    double = np.log1p(counts.double().numpy() * norm.gain)
    if norm.bin_normalize:
        double = np.log1p(counts.double().numpy() * norm.gain / ticks.numpy()[..., None, None])
    assert np.allclose(looked_up.numpy(), (double - 0.3) / 0.4, rtol=1e-6, atol=1e-6)


def test_values_at_the_limits():
    assert normalize_counts(torch.zeros(1), Normalization(0.0, 0.0)).tolist() == [0.0]
    real = torch.tensor([0.0, 1.0])
    normalize_counts(real, Normalization(0.25, 0.5))
    assert real.tolist() == [0.0, 1.0]  # the argument is left as it was
    with pytest.raises(ValueError, match="DATA.BIN_NORMALIZE needs the ticks"):
        normalize_counts(torch.zeros(1, K, 2, 2), Normalization(bin_normalize=True))
    assert to_unit(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == [
        0,
        pytest.approx(0.2),
        1,
    ]
    with pytest.raises(ValueError, match="expected uint8"):
        to_unit(torch.zeros(1))


# ---------------------------------------------------------------- statistics


@pytest.mark.parametrize(("ticks", "bins"), [(56, 32), (88, 32), (20, 32), (300, 1)])
@pytest.mark.parametrize(("gain", "bin_normalize"), [(1.0, False), (2.5, False), (0.5, True)])
def test_mean_and_deviation_come_from_the_index(tmp_path, ticks, bins, gain, bin_normalize):
    frame = write_and_scan(tmp_path, ticks)
    entry = count_frame(frame.spikes, bins, frame.voxels)
    counts = np.load(frame.voxels).astype(np.float64)
    divisor = np.maximum(ticks_per_bin(ticks, bins), 1)[:, None, None] if bin_normalize else 1
    logs = np.log1p(counts * gain / divisor)
    mean, std = normalization_of([entry], gain, bin_normalize)
    assert (mean, std) == (pytest.approx(logs.mean(), rel=1e-12), pytest.approx(logs.std()))
    assert sum(map(sum, entry.histograms.values())) == counts.size


def write_and_scan(root, ticks):
    assert TICKS_PER_FRAME == 8
    root = write_miniature(root, sequences=1, val_sequences=0, frames=1, n=39)  # 312 ticks
    frame = scan(root / "train/seq_000").frames[0]
    return dataclasses.replace(frame, spikes=dataclasses.replace(frame.spikes, stop=ticks))


def test_voxels_without_spikes_have_gain_only(tmp_path):
    root = write_miniature(tmp_path, sequences=1, val_sequences=0, frames=1, spikes="voxels")
    source = scan(root / "train/seq_000").frames[0].spikes
    entry = count_frame(source, K, None)
    counts = np.load(source.path)
    assert normalization_of([entry], 3.0)[0] == pytest.approx(np.log1p(counts * 3.0).mean())
    with pytest.raises(ValueError, match="add the .dat files"):
        normalization_of([entry], 1.0, bin_normalize=True)
    np.save(source.path, counts / 2)
    real = count_frame(source, K, None)
    assert normalization_of([real])[0] == pytest.approx(np.log1p(counts / 2).mean())
    with pytest.raises(ValueError, match="no whole numbers"):
        normalization_of([real], 2.0)


# ---------------------------------------------------------------- from files to the network


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_miniature(tmp_path_factory.mktemp("norm"), sequences=1, val_sequences=0, frames=4)


def dataset_of(root, spikes=False, **changes):
    settings = settings_of(root, use_voxel_cache=False)
    log = read_alignment([align(root, root / "log.txt", ("train",))])
    recordings = scan_split(settings, "train", log)
    augment = AugmentSettings(flip=True, transpose=True, reverse=True, spikes=spikes)
    return SpikeDeblurDataset(recordings, ClipSettings(2, 32, augment), seed=3, **changes)


@pytest.mark.parametrize("spikes", [False, True])
@pytest.mark.parametrize(
    "norm", [*NORMS, Normalization(0.3, 0.4, bin_normalize=True, match_light=True)]
)
def test_device_path_equals_the_float_path(root, norm, spikes):
    floats, raw = (dataset_of(root, spikes, norm=norm, as_uint8=raw) for raw in (False, True))
    keys = [(epoch, 1) for epoch in range(8)]
    batch = collate_clips([raw[key] for key in keys])
    assert batch["bin_ticks"].shape == (8, 2, K)
    assert {tuple(ticks[0, :4].tolist()) for ticks in batch["bin_ticks"]} == {
        (2, 2, 2, 1),
        (1, 2, 2, 2),  # reversed in time, like the counts
    }
    voxels = BatchTransfer(torch.device("cpu"), norm, (2, 32, K))(batch).voxels
    args = (norm, batch["bin_ticks"], to_unit(batch["blur"]))
    as_on_a_device = normalize_counts(batch["spike_vox"].float(), *args)
    expected = torch.stack([floats[key]["spike_vox"] for key in keys])
    for name in ("blur", "sharp"):
        values = torch.stack([floats[key][name] for key in keys])
        assert torch.equal(to_unit(batch[name]), values)
    assert batch["meta"] == [floats[key]["meta"] for key in keys]
    assert torch.allclose(voxels, expected, rtol=1e-6, atol=1e-6)
    assert torch.allclose(as_on_a_device, expected, rtol=1e-6, atol=1e-6)


def test_bins_of_unknown_length_cannot_be_normalized(tmp_path):
    root = write_miniature(tmp_path, sequences=1, val_sequences=0, frames=4, spikes="voxels")
    assert not dataset_of(root)[0]["bin_ticks"].any()
    with pytest.raises(DataSetError, match=r"seq_000 have voxels but no spikes.*add the .dat"):
        dataset_of(root, norm=Normalization(bin_normalize=True))


class SpikesAsImage(torch.nn.Module):
    """Shows the mean of the normalised spikes as a grey image of the RGB size."""

    def forward(self, rgb, spikes):
        grey = spikes.mean(dim=2, keepdim=True).repeat_interleave(2, -1).repeat_interleave(2, -2)
        return grey.expand_as(rgb) / 4


def restored(source, norm):
    frames = Restorer(SpikesAsImage(), TileSettings(2, 32, 1, 8), norm, "cpu").restore(source)
    return np.stack([image[..., 0] for _, image in frames])


def test_testing_takes_the_ticks_from_the_index_beside_voxels(root, tmp_path, caplog):
    norm = Normalization(0.1, 0.5, bin_normalize=True)
    sequence = scan(root / "train/seq_000")
    voxels = tmp_path / "spike_vox"
    entries = {
        frame.name: count_frame(frame.spikes, K, voxels / f"{frame.name}.npy")
        for frame in sequence.frames
    }
    blurry = root / "train/seq_000/blur"

    def find(spikes):
        return scan_inputs(InputFolders(blurry, spikes), settings_of(root))[0]

    expected = restored(find(root / "train/seq_000/spike"), norm)
    assert expected.std() > 1
    assert not np.array_equal(expected, restored(find(voxels), Normalization(0.1, 0.5)))
    with pytest.raises(DataSetError, match=r"ticks of their bins are not known; add the \.dat"):
        require_known_ticks([find(voxels)])
    with caplog.at_level(logging.WARNING):
        require_known_ticks([find(voxels)], match_light=True)
        even = restored(find(voxels), dataclasses.replace(norm, match_light=True))
    assert "count as equally long" in caplog.text
    assert even.std() > 1
    write_index(voxels, entries)
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(restored(find(voxels), norm), expected)


# ---------------------------------------------------------------- preparation and configuration


def test_preparation_writes_the_numbers_of_the_scaled_counts(tmp_path):
    root = write_miniature(tmp_path / "mini", sequences=1, frames=3)
    config = write_config(root, tmp_path / "a.yaml")
    scaled = ("DATA.GAIN", "2.0", "DATA.BIN_NORMALIZE", "True")
    assert run(config, *scaled) == 0
    files = sorted((root / "train/seq_000/spike_vox").glob("*.npy"))
    counts = np.stack([np.load(path) for path in files]) * 2.0
    logs = np.log1p(counts / ticks_per_bin(56, K)[:, None, None])
    norm = yaml.safe_load(config.read_text())["DATA"]["NORM"]
    assert norm == {"MEAN": float(f"{logs.mean():.6g}"), "STD": float(f"{logs.std():.6g}")}
    assert quick_check(load_config(config, list(scaled))) == []
    (problem,) = quick_check(load_config(config, ["DATA.BIN_NORMALIZE", "True"]))
    assert problem.startswith("DATA.NORM: MEAN ")


def test_old_configurations_mean_plain_counts():
    cfg = config_from_text("DATA:\n  NORM: {MEAN: 0.25, STD: 0.5}\n", "an old checkpoint")
    assert normalization_from(cfg) == Normalization(0.25, 0.5, 1.0, False)
    cfg = config_from_text("DATA: {GAIN: 2, BIN_NORMALIZE: true}", "a new one")
    assert normalization_from(cfg) == Normalization(0.0, 1.0, 2.0, True)
