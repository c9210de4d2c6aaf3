"""Spike `.dat` files: bits, rows, ranges, sizes, sidecars."""

import io
import re
from pathlib import Path

import numpy as np
import pytest

from src.data.description import find_description
from src.data.spikes.spike_dat import (
    SpikeFile,
    SpikeGeometry,
    SpikeSidecar,
    read_sidecar,
    write_sidecar,
    write_spikes,
)
from tests.spike_cases import random_spikes


def write_bytes(folder, data, name="a.dat"):
    path = folder / name
    path.write_bytes(bytes(data))
    return path


# ---------------------------------------------------------------- bits


@pytest.mark.parametrize(
    ("bit_order", "flip_rows", "ones"),
    [
        ("little", True, [[0, 7], [1, 0]]),
        ("little", False, [[0, 0], [1, 7]]),
        ("big", True, [[0, 0], [1, 7]]),
        ("big", False, [[0, 7], [1, 0]]),
    ],
)
def test_bit_order_and_row_flip_by_hand(tmp_path, bit_order, flip_rows, ones):
    geometry = SpikeGeometry(2, 8, bit_order, flip_rows)
    image = SpikeFile(write_bytes(tmp_path, [0x01, 0x80]), geometry).read(0, 1)
    assert np.argwhere(image[0]).tolist() == ones
    write_spikes(tmp_path / "b.dat", image, geometry)
    assert (tmp_path / "b.dat").read_bytes() == b"\x01\x80"


@pytest.mark.parametrize("bit_order", ["little", "big"])
@pytest.mark.parametrize("flip_rows", [True, False])
@pytest.mark.parametrize("size", [(6, 16), (4, 10), (8, 3)])  # the last two: rows share bytes
def test_round_trip(tmp_path, bit_order, flip_rows, size):
    geometry = SpikeGeometry(*size, bit_order, flip_rows)
    spikes = random_spikes(9, *size)
    write_spikes(tmp_path / "a.dat", spikes, geometry)
    file = SpikeFile(tmp_path / "a.dat", geometry)
    assert file.num_ticks == 9
    assert np.array_equal(file.read(0, 9), spikes)
    assert np.array_equal(file.read(4, 7), spikes[4:7])


def test_rows_that_share_bytes_follow_each_other_without_padding(tmp_path):
    image = np.zeros((1, 2, 4), np.uint8)
    image[0, 0, 0] = image[0, 1, 3] = 1  # stored bottom row first: 0001 then 1000
    write_spikes(tmp_path / "a.dat", image, SpikeGeometry(2, 4))
    assert (tmp_path / "a.dat").read_bytes() == bytes([0b0001_1000])


def test_packed_is_the_stored_bytes(tmp_path):
    file = SpikeFile(write_bytes(tmp_path, range(4 * 3 * 2)), SpikeGeometry(3, 16))
    (packed,) = file.packed(1, 2)
    assert packed.tolist() == [[[6, 7], [8, 9], [10, 11]]]
    blocks = [block.tolist() for block in file.packed(1, 4, rows=(1, 2), together=2)]
    assert blocks == [[[[8, 9]], [[14, 15]]], [[[20, 21]]]]  # the last one is shorter


def test_of_some_rows_only_their_bytes_are_read(tmp_path, monkeypatch):
    file = SpikeFile(write_bytes(tmp_path, range(60)), SpikeGeometry(10, 16))
    sizes = []

    class Noting(io.FileIO):
        def readinto(self, rest):
            sizes.append(len(rest))
            return super().readinto(rest)

    monkeypatch.setattr(Path, "open", lambda path, *_, **__: Noting(path))
    list(file.packed(0, 3, rows=(4, 6)))
    assert sizes == [4, 4, 4]
    list(file.packed(0, 3))  # whole ticks lie side by side
    assert sizes[3:] == [60]


def test_a_read_that_brings_less_is_continued(tmp_path, monkeypatch):
    class Halting(io.FileIO):
        def readinto(self, rest):
            return super().readinto(rest[:2])

    file = SpikeFile(write_bytes(tmp_path, range(12)), SpikeGeometry(3, 16))
    monkeypatch.setattr(Path, "open", lambda path, *_, **__: Halting(path))
    (packed,) = file.packed(0, 2)
    assert packed.ravel().tolist() == list(range(12))


def test_a_file_that_has_become_shorter_is_an_error(tmp_path):
    path = write_bytes(tmp_path, range(12))
    file = SpikeFile(path, SpikeGeometry(3, 16))
    path.write_bytes(bytes(7))
    for read in (file.read, lambda *window: list(file.packed(*window))):
        with pytest.raises(ValueError, match="has become shorter than the 2 ticks"):
            read(0, 2)


# ---------------------------------------------------------------- sizes and ranges


def test_remainder_is_refused_with_sizes_that_fit(tmp_path):
    path = tmp_path / "a.dat"
    path.write_bytes(bytes(2_534_400))  # 88 ticks of 360x640
    with pytest.raises(ValueError, match="2534400 bytes are 202.75 ticks of 250x400") as error:
        SpikeFile(path, SpikeGeometry(250, 400))
    for part in ("a.dat", "2525000 (202 ticks)", "2537500 (203 ticks)", "360x640 (88 ticks)"):
        assert part in str(error.value)
    assert SpikeFile(path, SpikeGeometry(360, 640)).num_ticks == 88


@pytest.mark.parametrize("size", [0, 1])
def test_a_file_without_a_whole_tick_is_refused(tmp_path, size):
    path = write_bytes(tmp_path, [0] * size)
    with pytest.raises(ValueError, match=re.escape("sizes that fit: 2 (1 ticks)")):
        SpikeFile(path, SpikeGeometry(2, 8))


