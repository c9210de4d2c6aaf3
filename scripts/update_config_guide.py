"""Renew the tables of docs/CONFIG_GUIDE.md from the schema of the configuration.

    python scripts/update_config_guide.py [--check]

Key, default, allowed values and meaning come from src/config_schema.py. The last column, when to
change a key, is written by hand and kept; it is empty for a key that is new.
"""

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml

from src.config import allowed, get_defaults, lookup, walk_schema
from src.paths import REPO_ROOT, atomic_write

GUIDE = REPO_ROOT / "docs" / "CONFIG_GUIDE.md"
COLUMNS = ("key", "default", "allowed", "meaning", "when to change it")
GENERAL = "GENERAL"  # the table of the keys that belong to no section
TABLE = re.compile(r"(<!-- keys of (\w+) -->\n).*?(<!-- end of keys -->)", re.DOTALL)
CELL_END = re.compile(r"(?<!\\)\|")


def main(arguments: list[str] | None = None) -> int:
    """Renew the guide, or with `--check` only report whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; 1 if it is not current"
    )
    options = parser.parse_args(arguments)
    text = GUIDE.read_text(encoding="utf-8")
    renewed, notes = renew(text)
    for note in notes:
        print(note)
    if renewed == text:
        print(f"{GUIDE}: up to date")
        return 0
    if options.check:
        print(f"{GUIDE}: not up to date; run python scripts/update_config_guide.py")
        return 1
    with atomic_write(GUIDE) as partial:
        partial.write_text(renewed, encoding="utf-8")
    print(f"{GUIDE}: renewed")
    return 0


def renew(text: str) -> tuple[str, list[str]]:
    """Return the guide with its tables renewed, and what is left to do by hand.

    Raises:
        ValueError: A section of the schema has no table in the guide, or the other way round.
    """
    advice = advice_of(text)
    sections = rows_by_section(advice)
    tables = [match.group(2) for match in TABLE.finditer(text)]
    if sorted(tables) != sorted(sections):
        raise ValueError(
            f"{GUIDE.name} has tables for {tables}, the schema has {list(sections)}; each needs "
            "the lines '<!-- keys of NAME -->' and '<!-- end of keys -->' once"
        )
    keys = {dotted for dotted, _ in walk_schema()}
    notes = [
        f"{key}: removed; its last column was: {advice[key]}" for key in advice if key not in keys
    ]
    notes += [f"{key}: write when to change it" for key in sorted(keys) if not advice.get(key)]
    return TABLE.sub(lambda match: match[1] + table(sections[match[2]]) + match[3], text), notes


def advice_of(text: str) -> dict[str, str]:
    """Return what is written by hand: dotted key to the last cell of its row."""
    advice = {}
    for match in TABLE.finditer(text):
        for line in match.group(0).splitlines():
            cells = [cell.strip() for cell in CELL_END.split(line)]
            if len(cells) == len(COLUMNS) + 2 and cells[1].startswith("`"):
                advice[cells[1].strip("`")] = cells[-2]
    return advice


def rows_by_section(advice: dict[str, str]) -> dict[str, list[tuple[str, ...]]]:
    """Return the rows of each table, in the order of the schema."""
    sections: dict[str, list[tuple[str, ...]]] = {}
    for dotted, key in walk_schema():
        section = dotted.partition(".")[0] if "." in dotted else GENERAL
        row = (f"`{dotted}`", default_of(dotted), allowed(key), key.meaning)
        cells = (*(cell.replace("|", "\\|") for cell in row), advice.get(dotted, ""))
        sections.setdefault(section, []).append(cells)
    return sections


def default_of(dotted: str) -> str:
    """Return the default as a YAML file shows it."""
    value = lookup(get_defaults(), dotted)
    if isinstance(value, str):
        return f"`{value}`" if value else "empty"
    return f"`{yaml.safe_dump(value, default_flow_style=True, width=1000).split(chr(10))[0]}`"


def table(rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = ("| " + " | ".join(row) + " |" for row in (COLUMNS, ("---",) * len(COLUMNS), *rows))
    return "\n" + "\n".join(line.replace("  |", " |") for line in lines) + "\n\n"


if __name__ == "__main__":
    sys.exit(main())
