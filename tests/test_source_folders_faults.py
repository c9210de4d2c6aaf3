"""Own folders that are ambiguous, incomplete, damaged or at another time: what to state or fix."""

import re
import shutil

import h5py
import numpy as np
import pytest

from src.data.errors import BadFileError, DataSetError
from src.data.exposures import Exposure
from src.data.frames import write_png
from src.data.spikes.spike_dat import SpikeGeometry, write_spikes
from src.prepare.sources.own import plan
from src.prepare.sources.plan import SourceOptions
from src.prepare.sources.recorded import name_gaps
from src.prepare.sources.run import run_plan
from tests.data_cases import moving_texture
from tests.source_cases import prepare, write_config
from tests.spike_cases import dense_to_events
from tests.spike_source_cases import RECORDED_FRAMES, SPIKE_SIZE, write_recorded, write_stated


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    folder = root / "train" / "a"
    spikes = write_recorded(folder)
    write_spikes(folder / "spike.dat", spikes, SpikeGeometry(*SPIKE_SIZE))
    write_stated(folder / "spike.yaml")
    np.save(root / "spikes.npy", spikes)
    return root


@pytest.fixture
def root(original, tmp_path):
    return shutil.copytree(original, tmp_path / "in")


@pytest.fixture
def folder(root):
    return root / "train" / "a"


@pytest.fixture
def spikes(root):
    return np.load(root / "spikes.npy")


def refused(root, message, **options):
    with pytest.raises(DataSetError, match=message):
        plan(SourceOptions(root, **options))


def written(root, name="good", **options):
    """Write the only sequence of a plan; return its notes."""
    (sequence,) = plan(SourceOptions(root, **options)).sequences
    return sequence.write(root / name)


def refused_when_written(root, message, **options):
    with pytest.raises((BadFileError, DataSetError), match=message):
        written(root, "out", **options)


# ---------------------------------------------------------------- what is it?


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["blur/0.png", "1.png"], "1 images, blur"),
        (["1.png", "clip.mp4"], "1 images, clip.mp4"),
        (["a.mp4", "b.mov"], "a.mp4, b.mov"),
        (["notes.txt"], "notes.txt"),
        (["frames/0.png"], "frames"),
        ([], "nothing"),
    ],
)
def test_what_is_neither_or_both_is_listed(tmp_path, names, found):
    (tmp_path / "train" / "x").mkdir(parents=True)
    for name in names:
        path = tmp_path / "train" / "x" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    refused(tmp_path, f"x: holds {found}; a sequence holds sharp high-speed frames")


def test_two_kinds_in_one_data_set(root):
    write_png(root / "val" / "b" / "0.png", moving_texture(1, (8, 16), 0)[0])
    refused(root, "two kinds .*train/a: recorded frames and spikes; val/b: sharp high-speed")


def test_f36_empty_folders_and_links_in_a_circle(tmp_path):
    refused(tmp_path, "no sequences in train and val; found nothing")
    (tmp_path / "train").mkdir()
    (tmp_path / "Train 2").mkdir()
    refused(tmp_path, "no sequences in train and val; found Train 2, train")
    (tmp_path / "train" / "loop").symlink_to("loop")
    (tmp_path / "train" / "readme.txt").touch()
    refused(tmp_path, "loop: is a link that leads nowhere(.|\n)*readme.txt: is neither a folder")


def test_f36_a_circle_of_folders_is_not_walked(root, folder):
    (folder / "blur" / "self").symlink_to(folder)
    assert plan(SourceOptions(root)).sequences[0].num_exposures == RECORDED_FRAMES


# ---------------------------------------------------------------- options


