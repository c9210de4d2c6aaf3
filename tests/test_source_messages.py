"""A wrong folder, option or number is named once, with what to write instead."""

import dataclasses

import numpy as np
import pytest

from src.data.description import DataDescription
from src.data.errors import DataSetError
from src.data.frames import write_png
from src.data.spikes.find import stated_spikes
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


@pytest.fixture
def gopro(tmp_path):
    for clip in ("GOPR0384_11_00", "GOPR0385_11_01"):
        write_gopro_clip(tmp_path, clip, all_frames=True)
    return tmp_path


@pytest.fixture
def x4k(tmp_path):
    for scene in ("002", "003"):
        for clip in ("occ008.320", "occ009.100"):
            write_png(
                tmp_path / "X" / "train" / scene / clip / "0000.png",
                moving_texture(1, (16, 16), 0)[0],
            )
    return tmp_path / "X"


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


@pytest.mark.parametrize("source", ["x4k1000fps", "folders"])
def test_pairs_of_gopro_are_not_another_data_set(gopro, source):
    (problem,) = problems_of(source, gopro / "GOPRO_Large")
    assert problem.startswith("this is not ")
    assert "looks like GOPRO_Large (blurry and sharp frames" in problem
    assert "--source gopro" in problem


def test_pairs_alone_are_not_all_frames(gopro):
    (gopro / "GOPRO_Large_all").rename(gopro / "elsewhere")
    (problem,) = problems_of("gopro", gopro / "GOPRO_Large")
    assert "this is not GOPRO_Large_all; it looks like GOPRO_Large (blurry" in problem


@pytest.mark.parametrize("source", ["x4k1000fps", "folders", "gopro"])
def test_spikes_of_gopro_are_not_another_data_set(gopro, source):
    for name in ("GOPRO_Large", "GOPRO_Large_all"):
        (gopro / name).rename(gopro / f"{name} elsewhere")
    (problem,) = problems_of(source, gopro / "GOPRO_Large_spike_seq")
    assert "use --source spk_gopro" in problem


def test_frames_of_gopro_are_not_x4k(gopro):
    (problem,) = problems_of("x4k1000fps", gopro / "GOPRO_Large_all")
    assert problem.endswith("use --source gopro")


@pytest.mark.parametrize("source", ["gopro", "folders"])
def test_x4k_is_not_another_data_set(x4k, source):
    (problem,) = problems_of(source, x4k)
    assert problem.endswith("looks like X4K1000FPS: use --source x4k1000fps")


@pytest.mark.parametrize("source", ["gopro", "x4k1000fps"])
def test_own_recordings_are_not_another_data_set(tmp_path, source):
    write_recorded(tmp_path / "train" / "a")
    (problem,) = problems_of(source, tmp_path)
    assert problem.endswith("use --source folders")


@pytest.mark.parametrize("source", ["gopro", "x4k1000fps"])
def test_options_of_arrays_are_refused(source, gopro):
    problems = problems_of(source, gopro, axes="THW", key="spk", columns="xytp")
    assert [line.split()[0] for line in problems] == ["--axes", "--key", "--columns"]


def test_a_size_that_is_stated_wrongly_is_named_once(gopro):
    (gopro / "GOPRO_Large_spike_seq" / "config.yaml").write_text("spike_h: 48\nspike_w: 32\n")
    (problem,) = problems_of("spk_gopro", gopro)
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
