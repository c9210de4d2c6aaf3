"""Decoded frames on disk and in memory: same pixels as decoding, never stale, bounded memory."""

import errno
import json
import logging
import multiprocessing
import os
import pickle
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from src.config import load_config
from src.data import frame_cache
from src.data.build import build_train_dataset
from src.data.description import fingerprint_data
from src.data.errors import BadFileError, BadSample, DataSetError
from src.data.frame_cache import (
    FrameCache,
    available_memory_bytes,
    decoded_bytes,
    preload,
    store_frames,
)
from src.data.frames import read_image, write_png
from src.data.recordings import Recording
from tests.data_cases import align, scan

SIZE = (64, 96)
DiskUsage = namedtuple("DiskUsage", "total used free")


def files_of(root):
    return sorted(root.glob("train/*/[bs][lh]*/*.png"))


@pytest.fixture
def decoded(monkeypatch):
    """The files that the store decodes while the test runs."""
    paths = []
    monkeypatch.setattr(frame_cache, "read_image", lambda p: paths.append(p) or read_image(p))
    return paths


def test_crops_are_those_of_the_images_and_a_second_run_decodes_nothing(root, decoded):
    files = files_of(root)
    left_over = root / "train/seq_000/frame_cache/.partial-1-blur.npy"
    left_over.parent.mkdir()
    left_over.write_bytes(b"half a frame")  # of a process that was killed
    store, lines = store_frames(files, root)
    assert not left_over.exists()
    assert len(files) == len(store) == 16
    assert lines[0].endswith("written")
    for path in files:
        image = read_image(path)
        assert path in store
        assert store.size_of(path) == SIZE
        assert np.array_equal(store.read(path), image)
        for y, x, h, w in ((0, 0, 64, 96), (3, 5, 16, 17), (63, 95, 1, 1)):
            crop = store.read(path, (y, x, h, w))
            assert np.array_equal(crop, image[y : y + h, x : x + w])
            assert crop.flags.c_contiguous
            assert crop.flags.owndata
    array = np.load(root / "train/seq_000/frame_cache/sharp.npy", mmap_mode="r")
    assert (array.shape, array.dtype) == ((4, *SIZE, 3), np.uint8)
    assert np.array_equal(array[3], read_image(root / "train/seq_000/sharp/000003.png"))
    assert decoded
    decoded.clear()
    again, lines = store_frames(files, root)
    assert lines == ["frame cache: 16 frames up to date"]
    assert len(store_frames(files[3:], root)[0]) == 13  # fewer frames are no change
    assert not decoded
    other = pickle.loads(pickle.dumps(again))
    assert np.array_equal(other.read(files[0]), store.read(files[0]))
    os.truncate(root / "train/seq_000/frame_cache/blur.npy", 1000)
    with pytest.raises(BadFileError, match=r"blur\.npy: was changed while it was in use"):
        store.read(files[0])


@pytest.mark.parametrize(
    "change",
    [
        lambda path: write_png(path, np.full((*SIZE, 3), 7, np.uint8)),
        lambda path: os.utime(path, ns=(0, path.stat().st_mtime_ns + 1)),
        lambda path: write_png(path.with_name("000099.png"), np.zeros((*SIZE, 3), np.uint8)),
        lambda path: os.truncate(path.parents[1] / "frame_cache/blur.npy", 1000),
        lambda path: (path.parents[1] / "frame_cache/blur.npy").unlink(),
        lambda path: (path.parents[1] / "frame_cache/blur.json").write_text("{"),
        lambda path: (path.parents[1] / "frame_cache/blur.json").write_text('{"format": 0}'),
    ],
)
def test_f40_what_changed_is_decoded_again(root, decoded, change):
    store_frames(files_of(root), root)
    decoded.clear()
    changed = root / "train/seq_001/blur/000002.png"
    change(changed)
    store, _ = store_frames(files_of(root), root)
    assert {path.parent for path in decoded} == {changed.parent}
    for path in files_of(root):
        assert np.array_equal(store.read(path), read_image(path))


def test_frames_that_cannot_be_decoded_are_left_for_their_readers_to_name(root):
    folder = root / "train/seq_000/blur"
    (folder / "000000.png").write_bytes(b"no image")
    write_png(folder / "000002.png", np.zeros((32, 32, 3), np.uint8))
    (folder / "000003.png").unlink()
    (folder / "000003.png").symlink_to("nowhere.png")
    files = files_of(root)
    for _ in range(2):
        store, lines = store_frames(files, root)
    assert lines[0] == "frame cache: 13 frames up to date"  # not decoded again and again
    assert all(f"00000{i}.png" in lines[1] for i in (0, 2, 3))
    assert [path.name for path in files if path not in store] == [
        "000000.png", "000002.png", "000003.png"
    ]  # fmt: skip
    assert np.array_equal(store.read(folder / "000001.png"), read_image(folder / "000001.png"))
    recording = Recording("a", scan(root / "train/seq_000").frames, 32, store=store)
    assert recording.frame_size == SIZE
    for i, why in enumerate(("not an image", None, "is 32x32", "cannot be read")):
        if why:
            with pytest.raises(BadFileError, match=why):
                recording.read_blurry(i)