def test_simulating_needs_what_no_file_says(tmp_path):
    write_png(tmp_path / "train" / "b" / "0.png", moving_texture(1, (8, 16), 0)[0])
    refused(tmp_path, "--frames_per_second is needed(.|\n)*--frames_averaged is needed")
    options = {"frames_per_second": 100.0}
    refused(
        tmp_path, "1 frames, 1 ticks: too few for one exposure of 3", **options, frames_averaged=3
    )
    refused(tmp_path, "--frames_averaged 2: an odd number", **options, frames_averaged=2)
    refused(tmp_path, "--axes THW does not apply", **options, frames_averaged=1, axes="THW")


def test_recordings_are_not_simulated(root):
    message = "--threshold 3.0 does not apply: the sequences are recorded(.|\n)*--stride 3 does not"
    refused(root, message, stride=3, threshold=3.0)


# ---------------------------------------------------------------- recordings


def test_f34_missing_partners_are_named(root, folder):
    (folder / "sharp" / "img_002.png").unlink()
    (folder / "blur" / "img_004.png").unlink()
    refused(
        root,
        "1 without a sharp frame of that name: img_002(.|\n)*1 without a blurry .*: img_004",
    )


def test_f34_frames_without_an_exposure(root, folder):
    path = folder / "exposures.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    refused(root, r"no line in exposures\.csv for 1 frame\(s\): img_004")
    path.unlink()
    refused(root, r"exposures\.csv: cannot be read")


def test_times_in_another_unit_than_stated(root, folder):
    path = folder / "exposures.csv"
    path.write_text(path.read_text().replace("[ticks]", "[us]"))
    refused(root, r"frame img_001: exposure .* holds no tick .*is the unit in the header")


@pytest.mark.parametrize("text", ["height: [", "a: &a [1]\nheight: *a", "- 1", "\udcff"])
def test_f30_sidecars_that_are_no_plain_yaml(root, folder, text):
    (folder / "spike.yaml").write_bytes(text.encode(errors="surrogateescape"))
    refused(root, r"spike\.yaml: (not a plain|aliases|expected lines|not UTF-8)")


def test_several_or_no_spike_files(root, folder, spikes):
    np.save(folder / "spike.npy", spikes)
    refused(root, r"2 spike files \(spike\.dat, spike\.npy\); one for the whole sequence")
    for name in ("spike.npy", "spike.dat"):
        (folder / name).unlink()
    refused(root, r"no spikes; spike\.dat, spike\.npy")
    (folder / "spike").mkdir()
    for k in range(RECORDED_FRAMES - 1):
        np.save(folder / "spike" / f"img_{k:03d}.npy", spikes[:40])
    refused(root, r"4 spike files .*Frames without one: img_004")


def test_what_no_file_says_must_be_stated(root, folder, spikes):
    (folder / "spike.yaml").unlink()
    refused(root, r"spike\.dat: the size of the spike sensor is not known; .*dataset\.yaml")
    (folder / "spike.yaml").write_text("height: 32\nwidth: 48\n")
    refused(root, r"spike\.dat does not say ticks_per_second")
    (folder / "spike.dat").unlink()
    np.save(folder / "spike.npy", spikes)
    (folder / "spike.yaml").unlink()
    refused(root, r"the array is \d+x32x48, its size not stated; give --axes THW or TWH or")
    refused(root, "does not say ticks_per_second", axes="THW")
    refused(root, "name T, H and W once each", axes="TTW")
    write_stated(folder / "spike.yaml", width=40)
    refused(root, r"the sensor 32x40 \(height x width\); no --axes fits; correct the size")
    refused(root, "no --axes fits; correct the size", axes="HWT")
    write_stated(folder / "spike.yaml")
    refused(root, r"32x48 \(height x width\); give --axes THW$", axes="HWT")
    np.save(folder / "spike.npy", np.zeros((5, 2)))
    refused(root, r"shape \(5, 2\); dense spikes have three axes")


def test_two_places_that_say_different_things(root):
    (root / "dataset.yaml").write_text(
        "source: x\nspike_height: 32\nspike_width: 48\nticks_per_second: 4000\n"
    )
    refused(
        root,
        r"spike\.yaml says ticks_per_second: 2000, dataset\.yaml of the data root says "
        r"ticks_per_second: 4000; correct the one .*inspect_spikes\.py /.*/spike\.dat shows",
    )


