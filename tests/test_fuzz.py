"""Damaged and hostile files: every reader gives what is right, or one error that names the file.

Whole small files are cut, repeated, swapped and overwritten. A reader must not raise what its
entry point does not catch, take 10 s or a gigabyte, or leave files behind. A run tries 64 inputs
per reader, fewer of slow ones; `pytest -m nightly` as many as VRT_SPIKE_FUZZ says (200; for a
whole night VRT_SPIKE_FUZZ=20000).
"""

import csv
import json
import math
import os
import re
import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import cv2
import h5py
import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save_file

from scripts import export_weights
from src.comparison import runs
from src.config import ConfigError, config_from_text, config_to_text, load_config
from src.data import description, exposures, frame_cache, frames, video, voxel_counts
from src.data.errors import BadFileError, DataSetError
from src.data.spikes import arrays, spike_dat
from src.engine.checkpoint import is_repeated_start, load_checkpoint
from src.engine.log import drop_rows_after
from src.inference.load import load_model
from src.models.weights import read_state_dict
from src.paths import REPO_ROOT
from src.pictures.animation import open_result
from src.prepare import inspect_file, inspect_packed
from src.prepare.sources import mraw
from src.prepare.sources import run as sources
from src.run_directory import RunDirectory
from tests import source_cases
from tests.spike_cases import dense_to_events, random_spikes
from tests.test_source_mraw import write_mraw

SIZE, NUM_BINS, SECONDS, EXTRA_BYTES = (8, 16), 3, 10, 1 << 30
NIGHTLY = int(os.environ.get("VRT_SPIKE_FUZZ", "200"))
GEOMETRY = spike_dat.SpikeGeometry(*SIZE)
SPIKES = random_spikes(12, *SIZE)
BITS = bytes(range(250)) * 50
EVENTS = dense_to_events(SPIKES)
COLUMNS = dict(zip("tyx", EVENTS.T, strict=True))
PICTURE = np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)
FILM = [np.roll(np.kron(PICTURE, np.ones((4, 4, 1), np.uint8)), 3 * i, 1) for i in range(6)]
RAW = np.arange(3 * 4 * 6).reshape(3, 4, 6) * 50
WEIGHTS = {"vrt.a": torch.arange(6.0).reshape(2, 3), "vrt.b": torch.ones(3)}
STATE = {"format": 2, "progress": {"step": 7}, "model": WEIGHTS}
DESCRIPTION = description.DataDescription(
    *("demo", "blur", (7, 9), "linear", 2.5, 4000.0, *SIZE), offsets=(("train/a", 2),),
    fingerprint=(description.SplitFingerprint("train", 1, 4, "ab", "cd", "ef"),),
)  # fmt: skip
SIDECAR = "height: 8\nwidth: 16\nticks_per_second: 4000.0\nbit_order: big\nflip_rows: false\n"
CONFIG = source_cases.CONFIG.format(root="data", out="out")
SPIKECV = "spike_h: 8\nspike_w: 16\n"
TABLE = "frame_idx,t0[ms],t1[ms],t_sharp[ms]\n0,0.5,1.5,1.0\n1,3,4,3.25\n"
IDENTITY = {"files": [["a.mp4", 7]], "rate": 240.0}
SCORES = {"mean_over_frames": {"psnr_rgb": 30.5}}
RECORDS = {
    "source.json": json.dumps({"identity": IDENTITY, "notes": ["a note"]}),
    "metrics/val_a_0000004.json": json.dumps({"step": 4, "restored": SCORES}),
    "ckpts/.a.start.json": json.dumps({"SLURM_JOB_ID": "7"}),
    "dataset_files.json": json.dumps({"train": {"a/blur/0.png": [9, "ab"]}}),
    "scalars.csv": "step,tag,value\r\n2,lr,0.25\r\n6,lr,0.5\r\n",
}
LOG = "sequence,frame_idx,t0,t1,event_count\ntrain/a,0,0.5,1.5,7\nval/b,1,2,3.5,8\n"

