import shutil
from pathlib import Path

import numpy as np
import pytest

from src.data.description import DataDescription, write_description
from src.data.errors import DataSetError
from src.data.frames import write_png
from src.data.inputs import InputFolders, scan_inputs
from src.data.scanning import ScanSettings
from src.data.spikes.spike_dat import SpikeGeometry, SpikeSidecar, write_sidecar, write_spikes
from src.data.voxel_counts import count_frame, write_index
from tests.folder_cases import (
    NUM_BINS,
    SPIKE_SIZE,
    counts_of,
    image_of,
    spikes_of,
    write_dats,
    write_images,
    write_voxels,
)

NAMES = ["000000", "000001", "000002"]
ENDINGS = (".png", ".jpg")


def find(blurry, spikes=None, sharp=None, size=None):
    settings = ScanSettings(blurry, NUM_BINS, ENDINGS)
    return scan_inputs(InputFolders(blurry, spikes, sharp, size), settings)


def test_one_sequence_of_plain_folders(tmp_path):
    write_images(tmp_path / "frames", NAMES)
    write_voxels(tmp_path / "counts", [*NAMES, "000009"])  # one too many is no harm
    write_images(tmp_path / "truth", NAMES, kind=1)
    (sequence,) = find(tmp_path / "frames", tmp_path / "counts", tmp_path / "truth")
    assert sequence.name == "frames"
    assert [frame.name for frame in sequence.frames] == NAMES
    for i in range(len(sequence)):
        assert np.array_equal(sequence.read_blurry(i), image_of(i, 0))
        assert np.array_equal(sequence.read_sharp(i), image_of(i, 1))
        assert np.array_equal(sequence.read_counts(i), counts_of(i))


def test_data_root_layout_gives_every_sequence_of_a_split(tmp_path):
    for name in ("seq_2", "seq_10"):
        write_images(tmp_path / "val" / name / "blur", NAMES)
        write_images(tmp_path / "val" / name / "sharp", NAMES, kind=1)
        write_dats(tmp_path / "val" / name / "spike", NAMES)
    split = tmp_path / "val"
    first, second = find(split, split, split)
    assert (first.name, second.name) == ("seq_2", "seq_10")
    assert np.array_equal(second.read_sharp(2), image_of(2, 1))
    assert np.array_equal(second.read_counts(2), counts_of(2))
    (alone,) = find(split / "seq_10", split / "seq_10", split / "seq_10")
    assert alone.name == "seq_10"
    (inner,) = find(split / "seq_10" / "blur", split / "seq_10" / "spike")
    assert inner.name == "seq_10"


def test_stored_voxels_of_other_spikes_are_counted_again(tmp_path):
    """Training drops such a frame; here its spikes are at hand, so they are counted."""
    write_images(tmp_path / "a" / "blur", NAMES)
    write_dats(tmp_path / "a" / "spike", NAMES)
    folder = tmp_path / "a" / "spike_vox"
    (bits,) = find(tmp_path, tmp_path)
    write_index(
        folder,
        {
            frame.name: count_frame(frame.spikes, NUM_BINS, folder / f"{frame.name}.npy")
            for frame in bits.frames
        },
    )
    np.save(folder / "000000.npy", np.zeros((NUM_BINS, *SPIKE_SIZE), np.uint8))  # as long
    write_spikes(tmp_path / "a" / "spike" / "000001.dat", spikes_of(5), SpikeGeometry(*SPIKE_SIZE))
    (sequence,) = find(tmp_path, tmp_path)
    assert [frame.voxels is None for frame in sequence.frames] == [False, True, False]
    assert not sequence.read_counts(0).any()
    assert np.array_equal(sequence.read_counts(1), counts_of(5))
    assert np.array_equal(sequence.read_counts(2), counts_of(2))
    assert sequence.bin_ticks(0).tolist() == [3] * NUM_BINS


def test_ticks_of_voxels_come_from_an_index_that_fits_them(tmp_path):
    """Spikes are gone; of one frame other counts were put in place of those in the index."""
    write_images(tmp_path / "a" / "blur", NAMES)
    write_dats(tmp_path / "a" / "spike", NAMES)
    folder = tmp_path / "a" / "spike_vox"
    (bits,) = find(tmp_path, tmp_path)
    assert bits.frames[0].spikes.path.suffix == ".dat"
    write_voxels(folder, NAMES)
    (voxels,) = find(tmp_path, tmp_path)  # they count before bits
    assert voxels.frames[0].spikes.path.suffix == ".npy"
    assert all(np.array_equal(bits.read_counts(i), voxels.read_counts(i)) for i in range(3))
    counted = {
        f.name: count_frame(f.spikes, NUM_BINS, folder / f"{f.name}.npy") for f in bits.frames
    }
    write_index(folder, counted)
    shutil.rmtree(tmp_path / "a" / "spike")
    np.save(folder / "000001.npy", counts_of(1).astype(np.uint16))
    (voxels,) = find(tmp_path, tmp_path)
    assert [voxels.bin_ticks(i).tolist() for i in range(3)] == [[3] * 4, [0] * 4, [3] * 4]
    write_index(folder, {f.name: count_frame(f.spikes, NUM_BINS, None) for f in voxels.frames})
    (again,) = find(tmp_path, tmp_path)  # now the index is of the voxels themselves
    assert [again.bin_ticks(i).tolist() for i in range(3)] == [[3] * 4, [0] * 4, [3] * 4]


