"""What a command imports before it starts to work."""

import resource
import subprocess
import sys

import pytest

from src.paths import REPO_ROOT

SLOW = ("torch._dynamo", "torchvision", "lpips", "skimage")  # 0.5 to 3 CPU s each


def test_training_imports_no_compiler():
    """torch imports its compiler with the first optimizer; what has none must not pay for it."""
    lines = [
        "import sys",
        "import third_party.VRT.models.network_vrt",
        "found = {'network_vrt': [name for name in SLOW if name in sys.modules]}",
        "import src.train, src.test",
        "found['commands'] = [name for name in SLOW if name in sys.modules]",
        "print(found)",
    ]
    command = [sys.executable, "-c", f"SLOW = {SLOW!r}\n" + "\n".join(lines)]
    done = subprocess.run(command, cwd=REPO_ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'network_vrt': [], 'commands': []}"


SCRIPTS = sorted(path.name for path in (REPO_ROOT / "scripts").glob("*.py"))
COMMANDS = ["src/train.py", "src/test.py", *(f"scripts/{name}" for name in SCRIPTS)]
ALLOWED_CPU_S = 2.0  # 0.2 to 0.9 s on an idle machine; torch alone takes 2 to 4


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_wrong_arguments_need_no_heavy_import(command):
    for argument, code in (("--help", 0), ("--no_such_option", 2)):
        status, cpu_s, imported, shown = run(command, argument)
        assert status == code, shown
        assert f"usage: {command.rpartition('/')[2]}" in shown
        assert "torch" not in imported
        assert cpu_s < ALLOWED_CPU_S


@pytest.mark.parametrize("command", ["src/train.py", "scripts/launch.py"])
def test_a_wrong_configuration_key_needs_no_heavy_import(command, tmp_path):
    config = tmp_path / "typo.yaml"
    config.write_text("DATA: {CLIP_LENGHT: 5}\n", encoding="utf-8")
    status, cpu_s, imported, shown = run(command, f"--config={config}")
    assert status == 2
    assert "DATA.CLIP_LENGHT: unknown key; did you mean 'DATA.CLIP_LEN'?" in shown
    assert "torch" not in imported
    assert cpu_s < ALLOWED_CPU_S


def run(command, argument):
    """Run a command; return its exit code, CPU seconds, imported packages and output."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", command, argument],
        cwd=REPO_ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = done.stderr.splitlines()
    timings = [line for line in lines if line.startswith("import time:")]
    shown = done.stdout + "\n".join(line for line in lines if line not in timings)
    imported = {line.rpartition("|")[2].strip() for line in timings}
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.returncode, cpu_s, imported, shown
