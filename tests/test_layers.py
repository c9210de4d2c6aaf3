"""What may import what: training reads `src/data`, and `src/data` knows nothing above it."""

import ast

from src.paths import REPO_ROOT

ABOVE_DATA = ("src.prepare", "src.pictures", "src.engine", "src.comparison", "src.inference")


def test_data_imports_nothing_above_it():
    files = list((REPO_ROOT / "src/data").rglob("*.py"))
    assert len(files) > 20
    found = []
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [f"{path.name}: {name}" for name in names if name.startswith(ABOVE_DATA)]
    assert found == []
