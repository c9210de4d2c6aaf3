import dataclasses
import logging
import shutil

import numpy as np
import pytest

from src.data.description import DataDescription
from src.data.errors import BadFileError, DataSetError
from src.data.exposures import AlignmentLog, read_alignment
from src.data.recordings import Recording
from src.data.scanning import scan_sequence, scan_split
from src.data.spikes.spike_dat import SpikeGeometry, SpikeSidecar, write_sidecar
from tests.data_cases import align, copy_root, scan, settings_of, write_miniature

GEOMETRY = SpikeGeometry(32, 48)


@pytest.fixture(scope="module")
def streams(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    return write_miniature(folder, sequences=1, val_sequences=0, frames=4, spikes="stream")


def dropped(result):
    return {entry.frame: entry.reason for entry in result.dropped}


def unmatched(result):
    return {(entry.frame, entry.reason) for entry in result.unmatched}


def test_frames_are_joined_by_name(root):
    result = scan(root / "train/seq_000")
    assert [frame.name for frame in result.frames] == [f"{k:06d}" for k in range(4)]
    for k, frame in enumerate(result.frames):
        assert frame.index == k
        assert frame.t0 == pytest.approx(7 * k / 240, abs=1e-12)
        assert {p.stem for p in (frame.blurry, frame.sharp, frame.spikes.path)} == {frame.name}
        assert (frame.spikes.start, frame.spikes.stop) == (0, 56)
    assert (result.dropped, result.unmatched) == ((), ())


def test_f34_missing_files_in_the_middle_are_found_by_name(root):
    folder = root / "train/seq_000"
    (folder / "sharp/000001.png").unlink()
    (folder / "spike/000002.dat").unlink()
    (folder / "blur/000000.png").unlink()
    result = scan(folder)
    assert [frame.name for frame in result.frames] == ["000003"]
    assert dropped(result) == {
        "000001": "no sharp frame of this name",
        "000002": "no spike file of this name",
    }
    assert unmatched(result) == {
        ("000000", "sharp frame"),
        ("000000", "spike file"),
        ("000000", "exposure"),
    }


def test_windows_are_ticks_of_the_stream_and_leaving_it_is_dropped_with_numbers(streams, tmp_path):
    folder = copy_root(streams, tmp_path / "root") / "train/seq_000"
    windows = [(frame.spikes.start, frame.spikes.stop) for frame in scan(folder).frames]
    assert windows == [(0, 56), (56, 112), (112, 168), (168, 224)]
    stream = folder / "spike/spike.dat"
    stream.write_bytes(stream.read_bytes()[: 223 * GEOMETRY.tick_bytes])
    assert dropped(scan(folder)) == {
        "000003": "exposure leaves the stream: [0.0875 s, 0.116667 s) is ticks [168, 224) of "
        "spike.dat, which has [0, 223)"
    }
    write_sidecar(folder / "spike", SpikeSidecar(32, 48))
    reason = "spike.dat is a stream, but ticks_per_second is not known"
    assert set(dropped(scan(folder)).values()) == {reason}


def test_f35_file_shorter_than_its_exposure(root):
    path = root / "train/seq_000/spike/000001.dat"
    path.write_bytes(path.read_bytes()[: 50 * GEOMETRY.tick_bytes])
    assert dropped(scan(root / "train/seq_000")) == {
        "000001": "exposure and spike file differ in length: [0.0291667 s, 0.0583333 s) is "
        "56 ticks, the file has 50"
    }


@pytest.mark.parametrize(("t1", "fits"), [(56.5, True), (55.4, True), (55, False), (57, False)])
def test_file_may_be_the_exposure_rounded_to_ticks(root, t1, fits):
    (root / "train/seq_000/exposures.csv").write_text(f"frame_idx,t0[ticks],t1[ticks]\n0,0,{t1}\n")
    result = scan(root / "train/seq_000")
    assert len(result.frames) == fits
    assert fits or "ticks, the file has 56" in dropped(result)["000000"]


def test_f35_size_that_is_no_whole_number_of_ticks(root):
    path = root / "train/seq_000/spike/000001.dat"
    path.write_bytes(path.read_bytes()[:-1])
    assert (
        "sizes that fit: 10560 (55 ticks), 10752 (56 ticks)"
        in dropped(scan(root / "train/seq_000"))["000001"]
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"spike_height": 48, "spike_width": 32}, "dataset.yaml .* says height: 48, width: 32"),
        ({"bit_order": "big"}, "says bit_order: big; correct"),
        ({"ticks_per_second": 20000}, "says ticks_per_second: 1920, dataset.yaml .* 20000"),
    ],
)
def test_description_and_sidecar_that_differ_are_refused(root, changes, expected):
    given = {"spike_height": 32, "spike_width": 48, "ticks_per_second": 1920, **changes}
    with pytest.raises(DataSetError, match=expected):
        scan_sequence(
            root / "train/seq_000", settings_of(root), DataDescription(source="x", **given)
        )


