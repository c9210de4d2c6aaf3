"""GOPRO_Large with published spikes: what is missing or does not fit is named, all of it."""

import shutil

import pytest

from src.data.errors import DataSetError
from src.data.spikes.spike_dat import SpikeFile, SpikeGeometry, SpikeParts, write_spikes
from src.prepare.sources.plan import SourceOptions
from src.prepare.sources.spk_gopro import plan
from tests.spike_cases import random_spikes
from tests.spike_source_cases import SPIKE_SIZE, write_gopro_clip

CLIP = "GOPR0384_11_00"
PAIRS, PARTS = "GOPRO_Large", "GOPRO_Large_spike_seq"


@pytest.fixture
def root(tmp_path):
    write_gopro_clip(tmp_path, CLIP)
    return tmp_path


def frames(root, kind):
    return root / PAIRS / "train" / CLIP / kind


def spikes(root):
    return root / PARTS / "train" / CLIP / "spike"


def refused(root, message, **options):
    with pytest.raises(DataSetError, match=message) as caught:
        plan(SourceOptions(root, **options))
    return caught.value.problems


def test_f34_missing_files_are_named(root):
    (frames(root, "sharp") / "000003.png").unlink()
    refused(root, "1 without a sharp frame of that name: 000003")
    (frames(root, "blur") / "000003.png").unlink()
    refused(root, r"1 frame\(s\) missing in the middle: 000003")


def test_f34_missing_spike_files_are_named(root):
    (spikes(root) / "000002.dat").unlink()
    refused(root, "4 frames, 3 spike files; frames without a spike file: 000002; .*frame: none")
    for path in spikes(root).iterdir():
        path.unlink()
    refused(root, r"no \.dat files in .*GOPR0384_11_00/spike")


def test_all_clips_are_looked_at_before_anything_is_refused(root):
    write_gopro_clip(root, "GOPR0385_11_01", split="test")
    (frames(root, "sharp") / "000003.png").unlink()
    (root / PARTS / "test" / "GOPR0385_11_01" / "spike" / "000001.dat").unlink()
    (root / PAIRS / "test" / "notes").mkdir()
    problems = refused(root, "3 problem")
    assert [name for name in (CLIP, "GOPR0385", "notes") if name not in str(problems)] == []


@pytest.mark.parametrize("num_bytes", [1, 192, 192 * 87])
def test_f35_a_part_that_is_not_one_exposure(root, num_bytes):
    path = spikes(root) / "000002.dat"
    path.write_bytes(path.read_bytes()[:num_bytes])
    message = rf"000002\.dat: {num_bytes} bytes are .* ticks of 32x48"
    if num_bytes % 192 == 0:
        message = rf"88 ticks of 32x48 are needed in each file, not {num_bytes // 192} in 000002\.d"
    refused(root, message)


def test_f35_the_size_of_another_sensor(root):
    config = root / PARTS / "config.yaml"
    config.write_text("spike_h: 250\nspike_w: 400\n")
    refused(root, r"config\.yaml: says height 250 and width 400 .*correct it to 32 and 48")
    config.write_text("spike_h: 32\n")
    refused(root, "config.yaml: spike_w is missing; spike_h and spike_w are needed")
    config.write_text("spike_h: 64\nspike_w: 96\n")
    refused(root, r"88 ticks of 64x96 are needed in each file, not 22 in 000001\.dat, 22 in")
    config.unlink()
    assert plan(SourceOptions(root)).sequences[0].spike_size == SPIKE_SIZE  # half of the frames


def test_the_last_part_may_end_early_and_loses_its_frame(root, tmp_path):
    path = spikes(root) / "000004.dat"
    path.write_bytes(path.read_bytes()[: 192 * 81])
    (sequence,) = plan(SourceOptions(root)).sequences
    assert sequence.num_exposures == 3
    notes = sequence.write(tmp_path / "out")
    assert notes == [
        f"train/{CLIP}: 000004 is left out: its exposure ends after tick 345, the end of the spikes"
    ]
    assert not (tmp_path / "out" / "blur" / "000004.png").exists()


def test_f35_a_clip_whose_stream_is_cut_short(tmp_path):
    write_gopro_clip(tmp_path, CLIP, whole=True, per_frame=False, frames=6)
    path = tmp_path / "Spike_GOPRO_Large_all" / "train" / CLIP / "spike.dat"
    path.write_bytes(path.read_bytes()[: 192 * 300])
    refused(tmp_path, "have 300 ticks, its 6 frames of 88 need 528")


