"""Files that are not what their ending says are named as what they are, by every reader."""

import numpy as np
import pytest

from scripts.inspect_spikes import main as inspect_spikes
from src.data.errors import LEADING_BYTES, BadFileError, kind_of, other_kind
from src.data.spikes.arrays import read_array
from src.data.spikes.spike_dat import SpikeGeometry, SpikeParts
from src.data.voxel_counts import SpikeWindow, count_frame

TICK = bytes(range(256)) * 2  # 512 bytes: whole ticks of 64 x 64 pixels
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1228800\n"
CD_EVENTS = b"% Data file containing CD events\n% Version 2\n% Height 720\n% Width 1280\n"
EVT3 = b"% camera_integrator_name Prophesee\n% evt 3.0\n% format EVT3;height=720;width=1280\n"
KINDS = {
    "Git LFS": (LFS, "is a pointer of Git LFS; run: git lfs pull"),
    "web page": (b"\n<!DOCTYPE html>\n<html><head><title>Sign in", "is a web page in place of"),
    "Prophesee .dat": (CD_EVENTS, "is a Prophesee .dat recording; these are events"),
    "EVT3 .raw": (EVT3, "is a Prophesee .raw recording; these are events"),
    "AEDAT": (b"#!AER-DAT4.0\r\n", "is an AEDAT recording; these are events"),
    "MP4": (b"\0\0\0\x18ftypisom", "is an MP4 or MOV video"),
    "JPEG": (b"\xff\xd8\xff\xe0\0\x10JFIF", "is a JPEG image"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_whole", [True, False])
def test_every_reader_names_what_a_file_is(tmp_path, capsys, kind, is_whole):
    """Also where its size happens to be a whole number of ticks."""
    start, expected = KINDS[kind]
    path, geometry = tmp_path / "spike.dat", SpikeGeometry(64, 64)
    path.write_bytes((start + TICK)[: len(TICK)] if is_whole else start)
    assert inspect_spikes([str(path)]) == 1
    assert expected in capsys.readouterr().err
    for read in (
        lambda: SpikeParts([path], geometry),
        lambda: count_frame(SpikeWindow(path, geometry, 0, 1), 1, None),
    ):
        with pytest.raises(BadFileError, match=expected.replace(".", r"\.")):
            read()
    for ending in (".npy", ".npz", ".h5"):
        with pytest.raises(ValueError, match=expected.replace(".", r"\.")):
            read_array(path.rename(path.with_suffix(ending)))
        path = path.with_suffix(ending)


def test_a_kind_under_its_own_ending_is_no_other_kind(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    assert other_kind(tmp_path / "a.npy") is None
    (tmp_path / "a.npy").rename(tmp_path / "a.dat")
    assert other_kind(tmp_path / "a.dat") == "a NumPy array; name it .npy"


@pytest.mark.parametrize("rate", [0.02, 0.5, 0.97])
def test_bits_are_never_taken_for_another_kind(rate):
    bits = np.random.default_rng(0).random((3000, 64)) < rate
    rest = bytes(LEADING_BYTES)
    for row in np.packbits(bits, axis=1):
        assert kind_of(row.tobytes() + rest, 1 << 20) is None
