import dataclasses
import os
from fractions import Fraction

import numpy as np
import pytest

from src.data.errors import BadFileError
from src.data.voxel_counts import (
    SpikeWindow,
    count_frame,
    count_window,
    normalization_of,
    read_index,
    read_voxels,
    staleness,
    write_index,
)
from tests.data_cases import scan
from tests.prepare_cases import flip_bits

K = 32


@pytest.fixture
def frame(root):
    return scan(root / "train/seq_000").frames[1]


def test_cache_and_bits_give_the_same_values(frame):
    count_frame(frame.spikes, K, frame.voxels)
    for crop in (None, (0, 0, 32, 48), (3, 5, 16, 17), (31, 47, 1, 1)):
        stored = read_voxels(frame.voxels, K, crop)
        counted = count_window(frame.spikes, K, crop)
        assert stored.dtype == counted.dtype == np.uint8
        assert stored.flags.c_contiguous
        assert np.array_equal(stored, counted)
    assert stored.max() <= 2  # 56 ticks in 32 bins
    counts = np.load(frame.voxels, allow_pickle=False)
    entry = count_frame(frame.spikes, K, None)
    assert (entry.num_voxels, entry.num_spikes) == (counts.size, counts.sum())
    assert entry.num_spikes > 1000


def test_normalization_is_over_all_voxels_and_keeps_no_order(frame):
    small = count_frame(frame.spikes, K, None)
    large = dataclasses.replace(
        small, num_voxels=3 * small.num_voxels, sum_log1p=0.0, sum_log1p_squared=0.0
    )
    mean = float(Fraction(small.sum_log1p) / (4 * small.num_voxels))
    assert normalization_of([small, large])[0] == pytest.approx(mean, rel=1e-15)
    assert normalization_of([large, small]) == normalization_of([small, large])
    with pytest.raises(ValueError, match="no voxels"):
        normalization_of([])


def test_index_round_trip_and_freshness(frame):
    entry = count_frame(frame.spikes, K, frame.voxels)
    folder = frame.voxels.parent
    write_index(folder, {frame.name: entry})
    assert read_index(folder) == {frame.name: entry}
    assert staleness(entry, frame.spikes, K, frame.voxels) is None
    assert staleness(None, frame.spikes, K, frame.voxels) == "its voxels were not made yet"


@pytest.mark.parametrize(
    "change",
    [
        lambda s: (dataclasses.replace(s, start=1), K),
        lambda s: (dataclasses.replace(s, stop=55), K),
        lambda s: (s, 16),
        lambda s: (
            dataclasses.replace(s, geometry=dataclasses.replace(s.geometry, flip_rows=False)),
            K,
        ),
        lambda s: (dataclasses.replace(s, path=s.path.with_name("000000.dat")), K),
    ],
)
def test_anything_the_counts_depend_on_makes_them_stale(frame, change):
    entry = count_frame(frame.spikes, K, frame.voxels)
    assert "made from other spikes" in staleness(entry, *change(frame.spikes), frame.voxels)


def test_f40_changed_source_is_seen_and_a_copy_is_not_one(frame):
    """`cp -r` gives every file a new time; indices of older versions know nothing but the time."""
    path, entry = frame.spikes.path, count_frame(frame.spikes, K, frame.voxels)
    older = dataclasses.replace(entry, source_crc32=None)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert staleness(entry, frame.spikes, K, frame.voxels) is None
    assert "made from other spikes" in staleness(older, frame.spikes, K, frame.voxels)
    flip_bits(path)
    assert "made from other spikes" in staleness(entry, frame.spikes, K, frame.voxels)
    path.unlink()
    with pytest.raises(BadFileError, match=r"000001\.dat: cannot be read"):
        staleness(entry, frame.spikes, K, frame.voxels)


def test_stored_file_that_is_gone_or_cut_is_seen(frame):
    entry = count_frame(frame.spikes, K, frame.voxels)
    with frame.voxels.open("r+b") as handle:
        handle.truncate(1000)
    assert "has not the size" in staleness(entry, frame.spikes, K, frame.voxels)
    frame.voxels.unlink()
    assert staleness(entry, frame.spikes, K, frame.voxels) == "its voxel file is missing"
    assert staleness(entry, frame.spikes, K, None) is None  # only the sums are wanted
    only_sums = count_frame(frame.spikes, K, None)
    assert "is missing" in staleness(only_sums, frame.spikes, K, frame.voxels)


