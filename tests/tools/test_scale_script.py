"""The simulation of a long list, in small: exact findings, flat memory, in the order of its lines."""

import csv
import gc
from pathlib import Path

from benchmarks.scale import PLANTED, simulate


def test_the_simulation_finds_what_was_planted(tmp_path: Path) -> None:
    lines = PLANTED + 500
    held: list[int] = []
    gc.unfreeze()  # what conftest has frozen, and a caller's own would stay
    before = gc.get_freeze_count()
    found = simulate(tmp_path, lines, lambda _line: held.append(gc.get_freeze_count()))
    assert min(held) > before
    assert gc.get_freeze_count() == before, "garbage is looked for everywhere again"
    gc.freeze()
    assert found["exact"]
    assert found["findings"] == 2
    assert found["captions"] + found["merged"] == lines
    assert found["merged"] > 200
    assert max(found["memory_mb"]) - min(found["memory_mb"]) < 200
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(found["captions"]))
    assert [row["line"] for row in rows if row["memorized"] == "True"] == ["8", str(PLANTED + 8)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.txt", "scores.csv"]