def test_missing_folders_are_named(tmp_path):
    refused(tmp_path, "no folder GOPRO_Large;(.|\n)*no folder GOPRO_Large_spike_seq or Spike_GOPRO")
    (tmp_path / PAIRS).mkdir()
    (tmp_path / PARTS).mkdir()
    refused(tmp_path, "no sequences; train, test should hold folders")


def test_a_blur_kind_that_was_not_downloaded(root):
    for path in frames(root, "blur_gamma").iterdir():
        path.unlink()
    refused(root, r"no images \(\.png\) in blur_gamma; --blur_kind", blur_kind="blur_gamma")


def test_names_that_say_nothing_or_cannot_be(root):
    frames(root, "blur").parent.rename(root / PAIRS / "train" / "GOPR0384_10_00")
    refused(root, "10 source frames have no middle one")


def test_options_of_simulating_do_not_apply(root):
    problems = refused(root, "options", frames_per_second=240.0, axes="SHW", threshold=1.0, seed=3)
    assert [problem.split()[0] for problem in problems] == [
        "--threshold",
        "--frames_per_second",
        "--seed",
        "--axes",
    ]


def test_f36_links_that_lead_to_themselves_are_named(root):
    (spikes(root) / "000002.dat").unlink()
    (spikes(root) / "000002.dat").symlink_to("000002.dat")
    refused(root, r"000002\.dat: .*Too many levels of symbolic links")
    (root / PAIRS / "test").symlink_to("test")
    refused(root, r"000002\.dat")


def test_f36_frames_that_are_no_images_are_named(root):
    for path in frames(root, "sharp").iterdir():
        path.write_bytes(b"")
    refused(root, r"000002\.png: truncated or not an image")


# ---------------------------------------------------------------- parts


def test_parts_are_one_stream(tmp_path):
    """Any range over any edge is what the whole has."""
    whole = random_spikes(23, 4, 8)
    geometry, paths = SpikeGeometry(4, 8), []
    for start, stop in ((0, 5), (5, 6), (6, 20), (20, 23)):
        paths.append(tmp_path / f"{start}.dat")
        write_spikes(paths[-1], whole[start:stop], geometry)
    parts = SpikeParts(paths, geometry)
    assert parts.num_ticks == 23
    for start in range(23):
        for stop in range(start + 1, 24):
            assert (parts.read(start, stop) == whole[start:stop]).all()
    for start, stop in ((-1, 3), (5, 5), (20, 24)):
        with pytest.raises(ValueError, match=r"the file has \[0, 23\)"):
            parts.read(start, stop)
    assert parts.join_into(tmp_path / "all.dat") == pytest.approx(whole.mean())
    assert (SpikeFile(tmp_path / "all.dat", geometry).read(0, 23) == whole).all()


@pytest.mark.parametrize("kind", ["blur", "sharp"])
def test_f33_a_frame_that_is_cut_short_and_not_sampled(root, tmp_path, kind):
    """Frames 2 to 4 of 4 are compared with their spikes, the first never is."""
    path = frames(root, kind) / "000001.png"
    path.write_bytes(path.read_bytes()[:-200])
    (sequence,) = plan(SourceOptions(root)).sequences
    with pytest.raises(DataSetError, match=rf"{kind}/000001\.png: empty, or its end is missing"):
        sequence.write(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_spikes_of_the_same_size_are_another_identity(root):
    path = spikes(root) / "000002.dat"
    before = plan(SourceOptions(root)).sequences[0].identity
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    after = plan(SourceOptions(root)).sequences[0].identity
    assert [key for key in before if before[key] != after[key]] == ["spikes_sha256"]


def test_spikes_without_frames_are_named(root):
    shutil.copytree(spikes(root), root / PARTS / "test" / "GOPR0385_11_01" / "spike")
    notes = plan(SourceOptions(root)).notes
    assert "not made, GOPRO_Large has no such sequence: test/GOPR0385_11_01" in notes


def test_a_clip_of_one_frame_that_begins_too_early_is_no_short_file(tmp_path):
    write_gopro_clip(tmp_path, "GOPR0384_11_05", frames=1)
    with pytest.raises(DataSetError, match="all its 1 frames begin before the recording"):
        plan(SourceOptions(tmp_path))
