import pytest

from src.data.errors import BadFileError
from src.data.exposures import (
    Exposure,
    frame_index,
    read_alignment,
    read_exposures,
    window_ticks,
    write_alignment,
    write_exposures,
)


def test_worked_row():
    assert window_ticks(22 / 240, 33 / 240, 1920) == (176, 264)
    assert window_ticks(0.091667, 0.137500, 1920) == (176, 264)  # six decimals, as in tables


@pytest.mark.parametrize(
    ("t0", "t1", "expected"),
    [
        (0.0, 4.0, (0, 4)),
        (0.5, 3.5, (1, 4)),  # tick 0 is before 0.5, tick 3 before 3.5
        (0.1, 0.9, None),  # no tick in between
        (1.04, 2.0, (1, 2)),  # within rounding of tick 1
        (1.06, 2.0, None),
        (-1.0, 2.0, (-1, 2)),  # the stream decides whether that can be
    ],
)
def test_windows_are_half_open(t0, t1, expected):
    if expected is None:
        with pytest.raises(ValueError, match="holds no tick at 1"):
            window_ticks(t0, t1, 1)
    else:
        assert window_ticks(t0, t1, 1) == expected


def test_what_cannot_be_is_refused(tmp_path):
    some = {0: Exposure(0.0, 1.0), 1: Exposure(1.0, 2.0, t_sharp=1.5)}
    for call, message in (
        (lambda: window_ticks(5, 5, 1920), "exposure ends before it starts: t0=5, t1=5"),
        (lambda: frame_index("first"), "does not end in a number"),
        (lambda: frame_index("12.500"), "ends in a decimal number; rename it"),
        (lambda: frame_index("cam_1700000000.033333"), "ends in a decimal number; rename it"),
        (lambda: write_exposures(tmp_path / "a.csv", some), "of some frames and not of others"),
        (lambda: write_alignment(tmp_path / "log.txt", {"a": some}), "a frame 0: .* not counted"),
        (lambda: read_alignment([tmp_path / "x.txt"]), r"x\.txt: .*run scripts/prepare_data\.py"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert list(tmp_path.iterdir()) == []
    assert [frame_index(name) for name in ("000012", "img_7", "4k_0003")] == [12, 7, 3]


def test_abutting_windows_share_no_tick():
    edges = [k * 11 / 240 for k in range(400)]
    windows = [window_ticks(*pair, 1920) for pair in zip(edges, edges[1:], strict=False)]
    assert windows == [(88 * k, 88 * k + 88) for k in range(399)]


@pytest.mark.parametrize(
    ("unit", "t0", "t1"),
    [("s", "0.5", "0.75"), ("ms", "500", "750"), ("us", "500000", "750000"), ("ticks", "2", "3")],
)
def test_units(tmp_path, unit, t0, t1):
    path = tmp_path / "exposures.csv"
    index = "000007" if unit == "s" else "7.0"  # as pandas writes it
    path.write_text(f"frame_idx, t0[{unit}], t1[{unit}]\n\n{index},{t0},{t1}\n", "utf-8-sig")
    assert read_exposures(path, 4.0) == {7: Exposure(pytest.approx(0.5), pytest.approx(0.75))}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty; write lines"),
        ("frame_idx,t0,t1\n0,0,1\n", r"write the header 'frame_idx,t0\[s\],t1\[s\]'"),
        ("frame_idx,t0[s],t1[ms]\n0,0,1\n", "the same for all"),
        ("frame_idx,t1[s],t0[s]\n0,0,1\n", "header is"),
        ("frame_idx,t0[h],t1[h]\n0,0,1\n", "one of s, ms, us, ticks"),
        ("frame_idx,t0[ticks],t1[ticks]\n0,0,1\n", "ticks_per_second is not known"),
        ("frame_idx,t0[s],t1[s]\n0,0\n", "line 2: '0,0' is not 3 values"),
        ("frame_idx,t0[s],t1[s]\n0,zero,1\n", "line 2"),
        ("frame_idx,t0[s],t1[s]\n0.5,0,1\n", "line 2"),
        ("frame_idx,t0[s],t1[s]\n1.e999,0,1\n", "line 2"),
        ("frame_idx,t0[s],t1[s]\n0,0,nan\n", "not finite"),
        ("frame_idx,t0[s],t1[s]\n4,2,1\n", "line 2: frame 4: exposure ends before it starts"),
        ("frame_idx,t0[s],t1[s]\n0,0,1\n000,1,2\n", "line 3: frame 0: is given twice"),
        ("frame_idx,t0[s],t1[s],t_sharp[s]\n0,0.0,1.0,1.5\n", "sharp frame lies outside"),
        ("frame_idx,t0[s],t1[s],t_sharp[s]\n0,0.0,1.0\n", "line 2: .* is not 4 values"),
        ("frame_idx,t0[s],t1[s],t_sharp[ms]\n0,0.0,1.0,0.5\n", "the same for all"),
        ("frame_idx,t0[s],t1[s],t2[s]\n0,0.0,1.0,0.5\n", "t_sharp"),
    ],
)
def test_exposures_errors(tmp_path, text, expected):
    (tmp_path / "exposures.csv").write_text(text)
    with pytest.raises(BadFileError, match=expected) as error:
        read_exposures(tmp_path / "exposures.csv", None)
    assert "exposures.csv" in str(error.value)


