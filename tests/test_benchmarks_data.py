"""benchmarks/data.py runs, measures what it says, and cleans up; its speeds are not tested."""

import json
import sys

import pytest

from benchmarks import data as benchmark
from benchmarks.tables import compare

WARM_AND_COLD = ("spikes of a clip", "frames of a clip, blurry and sharp", "whole samples")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "data").mkdir()
    arguments = ["data.py", "--quick", "--rounds", "1", "--json", str(folder / "rows.json")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*arguments, "--folder", str(folder / "data")])
        benchmark.main()
    assert not list((folder / "data").iterdir())  # nothing is left behind
    return json.loads((folder / "rows.json").read_text())


def test_every_claim_has_the_obvious_implementation_beside_it(rows):
    ways = {}
    for row in rows:
        ways.setdefault(row["table"], []).append(row)
    assert [
        len(ways[f"{name}, {state}"]) for name in WARM_AND_COLD for state in ("warm", "cold")
    ] == [3] * 6
    assert ways["packed bits to voxels"][0]["way"] == "np.unpackbits + np.add.reduceat"
    assert "% of memcpy" in ways["packed bits to voxels"][1]["note"]
    assert ways["5000 events to voxels"][0]["way"] == "np.add.at, three indices"
    assert len(ways["voxels of a clip to the network"]) == 3
    assert [row["note"] for row in ways["10 whole frames of random clips"]][::3] == [
        "0% from memory",
        "100% from memory",
    ]
    (prepared,) = (rows for table, rows in ways.items() if table.endswith("clips prepared"))
    assert prepared[0]["way"] == "1 process"
    assert all("frames/s" in row["note"] for row in prepared)
    for table in ways.values():
        assert table[0]["ratio"] == 1
        for row in table:
            assert row["ratio"] == pytest.approx(table[0]["cpu_ms"] / row["cpu_ms"])
            assert row["per_second"] == pytest.approx(1000 / row["cpu_ms"])


def test_ways_run_in_turn_and_the_first_round_does_not_count():
    calls = []
    ways = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    compare("t", ways, 2, before=lambda: calls.append("-"))
    assert "".join(calls) == "-a-b" * 3