def test_many_missing_spikes_are_a_few_names_and_their_number(tmp_path):
    write_images(tmp_path / "a" / "blur", [f"{i:06d}" for i in range(24)])
    write_voxels(tmp_path / "a" / "spike_vox", ["000000"])
    with pytest.raises(
        DataSetError, match=r"no voxel file of this name \(a/000001, .* and 3 more"
    ) as error:
        find(tmp_path, tmp_path)
    assert len(str(error.value)) < 600


def test_frames_are_ordered_by_their_numbers(tmp_path):
    write_images(tmp_path, ["f10", "f9", "f1", "f100"])
    (sequence,) = find(tmp_path)
    assert [frame.name for frame in sequence.frames] == ["f1", "f9", "f10", "f100"]
    assert sequence.frames[0].spikes is None


def test_spikes_per_frame_need_no_tick_rate(tmp_path):
    """Where it is not known, a table in ticks says nothing that the files do not say."""
    write_images(tmp_path / "a" / "blur", NAMES)
    write_dats(tmp_path / "a" / "spike", NAMES, sidecar=False)
    rows = [f"{i},{20 * i},{20 * i + 12}" for i in range(3)]
    table = "\n".join(["frame_idx,t0[ticks],t1[ticks]", *rows])
    (tmp_path / "a" / "exposures.csv").write_text(table)
    (sequence,) = find(tmp_path, tmp_path, size=SPIKE_SIZE)
    assert [frame.spikes.num_ticks for frame in sequence.frames] == [12, 12, 12]


WINDOWS = [(20 * i + 2, 20 * i + 14) for i in range(3)]


def write_stream(root, names=NAMES, windows=WINDOWS, header="t0[ticks],t1[ticks]", **sidecar):
    """Write `root/seq` with one stream of 60 ticks and a table of exposures."""
    write_images(root / "seq/blur", names)
    stated = SpikeSidecar(*SPIKE_SIZE, **{"ticks_per_second": 1000.0, **sidecar})
    write_spikes(root / "seq/spike/stream.dat", spikes_of(0, 60), stated.geometry)
    write_sidecar(root / "seq/spike", stated)
    rows = [f"{i},{t0},{t1}" for i, (t0, t1) in enumerate(windows)]
    (root / "seq/exposures.csv").write_text("\n".join([f"frame_idx,{header}", *rows]))
    return root / "seq"


def rejected(folder, **options):
    """Return why a folder cannot be tested."""
    with pytest.raises(DataSetError) as raised:
        [sequence.check() for sequence in find(folder, folder, **options)]
    return str(raised.value)


def test_a_stream_is_cut_by_the_exposures(tmp_path):
    write_stream(tmp_path, ticks_per_second=None)
    assert "ticks_per_second is not known" in rejected(tmp_path)
    write_stream(tmp_path)
    (sequence,) = find(tmp_path, tmp_path)
    expected = spikes_of(0, 60)[22:34].reshape(NUM_BINS, 3, *SPIKE_SIZE).sum(axis=1)
    assert np.array_equal(sequence.read_counts(1), expected)


def test_what_files_state_must_not_contradict(tmp_path):
    folder = write_stream(tmp_path / "val", flip_rows=False, bit_order="big")
    plain, sized = find(folder, folder), find(folder, folder, size=SPIKE_SIZE)
    assert plain[0].frames[0].spikes.geometry == SpikeGeometry(*SPIKE_SIZE, "big", False)
    assert sized[0].frames[0].spikes == plain[0].frames[0].spikes  # the size alone is stated
    message = rejected(folder, size=(24, 16))
    assert "height: 16, width: 24" in message
    assert "--spike_size" in message
    size = {"spike_height": 16, "spike_width": 24}
    write_description(tmp_path, DataDescription("own", bit_order="big", **size))
    message = rejected(folder)
    assert "says flip_rows: false" in message
    assert "says flip_rows: true" in message


@pytest.mark.parametrize("kind", ["bits", "voxels"])
def test_spikes_of_another_shape_than_the_frames_are_rejected(tmp_path, kind):
    write_images(tmp_path / "blur", NAMES)
    (tmp_path / "spike_vox").mkdir()
    for name in NAMES:
        if kind == "bits":
            spikes, geometry = np.ones((12, 16, 48), np.uint8), SpikeGeometry(16, 48)
            write_spikes(tmp_path / f"spike/{name}.dat", spikes, geometry)
            write_sidecar(tmp_path / "spike", SpikeSidecar(16, 48))
        else:
            np.save(tmp_path / f"spike_vox/{name}.npy", np.ones((NUM_BINS, 16, 48), np.uint8))
    message = rejected(tmp_path)
    assert "spikes of 16x48" in message
    assert "DATA.AUGMENT.TRANSPOSE False" in message
    find(tmp_path, tmp_path)[0].check(any_shape=True)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([f"{letter}_{i:03d}" for letter in "ab" for i in range(3)], "several names"),
        (["0.1", "0.15", "0.2"], "decimal"),
    ],
)
def test_names_that_do_not_number_the_frames_are_rejected(tmp_path, names, reason):
    assert reason in rejected(write_stream(tmp_path, names))


