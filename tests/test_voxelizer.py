"""Voxelizer: by hand, against slow twins, and its paths against each other."""

import logging

import numpy as np
import pytest

from src.data.datasets import voxelizer
from src.data.datasets.voxelizer import bin_of_tick, ticks_per_bin, voxelize, voxelize_packed
from src.data.spikes.spike_dat import SpikeFile, SpikeGeometry, write_spikes
from tests.spike_cases import random_spikes, voxelize_spikes_twin, voxelize_twin


def spike_file(folder, spikes, **geometry):
    geometry = SpikeGeometry(*spikes.shape[1:], **geometry)
    write_spikes(folder / "a.dat", spikes, geometry)
    return SpikeFile(folder / "a.dat", geometry)


# ---------------------------------------------------------------- ticks and bins


def test_bins_by_hand(tmp_path):
    assert bin_of_tick(6, 3).tolist() == [0, 0, 1, 1, 2, 2]
    assert bin_of_tick(3, 4).tolist() == [0, 1, 2]
    assert ticks_per_bin(3, 4).tolist() == [1, 1, 1, 0]
    spikes = np.array([1, 0, 1, 1, 0, 1], np.uint8).reshape(6, 1, 1).repeat(8, axis=2)
    counts = voxelize_packed(spike_file(tmp_path, spikes), 0, 6, 3, (0, 5, 1, 1))
    assert counts.ravel().tolist() == [1, 2, 1]
    events = np.array([[0, 0, 0], [2, 0, 0], [3, 0, 0], [5, 0, 0]])
    assert voxelize(events, 0, 6, 1, 1, 3).ravel().tolist() == [1, 2, 1]


# ---------------------------------------------------------------- packed


@pytest.mark.parametrize(("num_ticks", "K"), [(56, 32), (7, 32), (255, 1), (256, 1), (300, 1)])
def test_counts_equal_the_twin_and_do_not_wrap(tmp_path, num_ticks, K):
    spikes = np.maximum(random_spikes(num_ticks, 3, 8), np.eye(3, 8, dtype=np.uint8))
    counts = voxelize_packed(spike_file(tmp_path, spikes), 0, num_ticks, K)
    assert counts.dtype == (np.uint16 if num_ticks > 255 * K else np.uint8)
    assert np.array_equal(counts, voxelize_spikes_twin(spikes, K))


@pytest.mark.parametrize("bit_order", ["little", "big"])
@pytest.mark.parametrize("flip_rows", [True, False])
@pytest.mark.parametrize("width", [32, 12])  # 12: rows share bytes
@pytest.mark.parametrize("crop", [None, (0, 0, 6, 12), (2, 3, 3, 9), (5, 8, 1, 4), (1, 7, 4, 2)])
def test_packed_crop_equals_crop_of_the_dense_twin(tmp_path, bit_order, flip_rows, width, crop):
    spikes = random_spikes(20, 6, width)
    file = spike_file(tmp_path, spikes, bit_order=bit_order, flip_rows=flip_rows)
    y, x, h, w = (0, 0, 6, width) if crop is None else crop
    expected = voxelize_spikes_twin(spikes[3:17, y : y + h, x : x + w], 4)
    counts = voxelize_packed(file, 3, 17, 4, crop)
    assert counts.dtype == np.uint8
    assert counts.flags.c_contiguous
    assert np.array_equal(counts, expected)


def test_of_a_crop_only_its_bytes_are_unpacked(tmp_path, monkeypatch):
    file = spike_file(tmp_path, random_spikes(5, 16, 64))
    unpacked = []
    unpackbits = np.unpackbits

    def counting(array, **kwargs):
        unpacked.append(array.size)
        return unpackbits(array, **kwargs)

    monkeypatch.setattr(np, "unpackbits", counting)
    voxelize_packed(file, 0, 5, 2, crop=(3, 9, 4, 16))  # columns 9..24: bytes 1, 2, 3
    assert unpacked == [5 * 4 * 3]


@pytest.mark.parametrize("bit_order", ["little", "big"])
@pytest.mark.parametrize("flip_rows", [True, False])
@pytest.mark.parametrize("crop", [None, (5, 17, 20, 41)])
def test_unpacking_in_blocks_equals_unpackbits_and_reduceat(
    tmp_path, monkeypatch, bit_order, flip_rows, crop
):
    """Windows larger than a block, with 1, 2 and 3 ticks per bin, against the obvious way."""
    monkeypatch.setattr(voxelizer, "UNPACK_BYTES", 3 * 32 * 64 * 8)
    file = spike_file(
        tmp_path, random_spikes(88, 32, 64 * 8), bit_order=bit_order, flip_rows=flip_rows
    )
    blocks = []
    unpackbits = np.unpackbits
    for num_ticks in (33, 56, 88):
        starts = np.searchsorted(bin_of_tick(num_ticks, 32), np.arange(32))
        expected = np.add.reduceat(file.read(0, num_ticks), starts, axis=0, dtype=np.uint8)
        y, x, h, w = crop or (0, 0, 32, 64 * 8)
        with monkeypatch.context() as patch:
            patch.setattr(np, "unpackbits", lambda a, **k: blocks.append(a) or unpackbits(a, **k))
            counts = voxelize_packed(file, 0, num_ticks, 32, crop)
        assert np.array_equal(counts, expected[:, y : y + h, x : x + w])
    if crop is None:
        assert [len(block) for block in blocks[:11]] == [3] * 11
        assert sum(map(len, blocks)) == 33 + 56 + 88


