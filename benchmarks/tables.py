"""Ways of doing the same thing, measured in turn, and the table of what they cost."""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Way = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One way of doing something: CPU and wall milliseconds of a call, ratio to the first way."""

    table: str
    way: str
    cpu_ms: float
    wall_ms: float
    per_second: float
    ratio: float
    note: str = ""


def compare(
    table: str,
    ways: Mapping[str, Way],
    rounds: int,
    before: Callable[[], None] | None = None,
    notes: Mapping[str, str] | None = None,
) -> list[Row]:
    """Run the ways in turn, a round to warm up first; return a row for each.

    CPU time is of this process and of those that it has started and that have ended.

    Args:
        table: what is measured.
        ways: name -> call; the first is what the others are compared with.
        rounds: how often each runs.
        before: is called before each way, its time does not count.
        notes: name -> text for the last column.
    """
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            if before is not None:
                before()
            wall, cpu = time.perf_counter(), _cpu_seconds()
            result = way()
            spent = (_cpu_seconds() - cpu, time.perf_counter() - wall)
            del result
            if number:
                seconds[name].append(spent)
    middles = {
        name: [max(statistics.median(column), 1e-9) for column in zip(*spent, strict=True)]
        for name, spent in seconds.items()
    }
    base = next(iter(middles.values()))[0]
    return [
        Row(table, name, 1e3 * cpu, 1e3 * wall, 1 / cpu, base / cpu, (notes or {}).get(name, ""))
        for name, (cpu, wall) in middles.items()
    ]


def _cpu_seconds() -> float:
    children = os.times()  # in hundredths; of this process there is something finer
    return time.process_time() + children.children_user + children.children_system


def show(rows: list[Row]) -> None:
    """Print the tables."""
    for table in dict.fromkeys(row.table for row in rows):
        print(f"\n{table}\n{'':44s}{'CPU ms':>9s}{'wall ms':>9s}{'per s':>9s}{'ratio':>8s}")
        for row in (row for row in rows if row.table == table):
            numbers = f"{row.cpu_ms:9.2f}{row.wall_ms:9.2f}{row.per_second:9.0f}{row.ratio:8.1f}"
            print(f"{row.way:44s}{numbers}  {row.note}".rstrip())
