"""GOPRO_Large with published spikes: cut where the data say, in every kind of clip."""

import pickle
import shutil

import numpy as np
import pytest

from src.data.description import write_description
from src.data.errors import BadFileError, DataSetError
from src.data.exposures import read_exposures
from src.data.frames import write_png
from src.data.scanning import scan_sequence
from src.data.spikes.spike_dat import SpikeFile, SpikeGeometry, SpikeParts, write_dat, write_spikes
from src.prepare.sources.planning import SourceOptions
from src.prepare.sources.spk_gopro import plan
from tests.data_cases import settings_of
from tests.source_cases import bytes_of, read_stream, tick_errors
from tests.spike_cases import random_spikes
from tests.spike_source_cases import GEOMETRY, SPIKE_SIZE, write_gopro_clip

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


def prepare(root, output, **options):
    """Plan and write all sequences; return the plan and their notes."""
    planned = plan(SourceOptions(root, **options))
    notes = []
    for sequence in planned.sequences:
        (output / sequence.where).mkdir(parents=True)
        notes += pickle.loads(pickle.dumps(sequence)).write(output / sequence.where)
    write_description(output, planned.description)
    return planned, notes


@pytest.mark.parametrize(
    ("n", "zz", "whole"),
    [(7, 1, True), (7, 0, False), (11, 5, False), (11, 0, True), (13, 1, False)],
)
def test_every_frame_lies_at_its_tick(tmp_path, n, zz, whole):
    clip = f"GOPR0384_{n:02d}_{zz:02d}"
    write_gopro_clip(tmp_path / "in", clip, split="test", whole=whole, per_frame=not whole)
    planned, notes = prepare(tmp_path / "in", tmp_path / "out")
    folder = tmp_path / "out" / "val" / clip
    found = tick_errors(folder)
    assert len(found) == (3 if zz else 4)
    assert max(map(abs, found.values())) <= 0.5
    assert (1 in found) == (zz == 0)
    assert len(notes) == (1 if zz else 0)
    assert planned.description.offsets == (((f"val/{clip}", zz),) if zz else ())
    spikes, rate = read_stream(folder)
    assert len(spikes) == 8 * 4 * n + (1 if whole else 0)
    for name, exposure in read_exposures(folder / "exposures.csv", rate).items():
        start = 8 * (n * (name - 1) - zz)
        times = [exposure.t0 * rate, exposure.t1 * rate, exposure.t_sharp * rate]
        assert times == pytest.approx([start, start + 8 * n, start + 4 * (n - 1)])


def test_the_result_is_understood_by_the_data_set(tmp_path):
    write_gopro_clip(tmp_path / "in", "GOPR0384_11_02", first=47)
    planned, _ = prepare(tmp_path / "in" / "GOPRO_Large", tmp_path / "out", blur_kind="blur_gamma")
    folder = tmp_path / "out" / "train" / "GOPR0384_11_02"
    scan = scan_sequence(folder, settings_of(tmp_path / "out"), planned.description)
    assert [frame.name for frame in scan.frames] == ["000048", "000049", "000050"]
    assert not scan.dropped
    assert not scan.unmatched
    assert [f.spikes.stop - f.spikes.start for f in scan.frames] == [88] * 3
    assert planned.description.blur_kind == "blur_gamma"
    source = tmp_path / "in" / "GOPRO_Large" / "train" / "GOPR0384_11_02"
    copied = (folder / "blur" / "000048.png").read_bytes()
    assert copied == (source / "blur_gamma" / "000048.png").read_bytes()
    assert copied != (source / "blur" / "000048.png").read_bytes()


def test_the_data_decide_and_not_the_name(tmp_path):
    """A clip that was renamed: the name says 0, frames and spikes say 3."""
    write_gopro_clip(tmp_path / "in", "GOPR0384_11_03")
    for folder in list((tmp_path / "in").glob("*/train/GOPR0384_11_03")):
        folder.rename(folder.with_name(CLIP))
    planned, _ = prepare(tmp_path / "in", tmp_path / "out")
    assert planned.description.offsets == (("train/GOPR0384_11_00", 3),)
    assert "states an offset of 0 source frames, the data show 3" in str(planned.notes)
    found = tick_errors(tmp_path / "out" / "train" / CLIP)
    assert max(map(abs, found.values())) <= 0.5


