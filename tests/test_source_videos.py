"""Videos as sharp frames: what their files state is read, or refused with the way out."""

import av
import numpy as np
import pytest

from src.data.errors import BadFileError
from src.prepare.sources.high_speed import open_frames
from tests.source_cases import Drift, add_silence, copy_video, prepare, write_config, write_video

SIZE = (48, 64)


def frames_of(count, repeat=1):
    scene = Drift(0, SIZE)
    return [scene.at(j) for j in range(count) for _ in range(repeat)]


def test_frames_are_those_of_the_encoder_without_loss_of_time(tmp_path):
    write_video(tmp_path / "a.mp4", frames_of(6), pix_fmt="yuv444p", qp="1")
    found = open_frames(tmp_path / "a.mp4")
    assert (len(found), found.size, found.notes) == (6, SIZE, ())
    errors = [np.abs(a.astype(int) - b).mean() for a, b in zip(found, frames_of(6), strict=True)]
    assert max(errors) < 2


BT2020 = "colorprim=bt2020:colormatrix=bt2020nc"
STEADY_THEN_SLOW = [375 * j for j in range(60)] + [375 * 60 + 3000 * j for j in range(22)]
MISLEADING = {
    "interlaced": (15, {"flags": "+ildct+ilme", "x264-params": "tff=1"}, "is interlaced .*bwdif"),
    "HLG": (
        *(3, {"pix_fmt": "yuv420p10le", "x264-params": f"{BT2020}:transfer=arib-std-b67"}),
        r"states HLG colours.*SDR \(BT.709\)",
    ),
    "PQ": (3, {"x264-params": "transfer=smpte2084"}, "states PQ colours"),
    "10 bits of BT.2020": (
        *(3, {"pix_fmt": "yuv420p10le", "x264-params": BT2020}),
        "states BT.2020 colours",
    ),
    "two rates": (
        *(82, {"times": STEADY_THEN_SLOW}),
        r"from frame 60 to 61 it is 3000 steps .*usually 375.*start_frame=0:end_frame=61",
    ),
    "a frame lost": (9, {"times": [3600 * j for j in (0, 1, 2, 3, 5, 6, 7, 8, 9)]}, "not evenly"),
}


@pytest.mark.parametrize("name", MISLEADING)
def test_f54_what_would_mislead_is_refused_by_name(tmp_path, name):
    count, options, message = MISLEADING[name]
    write_video(tmp_path / "a.mp4", frames_of(count), **options)
    with pytest.raises(BadFileError, match=message):
        open_frames(tmp_path / "a.mp4")


@pytest.mark.parametrize("ending", ["mp4", "webm"])
def test_repeated_frames_are_refused_and_a_still_scene_is_not(tmp_path, ending):
    write_video(tmp_path / f"a.{ending}", frames_of(10, repeat=4))
    with pytest.raises(BadFileError, match=r"\d+ of 40 frames repeat .*mpdecimate"):
        open_frames(tmp_path / f"a.{ending}")
    write_video(tmp_path / f"b.{ending}", [*frames_of(1, repeat=30), *frames_of(10)])
    assert open_frames(tmp_path / f"b.{ending}").notes == ()
    write_video(tmp_path / f"c.{ending}", [*frames_of(15), *frames_of(15)[-1:], *frames_of(30)])
    assert "1 of 46 frames repeat" in open_frames(tmp_path / f"c.{ending}").notes[0]


def test_clocks_of_whole_milliseconds_and_other_facts_are_no_fault(tmp_path):
    """240 frames per second in Matroska: 4 or 5 ms apart; 10 bits without stated colours."""
    times = [375 * j for j in range(12)]
    write_video(tmp_path / "a.mkv", frames_of(12), pix_fmt="yuv420p10le", times=times)
    assert open_frames(tmp_path / "a.mkv").notes == (
        "10 bits per value, taken as SDR: the file does not state its colours",
    )


def test_a_rotation_is_applied(tmp_path):
    if not hasattr(av.video.stream.VideoStream, "set_display_rotation"):
        pytest.skip("av before 17.1 cannot write a rotation; it reads one")
    write_video(tmp_path / "a.mp4", frames_of(3))
    copy_video(tmp_path / "a.mp4", tmp_path / "b.mp4", rotation=90)
    upright, turned = open_frames(tmp_path / "a.mp4"), open_frames(tmp_path / "b.mp4")
    assert (upright.size, turned.size) == (SIZE, SIZE[::-1])
    assert turned.notes == ("turned by 90 degrees, as the file states",)
    assert np.array_equal(next(iter(turned)), np.rot90(next(iter(upright))))


