import dataclasses

import pytest

from src.data.description import (
    DataDescription,
    DescriptionError,
    fingerprint_data,
    fingerprint_differences,
    read_description,
    write_description,
)

FULL = DataDescription(
    source="démo",
    blur_kind="blur",
    frames_averaged=(7, 11),
    transfer="encoded",
    threshold=2.0,
    ticks_per_second=1920,
    spike_height=32,
    spike_width=48,
    bit_order="little",
    flip_rows=True,
    interpolator="none",
)


def fill(root, split="train", names=("000000.png", "000001.png", "000002.png")):
    for folder, suffix in (("blur", ".png"), ("sharp", ".png"), ("spike", ".dat")):
        for name in names:
            path = root / split / "a" / folder / name.replace(".png", suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{folder}{name}".encode())
    (root / split / "a" / "exposures.csv").write_text("frame_idx,t0[s],t1[s]\n")


def test_round_trip_with_fingerprint(tmp_path):
    fill(tmp_path)
    description = dataclasses.replace(FULL, fingerprint=fingerprint_data(tmp_path, ["train"]))
    write_description(tmp_path, description)
    assert read_description(tmp_path) == description
    assert description.fingerprint[0].frames == 3
    assert fingerprint_data(tmp_path, ["train"]) == description.fingerprint


def test_absent_file_is_none(tmp_path):
    assert read_description(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("source: a\nblur_kind: gamma\n", "blur_kind: expected one of"),
        ("source: a\ntick_rate: 3\n", "unknown keys .*tick_rate"),
        ("blur_kind: blur\n", "'source' is missing"),
        ("source: a\nthreshold: fast\n", "threshold: expected a number > 0, got 'fast'"),
        ("source: a\nspike_height: 3\n", "give both or none"),
        ("source: a\nframes_averaged: [7.5]\n", "expected a whole number > 0, got 7.5"),
        ("source: a\nfingerprint: {train: {frames: 3}}\n", "missing 3 required"),
        ("- a\n- b\n", "expected lines"),
        ("source: !!python/object/apply:os.system ['true']\n", "not a plain YAML file"),
        ("a: &a [x]\nb: *a\n", "aliases"),
    ],
)
def test_errors_name_file_and_key(tmp_path, text, expected):
    (tmp_path / "dataset.yaml").write_text(text)
    with pytest.raises(DescriptionError, match=expected) as error:
        read_description(tmp_path)
    assert "dataset.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda a: (a / "blur/000001.png").rename(a / "blur/000009.png"), "names_sha256"),
        (lambda a: (a / "blur/000001.png").unlink(), "frames was 3, is 2"),
        (lambda a: (a / "sharp/000002.png").write_bytes(b"other"), "ends_sha256"),
        (lambda a: (a / "spike/000000.dat").write_bytes(b"other"), "ends_sha256"),
        (lambda a: (a / "spike/spike.yaml").write_text("height: 9\n"), "ends_sha256"),
        (lambda a: (a / "exposures.csv").write_text("frame_idx,t0[ms],t1[ms]\n"), "ends_sha256"),
    ],
)
def test_fingerprint_sees_changes(tmp_path, change, field):
    fill(tmp_path)
    before = fingerprint_data(tmp_path, ["train"])
    change(tmp_path / "train" / "a")
    differences = fingerprint_differences(before, fingerprint_data(tmp_path, ["train"]))
    assert any(field in line for line in differences), differences


def test_fingerprint_ignores_the_voxel_cache(tmp_path):
    fill(tmp_path)
    before = fingerprint_data(tmp_path, ["train"])
    (tmp_path / "train/a/spike_vox").mkdir()
    (tmp_path / "train/a/spike_vox/000000.npy").write_bytes(b"x")
    assert fingerprint_differences(before, fingerprint_data(tmp_path, ["train"])) == []


def test_fingerprint_of_missing_split_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="valid"):
        fingerprint_data(tmp_path, ["valid"])
