"""The paper's tables beside those of a model of one's own, from files of the published formats."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import reproduce
import torch
from PIL import Image
from test_likeness import write_clip
from test_quality import script
from tiny import write_small

CAPTIONS = ("A red house, by someone", "the lamp", "Two <i>cups</i>")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and lists as published; pictures are named by the list's index, which is no position."""
    folder = tmp_path_factory.mktemp("reproduce")
    write_small(folder / "model.safetensors", side=16)
    rows = [{"caption": text, "index": 7 + n, "url": "http://x"} for n, text in enumerate(CAPTIONS)]
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = ["Caption;URL;type;mean_sscd", *(f"{text};u;{kind};" for text, kind in
             zip(CAPTIONS, ("VM", "TM", "TM"), strict=True))]  # fmt: skip
    (folder / "kinds.csv").write_text("\n".join(table) + "\n")
    (folder / "originals").mkdir()
    for number in (7, 8, 9):
        Image.new("RGB", (40, 30), (20 * number, 90, 30)).save(folder / "originals" / f"{number}.png")
    script(torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten()), folder / "sscd.pt")
    write_clip(folder / "clip")
    (folder / "few.txt").write_text("a cat\na dog\n")
    return folder


def arguments(given: Path, out: Path, *more: object) -> list[str]:
    words = [
        "--model", given / "model.safetensors", "--prompts", given / "list.jsonl", "--originals",
        given / "originals", "--sscd", given / "sscd.pt", "--clip", given / "clip", "--out", out,
        "--images", 2, "--picture-steps", 1, "--guidance", 1, "--ordinary", given / "few.txt",
        "--ordinary-images", 1, "--device", "cpu", "--tau", 0.2, "--gate", 0.3, *more,
    ]  # fmt: skip
    return [str(word) for word in words]


def test_a_subset_first_then_the_rest(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    wanted = ("--kinds", given / "kinds.csv", "--methods", "none,somepalli-1")
    assert reproduce.main(arguments(given, out, *wanted, "--limit", 2)) == 0, capsys.readouterr()
    shown = capsys.readouterr().out
    assert "verbatim (1 prompts)" in shown
    assert "template (1 prompts)" in shown
    (line,) = [one for one in shown.splitlines() if one.split()[:1] == ["somepalli-1"]]
    assert line.split()[1:8:3] == ["0.59", "0.68", "0.67"], "the paper's figures"
    assert "not comparable" in shown
    found = json.loads((out / "compare.json").read_text())
    assert len(found["prompts"]) == 2
    assert found["prompts"][0]["methods"]["none"]["score"] is not None
    assert {"original", "generated", "alignment"} <= found["prompts"][0]["methods"]["somepalli-1"].keys()
    targets = list(csv.DictReader((out / "targets.csv").read_text().splitlines()))
    assert [Path(row["file"]).name for row in targets] == ["7.png", "8.png"], "by index, not position"
    kept = {path: path.stat().st_mtime_ns for path in (out / "kept").rglob("*.png")}
    assert reproduce.main(arguments(given, out, *wanted)) == 0, capsys.readouterr()
    assert "template (2 prompts)" in capsys.readouterr().out
    now = {path: path.stat().st_mtime_ns for path in (out / "kept").rglob("*.png")}
    assert len(now) > len(kept)
    assert {path: now[path] for path in kept} == kept, "what was drawn is not drawn again"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--prompts", "none.jsonl"], "none.jsonl"),
        (["--kinds", "few.txt"], "says of none of the prompts"),
        (["--sscd", "few.txt"], "--sscd few.txt: is not a TorchScript file"),
        (["--originals", "none"], "--targets none: no such file or folder"),
    ],
)
def test_bad_input_gets_one_line(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(given)
    monkeypatch.setattr("nemo_prune.compare.run.Bench", None)
    assert reproduce.main(arguments(given, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_what_was_not_run_is_a_dash() -> None:
    data: dict[str, Any] = {"model": {"path": "m"}, "table": []}
    shown = reproduce.side_by_side(data)
    assert "0.83 | –" in shown
    assert "674.5 | –" in shown