def test_axes_that_fit_in_two_orders_are_asked_for(root, folder, spikes):
    (folder / "spike.dat").unlink()
    np.save(folder / "spike.npy", spikes[:32])
    refused(root, r"32x32x48, the sensor 32x48 .*; give --axes THW or HTW")


@pytest.mark.parametrize("key", [None, "other"])
def test_a_container_of_several_arrays_needs_the_key(root, folder, spikes, key):
    (folder / "spike.dat").unlink()
    with h5py.File(folder / "spike.h5", "w") as file:
        file["spk"], file["label"] = spikes, np.zeros(3)
    expected = {
        None: r"holds 2 arrays, \['label', 'spk'\]; choose one with --key",
        "other": r"is not one of \['label', 'spk'\]; name the array",
    }
    refused(root, expected[key], key=key)
    assert plan(SourceOptions(root, key="spk")).sequences


def test_lists_of_events_per_frame_are_not_clear(root, folder, spikes):
    (folder / "spike.dat").unlink()
    (folder / "spike").mkdir()
    (folder / "spike.yaml").rename(folder / "spike" / "spike.yaml")
    for k in range(RECORDED_FRAMES):
        np.save(folder / "spike" / f"img_{k:03d}.npy", dense_to_events(spikes[:40]))
    refused(root, "not clear where their t begins")


def test_f29_hostile_arrays_are_refused(root, folder):
    (folder / "spike.dat").unlink()
    np.savez(folder / "spike.npz", np.array([{"a": 1}, None], dtype=object))
    refused(root, r"spike\.npz: shape \(2,\)|Object arrays")
    np.savez(folder / "spike.npz", np.full((8, 32, 48), None, dtype=object))
    refused_when_written(root, r"spike\.npz: Object arrays cannot be loaded")


def test_f35_a_stream_shorter_than_its_exposures(root, folder):
    path = folder / "spike.dat"
    path.write_bytes(path.read_bytes()[: 192 * 170])
    note = written(root)[1]
    assert "2 frames cannot be used: exposure leaves the stream" in note
    assert all(f"a/{name}" in note for name in ("img_003", "img_004"))
    path.write_bytes(path.read_bytes()[: 192 * 30])
    message = r"5 frames cannot be used: .*has \[0, 30\).*; are the tick rate and the unit of"
    refused_when_written(root, message)


def test_f35_a_size_that_does_not_fit(root, folder):
    path = folder / "spike.dat"
    path.write_bytes(path.read_bytes()[:-1])
    refused_when_written(root, r"spike\.dat: \d+ bytes are .* ticks of 32x48")


@pytest.mark.parametrize("layout", ["dat", "npy"])
def test_f35_no_spike_at_all(root, folder, spikes, layout):
    if layout == "npy":
        (folder / "spike.dat").unlink()
        np.save(folder / "spike.npy", np.zeros_like(spikes))
    else:
        (folder / "spike.dat").write_bytes(bytes(192 * 280))
    refused_when_written(root, "has no spike at all in 28")


@pytest.mark.parametrize(
    ("stated", "advice"),
    [
        ({"bit_order": "big"}, "bit_order little, flip_rows true; stated is bit_order big"),
        ({"flip_rows": "false"}, "bit_order little, flip_rows true; stated is .* flip_rows false"),
    ],
)
def test_f35_bits_that_are_stated_wrongly(root, folder, stated, advice):
    write_stated(folder / "spike.yaml", **stated)
    refused_when_written(root, f'{advice}(.|\n)*nothing was written: .*--accept "REASON"')
    assert re.search(advice, str(written(root, accept="the picture is symmetric")))


def test_f35_an_array_that_is_upside_down(root, folder, spikes):
    (folder / "spike.dat").unlink()
    np.save(folder / "spike.npy", spikes[:, ::-1])
    refused_when_written(root, "its spikes are upside down; store the array with its rows reversed")


