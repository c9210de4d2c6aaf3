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
from src.engine.progress import DroppedClips

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


SCENE = cv2.GaussianBlur(
    np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8), (7, 7), 2
)
MOTION = b"\0\0\0\x18ftypmp42" + 40_000 * b"v"  # what a phone appends


def encoded(kind):
    """The scene as PNG, BMP or JPEG; a JPEG may be progressive or hold a thumbnail."""
    options = {"progressive": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]}.get(kind, [])
    suffix = f".{kind}" if kind in ("png", "bmp") else ".jpg"
    data = cv2.imencode(suffix, SCENE[..., ::-1], options)[1].tobytes()
    if kind == "thumbnail":
        thumbnail = cv2.imencode(".jpg", SCENE[::4, ::4])[1].tobytes()
        length = (2 + 6 + len(thumbnail)).to_bytes(2, "big")
        data = data[:2] + b"\xff\xe1" + length + b"Exif\0\0" + thumbnail + data[2:]
    return data


def zeroed(data):
    """What a download leaves that reserved the file: zeros from the middle on, the end is there."""
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2 - 12) + data[-12:]


def cut_at_the_thumbnail(data):
    return data[: data.index(b"\xff\xd9") + 2]


@pytest.mark.parametrize("kind", ["png", "bmp", "jpg", "progressive", "thumbnail"])
@pytest.mark.parametrize("tail", [b"", MOTION, b"\0" * 3])
def test_bytes_after_the_end_of_an_image_do_not_count(tmp_path, kind, tail):
    path = tmp_path / "a"
    path.write_bytes(encoded(kind) + tail)
    assert not is_cut_short(path)
    assert np.abs(read_image(path).astype(int) - SCENE).max() <= (
        0 if kind in ("png", "bmp") else 40
    )


@pytest.mark.parametrize(
    ("kind", "damage", "is_cut"),
    [
        *((kind, lambda data: data[:-20], True) for kind in ("png", "bmp", "jpg", "progressive")),
        *((kind, lambda data: data[:60], True) for kind in ("png", "bmp", "jpg", "thumbnail")),
        *((kind, lambda data: data[:-9], True) for kind in ("png", "jpg")),
        ("thumbnail", cut_at_the_thumbnail, True),
        ("thumbnail", lambda data: cut_at_the_thumbnail(data) + data[-300:-50], True),
        ("jpg", lambda data: data[: len(data) // 2] + 60 * b"text", True),
        *((kind, zeroed, False) for kind in ("png", "jpg", "progressive")),
        ("png", lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:], False),
        ("png", lambda data: b"", True),
        ("png", lambda data: b"any other file", False),
    ],
)
def test_f33_damaged_files_are_named_by_every_reader(tmp_path, kind, damage, is_cut):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(damage(encoded(kind)))
    assert is_cut_short(path) == is_cut
    with pytest.raises(BadFileError, match=rf"a\.{kind}: (truncated|damaged)") as error:
        read_image(path)
    assert error.value.path == path


def test_files_that_are_no_images_are_called_what_they_are(tmp_path):
    path = tmp_path / "a.png"
    assert is_cut_short(path)
    with pytest.raises(BadFileError, match=r"a\.png: cannot be read: No such file"):
        read_image(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    with pytest.raises(BadFileError, match="is a pointer of Git LFS"):
        read_image(path)


def test_orientation_tags_are_ignored(tmp_path):
    """Pixels are taken as stored, so that frames and spikes stay in one orientation."""
    turned = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06" + bytes(6)
    data, path = encoded("jpg"), tmp_path / "a.jpg"
    path.write_bytes(data[:2] + b"\xff\xe1\0" + bytes([len(turned) + 2]) + turned + data[2:])
    assert cv2.imread(str(path)).shape == (64, 48, 3)  # OpenCV would turn it
    assert read_image(path).shape == (48, 64, 3)


def test_f36_grey_and_opaque_frames_are_taken(tmp_path):
    image = read_image(encode(tmp_path / "a.png", RGB[..., 0]))
    assert np.array_equal(image, np.repeat(RGB[..., :1], 3, axis=2))
    opaque = np.dstack([RGB[..., ::-1], np.full((9, 7), 255, np.uint8)])
    assert np.array_equal(read_image(encode(tmp_path / "b.png", opaque)), RGB)
    opaque[3, 3, 3] = 254
    with pytest.raises(BadFileError, match=r"b\.png: has transparent pixels"):
        read_image(encode(tmp_path / "b.png", opaque))


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
