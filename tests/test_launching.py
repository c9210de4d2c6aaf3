"""What the README's first command does: set-up, launch, baseline, comparison."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import compare_baseline, launch
from src.config import load_config
from src.paths import REPO_ROOT
from tests.training_cases import write_run

DEMO = REPO_ROOT / "configs/deblur/demo.yaml"
RIVAL_AND_TABLE = ["plain_unet.py", "compare_baseline.py"]
ROWS = [
    *("blurry input", "no learning", "RGB-only baseline", "plain U-Net", "VRT+Spike"),
    "bound at spike resolution",
]
SETUP = REPO_ROOT / "scripts" / "setup_env.sh"


def launch_command(config: Path, *arguments: str) -> list[str]:
    launcher = str(REPO_ROOT / "scripts/launch.py")
    return [sys.executable, launcher, "--config", str(config), *arguments]


def commands_for(config: Path, resume: str = "auto", dry_run: bool = False, **changes) -> list[str]:
    values = {"nnodes": 1, "node_rank": 0, "max_restarts": 0, "rdzv_endpoint": "", "rdzv_id": "x"}
    values |= {"config": str(config), "overrides": ["SEED", "7"], **changes}
    args = argparse.Namespace(resume=resume, dry_run=dry_run, **values)
    commands = launch.commands_of(args, load_config(config, args.overrides), processes=1)
    return [" ".join(command) for command in commands]


def scripts_in(lines: list[str]) -> list[str]:
    return [Path(line.split()[1]).name for line in lines]


def test_demo_data_come_first_then_the_twin_the_run_and_the_comparison():
    lines = commands_for(DEMO, resume="some.pth")
    scripts = ["make_demo_data.py", "prepare_data.py", "train.py", "train.py"]
    assert scripts_in(lines) == [*scripts, *RIVAL_AND_TABLE]
    assert "--resume auto" in lines[2]  # a path belongs to the main run
    assert "MODEL.USE_SPIKE false" in lines[2]
    assert "--resume some.pth" in lines[3]
    assert "MODEL.USE_SPIKE" not in lines[3]
    assert all("SEED 7" in line for line in lines[1:])
    assert "--take" in lines[5]  # it would start this again
    dry = commands_for(DEMO, dry_run=True)
    assert scripts_in(dry)[2:] == ["train.py"]
    assert "--dry_run" in dry[2]


def test_of_several_machines_the_first_makes_data_and_comparison():
    several = {"nnodes": 2, "rdzv_endpoint": "node0:29400", "max_restarts": 3}
    first, second = (commands_for(DEMO, node_rank=rank, **several) for rank in (0, 1))
    assert first[2:4] == second  # both trainings
    assert scripts_in(first[4:]) == RIVAL_AND_TABLE
    for words in ("torch.distributed.run", "--nnodes=2", "--rdzv_endpoint=node0:29400"):
        assert words in second[0]
    assert "--max_restarts=3" in second[1]
    assert "--standalone" not in second[0]


@pytest.mark.parametrize("by", ["commands", pytest.param("launcher", marks=pytest.mark.nightly)])
def test_the_twin_is_trained_and_compared(tmp_path, forks, by):
    config = write_run(tmp_path, TRAIN__MAX_STEPS=1, TRAIN__RGB_TWIN=True, TRAIN__RIVAL_UNET=True)
    commands = [launch_command(config)]
    if by == "commands":  # those of the launcher, without the start of Python
        commands = [line.split() for line in commands_for(config)]
    for command in commands:
        done = forks(command)
        assert done.wait(240) == 0, done.output
    for words in (*ROWS, "comparison.png", "not decided"):
        assert words in done.output
    outputs = tmp_path / "outputs"
    content = json.loads((outputs / "metrics" / "compare_run.json").read_text())
    scores = json.loads((outputs / "metrics" / "val_run_rgb_twin_0000001.json").read_text())
    # Restored again, on one machine, every score is that of the training.
    assert (
        content["mean_over_frames"]["RGB-only baseline"] == scores["restored"]["mean_over_frames"]
    )
    assert list(content["mean_over_frames"]) == ROWS
    runs = content["runs"]
    assert runs["VRT+Spike"]["steps"] == 1
    assert runs["plain U-Net"]["compute_s"] >= runs["VRT+Spike"]["compute_s"] > 0
    assert (outputs / "metrics" / "compare_run.html").read_text().count("data:image/") >= 12
    assert (outputs / "visuals" / "run" / "comparison.png").stat().st_size > 1000
    compare = [REPO_ROOT / "scripts/compare_baseline.py", "--take", "--config", config]
    again = forks([*compare, "EXP_NAME", "never_trained"])
    assert again.wait(120) == 1
    assert "never_trained_rgb_twin has not been trained to its end; train it first" in again.output
    assert "Traceback" not in again.output


def test_the_comparison_becomes_the_launcher(monkeypatch):
    """A signal to a parent that only waits would leave the training behind."""
    becomes = []
    monkeypatch.setattr(os, "execv", lambda path, command: becomes.append((path, command)))
    arguments = ["compare_baseline.py", "--config", "a.yaml", "--num_processes", "2", "SEED", "7"]
    monkeypatch.setattr(sys, "argv", arguments)
    compare_baseline.main()
    ((path, command),) = becomes
    assert path == command[0] == sys.executable
    assert [Path(command[1]).name, *command[2:]] == [
        *("launch.py", "--config", "a.yaml", "--num_processes", "2"),
        *("SEED", "7", "TRAIN.RGB_TWIN", "true"),
    ]


@pytest.fixture(name="clone")
def _clone(tmp_path):
    """Give a copy of what setup_env.sh needs, in a folder with a space in its name."""
    clone = tmp_path / "a clone"
    (clone / "scripts").mkdir(parents=True)
    shutil.copy(SETUP, clone / "scripts")
    (clone / "requirements.txt").write_text("# nothing\n")
    return clone


def run_setup(clone: Path, **environment: str) -> subprocess.CompletedProcess:
    kept = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "CONDA_PREFIX")}
    command = ["bash", str(clone / "scripts" / "setup_env.sh")]
    return subprocess.run(
        command, env={**kept, **environment}, capture_output=True, text=True, check=False
    )


def test_set_up_replaces_an_incomplete_environment_and_keeps_a_whole_one(clone):
    half = [sys.executable, "-m", "venv", "--without-pip", clone / ".venv"]  # killed before pip
    subprocess.run(half, check=True)
    marker = clone / ".venv" / "marker"
    marker.touch()
    first = run_setup(clone, PYTHON=sys.executable)
    assert Path(first.stdout.strip()) == clone / ".venv" / "bin" / "python", first.stderr
    if shutil.which("uv") is None:  # which needs no pip
        assert "making" in first.stderr
        assert not marker.exists()
    assert run_setup(clone).stderr == ""  # nothing to do


def test_set_up_names_what_it_cannot_use_and_changes_nothing(clone, tmp_path):
    conda = tmp_path / "conda"
    conda.mkdir()
    (conda / "mine").touch()
    done = run_setup(clone, CONDA_PREFIX=str(conda), CONDA_DEFAULT_ENV="deblur")
    assert done.returncode == 1
    assert "has no python with pip" in done.stderr
    assert [path.name for path in conda.iterdir()] == ["mine"]
    done = run_setup(clone, PYTHON="/no such/python")
    assert done.returncode == 1
    assert "PYTHON=/no such/python is no Python >= 3.10" in done.stderr
    assert not (clone / ".venv").exists()
