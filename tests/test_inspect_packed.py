"""Size and order of bits of packed spikes are found in the bits, or said not to show there."""

import re
from pathlib import Path

import numpy as np
import pytest

from src.data.errors import BadFileError
from src.data.frames import write_png
from src.data.spikes.spike_dat import SpikeSidecar, write_sidecar
from src.prepare.inspect_file import inspect_file
from src.prepare.inspect_packed import Question, inspect_bytes
from tests.inspection_cases import drifting_spikes, pack, scene

SIZE = "96x128 (the demo data)"


def inspect(data, **given):
    return inspect_bytes(np.ascontiguousarray(data), Question(Path("spikes.dat"), **given))


@pytest.mark.parametrize("bit_order", ["little", "big"])
@pytest.mark.parametrize(
    ("height", "width", "ticks"),
    [(250, 400, 30), (360, 640, 12), (96, 128, 56), (384, 384, 20), (720, 1280, 5)],
)
def test_size_and_order_of_bits_are_found(height, width, ticks, bit_order):
    data = pack(drifting_spikes(height, width, ticks, seed=width), bit_order)
    findings = inspect(data)
    assert findings.is_right
    assert re.match(rf"{height}x{width}\b", findings.answer)
    assert f"bit_order {bit_order}" in findings.answer
    assert "flip_rows cannot be known" in findings.answer
    assert findings.block.num_ticks == ticks
    spikes = drifting_spikes(height, width, ticks, seed=width)
    first = findings.block.first_tick
    assert np.array_equal(findings.block.spikes, spikes[first : first + len(findings.block.spikes)])


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ((360, 448), r"the file would hold 28.57 ticks"),
        ((250, 400), r"the file would hold 46.08 ticks"),
        ((720, 320), r"no dip|not alike"),
        ((640, 360), r"pixels 360 apart are not alike"),
        ((360, 320), r"no dip at 115200 pixels"),
    ],
)
def test_a_wrong_size_is_refused_and_the_right_one_named(given, reason):
    data = pack(drifting_spikes(360, 640, 20, seed=7))
    findings = inspect(data, size=given)
    assert not findings.is_right
    assert findings.answer.startswith(f"{given[0]}x{given[1]} cannot be right: ")
    assert re.search(reason, findings.answer)
    assert "360x640 (Spk-GoPro) would be right" in findings.answer


def test_twice_the_width_passes_the_tests_and_is_still_not_the_size():
    findings = inspect(pack(drifting_spikes(96, 128, 56)), size=(48, 256))
    assert not findings.is_right
    assert findings.answer.startswith(
        "48x256 is unlikely, though it passes; 96x128 (the demo data) would"
    )


def test_a_size_that_is_not_usual_has_to_be_given():
    data = pack(drifting_spikes(60, 84, 150))
    findings = inspect(data)
    assert not findings.is_right
    assert "no usual size passes the tests" in findings.answer
    assert findings.answer.endswith("give --height and --width")
    assert inspect(data, size=(60, 84)).answer.startswith("60x84; bit_order little")
    assert not inspect(data, size=(84, 60)).is_right


def test_given_size_and_order_of_bits_are_confirmed_or_refused():
    data = pack(drifting_spikes(96, 128, 56, seed=96))
    assert inspect(data, size=(96, 128), bit_order="little", flip_rows=True).is_right
    findings = inspect(data, bit_order="big")
    assert not findings.is_right
    assert "bit_order big cannot be right, little would be" in findings.answer
    with pytest.raises(ValueError, match="multiple of 8"):
        inspect(data, size=(3, 3))


def test_files_of_one_gopro_frame_are_known():
    """88 ticks of 360x640 are 2,534,400 bytes, for which 396x640 gives a whole number of ticks."""
    data = pack(drifting_spikes(360, 640, 88, seed=1))
    findings = inspect(data, size=(396, 640))
    assert not findings.is_right
    assert "there is no dip at 253440 pixels; 360x640" in findings.answer
    assert any("396x640: 80 ticks (whole)" in line for line in findings.measured)


def test_the_reference_decides_flip_and_order_of_bits(tmp_path):
    picture = (scene(96, 128 + 15, seed=3)[:, 7 : 96 + 7] * 255).astype(np.uint8)
    path = tmp_path / "scene.png"
    write_png(path, np.dstack([picture.repeat(2, 0).repeat(2, 1)] * 3))
    for flip_rows in (True, False):
        for bit_order in ("little", "big"):
            data = pack(drifting_spikes(96, 128, 56, seed=3), bit_order, flip_rows)
            findings = inspect(data, reference=path)
            assert findings.answer == f"{SIZE}; bit_order {bit_order}; flip_rows {flip_rows}"
            assert not inspect(data, reference=path, flip_rows=not flip_rows).is_right
    write_png(path, np.dstack([np.rot90(picture[:96]).copy()] * 3))
    other = inspect(data, reference=path)
    assert any("another scene, or another size" in warning for warning in other.warnings)


@pytest.mark.parametrize("value", [0, 255])
def test_nothing_is_known_of_constant_bits(value):
    findings = inspect(np.full(200_000, value, np.uint8), size=(250, 400))
    assert not findings.is_right
    assert f"all sampled bits are {value // 255}" in findings.answer
    assert findings.block is None


def test_nothing_is_known_of_noise_and_it_is_said():
    rng = np.random.default_rng(0)
    data = np.packbits(rng.random((20, 250, 400)) < 0.3)
    findings = inspect(data)
    assert not findings.is_right
    assert findings.answer.startswith("the size cannot be known from this file: no usual size")
    given = inspect(data, size=(250, 400))
    assert given.is_right
    assert "250x400 as given may be right" in given.answer
    assert not inspect(data, size=(360, 640)).is_right


