"""A wrong folder, option or number is named once, with what to write instead."""

import pytest

from src.data.errors import DataSetError
from src.data.frames import write_png
from src.prepare.sources.planning import (
    SourceOptions,
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
    write_png(root / "kair/train_GT/GOPR0384_11_00/000001.png", moving_texture(1, (16, 16), 0)[0])
    return root


LARGE, SPIKES, FRAMES = (
    f"alone/{name}/{name}" for name in ("GOPRO_Large", "GOPRO_Large_spike_seq", "GOPRO_Large_all")
)


@pytest.mark.parametrize(
    ("source", "folder", "message"),
    [
        ("x4k1000fps", LARGE, "looks like GOPRO_Large (blurry and sharp frames"),
        ("folders", LARGE, "looks like GOPRO_Large (blurry and sharp frames"),
        ("folders", "kair", "looks like GOPRO_Large (blurry and sharp frames"),
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