def test_spikes_of_something_else_are_refused(root, folder, spikes):
    (folder / "spike.dat").unlink()
    (folder / "spike.yaml").unlink()
    (root / "dataset.yaml").write_text("source: x\nticks_per_second: 2000\n")
    np.save(folder / "spike.npy", spikes)
    refused_when_written(root, "do not look like the sharp frames in any order", axes="TWH")
    assert "stated tick 16.0, measured 1" in str(written(root, axes="THW"))
    np.save(folder / "spike.npy", np.random.default_rng(0).permuted(spikes, axis=2))
    refused_when_written(root, "do not look like the sharp frames in any order", axes="THW")


def test_f36_images_that_cannot_be_read_are_named(root, folder):
    for path in (folder / "sharp").iterdir():
        path.write_bytes(b"no image")
    refused_when_written(root, r"img_000\.png: truncated or not an image")


# ---------------------------------------------------------------- what was lost on the way


@pytest.mark.parametrize("kind", ["blur", "sharp"])
def test_f33_every_copied_image_is_looked_at(root, folder, kind):
    path = folder / kind / "img_001.png"
    path.write_bytes(path.read_bytes()[:-200])
    message = rf"{kind}/img_001\.png: empty, or its end is missing"
    with pytest.raises(DataSetError, match=message) as caught:
        run_plan(plan(SourceOptions(root)), root / "out", workers=1)
    assert str(caught.value).count("train/a: ") == 1


def test_f34_gaps_are_named(root, folder):
    for kind in ("blur", "sharp"):
        (folder / kind / "img_002.png").unlink()
    notes = str(written(root))
    assert "1 line(s) of exposures.csv have no frames and are not used: 2;" in notes
    assert "missing in the middle" not in notes  # not the same twice
    table = folder / "exposures.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join(line for line in lines if not line.startswith("2,")))
    assert "1 frame(s) missing in the middle: 2;" in str(written(root, "again"))


@pytest.mark.parametrize("wrong", [1, 5])
def test_files_that_are_not_as_long_as_their_exposure_are_named(tmp_path, wrong):
    folder = tmp_path / "train" / "b"
    spikes = write_recorded(folder)
    for k in range(5):
        length = 30 if k < wrong else 40
        path = folder / "spike" / f"img_{k:03d}.dat"
        write_spikes(path, spikes[56 * k + 8 :][:length], SpikeGeometry(*SPIKE_SIZE))
    write_stated(folder / "spike" / "spike.yaml")
    reason = "differ in length: .* is 40 ticks, the file has 30"
    if wrong == 5:
        with pytest.raises(DataSetError, match=reason):
            written(tmp_path)
    else:
        (note,) = [line for line in written(tmp_path) if "differ in length" in line]
        assert re.search(reason, note)
        assert "img_000" in note


def test_numbers_that_are_times_have_no_gaps():
    exposure = Exposure(0.0, 1.0)
    assert name_gaps([1000, 2000, 3000], dict.fromkeys([1000, 2000, 3000], exposure)) == []
    assert "2 frame(s) missing in the middle: 3, 4;" in name_gaps([1, 2, 5], {})[0]


def restate(folder, change, header=None):
    """Write the times `change(t0, t1, t_sharp)` into the table of exposures."""
    table = folder / "exposures.csv"
    old_header, *rows = table.read_text().splitlines()
    cells = [[int(cell) for cell in row.split(",")] for row in rows]
    rows = [",".join(map(str, (k, *change(*times)))) for k, *times in cells]
    table.write_text("\n".join([header or old_header, *rows]))


def test_one_exposure_late_is_refused(root, folder):
    """The table is 56 ticks late; what the spikes of these windows show is another frame."""
    restate(folder, lambda *times: (time + 56 for time in times))
    for kind in ("blur", "sharp"):
        (folder / kind / "img_004.png").unlink()
    refused_when_written(root, "spikes are 1 exposure early: in 3 of 3")


