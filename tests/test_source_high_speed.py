"""High-speed frames: order, gaps, videos, and what cannot be read."""

import pickle

import cv2
import numpy as np
import pytest

from src.data.errors import BadFileError, DataSetError
from src.data.frames import write_png
from src.prepare.sources.simulate import image_size, open_frames
from tests.source_cases import Drift, write_video

SIZE = (48, 64)


def frames(count):
    scene = Drift(5, SIZE)
    return [scene.at(j) for j in range(count)]


def write_folder(folder, names):
    for name, frame in zip(names, frames(len(names)), strict=True):
        write_png(folder / f"{name}.png", frame)
    return folder


def test_frames_come_in_order_of_their_numbers(tmp_path):
    names = [f"shot_{number}" for number in (8, 9, 10, 11)]  # as text 10 comes before 8
    found = open_frames(write_folder(tmp_path / "a", names))
    assert [path.stem for path in found.files] == names
    assert (len(found), found.size) == (4, SIZE)
    assert found.num_bytes == sum(path.stat().st_size for path in found.files)
    assert all(np.array_equal(a, b) for a, b in zip(found, frames(4), strict=True))
    again = pickle.loads(pickle.dumps(found))  # noqa: S301 (our own bytes)
    assert np.array_equal(next(iter(again)), frames(1)[0])


def test_f34_missing_numbers_are_named(tmp_path):
    folder = write_folder(tmp_path / "a", ["000047", "000048", "000050", "000055"])
    with pytest.raises(DataSetError, match="images 49, 51 to 54 are missing between 47 and 55"):
        open_frames(folder)


def test_many_gaps_are_counted(tmp_path):
    folder = write_folder(tmp_path / "a", [f"{2 * i:03d}" for i in range(20)])
    with pytest.raises(DataSetError, match="19 and 9 more are missing"):
        open_frames(folder)


def test_the_first_number_can_be_asked_for(tmp_path):
    folder = write_folder(tmp_path / "a", ["0001", "0002"])
    assert len(open_frames(folder)) == 2
    with pytest.raises(DataSetError, match="the first image has number 1, 0 is needed"):
        open_frames(folder, first_number=0)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no images"),
        (["first", "second"], "does not end in a number"),
        (["a_1", "b_1"], r"numbers \[1\] exist under several names"),
    ],
)
def test_folders_that_are_no_recording(tmp_path, names, message):
    (tmp_path / "a").mkdir()
    write_folder(tmp_path / "a", names)
    with pytest.raises(DataSetError, match=message):
        open_frames(tmp_path / "a")


def test_f33_a_broken_frame_is_named_when_it_comes(tmp_path):
    folder = write_folder(tmp_path / "a", ["0", "1", "2"])
    path = folder / "1.png"
    path.write_bytes(path.read_bytes()[:300])
    reader = iter(open_frames(folder))
    next(reader)
    with pytest.raises(BadFileError, match=r"1\.png: truncated PNG"):
        next(reader)


def test_f36_a_frame_of_another_size_is_named(tmp_path):
    folder = write_folder(tmp_path / "a", ["0", "1"])
    write_png(folder / "2.png", Drift(1, (32, 64)).at(0))
    with pytest.raises(BadFileError, match=r"2\.png: is \(32, 64\), the first frame"):
        list(open_frames(folder))


def test_size_without_decoding(tmp_path):
    write_folder(tmp_path, ["1"])
    assert image_size(tmp_path / "1.png") == SIZE
    cv2.imwrite(str(tmp_path / "2.jpg"), frames(1)[0])
    assert image_size(tmp_path / "2.jpg") == SIZE
    (tmp_path / "3.png").write_bytes(b"no image")
    with pytest.raises(BadFileError, match="not an image"):
        image_size(tmp_path / "3.png")


def test_a_video_is_read_in_rgb(tmp_path):
    path = tmp_path / "a.mp4"
    red = np.zeros((*SIZE, 3), np.uint8)
    red[..., 0] = 200
    write_video(path, [*frames(6), red])
    found = open_frames(path)
    assert (len(found), found.size) == (7, SIZE)
    read = list(found)
    assert np.abs(read[3].astype(int) - frames(4)[3]).mean() < 12  # lossy
    assert read[6][..., 0].mean() > 150
    assert read[6][..., 2].mean() < 50
    assert len(list(pickle.loads(pickle.dumps(found)))) == 7  # noqa: S301 (our own bytes)


def test_f54_a_video_with_other_frames_than_it_states(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    write_video(path, frames(6))
    found = open_frames(path)
    for stated, message in ((9, "states 9 frames, but only 6"), (4, "states 4 frames, but more")):
        object.__setattr__(found, "num_frames", stated)
        with pytest.raises(BadFileError, match=message):
            list(found)


def test_f54_a_file_that_is_no_video(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"nothing" * 100)
    with pytest.raises(BadFileError, match=r"a\.mp4: cannot be decoded as a video"):
        open_frames(path)
