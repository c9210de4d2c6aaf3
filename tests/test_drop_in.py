"""third_party/VRT is exchanged for a clone that has nothing of ours, and everything still works."""

import ast
import shutil
import subprocess
import sys

import pytest

from src.paths import REPO_ROOT
from tests.training_cases import one_thread, read_checkpoint, write_run

NETWORK = "third_party/VRT/models/network_vrt.py"


@pytest.fixture(scope="module", name="clone")
def _clone(tmp_path_factory):
    """A copy of the repository with the stand-in for the upstream, and a run to train."""
    folder = tmp_path_factory.mktemp("clone")
    for part in ("src", "scripts", "configs"):
        shutil.copytree(REPO_ROOT / part, folder / part, ignore=lambda *_: {"__pycache__"})
    (folder / NETWORK).parent.mkdir(parents=True)
    shutil.copy(REPO_ROOT / "tests/stand_in_vrt.py", folder / NETWORK)
    config = write_run(folder, TRAIN__GRADIENT_ACCUMULATION_STEPS=1, DEVICE="cpu")
    return folder, config


def run(clone, script, *arguments):
    """Run a command of the clone; return what it printed."""
    folder, _ = clone
    done = subprocess.run(
        [sys.executable, str(folder / script), *map(str, arguments)],
        cwd=folder, env=one_thread(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_commands_work_with_a_clone_of_the_upstream(clone):
    folder, config = clone
    shown = run(clone, "src/train.py", "--config", config, "TRAIN.MAX_STEPS", 2)
    assert "this VRT has no alignment that can be measured" in shown
    first = read_checkpoint(folder)
    assert "vrt.spynet.basic_module.0.weight" in first["model"]  # the stand-in's, not ours
    assert first["progress"]["step"] == 2

    # This trains the twin without spikes, resumes the run above and compares the two.
    shown = run(clone, "scripts/compare_baseline.py", "--config", config)
    page = folder / "outputs/metrics/compare_run.html"
    assert "resumed at step 2 from" in shown
    assert page.is_file()
    assert read_checkpoint(folder)["progress"]["step"] == 4
    assert not any("spike" in key for key in read_checkpoint(folder, "run_rgb_twin")["model"])

    sequence = folder / "data/val/seq_000"
    shown = run(
        clone, "src/test.py", "--ckpt", folder / "outputs/ckpts/run/last.pth",
        "--input_blur", sequence / "blur", "--input_spike_vox", sequence / "spike",
        "--output", folder / "restored",
    )  # fmt: skip
    assert len(list((folder / "restored").glob("*.png"))) == 5

    shown = run(clone, "scripts/validate_model_shapes.py", "--config", config, "--size", 64, 64)
    assert "stage7" in shown
    files = {path.name for path in (folder / "third_party").rglob("*.py")}
    assert files == {"network_vrt.py"}


def test_nothing_outside_imports_more_than_the_network():
    allowed = ("third_party.VRT.models.network_vrt", {"VRT"})
    found = []
    for part in ("src", "scripts", "benchmarks"):
        for path in (REPO_ROOT / part).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found += [(a.name, set()) for a in node.names if "third_party" in a.name]
                elif isinstance(node, ast.ImportFrom) and "third_party" in (node.module or ""):
                    found.append((node.module, {alias.name for alias in node.names}))
    assert allowed in found
    assert all(entry == allowed for entry in found), found
