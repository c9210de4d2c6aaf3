"""A run that is small enough for tests: miniature data, a VRT of a few channels, few steps."""

import atexit
import os
import shutil
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import torch
import yaml
from torch.distributed import TCPStore

from scripts.prepare_data import main as prepare_data
from src.config import load_config
from src.engine.processes import Ranks
from src.engine.trainer import Trainer
from src.paths import REPO_ROOT
from src.run_directory import RunDirectory
from tests.data_cases import write_miniature
from tests.forked import Forked

SMALLEST_VRT = {
    "upscale": 1,
    "window_size": [2, 4, 4],
    "depths": [1] * 9,
    "indep_reconsts": [8],
    "embed_dims": [8] * 9,
    "num_heads": [2] * 9,
    "mul_attn_ratio": 1.0,
    "pa_frames": 2,
    "deformable_groups": 2,
    "drop_path_rate": 0.2,  # so that equal runs need equal random numbers
}


def write_run(folder: Path, **changes: object) -> Path:
    """Write prepared data, VRT arguments and a configuration; return its path.

    `changes` are dotted keys with `__` for the dot. The data are prepared once per process and
    copied, unless a change concerns them.
    """
    if any(name.startswith("DATA__") for name in changes):
        return _write_prepared(folder, changes)
    shutil.copytree(_prepared_once(), folder, dirs_exist_ok=True)
    values = _values(folder, changes)
    norm = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))["DATA"]["NORM"]
    values |= {"DATA.NORM.MEAN": norm["MEAN"], "DATA.NORM.STD": norm["STD"]}
    return _write_config(folder, values)


def _values(folder: Path, changes: dict[str, object]) -> dict[str, object]:
    """A step is one clip, a validation one clip of whole frames, and nothing is recomputed."""
    return {
        "SEED": 5,
        "DATA.ROOT": str(folder / "data"),
        "DATA.CLIP_LEN": 2,
        "DATA.CROP_SIZE": 32,
        "DATA.K": 4,
        "DATA.NORM.MEAN": 0.3,
        "DATA.NORM.STD": 0.4,
        "DATA.USE_PRECOMPUTED_VOXELS": False,
        "DATA.ALIGN_LOG_PATHS": [],
        "MODEL.VRT_CFG": str(folder / "vrt.yaml"),
        "MODEL.CHANNELS_PER_SCALE": [8, 8, 8, 8],
        "MODEL.USE_CHECKPOINT_ATTN": False,
        "MODEL.USE_CHECKPOINT_FFN": False,
        "TRAIN.MAX_STEPS": 4,
        "TRAIN.GRADIENT_ACCUMULATION_STEPS": 1,
        "TRAIN.NUM_WORKERS": 0,
        "TRAIN.OPTIM.LR": 1e-3,
        "TRAIN.SCHED.WARMUP_STEPS": 1,
        "TRAIN.FREEZE": ["spynet"],
        "TRAIN.VAL_EVERY": 100,
        "TRAIN.VISUAL_EVERY": 100,
        "TRAIN.SAVE_EVERY": 1,
        "TRAIN.LOG_EVERY": 2,
        "VAL.TILE_FRAMES": 0,
        "VAL.OVERLAP_FRAMES": 1,
        "VAL.TILE_SIZE": 64,
        "LOSS.VGG_PERCEPTUAL.WEIGHT": 0.0,
        "LOG.TENSORBOARD": False,
        "LOG.SAVE_DIR": str(folder / "outputs"),
        **{name.replace("__", "."): value for name, value in changes.items()},
    }


def _write_config(folder: Path, values: dict[str, object]) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(_nested(values)), encoding="utf-8")
    return path


def _write_prepared(folder: Path, changes: dict[str, object]) -> Path:
    side = changes.get("DATA__CROP_SIZE", 32)
    frames = {"frames": 5, "size": (side, side + 16)}
    write_miniature(folder / "data", sequences=2, val_sequences=1, num_bins=4, **frames)
    (folder / "vrt.yaml").write_text(yaml.safe_dump(SMALLEST_VRT), encoding="utf-8")
    path = _write_config(folder, _values(folder, changes))
    assert prepare_data(["--config", str(path), "--workers", "1"]) == 0
    return path


@cache
def _prepared_once() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="prepared"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _write_prepared(folder, {})
    return folder


def make_trainer(config: Path, *overrides: str) -> Trainer:
    """Return the trainer of a configuration, on one rank and the CPU."""
    cfg = load_config(config, list(overrides))
    return Trainer(cfg, Ranks(0, 1, torch.device("cpu")), RunDirectory.of(cfg))


def train_command(config: Path, *overrides: str) -> list[str]:
    """Return the command that trains."""
    return [sys.executable, str(REPO_ROOT / "src/train.py"), "--config", str(config), *overrides]


def run_train(config: Path, *overrides: str, processes: int = 1) -> str:
    """Train in processes of their own and return what they print; fail with it on an error."""
    command = [str(REPO_ROOT / "src/train.py"), "--config", str(config), *overrides]
    codes, output = run_ranks(command, config.parent, processes)
    assert codes == [0] * processes, output
    return output


def run_ranks(command: list[str], folder: Path, processes: int) -> tuple[list[int], str]:
    """Run a script on several ranks without torchrun; return the exit codes and the output."""
    log = Path(tempfile.mkdtemp(dir=folder)) / "output.txt"
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    group = {"WORLD_SIZE": str(processes), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    ranks = []
    try:
        for rank in range(processes):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            ranks.append(Forked(command, folder, {**one_thread(), **group, **own}, log))
        deadline = time.monotonic() + 300
        codes = [rank.wait(deadline - time.monotonic()) for rank in ranks]
        return codes, ranks[0].output
    finally:
        for rank in ranks:
            rank.end()


def one_thread() -> dict[str, str]:
    """Return an environment in which results do not depend on the number of cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def read_checkpoint(folder: Path, run: str = "run") -> dict:
    """Return the last checkpoint of a run."""
    path = folder / "outputs" / "ckpts" / run / "last.pth"
    return torch.load(path, weights_only=True)


def assert_same_state(first: dict, second: dict) -> None:
    """Weights, optimiser and schedule are equal bit for bit."""
    for part in ("model", "optimizer", "schedule", "scaler"):
        _assert_equal(first[part], second[part], part)
    assert first["progress"]["step"] == second["progress"]["step"]


def _assert_equal(first: object, second: object, where: str) -> None:
    assert type(first) is type(second), where
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            _assert_equal(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for index, pair in enumerate(zip(first, second, strict=True)):
            _assert_equal(*pair, f"{where}[{index}]")
    else:
        assert first == second, where


def _nested(values: dict[str, object]) -> dict:
    tree: dict = {}
    for dotted, value in values.items():
        *sections, name = dotted.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return tree