def test_without_room_frames_are_decoded_at_every_reading(root, monkeypatch, caplog):
    needed = 16 * 64 * 96 * 3
    free = needed + frame_cache.RESERVED_BYTES - 1
    monkeypatch.setattr(frame_cache.shutil, "disk_usage", lambda _: DiskUsage(0, 0, free))
    store, (line,) = store_frames(files_of(root), root)
    assert len(store) == 0
    assert "do not fit" in line
    assert not list(root.rglob("frame_cache"))
    with caplog.at_level(logging.WARNING):
        dataset = dataset_of(root)
    assert "set DATA.FRAME_CACHE False" in caplog.text
    assert not isinstance(dataset[0], BadSample)


def test_a_disk_that_fills_up_leaves_nothing_behind(root, monkeypatch):
    def fail(*_arguments, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(frame_cache.np.lib.format, "write_array_header_1_0", fail)
    store, lines = store_frames(files_of(root), root)
    assert len(store) == 0
    assert len(lines) == 4
    assert all("No space left on device" in line for line in lines)
    left = {path.suffix for path in root.rglob("frame_cache/*")}
    assert left <= {".lock"}  # some versions of filelock remove it


def test_several_processes_share_the_work(root):
    context = multiprocessing.get_context("fork")
    counter = context.Value("i", 0)
    ranks = [context.Process(target=_store_counting, args=(root, counter)) for _ in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
        assert rank.exitcode == 0
    assert counter.value == 4  # each array once
    assert len(store_frames(files_of(root), root)[0]) == 16


def _store_counting(root, counter):
    write_header = np.lib.format.write_array_header_1_0

    def counting(*arguments):
        with counter.get_lock():
            counter.value += 1
        write_header(*arguments)

    np.lib.format.write_array_header_1_0 = counting
    store, _ = store_frames(files_of(root), root)
    assert len(store) == 16


# ---------------------------------------------------------------- in the data set


def config_of(root, folder, **data):
    align(root, folder / "log.txt")
    path = folder / "a.yaml"
    keys = {"ROOT": str(root), "ALIGN_LOG_PATHS": [str(folder / "log.txt")], "CLIP_LEN": 3}
    keys |= {"CROP_SIZE": 32, "USE_PRECOMPUTED_VOXELS": False, **data}
    path.write_text(json.dumps({"DATA": keys, "TRAIN": {"NUM_WORKERS": 0}}))
    return load_config(path)


def dataset_of(root, **data):
    return build_train_dataset(config_of(root, root.parent, **data))


def test_samples_are_the_same_and_decode_nothing(root, monkeypatch):
    before = fingerprint_data(root, ("train", "val"))
    plain = dataset_of(root, FRAME_CACHE=False)
    assert not list(root.rglob("frame_cache"))
    stored = dataset_of(root)
    assert fingerprint_data(root, ("train", "val")) == before
    assert [path.name for path in (root / "val/seq_000").iterdir() if "cache" in path.name] == []
    expected = [plain[epoch, i] for epoch in range(2) for i in range(len(plain))]
    monkeypatch.setattr("src.data.frames.cv2.imdecode", None)
    found = [stored[epoch, i] for epoch in range(2) for i in range(len(stored))]
    for a, b in zip(expected, found, strict=True):
        assert (a["blur"] == b["blur"]).all()
        assert (a["sharp"] == b["sharp"]).all()
        assert a["meta"] == b["meta"]


# ---------------------------------------------------------------- in memory

PATHS = [Path(f"{k}.png") for k in range(4)]
FRAME_BYTES = 2 * 3 * 3


def small_frame(path):
    return np.full((2, 3, 3), int(path.stem), np.uint8)


def test_least_recently_used_goes_first():
    cache = FrameCache(2 * FRAME_BYTES, small_frame)
    for k in (0, 1, 0, 2, 0, 1):  # 2 throws out 1; then 1 throws out 2
        assert cache.read(PATHS[k])[0, 0, 0] == k
    assert (cache.hits, cache.misses, cache.hit_rate) == (2, 4, pytest.approx(1 / 3))
    assert (len(cache), cache.num_bytes) == (2, 2 * FRAME_BYTES)
    with pytest.raises(ValueError, match="read-only"):
        cache.read(PATHS[0])[0, 0, 0] = 7
    other = pickle.loads(pickle.dumps(cache))  # another process gets it empty
    assert (len(other), other.max_bytes, other.num_bytes) == (0, 2 * FRAME_BYTES, 0)
    assert other.read(PATHS[1])[0, 0, 0] == 1
    for cache in (FrameCache(FRAME_BYTES - 1, small_frame), FrameCache(1000)):
        if cache.max_bytes < FRAME_BYTES:
            assert cache.read(PATHS[0]).shape == (2, 3, 3)
        else:
            with pytest.raises(BadFileError, match=r"0\.png"):
                cache.read(PATHS[0])
        assert (len(cache), cache.num_bytes, cache.misses) == (0, 0, 1)


def test_preload_reads_everything_once_or_refuses_what_does_not_fit(root, monkeypatch):
    files, needed = files_of(root), 16 * 64 * 96 * 3
    assert decoded_bytes(files) == needed
    cache = FrameCache(needed)
    preload(cache, files)
    assert (len(cache), cache.num_bytes) == (16, needed)
    cache.read(files[2])
    assert cache.hit_rate == 1
    cache = FrameCache(needed - 1)
    with pytest.raises(DataSetError, match=r"DATA\.CACHE_SIZE_GB is 0\.00; raise it"):
        preload(cache, files)
    assert len(cache) == 0
    assert (available_memory_bytes() or 2 << 20) > 1 << 20
    monkeypatch.setattr(frame_cache, "available_memory_bytes", lambda: 1000)
    with pytest.raises(DataSetError, match=r"this machine has 0\.00 GB free"):
        preload(FrameCache(10**9), files)
