"""verify, and the report of prune, as a user runs them, on a tiny random checkpoint."""

import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import run, write_small, write_tiny

from nemo_prune.checkpoint.apply import write_model
from nemo_prune.checkpoint.manifest import Manifest, PromptRecord, write_manifest
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.errors import CheckpointError
from nemo_prune.localize.localize import FRESH_SEEDS
from nemo_prune.report.gallery import PictureSettings
from nemo_prune.report.pictures import draw
from nemo_prune.scoring.engine import noise_seed

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
CAPTION = "marker caption of a red fox"
QUICK = ["--seeds", "3", "--device", "cpu", "--picture-steps", "1", "--images", "2"]
SEARCH = ["--layers", "down_blocks.0.attentions.0*"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An original, a file pruned of two neurons, prompts, ordinary prompts and a target."""
    folder = tmp_path_factory.mktemp("report")
    model = write_small(folder / "model.safetensors", side=16)
    off = [Neuron(LAYER, 3), Neuron(LAYER, 9)]
    write_model(recognize(model), off, folder / "clean.safetensors",
                 {"tau": "0.01", "criterion": "same-seed"})  # fmt: skip
    (folder / "prompts.txt").write_text(f"{CAPTION}\nanother one\n")
    (folder / "calibration.txt").write_text("".join(f"an ordinary caption {i}\n" for i in range(30)))
    (folder / "ordinary.txt").write_text("a boat\na hill\n")
    (folder / "targets").mkdir()
    Image.new("RGB", (90, 60), "red").save(folder / "targets" / "0.png")
    return folder


def verify(folder: Path, *more: object) -> Result:
    ordinary = () if "--ordinary" in more else ("--ordinary", folder / "ordinary.txt")
    return run("verify", folder / "model.safetensors", folder / "clean.safetensors", "--prompts",
               folder / "prompts.txt", *ordinary, *QUICK, *more)  # fmt: skip


def timeless(text: str) -> Any:
    data = json.loads(text)
    for key in ("created", "seconds"):
        assert data.pop(key)
    return data


def without_time(html: str) -> str:
    """The page but for how long it took and when it was written."""
    found, count = re.subn(r"<dt>(took|written)</dt><dd>[^<]*</dd>", "", html)
    assert count == 2
    return found


@pytest.fixture(scope="module")
def verified(folder: Path) -> Result:
    """A full run, which several tests look at."""
    return verify(folder, "--targets", folder / "targets", "--json",
                  "--report", folder / "r.html", "--report", folder / "r.md",
                  "--report", folder / "r.json", "--card", folder / "card.md")  # fmt: skip


def test_verify_measures_and_writes_every_form(folder: Path, verified: Result) -> None:
    assert verified.exit_code == 1, verified.output
    data = json.loads(verified.stdout)
    written = json.loads((folder / "r.json").read_text())
    assert data | {"verdict": written["verdict"]} == written
    assert data["neurons"] == 2
    assert [e["removed"] for e in data["layers"] if e["removed"]] == [[3, 9]]
    assert (data["options"]["tau"], data["options"]["criterion"]) == (0.01, "same-seed")
    for entry in data["prompts"]:
        assert entry["status"] == "still memorized"
        assert entry["score_after"] > 0.9, "two of many neurons of a random model change little"
        assert entry["score_before"] > 0.01
        assert entry["pictures"]["before_after"]["ms_ssim"] > 0.5
    assert set(data["prompts"][0]["pictures"]["target_after"]) == {
        "ms_ssim",
        "edges",
        "colour",
        "region",
    }
    assert "target_after" not in data["prompts"][1]["pictures"]
    for entry in data["ordinary"]:
        assert set(entry["pictures"]) == {"before_after", "seeds_before", "seeds_after"}
        assert all(0 <= entry["pictures"][when]["ms_ssim"] <= 1 for when in entry["pictures"])
    assert data["drift"]["pruned"] > 0
    assert data["drift"]["prompts"] == 2
    assert data["cost"]["picture_samples"] == 2 * (2 * 2 + 2 * 2) * 1 * 2, (
        "models, pictures, step, guidance"
    )
    for name in ("r.html", "r.md", "r.json", "card.md"):
        text = (folder / name).read_text()
        assert "marker caption" not in text
        assert written["verdict"] in text.replace("&#39;", "'")
        assert f"wrote {folder / name}" in verified.stderr
    assert "marker caption" not in verified.output


def test_every_form_names_the_line_of_each_prompt(folder: Path, verified: Result) -> None:
    place = f"{folder / 'prompts.txt'}:"
    told = json.loads(verified.stdout)["prompts"]
    assert [f"{entry['file']}:{entry['line']}" for entry in told] == [place + "1", place + "2"]
    page = (folder / "r.html").read_text()
    assert page.count(place + "2") == 2, "in the table, and above its pictures"
    assert f"| 1 ({place}2) |" in (folder / "r.md").read_text().replace("\\_", "_")


def test_the_gate_of_the_run_that_pruned_decides(folder: Path, tmp_path: Path) -> None:
    clean = tmp_path / "clean.safetensors"
    write_model(recognize(folder / "model.safetensors"), [Neuron(LAYER, 3)], clean,
                 {"tau": "0.01", "gate": "1.0"})  # fmt: skip
    result = run("verify", folder / "model.safetensors", clean, "--prompts", folder / "prompts.txt",
                 "--ordinary", folder / "ordinary.txt", "--images", "0", *QUICK[:4], "--json",
                 "-q")  # fmt: skip
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert [entry["status"] for entry in told["prompts"]] == ["not memorized"] * 2


def test_the_command_in_the_report_gives_the_same_report(folder: Path, verified: Result) -> None:
    data = json.loads(verified.stdout)
    words = shlex.split(data["command"])
    assert words[0] == "nemo-prune"
    assert "--overwrite" not in words, "as it was given: a copy of it replaces nothing"
    before = (folder / "r.json").read_text()
    page = (folder / "r.html").read_text()
    assert "exists already" in run(*words[1:]).stderr
    for path in (*folder.glob("r.*"), folder / "card.md"):
        path.unlink()
    assert run(*words[1:]).exit_code == verified.exit_code
    assert timeless(before) == timeless((folder / "r.json").read_text())
    html = (folder / "r.html").read_text()
    assert without_time(html) == without_time(page)
    assert html.count('src="data:image/') == 1 + 2 * 2 * 2 + 2 * 2 * 2 + 2 * 2


def test_prune_reports_on_what_it_wrote(folder: Path, tmp_path: Path) -> None:
    out, report, manifest = (tmp_path / name for name in ("o.safetensors", "r.json", "m.json"))
    result = run(folder / "model.safetensors", "--prompts", folder / "prompts.txt",
                 "--tau", "0", "--gate", "0",
                 "-o", out, "--ordinary", folder / "ordinary.txt", *QUICK[:4], *SEARCH,
                 "--calibration-prompts", folder / "calibration.txt", "--images", "0", "--rounds", "1",
                 "--report", report, "--manifest", manifest, "--json", "--show-prompts")  # fmt: skip
    assert result.exit_code == 1, result.output
    told, data = json.loads(result.stdout), json.loads(report.read_text())
    assert data["neurons"] == len(told["neurons"]) > 0
    assert data["pruned"]["sha256"] == told["output"]["sha256"]
    for one, other in zip(told["prompts"], data["prompts"], strict=True):
        assert one["status"] == other["status"] == "not removable", "tau 0 cannot be met"
        assert one["score_after"] == pytest.approx(other["score_after"], abs=1e-4)
        assert one["neurons"] == other["neurons"]
        assert other["score_own"] is not None
    assert data["prompts"][0]["text"] == CAPTION
    assert "--images 0" in data["command"]
    assert b"marker caption" not in out.read_bytes()
    again = run("verify", folder / "model.safetensors", out, "--prompts", folder / "prompts.txt",
                "--ordinary", folder / "ordinary.txt", "--manifest", manifest, "--images", "0",
                *QUICK[:4], "--json", "-q")  # fmt: skip
    verdict = json.loads(again.stdout)
    assert verdict["cost"]["picture_samples"] == data["cost"]["picture_samples"] == 0
    assert [e["score_own"] for e in verdict["prompts"]] == [e["score_own"] for e in data["prompts"]]


def test_too_much_drift_writes_no_checkpoint_and_keeps_the_search(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.safetensors"
    common = [folder / "model.safetensors", "--prompts", folder / "prompts.txt",
              "--tau", "0", "--gate", "0",
              "-o", out,
              "--ordinary", folder / "ordinary.txt", *QUICK[:4], *SEARCH, "--rounds", "0",
              "--calibration-prompts", folder / "calibration.txt"]  # fmt: skip
    result = run(
        *common, "--max-drift", "0", "--report", tmp_path / "r.html", "--manifest", tmp_path / "m",
        "--json",
    )  # fmt: skip
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert told["drift"] > 0
    assert told["output"] is None
    assert "would drift" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "m.journal"]
    assert json.loads((tmp_path / "m").read_text())["neurons"] == told["neurons"]
    assert f"nothing was written but {tmp_path / 'm'} and its journal" in result.stderr
    resumed = run(*common, "--max-drift", "100", "--manifest", tmp_path / "m", "--resume", "--json")
    assert "would drift" not in resumed.stderr
    assert json.loads(resumed.stdout)["neurons"] == told["neurons"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "o.safetensors"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--report", "r.pdf"], "is written as .html, .md or .json"),
        (["--report", "taken.html"], "exists already"),
        (["--report", "nowhere/r.html"], "does not exist"),
        (["--report", "r.html", "--report", "r.html"], "to be written twice"),
        (["--report", "r.md", "--card", "r.md"], "to be written twice"),
        (["--targets", "none"], "no such file or folder"),
        (["--targets", "empty"], "no picture belongs to a prompt"),
        (["--ordinary", "none.txt"], "no such file"),
        (["--sscd", "taken.html"], "is not a TorchScript file"),
        (["--clip", "empty"], "holds no CLIP model"),
        (["--manifest", "taken.html"], "is not JSON"),
    ],
)
def test_bad_input_gets_one_line_before_any_work(
    folder: Path, tmp_path: Path, more: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "nemo_prune.scoring.opening.open_engine", lambda *_: pytest.fail("loaded the model")
    )
    (tmp_path / "taken.html").write_text("keep me")
    (tmp_path / "empty").mkdir()
    result = verify(folder, *more)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "taken.html"]
    assert (tmp_path / "taken.html").read_text() == "keep me"


@pytest.mark.parametrize("place", ["model.safetensors", "clean.safetensors", "prompts.txt", "m.json"])
@pytest.mark.parametrize("option", ["--card", "--report"])
def test_what_is_read_is_never_replaced(folder: Path, place: str, option: str) -> None:
    """Not even with --overwrite, and by whatever name."""
    write_manifest_of(folder, [Neuron(LAYER, 3)])
    before = (folder / place).read_bytes()
    link = folder / f"{place}{option}.json"
    link.symlink_to(folder / place)
    result = verify(folder, "--manifest", folder / "m.json", option, link, "--overwrite")
    assert result.exit_code == 2, result.output
    assert "is read by this command" in " ".join(result.stderr.split())
    assert (folder / place).read_bytes() == before


def write_manifest_of(
    folder: Path, neurons: list[Neuron], text: str | None = None, prompts: int = 2
) -> None:
    records = tuple(
        PromptRecord(i, "suppressed", 0.9, 0.2, neurons=tuple(neurons), text=text if i == 0 else None)
        for i in range(prompts)
    )
    source = {"path": "model.safetensors", "sha256": "0" * 64}
    write_manifest(Manifest("0.1.0", source, {}, records, tuple(neurons)), folder / "m.json", True)


@pytest.mark.parametrize(
    ("neurons", "text", "prompts", "message"),
    [
        ([Neuron(LAYER, 5)], None, 2, "--manifest: names row 5"),
        ([Neuron("no.such.layer", 0)], None, 2, "which is not zeroed in"),
        ([Neuron(LAYER, 3)], "another caption", 2, "its prompt 0 is another than the prompt file's"),
        ([Neuron(LAYER, 3)], None, 3, "is about 3 prompts, the prompt file holds 2 different ones"),
    ],
)
def test_a_manifest_of_another_pruning_is_refused(
    folder: Path, neurons: list[Neuron], text: str | None, prompts: int, message: str
) -> None:
    write_manifest_of(folder, neurons, text, prompts)
    result = verify(folder, "--manifest", folder / "m.json", "--images", "0")
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


def test_a_file_with_more_than_zeroed_rows_is_said_to_be_one(folder: Path, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned.safetensors"
    with safe_open(folder / "clean.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    name = next(name for name in tensors if name.endswith("out.2.weight"))
    tensors[name] = tensors[name] * 1.01
    save_file(tensors, tuned, metadata)
    card = tmp_path / "card.md"
    result = run("verify", folder / "model.safetensors", tuned, "--prompts", folder / "prompts.txt",
                 "--ordinary", folder / "ordinary.txt", "--images", "0", *QUICK[:4], "--json",
                 "--card", card)  # fmt: skip
    assert "differs from the original in more than zeroed rows" in " ".join(result.stderr.split())
    assert json.loads(result.stdout)["only_rows"] is False
    assert "Other tensors differ" in card.read_text()


def test_pictures_start_from_noises_that_no_search_uses(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(
        "nemo_prune.report.gallery.draw",
        lambda _pipeline, prompts, some, **_style: (
            seeds.extend(some) or [[np.zeros((16, 16, 3), np.uint8)] * len(some) for _ in prompts]
        ),
    )
    assert verify(folder, "--targets", folder / "targets").exit_code == 1
    largest_search = 200 * (1 + 3 * (10 + 2))  # --seeds by the search and the longest probes of --rounds
    assert set(seeds) == {noise_seed(0, FRESH_SEEDS), noise_seed(0, FRESH_SEEDS + 1)}
    assert noise_seed(0, largest_search) < min(seeds)


def test_an_unreadable_target_is_refused_before_any_work(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "nemo_prune.scoring.opening.open_engine", lambda *_: pytest.fail("loaded the model")
    )
    (tmp_path / "0.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    result = verify(folder, "--targets", tmp_path)
    assert result.exit_code == 2
    assert "0.jpg" in result.stderr


def test_pictures_that_do_not_fit_are_drawn_in_parts() -> None:
    calls: list[int] = []

    def pipeline(prompts: list[str], *, generator: list[torch.Generator], **_style: Any) -> Any:
        calls.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        noise = [torch.rand(4, 4, 3, generator=one).numpy() for one in generator]
        return SimpleNamespace(images=np.stack(noise))

    found = draw(pipeline, ["a", "b"], range(5))
    assert calls == [5, 3, 2, 2, 1, 2, 2, 1]
    alone = [draw(pipeline, ["a"], [seed])[0][0] for seed in range(5)]
    for row in found:
        assert np.array_equal(np.stack(row), np.stack(alone))


def test_who_must_wait_for_pictures_hears_how_long(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise CheckpointError("enough")

    monkeypatch.setattr("nemo_prune.report.verify.draw_and_measure", stop)
    assert "drawing the pictures will take" not in verify(folder).stderr, "a second or two"
    monkeypatch.setattr("nemo_prune.report.verify._LONG", 0)
    stderr = " ".join(verify(folder).stderr.split())
    assert "drawing the pictures will take about" in stderr
    assert stderr.index("will take about") < stderr.index("no pictures: enough")


def test_what_pictures_take_counts_the_ordinary_ones() -> None:
    assert PictureSettings(images=4).passes(3, 20) == 2 * (3 * 4 + 6 * 2) * 50 * 2
    assert PictureSettings(images=4, guidance=1, steps=10).passes(0, 3) == 2 * 3 * 2 * 10
    assert PictureSettings(images=0).passes(3, 20) == 0


def test_ordinary_prompts_need_no_pictures(folder: Path) -> None:
    data = json.loads(verify(folder, "--ordinary-images", 0, "--json", "-q").stdout)
    assert data["cost"]["picture_samples"] == 2 * 2 * 2 * 1 * 2
    assert [entry["pictures"] for entry in data["ordinary"]] == [None, None]
    assert data["drift"]["prompts"] == 2


def test_files_that_do_not_belong_together_are_refused(folder: Path, tmp_path: Path) -> None:
    other = write_tiny(tmp_path / "sd2.safetensors", "sd2", vae=False)
    result = run("verify", folder / "model.safetensors", other, "--prompts", folder / "prompts.txt",
                 "--tau", "0.5", *QUICK)  # fmt: skip
    assert result.exit_code == 2
    assert "was not made from it" in result.stderr


def test_a_model_that_cannot_draw_is_reported_without_pictures(tmp_path: Path, folder: Path) -> None:
    model = write_small(tmp_path / "m.safetensors", side=16, vae=False)
    write_model(recognize(model), [Neuron(LAYER, 3)], tmp_path / "c.safetensors", {})
    result = run("verify", model, tmp_path / "c.safetensors", "--prompts", folder / "prompts.txt",
                 "--ordinary", folder / "ordinary.txt", "--tau", "0.01", "--gate", "0.01",
                 *QUICK, "--report", tmp_path / "r.html")  # fmt: skip
    assert result.exit_code == 1
    assert "no pictures" in result.stderr
    assert "holds no VAE" in (tmp_path / "r.html").read_text()
