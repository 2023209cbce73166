"""The script that trains a checkpoint from scratch: every stage runs, and can be cut short anywhere."""

import json
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import train_scratch
from scratch_pictures import MEMORIZED
from torch import Tensor, nn
from training import Stage

from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.model.loading import load_model


def test_every_stage_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    monkeypatch.setattr(
        sys, "argv",
        ["train_scratch", "--work", str(work), "--out", str(out), "--scale", "1e-9"],
    )  # fmt: skip
    precision = torch.get_float32_matmul_precision()
    try:
        train_scratch.main()
    finally:
        torch.set_float32_matmul_precision(precision)
    about = json.loads((out / "about.json").read_text())
    assert [(one["stage"], one["step"]) for one in about["stages"]] == [("codec", 2), ("world", 2)]
    assert (out / "memorized.txt").read_text().splitlines() == [item.caption for item in MEMORIZED]
    assert len(list((out / "targets").iterdir())) == len(MEMORIZED)
    path = out / "natural.safetensors"
    assert path.stat().st_size < 30e6
    found = recognize(path)
    assert (found.family, found.layout) == ("sd1", "ldm")
    model = load_model(found, device=torch.device("cpu"), dtype=torch.float32)
    assert model.encode([MEMORIZED[0].caption]).isfinite().all()


def test_a_stage_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Cut at any saved step, training ends at the same weights."""

    def trained(folder: Path, upto: int) -> Tensor:
        folder.mkdir(exist_ok=True)
        module = nn.Linear(3, 1)
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
        stage = Stage("s", module, folder, steps=6, rate=0.1, seed=1, save_every=2)
        left = upto - stage.step

        def draw(_chance: object, noise: torch.Generator) -> dict[str, Tensor]:
            nonlocal left
            if not left:
                raise KeyboardInterrupt
            left -= 1
            return {"x": torch.randn(4, 3, generator=noise)}

        with suppress(KeyboardInterrupt):
            stage.run(draw, lambda batch: module(batch["x"]).square().mean())
        return module.weight.detach()

    whole = trained(tmp_path / "whole", 6)
    for upto in (3, 5):
        assert not torch.equal(trained(tmp_path / "cut", upto), whole)
    assert torch.equal(trained(tmp_path / "cut", 6), whole)
