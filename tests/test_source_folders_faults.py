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
from src.prepare.sources.folders import plan
from src.prepare.sources.planning import SourceOptions
from src.prepare.sources.recorded import name_gaps
from src.prepare.sources.run import run_plan
from tests.data_cases import moving_texture
from tests.source_cases import prepare, write_config
from tests.spike_cases import dense_to_events
from tests.spike_source_cases import GEOMETRY, RECORDED_FRAMES, write_recorded, write_stated


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    folder = root / "train" / "a"
    spikes = write_recorded(folder)
    write_spikes(folder / "spike.dat", spikes, GEOMETRY)
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


def cut(path, stop):
    path.write_bytes(path.read_bytes()[:stop])


def as_array(folder, spikes):
    """Replace spike.dat by an array."""
    (folder / "spike.dat").unlink(missing_ok=True)
    np.save(folder / "spike.npy", spikes)


def as_files(folder, arrays):
    """Replace spike.dat by one array per frame."""
    (folder / "spike").mkdir()
    (folder / "spike.dat").unlink()
    (folder / "spike.yaml").rename(folder / "spike" / "spike.yaml")
    for k, array in enumerate(arrays):
        np.save(folder / "spike" / f"img_{k:03d}.npy", array)


def edit(path, old, new):
    path.write_text(path.read_text().replace(old, new))


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


def test_simulating_needs_what_no_file_says(tmp_path):
    write_png(tmp_path / "train" / "b" / "0.png", moving_texture(1, (8, 16), 0)[0])
    refused(tmp_path, "--frames_averaged is needed(.|\n)*--frames_per_second is needed")
    options = {"frames_per_second": 100.0}
    too_few = "1 frames, 1 ticks: too few for one exposure of 3"
    refused(tmp_path, too_few, **options, frames_averaged=3)
    refused(tmp_path, "--frames_averaged 2: an odd number", **options, frames_averaged=2)
    refused(tmp_path, "--axes THW does not apply", **options, frames_averaged=1, axes="THW")


# ---------------------------------------------------------------- recordings that are not clear

