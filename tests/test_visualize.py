"""A sequence is drawn from what its folder holds, in a file small enough to be sent."""

import json

import av
import cv2
import numpy as np
import pytest

from scripts.visualize import main
from src.data.description import read_description, write_description
from src.data.errors import DataSetError
from src.data.frames import write_png
from src.data.video import read_video
from src.pictures.animation import open_result, video_pages, write_small, write_video
from src.pictures.panels import GAP_PX
from src.pictures.sequence_view import draw_frames, draw_strip, open_sequence, spike_images
from tests.data_cases import write_miniature

SIZE = (64, 96)


@pytest.fixture(scope="module", params=["per frame", "stream", "voxels"])
def sequence(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("view") / "mini"
    write_miniature(root, sequences=1, val_sequences=0, frames=4, n=7, spikes=request.param)
    return root / "train" / "seq_000", request.param


def spike_sequence(tmp_path):
    root = write_miniature(tmp_path / "mini", sequences=1, val_sequences=0, frames=4, n=7)
    return root / "train" / "seq_000"


def grey_of(image, size):
    return cv2.resize(image[..., 0].astype(np.float32), size, interpolation=cv2.INTER_AREA)


def test_what_is_drawn(sequence):
    folder, kind = sequence
    view = open_sequence(folder, 32)
    assert view.name == "train/seq_000"
    images = spike_images(view, 1)
    sharp = cv2.cvtColor(view.recording.read_sharp(1), cv2.COLOR_RGB2GRAY).astype(np.float32)
    sharp = cv2.resize(sharp, (48, 32), interpolation=cv2.INTER_AREA)
    assert np.corrcoef(grey_of(images.tfp.image, (48, 32)).ravel(), sharp.ravel())[0, 1] > 0.9
    assert (images.tfi is None) == (kind == "voxels")
    if images.tfi is not None:
        # With the threshold as gain the images have the brightness of the scene.
        assert abs(images.tfp.image.mean() - sharp.mean()) < 12
        assert np.corrcoef(images.tfi.image[..., 0].ravel(), sharp.ravel())[0, 1] > 0.7
    assert "32 bins in 9 groups" in images.bins.caption
    columns = 4 if kind == "voxels" else 5
    strip = draw_strip(view, [0, 2], 150)
    assert strip.shape[1] == columns * 150 + (columns + 1) * GAP_PX
    assert strip.shape[0] > 2 * 150 * SIZE[0] // SIZE[1]


def test_the_spikes_run_through_the_exposure(tmp_path):
    view = open_sequence(spike_sequence(tmp_path), 8)
    first, last = (spike_images(view, 1, at) for at in (0.1, 0.9))
    assert first.bin_now.caption.startswith("bin 0 of 8")
    assert last.bin_now.caption.startswith("bin 7 of 8")
    assert not np.array_equal(first.tfp.image, last.tfp.image)
    counts = view.recording.read_counts(1)
    expected = np.rint(counts[7] * (255 / counts.max()))
    assert np.array_equal(last.bin_now.image[..., 1], expected)
    pages = list(draw_frames(view, [0, 1], 3, 120))
    assert len(pages) == 6
    assert len({page.shape for page in pages}) == 1
    panel = np.s_[80:100, 2 * 126 + 10 : 2 * 126 + 110]  # in the sharp frame: still for 3 pages
    assert np.array_equal(pages[0][panel], pages[2][panel])
    assert not np.array_equal(pages[0][panel], pages[3][panel])


def test_the_tick_of_the_sharp_frame_is_whole(tmp_path):
    """7 / 240 s and 12.5 / 240 s are no whole ticks of 1,920 per second to the last digit."""
    folder = spike_sequence(tmp_path)
    rows = [f"{k},{7 * k / 240},{7 * (k + 1) / 240},{(7 * k + 3) / 240}" for k in range(4)]
    table = "\n".join(["frame_idx,t0[s],t1[s],t_sharp[s]", *rows])
    (folder / "exposures.csv").write_text(table + "\n")
    view = open_sequence(folder, 32)
    for i in range(4):
        assert spike_images(view, i).tfi.caption.startswith("TFI, tick 24,")


def test_linear_light_is_shown_with_the_camera_curve(tmp_path):
    folder = spike_sequence(tmp_path)
    before = spike_images(open_sequence(folder, 32), 1).tfp.image
    root = folder.parents[1]
    description = read_description(root)
    (root / "dataset.yaml").unlink()
    changes = {"transfer": "linear", "fingerprint": ()}
    write_description(root, type(description)(**{**vars(description), **changes}))
    after = spike_images(open_sequence(folder, 32), 1).tfp.image
    assert np.abs(after - 255 * (before / 255) ** (1 / 2.2)).max() <= 3


def test_folders_that_are_no_sequence(tmp_path):
    with pytest.raises(DataSetError, match="no folder blur in it"):
        open_sequence(tmp_path, 32)
    with pytest.raises(DataSetError, match="no such folder"):
        open_sequence(tmp_path / "nowhere", 32)
    folder = spike_sequence(tmp_path)
    for path in (folder / "sharp").iterdir():
        path.unlink()
    with pytest.raises(DataSetError, match="000000: no sharp frame of this name"):
        open_sequence(folder, 32)


def flat_pages(width, number=5):
    rng = np.random.default_rng(0)
    return (rng.integers(0, 256, (width, 2 * width + 1, 3), dtype=np.uint8) for _ in range(number))


def test_a_video_plays_everywhere_or_keeps_every_value(tmp_path):
    pages = [np.full((41, 61, 3), (40 * i, 100, 20), np.uint8) for i in range(5)]
    pages[1][:20] = (0, 0, 255)
    for lossless in (False, True):
        path = tmp_path / "pages.mp4"
        assert write_video(path, pages, 29.97, lossless=lossless) == (5, (42, 62))
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert float(stream.average_rate) == pytest.approx(29.97, abs=1e-3)
            assert stream.codec.name == "h264"
            assert stream.pix_fmt == ("gbrp" if lossless else "yuv420p")
            assert lossless or stream.codec_context.colorspace == 1  # BT.709
        read = [image[:41, :61].astype(int) for image in read_video(path)]
        off = max(np.abs(image - page).mean() for image, page in zip(read, pages, strict=True))
        assert off == 0 if lossless else 0 < off < 4


def test_a_file_is_made_smaller_until_it_fits(tmp_path):
    path = tmp_path / "pages.png"
    written = write_small(path, flat_pages, 400, 8.0, 300_000)
    assert written.num_bytes == path.stat().st_size <= 300_000
    assert 150 < written.size[0] < 400
    with pytest.raises(ValueError, match="at most 0.001 MB is wanted"):
        write_small(path, flat_pages, 400, 8.0, 1000)
    assert path.stat().st_size == written.num_bytes  # what was there is kept
    assert [p.name for p in tmp_path.iterdir()] == ["pages.png"]
    with pytest.raises(ValueError, match=r"\.mp4"):
        write_small(tmp_path / "pages.avi", flat_pages, 100, 8.0, 1000)


def test_a_video_of_what_was_restored(tmp_path, monkeypatch, capsys):
    """A video goes in as test.py takes it, and a video of the same rate comes out."""
    frames = [np.full((40, 64, 3), 50 + 10 * i, np.uint8) for i in range(4)]
    write_video(tmp_path / "in.mp4", frames, 12.0, lossless=True)
    for i, frame in enumerate(frames):
        write_png(tmp_path / f"out/{i:06d}.png", frame + 100)
    content = {
        "output": str(tmp_path / "out"),
        "frames": {"in": 4},
        "inputs": {"blurry": str(tmp_path / "in.mp4"), "sharp": None},
    }
    reports = tmp_path / "outputs/metrics"
    reports.mkdir(parents=True)
    (reports / "test_1.json").write_text(json.dumps(content))
    result = open_result(tmp_path / "out", reports)
    assert result.rate_hz == 12
    pages = list(video_pages(result, side_by_side=True))
    assert len(pages) == 4
    assert pages[2][-1, [10, -10], 0].tolist() == [70, 170]
    assert len(list(video_pages(result, side_by_side=False))) == 4
    with pytest.raises(ValueError, match="nor the --output of a test"):
        open_result(tmp_path, reports)
    monkeypatch.setattr("scripts.visualize.resolve", lambda path: tmp_path / path)
    arguments = [str(tmp_path / "out"), "--video", "made.mp4", "--side_by_side"]
    assert main(arguments) == 0
    assert "4 picture(s)" in capsys.readouterr().out
    assert len(list(read_video(tmp_path / "made.mp4"))) == 4


def test_command(sequence, tmp_path, capsys):
    folder, _ = sequence
    for name in ("out.jpg", "out.mp4"):
        arguments = [str(folder), "--output", str(tmp_path / name), "--panel", "120"]
        assert main([*arguments, "--steps", "2", "--frames", "1", "3"]) == 0
    printed = capsys.readouterr().out
    assert "out.jpg: 1 picture(s) of" in printed
    assert "out.mp4: 4 picture(s) of" in printed
    assert "MB" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jpg", "out.mp4"]
    assert main([str(folder), "--frames", "9", "--output", str(tmp_path / "a.jpg")]) == 1
    assert "no usable frames [9]; there are 0 to 3" in capsys.readouterr().err
    assert main([str(folder), "--format", "video", "--output", str(tmp_path / "a.jpg")]) == 1
    assert "a.jpg: the name has to end in one of .mp4" in capsys.readouterr().err
    assert main([str(folder), "--output", str(tmp_path / "a.xyz")]) == 1
    assert "a.xyz: the name has to end in one of .png" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 1
    with pytest.raises(SystemExit):
        main([str(folder), "--steps", "0"])