def test_a_title_that_is_not_utf8_is_no_fault(tmp_path):
    """FFmpeg writes "Lavf" and its version as the encoder; old programs wrote Latin-1 and GBK."""
    path = tmp_path / "a.mkv"
    write_video(path, frames_of(3))
    whole = path.read_bytes()
    assert b"Lavf" in whole
    path.write_bytes(whole.replace(b"Lavf", b"\xb3\xb5\xb3\xb5"))
    assert len(open_frames(path)) == 3


COUNTED = {
    "webm from a pipe": lambda d: write_video(d / "b.webm", frames_of(30), pipe=True),
    "sound that is longer": lambda d: copy_video(d / "a.mp4", d / "b.mkv", sound_s=4),
    "cut without encoding": lambda d: copy_video(d / "a.mp4", d / "b.mp4", start=0.48),
}


@pytest.mark.parametrize("name", COUNTED)
def test_frames_are_counted_by_decoding(tmp_path, name):
    write_video(tmp_path / "a.mp4", frames_of(30), g="6", bf="0")
    COUNTED[name](tmp_path)
    (path,) = tmp_path.glob("b.*")
    found = open_frames(path)
    is_cut = name == "cut without encoding"
    assert len(found) == len(list(found)) == (18 if is_cut else 30)
    stated = "its header states 30 frames, 18 are decoded and used"
    assert found.notes == ((stated,) if is_cut else ())


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_f54_what_a_decoder_would_conceal_is_damage(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    write_video(path, frames_of(40), g="10")
    with av.open(str(path)) as container:  # the second half of one packet becomes zeros
        packet = [bytes(packet) for packet in container.demux(video=0) if packet.size][20]
    half, whole = len(packet) // 2, path.read_bytes()
    assert packet in whole
    path.write_bytes(whole.replace(packet, packet[:half] + bytes(len(packet) - half)))
    with pytest.raises(BadFileError, match=r"damaged.*get it again, or give the good part"):
        open_frames(path)


@pytest.mark.parametrize(
    ("ending", "stated"), [("avi", "are decoded and used"), ("mkv", "states 1.60 s, its")]
)
def test_f54_a_recording_that_was_cut_off_is_used_with_a_note(tmp_path, ending, stated):
    """No frame of the rest is damaged; without a count in its header only its length tells."""
    path = tmp_path / f"a.{ending}"
    write_video(path, frames_of(40))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    (note,) = open_frames(path).notes
    assert stated in note


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"nothing" * 100, "cannot be opened as a video"),
        (b"", "cannot be opened as a video"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a pointer of Git LFS"),
        (b"<!DOCTYPE html><html>sign in</html>", "a web page in place of the data"),
    ],
)
def test_f54_what_is_no_video_is_named(tmp_path, data, message):
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    with pytest.raises(BadFileError, match=rf"a\.mp4: .*{message}"):
        open_frames(path)


def test_rows_from_bottom_to_top_are_read_as_they_show(tmp_path):
    """Raw frames in .avi: what OpenCV and players show."""
    write_video(tmp_path / "a.avi", frames_of(3), codec="rawvideo", pix_fmt="bgr24")
    found = open_frames(tmp_path / "a.avi")
    assert all(np.array_equal(a, b) for a, b in zip(found, frames_of(3), strict=True))


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        add_silence(container, 1)
    with pytest.raises(BadFileError, match="holds no pictures"):
        open_frames(tmp_path / "a.mkv")


def test_a_refused_video_ends_the_command_before_anything_is_written(tmp_path, capsys):
    write_video(tmp_path / "in/train/a.mp4", frames_of(15), **MISLEADING["interlaced"][1])
    config = write_config(tmp_path, tmp_path / "ours")
    options = ("--frames_averaged", 3, "--frames_per_second", 240)
    assert prepare(config, "folders", tmp_path / "in", *options) == 1
    assert "train/a.mp4: is interlaced (15 of 15 frames)" in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()
