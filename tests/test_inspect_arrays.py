"""Arrays say which axis is time and lists which column is which, as far as their values show it."""

import re

import h5py
import numpy as np
import pytest

from src.data.errors import BadFileError
from src.prepare import inspect_file as inspect_module
from src.prepare.inspect_file import inspect_file, read_leading
from src.prepare.inspect_packed import Question
from tests.inspection_cases import drifting_spikes, pack


def inspect(path, array, **given):
    np.save(path, array)
    return inspect_file(Question(path, **given))


@pytest.mark.parametrize("axes", ["THW", "HTW", "HWT"])
def test_the_axis_of_time_is_found(tmp_path, axes):
    spikes = drifting_spikes(60, 84, 150)
    stored = spikes.transpose(["THW".index(axis) for axis in axes])
    findings = inspect(tmp_path / "a.npy", stored)
    assert findings.is_right
    assert findings.answer.startswith(f"axes {axes}: 150 ticks of 60x84")
    assert np.array_equal(findings.block.spikes, spikes)
    flipped = inspect(tmp_path / "a.npy", stored, flip_rows=True)
    assert np.array_equal(flipped.block.spikes, spikes[:, ::-1])
    wrong = {"THW": "HWT", "HTW": "THW", "HWT": "HTW"}[axes]
    refused = inspect(tmp_path / "a.npy", stored, axes=wrong)
    assert not refused.is_right
    assert f"axes {wrong} cannot be right" in refused.answer


def test_given_sizes_and_axes(tmp_path):
    spikes = drifting_spikes(60, 84, 150)
    assert inspect(tmp_path / "a.npy", spikes, size=(60, 84)).is_right
    assert inspect(tmp_path / "a.npy", spikes, axes="TWH").is_right  # a picture on its side
    findings = inspect(tmp_path / "a.npy", spikes, size=(84, 60))
    assert not findings.is_right
    assert "84x60 cannot be right: axes THW are 60x84" in findings.answer
    assert inspect(tmp_path / "a.npy", spikes, axes="shw").is_right  # S for T, as in the code
    assert not inspect(tmp_path / "a.npy", spikes, axes="XYZ").is_right


def test_arrays_without_spikes_are_named(tmp_path):
    path = tmp_path / "a.npy"
    assert "all values are 0" in inspect(path, np.zeros((4, 5, 6), bool)).answer
    noise = np.random.default_rng(0).random((40, 50, 60)) < 0.3
    assert "no axis stands out" in inspect(path, noise).answer
    assert inspect(path, noise, axes="THW").is_right
    counts = inspect(path, drifting_spikes(60, 84, 150).astype(np.int32) * 3)
    assert not counts.is_right
    assert "2 distinct values (0, 3" in counts.answer
    with pytest.raises(BadFileError, match="three axes"):
        inspect(path, np.zeros(7))


def test_packed_bytes_taken_for_pixels(tmp_path):
    packed = pack(drifting_spikes(96, 128, 56)).reshape(56, 96, 16)
    findings = inspect(tmp_path / "a.npy", packed)
    assert not findings.is_right
    assert "packed bytes taken for pixels; its bytes read as bits: 96x128" in findings.answer
    assert findings.block.spikes.shape == (56, 96, 128)


def test_archives_and_keys(tmp_path):
    spikes = drifting_spikes(60, 84, 150)
    np.savez_compressed(tmp_path / "a.npz", spk=spikes, label=3)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw/spike"] = spikes
        file["raw/other"] = spikes[:, :, :50]
    assert inspect_file(Question(tmp_path / "a.npz")).answer.startswith("axes THW: 150 ticks")
    with pytest.raises(BadFileError, match=r"raw/other \[150, 60, 50\].*--key"):
        inspect_file(Question(tmp_path / "a.h5"))
    findings = inspect_file(Question(tmp_path / "a.h5", key="raw/other"))
    assert findings.answer.startswith("axes THW: 150 ticks of 60x50")
    with pytest.raises(BadFileError, match="has no array 'x'; it holds spk"):
        inspect_file(Question(tmp_path / "a.npz", key="x"))
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["spikes"] = h5py.ExternalLink("a.h5", "raw/spike")
    with pytest.raises(BadFileError, match="holds no arrays"):
        inspect_file(Question(tmp_path / "link.h5"))
    np.savez(tmp_path / "pickled.npz", spk=np.array([[{}, []]], dtype=object))
    (tmp_path / "broken.npz").write_bytes(b"PK\3\4 not really")
    for name in ("pickled", "broken"):
        with pytest.raises(BadFileError, match="cannot be read"):
            inspect_file(Question(tmp_path / f"{name}.npz"))


