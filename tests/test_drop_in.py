"""third_party/VRT is exchanged for a clone that has nothing of ours, and everything still works."""

import ast
import json
import shutil
import subprocess
import sys

from src.config import load_config, rgb_only_overrides
from src.paths import REPO_ROOT
from tests.training_cases import one_thread, read_checkpoint, write_run

NETWORK = "third_party/VRT/models/network_vrt.py"
# One process, because each would spend most of its time on the same imports.
RUN_ALL = """
import json, runpy, sys
for command in json.loads(sys.argv[1]):
    sys.argv = command
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
"""


def test_commands_work_with_a_clone_of_the_upstream(tmp_path):
    for part in ("src", "scripts", "configs", "benchmarks"):
        shutil.copytree(REPO_ROOT / part, tmp_path / part, ignore=lambda *_: {"__pycache__"})
    (tmp_path / NETWORK).parent.mkdir(parents=True)
    shutil.copy(REPO_ROOT / "tests/stand_in_vrt.py", tmp_path / NETWORK)
    config = write_run(
        tmp_path, TRAIN__MAX_STEPS=2, MODEL__SPYNET="", TRAIN__FREEZE=["spynet"], DEVICE="cpu"
    )
    shutil.copytree(tmp_path / "data/val/seq_000", tmp_path / "other/val/seq_900")
    sequence, last = tmp_path / "data/val/seq_000", tmp_path / "outputs/ckpts/run/last.pth"
    train = ["src/train.py", "--config", config]
    commands = [
        [*train, "TRAIN.MAX_STEPS", 1],
        train,
        [*train, *rgb_only_overrides(load_config(config))],
        ["scripts/compare_baseline.py", "--take", "--config", config],
        ["scripts/compare_baseline.py", "--take", "--on", tmp_path / "other", "--config", config],
        ["src/test.py", "--ckpt", last, "--input_blur", sequence / "blur",
         "--input_spike_vox", sequence / "spike", "--output", tmp_path / "restored"],
        ["scripts/validate_model_shapes.py", "--config", config, "--size", 64, 64],
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps([list(map(str, c)) for c in commands])],
        cwd=tmp_path, env=one_thread(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    shown = done.stdout + done.stderr
    assert done.returncode == 0, shown
    assert "this VRT has no alignment that can be measured" in shown
    assert "resumed at step 1 from" in shown
    ours, baseline = read_checkpoint(tmp_path), read_checkpoint(tmp_path, "run_rgb_twin")
    assert "vrt.spynet.basic_module.0.weight" in ours["model"]  # the stand-in's, not ours
    assert ours["progress"]["step"] == baseline["progress"]["step"] == 2
    assert not any("spike" in key for key in baseline["model"])
    assert (tmp_path / "outputs/metrics/compare_run.html").is_file()
    numbers = [tmp_path / f"outputs/metrics/compare_run{on}.json" for on in ("", "_on_other")]
    own, other = (json.loads(path.read_text()) for path in numbers)
    assert (set(own["sequences"]), set(other["sequences"])) == ({"seq_000"}, {"seq_900"})
    assert len(list((tmp_path / "restored").glob("*.png"))) == 5
    assert "vrt.stage7" in shown  # of the table of shapes
    files = {path.name for path in (tmp_path / "third_party").rglob("*.py")}
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
