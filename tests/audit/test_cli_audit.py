"""The verb audit: on files, from the command line."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import Result
from tiny import run, write_small

from nemo_prune.audit import strength
from nemo_prune.audit.strength import Chase, Effort, Style
from nemo_prune.checkpoint.apply import write_model
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.checkpoint.zeros import model_zeros
from nemo_prune.search.protocol import Outcome, Search, Tally

FOUND = Neuron("mid_block.attentions.0.transformer_blocks.0.attn2.to_v", 5)
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"


def settled(_ladder: object, _candidates: object, seeds: tuple[int, ...], tau: float) -> Search:
    """A search that asks one question and finds one neuron, whatever the answer."""
    before = yield from Tally().ask(frozenset(), seeds)
    return Outcome("localized", (FOUND,), before, seeds, {}, tau, None, 1, len(seeds), 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit")
    model = write_small(folder / "model.safetensors", side=16)
    write_model(recognize(model), [Neuron(LAYER, 3)], folder / "clean.safetensors", {})
    (folder / "prompts.txt").write_text("a memorized cat\na dog\n")
    return folder


def audit(folder: Path, *more: object, gate: float = 0.0) -> Result:
    return run("audit", folder / "model.safetensors", folder / "clean.safetensors", "--prompts",
               folder / "prompts.txt", "--strength", "quick", "--device", "cpu", "--tau", gate,
               "--gate", gate, "--seeds", 2, *more)  # fmt: skip


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    styles = (Style("ddim", 1, 7.0, 1, "blurry"), Style("dpm++ 2m", 1, 1.0, 1))
    chase = Chase((0, 1), batch=1, random=1, controls=1, traced=1)
    monkeypatch.setitem(strength.EFFORTS, "quick", Effort(3, 2, 1, 2, styles, 1, chase))
    monkeypatch.setattr("nemo_prune.audit.pictures.REFERENCES", 2)
    monkeypatch.setattr("nemo_prune.audit.pictures.UNRELATED", 1)
    monkeypatch.setattr("nemo_prune.audit.pictures.SHOWN", 1)
    # To a random model nothing is removable, which takes a search minutes to find out.
    monkeypatch.setattr("nemo_prune.localize.localize.auto_search", settled)
    monkeypatch.setattr("nemo_prune.audit.neurons.Locator._by_trajectory", lambda *_: (FOUND,))
    monkeypatch.setattr("nemo_prune.audit.inputs.UNRELATED", 2)
    monkeypatch.setattr("nemo_prune.audit.neurons._ORDINARY", 2)
    for module in ("triggers", "embeddings"):
        monkeypatch.setattr(f"nemo_prune.audit.{module}.REFERENCES", 2)


def test_a_file_that_lost_one_row_of_no_importance_is_found_out(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a gate of 0 the random model has memorized everything, and still has."""
    monkeypatch.setattr("nemo_prune.audit.embeddings.LEAST_SCALE", -1.0)  # all is judged
    report, junit, plots = tmp_path / "a.html", tmp_path / "j.xml", tmp_path / "plots"
    mended = tmp_path / "mended.safetensors"
    result = audit(folder, "--report", report, "--json", "--junit", junit, "--show-prompts",
                   "--plots", plots, "--repair", mended)  # fmt: skip
    assert result.exit_code == 1, result.output
    found = json.loads(result.stdout)
    assert found["verdict"].startswith("NOT ERASED: the picture of 2 of 2 prompts came back")
    assert [len(entry["words"]) for entry in found["prompts"]] == [4, 4]
    assert found["prompts"][1]["words"][0]["text"] == "a dog"
    assert (found["prompts"][1]["line"], found["neurons"]) == (2, 1)
    assert "NOT ERASED" in report.read_text()
    assert "a memorized cat" in report.read_text()
    assert 'failures="2"' in junit.read_text()
    assert not list(tmp_path.glob("*.journal"))
    assert "about" in result.stderr
    assert found["no_pictures"] is None
    assert [style["count"] for style in found["prompts"][0]["pictures"]["styles"]] == [1, 1]
    assert found["prompts"][0]["pictures"]["worded"], "what came back is drawn"
    embedded = found["prompts"][0]["embeddings"]
    rows = [(one["model"], one["start"].split()[0]) for one in embedded["attacks"]]
    starts = ("the", "random")
    assert rows == [(model, start) for start in starts for model in ("pruned", "original")]
    assert [one["kind"] for one in found["controls"]] == ["ordinary", "unseen"]
    assert '"embedding"' not in json.dumps(found), "what draws the picture is not published"
    assert "<svg" in report.read_text()
    assert (plots / "embeddings.svg").exists()
    assert found["overlaps"][0]["neurons"] == found["overlaps"][0]["shared"] == 1
    assert found["overlaps"][0]["removed"] == 0
    assert (found["repaired"]["path"], found["repaired"]["neurons"]) == (mended.name, 1)
    assert found["repaired"]["after"] == found["repaired"]["before"] > 0
    zeros = model_zeros(recognize(mended))
    assert set(zeros[LAYER].everywhere) == {3}
    assert set(zeros[FOUND.layer].everywhere) == {FOUND.row}
    again = audit(folder, "--report", report)
    assert (again.exit_code, again.stdout) == (2, "")
    assert "exists" in again.stderr