def test_swapped_folders_are_asked_for_where_times_do_not_fit(root, folder):
    swap(folder, "blur", "sharp")
    restate(folder, lambda t0, t1, t_sharp: (t0, t1, t_sharp - 12))
    refused_when_written(root, "are the folders blur and sharp swapped")


def test_times_in_another_unit_are_named_and_not_the_disk(root, folder):
    """Ticks under the header of seconds: hours of video, of which the spikes hold an instant."""
    restate(
        folder,
        lambda *times: (time * 100_000 for time in times),
        "frame_idx,t0[s],t1[s],t_sharp[s]",
    )
    (sequence,) = plan(SourceOptions(root)).sequences
    files = [path for kind in ("blur", "sharp", ".") for path in (folder / kind).glob("*.[pd]*")]
    assert sequence.out_bytes == sum(path.stat().st_size for path in files)
    refused_when_written(root, r"are the tick rate and the unit of exposures.csv right\?")


@pytest.mark.parametrize("unit", ["microseconds", "table", "since the camera was switched on"])
def test_lists_of_events_in_another_unit_are_refused_before_they_are_written(root, folder, unit):
    events = dense_to_events(write_recorded(folder))
    (folder / "spike.dat").unlink()
    if unit == "microseconds":
        np.save(folder / "spike.npy", events * (500, 1, 1))
        message = r"all times are multiples of 500, so they are no ticks; divide them by 500"
    elif unit != "table":
        np.save(folder / "spike.npy", events + (100_000, 0, 0))
        message = r"its spikes begin at tick 100000, the exposures end at 272; t counts from time 0"
    else:
        np.save(folder / "spike.npy", events)
        table = folder / "exposures.csv"
        table.write_text(table.read_text().replace("[ticks]", "[s]"))
        message = r"are the tick rate and the unit of exposures.csv right\?"
    refused_when_written(root, message)
    path = root / "out/spike/spike.dat"
    assert not path.exists() or path.stat().st_size < 2 * (len(events) * 24)


def test_endings_in_capitals_are_the_same(root, folder):
    before = written(root)
    (folder / "spike.dat").rename(folder / "spike.DAT")
    assert written(root, "again") == before


def swap(folder, first, second):
    """Exchange two files."""
    (folder / first).rename(folder / "other")
    (folder / second).rename(folder / first)
    (folder / "other").rename(folder / second)


def test_single_frames_of_another_time_are_named(root, folder):
    for kind in ("blur", "sharp"):
        swap(folder / kind, "img_002.png", "img_003.png")
    notes = str(written(root))
    assert "3 of 5 sampled exposures fit their own blurry frame best" in notes
    assert "img_003 one before it, img_002 one after it" in notes


def test_frames_of_one_number_are_refused_before_they_are_copied(root, folder):
    for kind in ("blur", "sharp"):
        (folder / kind / "img_003.png").rename(folder / kind / "other_002.png")
    refused(root, r"frames numbered \[2\] exist under several names")


def test_what_is_accepted_is_written_and_prepared(root, folder, capsys):
    """The sharp frames are stated 4 ticks late; the user knows better, and says so."""
    restate(folder, lambda t0, t1, t_sharp: (t0, t1, t_sharp + 4))
    shutil.copytree(folder, root / "in/train/a")
    spikes = write_recorded(root / "in/val/b", seed=1)
    shutil.copy(folder / "spike.yaml", root / "in/val/b")
    write_spikes(root / "in/val/b/spike.dat", spikes, SpikeGeometry(*SPIKE_SIZE))
    config = write_config(root, root / "ours")
    assert prepare(config, "folders", root / "in") == 1
    assert '--accept "REASON"' in capsys.readouterr().err
    assert not (root / "ours/train/a").exists()
    assert prepare(config, "folders", root / "in", "--accept", "measured by hand") == 0
    assert "content: accepted: measured by hand" in capsys.readouterr().out
