"""Event lists and dense arrays: exact round trips, and every wrong order refused."""

import numpy as np
import pytest

from src.data.spikes.arrays import read_array
from src.data.spikes.dense_files import DenseFile, EventFile
from src.data.spikes.events import (
    check_events,
    dense_to_events,
    events_to_dense,
)
from tests.spike_cases import random_spikes


def test_by_hand():
    spikes = np.zeros((3, 2, 4), np.uint8)
    spikes[0, 1, 3] = spikes[2, 0, 1] = spikes[2, 1, 0] = 1
    assert dense_to_events(spikes).tolist() == [[0, 1, 3], [2, 0, 1], [2, 1, 0]]


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.float32])
@pytest.mark.parametrize("rate", [0.02, 0.5])
def test_round_trip_is_exact(dtype, rate):
    spikes = random_spikes(40, 5, 7, rate)
    events = dense_to_events(spikes).astype(dtype)
    assert np.array_equal(events_to_dense(events, 40, 5, 7), spikes)
    with_polarity = np.concatenate([events, np.ones((len(events), 1), dtype)], axis=1)
    assert np.array_equal(events_to_dense(with_polarity, 40, 5, 7), spikes)


def test_no_events():
    assert dense_to_events(np.zeros((3, 2, 4), bool)).shape == (0, 3)
    assert not events_to_dense(np.zeros((0, 3), np.int64), 3, 2, 4).any()


def test_two_equal_rows_are_an_error():
    events = [[0, 1, 3], [1, 0, 0], [1, 1, 2], [1, 0, 0]]
    with pytest.raises(ValueError, match=r"row 3: \[1, 0, 0\] occurs twice"):
        events_to_dense(np.array(events), 3, 2, 4)


@pytest.mark.parametrize("t", [[-1, 0], [0, 3]])
def test_ticks_outside_are_an_error(t):
    with pytest.raises(ValueError, match=r"must lie in \[0, 3\)"):
        events_to_dense(np.array([[t[0], 0, 0], [t[1], 0, 0]]), 3, 2, 4)


def test_columns_are_brought_into_order():
    rows = np.array([[3, 1, 0, 1], [1, 0, 2, 1]])  # x, y, t, p
    assert check_events(rows, 2, 4, "xytp").tolist() == [[0, 1, 3, 1], [2, 0, 1, 1]]
    assert check_events(rows[:, :3], 2, 4, "xytp").tolist() == [[0, 1, 3], [2, 0, 1]]
    with pytest.raises(ValueError, match="x=.* on a sensor of 2x4.*check the order of columns"):
        check_events(np.array([[3, 1, 9], [1, 0, 10]]), 2, 4)  # x, y, t taken for t, y, x


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([[1, 0, 0], [0, 0, 0]], "tyx", "t goes back after row 0"),
        ([[0, 2, 0]], "tyx", "row 0 has y=2, x=0"),
        ([[0, 0, -1]], "tyx", "row 0 has y=0, x=-1"),
        ([[0, 0, 0, 1], [1, 0, 0, -1]], "tyxp", "p runs from -1 to 1"),
        ([[0.5, 0, 0]], "tyx", "fractional"),
        ([[np.nan, 0, 0]], "tyx", "fractional or non-finite"),
        ([["a", "b", "c"]], "tyx", "numbers are needed"),
        ([[0, 0]], "tyx", r"shape \(1, 2\)"),
        ([[0, 0, 0, 1]], "tyx", r"shape \(1, 4\)"),
        ([[0, 0, 0]], "ptyx", "3 columns"),
        ([[0, 0, 0]], "tyy", "columns are 'tyy'"),
    ],
)
def test_wrong_lists_are_refused(rows, columns, message):
    with pytest.raises(ValueError, match=message):
        check_events(np.array(rows), 2, 4, columns)


def test_reading_events_names_the_file(tmp_path):
    spikes = random_spikes(6, 2, 4)
    events = dense_to_events(spikes)
    np.save(tmp_path / "good.npy", events[:, ::-1])
    assert np.array_equal(EventFile(tmp_path / "good.npy", 2, 4, "xyt").read(0, 6), spikes)
    np.save(tmp_path / "bad.npy", events[::-1])
    with pytest.raises(ValueError, match=r"bad\.npy: t goes back"):
        EventFile(tmp_path / "bad.npy", 2, 4)


# ---------------------------------------------------------------- arrays


@pytest.mark.parametrize("axes", ["SHW", "HWS", "HSW", "WHS"])
@pytest.mark.parametrize("dtype", [np.uint8, np.bool_, np.float32])
def test_dense_in_any_order(tmp_path, axes, dtype):
    spikes = random_spikes(5, 2, 4)
    np.savez(tmp_path / "a.npz", spikes.astype(dtype).transpose(["SHW".index(a) for a in axes]))
    read = DenseFile(tmp_path / "a.npz", 2, 4, axes).read(0, 5)
    assert read.dtype == np.uint8
    assert np.array_equal(read, spikes)
    flipped = DenseFile(tmp_path / "a.npz", 2, 4, axes, flip_rows=True)
    assert np.array_equal(flipped.read(0, 5), spikes[:, ::-1])


def test_the_order_is_found_only_where_it_is_clear(tmp_path):
    np.save(tmp_path / "clear.npy", random_spikes(5, 2, 4).transpose(1, 2, 0))
    assert DenseFile(tmp_path / "clear.npy", 2, 4).read(0, 5).shape == (5, 2, 4)
    np.save(tmp_path / "unclear.npy", random_spikes(4, 4, 4))
    with pytest.raises(ValueError, match=r"unclear\.npy.*\['SHW', 'HSW', 'HWS'\]"):
        DenseFile(tmp_path / "unclear.npy", 4, 4)
    with pytest.raises(ValueError, match="of no order"):
        DenseFile(tmp_path / "clear.npy", 3, 4)
    with pytest.raises(ValueError, match="axes is 'THW'"):
        DenseFile(tmp_path / "clear.npy", 2, 4, "THW")


def test_packed_bytes_are_not_spikes(tmp_path):
    np.save(tmp_path / "a.npy", np.full((5, 2, 4), 37, np.uint8))
    with pytest.raises(ValueError, match="from 37 to 37; only 0 and 1"):
        DenseFile(tmp_path / "a.npy", 2, 4).read(0, 5)
    with pytest.raises(ValueError, match="only 0 and 1"):
        dense_to_events(np.full((1, 2, 4), 2))


def test_arrays_are_named_and_never_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", one=np.zeros(2), two=np.ones(2))
    assert read_array(tmp_path / "a.npz", "two").sum() == 2
    with pytest.raises(ValueError, match=r"holds 2 arrays, \['one', 'two'\]; say with --key"):
        read_array(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"one of \['one', 'two'\]"):
        read_array(tmp_path / "a.npz", "three")
    np.save(tmp_path / "b.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        read_array(tmp_path / "b.npy")
    with pytest.raises(ValueError, match=r"c\.mat: one of \.npy, \.npz, \.h5, \.hdf5 is needed"):
        read_array(tmp_path / "c.mat")
