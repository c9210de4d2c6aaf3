import dataclasses
import re

import pytest

from src.data.description import (
    DataDescription,
    DescriptionError,
    _fingerprint,
    _recorded,
    changed_files,
    description_differences,
    description_from_text,
    description_to_text,
    fingerprint_data,
    fingerprint_differences,
    read_description,
    text_differences,
    write_description,
    write_file_list,
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
    assert read_description(tmp_path) is None
    with pytest.raises(FileNotFoundError, match="train"):
        fingerprint_data(tmp_path, ["train"])
    fill(tmp_path)
    description = dataclasses.replace(FULL, fingerprint=fingerprint_data(tmp_path, ["train"]))
    write_description(tmp_path, description)
    assert read_description(tmp_path) == description
    assert description.fingerprint[0].frames == 3
    (tmp_path / "train/a/spike_vox").mkdir()  # a cache does not count
    (tmp_path / "train/a/spike_vox/000000.npy").write_bytes(b"x")
    assert fingerprint_data(tmp_path, ["train"]) == description.fingerprint


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
        ("source: a\noffsets: {train/a: 2.5}\n", "offsets.train/a: expected a whole number > 0"),
        ("source: a\noffsets: []\n", "offsets: expected lines"),
        ("source: a\nframes_averaged: 0\n", "expected a whole number > 0, got 0"),
        ("source: a\noffsets: {train/a: 0}\n", "offsets.train/a"),
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
        (lambda a: (a / "blur/000001.png").write_bytes(b"other"), "sizes_sha256"),
        (lambda a: (a / "sharp/000001.png").write_bytes(b"other"), "sizes_sha256"),
        (lambda a: (a / "spike/000001.dat").write_bytes(b"other"), "sizes_sha256"),
        (lambda a: (a / "spike/spike.yaml").write_text("height: 9\n"), "ends_sha256"),
        (lambda a: (a / "exposures.csv").write_text("frame_idx,t0[ms],t1[ms]\n"), "ends_sha256"),
    ],
)
def test_fingerprint_sees_changes(tmp_path, change, field):
    fill(tmp_path)
    before = fingerprint_data(tmp_path, ["train"])
    write_file_list(tmp_path, ["train"], (".png",))
    assert changed_files(tmp_path, ["train"], (".png",)) == ""
    change(tmp_path / "train" / "a")
    differences = fingerprint_differences(before, fingerprint_data(tmp_path, ["train"]))
    assert any(field in line for line in differences), differences
    named = changed_files(tmp_path, ["train"], (".png",))
    assert re.match(r"(new|gone|changed): train/a/(blur|sharp|spike|exposures)", named)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"train": {"a": 3}}', '{"train": []}'])
def test_a_list_of_files_that_cannot_be_used_names_nothing(tmp_path, text):
    fill(tmp_path)
    if text is not None:
        (tmp_path / "dataset_files.json").write_text(text)
    assert changed_files(tmp_path, ["train"], (".png",)) == ""


def test_what_file_managers_leave_is_no_change(tmp_path):
    """Also where a version that counted all files wrote the fingerprint with such files in it."""
    fill(tmp_path)
    before = fingerprint_data(tmp_path, ["train"])
    for folder in ("blur", "sharp", "spike"):
        for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "notes.txt"):
            (tmp_path / "train/a" / folder / name).write_text("x")
    for name in ("__MACOSX", "@eaDir", "#recycle", "lost+found"):
        (tmp_path / "train" / name).mkdir()
    now = fingerprint_data(tmp_path, ["train"])
    assert now == before
    older = _fingerprint("train", _recorded(tmp_path, "train", None))
    assert older.frames == 6
    assert fingerprint_data(tmp_path, ["train"], old=[older]) == (older,)
    (tmp_path / "train/a/blur/000001.png").unlink()
    assert fingerprint_data(tmp_path, ["train"], old=[older])[0].frames == 2


def test_a_fingerprint_of_an_older_version_is_compared_in_what_it_has(tmp_path):
    fill(tmp_path)
    now = fingerprint_data(tmp_path, ["train"])
    older = [dataclasses.replace(now[0], sizes_sha256="")]
    assert fingerprint_differences(older, now) == fingerprint_differences(now, older) == []
    (tmp_path / "train/a/sharp/000002.png").write_bytes(b"other")
    (line,) = fingerprint_differences(older, fingerprint_data(tmp_path, ["train"]))
    assert "ends_sha256" in line


def test_text_round_trip_with_offsets_and_fingerprint(tmp_path):
    fill(tmp_path)
    description = dataclasses.replace(
        FULL,
        offsets=(("train/GOPR0384_11_05", 5), ("val/GOPR0385_11_01", 1)),
        fingerprint=fingerprint_data(tmp_path, ["train"]),
    )
    text = description_to_text(description)
    assert "offsets:\n  train/GOPR0384_11_05: 5\n" in text
    assert description_from_text(text, "checkpoint") == description
    before_offsets = description_to_text(FULL).replace("offsets: {}\n", "")
    assert "offsets" not in before_offsets
    assert description_from_text(before_offsets, "old") == FULL


def test_differences_are_one_sentence_per_field(tmp_path):
    fill(tmp_path)
    old = dataclasses.replace(FULL, fingerprint=fingerprint_data(tmp_path, ["train"]))
    assert description_differences(old, old) == []
    (tmp_path / "train/a/blur/000001.png").unlink()
    new = dataclasses.replace(
        old,
        blur_kind="blur_gamma",
        threshold=None,
        frames_averaged=(11,),
        offsets=(("train/a", 1),),
        fingerprint=fingerprint_data(tmp_path, ["train"]),
    )
    lines = description_differences(old, new)
    assert lines[:4] == [
        "blur_kind was blur, is blur_gamma",
        "frames_averaged was [7, 11], is [11]",
        "threshold was 2.0, is not stated",
        "offsets was [], is [[train/a, 1]]",
    ]
    assert lines[4] == "fingerprint of train: frames was 3, is 2"
    assert description_differences(FULL, dataclasses.replace(FULL, source="b"))


def test_texts_differ_where_one_of_them_is_missing():
    names = "the checkpoint's data", "the data now"
    text, other = (description_to_text(dataclasses.replace(FULL, source=s)) for s in "ab")
    assert text_differences("", "", names) == text_differences(text, text, names) == []
    assert text_differences(text, other, names) == ["source was a, is b"]
    assert text_differences(text, "", names) == [
        "the checkpoint's data have a dataset.yaml, the data now have none"
    ]
    assert text_differences("", text, names) == [
        "the data now have a dataset.yaml, the checkpoint's data have none"
    ]
    with pytest.raises(DescriptionError, match="description of the data now: unknown keys"):
        text_differences(text, "no_key: 1", names)
