"""The user's own folders: sharp frames are simulated from, recordings converted and checked."""

import cv2
import h5py
import numpy as np
import pytest

from src.data.description import DataDescription, read_description, write_description
from src.data.errors import DataSetError
from src.data.exposures import read_exposures
from src.data.frames import list_frames, read_image, write_png
from src.data.spikes.spike_dat import SpikeFile, SpikeGeometry, read_sidecar, write_spikes
from src.prepare.sources.folders import plan
from src.prepare.sources.planning import SourceOptions
from src.prepare.sources.run import run_plan
from tests.data_cases import moving_texture
from tests.source_cases import (
    Drift,
    prepare,
    prepare_data,
    read_stream,
    tick_errors,
    write_config,
    write_video,
)
from tests.spike_cases import dense_to_events
from tests.spike_source_cases import (
    RECORDED_FRAMES,
    SIZE,
    SPIKE_SIZE,
    write_recorded,
    write_stated,
)


def write_dat(folder, spikes, bit_order="little", flip_rows=True):
    geometry = SpikeGeometry(*SPIKE_SIZE, bit_order, flip_rows)
    write_spikes(folder / "spike.dat", spikes, geometry)
    write_stated(folder / "spike.yaml", bit_order=bit_order, flip_rows=str(flip_rows).lower())


def write_array(folder, spikes, name, key="arr_0"):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, spikes)
    elif path.suffix == ".npz":
        np.savez(path, **{key: spikes})
    else:
        with h5py.File(path, "w") as file:
            file[key] = spikes


def make(root, output, **options):
    """Write all sequences of a plan; return it and the notes."""
    planned, notes = plan(SourceOptions(root, **options)), []
    for sequence in planned.sequences:
        (output / sequence.where).mkdir(parents=True)
        notes += sequence.write(output / sequence.where)
    return planned, notes


