"""GOPRO_Large with published spikes: cut where the data say, in every kind of clip."""

import pickle

import numpy as np
import pytest

from src.data.description import write_description
from src.data.errors import BadFileError, DataSetError
from src.data.exposures import read_exposures
from src.data.frames import list_frames, read_image, write_png
from src.data.scanning import scan_sequence
from src.data.spikes.matching import best_tfp_centre, grey_at_spike_size
from src.data.spikes.spike_dat import SpikeFile, SpikeGeometry, SpikeParts, write_spikes
from src.prepare.sources.plan import SourceOptions
from src.prepare.sources.spk_gopro import plan
from tests.data_cases import settings_of
from tests.source_cases import read_stream, tick_errors
from tests.spike_source_cases import GEOMETRY, write_gopro_clip


def prepare(root, output, **options):
    """Plan and write all sequences; return the plan and their notes."""
    planned = plan(SourceOptions(root, **options))
    notes = []
    for sequence in planned.sequences:
        (output / sequence.where).mkdir(parents=True)
        notes += pickle.loads(pickle.dumps(sequence)).write(output / sequence.where)
    write_description(output, planned.description)
    return planned, notes


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("zz", [0, 1, 5])
@pytest.mark.parametrize("n", [7, 11, 13])
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


@pytest.mark.parametrize(("n", "zz"), [(7, 1), (11, 5), (13, 0)])
def test_the_published_cut_is_off_by_the_offset(tmp_path, n, zz):
    """What a user gets who takes the files as they are: the fault that this source corrects."""
    write_gopro_clip(tmp_path, f"GOPR0384_{n}_0{zz}".replace("_7_", "_07_"))
    (clip,) = (tmp_path / "GOPRO_Large" / "train").iterdir()
    files = list_frames(tmp_path / "GOPRO_Large_spike_seq/train" / clip.name / "spike", [".dat"])
    stream = SpikeParts(tuple(files.values()), GEOMETRY)
    sharp = grey_at_spike_size(read_image(clip / "sharp" / "000003.png"), (32, 48))
    match = best_tfp_centre(stream.read(0, stream.num_ticks), sharp, width=17)
    assert match.centre - (8 * n * 2 + 4 * (n - 1)) == pytest.approx(-8 * zz, abs=0.5)


def test_the_result_is_understood_by_the_data_set(tmp_path):
    write_gopro_clip(tmp_path / "in", "GOPR0384_11_02", first=47)
    planned, _ = prepare(tmp_path / "in" / "GOPRO_Large", tmp_path / "out", blur_kind="blur_gamma")
    folder = tmp_path / "out" / "train" / "GOPR0384_11_02"
    scan = scan_sequence(folder, settings_of(tmp_path / "out"), planned.description)
    assert [frame.name for frame in scan.frames] == ["000048", "000049", "000050"]
    assert not scan.dropped
    assert not scan.strays
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
        folder.rename(folder.with_name("GOPR0384_11_00"))
    planned, _ = prepare(tmp_path / "in", tmp_path / "out")
    assert planned.description.offsets == (("train/GOPR0384_11_00", 3),)
    assert "states an offset of 0 source frames, the data show 3" in planned.notes[0] + str(
        planned.notes
    )
    found = tick_errors(tmp_path / "out" / "train" / "GOPR0384_11_00")
    assert max(map(abs, found.values())) <= 0.5


def test_spikes_of_another_clip_are_refused(tmp_path):
    write_gopro_clip(tmp_path, "GOPR0384_11_00")
    write_gopro_clip(tmp_path / "other", "GOPR0385_11_01")
    place = "GOPRO_Large_spike_seq/train"
    for path in (tmp_path / "other" / place / "GOPR0385_11_01" / "spike").iterdir():
        path.replace(tmp_path / place / "GOPR0384_11_00" / "spike" / path.name)
    with pytest.raises(DataSetError, match=r"GOPR0384_11_00: .*do not show 000002\.png"):
        plan(SourceOptions(tmp_path))


@pytest.mark.parametrize("late", [1, 40])
def test_f34_a_stream_that_begins_elsewhere_is_refused(tmp_path, late):
    """Spikes of the first ticks are lost: no whole source frame, or too many of them."""
    write_gopro_clip(tmp_path, "GOPR0384_11_00", whole=True, per_frame=False, frames=5)
    path = tmp_path / "Spike_GOPRO_Large_all" / "train" / "GOPR0384_11_00" / "spike.dat"
    path.write_bytes(path.read_bytes()[4 * late * GEOMETRY.tick_bytes :])
    message = "fit no offset of 0 to 5" if late == 1 else "do not show|fit no offset|ticks, its 5"
    with pytest.raises(DataSetError, match=message):
        plan(SourceOptions(tmp_path))


