import dataclasses

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from src.data.build import ClipBatchSampler, init_worker
from src.data.collate_fns import collate_clips
from src.data.datasets.spike_deblur_dataset import (
    Clip,
    ClipSettings,
    SpikeDeblurDataset,
    find_clips,
)
from src.data.errors import BadSample, DataSetError
from src.data.exposures import read_alignment, read_exposures, write_exposures
from src.data.frames import read_image, write_png
from src.data.normalization import Normalization
from src.data.recordings import Recording
from src.data.scanning import scan_split
from src.data.transforms import AugmentSettings
from src.inference.restore import _FrameWindow
from tests.data_cases import align, copy_root, settings_of, write_miniature

RANDOM = ClipSettings(frames=3, crop_px=32, augment=AugmentSettings(True, True, True))
WHOLE = ClipSettings(frames=3)
TENSORS = ("blur", "sharp", "spike_vox")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    root = write_miniature(tmp_path_factory.mktemp("set"), sequences=2, frames=5)
    align(root, root / "log.txt")
    return root


@pytest.fixture
def root(original, tmp_path):
    return copy_root(original, tmp_path / "root")


def recordings_of(root, split="train"):
    settings = settings_of(root, use_voxel_cache=False)
    return scan_split(settings, split, read_alignment([root / "log.txt"]))


def dataset_of(root, settings=RANDOM, **changes):
    return SpikeDeblurDataset(recordings_of(root), settings, seed=5, **changes)


def assert_same(a, b):
    assert a["meta"] == b["meta"]
    for name in TENSORS:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name])


def test_sample_of_whole_frames_holds_the_files(original):
    dataset = dataset_of(original, WHOLE, norm=Normalization(0.3, 0.5))
    recording = dataset.recordings[1]
    sample = dataset[3 + 1]  # second clip of the second sequence
    assert sample["meta"] == {
        "seq": "seq_001",
        "frame_idx": [1, 2, 3],
        "t0": [recording.frames[i].t0 for i in (1, 2, 3)],
        "t1": [recording.frames[i].t1 for i in (1, 2, 3)],
    }
    shapes = [tuple(sample[name].shape) for name in TENSORS]
    assert shapes == [(3, 3, 64, 96), (3, 3, 64, 96), (3, 32, 32, 48)]
    for t, frame in enumerate(recording.frames[1:4]):
        for name, path in (("blur", frame.blurry), ("sharp", frame.sharp)):
            expected = read_image(path).transpose(2, 0, 1).astype(np.float32) / 255
            assert sample[name].dtype == torch.float32
            assert np.allclose(sample[name][t].numpy(), expected, atol=1e-7)
        counts = recording.read_counts(1 + t)
        assert counts.any()
        expected = (np.log1p(counts.astype(np.float32)) - 0.3) / 0.5
        assert np.allclose(sample["spike_vox"][t].numpy(), expected, atol=1e-6)


def test_bins_are_shifted_so_that_the_sharp_frame_is_in_the_middle(root):
    recording = recordings_of(root)[0]
    counts = np.array([recording.read_counts(i) for i in range(3)])
    sample = dataset_of(root, WHOLE, norm=Normalization(center_sharp=True), as_uint8=True)[0]
    assert np.array_equal(sample["spike_vox"], counts)  # not stated: it is in the middle
    path = root / "train/seq_000/exposures.csv"
    times = read_exposures(path, 1000.0)
    for k, exposure in times.items():
        sharp = exposure.t0 + (0.4 if k else 0.5) * (exposure.t1 - exposure.t0)
        times[k] = dataclasses.replace(exposure, t_sharp=sharp)
    write_exposures(path, times)
    dataset = dataset_of(root, WHOLE, norm=Normalization(center_sharp=True), as_uint8=True)
    sample = dataset[0]
    ticks = np.array([recording.bin_ticks(i) for i in range(3)])
    for k, shift in enumerate((0, 3, 3)):  # 0.1 of 32 bins
        bins = [max(0, b - shift) for b in range(32)]
        assert np.array_equal(sample["spike_vox"][k], counts[k, bins])
        assert np.array_equal(sample["bin_ticks"][k], ticks[k, bins])
    assert np.array_equal(dataset_of(root, WHOLE, as_uint8=True)[0]["spike_vox"], counts)
    read = _FrameWindow(dataset.recordings[0], True, Normalization(0, 1, 1, True, False, True))
    clip = read.read([0, 1, 2])
    assert np.array_equal(clip.counts[0], sample["spike_vox"])
    assert np.array_equal(clip.bin_ticks[0], sample["bin_ticks"])


