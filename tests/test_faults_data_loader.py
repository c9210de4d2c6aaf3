"""Loader processes: too little shared memory, killed ones, drives that stall or fail."""

import errno
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from src.data import build, errors
from src.data.build import (
    WatchedDataset,
    WorkerError,
    run_watched,
    shared_memory_bytes,
    workers_that_fit,
)
from src.data.datasets.spike_deblur_dataset import ClipSettings, SpikeDeblurDataset
from src.data.errors import BadFileError
from src.data.exposures import read_alignment
from src.data.recordings import Recording
from src.data.scanning import scan_split
from src.data.voxel_counts import count_window, open_voxels
from src.engine.checkpoint import load_checkpoint
from tests.data_cases import align, scan, settings_of, write_miniature
from tests.training_cases import make_trainer, train_command, write_run


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loader")
    root = write_miniature(folder / "mini", sequences=1, val_sequences=0, frames=6)
    log = read_alignment([align(root, folder / "log.txt", ("train",))])
    return scan_split(settings_of(root, use_voxel_cache=False), "train", log)


def watched(recordings, num_workers=2):
    return WatchedDataset(SpikeDeblurDataset(recordings, ClipSettings(2, 32)), num_workers)


def load(dataset, **options):
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=1,
        num_workers=2,
        multiprocessing_context="fork",
        collate_fn=list,
        **options,
    )
    found = []

    def read_all():
        found.extend(sample["meta"]["frame_idx"] for (sample,) in loader)

    run_watched(dataset, read_all)
    return found


def when_reading_frame(monkeypatch, index, do):
    """Let the loader process that reads blurry frame `index` do something first."""
    read = Recording.read_blurry

    def read_blurry(self, i, crop=None):
        if self.frames[i].index == index and torch.utils.data.get_worker_info() is not None:
            do()
        return read(self, i, crop)

    monkeypatch.setattr(Recording, "read_blurry", read_blurry)


@pytest.mark.parametrize(
    ("number", "word"),
    [(signal.SIGKILL, "Killed"), (signal.SIGSEGV, "Segmentation fault"), (signal.SIGBUS, "Bus")],
)
def test_f37_a_killed_loader_process_is_named_with_its_clip(recordings, monkeypatch, number, word):
    when_reading_frame(monkeypatch, 5, lambda: os.kill(os.getpid(), number))
    with pytest.raises(WorkerError) as error:
        load(watched(recordings))
    printed = str(error.value)
    assert "reading seq_000 frames [4, 5]" in printed
    assert "loader process 0 (pid " in printed  # the fifth clip is the third of process 0
    assert word in printed or "exited unexpectedly" in printed or "is gone" in printed
    assert "lower TRAIN.NUM_WORKERS" in printed


def test_f37_training_ends_with_the_name_and_keeps_its_checkpoint(tmp_path, monkeypatch):
    config = write_run(tmp_path, TRAIN__NUM_WORKERS=1, TRAIN__MAX_STEPS=20, TRAIN__SAVE_EVERY=1)
    trainer = make_trainer(config)
    killed_at = tmp_path / "kill"
    when_reading_frame(
        monkeypatch, 2, lambda: killed_at.exists() and os.kill(os.getpid(), signal.SIGKILL)
    )
    save = trainer.save

    def save_then_kill(name, *arguments):
        is_written = save(name, *arguments)
        killed_at.touch()
        return is_written

    monkeypatch.setattr(trainer, "save", save_then_kill)
    with pytest.raises(RuntimeError, match=r"loader process 0 \(pid \d+\), .*The same command"):
        trainer.fit()
    (last,) = (tmp_path / "outputs/ckpts/run").glob("last.pth")
    assert load_checkpoint(last)["progress"]["step"] == trainer.progress.step


