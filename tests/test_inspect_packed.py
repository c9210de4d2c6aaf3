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
    [(250, 400, 30), (96, 128, 56), (720, 1280, 5)],
)
def test_size_and_order_of_bits_are_found(height, width, ticks, bit_order):
    spikes = drifting_spikes(height, width, ticks, seed=width)
    findings = inspect(pack(spikes, bit_order))
    assert findings.is_right
    assert re.match(rf"{height}x{width}\b", findings.answer)
    assert f"bit_order {bit_order}" in findings.answer
    assert "flip_rows cannot be known" in findings.answer
    block = findings.block
    assert block.num_ticks == ticks
    assert np.array_equal(block.spikes, spikes[block.first_tick :][: len(block.spikes)])


@pytest.mark.parametrize(
    ("recorded", "given", "answer"),
    [
        # (height, width, ticks), what the user says, what is answered
        ((360, 640, 20), (360, 448), r"360x448 cannot be right: the file would hold 28.57 ticks"),
        ((360, 640, 20), (640, 360), r"640x360 cannot be right: .*pixels 360 apart are not alike"),
        ((360, 640, 20), (360, 320), r"360x320 cannot be right: .*no dip at 115200 pixels"),
        # 88 ticks are 2,534,400 bytes, for which 396x640 gives a whole number of ticks
        ((360, 640, 88), (396, 640), r"396x640 cannot be right: there is no dip at 253440 pixels"),
        ((96, 128, 56), (48, 256), "48x256 is unlikely, though it passes"),
        ((60, 84, 150), (84, 60), "84x60 cannot be right: pixels 60 apart are not alike"),
    ],
)
def test_a_wrong_size_is_refused_and_the_right_one_named(recorded, given, answer):
    findings = inspect(pack(drifting_spikes(*recorded, seed=7)), size=given)
    assert not findings.is_right
    assert re.match(answer, findings.answer)
    assert re.search(rf"; {recorded[0]}x{recorded[1]}\b.* would be right", findings.answer)


def test_a_size_that_is_not_usual_has_to_be_given():
    data = pack(drifting_spikes(60, 84, 150))
    findings = inspect(data)
    assert not findings.is_right
    assert "no usual size passes the tests" in findings.answer
    assert findings.answer.endswith("give --height and --width")
    assert inspect(data, size=(60, 84)).answer.startswith("60x84; bit_order little")


def test_given_size_and_order_of_bits_are_confirmed_or_refused():
    data = pack(drifting_spikes(96, 128, 56, seed=96))
    assert inspect(data, size=(96, 128), bit_order="little", flip_rows=True).is_right
    findings = inspect(data, bit_order="big")
    assert not findings.is_right
    assert "bit_order big cannot be right, little would be" in findings.answer
    with pytest.raises(ValueError, match="multiple of 8"):
        inspect(data, size=(3, 3))


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


def test_what_does_not_show_is_not_guessed_at():
    noise = np.packbits(np.random.default_rng(0).random((20, 250, 400)) < 0.3)
    findings = inspect(noise)
    assert not findings.is_right
    assert findings.answer.startswith("the size cannot be known from this file: no usual size")
    for data, size in (
        (noise, (250, 400)),
        (pack(drifting_spikes(96, 128, 56)[:1]), (96, 128)),  # one tick
    ):
        given = inspect(data, size=size)
        assert given.is_right
        assert f"{size[0]}x{size[1]} as given may be right" in given.answer
    assert not inspect(noise, size=(360, 640)).is_right
    whole = inspect(noise[: len(noise) - 100], size=(100, 100)).answer
    assert "100x100 as given cannot be right: no whole number of ticks" in whole
    frozen = inspect(pack(np.repeat(drifting_spikes(96, 128, 56)[:1], 40, axis=0)))
    assert "cannot be known" in frozen.answer


def test_a_periodic_scene_is_found():
    board = np.kron(np.indices((6, 8)).sum(axis=0) % 2, np.ones((16, 16))) * 0.5 + 0.2
    phase = np.random.default_rng(1).uniform(0, 2, board.shape)
    count = np.floor((np.arange(61)[:, None, None] * board + phase) / 2)
    assert inspect(pack(np.diff(count, axis=0).astype(np.uint8))).answer.startswith(SIZE)


@pytest.mark.parametrize(
    ("recorded", "given"),
    [
        ((96, 128, 56), {}),
        ((96, 128, 56), {"size": (96, 128)}),
        ((96, 128, 56), {"size": (50, 80)}),
        ((120, 104, 56), {"size": (120, 104)}),  # no usual size
    ],
)
def test_a_file_that_was_cut_off_holds_no_whole_ticks(recorded, given):
    data = np.concatenate([pack(drifting_spikes(*recorded)), np.zeros(100, np.uint8)])
    findings = inspect(data, **given)
    assert "usual sizes with whole ticks: none" in findings.measured[0]
    assert not findings.is_right
    left_over = "100 bytes are left over after 56 ticks: the file was cut off, or has a header"
    assert re.match(rf"{recorded[0]}x{recorded[1]}\b.* shows in the bits, but", findings.answer)
    assert left_over in findings.answer
    assert findings.block.num_ticks == 56


def test_numbers_are_no_spikes():
    rng = np.random.default_rng(2)
    smooth = (scene(256, 384) * 200 + rng.integers(0, 9, (256, 384))).astype(np.uint8)
    assert "the bits look like numbers of 8 bits" in inspect(smooth.reshape(-1)).answer


def test_unfit_files(tmp_path):
    path = tmp_path / "spikes.dat"
    path.touch()
    cases = (("spikes.dat", "is empty"), ("missing.dat", "no such file"), (".", "is a folder"))
    for name, message in cases:
        with pytest.raises(BadFileError, match=message):
            inspect_file(Question(tmp_path / name))
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
        for start in (0, (total // tick // 2 - 30) * tick, total - len(spikes)):
            handle.seek(start)
            handle.write(spikes)
    findings = inspect_file(Question(path))
    assert findings.answer.startswith("250x400 (first spike camera")
    assert len(findings.block.spikes) * 100_000 <= 1 << 25
