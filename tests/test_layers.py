"""What may import what: data does not know the engine."""

import ast

from src.paths import REPO_ROOT


def test_data_imports_nothing_of_the_engine():
    found = []
    for path in (REPO_ROOT / "src/data").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [f"{path.name}: {name}" for name in names if name.startswith("src.engine")]
    assert found == []
