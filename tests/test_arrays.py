"""Spikes in `.npy`, `.npz` and `.h5`: nothing executed, followed or guessed; exact as `.dat`."""

import h5py
import numpy as np
import pytest

from src.data.spikes import spike_dat
from src.data.spikes.arrays import (
    DenseFile,
    EventFile,
    array_shape,
    check_events,
    events_to_dense,
    map_npy,
    open_h5,
    read_array,
)
from src.data.spikes.spike_dat import SpikeFile, SpikeGeometry, write_dat
from tests.spike_cases import dense_to_events, random_spikes


class Trap:
    """What a hostile file would like to have unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle in a data file was executed",))


def write_h5(path, **arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return path


def test_the_key_is_needed_where_there_are_several(tmp_path):
    one = write_h5(tmp_path / "one.h5", raw_spike=np.arange(6))
    assert read_array(one).tolist() == list(range(6))
    assert read_array(one, "raw_spike").sum() == read_array(one, "/raw_spike").sum() == 15
    two = write_h5(tmp_path / "two.hdf5", raw_spike=np.zeros(2), **{"truth/image": np.ones(2)})
    assert read_array(two, "truth/image").sum() == 2
    for key in (None, "truth", "spk"):
        with pytest.raises(ValueError, match=r"two\.hdf5: .*\['raw_spike', 'truth/image'\]; "):
            read_array(two, key)
    np.savez(tmp_path / "a.npz", one=np.zeros(2), two=np.ones(2))
    assert read_array(tmp_path / "a.npz", "two").sum() == 2
    with pytest.raises(
        ValueError, match=r"holds 2 arrays, \['one', 'two'\]; choose one with --key"
    ):
        read_array(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"c\.mat: one of \.npy, \.npz, \.h5, \.hdf5 is needed"):
        read_array(tmp_path / "c.mat")


def test_f29_objects_are_refused_and_not_executed(tmp_path):
    trap = np.array([Trap(), None], dtype=object)
    np.save(tmp_path / "a.npy", trap, allow_pickle=True)
    np.savez(tmp_path / "b.npz", spk=trap)
    with pytest.raises(ValueError, match=r"a\.npy: Object arrays cannot be loaded"):
        read_array(tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"a\.npy: .*"):
        map_npy(tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"b\.npz: Object arrays cannot be loaded"):
        read_array(tmp_path / "b.npz")
    with pytest.raises(ValueError, match=r"b\.npz"):
        DenseFile(tmp_path / "b.npz", 2, 4, "SHW")


@pytest.mark.parametrize(
    "dtype",
    [
        h5py.vlen_dtype(np.uint8),
        h5py.string_dtype(),
        h5py.ref_dtype,
        np.dtype([("t", "i4"), ("y", "i2")]),
    ],
)
def test_f29_h5_types_that_are_no_numbers_are_refused(tmp_path, dtype):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("spk", (2,), dtype)
    with pytest.raises(ValueError, match=r"a\.h5: /spk has type .*plain numbers are needed"):
        read_array(tmp_path / "a.h5")


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
    with pytest.raises(ValueError, match=f"ünïcode name{suffix}"):
        read_array(path)
    with pytest.raises(ValueError, match=f"ünïcode name{suffix}"):
        DenseFile(path, 2, 4)
    with pytest.raises(ValueError, match=f"ünïcode name{suffix}"):
        array_shape(path)


def test_archives_under_the_wrong_ending(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros(2))
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.zeros(2))
    (tmp_path / "b.npy").rename(tmp_path / "b.npz")
    for name in ("a.npy", "b.npz"):
        with pytest.raises(ValueError, match=f"{name}: .*rename it"):
            read_array(tmp_path / name)


# ---------------------------------------------------------------- containers of others


@pytest.mark.parametrize(
    ("name", "key", "axes"),
    [
        ("uhsr.npz", "spk", "SHW"),
        ("spikingsim.npz", "arr_0", "HWS"),
        ("scsim.h5", "raw_spike", "SHW"),
        ("own.npy", None, "SHW"),
    ],
)
def test_dense_containers_by_ranges(tmp_path, name, key, axes):
    spikes = random_spikes(30, 6, 8)
    array, path = spikes.transpose(["SHW".index(axis) for axis in axes]), tmp_path / name
    if path.suffix == ".npz":
        extra = {"label": np.array(3), "label_name": np.array("heli")} if key == "spk" else {}
        np.savez(path, **{key: array}, **extra)
    elif path.suffix == ".h5":
        write_h5(path, **{key: array})
    else:
        np.save(path, array)
    assert array_shape(path, key) == array.shape
    for flip in (False, True):
        file = DenseFile(path, 6, 8, axes, key, flip)
        assert file.num_ticks == 30
        assert np.array_equal(file.read(0, 30), spikes[:, ::-1] if flip else spikes)
        part = file.read(7, 19)
        assert part.dtype == np.uint8
        assert np.array_equal(part, spikes[7:19, ::-1] if flip else spikes[7:19])
        for start, stop in ((-1, 3), (4, 4), (20, 31)):
            with pytest.raises(ValueError, match=r"the file has \[0, 30\)"):
                file.read(start, stop)


def test_h5_ranges_read_only_their_part(tmp_path):
    """Each chunk has its own checksum; a damaged one far away does no harm."""
    spikes = random_spikes(40, 4, 8)
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("spk", data=spikes, chunks=(10, 4, 8), fletcher32=True)
        offset = file["spk"].id.get_chunk_info(3).byte_offset
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
    assert np.array_equal(DenseFile(path, 4, 8).read(0, 30), spikes[:30])
    with pytest.raises(OSError, match="."):
        DenseFile(path, 4, 8).read(29, 31)
    with open_h5(path) as dataset:
        assert dataset.shape == (40, 4, 8)


def test_event_lists_in_h5(tmp_path):
    spikes = random_spikes(20, 4, 8)
    spikes[-1] = 0
    events = dense_to_events(spikes)
    path = write_h5(tmp_path / "a.h5", events=events[:, [2, 1, 0]])
    file = EventFile(path, 4, 8, "xyt", num_ticks=20)
    assert np.array_equal(file.read(0, 20), spikes)
    assert np.array_equal(file.read(5, 9), spikes[5:9])
    assert EventFile(path, 4, 8, "xyt").num_ticks == 19  # ends with its last spike
    with pytest.raises(ValueError, match=r"spikes from tick 0 to 18; \[0, 18\) is needed"):
        EventFile(path, 4, 8, "xyt", num_ticks=18)
    twice = write_h5(tmp_path / "b.h5", events=np.repeat(events[:3], 2, axis=0))
    with pytest.raises(ValueError, match=r"b\.h5: .*occurs twice"):
        EventFile(twice, 4, 8).read(0, 1)
    none = write_h5(tmp_path / "c.h5", events=events[:0])
    with pytest.raises(ValueError, match="holds no spike"):
        EventFile(none, 4, 8)


# ---------------------------------------------------------------- lists of events


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.float32])
@pytest.mark.parametrize("rate", [0.02, 0.5])
def test_round_trip_is_exact(dtype, rate):
    spikes = random_spikes(40, 5, 7, rate)
    events = dense_to_events(spikes).astype(dtype)
    assert np.array_equal(events_to_dense(events, 40, 5, 7), spikes)
    with_polarity = np.concatenate([events, np.ones((len(events), 1), dtype)], axis=1)
    assert np.array_equal(events_to_dense(with_polarity, 40, 5, 7), spikes)


def test_no_events():
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


# ---------------------------------------------------------------- to .dat

SIZE, NUM_TICKS = (6, 12), 29  # rows of 12 pixels do not end with a byte


@pytest.fixture(params=[1, 7, 1000])
def ticks_per_piece(request, monkeypatch):
    monkeypatch.setattr(spike_dat, "UNPACKED_BYTES", request.param * SIZE[0] * SIZE[1])
    return request.param


@pytest.mark.parametrize("name", ["events.npy", "dense.npy", "dense.npz", "dense.h5"])
def test_bits_of_any_container_are_those_of_its_spikes(tmp_path, name, ticks_per_piece):
    spikes, path, done = random_spikes(NUM_TICKS, *SIZE), tmp_path / name, []
    spikes[-1] = spikes[0] = 0  # ends that a list of spikes does not show
    if name == "events.npy":
        np.save(path, dense_to_events(spikes))
        source = EventFile(path, *SIZE, num_ticks=NUM_TICKS)
    else:
        if path.suffix == ".npy":
            np.save(path, spikes)
        elif path.suffix == ".npz":
            np.savez(path, spikes)
        else:
            write_h5(path, spikes=spikes)
        source = DenseFile(path, *SIZE, "SHW")
    rate = write_dat(source, tmp_path / "a.dat", SpikeGeometry(*SIZE), done.append)
    assert np.array_equal(SpikeFile(tmp_path / "a.dat", SpikeGeometry(*SIZE)).read(0, 29), spikes)
    assert rate == pytest.approx(spikes.mean())
    assert sum(done) == NUM_TICKS
    assert max(done) <= ticks_per_piece
    with pytest.raises(ValueError, match="8x8 is needed"):
        write_dat(source, tmp_path / "b.dat", SpikeGeometry(8, 8))
    assert {path.name for path in tmp_path.iterdir()} == {name, "a.dat"}


def test_a_bad_value_late_in_the_file_leaves_nothing(tmp_path, ticks_per_piece):
    spikes = random_spikes(NUM_TICKS, *SIZE)
    spikes[20] = 7
    np.save(tmp_path / "dense.npy", spikes)
    with pytest.raises(ValueError, match=r"dense\.npy: values from \d to 7"):
        write_dat(
            DenseFile(tmp_path / "dense.npy", *SIZE), tmp_path / "a.dat", SpikeGeometry(*SIZE)
        )
    assert [path.name for path in tmp_path.iterdir()] == ["dense.npy"]