def test_crop_flips_and_reversal_act_on_all_three_together(tmp_path):
    """Frames and voxels hold the same numbers, so any difference in treatment shows."""
    root = write_miniature(tmp_path, sequences=1, val_sequences=0, frames=3, spikes="voxels")
    align(root, root / "log.txt", splits=("train",))
    rng = np.random.default_rng(0)
    for k in range(3):
        coarse = rng.integers(0, 256, (32, 48), dtype=np.uint8)
        fine = np.repeat(np.repeat(coarse, 2, axis=0), 2, axis=1)
        for kind in ("blur", "sharp"):
            write_png(root / f"train/seq_000/{kind}/{k:06d}.png", np.dstack([fine] * 3))
        bins = np.stack([coarse // 2 + b for b in range(32)]).astype(np.uint8)
        np.save(root / f"train/seq_000/spike_vox/{k:06d}.npy", bins)
    dataset = dataset_of(root, as_uint8=True)
    orders = set()
    for epoch in range(20):
        sample = dataset[(epoch, 0)]
        order = sample["meta"]["frame_idx"]
        first_bin = 31 if order == [2, 1, 0] else 0
        expected = sample["blur"][:, 0, ::2, ::2] // 2
        assert torch.equal(sample["spike_vox"][:, first_bin], expected)
        assert torch.equal(sample["blur"], sample["sharp"])
        orders.add((tuple(order), sample["blur"][0, 0].sum().item()))
    assert {order for order, _ in orders} == {(0, 1, 2), (2, 1, 0)}
    assert len(orders) > 10


def test_everything_random_is_a_function_of_seed_epoch_index(original):
    dataset, again = dataset_of(original), dataset_of(original)
    assert_same(dataset[(2, 1)], again[(2, 1)])
    assert_same(dataset[4], dataset[(0, 4)])
    assert_same(dataset[-1], dataset[len(dataset) - 1])
    assert not torch.equal(dataset[(2, 1)]["blur"], dataset[(3, 1)]["blur"])
    other = SpikeDeblurDataset(recordings_of(original), RANDOM, seed=6)
    assert any(not torch.equal(dataset[i]["blur"], other[i]["blur"]) for i in range(4))
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def loader_of(dataset, workers, **steps):
    order = {"batch_size": 2, "accumulation": 1, "rank": 0, "world_size": 1}
    sampler = ClipBatchSampler(len(dataset), 5, **order, **steps)
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate_clips,
        worker_init_fn=check_threads,
    )


def check_threads(worker_id):
    init_worker(worker_id)
    assert (cv2.getNumThreads(), torch.get_num_threads()) == (1, 1)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_f02_workers_do_not_change_the_samples(original):
    dataset = dataset_of(original, as_uint8=True)
    alone = list(loader_of(dataset, 0, num_steps=3))
    crowd = list(loader_of(dataset, 4, num_steps=3))
    late = list(loader_of(dataset, 0, start_step=2, num_steps=1))
    assert len(alone) == len(crowd) == 3
    for a, b in [*zip(alone, crowd, strict=True), (alone[2], late[0])]:
        assert a["blur"].shape == (2, 3, 3, 32, 32)
        assert_same(a, b)


def break_png(path):
    path.write_bytes(path.read_bytes()[:100])


def break_shape(path):
    write_png(path, np.zeros((64, 94, 3), np.uint8))


@pytest.mark.parametrize(
    ("change", "name", "reason"),
    [
        (break_png, "blur/000002.png", "truncated PNG"),
        (break_png, "sharp/000002.png", "truncated PNG"),
        (break_shape, "sharp/000002.png", "is 64x94, the frames of seq_000 are 64x96"),
        (lambda path: path.unlink(), "blur/000002.png", "No such file"),
        (lambda path: path.write_bytes(b"1"), "spike/000002.dat", "and has 1 now"),
    ],
)
def test_f33_bad_file_drops_its_samples_by_name(root, change, name, reason):
    dataset = dataset_of(root)
    change(root / "train/seq_000" / name)
    bad = dataset[2]  # frames 2, 3, 4
    assert isinstance(bad, BadSample)
    assert bad.name == "seq_000 frames [2, 3, 4]"
    assert name in bad.reason
    assert reason in bad.reason
    assert isinstance(dataset[3], dict)  # the other sequence is as it was


def test_frames_that_give_no_crop_are_named(root):
    assert (
        "frames of 64x96 are smaller than the crop of 72"
        in dataset_of(root, ClipSettings(3, crop_px=72))[0].reason
    )
    break_png(root / "train/seq_000/blur/000000.png")
    dataset = dataset_of(root)
    assert isinstance(dataset[0], BadSample)
    assert isinstance(dataset[1], dict)  # the size of the next frame counts


def test_crop_that_fits_no_spike_pixel_is_refused_at_once(root):
    for folder in (root / "train").iterdir():
        for path in sorted(folder.glob("*/*.png")):
            write_png(path, read_image(path)[:, :94])
    with pytest.raises(DataSetError) as error:
        dataset_of(root)
    assert len(error.value.problems) == 2
    assert "no whole number of spike pixels" in str(error.value)


def test_clips_do_not_cross_gaps(original):
    recording = recordings_of(original)[0]
    gap = Recording("gap", [f for f in recording.frames if f.index != 2], 32)
    assert find_clips([gap, recording], 2) == [
        Clip(0, 0),
        Clip(0, 2),
        *(Clip(1, start) for start in range(4)),
    ]
    assert find_clips([gap], 3) == []
    tens = [dataclasses.replace(f, index=10 * f.index) for f in recording.frames]
    assert len(find_clips([Recording("tens", tens, 32)], 3)) == 3
    with pytest.raises(DataSetError, match="no 6 consecutive frames in 1 sequences"):
        SpikeDeblurDataset([recording], ClipSettings(6))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([1700000000033333 + 33333 * i + i % 2 for i in range(5)], 3),  # 33,332 to 33,334 us
        ([1700000000033333 + 33333 * (i + i // 3) for i in range(5)], 1),  # one is missing
        ([7, 18, 40, 41, 99], "differ by 1 to 58. Where they are times .* name the frames 000000"),
    ],
)
def test_frames_named_by_time_stamps(original, names, expected):
    frames = recordings_of(original)[0].frames
    frames = [dataclasses.replace(f, index=n) for f, n in zip(frames, names, strict=True)]
    recording = Recording("stamps", frames, 32)
    if isinstance(expected, int):
        assert len(find_clips([recording], 3)) == expected
        return
    with pytest.raises(DataSetError, match=expected):
        SpikeDeblurDataset([recording], ClipSettings(3))


def test_collation_widens_counts_drops_logs_and_hands_on(original, caplog):
    dataset = dataset_of(original, as_uint8=True)
    bad = BadSample("seq_009 frames [0]", "a.png: truncated")
    wide = {**dataset[1], "spike_vox": dataset[1]["spike_vox"].int() + 300}
    odd = {**dataset[2], "blur": dataset[2]["blur"][..., :16]}
    batch = collate_clips([dataset[0], bad, wide, odd])
    assert batch["blur"].shape == (2, 3, 3, 32, 32)
    assert batch["spike_vox"].dtype == torch.int32
    assert torch.equal(batch["spike_vox"][1], wide["spike_vox"])
    assert [meta["seq"] for meta in batch["meta"]] == ["seq_000", "seq_000"]
    names = [entry.name for entry in batch["dropped"]]
    assert names == [bad.name, f"seq_000 frames {odd['meta']['frame_idx']}"]
    assert "dropped seq_009 frames [0]: a.png: truncated" in caplog.text
    empty = collate_clips([bad])
    assert empty["blur"] is empty["sharp"] is empty["spike_vox"] is None
    assert (empty["meta"], empty["dropped"]) == ([], [bad])


def test_counts_beyond_8_bit_reach_the_sample(tmp_path):
    root = write_miniature(tmp_path, sequences=1, val_sequences=0, frames=3, spikes="voxels")
    align(root, root / "log.txt", splits=("train",))
    path = root / "train/seq_000/spike_vox/000001.npy"
    np.save(path, np.load(path).astype(np.uint16) + 300)
    counts = dataset_of(root, WHOLE, as_uint8=True)[0]["spike_vox"]
    assert counts.dtype == torch.int32
    assert counts[1].min() == 300
    assert counts[0].max() == 1