CONTRADICTION = "source: x\nspike_height: 32\nspike_width: 48\nticks_per_second: 4000\n"
OPTIONS = {
    "options of simulating": {"stride": 3, "threshold": 3.0},
    "another order than the size says": {"axes": "HWT"},
    "axes that are none": {"axes": "TTW"},
}
UNCLEAR = {  # what is changed of the folder, given its spikes; the message
    "sharp frames without blurry": (
        lambda f, _: write_png(f.parents[1] / "val/b/0.png", moving_texture(1, (8, 16), 0)[0]),
        "two kinds .*train/a: recorded frames and spikes; val/b: sharp high-speed",
    ),
    "options of simulating": (
        lambda *_: None,
        "--threshold 3.0 does not apply: the sequences are recorded(.|\n)*--stride 3 does not",
    ),
    "partners are missing": (
        lambda f, _: [(f / n).unlink() for n in ("sharp/img_002.png", "blur/img_004.png")],
        "1 without a sharp frame of that name: img_002(.|\n)*1 without a blurry .*: img_004",
    ),
    "two frames of one number": (
        lambda f, _: [
            (f / kind / "img_003.png").rename(f / kind / "b_002.png") for kind in ("blur", "sharp")
        ],
        r"frames numbered 2 exist under several names",
    ),
    "another unit": (
        lambda f, _: edit(f / "exposures.csv", "[ticks]", "[us]"),
        r"frame img_001: exposure .* holds no tick .*is the unit in the header",
    ),
    "two spike files": (
        lambda f, s: np.save(f / "spike.npy", s),
        r"2 spike files \(spike\.dat, spike\.npy\); one for the whole sequence",
    ),
    "events in place of spikes": (
        lambda f, _: (f / "spike.dat").rename(f / "spike.raw").write_bytes(b"% evt 3.0\n% end\n"),
        r"no spikes; .*; spike\.raw is a Prophesee \.raw recording; these are events",
    ),
    "no spikes": (lambda f, _: (f / "spike.dat").unlink(), r"no spikes; spike\.dat, spike\.npy"),
    "too few spike files": (
        lambda f, s: as_files(f, [s[:40]] * (RECORDED_FRAMES - 1)),
        r"4 spike files .*Frames without one: img_004",
    ),
    "two places that say different things": (
        lambda f, _: (f.parents[1] / "dataset.yaml").write_text(CONTRADICTION),
        r"spike\.yaml says ticks_per_second: 2000\.0, dataset\.yaml of the data root says "
        r"ticks_per_second: 4000; correct the one .*inspect_spikes\.py /.*/spike\.dat shows",
    ),
    "axes that fit in two orders": (
        lambda f, s: as_array(f, s[:32]),
        r"32x32x48, the sensor 32x48 .*; give --axes THW or HTW",
    ),
    "another order than the size says": (as_array, r"32x48 \(.*\); give --axes THW$"),
    "axes that are none": (as_array, "name T, H and W once each"),
    "an array of two axes": (
        lambda f, _: as_array(f, np.zeros((5, 2))),
        r"shape \(5, 2\); dense spikes have three axes",
    ),
    "lists of events per frame": (
        lambda f, s: as_files(f, [dense_to_events(s[:40])] * RECORDED_FRAMES),
        "not clear where their t begins",
    ),
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_what_is_not_clear_is_refused(root, folder, spikes, name):
    change, message = UNCLEAR[name]
    change(folder, spikes)
    refused(root, message, **OPTIONS.get(name, {}))


def test_what_no_file_says_must_be_stated(root, folder, spikes):
    (folder / "spike.yaml").unlink()
    refused(root, r"spike\.dat: the size of the spike sensor is not known; .*dataset\.yaml")
    (folder / "spike.yaml").write_text("height: 32\nwidth: 48\n")
    refused(root, r"spike\.dat does not say ticks_per_second")
    as_array(folder, spikes)
    (folder / "spike.yaml").unlink()
    refused(root, r"the array is \d+x32x48, its size not stated; give --axes THW or TWH or")
    refused(root, "does not say ticks_per_second", axes="THW")
    write_stated(folder / "spike.yaml", width=40)
    refused(root, r"the sensor 32x40 \(height x width\); correct the size")


def test_f34_frames_without_an_exposure(root, folder):
    path = folder / "exposures.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    refused(root, r"no line in exposures\.csv for 1 frame\(s\): img_004")
    path.unlink()
    refused(root, r"exposures\.csv: cannot be read")


@pytest.mark.parametrize("text", ["height: [", "a: &a [1]\nheight: *a", "- 1", "\udcff"])
def test_f30_sidecars_that_are_no_plain_yaml(root, folder, text):
    (folder / "spike.yaml").write_bytes(text.encode(errors="surrogateescape"))
    refused(root, r"spike\.yaml: (not a plain|aliases|expected lines|not UTF-8)")


def test_a_container_of_several_arrays_needs_the_key(root, folder, spikes):
    (folder / "spike.dat").unlink()
    with h5py.File(folder / "spike.h5", "w") as file:
        file["spk"], file["label"] = spikes, np.zeros(3)
    refused(root, r"holds 2 arrays, \['label', 'spk'\]; choose one with --key")
    refused(root, r"is not one of \['label', 'spk'\]; name the array", key="other")
    assert plan(SourceOptions(root, key="spk")).sequences


# ---------------------------------------------------------------- damaged, or of something else


def test_f29_hostile_arrays_are_refused(root, folder):
    (folder / "spike.dat").unlink()
    np.savez(folder / "spike.npz", np.array([{"a": 1}, None], dtype=object))
    refused(root, r"spike\.npz: shape \(2,\)|Object arrays")
    np.savez(folder / "spike.npz", np.full((8, 32, 48), None, dtype=object))
    refused_when_written(root, r"spike\.npz: Object arrays cannot be loaded")


def test_f35_a_stream_shorter_than_its_exposures(root, folder):
    cut(folder / "spike.dat", 192 * 170)
    note = written(root)[1]
    assert "2 frames cannot be used: exposure leaves the stream" in note
    assert all(f"a/{name}" in note for name in ("img_003", "img_004"))
    cut(folder / "spike.dat", 192 * 30)
    message = r"5 frames cannot be used: .*has \[0, 30\).*; are the tick rate and the unit of"
    refused_when_written(root, message)


WRONG = {
    "cut": (lambda f, _: cut(f / "spike.dat", -1), r"spike\.dat: \d+ bytes are .* ticks of 32x48"),
    "a pointer": (
        lambda f, _: (f / "spike.dat").write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        r"spike\.dat: is a pointer of Git LFS",
    ),
    "dead": (lambda f, _: (f / "spike.dat").write_bytes(bytes(192 * 280)), "no spike at all in 28"),
    "dead array": (lambda f, s: as_array(f, np.zeros_like(s)), "no spike at all in 28"),
    "turned": (
        lambda f, s: as_array(f, s[:, ::-1]),
        "its spikes are upside down; store the array with its rows reversed",
    ),
    "mixed": (
        lambda f, s: as_array(f, np.random.default_rng(0).permuted(s, axis=2)),
        "do not look like the sharp frames in any order",
    ),
    "no images": (
        lambda f, _: [path.write_bytes(b"no image") for path in (f / "sharp").iterdir()],
        r"img_000\.png: truncated or not an image",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_f35_spikes_that_cannot_be_right_are_refused(root, folder, spikes, name):
    change, message = WRONG[name]
    change(folder, spikes)
    refused_when_written(root, message)


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


@pytest.mark.parametrize("kind", ["blur", "sharp"])
def test_f33_every_copied_image_is_looked_at(root, folder, kind):
    cut(folder / kind / "img_001.png", -200)
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
    edit(folder / "exposures.csv", "2,120,160,136\n", "")
    assert "1 frame(s) missing in the middle: 2;" in str(written(root, "again"))


def test_numbers_that_are_times_have_no_gaps():
    exposure = Exposure(0.0, 1.0)
    assert name_gaps([1000, 2000, 3000], dict.fromkeys([1000, 2000, 3000], exposure)) == []
    assert "2 frame(s) missing in the middle: 3, 4;" in name_gaps([1, 2, 5], {})[0]


@pytest.mark.parametrize("wrong", [1, 5])
def test_files_that_are_not_as_long_as_their_exposure_are_named(root, folder, spikes, wrong):
    lengths = [30 if k < wrong else 40 for k in range(5)]
    as_files(folder, [spikes[56 * k + 8 :][:length] for k, length in enumerate(lengths)])
    reason = "differ in length: .* is 40 ticks, the file has 30"
    if wrong == 5:
        refused_when_written(root, reason)
    else:
        (note,) = [line for line in written(root) if "differ in length" in line]
        assert re.search(reason, note)
        assert "img_000" in note


# ---------------------------------------------------------------- at another time


def restate(folder, change, header=None):
    """Write the times `change(t0, t1, t_sharp)` into the table of exposures."""
    table = folder / "exposures.csv"
    old_header, *rows = table.read_text().splitlines()
    cells = [[int(cell) for cell in row.split(",")] for row in rows]
    rows = [",".join(map(str, (k, *change(*times)))) for k, *times in cells]
    table.write_text("\n".join([header or old_header, *rows]))


def test_times_in_another_unit_are_named_and_not_the_disk(root, folder):
    """Ticks under the header of seconds: hours of video, of which the spikes hold an instant."""
    header = "frame_idx,t0[s],t1[s],t_sharp[s]"
    restate(folder, lambda *times: (time * 100_000 for time in times), header)
    (sequence,) = plan(SourceOptions(root)).sequences
    files = [path for kind in ("blur", "sharp", ".") for path in (folder / kind).glob("*.[pd]*")]
    assert sequence.out_bytes == sum(path.stat().st_size for path in files)
    refused_when_written(root, r"are the tick rate and the unit of exposures.csv right\?")


@pytest.mark.parametrize(
    ("factor", "begin", "unit", "message"),
    [
        (500, 0, "ticks", "all times are multiples of 500, so they are no ticks; divide them by"),
        (1, 100_000, "ticks", "its spikes begin at tick 100000, the exposures end at 272; t co"),
        (1, 0, "s", r"are the tick rate and the unit of exposures.csv right\?"),
    ],
)
def test_lists_of_events_in_another_unit_are_refused_before_they_are_written(
    root, folder, spikes, factor, begin, unit, message
):
    events = dense_to_events(spikes) * (factor, 1, 1) + (begin, 0, 0)
    as_array(folder, events)
    edit(folder / "exposures.csv", "[ticks]", f"[{unit}]")
    refused_when_written(root, message)
    path = root / "out/spike/spike.dat"
    assert not path.exists() or path.stat().st_size < 2 * (len(events) * 24)


def test_endings_in_capitals_are_the_same(root, folder):
    before = written(root)
    (folder / "spike.dat").rename(folder / "spike.DAT")
    assert written(root, "again") == before


def test_what_is_accepted_is_written_and_prepared(root, folder, capsys):
    """The sharp frames are stated 4 ticks late; the user knows better, and says so."""
    restate(folder, lambda t0, t1, t_sharp: (t0, t1, t_sharp + 4))
    other = root / "val/b"
    write_spikes(other / "spike.dat", write_recorded(other, seed=1), SpikeGeometry(32, 48))
    shutil.copy(folder / "spike.yaml", other)
    config = write_config(root.parent, root.parent / "ours")
    assert prepare(config, "folders", root) == 1
    assert '--accept "REASON"' in capsys.readouterr().err
    assert not (root.parent / "ours/train/a").exists()
    assert prepare(config, "folders", root, "--accept", "measured by hand") == 0
    assert "content: accepted: measured by hand" in capsys.readouterr().out
