"""A wrong folder, option or number is named once, with what to write instead."""

import dataclasses

import numpy as np
import pytest

from src.data.description import DataDescription
from src.data.errors import DataSetError
from src.data.frames import write_png
from src.data.scanning import stated_spikes
from src.data.spikes.spike_dat import SpikeGeometry, SpikeSidecar, write_spikes
from src.prepare.sources.plan import (
    GOPRO_FRAMES,
    GOPRO_PAIRS,
    GOPRO_SPIKES,
    RECORDED,
    X4K,
    SourceOptions,
    recognise,
)
from src.prepare.sources.run import SOURCES
from tests.data_cases import moving_texture
from tests.spike_source_cases import write_gopro_clip, write_recorded


def problems_of(source, root, **options):
    with pytest.raises(DataSetError) as caught:
        SOURCES[source](SourceOptions(root, **options))
    return caught.value.problems


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory):
    """Every data set, in folders of their own."""
    root = tmp_path_factory.mktemp("downloaded")
    for clip in ("GOPR0384_11_00", "GOPR0385_11_01"):
        write_gopro_clip(root / "gopro", clip, all_frames=True)
    for name in ("GOPRO_Large", "GOPRO_Large_spike_seq", "GOPRO_Large_all"):
        (root / "alone" / name).mkdir(parents=True)
        (root / "alone" / name / name).symlink_to(root / "gopro" / name)
    for clip in ("train/002/occ008.320", "train/003/occ009.100"):
        write_png(root / "x4k" / clip / "0000.png", moving_texture(1, (16, 16), 0)[0])
    write_recorded(root / "own" / "train" / "a")
    return root


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        (["train/a/blur/x", "train/a/sharp/x", "train/a/exposures.csv"], RECORDED),
        (["val/a/blur/x", "val/a/sharp/x", "val/a/exposures.csv", "val/a/spike.dat"], RECORDED),
        (["test/GOPR0384_11_00/blur/x", "test/GOPR0384_11_00/sharp/x"], GOPRO_PAIRS),
        (["train/GOPR0384_11_00/spike/000001.dat"], GOPRO_SPIKES),
        (["train/GOPR0384_11_00/spike.dat"], GOPRO_SPIKES),
        (["train/GP010384_11_00/000001.png"], GOPRO_FRAMES),
        (["encoded_train/002/occ008.320.mp4"], X4K),
        (["test/Type1/TEST01_003_f0433/0000.png"], X4K),
        (["train/.hidden/occ008.320/0000.png", "train/file"], None),
        (["train/a/blur/x", "train/a/sharp/x"], None),
        (["train/a/notes.txt", "train/b/occ008.320/0000.png"], X4K),
        (["elsewhere/GOPR0384_11_00/000001.png"], None),
    ],
)
def test_what_a_folder_looks_like_by_hand(tmp_path, paths, found):
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert recognise(tmp_path) == found


LARGE, SPIKES, FRAMES = (
    f"alone/{name}/{name}" for name in ("GOPRO_Large", "GOPRO_Large_spike_seq", "GOPRO_Large_all")
)


@pytest.mark.parametrize(
    ("source", "folder", "message"),
    [
        ("x4k1000fps", LARGE, "looks like GOPRO_Large (blurry and sharp frames"),
        ("folders", LARGE, "looks like GOPRO_Large (blurry and sharp frames"),
        ("gopro", LARGE, "this is not GOPRO_Large_all; it looks like GOPRO_Large (blurry"),
        ("x4k1000fps", SPIKES, "use --source spk_gopro"),
        ("folders", SPIKES, "use --source spk_gopro"),
        ("gopro", SPIKES, "use --source spk_gopro"),
        ("x4k1000fps", FRAMES, "use --source gopro"),
        ("gopro", "x4k", "looks like X4K1000FPS: use --source x4k1000fps"),
        ("folders", "x4k", "looks like X4K1000FPS: use --source x4k1000fps"),
        ("gopro", "own", "use --source folders"),
        ("x4k1000fps", "own", "use --source folders"),
    ],
)
def test_another_data_set_is_recognised_and_its_source_named(downloaded, source, folder, message):
    (problem,) = problems_of(source, downloaded / folder)
    assert problem.startswith("this is not ")
    assert message in problem


@pytest.mark.parametrize("source", ["gopro", "x4k1000fps"])
def test_options_of_arrays_are_refused(downloaded, source):
    problems = problems_of(source, downloaded / "gopro", axes="THW", key="spk", columns="xytp")
    assert [line.split()[0] for line in problems] == ["--axes", "--key", "--columns"]


def test_a_size_that_is_stated_wrongly_is_named_once(tmp_path):
    for clip in ("GOPR0384_11_00", "GOPR0385_11_01"):
        write_gopro_clip(tmp_path, clip)
    config = tmp_path / "GOPRO_Large_spike_seq" / "config.yaml"
    config.write_text("spike_h: 48\nspike_w: 32\n")
    (problem,) = problems_of("spk_gopro", tmp_path)
    assert "config.yaml: says height 48 and width 32" in problem
    assert "correct it to 32 and 48" in problem
    assert "python scripts/inspect_spikes.py /" in problem


def test_contradictions_name_files_and_lines(tmp_path):
    path = tmp_path / "spike.dat"
    write_spikes(path, np.zeros((1, 8, 8), np.uint8), SpikeGeometry(8, 8))
    (tmp_path / "spike.yaml").write_text("height: 8\nwidth: 8\nflip_rows: true\n")
    overall = DataDescription("a", spike_height=8, spike_width=16, flip_rows=False)
    with pytest.raises(DataSetError) as error:
        stated_spikes(path, overall)
    text = str(error.value)
    assert f"{tmp_path / 'spike.yaml'} says width: 8, flip_rows: true, dataset.yaml" in text
    assert "says width: 16, flip_rows: false; correct the one that is wrong" in text
    assert "Sidecar(" not in text
    agreeing = dataclasses.replace(overall, spike_width=8, flip_rows=True)
    assert stated_spikes(path, agreeing) == SpikeSidecar(8, 8)
