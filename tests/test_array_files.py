"""Arrays in `.npy`, `.npz` and `.h5`: found by key, and nothing executed, followed or guessed."""

import h5py
import numpy as np
import pytest

from src.data.spikes.arrays import array_shape, map_npy, open_h5, read_array
from src.data.spikes.dense_files import DenseFile, EventFile
from src.data.spikes.events import dense_to_events
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


def test_the_key_is_needed_where_there_are_several(tmp_path):
    one = write_h5(tmp_path / "one.h5", raw_spike=np.arange(6))
    assert read_array(one).tolist() == list(range(6))
    assert read_array(one, "raw_spike").sum() == read_array(one, "/raw_spike").sum() == 15
    two = write_h5(tmp_path / "two.hdf5", raw_spike=np.zeros(2), **{"truth/image": np.ones(2)})
    assert read_array(two, "truth/image").sum() == 2
    for key in (None, "truth", "spk"):
        with pytest.raises(ValueError, match=r"two\.hdf5: .*\['raw_spike', 'truth/image'\]; "):
            read_array(two, key)


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
    for key, kind in (("outside", "an external"), ("inside", "a soft"), ("round", "a soft")):
        with pytest.raises(ValueError, match=rf"{key}' is {kind} link .*one of \['spk'\]"):
            read_array(tmp_path / "a.h5", key)
    with pytest.raises(ValueError, match="is an external link"):
        read_array(tmp_path / "a.h5", "group/up/outside/key")


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
        assert file.is_held_in_memory == (path.suffix == ".npz")
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
    assert file.num_spikes == spikes.sum()
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