@pytest.mark.parametrize(
    "change",
    [
        *({"num_voxels": 0, "histograms": {}}, {"num_voxels": 7}, {"num_spikes": 7}),
        *({"sum_log1p": 7.0}, {"sum_log1p_squared": 7.0}),
    ],
)
def test_sums_that_do_not_add_up_count_as_absent(frame, change):
    """A digit of the file was damaged; the normalization would be wrong without a word."""
    entry = count_frame(frame.spikes, K, frame.voxels)
    write_index(frame.voxels.parent, {frame.name: dataclasses.replace(entry, **change)})
    assert read_index(frame.voxels.parent) == {}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 0, "frames": {}}', '{"format": 2, "frames": {"a": {}}}']
)
def test_unusable_index_counts_as_absent(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    assert read_index(tmp_path) == {}


@pytest.mark.parametrize(
    ("dtype", "largest", "expected"),
    [
        (bool, 1, np.uint8),
        (np.uint8, 255, np.uint8),
        (np.uint16, 300, np.uint16),
        (np.int64, 255, np.uint8),
        (np.int64, 256, np.uint16),
        (np.uint32, 70000, np.int32),
        (np.float64, 2.5, np.float32),
        (np.float16, 2.0, np.float32),
        (">i2", 7, np.uint8),
    ],
)
def test_any_real_dtype_is_read(tmp_path, dtype, largest, expected):
    grid = np.zeros((K, 4, 5), dtype)
    grid[3, 2, 1] = largest
    np.save(tmp_path / "a.npy", np.asfortranarray(grid))
    counts = read_voxels(tmp_path / "a.npy", K, (1, 0, 3, 2))
    assert (counts.dtype, counts.shape) == (expected, (K, 3, 2))
    assert counts[3, 1, 1] == largest
    assert counts.sum() == largest


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        (np.zeros((16, 4, 5), np.uint8), r"has shape \(16, 4, 5\); \(32, H, W\) is needed"),
        (np.zeros((4, 5, K), np.uint8), "is needed"),
        (np.zeros((K, 4), np.uint8), "is needed"),
        (np.zeros((K, 0, 5), np.uint8), "is needed"),
        (np.full((K, 4, 5), -1), "cannot be negative"),
        (np.full((K, 4, 5), np.nan), "not finite"),
        (np.full((K, 4, 5), np.inf, np.float32), "not finite"),
        (np.zeros((K, 4, 5), complex), "holds complex128"),
        (np.full((K, 4, 5), None), "cannot be opened"),  # F29: pickled objects
    ],
)
def test_f44_what_are_no_counts_is_refused(tmp_path, grid, expected):
    np.save(tmp_path / "a.npy", grid, allow_pickle=True)
    with pytest.raises(BadFileError, match=expected) as error:
        read_voxels(tmp_path / "a.npy", K)
    assert "a.npy" in str(error.value)


def test_files_that_are_no_npy_and_crops_outside(tmp_path):
    np.savez(tmp_path / "a.npz", np.zeros((K, 4, 5)))
    for i, data in enumerate((b"", b"\x93NUMPY", b"PK\x03\x04 no archive")):
        (tmp_path / f"{i}.npy").write_bytes(data)
    for name in ("a.npz", "0.npy", "1.npy", "2.npy"):
        with pytest.raises(BadFileError, match="cannot be opened"):
            read_voxels(tmp_path / name, K)
    np.save(tmp_path / "b.npy", np.zeros((K, 4, 5)))
    with pytest.raises(BadFileError, match="the crop .* leaves it"):
        read_voxels(tmp_path / "b.npy", K, (2, 0, 3, 5))


def test_sums_of_voxels_given_as_real_numbers(tmp_path):
    grid = np.random.default_rng(0).random((K, 4, 5)) * 3
    np.save(tmp_path / "a.npy", grid)
    entry = count_frame(SpikeWindow(tmp_path / "a.npy"), K, tmp_path / "a.npy")
    assert entry.npy_bytes == 0
    assert entry.num_spikes == round(grid.sum())
    assert entry.sum_log1p == pytest.approx(np.log1p(grid).sum(), rel=1e-6)
    assert np.array_equal(np.load(tmp_path / "a.npy"), grid)  # never written to