@pytest.mark.parametrize(
    ("header", "windows", "expected"),
    [
        ("t0[ticks],t1[ticks]", [*WINDOWS[:2], (50, 62)], "ticks [50, 62) of stream.dat"),
        ("t0[s],t1[s]", WINDOWS, "exposure leaves the stream"),
        ("t0[us],t1[us]", WINDOWS, "holds no tick at 1000"),
        ("t0[ticks],t1[ticks]", WINDOWS[:2], "no record of its exposure"),
    ],
)
def test_exposures_that_do_not_fit_the_stream(tmp_path, header, windows, expected):
    message = rejected(write_stream(tmp_path, NAMES, windows, header))
    assert expected in message
    assert "(seq/00000" in message


@pytest.mark.parametrize("what", ["blurry", "size", "voxels"])
def test_every_file_is_looked_at(tmp_path, what):
    write_images(tmp_path / "blur", NAMES)
    write_voxels(tmp_path / "spike_vox", NAMES)
    path = tmp_path / ("spike_vox/000002.npy" if what == "voxels" else "blur/000002.png")
    if what == "size":
        write_png(path, image_of(0, 0)[:16])
    elif what == "voxels":
        np.save(path, np.full((NUM_BINS, *SPIKE_SIZE), np.nan, np.float32))
    else:
        path.write_bytes(path.read_bytes()[:-40])
    assert str(path) in rejected(tmp_path)


def test_folders_may_be_the_current_one(tmp_path, monkeypatch):
    write_images(tmp_path / "seq" / "blur", NAMES)
    write_dats(tmp_path / "seq" / "spike", NAMES)
    for place, blurry, spikes in (("seq", ".", "."), ("seq/spike", "../blur", ".")):
        monkeypatch.chdir(tmp_path / place)
        (sequence,) = find(Path(blurry), Path(spikes))
        assert sequence.name == "seq"
        assert np.array_equal(sequence.read_counts(1), counts_of(1))


def test_f34_missing_partners_are_all_named(tmp_path):
    for name in ("a", "b", "c"):
        write_images(tmp_path / "blur" / name, NAMES)
    write_voxels(tmp_path / "vox" / "a", NAMES[:1])
    write_voxels(tmp_path / "vox" / "b", NAMES)
    write_images(tmp_path / "sharp" / "a", NAMES)
    write_images(tmp_path / "sharp" / "b", NAMES[1:])
    write_images(tmp_path / "sharp" / "c", NAMES)
    with pytest.raises(DataSetError) as raised:
        find(tmp_path / "blur", tmp_path / "vox", tmp_path / "sharp")
    message = str(raised.value)
    assert "no voxel file of this name (a/000001, a/000002)" in message
    assert "no sharp frame of this name (b/000000)" in message
    assert f"{tmp_path / 'vox'}: sequence c is not in it; it has a, b" in message
    assert len(raised.value.problems) == 3


def test_empty_and_absent_folders_are_named(tmp_path):
    with pytest.raises(DataSetError, match="absent.*\n.*no such folder"):
        find(tmp_path / "absent")
    (tmp_path / "stream.dat").touch()
    with pytest.raises(DataSetError, match=r"stream\.dat.*\n.*is a file; name the folder"):
        find(tmp_path / "stream.dat")
    (tmp_path / "empty" / "seq").mkdir(parents=True)
    with pytest.raises(DataSetError, match=r"no \.png, \.jpg files in .*SEQ/blur"):
        find(tmp_path / "empty")


def test_the_size_of_spikes_must_be_stated(tmp_path):
    write_images(tmp_path / "blur", NAMES)
    write_dats(tmp_path / "dat", NAMES, sidecar=False)
    with pytest.raises(DataSetError, match="--spike_size HEIGHT WIDTH"):
        find(tmp_path / "blur", tmp_path / "dat")
    (sequence,) = find(tmp_path / "blur", tmp_path / "dat", size=SPIKE_SIZE)
    assert np.array_equal(sequence.read_counts(1), counts_of(1))
    with pytest.raises(DataSetError, match="sizes that fit"):
        find(tmp_path / "blur", tmp_path / "dat", size=(250, 400))
    write_description(tmp_path, DataDescription("own", bit_order="big", flip_rows=False))
    (tmp_path / "dat/config.yaml").write_text("spike_h: 16\nspike_w: 24\n")
    (sequence,) = find(tmp_path / "blur", tmp_path / "dat")  # as in training, not upside down
    assert sequence.frames[1].spikes.geometry == SpikeGeometry(*SPIKE_SIZE, "big", False)