def test_of_large_arrays_the_leading_part_is_read(tmp_path, monkeypatch):
    spikes = drifting_spikes(60, 84, 150)
    np.save(tmp_path / "a.npy", spikes)
    np.savez_compressed(tmp_path / "a.npz", spikes)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["spikes"] = spikes
    monkeypatch.setattr(inspect_module, "MAX_VALUES", 40 * 60 * 84 + 5)
    for ending in ("npy", "npz", "h5"):
        _, shape, values = read_leading(tmp_path / f"a.{ending}")
        assert shape == (150, 60, 84)
        assert np.array_equal(values, spikes[:40])
        findings = inspect_file(Question(tmp_path / f"a.{ending}"))
        assert findings.answer.startswith("axes THW: 150 ticks of 60x84")
        assert any("leading part" in line for line in findings.measured)


def test_columns_of_lists_are_found(tmp_path):
    spikes = drifting_spikes(60, 84, 150)
    rows = np.argwhere(spikes)
    path = tmp_path / "a.npy"
    findings = inspect(path, rows)
    assert findings.is_right
    assert findings.answer.startswith("columns tyx (t never goes back, y is sorted within a tick)")
    assert "at least 60x84" in findings.answer
    assert np.array_equal(findings.block.spikes, spikes)
    microseconds = np.column_stack([rows[:, 2], rows[:, 1], rows[:, 0] * 50, np.ones(len(rows))])
    findings = inspect(path, microseconds)
    assert findings.answer.startswith("columns xytp")
    assert any("multiples of 50" in line for line in findings.measured)
    assert np.array_equal(findings.block.spikes, spikes)


@pytest.mark.parametrize("kind", ["npz", "h5", "structured"])
def test_columns_stored_one_by_one_are_read_and_stacked(tmp_path, kind):
    """As tools for event cameras write them: t, x, y, p beside each other, or one record each."""
    spikes = drifting_spikes(60, 84, 150)
    t, y, x = np.argwhere(spikes).T
    columns = {"x": x, "y": y, "t": t, "p": np.ones_like(t)}
    path = tmp_path / f"a.{'npy' if kind == 'structured' else kind}"
    if kind == "npz":
        np.savez(path, **columns)
    elif kind == "structured":
        np.save(path, np.rec.fromarrays(columns.values(), names=list(columns)))
    else:
        with h5py.File(path, "w") as file:
            file.update({f"events/{name}": values for name, values in columns.items()})
    findings = inspect_file(Question(path))
    assert findings.answer.startswith("columns tyxp (as given); the sensor has at least 60x84")
    assert ", read as rows tyxp, has shape [" in findings.measured[0]
    assert np.array_equal(findings.block.spikes, spikes)
    if kind == "npz":
        np.savez(path, **columns | {"t": t[1:]})
        with pytest.raises(BadFileError, match="have different lengths"):
            inspect_file(Question(path))


@pytest.mark.parametrize("dtype", [np.uint16, np.uint64])
def test_columns_of_unsigned_numbers_are_found(tmp_path, dtype):
    """Their differences wrap round instead of becoming negative."""
    rows = np.argwhere(drifting_spikes(60, 84, 150))
    signed, unsigned = (inspect(tmp_path / "a.npy", rows.astype(t)) for t in (np.int64, dtype))
    assert unsigned.is_right
    assert unsigned.answer == signed.answer
    assert unsigned.measured[1:] == signed.measured[1:]


def test_a_dark_border_is_not_the_whole_array(tmp_path):
    """Of 250 x 400 x 160 values the first million are one black bar at the top."""
    spikes = np.zeros((250, 400, 160), np.uint8)
    spikes[20:80, 100:184, :150] = drifting_spikes(60, 84, 150).transpose(1, 2, 0)
    findings = inspect(tmp_path / "a.npy", spikes)
    assert "all values are 0" not in findings.answer
    spikes[-1, -1, -1] = 2
    assert "3 distinct values (0, 1, 2" in inspect(tmp_path / "a.npy", spikes).answer


def test_endings_in_capitals_are_the_same(tmp_path):
    inspect(tmp_path / "a.npy", drifting_spikes(60, 84, 150))
    (tmp_path / "a.npy").rename(tmp_path / "a.NPY")
    assert inspect_file(Question(tmp_path / "a.NPY")).answer.startswith("axes THW")


def test_lists_that_cannot_be_right(tmp_path):
    rows = np.argwhere(drifting_spikes(60, 84, 150))
    path = tmp_path / "a.npy"
    small = inspect(path, rows, size=(60, 80))
    assert not small.is_right
    assert re.match("60x80 cannot be right: .* rows lie outside", small.answer)
    assert not inspect(path, rows, axes="xyt").is_right
    assert not inspect(path, rows, axes="abc").is_right
    signs = np.column_stack([rows, np.resize([1, -1], len(rows))])
    assert "events of an event camera" in inspect(path, signs).answer
    shuffled = np.random.default_rng(0).permutation(rows)
    assert "name the columns with --axes" in inspect(path, shuffled).answer
    assert "at least two rows" in inspect(path, rows[:1]).answer
    assert "rows lie outside" in inspect(path, rows - [0, 5, 0]).answer
