"""Frames of mixed kinds, odd names, missing ones: what the check and preparing say of each."""

import shutil

import cv2
import numpy as np
import pytest

from src.config import load_config
from src.data.build import build_train_dataset
from src.data.errors import BadSample
from src.data.frames import is_cut_short, read_image, write_png
from src.engine.progress import DroppedClips
from tests.prepare_cases import run


def encode(path, image):
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())


def loop(path):
    path.unlink()
    path.symlink_to(path.name)


def empty_sequence(folder):
    for kind in ("blur", "sharp", "spike"):
        (folder / "seq_009" / kind).mkdir(parents=True)


RGB = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
FAULTS = {
    "16 bit": (
        lambda s: encode(s / "seq_000/blur/000001.png", RGB.astype(np.uint16) * 257),
        "blur/000001.png: uint16 pixels; 8 bit is needed",
    ),
    "transparent": (
        lambda s: encode(s / "seq_000/sharp/000001.png", np.dstack([RGB, RGB[..., 0]])),
        "sharp/000001.png: has transparent pixels; flatten it",
    ),
    "other size": (
        lambda s: write_png(s / "seq_000/blur/000001.png", RGB[:60]),
        "frames are (64, 96) but blur/000001.png (60, 96)",
    ),
    "link to itself": (
        lambda s: loop(s / "seq_000/blur/000001.png"),
        "blur/000001.png: cannot be read: Too many levels of symbolic links",
    ),
    "folder to itself": (
        lambda s: (s / "seq_009").symlink_to("seq_009"),
        None,  # no folder, so no sequence
    ),
    "empty sequence": (empty_sequence, "seq_009/blur: no image files; blurry frames are needed"),
    "short sequence": (
        lambda s: [
            path.unlink() for name in ("000002", "000003") for path in s.glob(f"seq_001/*/{name}.*")
        ],
        "seq_001: 2 usable frames, a clip needs 3",
    ),
    "cut short": (
        lambda s: (s / "seq_000/blur/000001.png").write_bytes(
            (s / "seq_000/blur/000001.png").read_bytes()[:300]
        ),
        "blur/000001.png: truncated PNG file of 300 bytes",
    ),
    "blurry frame missing": (
        lambda s: (s / "seq_000/blur/000001.png").unlink(),
        "train/seq_000: without a blurry frame: sharp frame (seq_000/000001); spike file",
    ),
    "sharp frame missing": (
        lambda s: (s / "seq_000/sharp/000002.png").unlink(),
        "train/seq_000: dropped: no sharp frame of this name (seq_000/000002)",
    ),
    "spikes missing": (
        lambda s: (s / "seq_000/spike/000002.dat").unlink(),
        "train/seq_000: dropped: no spike file of this name (seq_000/000002)",
    ),
    "exposure missing": (
        lambda s: (s / "seq_000/exposures.csv").write_text(
            "\n".join((s / "seq_000/exposures.csv").read_text().splitlines()[:-1])
        ),
        "train/seq_000: dropped: no record of its exposure (seq_000/000003)",
    ),
}


def told(prepared_config, fault, capsys):
    change, expected = FAULTS[fault]
    change(prepared_config.parent / "mini/train")
    status = run(prepared_config, "--check_only")
    assert (status == 0) == (expected is None)
    if expected is not None:
        assert expected in capsys.readouterr().out


@pytest.mark.parametrize("fault", [name for name in FAULTS if "missing" in name])
def test_f34_whatever_is_missing_is_found_by_name(prepared_config, fault, capsys):
    told(prepared_config, fault, capsys)


@pytest.mark.parametrize(
    "fault", [name for name in FAULTS if "missing" not in name and name != "cut short"]
)
def test_f36_kinds_of_images_links_and_folders(prepared_config, fault, capsys):
    told(prepared_config, fault, capsys)


def test_f36_grey_opaque_and_odd_sized_frames_are_taken(prepared_config):
    """As three equal channels, without the alpha channel, and as they are."""
    folder = prepared_config.parent / "mini/train/seq_000/blur"
    encode(folder / "000000.png", RGB[..., 0])
    assert np.array_equal(read_image(folder / "000000.png"), np.repeat(RGB[..., :1], 3, axis=2))
    encode(folder / "000001.png", np.dstack([RGB, np.full((64, 96), 255, np.uint8)]))
    assert np.array_equal(read_image(folder / "000001.png"), RGB[..., ::-1])
    write_png(folder / "000002.png", RGB[:63, :95])
    assert read_image(folder / "000002.png").shape == (63, 95, 3)
    write_png(folder / "ünï_000003.png", RGB)
    assert np.array_equal(read_image(folder / "ünï_000003.png"), RGB)


def test_f36_an_empty_root_says_what_belongs_there(prepared_config, capsys):
    for folder in (prepared_config.parent / "mini/train").iterdir():
        shutil.rmtree(folder)
    assert run(prepared_config, "--check_only") == 1
    assert "train: is empty; one folder per sequence is needed" in capsys.readouterr().out


def test_f33_is_told_by_the_check(prepared_config, capsys):
    told(prepared_config, "cut short", capsys)


def test_f33_only_unreadable_samples_end_a_run_instead_of_going_round(prepared_config):
    """Every sample is dropped: the budget is spent within the first epoch, nothing is repeated."""
    for path in (prepared_config.parent / "mini/train").rglob("blur/*.png"):
        path.write_bytes(path.read_bytes()[:200])
    dataset = build_train_dataset(load_config(prepared_config))
    samples = [dataset[i] for i in range(len(dataset))]
    assert all(isinstance(sample, BadSample) for sample in samples)
    dropped = DroppedClips(0.5, at_least=len(dataset), batch_size=1)
    with pytest.raises(RuntimeError, match="samples could not be read"):
        dropped.count([{"dropped": [sample]} for sample in samples])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_is_cut_short(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(cv2.imencode(suffix, RGB)[1].tobytes())
    assert not is_cut_short(path)
    path.write_bytes(path.read_bytes()[:-20])
    assert is_cut_short(path)
    path.write_bytes(b"")
    assert is_cut_short(path)
    assert is_cut_short(tmp_path / "absent.png")
    path.write_bytes(b"any other file")
    assert not is_cut_short(path)
