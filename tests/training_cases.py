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

CPU = torch.device("cpu")
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

    A step is one clip, a validation one clip of whole frames; nothing is recomputed, and there is
    no flow estimator. `changes` are dotted keys with `__` for the dot. The data are prepared once
    per process and copied, unless a change concerns them.
    """
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    values = {
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
        "MODEL.SPYNET": "none",
        "MODEL.CHANNELS_PER_SCALE": [8, 8, 8, 8],
        "MODEL.USE_CHECKPOINT_ATTN": False,
        "MODEL.USE_CHECKPOINT_FFN": False,
        "TRAIN.MAX_STEPS": 4,
        "TRAIN.GRADIENT_ACCUMULATION_STEPS": 1,
        "TRAIN.NUM_WORKERS": 0,
        "TRAIN.OPTIM.LR": 1e-3,
        "TRAIN.SCHED.WARMUP_STEPS": 1,
        "TRAIN.VAL_EVERY": 100,
        "TRAIN.VISUAL_EVERY": 100,
        "TRAIN.SAVE_EVERY": 100,
        "TRAIN.LOG_EVERY": 2,
        "VAL.TILE_FRAMES": 0,
        "VAL.OVERLAP_FRAMES": 1,
        "VAL.TILE_SIZE": 64,
        "LOSS.VGG_PERCEPTUAL.WEIGHT": 0.0,
        "LOG.TENSORBOARD": False,
        "LOG.SAVE_DIR": str(folder / "outputs"),
        **changes,
    }
    path = folder / "run.yaml"
    if any(name.startswith("DATA.") for name in changes) or folder == _prepared_folder():
        side = values["DATA.CROP_SIZE"]
        frames = {"frames": 5, "size": (side, side + 16)}
        write_miniature(folder / "data", sequences=2, val_sequences=1, num_bins=4, **frames)
        (folder / "vrt.yaml").write_text(yaml.safe_dump(SMALLEST_VRT), encoding="utf-8")
        write_config(path, values)
        assert prepare_data(["--config", str(path), "--workers", "1"]) == 0
        return path
    shutil.copytree(_prepared_once(), folder, dirs_exist_ok=True)
    norm = yaml.safe_load(path.read_text(encoding="utf-8"))["DATA"]["NORM"]
    return write_config(path, values | {f"DATA.NORM.{name}": norm[name] for name in norm})


def write_config(path: Path, values: dict[str, object]) -> Path:
    """Write a configuration given by dotted keys."""
    tree: dict = {}
    for dotted, value in values.items():
        *sections, name = dotted.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


@cache
def _prepared_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="prepared"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def _prepared_once() -> Path:
    return write_run(_prepared_folder()).parent


def make_trainer(config: Path, *overrides: str) -> Trainer:
    """Return the trainer of a configuration, on one rank and the CPU."""
    cfg = load_config(config, list(overrides))
    return Trainer(cfg, Ranks(0, 1, CPU), RunDirectory.of(cfg))


def resumed(config: Path, *overrides: str, choice: str = "auto") -> Trainer:
    """Return a new trainer that has resumed."""
    trainer = make_trainer(config, *overrides)
    trainer.resume(choice)
    return trainer


def train_command(config: Path, *overrides: str) -> list[str]:
    """Return the command that trains."""
    return [sys.executable, str(REPO_ROOT / "src/train.py"), "--config", str(config), *overrides]


def run_train(config: Path, *overrides: str, processes: int = 1) -> str:
    """Train in processes of their own and return what they print; fail with it on an error."""
    command = train_command(config, *overrides)[1:]
    codes, output = run_ranks(command, config.parent, processes)
    assert codes == [0] * processes, output
    return output


def run_ranks(command: list[str], folder: Path, processes: int) -> tuple[list[int], str]:
    """Run a script on several ranks without torchrun; return the exit codes and the output."""
    log = Path(tempfile.mkdtemp(dir=folder)) / "output.txt"
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment, ranks = one_thread() | rank_variables(store, processes), []
    try:
        for rank in map(str, range(processes)):
            own = {"RANK": rank, "LOCAL_RANK": rank}
            ranks.append(Forked(command, folder, environment | own, log))
        deadline = time.monotonic() + 300
        return [rank.wait(deadline - time.monotonic()) for rank in ranks], ranks[0].output
    finally:
        for rank in ranks:
            rank.end()


def rank_variables(store: TCPStore, processes: int) -> dict[str, str]:
    """Return what torchrun sets for all ranks of a run that meets at a store."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    return {"WORLD_SIZE": str(processes), **agent, **meeting}


def one_thread() -> dict[str, str]:
    """Return an environment in which results do not depend on the number of cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def wait_for(condition, process, seconds: float = 120.0) -> None:
    """Wait until something holds while a process runs; fail with its output if it ends before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate(timeout=60)[0]
        time.sleep(0.01)


def checkpoint_of(folder: Path, run: str = "run", name: str = "last.pth") -> Path:
    """Return the path of a checkpoint of a run that `write_run` wrote."""
    return folder / "outputs" / "ckpts" / run / name


def read_checkpoint(folder: Path, run: str = "run") -> dict:
    """Return the last checkpoint of a run."""
    return torch.load(checkpoint_of(folder, run), weights_only=True)


def assert_same_state(first: dict, second: dict) -> None:
    """Weights, optimiser and schedule are equal bit for bit."""
    for part in ("model", "ema", "optimizer", "schedule", "scaler"):
        assert_equal(first.get(part), second.get(part))
    assert first["progress"]["step"] == second["progress"]["step"]


def assert_equal(first: object, second: object) -> None:
    """Nested values are equal, tensors bit for bit."""
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_equal(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert_equal(dict(enumerate(first)), dict(enumerate(second)))
    else:
        assert first == second
