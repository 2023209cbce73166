"""Aggregates against their definition, and the tables' rows."""

import statistics
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from nemo_prune.compare.summary import measures_of, summarize
from nemo_prune.compare.table import table_rows


def entry(values: list[float], column: str = "generated") -> dict[str, Any]:
    return {column: [{"ms_ssim": value, "sscd": value / 2} for value in values]}


def test_the_papers_way_and_by_starting_noise() -> None:
    rows = [[0.1, 0.2, 0.9], [0.5, 0.4, 0.3], [0.0, 0.8, 0.1]]
    found = summarize([entry(row) for row in rows], "generated", "ms_ssim")
    assert found is not None
    middle = [statistics.median(row) for row in rows]
    assert found["median"] == statistics.median(middle) == 0.2
    assert found["mad"] == pytest.approx(statistics.median(abs(one - 0.2) for one in middle))
    assert found["largest"] == statistics.median([0.9, 0.5, 0.8])
    of_seeds = np.mean(rows, axis=0)
    assert found["mean"] == pytest.approx(np.mean(of_seeds), abs=1e-4)
    assert found["sd"] == pytest.approx(np.std(of_seeds, ddof=1), abs=1e-4)
    assert found["prompts"] == 3


def test_pairs_have_seeds_too() -> None:
    pairs = list(combinations(range(4), 2))
    values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    found = summarize([entry(values, "diversity")], "diversity", "ms_ssim")
    of_seeds = [
        np.mean([value for pair, value in zip(pairs, values, strict=True) if seed in pair])
        for seed in range(4)
    ]
    assert found is not None
    assert found["sd"] == pytest.approx(np.std(of_seeds, ddof=1), abs=1e-4)
    assert found["median"] == pytest.approx(0.35)
    (one,) = [summarize([entry([0.7], "diversity")], "diversity", "ms_ssim")]
    assert one is not None
    assert (one["mean"], one["sd"]) == (0.7, 0.0), "one pair, two seeds"


def test_what_nobody_measured_is_none() -> None:
    assert summarize([{}], "original", "sscd") is None
    assert summarize([entry([0.3])], "generated", "ms_ssim")["sd"] is None  # type: ignore[index]
    assert measures_of([{}], "original") == []
    assert measures_of([{}, entry([0.3])], "generated") == ["sscd", "ms_ssim"]
    assert summarize([{"alignment": [0.25, 0.35]}], "alignment", "clip")["median"] == 0.3  # type: ignore[index]


def cell(neurons: int, near: list[int]) -> dict[str, Any]:
    return entry([0.5, 0.5]) | {
        "neurons": neurons, "near": near, "samples": 30, "seconds": 4.0, "stages": {"D1": 1.0},
        "draw_seconds": 3.0, "draw_samples": 20,
    }  # fmt: skip


def test_rows_by_kind_and_a_search_of_the_whole_list_is_shared() -> None:
    methods = [
        {"name": "own", "whole_list": False, "failed": None},
        {"name": "union", "whole_list": True, "failed": None},
    ]
    prompts = [
        {"kind": kind, "methods": {"own": cell(count, near), "union": cell(9, [])}}
        for kind, count, near in (("template", 10, [0]), ("verbatim", 2, [0, 1]), ("verbatim", 4, []))
    ]
    prompts[1]["methods"]["own"] = {"error": "no"}  # type: ignore[index]
    rows = table_rows(methods, prompts)
    kinds = [(row["method"], row["kind"], row["prompts"], row["errors"]) for row in rows]
    assert kinds[:3] == [("own", "verbatim", 1, 1), ("own", "template", 1, 0), ("own", "all", 2, 1)]
    whole = rows[2]
    assert whole["neurons"] == {"mean": 7.0, "sd": 4.243, "median": 7.0, "largest": 10}
    assert whole["near"] == [1, 4]
    assert (whole["seconds"]["mean"], whole["stages"]["D1"]["mean"]) == (4.0, 1.0)
    assert (whole["picture_seconds"], whole["picture_samples"]) == (1.5, 10)
    assert rows[5]["seconds"]["mean"] == pytest.approx(4 / 3, abs=1e-3)
    assert rows[5]["samples"]["mean"] == 10
    unlabelled = [{"methods": one["methods"]} for one in prompts]
    assert [row["kind"] for row in table_rows(methods, unlabelled)] == ["all", "all"]
    half = [prompts[0], *unlabelled[1:]]
    assert [row["kind"] for row in table_rows(methods[:1], half)] == ["template", "all"]