@pytest.mark.parametrize("window", [(-1, 2), (2, 2), (3, 2), (0, 4), (3, 4)])
def test_a_range_outside_the_file_is_refused(tmp_path, window):
    file = SpikeFile(write_bytes(tmp_path, [0] * 6), SpikeGeometry(2, 8))
    for read in (file.read, lambda *ticks: list(file.packed(*ticks))):
        with pytest.raises(
            ValueError, match=rf"ticks \[{window[0]}, {window[1]}\) requested.*\[0, 3\)"
        ):
            read(*window)


def test_missing_files_and_rows_that_share_bytes_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        SpikeFile(tmp_path / "none.dat", SpikeGeometry(2, 8))
    file = SpikeFile(write_bytes(tmp_path, [0]), SpikeGeometry(2, 4))
    with pytest.raises(ValueError, match="rows of 4 pixels"):
        list(file.packed(0, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 5), "15 pixels are no multiple of 8"),
        ((0, 8), "both must be at least 1"),
        ((2, 8, "lsb"), "bit_order is 'lsb'"),
    ],
)
def test_impossible_geometry(arguments, message):
    with pytest.raises(ValueError, match=message):
        SpikeGeometry(*arguments)


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize(
    ("spikes", "message"),
    [
        (np.full((1, 2, 8), 2, np.uint8), "from 2 to 2"),
        (np.full((1, 2, 8), 0.5), "from 0.5 to 0.5"),
        (np.full((1, 2, 8), -1), "from -1 to -1"),
        (np.zeros((1, 8, 2), np.uint8), r"shape \(1, 8, 2\)"),
        (np.zeros((2, 8), np.uint8), r"shape \(2, 8\)"),
        (np.zeros((0, 2, 8), np.uint8), r"shape \(0, 2, 8\)"),
    ],
)
def test_what_is_not_spikes_is_not_written(tmp_path, spikes, message):
    with pytest.raises(ValueError, match=message):
        write_spikes(tmp_path / "a.dat", spikes, SpikeGeometry(2, 8))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [np.bool_, np.int64, np.float32])
def test_writing_twice_does_not_append(tmp_path, dtype):
    spikes = random_spikes(3, 2, 8)
    for _ in range(2):
        write_spikes(tmp_path / "a.dat", spikes.astype(dtype), SpikeGeometry(2, 8))
    assert np.array_equal(SpikeFile(tmp_path / "a.dat", SpikeGeometry(2, 8)).read(0, 3), spikes)
    assert [p.name for p in tmp_path.iterdir()] == ["a.dat"]


# ---------------------------------------------------------------- sidecars


def test_sidecar_round_trip(tmp_path):
    sidecar = SpikeSidecar(360, 640, 1920.0, 2.0, "big", False)
    assert write_sidecar(tmp_path, sidecar).name == "spike.yaml"
    assert read_sidecar(tmp_path / "any.dat") == sidecar
    assert sidecar.geometry == SpikeGeometry(360, 640, "big", False)


def test_the_nearest_sidecar_wins(tmp_path):
    folder = tmp_path / "one" / "two"
    (folder / "three").mkdir(parents=True)
    dat = folder / "000001.dat"
    assert read_sidecar(dat) is None
    (tmp_path / "config.yaml").write_text("optimizer: adam\n")  # of something else
    assert read_sidecar(dat) is None
    spikecv = "filename: x\nspike_w: {}\nspike_h: 8\nis_labeled: false\n"
    (tmp_path / "config.yaml").write_text(spikecv.format(16))
    assert read_sidecar(dat) == SpikeSidecar(8, 16)
    assert read_sidecar(folder / "three/000001.dat") is None  # three folders up
    (folder / "config.yaml").write_text(spikecv.format(24))
    assert read_sidecar(dat).width == 24
    write_sidecar(folder, SpikeSidecar(8, 32))
    assert read_sidecar(dat).width == 32
    (folder / "000001.yaml").write_text("height: 8\nwidth: 40\n")
    assert read_sidecar(dat).width == 40
    assert read_sidecar(folder / "000002.dat").width == 32


@pytest.mark.parametrize(
    "text",
    [b"a: &a [x]\nb: *a\n", b"a: !!python/name:os.system\n", b"\xff\xfe\0", b"[" * 999],
)
def test_yaml_of_other_programs_is_passed_over(tmp_path, text):
    (tmp_path / "config.yaml").write_bytes(text)
    (tmp_path / "dataset.yaml").write_bytes(text)
    assert read_sidecar(tmp_path / "a.dat") is None
    assert find_description(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.yaml", "spike_w: 16\n", "spike_h is missing"),
        ("spike.yaml", "width: 16\nheigth: 8\n", "unknown key 'heigth'; height is missing"),
        ("spike.yaml", "height: 8\nwidth: '16'\n", "width is '16'"),
        ("spike.yaml", "height: true\nwidth: 16\n", "height is True"),
        ("spike.yaml", "height: 8\nwidth: 16\nthreshold: 0\n", "threshold is 0"),
        ("spike.yaml", "height: 8\nwidth: 16\nflip_rows: 1\n", "flip_rows is 1"),
        ("spike.yaml", "height: 3\nwidth: 5\n", "no multiple of 8"),
        ("spike.yaml", "- 8\n", "expected lines 'key: value'"),
    ],
)
def test_a_wrong_sidecar_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        read_sidecar(tmp_path / "a.dat")
