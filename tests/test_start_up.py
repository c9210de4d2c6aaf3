"""What a command imports before it starts to work."""

import subprocess
import sys

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
