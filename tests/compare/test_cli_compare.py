"""The verb compare: on files, from the command line."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from fakes import FakeBench, fake_methods
from PIL import Image
from test_likeness import write_clip
from test_quality import Features, Flat, script
from tiny import run, write_small

from nemo_prune.compare import run as job
from nemo_prune.compare import tasks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    write_small(folder / "model.safetensors", side=16)
    (folder / "prompts.csv").write_text("Caption;URL;type\nthe red house;u;VM\na lamp;u;TM\n")
    (folder / "ordinary.txt").write_text("a cat\na dog\na boat\nthe sea\n")
    (folder / "targets").mkdir()
    Image.new("RGB", (30, 40), "red").save(folder / "targets" / "1.png")
    script(torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten()), folder / "sscd.pt")
    script(Features(), folder / "inception.pt")
    script(Flat(), folder / "flat.pt")
    write_clip(folder / "clip")
    return folder


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {one.name: one for one in fake_methods()}
    monkeypatch.setattr(job, "Bench", FakeBench)
    monkeypatch.setattr(tasks, "memorization_score", lambda _bench, method, *_more: method.score)
    catalogue = "nemo_prune.compare.methods."
    monkeypatch.setattr(f"{catalogue}chosen", lambda names, *_more: [n for n in made if n in names])
    monkeypatch.setattr(f"{catalogue}methods", lambda names, *_more: [made[n] for n in names])


def compare(folder: Path, *more: object) -> Result:
    return run("compare", folder / "model.safetensors", "--prompts", folder / "prompts.csv",
               "--ordinary", folder / "ordinary.txt", "--images", 2, "--ordinary-images", 1,
               "--picture-steps", 2, "--device", "cpu", *more)  # fmt: skip


@pytest.mark.usefixtures("faked")
def test_all_measures_and_all_forms(folder: Path, tmp_path: Path) -> None:
    names = ["c.html", "c.md", "c.json"]
    reports = [word for name in names for word in ("--report", tmp_path / name)]
    result = compare(folder, *reports, "--csv", tmp_path / "c.csv", "--json", "--targets",
                     folder / "targets", "--sscd", folder / "sscd.pt", "--clip", folder / "clip",
                     "--inception", folder / "inception.pt", "--methods", "good,broken")  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found == json.loads((tmp_path / "c.json").read_text())
    assert {row["kind"] for row in found["table"]} == {"verbatim", "template", "all"}
    assert [one["file"] for one in found["measures"] if "file" in one] == ["sscd.pt", "clip"]
    assert {"fid", "kid", "clip_fid", "cmmd"} <= found["quality"][1].keys()
    assert "sscd.pt, pictures squashed to 320 x 320" in (tmp_path / "c.md").read_text()
    table = list(csv.DictReader((tmp_path / "c.csv").read_text().splitlines()))
    assert float(table[0]["generated_sscd_median"]) == pytest.approx(1, abs=1e-3)
    assert {row["method"] for row in table} == {"none", "good", "broken"}
    assert (tmp_path / "c.html").read_text().count("<img") == 2 * 2 * 2 + 1
    assert "the red house" not in "".join((tmp_path / name).read_text() for name in names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.csv", *sorted(names)]


@pytest.mark.usefixtures("faked")
def test_an_interrupted_run_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = job._Job.measure

    def interrupted(_self: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(job._Job, "measure", interrupted)
    report = tmp_path / "c.html"
    wanted = ("--methods", "good", "--report", report)
    assert compare(folder, *wanted).exit_code == 130
    assert (tmp_path / "c.html.work" / "journal").exists()
    monkeypatch.setattr(job._Job, "measure", real)
    refused = compare(folder, *wanted)
    assert refused.exit_code == 2
    assert "c.html.work" in refused.stderr
    opened = FakeBench.opened
    again = compare(folder, *wanted, "--resume")
    assert again.exit_code == 0, again.output
    assert FakeBench.opened == opened, "what was drawn is not drawn again"
    assert again.stdout.startswith("Unpruned, ") or "told from chance" in again.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["c.html"]


@pytest.mark.usefixtures("faked")
def test_keep(folder: Path, tmp_path: Path) -> None:
    keep = tmp_path / "kept"
    wanted = ("--methods", "good", "--keep", keep)
    assert compare(folder, *wanted, "--report", tmp_path / "a.md").exit_code == 0
    assert len(list(keep.glob("good/*.png"))) == 4
    again = compare(folder, *wanted, "--report", tmp_path / "b.md")
    assert again.exit_code == 2
    assert "kept: exists" in again.stderr
    more = compare(
        folder, "--methods", "useless", "--keep", keep, "--resume", "--report", tmp_path / "b.md"
    )
    assert more.exit_code == 0, more.output
    assert "useless" in (tmp_path / "b.md").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--report", "a.pdf"], "a.pdf: is written as .html, .md or .json"),
        (["--report", "there.md"], "there.md: exists"),
        (["--report", "a.md", "--csv", "a.md"], "a.md"),
        (["--report", "a.md", "--keep", "a.md"], "a.md"),
        (["--report", "missing/a.md"], "missing"),
        (["--report", "a.md", "--methods", "nemoo"], "--methods nemoo: unknown; did you mean nemo?"),
        (
            ["--report", "a.md", "--resume", "--redo", "nemoo"],
            "--redo nemoo: unknown; did you mean nemo?",
        ),
        (["--report", "a.md", "--redo", "nemo"], "--redo goes with --resume"),
        (["--report", "a.md", "--targets", "there.md"], "--targets there.md"),
        (["--report", "a.md", "--targets", "empty"], "no picture belongs to a prompt"),
        (["--report", "a.md", "--sscd", "none.pt"], "--sscd none.pt: no such file"),
        (["--report", "a.md", "--sscd", "FOLDER/flat.pt"], "flat.pt: does not describe a picture"),
        (["--report", "a.md", "--clip", "none"], "--clip none: is not a folder"),
        (["--report", "a.md", "--inception", "FOLDER/flat.pt"], "flat.pt: does not describe pictures"),
        (["--report", "a.md", "--reference", "empty"], "--reference empty: is no folder of pictures"),
        (["--report", "a.md", "--keep", "empty"], "empty: exists"),
        ([], "--report"),
    ],
)
def test_bad_input_gets_one_line_before_the_model_is_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], message: str
) -> None:
    def loaded(*_given: object, **_named: object) -> None:
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(job, "Bench", loaded)
    monkeypatch.chdir(tmp_path)
    Path("there.md").write_text("mine")
    Path("empty").mkdir()
    result = compare(folder, *(word.replace("FOLDER", str(folder)) for word in more))
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len([line for line in result.stderr.splitlines() if "Usage" not in line and "Try" not in line
                and line.strip()]) == 1  # fmt: skip
    assert Path("there.md").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "there.md"]


def test_an_unknown_method_is_refused_without_torch(folder: Path) -> None:
    code = (
        "import sys; from nemo_prune.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert end.code == 2, end.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "compare", folder / "model.safetensors", "--prompts",
         folder / "prompts.csv", "--methods", "weng", "--report", "a.md"],
        capture_output=True, text=True, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "weng: unknown" in done.stderr