CONTAINERS = {
    "dat": (write_dat, {}),
    "dat, other bits": (lambda f, s: write_dat(f, s, "big", flip_rows=False), {}),
    "npy TWH": (lambda f, s: write_array(f, s.transpose(0, 2, 1), "spike.npy"), {"axes": "TWH"}),
    "npz HWT": (
        lambda f, s: write_array(f, s.transpose(1, 2, 0).astype(bool), "spike/all.npz", "spk"),
        {"axes": "HWT", "key": "spk"},
    ),
    "h5": (lambda f, s: write_array(f, s, "spike.h5", "raw_spike"), {}),
    "events": (
        lambda f, s: write_array(f, dense_to_events(s)[:, ::-1], "spike.npy"),
        {"columns": "xyt"},
    ),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_recordings_in_every_container_become_the_same_stream(tmp_path, container):
    write, options = CONTAINERS[container]
    folder = tmp_path / "in" / "train" / "straße 1"
    spikes = write_recorded(folder, unit="ms" if container == "h5" else "ticks")
    write(folder, spikes)
    if not (folder / "spike.yaml").exists():
        write_stated((folder / "spike" if "npz" in container else folder) / "spike.yaml")
    planned, notes = make(tmp_path / "in", tmp_path / "out", **options)
    ours = tmp_path / "out" / "train" / "straße 1"
    stream, rate = read_stream(ours)
    assert rate == 2000
    assert np.array_equal(stream, spikes)
    sidecar = read_sidecar(ours / "spike" / "spike.dat")
    assert (sidecar.bit_order, sidecar.flip_rows) == ("little", True)
    assert [path.name for path in (ours / "spike").glob("*.dat")] == ["spike.dat"]
    exposure = read_exposures(ours / "exposures.csv", rate)[2]
    assert [t * rate for t in (exposure.t0, exposure.t1, exposure.t_sharp)] == pytest.approx(
        [120, 160, 136]
    )
    assert planned.notes[0].startswith("train/straße 1: recorded frames and spikes; ")
    assert "stated tick 16.0, measured 16." in notes[-1] or "measured 15.9" in notes[-1]
    assert len(list_frames(ours / "blur", [".png"])) == RECORDED_FRAMES


def test_one_file_per_frame_stays_one_per_frame(tmp_path):
    folder = tmp_path / "in" / "val" / "a"
    spikes = write_recorded(folder)
    for k in range(RECORDED_FRAMES):
        write_array(folder, spikes[56 * k + 8 : 56 * k + 48], f"spike/img_{k:03d}.npy")
    write_stated(folder / "spike" / "spike.yaml")
    planned, notes = make(tmp_path / "in", tmp_path / "out")
    assert "5 files, one per frame" in planned.notes[0]
    assert "stated tick 16.0, measured 16." in notes[-1] or "measured 15.9" in notes[-1]
    for k, path in enumerate(sorted((tmp_path / "out" / "val" / "a" / "spike").glob("*.dat"))):
        assert path.name == f"img_{k:03d}.dat"
        file = SpikeFile(path, SpikeGeometry(*SPIKE_SIZE))
        assert np.array_equal(file.read(0, 40), spikes[56 * k + 8 : 56 * k + 48])


def test_a_table_that_is_off_is_refused_with_the_offset(tmp_path):
    folder = tmp_path / "in" / "train" / "a"
    spikes = write_recorded(folder)
    write_dat(folder, spikes[6:])  # the first six ticks are lost
    with pytest.raises(DataSetError, match=r"the sharp frame (5\.[5-9]|6\.[0-5]) ticks too early"):
        make(tmp_path / "in", tmp_path / "out")


def test_the_description_is_the_users_completed(tmp_path):
    folder = tmp_path / "in" / "train" / "a"
    write_array(folder, write_recorded(folder), "spike.npy")
    said = DataDescription("lab 3", "recorded", ticks_per_second=2000, threshold=1.5)
    write_description(tmp_path / "in", said)
    planned, _ = make(tmp_path / "in", tmp_path / "out", axes="THW")
    description = planned.description
    assert (description.source, description.blur_kind) == ("lab 3", "recorded")
    assert (description.spike_height, description.spike_width) == SPIKE_SIZE
    assert (description.threshold, description.ticks_per_second) == (1.5, 2000)
    errors = tick_errors(tmp_path / "out" / "train" / "a")
    assert max(map(abs, errors.values())) <= 0.5


# ---------------------------------------------------------------- simulating


def write_sharp(folder, seed=0, frames=45, as_video=False):
    scene = Drift(seed)
    pictures = [scene.at(j) for j in range(frames)]
    if as_video:
        write_video(folder.with_suffix(".mp4"), pictures)
        return
    for j, picture in enumerate(pictures):
        write_png(folder / f"{j:05d}.png", picture)


def test_from_own_frames_to_training_set(tmp_path, capsys):
    write_sharp(tmp_path / "in" / "train" / "a b")
    write_sharp(tmp_path / "in" / "val" / "c", seed=1, as_video=True)
    config, root = write_config(tmp_path, tmp_path / "ours"), tmp_path / "ours"
    options = ["--frames_per_second", "960", "--frames_averaged", "7", "--stride", "9"]
    options += ["--interpolator", "linear", "--ticks_per_frame", "8"]
    assert prepare(config, "folders", tmp_path / "in", *options) == 0, capsys.readouterr()
    assert "train: 1 sequences, 5 frames, 5 aligned" in capsys.readouterr().out
    for folder in (root / "train" / "a b", root / "val" / "c"):
        assert max(map(abs, tick_errors(folder, width=15).values())) <= 0.5
    description = read_description(root)
    assert description.frames_averaged == (7,)
    assert description.ticks_per_second == 7680
    assert prepare_data.main(["--config", str(config), "--check_only"]) == 0, capsys.readouterr()
    first = read_image(root / "train" / "a b" / "sharp" / "000001.png")
    assert np.array_equal(first, Drift(0).at(12))


# ---------------------------------------------------------------- a root that holds something


SIMULATED = ("--frames_averaged", "7", "--frames_per_second", "240")


def run_script(folder, source, root, *options):
    return prepare(write_config(folder, root), "folders", source, *options)


def write_recordings(root):
    for seed, split in enumerate(("train", "val")):
        folder = root / split / "a"
        write_dat(folder, write_recorded(folder, seed))


def write_bitmaps(root, seed):
    """Write sharp frames without compression: their files are of one size whatever they show."""
    for number, split in enumerate(("train", "val")):
        (root / split / "a").mkdir(parents=True, exist_ok=True)
        for j, frame in enumerate(moving_texture(22, SIZE, seed=seed + number)):
            cv2.imwrite(str(root / split / "a" / f"{j:04d}.bmp"), frame[..., ::-1])


@pytest.mark.parametrize("is_input", [True, False])
def test_what_cannot_be_made_again_stays(tmp_path, is_input, capsys):
    root = tmp_path / "own"
    write_recordings(root)
    source = root
    if not is_input:
        source = tmp_path / "other"
        write_recordings(source)
    before = sorted(root.rglob("*"))
    assert run_script(tmp_path, source, root) == 1
    printed = capsys.readouterr().err
    reason = "is DATA.ROOT and --input at the same time" if is_input else "has no source.json"
    assert reason in printed
    assert "delete what is there" not in printed
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize(("given", "root"), [("own", "own/train/a/ours"), ("own/val/b", "own")])
def test_a_root_inside_the_input_is_refused(tmp_path, given, root, capsys):
    write_bitmaps(tmp_path / given, seed=0)
    before = sorted(tmp_path.rglob("*"))
    write_config(tmp_path, tmp_path / root)
    assert run_script(tmp_path, tmp_path / given, tmp_path / root, *SIMULATED) == 1
    assert "lie in each other" in capsys.readouterr().err
    assert len(sorted(tmp_path.rglob("*"))) == len(before) + 1  # the configuration


def test_names_of_250_characters(tmp_path):
    """The longest that file systems take are 255; partial and hidden names are no longer."""
    name = "n" * 245
    folder = tmp_path / "in" / "train" / (name + "clips")
    write_dat(folder, write_recorded(folder))
    for kind in ("blur", "sharp"):
        for path in sorted((folder / kind).iterdir()):
            path.rename(path.with_name(f"{name[:-6]}{path.name}"))
    root = tmp_path / "out"
    run_plan(plan(SourceOptions(tmp_path / "in")), root, workers=1)
    assert len(list((root / "train" / folder.name / "blur").iterdir())) == RECORDED_FRAMES


def test_other_frames_of_the_same_size_are_noticed(tmp_path, capsys):
    write_bitmaps(tmp_path / "own", seed=0)
    root = tmp_path / "ours"
    assert run_script(tmp_path, tmp_path / "own", root, *SIMULATED) == 0
    assert run_script(tmp_path, tmp_path / "own", root, *SIMULATED, "--seed", "1") == 1
    assert "or delete what is there" in capsys.readouterr().err
    assert run_script(tmp_path, tmp_path / "own", root, *SIMULATED) == 0
    before = read_image(root / "train/a/sharp/000001.png")
    write_bitmaps(tmp_path / "own", seed=7)
    assert run_script(tmp_path, tmp_path / "own", root, *SIMULATED) == 1
    assert f"{root}/train/a was made with frames_sha256" in capsys.readouterr().err
    record = root / "train/a/source.json"  # one of before this was kept is still valid
    lines = record.read_text().splitlines()
    record.write_text("\n".join(line for line in lines if "frames_sha256" not in line))
    assert run_script(tmp_path, tmp_path / "own", root, *SIMULATED) == 1
    assert f"{root}/train/a was made with" not in capsys.readouterr().err
    assert (read_image(root / "train/a/sharp/000001.png") == before).all()
