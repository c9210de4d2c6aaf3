"""A data root that holds something else: nothing is lost, and nothing old is taken for new."""

import cv2
import pytest

from src.data.frames import read_image
from src.data.spikes.spike_dat import write_spikes
from tests.data_cases import moving_texture
from tests.prepare_cases import prepare_data, write_config
from tests.spike_source_cases import GEOMETRY, SIZE, write_recorded, write_stated

FILMING = ("--frames_averaged", "7", "--frames_per_second", "240")


def make(folder, source, root, *options):
    config = write_config(root, folder / "config.yaml")
    arguments = ["--source", "folders", "--input", str(source), *options, "DATA.CLIP_LEN", "2"]
    return prepare_data.main(["--config", str(config), "--workers", "1", *arguments])


def write_recordings(root):
    for seed, split in enumerate(("train", "val")):
        folder = root / split / "a"
        write_spikes(folder / "spike/spike.dat", write_recorded(folder, seed), GEOMETRY)
        write_stated(folder / "spike/spike.yaml")


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
    assert make(tmp_path, source, root) == 1
    told = capsys.readouterr().err
    reason = "is DATA.ROOT and --input at the same time" if is_input else "has no source.json"
    assert reason in told
    assert "delete what is there" not in told
    assert sorted(root.rglob("*")) == before


def test_what_was_made_may_be_deleted(tmp_path, capsys):
    write_bitmaps(tmp_path / "own", seed=0)
    root = tmp_path / "ours"
    assert make(tmp_path, tmp_path / "own", root, *FILMING) == 0
    assert make(tmp_path, tmp_path / "own", root, *FILMING, "--seed", "1") == 1
    assert "or delete what is there" in capsys.readouterr().err


def test_other_frames_of_the_same_size_are_noticed(tmp_path, capsys):
    write_bitmaps(tmp_path / "own", seed=0)
    root = tmp_path / "ours"
    assert make(tmp_path, tmp_path / "own", root, *FILMING) == 0
    assert make(tmp_path, tmp_path / "own", root, *FILMING) == 0
    before = read_image(root / "train/a/sharp/000001.png")
    write_bitmaps(tmp_path / "own", seed=7)
    assert make(tmp_path, tmp_path / "own", root, *FILMING) == 1
    assert f"{root}/train/a was made with frames_sha256" in capsys.readouterr().err
    record = root / "train/a/source.json"  # one of before this was kept is still valid
    lines = record.read_text().splitlines()
    record.write_text("\n".join(line for line in lines if "frames_sha256" not in line))
    assert make(tmp_path, tmp_path / "own", root, *FILMING) == 1
    assert f"{root}/train/a was made with" not in capsys.readouterr().err
    assert (read_image(root / "train/a/sharp/000001.png") == before).all()
