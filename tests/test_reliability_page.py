"""docs/RELIABILITY.md: every fault has its row, every test that it names is there."""

import ast
import re

from src.paths import REPO_ROOT

PAGE = REPO_ROOT / "docs" / "RELIABILITY.md"
ROW = re.compile(r"^\| (F\d\d) [^|]+\|([^|]+)\|([^|]*)\|$")
NUMBER_OF_FAULTS = 57


def rows() -> list[tuple[str, str, list[str]]]:
    """Return fault, what happens, and the names of the tests of every row."""
    found = map(ROW.match, PAGE.read_text(encoding="utf-8").splitlines())
    return [(m[1], m[2].strip(), re.findall(r"`(\w+)`", m[3])) for m in found if m]


def marks_of_all_tests() -> dict[str, set[str]]:
    """Return the names of all tests, each with its marks without arguments."""
    functions = (
        node
        for path in (REPO_ROOT / "tests").glob("test_*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )
    return {node.name: set(map(ast.unparse, node.decorator_list)) for node in functions}


def test_every_fault_has_a_row_in_order():
    expected = [f"F{number:02d}" for number in range(1, NUMBER_OF_FAULTS + 1)]
    assert [fault for fault, _, _ in rows()] == expected


def test_every_test_that_the_page_names_exists():
    known = marks_of_all_tests()
    assert [name for _, _, names in rows() for name in names if name not in known] == []


def test_every_fault_has_a_test_in_every_run():
    """What `scripts/run_tests.sh` leaves out repeats a fault that it does not leave out."""
    marks = marks_of_all_tests()
    nightly = "pytest.mark.nightly"
    assert any(nightly in names for names in marks.values())
    only = [
        fault for fault, _, names in rows() if names and all(nightly in marks[n] for n in names)
    ]
    assert only == []


def test_a_row_without_a_test_says_why():
    """A fault is open, or a test covers it, or the row says how it was checked."""
    for fault, what, names in rows():
        assert names or what == "open" or "not tested: " in what, fault