def test_bits_that_are_stored_in_another_order_become_ours(tmp_path):
    write_gopro_clip(tmp_path / "in", "GOPR0384_11_00")
    folder = tmp_path / "in/GOPRO_Large_spike_seq/train/GOPR0384_11_00/spike"
    (folder / "spike.yaml").write_text("height: 32\nwidth: 48\nbit_order: big\nflip_rows: false\n")
    for path in folder.glob("*.dat"):
        spikes = SpikeFile(path, GEOMETRY).read(0, 88)
        write_spikes(path, spikes, SpikeGeometry(32, 48, "big", flip_rows=False))
    prepare(tmp_path / "in", tmp_path / "out")
    found = tick_errors(tmp_path / "out/train/GOPR0384_11_00")
    assert max(map(abs, found.values())) <= 0.5


@pytest.mark.parametrize("change", ["bit_order: big", "flip_rows: false"])
def test_f35_bits_that_are_read_in_the_wrong_order(tmp_path, change):
    """The wrong bit order still looks like a picture; the frame fits the right one better."""
    write_gopro_clip(tmp_path, "GOPR0384_11_00")
    sidecar = f"height: 32\nwidth: 48\n{change}\n"
    folder = tmp_path / "GOPRO_Large_spike_seq" / "train" / "GOPR0384_11_00" / "spike"
    (folder / "spike.yaml").write_text(sidecar)
    with pytest.raises(DataSetError, match="state the latter|do not show"):
        plan(SourceOptions(tmp_path))


def test_source_frames_and_spikes_must_agree(tmp_path):
    clip = "GOPR0384_11_03"
    write_gopro_clip(tmp_path, clip, all_frames=True)
    assert plan(SourceOptions(tmp_path)).description.offsets == ((f"train/{clip}", 3),)
    folder = tmp_path / "GOPRO_Large_all" / "train" / clip
    (folder / "000001.png").unlink()  # now the first sharp frame is one source frame earlier
    message = "source frames with an offset of 4, its spikes show them with one of 3"
    with pytest.raises(DataSetError, match=message):
        plan(SourceOptions(tmp_path))
    for path in folder.iterdir():
        write_png(path, np.zeros((64, 96, 3), np.uint8))
    with pytest.raises(DataSetError, match="equals none of the first 6 source frames"):
        plan(SourceOptions(tmp_path))


def test_a_still_clip_is_taken_by_its_name_and_says_so(tmp_path):
    write_gopro_clip(tmp_path, "GOPR0384_11_02", still=True)
    planned = plan(SourceOptions(tmp_path))
    assert planned.sequences[0].identity["offset"] == 2
    assert "too still for its spikes to show the offset; 2 is taken from its name" in str(
        planned.notes
    )


def rename_spikes(root, clip):
    folder = root / "GOPRO_Large_spike_seq" / "train" / clip / "spike"
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"{700 + number:06d}.dat")


def test_other_names_are_joined_by_order_where_the_data_confirm_it(tmp_path):
    write_gopro_clip(tmp_path / "in", "GOPR0384_11_01")
    rename_spikes(tmp_path / "in", "GOPR0384_11_01")
    prepare(tmp_path / "in", tmp_path / "out")
    found = tick_errors(tmp_path / "out" / "train" / "GOPR0384_11_01")
    assert max(map(abs, found.values())) <= 0.5


def test_other_names_of_a_still_clip_are_refused(tmp_path):
    write_gopro_clip(tmp_path, "GOPR0384_11_01", still=True)
    rename_spikes(tmp_path, "GOPR0384_11_01")
    with pytest.raises(DataSetError, match="different names, and the scene is too still"):
        plan(SourceOptions(tmp_path))


def test_identity_changes_with_what_the_output_depends_on(tmp_path):
    write_gopro_clip(tmp_path, "GOPR0384_11_01", whole=True)
    (sequence,) = plan(SourceOptions(tmp_path)).sequences
    assert sequence.identity == plan(SourceOptions(tmp_path)).sequences[0].identity
    assert sequence.identity["spikes"] == "stream of the clip"
    assert sequence.num_exposures == 3
    assert sequence.seconds == pytest.approx(44 / 240)
    (gamma,) = plan(SourceOptions(tmp_path, blur_kind="blur_gamma")).sequences
    assert gamma.identity != sequence.identity
    (tmp_path / "Spike_GOPRO_Large_all").rename(tmp_path / "elsewhere")
    (parts,) = plan(SourceOptions(tmp_path)).sequences
    assert parts.identity["spikes"] == "one file per frame"


@pytest.mark.parametrize("byte", [0, 255])
def test_f35_a_stream_that_never_or_always_fires(tmp_path, byte):
    write_gopro_clip(tmp_path, "GOPR0384_11_00", per_frame=False, whole=True)
    path = tmp_path / "Spike_GOPRO_Large_all" / "train" / "GOPR0384_11_00" / "spike.dat"
    (sequence,) = plan(SourceOptions(tmp_path)).sequences
    path.write_bytes(bytes([byte]) * path.stat().st_size)
    message = r"spike\.dat: has (no spike at all|nothing but spikes) in \d+ ticks"
    with pytest.raises(DataSetError, match=message):
        plan(SourceOptions(tmp_path))
    with pytest.raises(BadFileError, match=message):  # damaged after it was planned
        sequence.write(tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.dat"))
