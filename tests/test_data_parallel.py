"""Kept apart, because the processes import this file: it must not need torch."""

import os
from functools import partial

import numpy as np
import pytest

from src.data.errors import DataSetError
from src.data.parallel import run_parallel, worthwhile_workers
from src.data.recordings import FrameRecord
from src.data.spikes.spike_dat import SpikeGeometry, write_spikes
from src.data.voxel_counts import SpikeWindow
from src.prepare.prepare import count_frames


def test_processes_give_what_one_gives(tmp_path):
    geometry = SpikeGeometry(4, 8)
    files = [tmp_path / f"{k:06d}.dat" for k in range(2)]
    for seed, path in enumerate(files):
        bits = np.random.default_rng(seed).integers(0, 2, (56, 4, 8), dtype=np.uint8)
        write_spikes(path, bits, geometry)
    tasks = [
        [FrameRecord(path.stem, 0, path, None, spikes=SpikeWindow(path, geometry, 0, 56))]
        for path in files
    ]
    count = partial(count_frames, num_bins=32)
    alone, crowd = (dict(run_parallel(count, tasks, n, "counting")) for n in (1, 2))
    assert alone == crowd
    assert [alone[k][0].source for k in range(2)] == [path.name for path in files]


def die(_task):
    os._exit(9)


def test_f37_killed_process_is_reported():
    with pytest.raises(DataSetError, match="a worker process was killed"):
        list(run_parallel(die, [1, 2], 2, "counting"))


def test_few_bytes_are_not_worth_a_process():
    assert worthwhile_workers(8, 10**6) == 1
    assert worthwhile_workers(8, 10**9) == 8
    assert worthwhile_workers(2, 10**9) == 2