def test_spikes_of_another_clip_are_refused(tmp_path):
    write_gopro_clip(tmp_path / "in", CLIP)
    write_gopro_clip(tmp_path / "other", "GOPR0385_11_01")
    for path in (tmp_path / "other" / PARTS / "train/GOPR0385_11_01/spike").iterdir():
        path.replace(spikes(tmp_path / "in") / path.name)
    refused(tmp_path / "in", rf"{CLIP}: .*(do not look like|not of the same sequence)")


@pytest.mark.parametrize("late", [1, 40])
def test_f34_a_stream_that_begins_elsewhere_is_refused(tmp_path, late):
    """Spikes of the first ticks are lost: no whole source frame, or too many of them."""
    write_gopro_clip(tmp_path, CLIP, whole=True, per_frame=False, frames=5)
    path = tmp_path / "Spike_GOPRO_Large_all" / "train" / CLIP / "spike.dat"
    path.write_bytes(path.read_bytes()[4 * late * GEOMETRY.tick_bytes :])
    message = "fit no offset of 0 to 5" if late == 1 else "do not look|fit no offset|ticks, its 5"
    refused(tmp_path, message)


@pytest.mark.parametrize("change", ["bit_order: big", "flip_rows: false"])
def test_f35_bits_that_are_read_in_the_wrong_order(root, tmp_path, change):
    """The wrong order still looks like a picture; the frame fits the right one better."""
    (spikes(root) / "spike.yaml").write_text(f"height: 32\nwidth: 48\n{change}\n")
    refused(root, "state the latter")
    order = {"bit_order": "big"} if "big" in change else {"flip_rows": False}
    for path in spikes(root).glob("*.dat"):  # now they are what the file says, and become ours
        write_spikes(path, SpikeFile(path, GEOMETRY).read(0, 88), SpikeGeometry(32, 48, **order))
    prepare(root, tmp_path / "out")
    found = tick_errors(tmp_path / "out" / "train" / CLIP)
    assert max(map(abs, found.values())) <= 0.5


def test_source_frames_and_spikes_must_agree(tmp_path):
    clip = "GOPR0384_11_03"
    write_gopro_clip(tmp_path, clip, all_frames=True)
    assert plan(SourceOptions(tmp_path)).description.offsets == ((f"train/{clip}", 3),)
    folder = tmp_path / "GOPRO_Large_all" / "train" / clip
    (folder / "000001.png").unlink()  # now the first sharp frame is one source frame earlier
    message = "source frames with an offset of 4, its spikes show them with one of 3"
    refused(tmp_path, message)
    for path in folder.iterdir():
        write_png(path, np.zeros((64, 96, 3), np.uint8))
    refused(tmp_path, "equals none of the first 6 source frames")


def rename_spikes(folder):
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"{700 + number:06d}.dat")


def test_a_still_clip_is_taken_by_its_name_if_the_files_are_named_like_its_frames(root, tmp_path):
    shutil.rmtree(root / PAIRS)
    write_gopro_clip(tmp_path, CLIP, still=True)
    planned = plan(SourceOptions(tmp_path))
    assert "too still for its spikes to show the offset; 0 is taken from its name" in str(
        planned.notes
    )
    rename_spikes(spikes(root))
    refused(root, "different names, and the scene is too still")


def test_other_names_are_joined_by_order_where_the_data_confirm_it(root, tmp_path):
    rename_spikes(spikes(root))
    prepare(root, tmp_path / "out")
    found = tick_errors(tmp_path / "out" / "train" / CLIP)
    assert max(map(abs, found.values())) <= 0.5


