"""The GPU script: what ends early loses nothing, and its parts run on tiny models of the CPU."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import gpu

CPU = torch.device("cpu")


def run(folder: Path, *names: str, minutes: float = 5) -> bool:
    return gpu.measure(folder, names, CPU, minutes, tiny=True)


def test_a_failed_part_stops_no_other_and_finished_ones_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def peak(_at: gpu.Setting) -> Iterator[gpu.Row]:
        ran.append("peak")
        yield {"precision": "fp16", "tflops": 200.0}

    def denoiser(_at: gpu.Setting) -> Iterator[gpu.Row]:
        ran.append("denoiser")
        yield {"precision": "fp16", "batch": 1, "tflops": 50.0}
        raise RuntimeError("no | more")

    monkeypatch.setattr(gpu, "PARTS", {"peak": (peak, 10), "denoiser": (denoiser, 10)})
    assert not run(tmp_path, "denoiser", "peak")
    told = json.loads((tmp_path / "gpu.json").read_text())
    assert told["parts"]["denoiser"]["rows"][0]["percent_of_peak"] == 25.0
    table = (tmp_path / "gpu.md").read_text()
    assert "| fp16 | 1 | 50.0 | 25.0 |" in table
    assert "Failed: RuntimeError: no | more" in table
    assert not run(tmp_path, "denoiser", "peak")
    assert ran == ["denoiser", "peak", "denoiser"]
    assert not run(tmp_path, "denoiser", minutes=0)  # what is not run again is not forgotten
    assert list(json.loads((tmp_path / "gpu.json").read_text())["parts"]) == ["denoiser", "peak"]


def test_a_part_that_is_cut_short_is_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def peak(at: gpu.Setting) -> Iterator[gpu.Row]:
        yield {"precision": "fp16", "tflops": 200.0}
        at.need(1000)
        yield {"precision": "bf16"}

    monkeypatch.setattr(gpu, "PARTS", {"peak": (peak, 10)})
    assert run(tmp_path, "peak")
    told = json.loads((tmp_path / "gpu.json").read_text())["parts"]["peak"]
    assert (len(told["rows"]), told["finished"]) == (1, False)
    assert ", not finished)" in (tmp_path / "gpu.md").read_text()


def test_the_fastest_choice_must_be_as_exact_as_the_products_own(tmp_path: Path) -> None:
    results = gpu.Results(tmp_path, {"card": "none"})
    assert results.best() is None
    rows = [
        {"batch": 4, "choice": "as the product does", "error": 1e-3, "time_ratio": 1.0},
        {"batch": 4, "choice": "exact", "error": 1e-3, "time_ratio": 0.9},
        {"batch": 4, "choice": "wrong", "error": 0.5, "time_ratio": 0.5},
        {"batch": 64, "choice": "as the product does", "time_ratio": 1.0},
        {"batch": 64, "choice": "exact", "time_ratio": 0.8},
        {"batch": 64, "choice": "wrong", "time_ratio": 0.4},
    ]
    results.parts["choices"] = {"rows": rows}
    assert results.best() == "Fastest safe choice at batch 64: exact (0.8 of the product's time)."


@pytest.mark.slow
def test_searches_find_what_was_planted_in_a_random_model(tmp_path: Path) -> None:
    assert run(tmp_path, "search")
    rows = json.loads((tmp_path / "gpu.json").read_text())["parts"]["search"]["rows"]
    found = {row["work"]: row["found"] for row in rows if row.get("found")}
    assert found == {"detect": "0/0", "auto": "2/2", "gradient-free": "2/2"}
    gradients = {row["work"]: row["gradient_s"] for row in rows if row.get("found")}
    assert gradients["auto"] > 0 == gradients["gradient-free"]