def test_an_error_while_loading_ends_the_run_and_its_loader_processes(tmp_path, forks):
    config = write_run(tmp_path, TRAIN__NUM_WORKERS=2)
    training = forks(train_command(config, "DATA.CROP_SIZE", "512"))
    printed = training.communicate(timeout=120)[0].splitlines()
    assert training.returncode == 1
    assert "are smaller than the crop of 512; lower DATA.CROP_SIZE" in printed[-1]


def test_f37_a_queue_that_breaks_before_the_signal_comes(recordings, monkeypatch):
    """The end of a process can be seen first in what it sent: then the missing one is named."""
    monkeypatch.setattr(build, "SECONDS_FOR_SIGNAL", 0.0)
    dataset = watched(recordings)
    dataset.notes[:] = [2**22 + 1, 4, -1, -1]  # no process has the first number

    def break_off():
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    with pytest.raises(WorkerError, match=r"reading seq_000 frames \[4, 5\]: is gone"):
        run_watched(dataset, break_off)
    dataset.notes[:] = [-1, -1, -1, -1]
    with pytest.raises(ConnectionResetError):
        run_watched(dataset, break_off)


def test_f39_a_loader_that_hangs_ends_with_what_it_reads(recordings, monkeypatch):
    when_reading_frame(monkeypatch, 3, lambda: time.sleep(60))
    with pytest.raises(WorkerError, match=r"timed out after 2 seconds: .*reading seq_000 frames"):
        load(watched(recordings), timeout=2)


@pytest.mark.parametrize("spikes", ["per frame", "voxels"])
def test_f39_spikes_on_a_stalled_drive_are_read_again(tmp_path, monkeypatch, spikes):
    root = write_miniature(tmp_path, sequences=1, val_sequences=0, frames=2, spikes=spikes)
    path = sorted((root / "train/seq_000").glob("spike*/000000.*"))[0]
    failures = [OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale handle")]
    monkeypatch.setattr(errors, "RETRY_PAUSES_S", (0.0, 0.0))

    def failing(function):
        def call(*arguments, **options):
            if failures:
                raise failures.pop()
            return function(*arguments, **options)

        return call

    if spikes == "voxels":
        expected = np.array(open_voxels(path, 32))
        monkeypatch.setattr(np.lib.format, "open_memmap", failing(np.lib.format.open_memmap))
        read = lambda: open_voxels(path, 32)  # noqa: E731
    else:
        source = scan(root / "train/seq_000").frames[0].spikes
        expected = count_window(source, 32)
        monkeypatch.setattr(Path, "open", failing(Path.open))
        read = lambda: count_window(source, 32)  # noqa: E731
    assert np.array_equal(read(), expected)
    assert failures == []
    failures += [OSError(errno.EIO, "Input/output error")] * 3
    with pytest.raises(BadFileError, match="Input/output error"):
        read()


def test_f38_fewer_workers_where_shared_memory_is_small(caplog):
    assert workers_that_fit(8, 10**6, None) == 8
    assert workers_that_fit(8, 10**6, 24 * 10**6) == 8
    assert caplog.text == ""
    assert workers_that_fit(8, 10**6, 20 * 10**6) == 6
    assert "using 6. In Docker give --shm-size" in caplog.text
    assert workers_that_fit(8, 10**9, 10**6) == 0


def test_f38_ranks_of_a_machine_share_its_memory(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    alone = shared_memory_bytes()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert shared_memory_bytes() == pytest.approx(alone / 8, rel=0.05)


def test_f38_a_full_shared_memory_trains_without_loader_processes(tmp_path, monkeypatch, caplog):
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(build.shutil, "disk_usage", lambda _: free)
    trainer = make_trainer(write_run(tmp_path, TRAIN__NUM_WORKERS=2, TRAIN__MAX_STEPS=1))
    trainer.fit()
    assert trainer.progress.step == 1
    assert "using 0. In Docker give --shm-size" in caplog.text
    assert 60 <= build.LOADER_TIMEOUT_S <= 1800