def test_identity_changes_with_what_the_output_depends_on(tmp_path):
    write_gopro_clip(tmp_path, "GOPR0384_11_01", whole=True)
    (sequence,) = plan(SourceOptions(tmp_path)).sequences
    assert sequence.identity == plan(SourceOptions(tmp_path)).sequences[0].identity
    assert sequence.identity["spikes"] == "stream of the clip"
    assert sequence.num_exposures == 3
    assert sequence.seconds == pytest.approx(44 / 240)
    (gamma,) = plan(SourceOptions(tmp_path, blur_kind="blur_gamma")).sequences
    assert gamma.identity != sequence.identity
    (tmp_path / "Spike_GOPRO_Large_all").rename(tmp_path / ".hidden")
    (parts,) = plan(SourceOptions(tmp_path)).sequences
    assert parts.identity["spikes"] == "one file per frame"


@pytest.mark.parametrize("byte", [0, 255])
def test_f35_a_stream_that_never_or_always_fires(tmp_path, byte):
    write_gopro_clip(tmp_path, CLIP, per_frame=False, whole=True)
    path = tmp_path / "Spike_GOPRO_Large_all" / "train" / CLIP / "spike.dat"
    (sequence,) = plan(SourceOptions(tmp_path)).sequences
    path.write_bytes(bytes([byte]) * path.stat().st_size)
    message = r"spike\.dat: has (no spike at all|nothing but spikes) in \d+ ticks"
    refused(tmp_path, message)
    with pytest.raises(BadFileError, match=message):  # damaged after it was planned
        sequence.write(tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.dat"))


# ---------------------------------------------------------------- what is missing or does not fit


def link_to_itself(path):
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


MISSING = {
    "sharp": (
        lambda r: (frames(r, "sharp") / "000003.png").unlink(),
        "1 without a sharp frame of that name: 000003",
    ),
    "frame": (
        lambda r: [(frames(r, kind) / "000003.png").unlink() for kind in ("blur", "sharp")],
        r"1 frame\(s\) missing in the middle: 000003",
    ),
    "blur kind": (
        lambda r: shutil.rmtree(frames(r, "blur")),
        "no frames of kind blur; found: blur_gamma, sharp, spike; --blur_kind chooses",
    ),
    "spikes": (
        lambda r: (spikes(r) / "000002.dat").unlink(),
        "4 frames, 3 spike files; frames without a spike file: 000002; .*frame: none",
    ),
    "all spikes": (
        lambda r: [path.unlink() for path in spikes(r).iterdir()],
        rf"no \.dat files in .*{CLIP}/spike",
    ),
    "f36 link": (
        lambda r: link_to_itself(spikes(r) / "000002.dat"),
        r"000002\.dat: .*Too many levels of symbolic links",
    ),
    "f36 images": (
        lambda r: [path.write_bytes(b"") for path in frames(r, "sharp").iterdir()],
        r"000002\.png: truncated or not an image",
    ),
    "half is no spike size": (
        lambda r: [
            *(path.unlink() for path in r.rglob("config.yaml")),
            *(write_png(path, np.zeros((30, 50, 3), np.uint8)) for path in r.rglob("*.png")),
        ],
        "has 30x50 pixels, published spikes half of that: .* no multiple of 8",
    ),
    "odd number": (
        lambda r: (r / PAIRS / "train" / CLIP).rename(r / PAIRS / "train" / "GOPR0384_10_00"),
        "10 source frames have no middle one",
    ),
}


@pytest.mark.parametrize("name", MISSING)
def test_f34_f36_what_is_missing_or_cannot_be_read_is_named(root, name):
    change, message = MISSING[name]
    link_to_itself(root / PAIRS / "test")  # which is no split then
    change(root)
    refused(root, message)


def test_all_clips_are_looked_at_before_anything_is_refused(root):
    write_gopro_clip(root, "GOPR0385_11_01", split="test")
    (frames(root, "sharp") / "000003.png").unlink()
    (root / PARTS / "test" / "GOPR0385_11_01" / "spike" / "000001.dat").unlink()
    (root / PAIRS / "test" / "notes").mkdir()
    problems = refused(root, "2 problem")
    assert [name for name in (CLIP, "GOPR0385") if name not in str(problems)] == []


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
        f"train/{CLIP}: frame 000004 dropped: its exposure ends after tick 345, the end of the "
        "sequence"
    ]
    assert not (tmp_path / "out" / "blur" / "000004.png").exists()