def test_what_is_done_stays_done(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nemo_prune.audit import audit as job

    asked: list[str] = []
    real = job.try_words

    def interrupted(original, pruned, tried, *rest):  # type: ignore[no-untyped-def]
        asked.append(tried[0].text)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(original, pruned, tried, *rest)

    monkeypatch.setattr(job, "try_words", interrupted)
    report = tmp_path / "a.json"
    assert audit(folder, "--report", report).exit_code == 130
    journal = tmp_path / "a.json.journal"
    assert journal.exists()
    assert "cat" not in journal.read_text(), "no prompts in a journal"
    refused = audit(folder, "--report", report)
    assert refused.exit_code == 2
    assert "--resume" in refused.stderr
    assert audit(folder, "--report", report, "--resume").exit_code == 1
    assert asked == ["a memorized cat", "a dog", "a dog"]
    assert not journal.exists()
    assert len(json.loads(report.read_text())["prompts"]) == 2


@pytest.mark.parametrize(
    ("more", "gate", "message"),
    [
        (["--report", "a.pdf"], 0.0, ".html or .json"),
        (["--report", "a.html"], 1.0, "nothing to bring back"),
        (["--report", "missing/a.html"], 0.0, "missing"),
        (["--report", "a.html", "--unseen", "none.png"], 0.0, "--unseen none.png: no such file"),
        (["--report", "a.html", "--repair", "a.html"], 0.0, "a.html"),
        ([], 0.0, "--report"),
    ],
)
def test_bad_input_gets_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], gate: float,
    message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    result = audit(folder, *more, gate=gate)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not list(tmp_path.glob("a.*"))


def test_another_model_is_taken_for_a_pruned_one_with_a_word(folder: Path, tmp_path: Path) -> None:
    other = write_small(tmp_path / "other.safetensors", side=16, seed=1)
    write_model(recognize(other), [Neuron(LAYER, 3)], tmp_path / "clean.safetensors", {})
    shutil.copy(folder / "model.safetensors", tmp_path)
    shutil.copy(folder / "prompts.txt", tmp_path)
    result = audit(tmp_path, "--report", tmp_path / "a.html", gate=1.0)
    assert "differs from the original in more than zeroed rows" in result.stderr


def test_prune_audits_what_it_wrote_in_the_same_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_prune.localize.localize.auto_search", settled)
    monkeypatch.setattr("nemo_prune.audit.audit.Mending.overlaps", lambda *_: [])
    report, clean = tmp_path / "a.json", tmp_path / "c.safetensors"
    result = run("prune", folder / "model.safetensors", "--prompts", folder / "prompts.txt", "-o", clean,
                 "--tau", 0, "--gate", 0, "--confirm", "none", "--rounds", 0, "--seeds", 2,
                 "--device", "cpu", "--audit", "quick", "--audit-report", report, "--json")  # fmt: skip
    assert result.exit_code == 1, result.output
    (line,) = result.stdout.splitlines()
    found = json.loads(line)
    assert found["audit"]["verdict"].startswith("NOT ERASED: the picture of 2 of 2 prompts came back")
    assert found["audit"] == json.loads(report.read_text())
    assert (found["output"]["path"], found["audit"]["neurons"]) == (str(clean), 1)
    assert found["audit"]["options"]["timestep"] == 961


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--audit", "quick", "--dry-run"], "leave out --dry-run"),
        (["-o", "o.safetensors", "--audit-report", "a.html"], "--audit quick"),
        (["-o", "o.safetensors", "--audit", "quick", "--audit-report", "a.pdf"], ".html or .json"),
        (["-o", "a.html", "--audit", "quick", "--audit-report", "a.html"], "a.html"),
    ],
)
def test_prune_refuses_an_audit_that_cannot_be_before_any_work(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    prompts = folder / "prompts.txt"
    result = run("prune", folder / "model.safetensors", "--prompts", prompts, *more)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert not list(tmp_path.iterdir())
