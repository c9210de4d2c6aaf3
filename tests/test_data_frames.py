"""Image files: which are read and how, which are refused by name, what is written."""

import errno

import cv2
import numpy as np
import pytest

from src.config import load_config
from src.data import errors
from src.data.build import build_train_dataset
from src.data.errors import BadFileError, BadSample, DataSetError
from src.data.frames import is_cut_short, list_frames, read_image, write_png
from src.engine.step import DroppedClips

RGB = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


def encode(path, image, *options):
    path.write_bytes(cv2.imencode(path.suffix, image, options)[1].tobytes())
    return path


def test_png_round_trip_keeps_channel_order(tmp_path):
    path = tmp_path / "ü 0.png"
    write_png(path, RGB)
    assert np.array_equal(read_image(path), RGB)
    assert np.array_equal(cv2.imdecode(np.fromfile(path, np.uint8), 1)[..., ::-1], RGB)
    assert [p.name for p in tmp_path.iterdir()] == ["ü 0.png"]  # no partial file is left


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".jpg"])
def test_formats(tmp_path, suffix):
    smooth = np.tile(np.arange(64, dtype=np.uint8)[:, None, None], (1, 48, 3)) + [0, 90, 180]
    path = encode(tmp_path / f"a{suffix}", smooth[..., ::-1].astype(np.uint8))
    assert np.abs(read_image(path).astype(int) - smooth).max() <= (12 if suffix == ".jpg" else 0)
    assert not is_cut_short(path)
    path.write_bytes(path.read_bytes()[:-20])
    assert is_cut_short(path)
    path.write_bytes(b"any other file")
    assert not is_cut_short(path)
    path.write_bytes(b"")
    assert is_cut_short(path)
    path.unlink()
    assert is_cut_short(path)
    with pytest.raises(BadFileError, match=rf"a\{suffix}: cannot be read: No such file"):
        read_image(path)


def test_f36_grey_and_opaque_frames_are_taken(tmp_path):
    image = read_image(encode(tmp_path / "a.png", RGB[..., 0]))
    assert np.array_equal(image, np.repeat(RGB[..., :1], 3, axis=2))
    opaque = np.dstack([RGB[..., ::-1], np.full((9, 7), 255, np.uint8)])
    assert np.array_equal(read_image(encode(tmp_path / "b.png", opaque)), RGB)
    opaque[3, 3, 3] = 254
    with pytest.raises(BadFileError, match=r"b\.png: has transparent pixels"):
        read_image(encode(tmp_path / "b.png", opaque))


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
@pytest.mark.parametrize("kept", [0, 5, 60, -1])
def test_f33_truncated_file_is_named(tmp_path, suffix, kept):
    path = encode(tmp_path / f"a{suffix}", RGB)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BadFileError, match=f"a{suffix}: truncated") as error:
        read_image(path)
    assert error.value.path == path


def test_f33_only_unreadable_samples_end_a_run_instead_of_going_round(prepared_config):
    """Every sample is dropped: the budget is spent within the first epoch, nothing is repeated."""
    for path in (prepared_config.parent / "mini/train").rglob("blur/*.png"):
        path.write_bytes(path.read_bytes()[:200])
    dataset = build_train_dataset(load_config(prepared_config))
    samples = [dataset[i] for i in range(len(dataset))]
    assert all(isinstance(sample, BadSample) for sample in samples)
    dropped = DroppedClips(0.5, at_least=len(dataset), batch_size=1)
    with pytest.raises(RuntimeError, match="samples could not be read"):
        dropped.count([{"dropped": [sample]} for sample in samples])


def test_f39_stalled_drive_is_tried_again(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    write_png(path, RGB)
    failures = [OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale handle")]
    read_bytes = type(path).read_bytes

    def stall(self):
        if failures:
            raise failures.pop()
        return read_bytes(self)

    monkeypatch.setattr(type(path), "read_bytes", stall)
    monkeypatch.setattr(errors, "RETRY_PAUSES_S", (0.0, 0.0))
    assert np.array_equal(read_image(path), RGB)
    failures += [OSError(errno.EIO, "Input/output error")] * 3
    with pytest.raises(BadFileError, match="Input/output error"):
        read_image(path)


@pytest.mark.parametrize(
    ("image", "name"), [(RGB / 255.0, "a.png"), (RGB[..., 0], "a.png"), (RGB, "a.jpg")]
)
def test_only_8_bit_rgb_png_is_written(tmp_path, image, name):
    with pytest.raises(ValueError, match=name):
        write_png(tmp_path / name, image)
    assert list(tmp_path.iterdir()) == []


def test_list_frames(tmp_path):
    for name in ("2.png", "10.PNG", "1.jpg", "notes.txt", ".partial-3.png"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    exts = [".png", ".jpg"]
    assert list(list_frames(tmp_path, exts)) == ["1", "10", "2", "loop"]
    assert list_frames(tmp_path / "absent", exts) == {}
    (tmp_path / "1.png").touch()
    with pytest.raises(DataSetError, match=r"1\.png and 1\.jpg have the same name"):
        list_frames(tmp_path, exts)
    with pytest.raises(BadFileError, match="loop"):
        read_image(tmp_path / "loop.png")