@pytest.mark.parametrize("stated", ["spike.yaml", "config.yaml", None])
@pytest.mark.parametrize("says_size", [True, False])
def test_what_a_sidecar_does_not_state_comes_from_the_description(root, stated, says_size):
    """A config.yaml of SpikeCV cannot say how the rows lie, so it contradicts nothing in it."""
    folder = root / "train/seq_000/spike"
    (folder / "spike.yaml").unlink()
    if stated is not None:
        names = ("height", "width") if stated == "spike.yaml" else ("spike_h", "spike_w")
        (folder / stated).write_text(f"{names[0]}: 32\n{names[1]}: 48\n")
    size = {"spike_height": 32, "spike_width": 48} if says_size or stated is None else {}
    said = DataDescription("x", ticks_per_second=1920, bit_order="big", flip_rows=False, **size)
    result = scan_sequence(folder.parent, settings_of(root), said)
    assert result.frames[0].spikes.geometry == SpikeGeometry(32, 48, "big", flip_rows=False)
    assert result.ticks_per_second == 1920


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda f: shutil.rmtree(f / "spike"), r"no \.dat files in spike and no \.npy files"),
        (lambda f: (f / "spike/spike.yaml").unlink(), r"spike/spike\.yaml with .* 'height: 250'"),
        (
            lambda f: (f / "spike/000002.yaml").write_text("height: 48\nwidth: 32\n"),
            r"000002\.dat: 1 problem.*\n.*its \.yaml differs",
        ),
        (lambda f: shutil.rmtree(f / "blur"), "blurry frames are needed there"),
        (lambda f: (f / "exposures.csv").unlink(), r"exposures\.csv: cannot be read"),
        (lambda f: (f / "blur/000003.png").rename(f / "blur/end.png"), "'end' does not end in a"),
        (lambda f: shutil.copy(f / "blur/000003.png", f / "blur/3.png"), r"numbered 3 exist"),
    ],
)
def test_sequences_that_cannot_be_understood(root, change, expected):
    change(root / "train/seq_000")
    with pytest.raises((BadFileError, DataSetError), match=expected):
        scan(root / "train/seq_000")


def test_voxels_without_spikes(tmp_path):
    root = write_miniature(tmp_path, sequences=1, val_sequences=0, frames=3, spikes="voxels")
    result = scan(root / "train/seq_000")
    assert len(result.frames) == 3
    recording = Recording("a", result.frames, 32)
    assert recording.spike_size == (32, 48)
    path = root / "train/seq_000/spike_vox/000001.npy"
    assert np.array_equal(recording.read_counts(1, (3, 5, 7, 9)), np.load(path)[:, 3:10, 5:14])
    np.save(path, np.zeros((32, 32, 40), np.uint8))
    recording = Recording("a", scan(root / "train/seq_000").frames, 32)
    with pytest.raises(BadFileError, match=r"000001\.npy: has shape .* \(32, 32, 48\) is needed"):
        recording.read_counts(1)


@pytest.mark.parametrize("crop", [None, (3, 5, 7, 9)])
@pytest.mark.parametrize("kind", ["stream", "voxels", "one frame of float voxels"])
def test_counts_of_a_clip_are_those_of_its_frames(tmp_path, monkeypatch, kind, crop):
    spikes = "stream" if kind == "stream" else "voxels"
    root = write_miniature(tmp_path, sequences=1, val_sequences=0, frames=4, spikes=spikes)
    if kind == "one frame of float voxels":
        path = root / "train/seq_000/spike_vox/000002.npy"
        np.save(path, np.load(path).astype(np.float32) / 2)
    frames = scan(root / "train/seq_000").frames
    if kind == "stream":
        frames = [dataclasses.replace(frame, voxels=None) for frame in frames]
    recording = Recording("a", frames, 32)
    expected = np.stack([recording.read_counts(i, crop) for i in (1, 2, 3)])
    stacked = []
    stack = np.stack
    monkeypatch.setattr(np, "stack", lambda grids: stacked.append(1) or stack(grids))
    counts = recording.read_clip_counts(range(1, 4), crop)
    assert counts.dtype == expected.dtype == (np.float32 if "float" in kind else np.uint8)
    assert np.array_equal(counts, expected)
    assert bool(stacked) == ("float" in kind)  # bytes are read to where they belong


def test_split_line_names_what_is_dropped(root, tmp_path, caplog):
    log = read_alignment([align(root, tmp_path / "log.txt")])
    (root / "train/seq_000/sharp/000001.png").unlink()
    (root / "train/seq_001/blur/000003.png").unlink()
    settings = settings_of(root, use_voxel_cache=False)
    with caplog.at_level(logging.INFO):
        recordings = scan_split(settings, "train", log)
    assert [len(recording) for recording in recordings] == [3, 3]
    del log.records["train/seq_000"][2]
    assert len(scan_split(settings, "train", log)[0]) == 2
    assert caplog.messages[0] == (
        "train: 2 sequences, 7 frames, 6 aligned, 1 dropped: no sharp frame of this name "
        "(seq_000/000001); 3 without a blurry frame: sharp frame (seq_001/000003); "
        "spike file (seq_001/000003); exposure (seq_001/000003)"
    )


def test_splits_that_cannot_be_used_say_why(root, tmp_path):
    log = read_alignment([align(root, tmp_path / "log.txt")])
    for records, message in (
        (AlignmentLog({}), r"run scripts/prepare_data\.py.*\n.*no record of its"),
        (log, r"voxels were not made yet; run scripts/prepare_data"),
    ):
        with pytest.raises(DataSetError, match=message):
            scan_split(settings_of(root), "train", records)
    for name in ("seq_000", "seq_001"):
        (root / "train" / name / "spike/spike.yaml").unlink()
    with pytest.raises(DataSetError) as error:
        scan_split(settings_of(root), "train", log)
    assert len(error.value.problems) == 2
    with pytest.raises(DataSetError, match="test: no such folder"):
        scan_split(settings_of(root), "test", log)
