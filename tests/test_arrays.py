"""Spikes in `.npy`, `.npz` and `.h5`: nothing executed, followed or guessed; exact as `.dat`."""

import sys

import h5py
import numpy as np
import pytest

from src.data.spikes import spike_dat
from src.data.spikes.arrays import (
    DenseFile,
    EventFile,
    array_shape,
    check_events,
    read_array,
)
from src.data.spikes.spike_dat import SpikeFile, SpikeGeometry, write_dat
from tests.spike_cases import random_spikes


class Trap:
    """What a hostile file would like to have unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle in a data file was executed",))


def write_h5(path, **arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return path


def write(path, array, key="spk", **others):
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, **{key: array}, **others)
    else:
        write_h5(path, **{key: array}, **others)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
def test_the_key_is_needed_where_there_are_several(tmp_path, suffix):
    one = write(tmp_path / f"one{suffix}", np.arange(6))
    assert read_array(one).tolist() == read_array(one, "spk").tolist() == list(range(6))
    two = write(tmp_path / f"two{suffix}", np.zeros(2), "a", **{"truth/image": np.ones(2)})
    assert read_array(two, "truth/image").sum() == 2
    for key in (None, "truth", "spk"):
        with pytest.raises(ValueError, match=rf"two\{suffix}: .*\['a', 'truth/image'\]; "):
            read_array(two, key)
    with pytest.raises(ValueError, match="choose one with --key"):
        array_shape(two)
    with pytest.raises(ValueError, match=r"c\.mat: one of \.npy, \.npz, \.h5, \.hdf5 is needed"):
        read_array(tmp_path / "c.mat")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_f29_objects_are_refused_and_not_executed(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", np.array([Trap(), None], dtype=object))
    for reader in (read_array, lambda path: DenseFile(path, 2, 4, "SHW")):
        with pytest.raises(ValueError, match=rf"a\{suffix}: .*[Oo]bject"):
            reader(path)


@pytest.mark.parametrize(
    "dtype",
    [
        h5py.vlen_dtype(np.uint8),
        h5py.string_dtype(),
        h5py.ref_dtype,
        np.dtype([("t", "i4"), ("y", h5py.string_dtype())]),
    ],
)
def test_f29_h5_types_that_are_no_numbers_are_refused(tmp_path, dtype):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("spk", (2,), dtype)
    with pytest.raises(ValueError, match=r"a\.h5: /spk has type .*plain numbers are needed"):
        read_array(tmp_path / "a.h5")


def test_sparse_spikes_are_read_and_what_is_not_stored_is_refused(tmp_path):
    spikes = np.zeros((500, 250, 64), np.uint8)
    spikes[3, 4, 5] = 1
    for parts in (1, 2):  # of the second one, half was never written
        with h5py.File(tmp_path / "a.h5", "w") as file:
            shape = (parts * len(spikes), *spikes.shape[1:])
            stored = file.create_dataset("a", shape, "u1", chunks=spikes.shape, compression="gzip")
            stored[: len(spikes)] = spikes
            ratio = stored.nbytes / stored.id.get_storage_size()
        assert parts * 900 < ratio < parts * 1032
        if parts == 1:
            assert np.array_equal(read_array(tmp_path / "a.h5"), spikes)
    with pytest.raises(ValueError, match="of which hardly any is stored"):
        read_array(tmp_path / "a.h5")


def test_h5_names_that_are_not_utf8_are_read_and_shown(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file[b"\xb3spk"] = np.arange(3)
    assert np.array_equal(read_array(tmp_path / "a.h5", None), [0, 1, 2])
    with pytest.raises(ValueError, match=r"'\\\\xb3spk'"):
        read_array(tmp_path / "a.h5", "spk")


def test_h5_links_are_not_followed(tmp_path):
    secret = write_h5(tmp_path / "secret.h5", key=np.ones(3))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["spk"] = np.zeros(2)
        file["outside"] = h5py.ExternalLink(str(secret), "/key")
        file["inside"] = h5py.SoftLink("/spk")
        file["round"] = h5py.SoftLink("/round")
        file["group/up"] = file["/"]  # a hard link that leads in a circle
    assert read_array(tmp_path / "a.h5").tolist() == [0, 0]  # links do not count
    for key in ("outside", "inside", "round", "group/up/outside/key"):
        with pytest.raises(ValueError, match=rf"a\.h5: key '{key}' is not one of \['spk'\]"):
            read_array(tmp_path / "a.h5", key)


def test_h5_data_in_other_files_are_refused(tmp_path):
    (tmp_path / "raw.bin").write_bytes(b"abcd")
    layout = h5py.VirtualLayout((3,), "u1")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "key", (3,))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("raw", (4,), "u1", external=[(str(tmp_path / "raw.bin"), 0, 4)])
        file.create_virtual_dataset("virtual", layout)
    for key in ("raw", "virtual"):
        with pytest.raises(ValueError, match=f"/{key} keeps its data in other files"):
            read_array(tmp_path / "a.h5", key)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5"])
@pytest.mark.parametrize("content", [b"", b"abc", b"\x93NUMPY\x01\x00"])
def test_damaged_files_are_named(tmp_path, suffix, content):
    path = tmp_path / f"ünïcode name{suffix}"
    path.write_bytes(content)
    for reader in (read_array, array_shape, lambda path: DenseFile(path, 2, 4, "SHW")):
        with pytest.raises(ValueError, match=f"ünïcode name{suffix}"):
            reader(path)


# ---------------------------------------------------------------- dense arrays


@pytest.mark.parametrize(
    ("name", "key", "axes", "dtype"),
    [
        ("uhsr.npz", "spk", "SHW", np.uint8),
        ("spikingsim.npz", "arr_0", "HWS", np.bool_),
        ("scsim.h5", "raw_spike", "HSW", np.float32),
        ("own.npy", None, "WHS", np.uint8),
    ],
)
def test_dense_containers_by_ranges(tmp_path, name, key, axes, dtype):
    spikes = random_spikes(30, 6, 8)
    array = spikes.astype(dtype).transpose(["SHW".index(axis) for axis in axes])
    path = write(tmp_path / name, array, key)
    assert array_shape(path, key) == array.shape
    file = DenseFile(path, 6, 8, axes, key)
    assert file.num_ticks == 30
    assert np.array_equal(file.read(0, 30), spikes)
    assert file.read(7, 19).dtype == np.uint8
    assert np.array_equal(file.read(7, 19), spikes[7:19])
    for start, stop in ((-1, 3), (4, 4), (20, 31)):
        with pytest.raises(ValueError, match=r"the file has \[0, 30\)"):
            file.read(start, stop)


@pytest.mark.parametrize(
    ("shape", "axes", "message"),
    [
        ((5, 2, 4), "SWH", "does not fit a sensor of 2x4"),
        ((5, 2, 4), "THW", "S, H and W are needed"),
        ((3,), "SHW", r"shape \(3,\) with axes SHW; S, H and W"),
    ],
)
def test_an_order_of_axes_that_does_not_fit_is_refused(tmp_path, shape, axes, message):
    with pytest.raises(ValueError, match=rf"a\.npy: .*{message}"):
        DenseFile(write(tmp_path / "a.npy", np.zeros(shape)), 2, 4, axes)


# ---------------------------------------------------------------- lists of events


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.float32])
@pytest.mark.parametrize("rate", [0.02, 0.5])
@pytest.mark.parametrize("has_polarity", [True, False])
def test_event_lists_are_exact(tmp_path, dtype, rate, has_polarity):
    spikes = random_spikes(40, 5, 7, rate)
    spikes[-1], spikes[-2, 0, 0] = 0, 1  # a list ends with its last spike
    events = np.argwhere(spikes)[:, ::-1].astype(dtype)
    ones = np.ones((len(events), int(has_polarity)), dtype)
    path = write_h5(tmp_path / "a.h5", events=np.concatenate([events, ones], axis=1))
    file = EventFile(path, 5, 7, "xytp")
    assert file.num_ticks == 39
    assert np.array_equal(file.read(0, 39), spikes[:39])
    assert np.array_equal(file.read(5, 9), spikes[5:9])
    file.num_ticks = 40
    assert not file.read(39, 40).any()
    with pytest.raises(ValueError, match=r"a\.h5: ticks \[39, 41\) requested"):
        file.read(39, 41)


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize(
    "kind", ["separate", "in a group", "structured", "without p", "two groups"]
)
def test_columns_that_are_stored_one_by_one_are_a_list(tmp_path, suffix, kind):
    """As DSEC, Metavision and others write events; times that float64 does not tell apart."""
    t, y, x = np.array([2**60, 2**60 + 1, 2**60 + 3], np.uint64), [1, 0, 1], [3, 2, 0]
    columns = {"ts": t, "x": np.array(x, np.uint16), "y": np.array(y, np.uint8)}
    columns |= {} if kind == "without p" else {"polarity": np.ones(3, bool)}
    key = None
    if kind == "structured":
        fields = np.zeros(3, [(name, array.dtype) for name, array in columns.items()])
        for name, array in columns.items():
            fields[name] = array
        columns = {"all": fields, "offset": np.zeros(())}
    elif kind != "separate":
        groups = ("left",) if kind == "in a group" else ("left", "right")
        columns = {f"{group}/{name}": array for group in groups for name, array in columns.items()}
        columns["left/ms_to_idx"], key = np.zeros(9), None if len(groups) == 1 else "left"
    path = tmp_path / f"a{suffix}"
    if suffix == ".npz":
        np.savez(path, **columns)
    else:
        write_h5(path, **columns)
    expected = np.stack([t.astype(np.int64), y, x], axis=1)
    assert array_shape(path, key) == (3, 3 if kind == "without p" else 4)
    assert np.array_equal(read_array(path, key)[:, :3], expected)
    file = EventFile(path, 2, 4, "xytp", key)
    assert (file.first_tick, file.num_ticks) == (2**60, 2**60 + 4)
    assert file.read(2**60 + 1, 2**60 + 2)[0].tolist() == [[0, 0, 1, 0], [0, 0, 0, 0]]


def test_a_broken_h5py_is_one_sentence_where_an_h5_is_read(tmp_path, monkeypatch):
    path = write_h5(tmp_path / "a.h5", spk=np.zeros(3))
    monkeypatch.setitem(sys.modules, "h5py", None)  # importing it raises
    assert read_array(write(tmp_path / "a.npz", np.zeros(3))).shape == (3,)
    with pytest.raises(ValueError, match=r"a\.h5: h5py, .* cannot be imported .*pip install"):
        read_array(path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0, 1, 3], [1, 0, 0], [1, 1, 2], [1, 0, 0]], r"row 3: \[1, 0, 0\] occurs twice"),
        ([[-1, 0, 0]], "spikes begin at tick -1"),
        (np.zeros((0, 3), np.int64), "holds no spike"),
        ([[1, 0, 0], [0, 0, 0]], "t goes back after row 0"),
    ],
)
def test_lists_that_cannot_be_are_refused_with_the_file(tmp_path, rows, message):
    np.save(tmp_path / "bad.npy", np.array(rows))
    with pytest.raises(ValueError, match=rf"bad\.npy: .*{message}"):
        EventFile(tmp_path / "bad.npy", 2, 4).read(0, 2)


def test_columns_are_brought_into_order():
    rows = np.array([[3, 1, 0, 1], [1, 0, 2, 1]])  # x, y, t, p
    for given in (rows, rows[:, :3]):
        assert check_events(given, 2, 4, "xytp").tolist() == [[0, 1, 3], [2, 0, 1]]
    with pytest.raises(ValueError, match="x=.* on a sensor of 2x4.*check the order of columns"):
        check_events(np.array([[3, 1, 9], [1, 0, 10]]), 2, 4)  # x, y, t taken for t, y, x


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([[0, 2, 0]], "tyx", "row 0 has y=2, x=0"),
        ([[0, 0, -1]], "tyx", "row 0 has y=0, x=-1"),
        ([[0, 0, 0, 1], [1, 0, 0, -1]], "tyxp", "p runs from -1 to 1"),
        ([[0.5, 0, 0]], "tyx", "fractional"),
        ([[np.nan, 0, 0]], "tyx", "fractional or non-finite"),
        ([[np.inf, 0, 0]], "tyx", "fractional or non-finite"),
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


# ---------------------------------------------------------------- to .dat

SIZE, NUM_TICKS = (6, 12), 29  # rows of 12 pixels do not end with a byte


@pytest.fixture(params=[1, 7, 1000])
def ticks_per_piece(request, monkeypatch):
    monkeypatch.setattr(spike_dat, "UNPACKED_BYTES", request.param * SIZE[0] * SIZE[1])
    return request.param


@pytest.mark.parametrize("name", ["events.npy", "dense.npy", "dense.npz", "dense.h5"])
def test_bits_of_any_container_are_those_of_its_spikes(tmp_path, name, ticks_per_piece):
    spikes, geometry, lengths = random_spikes(NUM_TICKS, *SIZE), SpikeGeometry(*SIZE), []
    spikes[-1] = spikes[0] = 0  # ends that a list of spikes does not show
    if name == "events.npy":
        source = EventFile(write(tmp_path / name, np.argwhere(spikes)), *SIZE)
        source.num_ticks = NUM_TICKS
    else:
        source = DenseFile(write(tmp_path / name, spikes), *SIZE, "SHW")
    read = source.read
    source.read = lambda start, stop: lengths.append(stop - start) or read(start, stop)
    write_dat(source, tmp_path / "a.dat", geometry, tmp_path / name)
    assert np.array_equal(SpikeFile(tmp_path / "a.dat", geometry).read(0, 29), spikes)
    assert (sum(lengths), max(lengths)) == (NUM_TICKS, min(ticks_per_piece, NUM_TICKS))
    with pytest.raises(ValueError, match="8x8 is needed"):
        write_dat(source, tmp_path / "b.dat", SpikeGeometry(8, 8), tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {name, "a.dat"}


def test_a_bad_value_late_in_the_file_leaves_nothing(tmp_path, ticks_per_piece):
    spikes = random_spikes(NUM_TICKS, *SIZE)
    spikes[20] = 7
    source = DenseFile(write(tmp_path / "dense.npy", spikes), *SIZE, "SHW")
    with pytest.raises(ValueError, match=r"dense\.npy: values from \d to 7"):
        write_dat(source, tmp_path / "a.dat", SpikeGeometry(*SIZE), source.path)
    assert [path.name for path in tmp_path.iterdir()] == ["dense.npy"]