@pytest.mark.parametrize("crop", [None, (5, 17, 20, 41)])
@pytest.mark.parametrize("fits", [True, False])
def test_counts_are_put_into_an_array_that_fits_them(tmp_path, crop, fits):
    file = spike_file(tmp_path, random_spikes(9, 32, 64))
    expected = voxelize_packed(file, 0, 9, 4, crop)
    out = np.full(expected.shape, 7, np.uint8 if fits else np.int32)
    counts = voxelize_packed(file, 0, 9, 4, crop, out)
    assert (counts is out) == fits
    assert np.array_equal(counts, expected)
    assert fits or (out == 7).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(
            ((0, 3, 2, crop), "leaves the sensor of 2x8")
            for crop in [(-1, 0, 2, 8), (0, 1, 2, 8), (1, 0, 2, 8), (0, 0, 0, 8)]
        ),
        ((1, 4, 2), r"ticks \[1, 4\) requested"),
        ((1, 1, 2), "both must be above 0"),
        ((0, 3, 0), "both must be above 0"),
    ],
)
def test_windows_and_crops_that_are_not_there_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        voxelize_packed(spike_file(tmp_path, random_spikes(3, 2, 8)), *arguments)


# ---------------------------------------------------------------- events


@pytest.mark.parametrize("num_ticks", [33, 56, 88, 104])
@pytest.mark.parametrize("dtype", [np.int64, np.uint32, np.float64, np.float32])
def test_events_agree_with_ticks(num_ticks, dtype):
    """A tick sits in the same bin on every path, also at the edges of bins."""
    spikes = random_spikes(num_ticks, 4, 8)
    events = np.argwhere(spikes)
    events[:, 0] += 1000  # the window does not start at tick 0
    grid = voxelize(events.astype(dtype), 1000, 1000 + num_ticks, 4, 8, 32)
    assert grid.dtype == np.float32
    assert np.array_equal(grid, voxelize_spikes_twin(spikes, 32))


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.uint64])
@pytest.mark.parametrize("num_bins", [1, 7, 32])
def test_events_in_parts_and_in_any_order_equal_the_twin(dtype, num_bins, monkeypatch, caplog):
    monkeypatch.setattr(voxelizer, "EVENTS_TOGETHER", 11)
    events = np.random.default_rng(4).integers((100, 0, 0), (133, 4, 8), (300, 3))
    for t0, t1 in ((100, 133), (102, 132), (90, 200)):
        inside = events[(events[:, 0] >= t0) & (events[:, 0] < t1)]
        expected = voxelize_twin(inside, t0, t1, 4, 8, num_bins)
        for order in (slice(None), np.argsort(events[:, 0])):
            found = voxelize(events[order].astype(dtype), t0, t1, 4, 8, num_bins, "drop")
            assert np.array_equal(found, expected)
        if len(inside) < 300:
            assert caplog.messages[-1].startswith(f"dropped {300 - len(inside)} of 300 events")


def test_times_at_the_limits_of_their_types():
    """Epochs that float64 does not tell apart, a time rounded up to the end, small integers."""
    base = 2**60
    events = np.array([[base + t, 0, 0] for t in range(6)], np.uint64)
    assert voxelize(events, base, base + 6, 1, 1, 3).ravel().tolist() == [2, 2, 2]
    t = np.nextafter(1.0, 0)
    assert t - -1.0 == 2.0  # the whole window, by rounding
    assert voxelize(np.array([[t, 0, 0]]), -1.0, 1.0, 1, 1, 32)[31, 0, 0] == 1
    events = np.array([[t, 0, 0] for t in range(200)], np.uint8)
    assert np.array_equal(voxelize(events, 0, 200, 1, 1, 32).ravel(), ticks_per_bin(200, 32))
    assert np.floor(60 / 88 * 22) == 14  # 60 * 22 / 88 is 15
    for t in (np.array([[60, 0, 0]]), np.array([[60.0, 0, 0]])):
        assert voxelize(t, 0, 88, 1, 1, 22).argmax() == 15
    assert voxelize(np.zeros((0, 3), np.int64), 0, 6, 2, 8, 3).tolist() == [[[0] * 8] * 2] * 3


@pytest.mark.parametrize(
    "row", [[-1, 0, 0], [6, 0, 0], [2, 2, 0], [2, -1, 0], [2, 0, 8], [2, 0, -1], [np.nan, 0, 0]]
)
def test_an_event_outside_is_an_error_or_dropped_and_counted(row, caplog):
    events = np.array([[0, 0, 0], row, [5, 1, 7]], float)
    with pytest.raises(ValueError, match=r"1 of 3 events .* first is row 1"):
        voxelize(events, 0, 6, 2, 8, 3)
    with caplog.at_level(logging.WARNING):
        grid = voxelize(events, 0, 6, 2, 8, 3, outside="drop")
    assert "dropped 1 of 3 events" in caplog.text
    assert np.argwhere(grid).tolist() == [[0, 0, 0], [2, 1, 7]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((2, 5)), 0, 6, 2, 8), r"shape \(2, 5\)"),
        ((np.zeros(3), 0, 6, 2, 8), r"shape \(3,\)"),
        ((np.zeros((2, 3)), 5, 5, 1, 1), "exposure ends before it starts: t0=5, t1=5"),
        ((np.zeros((2, 3)), 0, 6, 0, 8), "all must be above 0"),
        ((np.array([[0, 0.5, 0]]), 0, 6, 2, 8), "column y has fractional values"),
        ((np.zeros((2, 3)), 0, 6, 2, 8, 3, "keep"), "outside is 'keep'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        voxelize(*arguments)