def test_f35_a_clip_whose_stream_is_cut_short(tmp_path):
    write_gopro_clip(tmp_path, CLIP, whole=True, per_frame=False, frames=6)
    path = tmp_path / "Spike_GOPRO_Large_all" / "train" / CLIP / "spike.dat"
    path.write_bytes(path.read_bytes()[: 192 * 300])
    refused(tmp_path, "have 300 ticks, its 6 frames of 88 need 528")


def test_missing_folders_are_named(tmp_path):
    message = (
        "no GOPRO_Large; it holds(.|\n)*no GOPRO_Large_spike_seq or Spike_GOPRO_Large_all; one"
    )
    refused(tmp_path, message)
    (tmp_path / PAIRS / "train" / CLIP).mkdir(parents=True)
    refused(tmp_path, message)


def as_kair(root, pairs, spikes):
    """Move a miniature into KAIR's layout, in the case and depth that `pairs` and `spikes` say."""
    released = (root / PAIRS).rename(root / "released")
    for split in ("train", "test"):
        for sequence in sorted((released / split).iterdir()):
            for kind, ending in (("sharp", "_GT"), ("blur", "_GT_blurred")):
                target = root / pairs.format(split + ending) / sequence.name
                target.parent.mkdir(parents=True, exist_ok=True)
                (sequence / kind).rename(target)
    shutil.rmtree(released)
    if spikes != PARTS:
        (root / spikes).parent.mkdir(parents=True, exist_ok=True)
        (root / PARTS).rename(root / spikes)


@pytest.mark.parametrize(
    ("pairs", "spikes", "given"),
    [
        ("GOPRO_Large/{}", PARTS, "."),
        ("gopro_spike/GOPRO_Large/{}", f"gopro_spike/{PARTS}", "gopro_spike/GOPRO_Large"),
        ("Gopro_large/{}", "gopro_large_SPIKE_seq/GOPRO_Large_spike_seq", "Gopro_large"),
    ],
)
def test_the_layout_of_kair_is_read(tmp_path, pairs, spikes, given):
    down = tmp_path / "down"
    for split, clip in (("train", "GOPR0384_11_01"), ("test", CLIP)):
        write_gopro_clip(down, clip, split=split)
    original, _ = prepare(down, tmp_path / "as released")
    as_kair(down, pairs, spikes)
    (down / pairs.format("test_GT")).rename(down / pairs.format("Test_gt"))
    planned, _ = prepare(down / given, tmp_path / "ours")
    assert bytes_of(tmp_path / "ours") == bytes_of(tmp_path / "as released")
    assert planned.description == original.description
    first = [note.split(": ")[0] for note in planned.notes[:3]]
    assert first == ["blurry frames", "sharp frames", "spikes"]
    assert str(down / pairs.format("train_GT_blurred")) in planned.notes[0]
    refused(down / given, "no frames of kind blur_gamma; found: blur", blur_kind="blur_gamma")


def test_frames_that_are_there_twice_are_refused(root):
    """As released and in KAIR's layout, side by side."""
    shutil.copytree(frames(root, "sharp"), root / "kair" / "train_GT" / CLIP)
    refused(root, rf"sharp of train/{CLIP}: .*nothing says which is meant|found twice")


def test_options_of_simulating_do_not_apply(root):
    problems = refused(root, "options", frames_per_second=240.0, axes="SHW", threshold=1.0, seed=3)
    given = ["--threshold", "--frames_per_second", "--seed", "--axes"]
    assert [problem.split()[0] for problem in problems] == given


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
    write_dat(parts, tmp_path / "all.dat", geometry, paths[0])
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
    refused(tmp_path, "all its 1 frames begin before the recording")