PIECES = (
    *(b"0", b"-1", b"1e999", b".inf", b"nan", b"9" * 20, b"9" * 5000, b"0x" + b"f" * 4000),
    *(b'"', b",", b":", b"\n", b"\r", b"\0", b"[" * 5000, b"!!bool x", b"!!int ''", b"2024-99-99"),
    *(b"x" * 200_000, b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(8)),
)
TOKEN = re.compile(rb"[^\s,:;=<>\[\](){}'\"]+")
EDITS = st.lists(
    st.tuples(
        st.sampled_from(("cut", "drop", "flip", "write", "insert", "repeat", "swap", "token")),
        st.integers(0, 63) | st.integers(0, 1 << 20),
        st.integers(1, 40),
        st.sampled_from(PIECES) | st.binary(min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=3,
)


# Found once: kept whatever a run generates.
FOUND = {
    "exposures.csv": [("insert", 0, 1, b"x" * 200_000)], "spike.yaml": [("token", 5, 1, b".inf")],
    "dataset.yaml": [("token", 1, 1, b"!!bool x")], "run.yaml": [("token", 1, 1, b"2024-99-99")],
    "inspected.h5": [("cut", 291331, 19, b""), ("write", 2048, 28, b":")],
    "old.pth": [("flip", 1408, 40, b"")],
    "scalars.csv": [
        ("token", 63, 21, b"\r"), ("repeat", 44, 20, b""), ("token", 63, 31, b"\x0c\x11Z\x1a"),
    ],
    "test_1.json": [("token", 7, 1, b"f" * 4000)],
    "a.jpg": [("write", 159, 1, b"\0")],
    "index.json": [("token", 45, 1, b"\x7f\xff\xff\xff"), ("token", 45, 10, b"0")],
}  # fmt: skip


def damage(data: bytes, edits: list[tuple[str, int, int, bytes]]) -> bytes:
    """Return a file with edits: their kind, where, of how many bytes, and what is put there."""
    for kind, place, length, piece in edits:
        at = place % (len(data) + 1)
        if kind == "token" and (tokens := list(TOKEN.finditer(data))):
            at, end = tokens[place % len(tokens)].span()
            length = end - at
        head, part, tail = data[:at], data[at : at + length], data[at + length :]
        flipped = bytes(byte ^ (1 << length % 8) for byte in part[:1])
        data = {
            "cut": head,
            "drop": head + tail,
            "flip": head + flipped + part[1:] + tail,
            "write": head + piece + data[at + len(piece) :],
            "insert": head + piece + part + tail,
            "repeat": head + part * (2 + place % 50) + tail,
            "swap": head + tail[:length] + part + tail[length:],
            "token": head + piece + tail,
        }[kind]
    return data


class Reader(NamedTuple):
    """A valid file, and what reads it: True where what was read is right."""

    name: str
    write: Callable[[Path], Any]
    read: Callable[[Path], bool]
    errors: type[Exception] = BadFileError  # what the entry points make a sentence of
    share: int = 1  # the number of inputs is divided by it
    longest: int = 200_000  # bytes that are put in at once


def write_array(path: Path) -> None:
    is_list = path.stem == "columns"
    parts = COLUMNS if is_list else {"a": SPIKES}
    if path.suffix == ".npy":
        np.save(path, EVENTS if is_list else SPIKES)
    elif path.suffix == ".npz":
        np.savez_compressed(path, **parts)
    else:
        with h5py.File(path, "w") as file:
            for name, array in parts.items():
                file.create_dataset(name, data=array, chunks=True, compression="gzip")


def read_spikes(path: Path) -> bool:
    if path.stem == "columns":
        file = arrays.EventFile(path, *SIZE)
        first, stop = file.first_tick, file.first_tick + min(file.time_step, 1)
    else:
        is_dat, dense = path.suffix == ".dat", (path, *SIZE, "SHW")
        file = spike_dat.SpikeParts([path], GEOMETRY) if is_dat else arrays.DenseFile(*dense)
        first, stop = 0, file.num_ticks
    found = file.read(first, stop)
    return found.shape == (stop - first, *SIZE) and found.max() <= 1


def read_exposures(path: Path) -> bool:
    if path.stem == "alignment":
        tables = exposures.read_alignment([path]).records.values()
    else:
        tables = [exposures.read_exposures(path, 1000.0)]
    found = [exposure for table in tables for exposure in table.values()]
    for exposure in found:
        with suppress(ValueError):  # its callers name the frame
            exposures.window_ticks(exposure.t0, exposure.t1, 1000.0)
    return all(math.isfinite(exposure.t1 - exposure.t0) for exposure in found)


def write_counts(path: Path) -> None:
    spike_dat.write_spikes(path.with_name("a.dat"), SPIKES, GEOMETRY)
    source = voxel_counts.SpikeWindow(path.with_name("a.dat"), GEOMETRY, 0, len(SPIKES))
    voxel_counts.write_index(path.parent, {"a": voxel_counts.count_frame(source, NUM_BINS, None)})


def read_counts(path: Path) -> bool:
    if path.suffix == ".npy":
        counts = voxel_counts.read_voxels(path, NUM_BINS)
        return len(counts) == NUM_BINS and counts.min() >= 0 and bool(np.isfinite(counts).all())
    found = voxel_counts.read_index(path.parent).values()
    return not found or all(map(math.isfinite, voxel_counts.normalization_of(found, 2.0)))


def read_cached(path: Path) -> bool:
    files = [path.parents[1] / "blur" / name for name in ("000.png", "001.png")]
    for file in files:
        if not file.exists():
            frames.write_png(file, PICTURE)
    store, _ = frame_cache.store_frames(files, path.parents[1])
    return all(np.array_equal(store.read(file), PICTURE) for file in files)


def read_film(path: Path) -> bool:
    if path.suffix in (".cih", ".cihx", ".mraw"):
        path = path.with_suffix(".mraw")
        header, _ = mraw.find_mraw(path)
        count, size = header.num_frames, (header.height, header.width)
        film = mraw.read_mraw(path, header)
    else:
        (count, size, _), film = video.probe_video(path), video.read_video(path)
    return [frame.shape for frame in film] == [(*size, 3)] * count


def read_picture(path: Path) -> bool:
    is_cut = frames.is_cut_short(path)
    image = frames.read_image(path)
    is_whole = np.array_equal(image, PICTURE) or path.suffix != ".png"
    return not is_cut and is_whole and image.dtype == np.uint8 and image.shape[2:] == (3,)


def read_weights(path: Path) -> bool:
    if path.stem == "last":
        found = load_checkpoint(path)["model"]
        return all(torch.equal(found[name], weight) for name, weight in WEIGHTS.items())
    return all(bool(weight.isfinite().all()) for weight in read_state_dict(path).values())


def read_settings(path: Path) -> bool:
    if path.stem == "run":
        cfg = load_config(path, check_paths=False)
        return config_from_text(config_to_text(cfg), "text") == cfg
    if path.stem == "dataset":
        found = description.read_description(path.parent)
        description.description_differences(found, DESCRIPTION)
        text = description.description_to_text(found)
        return description.description_from_text(text, "text") == found
    found = spike_dat.read_sidecar(path.with_name("a.dat"))
    return found is None or math.isfinite((found.ticks_per_second or 1) * (found.threshold or 1))


def read_record(path: Path) -> bool:
    """What a damaged one says is not used, or it is named; no value of it is trusted."""
    folder, run = path.parent, RunDirectory(path.parents[1], "a")
    if path.name == "source.json":
        found = sources._changed(folder, SimpleNamespace(identity=IDENTITY))
        return all(text.startswith(str(folder)) for text in found)
    if path.name == description.LIST_NAME:
        return isinstance(description.changed_files(folder, ("train",), (".png",)), str)
    if path.name == "scalars.csv":
        drop_rows_after(path, 5)
        rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
        return rows[0][0] == "step" and all(int(step) <= 5 for step, *_ in rows[1:])
    if path.parent.name == "ckpts":
        return not is_repeated_start(run)
    if path.parent.name == "metrics":
        curve, seconds = runs._read_validations(run)
        return all(isinstance(v, float) for v in [*curve.values(), seconds or 0.0])
    if path.name == "report.json":
        return export_weights.scores_of(path) is not None
    with suppress(DataSetError):  # an input that is gone is named as one
        open_result(path.with_suffix(""), path.parent)
    return True


def write_record(path: Path) -> None:
    (path.parent / "train").mkdir()  # of the list of files
    path.write_text(next(text for name, text in RECORDS.items() if name.endswith(path.name)))


def write_report(path: Path) -> None:
    shared = {"output": str(path.with_suffix("")), "frames": {"a": 1}}
    inputs = {"blurry": str(path.parent / "gone"), "sharp": None}
    path.write_text(json.dumps({**shared, "inputs": inputs, "scores": {"restored": SCORES}}))


def inspect(path: Path) -> bool:
    return bool(inspect_file.inspect_file(inspect_packed.Question(path)).answer)


ENDS = (".npy", ".npz", ".h5")
READERS = (
    Reader("a.dat", lambda p: spike_dat.write_spikes(p, SPIKES, GEOMETRY), read_spikes),
    Reader("inspected.dat", lambda p: p.write_bytes(BITS), inspect, ValueError, 8),
    *(Reader(f"a{end}", write_array, read_spikes, ValueError) for end in ENDS),
    *(Reader(f"columns{end}", write_array, read_spikes, ValueError) for end in ENDS),
    *(Reader(f"inspected{end}", write_array, inspect, ValueError, 4) for end in ENDS),
    Reader("spike.yaml", lambda p: p.write_text(SIDECAR), read_settings, ValueError, 2),
    Reader("config.yaml", lambda p: p.write_text(SPIKECV), read_settings, ValueError, 2),
    Reader("dataset.yaml", lambda p: description.write_description(p.parent, DESCRIPTION),
           read_settings, description.DescriptionError, 4),
    Reader("run.yaml", lambda p: p.write_text(CONFIG), read_settings, ConfigError, 4),
    Reader("exposures.csv", lambda p: p.write_text(TABLE), read_exposures),
    Reader("alignment.csv", lambda p: p.write_text(LOG), read_exposures),
    Reader("voxels.npy", lambda p: np.save(p, SPIKES[:NUM_BINS]), read_counts),
    Reader("index.json", write_counts, read_counts),
    Reader("frame_cache/blur.json", read_cached, read_cached, share=4),
    *(Reader(f"a.{end}", lambda p: cv2.imwrite(str(p), PICTURE[..., ::-1]), read_picture)
      for end in ("png", "jpg", "bmp")),
    *(Reader(f"a{end}", lambda p: write_mraw(p.with_suffix(".mraw"), RAW, 12, p.suffix == ".cihx"),
             read_film) for end in (".cih", ".cihx")),
    *(Reader(f"a.{end}", lambda p: source_cases.write_video(p, FILM), read_film, share=8)
      for end in ("mp4", "webm", "avi")),
    Reader("pixels.mraw", lambda p: write_mraw(p, RAW, 16, depth=12), read_film),
    *(Reader(name, write_record, read_record) for name in RECORDS),
    Reader("test_1.json", write_report, read_record, ValueError),
    Reader("report.json", write_report, read_record),
    Reader("last.pth", lambda p: torch.save(STATE, p), read_weights, ValueError),
    Reader("old.pth", lambda p: torch.save(WEIGHTS, p, _use_new_zipfile_serialization=False),
           read_weights, ValueError, longest=3_000),  # torch's time is quadratic in a name
    Reader("a.safetensors", lambda p: save_file(WEIGHTS, p), read_weights, ValueError),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _limits():
    """Let this process take a gigabyte beyond what it has, and end what takes 10 s."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    memory = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + EXTRA_BYTES, memory[1]))
    former = signal.signal(signal.SIGALRM, lambda *_: pytest.fail(f"it took {SECONDS} s"))
    yield
    signal.signal(signal.SIGALRM, former)
    resource.setrlimit(resource.RLIMIT_AS, memory)


def check_file(reader: Reader, path: Path, data: bytes) -> str | None:
    """Read a file of these bytes: what comes is right, or it is an error that names the file."""
    path.write_bytes(data)
    before, message = sorted(path.parent.iterdir()), None
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        assert reader.read(path)
    except reader.errors as error:
        message = str(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert message is None or str(path.with_suffix("")) in message
    assert sorted(path.parent.iterdir()) == before
    return message


@pytest.mark.parametrize("count", [64, pytest.param(NIGHTLY, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_damaged_files_are_read_rightly_or_named(reader, count, tmp_path):
    hypothesis.configuration.set_hypothesis_home_dir(tmp_path / "hypothesis")
    path = tmp_path / "data" / reader.name
    path.parent.mkdir(parents=True)
    reader.write(path)
    whole = path.read_bytes()

    @hypothesis.settings(
        max_examples=count // reader.share, derandomize=True, deadline=None, database=None,
        suppress_health_check=list(hypothesis.HealthCheck), phases=[hypothesis.Phase.generate],
    )  # fmt: skip
    @hypothesis.given(EDITS)
    def check(edits: list[tuple[str, int, int, bytes]]) -> None:
        edits = [(*where, piece[: reader.longest]) for *where, piece in edits]
        check_file(reader, path, damage(whole, edits))

    assert check_file(reader, path, whole) is None
    check_file(reader, path, damage(whole, FOUND.get(reader.name, [])))
    check()


@pytest.mark.parametrize("part", [{"format": "2"}, {"progress": 7}, {"progress": {"step": None}}])
def test_a_checkpoint_with_parts_of_another_type_is_named(tmp_path, part):
    path = tmp_path / "a.pth"
    torch.save(STATE | part, path)
    with pytest.raises(ValueError, match=r"a\.pth: its format or step"):
        load_checkpoint(path)


@pytest.mark.parametrize("part", [{"config": 7}, {"progress": {}}, {"vrt": "a: ["}])
def test_weights_with_parts_of_another_type_are_named(tmp_path, part):
    path = tmp_path / "a.pth"
    torch.save(STATE | {"config": CONFIG} | part, path)
    with pytest.raises(ValueError, match=r"a\.pth"):
        load_model(path)


@pytest.mark.nightly
def test_a_command_on_a_damaged_file_ends_with_one_sentence(tmp_path, forks):
    """Exit 0, 1 or 2 and no traceback, by process: weights, spikes, a configuration, records."""
    commands = {
        "a.npy": "inspect_spikes.py {} --height 8 --width 16 --output {out}",
        "a.h5": "inspect_spikes.py {} --output {out}",
        "inspected.dat": "inspect_spikes.py {} --output {out}",
        "run.yaml": "prepare_data.py --check_only --config {}",
        "last.pth": "export_weights.py {} {out}/a.safetensors",
        "a.safetensors": "../src/test.py --ckpt {} --input_blur {folder} --output {out}",
        "test_1.json": "visualize.py {stem} --video {out}/a.mp4",
    }
    rng, counts = np.random.default_rng(0), dict.fromkeys((0, 1, 2), 0)
    for reader in [reader for reader in READERS if reader.name in commands]:
        path = tmp_path / reader.name / "data" / reader.name
        path.parent.mkdir(parents=True)
        reader.write(path)
        whole = path.read_bytes()
        words = commands[reader.name].format(
            path, out=tmp_path / "out", folder=path.parent, stem=path.with_suffix("")
        )
        script, *words = words.split()
        for _ in range(max(NIGHTLY // 50, 2)):
            at, size = rng.integers(0, len(whole)), int(rng.integers(1, 40))
            path.write_bytes(whole[:at] + rng.bytes(size) + whole[at + size :])
            process = forks([REPO_ROOT / "scripts" / script, *words])
            counts[process.wait(60)] += 1  # a KeyError is another code
            assert "Traceback" not in process.output, (reader.name, process.output)
            assert process.output.strip(), reader.name
    assert counts[1] + counts[2] > counts[0], counts
