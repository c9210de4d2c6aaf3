import pickle
from pathlib import Path

import numpy as np
import pytest

from src.data import cache as cache_module
from src.data.cache import FrameCache, available_memory_bytes, estimate_bytes, preload
from src.data.errors import BadFileError, DataSetError
from src.data.recordings import Recording
from tests.data_cases import scan, write_miniature

PATHS = [Path(f"{k}.png") for k in range(4)]
FRAME_BYTES = 2 * 3 * 3


def small_frame(path):
    return np.full((2, 3, 3), int(path.stem), np.uint8)


def test_least_recently_used_goes_first():
    cache = FrameCache(2 * FRAME_BYTES, small_frame)
    for k in (0, 1, 0, 2, 0, 1):  # 2 throws out 1; then 1 throws out 2
        assert cache.read(PATHS[k])[0, 0, 0] == k
    statistics = cache.statistics
    assert (statistics.hits, statistics.misses, statistics.evictions) == (2, 4, 2)
    assert statistics.hit_rate == pytest.approx(1 / 3)
    assert (len(cache), cache.num_bytes) == (2, 2 * FRAME_BYTES)


def test_limit_holds_and_a_too_large_frame_is_not_kept():
    cache = FrameCache(FRAME_BYTES - 1, small_frame)
    for path in PATHS:
        assert cache.read(path).shape == (2, 3, 3)
        assert (len(cache), cache.num_bytes) == (0, 0)


def test_kept_frames_cannot_be_changed():
    cache = FrameCache(1000, small_frame)
    with pytest.raises(ValueError, match="read-only"):
        cache.read(PATHS[0])[0, 0, 0] = 7


def test_unreadable_frame_is_not_kept(tmp_path):
    cache = FrameCache(1000)
    for _ in range(2):
        with pytest.raises(BadFileError, match=r"a\.png"):
            cache.read(tmp_path / "a.png")
    assert (len(cache), cache.statistics.misses) == (0, 2)


def test_another_process_gets_it_empty():
    cache = FrameCache(1000, small_frame)
    cache.read(PATHS[1])
    other = pickle.loads(pickle.dumps(cache))
    assert (len(other), other.max_bytes, other.num_bytes) == (0, 1000, 0)
    assert other.read(PATHS[1])[0, 0, 0] == 1


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    root = write_miniature(
        tmp_path_factory.mktemp("cache"), sequences=1, val_sequences=0, frames=3, size=(16, 32)
    )
    return Recording("a", scan(root / "train/seq_000").frames, 32)


def test_preload_reads_everything_once(recording):
    needed = 2 * 3 * 16 * 32 * 3
    assert estimate_bytes(recording) == needed
    cache = FrameCache(needed)
    preload(cache, [recording])
    assert (len(cache), cache.num_bytes) == (6, needed)
    cache.read(recording.frames[2].sharp)
    assert cache.statistics.hit_rate == 1


def test_preload_refuses_what_does_not_fit(recording, monkeypatch):
    cache = FrameCache(2 * 3 * 16 * 32 * 3 - 1)
    with pytest.raises(DataSetError, match=r"DATA\.CACHE_SIZE_GB is 0\.00; raise it"):
        preload(cache, [recording])
    assert len(cache) == 0
    monkeypatch.setattr(cache_module, "available_memory_bytes", lambda: 1000)
    with pytest.raises(DataSetError, match=r"this machine has 0\.00 GB free"):
        preload(FrameCache(10**9), [recording])


def test_available_memory_is_plausible():
    available = available_memory_bytes()
    assert available is None or available > 1 << 20