def test_log_round_trip_is_exact_and_written_once(tmp_path):
    records = {
        "val/b": {10: Exposure(1 / 3, 2 / 3, 5), 9: Exposure(0.0, 0.1, 0)},
        "train/a": {0: Exposure(22 / 240, 33 / 240, 2**40)},
    }
    path = tmp_path / "align_x.txt"
    assert write_alignment(path, records)
    assert path.read_text().splitlines()[:2] == [
        "sequence,frame_idx,t0,t1,event_count",
        f"train/a,0,{22 / 240!r},0.1375,{2**40}",
    ]
    log = read_alignment([path])
    assert log.records == records
    before = path.stat().st_mtime_ns
    assert not write_alignment(path, dict(reversed(records.items())))
    assert path.stat().st_mtime_ns == before


def test_log_names_with_and_without_split(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("sequence,frame_idx,t0,t1,event_count\na,0,0,1,3\ntrain/a,0,0,2,3\n")
    log = read_alignment([path])
    assert log.of_sequence("train", "a")[0].t1 == 2
    assert log.of_sequence("val", "a")[0].t1 == 1
    assert log.of_sequence("val", "c") == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seq,frame_idx,t0,t1,event_count\n", "needed are"),
        ("sequence,frame_idx,t0,t1,event_count\na,0,0,1\n", "line 2"),
        ("sequence,frame_idx,t0,t1,event_count\na,0,0,1,2\na,0,0,1,2\n", "line 3: a frame 0"),
    ],
)
def test_log_errors(tmp_path, text, expected):
    (tmp_path / "log.txt").write_text(text)
    with pytest.raises(BadFileError, match=expected):
        read_alignment([tmp_path / "log.txt"])


def test_the_instant_of_the_sharp_frame_is_read_and_written(tmp_path):
    path = tmp_path / "exposures.csv"
    path.write_text("frame_idx,t0[ms],t1[ms],t_sharp[ms]\n2,91.5,137.5,112.5\n")
    found = read_exposures(path, None)
    assert found == {
        2: Exposure(pytest.approx(0.0915), pytest.approx(0.1375), t_sharp=pytest.approx(0.1125))
    }
    write_exposures(path, found)
    assert path.read_text().startswith("frame_idx,t0[s],t1[s],t_sharp[s]\n2,0.0915")
    assert read_exposures(path, None) == found
    write_exposures(path, {0: Exposure(0.1, 0.3)})
    assert path.read_text() == "frame_idx,t0[s],t1[s]\n0,0.1,0.3\n"
    assert read_exposures(path, None) == {0: Exposure(0.1, 0.3)}