def test_too_short_and_still_recordings():
    one = inspect(pack(drifting_spikes(96, 128, 56)[:1]), size=(96, 128))
    assert "96x128 as given may be right" in one.answer
    frozen = inspect(pack(np.repeat(drifting_spikes(96, 128, 56)[:1], 40, axis=0)))
    assert "cannot be known" in frozen.answer
    light = np.full((60, 128, 96), 0.37)
    phase = np.random.default_rng(1).uniform(0, 2, (128, 96))
    uniform = (np.diff(np.floor((np.cumsum(light, axis=0) + phase) / 2), axis=0) > 0).astype(
        np.uint8
    )
    findings = inspect(pack(uniform))
    assert "a tick has the pixels of 96x128, but its rows do not show" in findings.answer


def test_a_faint_scene_is_not_guessed_at_and_a_periodic_one_is_found():
    faint = np.random.default_rng(5).integers(0, 2, (200, 128, 96), dtype=np.uint8)
    faint[1:] &= ~faint[:-1]  # pauses after firing, but no picture
    findings = inspect(pack(faint))
    assert not findings.is_right
    assert "its rows do not show" in findings.answer
    board = np.kron(np.indices((6, 8)).sum(axis=0) % 2, np.ones((16, 16))) * 0.5 + 0.2
    phase = np.random.default_rng(1).uniform(0, 2, board.shape)
    count = np.floor((np.arange(61)[:, None, None] * board + phase) / 2)
    findings = inspect(pack(np.diff(count, axis=0).astype(np.uint8)))
    assert findings.answer.startswith(SIZE)


def test_a_file_that_was_cut_off_holds_no_whole_ticks():
    data = np.concatenate([pack(drifting_spikes(96, 128, 56)), np.zeros(100, np.uint8)])
    assert "usual sizes with whole ticks: none" in inspect(data).measured[0]
    for given in ({}, {"size": (96, 128)}, {"size": (50, 80)}):
        findings = inspect(data, **given)
        assert not findings.is_right
        left_over = "100 bytes are left over after 56 ticks: the file was cut off, or has a header"
        assert f"{SIZE} shows in the bits, but {left_over}" in findings.answer
        assert findings.block.num_ticks == 56


def test_left_over_bytes_of_a_given_size_are_counted():
    data = np.concatenate([pack(drifting_spikes(120, 104, 40)), np.zeros(100, np.uint8)])
    answer = inspect(data, size=(120, 104)).answer
    assert answer.startswith(
        "120x104 shows in the bits, but 100 bytes are left over after 40 ticks"
    )


def test_a_size_that_does_not_show_needs_whole_ticks():
    noise = np.random.default_rng(3).integers(0, 256, 50_100).astype(np.uint8)
    answer = inspect(noise, size=(100, 100)).answer
    assert "100x100 as given cannot be right: no whole number of ticks" in answer


def test_numbers_are_no_spikes():
    rng = np.random.default_rng(2)
    smooth = (scene(256, 384) * 200 + rng.integers(0, 9, (256, 384))).astype(np.uint8)
    findings = inspect(smooth.reshape(-1))
    assert "the bits look like numbers of 8 bits" in findings.answer


def test_unfit_files(tmp_path):
    path = tmp_path / "spikes.dat"
    for content, message in (
        (b"", "is empty"),
        (b"\x89PNG\r\n", "is a PNG image"),
        (b"\0\0\0\x18ftypisom", "is an MP4 video"),
    ):
        path.write_bytes(content)
        with pytest.raises(BadFileError, match=message):
            inspect_file(Question(path))
    with pytest.raises(BadFileError, match="no such file"):
        inspect_file(Question(tmp_path / "missing.dat"))
    with pytest.raises(BadFileError, match="is a folder"):
        inspect_file(Question(tmp_path))
    odd = tmp_path / "spikes.xyz"
    odd.write_bytes(pack(drifting_spikes(96, 128, 56)).tobytes())
    findings = inspect_file(Question(odd))
    assert findings.answer.startswith("96x128")
    assert "the ending .xyz is not known" in findings.warnings[0]


def test_what_a_file_beside_it_says_is_tested(tmp_path):
    path = tmp_path / "spikes.dat"
    path.write_bytes(pack(drifting_spikes(96, 128, 56)).tobytes())
    write_sidecar(tmp_path, SpikeSidecar(96, 128, 1920))
    findings = inspect_file(Question(path))
    assert findings.is_right
    assert findings.answer.endswith("flip_rows cannot be known (True as given may be right)")
    assert "a YAML file beside it says 96x128" in findings.measured[0]
    write_sidecar(tmp_path, SpikeSidecar(128, 96, 1920, bit_order="big"))
    findings = inspect_file(Question(path))
    assert not findings.is_right
    assert "128x96 cannot be right" in findings.answer
    assert "bit_order big cannot be right, little would be" in findings.answer
    assert inspect_file(Question(path, size=(96, 128))).is_right


def test_of_a_large_file_only_samples_are_read(tmp_path):
    """A gigabyte, sparse on disk, with spikes where the samples and the middle lie."""
    path = tmp_path / "large.dat"
    spikes = pack(drifting_spikes(250, 400, 60, seed=400))
    tick = 250 * 400 // 8
    total = (1 << 30) // tick * tick
    with path.open("wb") as handle:
        handle.write(spikes)
        handle.seek((total // tick // 2 - 30) * tick)
        handle.write(spikes)
        handle.seek(total - len(spikes))
        handle.write(spikes)
    findings = inspect_file(Question(path))
    assert findings.answer.startswith("250x400 (first spike camera")
    assert len(findings.block.spikes) * 100_000 <= 1 << 25
