"""Data files that try to run code, to fill the memory, or to leave their folder by their name."""

import pickle
import time

import numpy as np
import pytest
import yaml

from src.config import load_config
from src.data.build import build_train_dataset, build_val_recordings
from src.data.description import read_description
from src.data.errors import BadFileError, BadSample
from src.data.exposures import read_alignment
from src.data.spikes.spike_dat import read_sidecar
from src.data.voxel_counts import open_voxels
from src.prepare.checks import quick_check
from tests.data_cases import write_miniature, write_sequence
from tests.prepare_cases import run, write_config

BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)  # 9 ** 9 values
EVIL_YAML = {
    "object": "source: !!python/object/apply:os.system ['touch {marker}']\n",
    "bomb": BOMB + "source: *i\n",
    "depth": "source: " + "[" * 100_000 + "\n",
    "size": "source: " + "x" * (2 << 20) + "\n",
    "not text": b"\xff\xfe\x00",
    "impossible date": "source: 2024-13-45\n",
}


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def write_text(path, content, marker):
    data = content if isinstance(content, bytes) else content.replace("{marker}", str(marker))
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


@pytest.mark.parametrize("kind", EVIL_YAML)
@pytest.mark.parametrize("name", ["dataset.yaml", "spike.yaml", "config.yaml"])
def test_f30_yaml_of_unknown_origin_is_refused_quickly(tmp_path, kind, name):
    marker = tmp_path / "marker"
    write_text(tmp_path / name, EVIL_YAML[kind], marker)
    if name == "config.yaml":  # others are passed over
        (tmp_path / name).write_bytes(b"spike_h: 8\n" + (tmp_path / name).read_bytes())
    started = time.perf_counter()
    read = read_description if name == "dataset.yaml" else read_sidecar
    with pytest.raises(ValueError, match=name) as error:
        read(tmp_path if name == "dataset.yaml" else tmp_path / "a.dat")
    assert time.perf_counter() - started < 20
    assert len(str(error.value)) < 3000
    assert not marker.exists()


def test_f30_a_broken_sidecar_ends_preparing_with_its_name(tmp_path, capsys):
    root = write_miniature(tmp_path / "mini", sequences=1, frames=3)
    (root / "train/seq_000/spike/spike.yaml").write_text("height: [\n")
    assert run(write_config(root, tmp_path / "c.yaml")) == 1
    assert "spike.yaml: not a plain YAML file" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_f29_voxels_that_are_pickles_are_refused_and_not_run(tmp_path, suffix):
    marker = tmp_path / "marker"
    objects = np.empty((32, 4, 8), object)
    objects[...] = Payload(marker)
    path = tmp_path / f"000000{suffix}"
    (np.save if suffix == ".npy" else np.savez)(path, objects)
    with pytest.raises(BadFileError, match=r"000000\.np.: cannot be opened"):
        open_voxels(path, 32)
    path.write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(BadFileError, match="000000"):
        open_voxels(path, 32)
    assert not marker.exists()


def test_f29_a_data_set_with_object_arrays_names_the_file(tmp_path, capsys):
    root = write_miniature(tmp_path / "mini", sequences=1, frames=4, spikes="voxels")
    marker = tmp_path / "marker"
    objects = np.empty((32, 32, 48), object)
    objects[...] = Payload(marker)
    np.save(root / "train/seq_000/spike_vox/000001.npy", objects)
    config = write_config(root, tmp_path / "c.yaml")
    assert run(config) == 0
    assert "seq_000/000001 not counted: " in capsys.readouterr().out
    assert not marker.exists()


ODD_NAMES = (
    "with space",
    "quote'\"s",
    "$(touch marker)",
    "`touch marker`",
    "a, b",
    "ü日本",
    "-rf",
    "a..b",
    "semi;colon&",
    "new\nline",
)


def test_f31_odd_names_are_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "my data; $(touch marker)"
    for seed, name in enumerate(ODD_NAMES):
        write_sequence(root / "train" / name, 3, (32, 48), 3, seed)
    write_sequence(root / "val/seq", 3, (32, 48), 3, 99)
    config = tmp_path / "c d.yaml"
    values = {
        "DATA": {"ROOT": str(root), "CROP_SIZE": 32, "CLIP_LEN": 3, "NORM": {"MEAN": 0.0}},
        "LOG": {"SAVE_DIR": str(tmp_path / "out $(touch marker)")},
    }
    config.write_text(yaml.safe_dump(values))
    before = {path for path in tmp_path.rglob("*") if "spike_vox" not in path.parts}
    assert run(config) == 0
    assert quick_check(load_config(config)) == []
    (log,) = (tmp_path / "out $(touch marker)/logs").glob("align_*.txt")
    assert set(read_alignment([log]).records) == {f"train/{name}" for name in ODD_NAMES} | {
        "val/seq"
    }
    dataset = build_train_dataset(load_config(config))
    assert {dataset[i]["meta"]["seq"] for i in range(len(dataset))} == set(ODD_NAMES)
    assert not any(isinstance(dataset[i], BadSample) for i in range(len(dataset)))
    assert len(build_val_recordings(load_config(config))) == 1
    new = {p for p in tmp_path.rglob("*") if "spike_vox" not in p.parts} - before
    assert all(
        root in p.parents or (tmp_path / "out $(touch marker)") in (p, *p.parents) for p in new
    )
    assert not list(tmp_path.rglob("marker"))
