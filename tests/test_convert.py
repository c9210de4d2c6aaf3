"""From any container of spikes to any other and back: the same bits, in pieces of any size."""

import numpy as np
import pytest

from src.data.spikes import convert
from src.data.spikes.convert import write_dat, write_dense, write_events
from src.data.spikes.dense_files import DenseFile, EventFile
from src.data.spikes.spike_dat import SpikeFile, SpikeGeometry, write_spikes
from tests.spike_cases import random_spikes

SIZE, NUM_TICKS = (6, 12), 29  # rows of 12 pixels do not end with a byte


@pytest.fixture(params=[1, 7, 1000])
def ticks_per_piece(request, monkeypatch):
    monkeypatch.setattr(convert, "CHUNK_BYTES", request.param * SIZE[0] * SIZE[1])
    return request.param


def read_all(path):
    if path.name == "events.npy":
        return EventFile(path, *SIZE, num_ticks=NUM_TICKS)
    if path.suffix == ".dat":
        return SpikeFile(path, SpikeGeometry(*SIZE))
    return DenseFile(path, *SIZE, "SHW")


def write(source, path):
    if path.name == "events.npy":
        write_events(source, path, SIZE)
    elif path.suffix == ".dat":
        write_dat(source, path, SpikeGeometry(*SIZE))
    else:
        write_dense(source, path, SIZE)


CONTAINERS = ["spike.dat", "events.npy", "dense.npy", "dense.npz", "dense.h5"]


@pytest.mark.parametrize("there", CONTAINERS)
def test_round_trip_is_exact(tmp_path, there, ticks_per_piece):
    spikes = random_spikes(NUM_TICKS, *SIZE)
    spikes[-1] = spikes[0] = 0  # ends that a list of spikes does not show
    start = tmp_path / "start.dat"
    write_spikes(start, spikes, SpikeGeometry(*SIZE))
    write(read_all(start), tmp_path / there)
    assert np.array_equal(read_all(tmp_path / there).read(0, NUM_TICKS), spikes)
    for back in CONTAINERS:
        target = tmp_path / f"from-{there}" / back
        write(read_all(tmp_path / there), target)
        assert np.array_equal(read_all(target).read(0, NUM_TICKS), spikes), back
    assert (tmp_path / f"from-{there}" / "spike.dat").read_bytes() == start.read_bytes()
    assert not list(tmp_path.rglob(".partial*"))


def test_the_list_is_sorted_and_says_how_many(tmp_path, ticks_per_piece):
    spikes = random_spikes(NUM_TICKS, *SIZE)
    write_spikes(tmp_path / "a.dat", spikes, SpikeGeometry(*SIZE))
    count = write_events(read_all(tmp_path / "a.dat"), tmp_path / "events.npy", SIZE)
    rows = np.load(tmp_path / "events.npy")
    assert count == len(rows) == spikes.sum()
    assert np.array_equal(rows, np.argwhere(spikes))


def test_rate_and_progress(tmp_path, ticks_per_piece):
    spikes, done = random_spikes(NUM_TICKS, *SIZE), []
    np.save(tmp_path / "dense.npy", spikes)
    source = read_all(tmp_path / "dense.npy")
    rate = write_dat(source, tmp_path / "a.dat", SpikeGeometry(*SIZE), done.append)
    assert rate == pytest.approx(spikes.mean())
    assert sum(done) == NUM_TICKS
    assert max(done) <= ticks_per_piece


def test_a_bad_value_late_in_the_file_leaves_nothing(tmp_path, ticks_per_piece):
    spikes = random_spikes(NUM_TICKS, *SIZE)
    spikes[20] = 7
    np.save(tmp_path / "dense.npy", spikes)
    with pytest.raises(ValueError, match=r"dense\.npy: values from 0 to 7|from 7 to 7"):
        write(read_all(tmp_path / "dense.npy"), tmp_path / "a.dat")
    assert [path.name for path in tmp_path.iterdir()] == ["dense.npy"]


def test_no_spike_at_all(tmp_path):
    write_spikes(tmp_path / "a.dat", np.zeros((3, *SIZE), np.uint8), SpikeGeometry(*SIZE))
    assert write_events(read_all(tmp_path / "a.dat"), tmp_path / "events.npy", SIZE) == 0
    assert np.load(tmp_path / "events.npy").shape == (0, 3)


def test_other_endings_are_refused(tmp_path):
    write_spikes(tmp_path / "a.dat", random_spikes(3, *SIZE), SpikeGeometry(*SIZE))
    source = read_all(tmp_path / "a.dat")
    with pytest.raises(ValueError, match=r"b\.mat: \.npy, \.npz or \.h5, \.hdf5 is needed"):
        write_dense(source, tmp_path / "b.mat", SIZE)
    with pytest.raises(ValueError, match=r"written as \.npy"):
        write_events(source, tmp_path / "b.npz", SIZE)
    with pytest.raises(ValueError, match="at least one tick|is needed"):
        write_dat(source, tmp_path / "b.dat", SpikeGeometry(8, 8))
    assert [path.name for path in tmp_path.iterdir()] == ["a.dat"]
