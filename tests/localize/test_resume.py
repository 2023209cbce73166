"""A search that was interrupted goes on where it stopped, to the same manifest byte for byte."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from tiny import config_folder, run, small_unet, write_small

from nemo_prune.scoring.journal import Journal, journal_path

pytestmark = pytest.mark.slow

QUICK = ["--seeds", "2", "--device", "cpu", "--layers", "down_blocks.0.attentions.0*",
         "--tau", "0", "--gate", "0"]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("model") / "tiny.safetensors", side=16)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"marker caption {number}\n" for number in range(3)))
    return path


def _interrupted(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Result:
    """The run, interrupted as the second prompt is finished."""
    added: list[str] = []
    add = Journal.add

    def until_two(self: Journal, key: str, value: Any) -> None:
        add(self, key, value)
        added.append(key)
        if len(added) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", until_two)
        return run(*arguments)


def test_resumed_ends_like_unbroken(
    model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole.json", tmp_path / "broken.json"
    given = [*QUICK, "--prompts", prompts]
    expected = run("localize", model, *given, "-o", whole)
    assert not journal_path(whole).exists()

    stopped = _interrupted(monkeypatch, "localize", model, *given, "-o", broken)
    assert stopped.exit_code == 130
    journal = journal_path(broken).read_text()
    assert len(journal.splitlines()) == 3
    assert "marker" not in journal
    left = json.loads(broken.read_text())["prompts"]
    assert sum(prompt["status"] == "not searched" for prompt in left) == 1

    again = run("localize", model, *given, "-o", broken)
    assert again.exit_code == 2
    assert "--resume" in again.stderr
    resumed = run("localize", model, *given, "-o", broken, "--resume")
    assert resumed.exit_code == expected.exit_code, resumed.stderr
    assert broken.read_bytes() == whole.read_bytes()
    assert not journal_path(broken).exists()


def test_an_interrupted_prune_keeps_what_was_finished_and_writes_no_checkpoint(
    model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, manifest = tmp_path / "clean.safetensors", tmp_path / "m.json"
    given = [*QUICK, "--prompts", prompts, "-o", out, "--manifest", manifest]
    assert _interrupted(monkeypatch, model, *given).exit_code == 130
    assert not out.exists()
    kept = [prompt["status"] for prompt in json.loads(manifest.read_text())["prompts"]]
    assert kept.count("not searched") == 1
    assert kept.count("not confirmed") == 2


def test_a_journal_of_other_options_is_refused(
    model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = tmp_path / "m.json"
    given = ["--prompts", prompts, "-o", manifest, "--confirm", "none", "--rounds", "0"]
    _interrupted(monkeypatch, "localize", model, *QUICK, *given)
    left = journal_path(manifest).read_bytes()
    other = run("localize", model, *QUICK, *given, "--resume", "--seed", "7")
    assert other.exit_code == 2
    assert "other options" in other.stderr
    assert journal_path(manifest).read_bytes() == left


@pytest.mark.parametrize("verb", ["localize", "detect"])
def test_a_journal_of_the_same_file_but_another_model_is_refused(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """The checkpoint's own hash does not know what the command line adds to it."""
    model = write_small(tmp_path / "without.safetensors", side=16, fewer=False, text_encoder=False)
    one, another = (write_small(tmp_path / f"{seed}.safetensors", side=16, seed=seed) for seed in (0, 1))
    configs = config_folder(tmp_path / "configs", layers=1)  # of other latents
    schedule = config_folder(tmp_path / "schedule", layers=1)
    for folder, part, change in (
        (configs, "unet/config.json", small_unet(24)),
        (schedule, "unet/config.json", small_unet(16)),
        (schedule, "scheduler/scheduler_config.json", {"beta_end": 0.013}),
    ):
        path = folder / part
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    out = tmp_path / "out"
    given = [verb, model, "--prompts", prompts, "-o" if verb == "localize" else "--csv", out,
             "--seeds", "2", "--device", "cpu", "--tau", "0", "--gate", "0"]  # fmt: skip
    if verb == "localize":
        ordinary = tmp_path / "ordinary.txt"
        ordinary.write_text("".join(f"an ordinary caption {number}\n" for number in range(30)))
        given += [*QUICK[4:6], "--confirm", "none", "--rounds", "0", "--calibration-prompts", ordinary]
    _interrupted(monkeypatch, *given, "--text-encoder", one)
    for other in (
        ["--text-encoder", another],
        ["--text-encoder", one, "--prediction-type", "v"],
        ["--text-encoder", one, "--config", configs],
        ["--text-encoder", one, "--config", schedule],
    ):
        refused = run(*given, *other, "--resume")
        assert refused.exit_code == 2, refused.output
        assert "belongs to a run with other options" in refused.stderr
    assert run(*given, "--text-encoder", one, "--resume").exit_code in (0, 1)


def test_prune_needs_a_manifest_to_resume(model: Path, prompts: Path, tmp_path: Path) -> None:
    result = run(model, "--prompts", prompts, "-o", tmp_path / "out.safetensors", "--resume")
    assert result.exit_code == 2
    assert "--manifest" in result.stderr


def test_detect_goes_on_to_the_same_table(
    model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["--prompts", prompts, "--seeds", "4", "--device", "cpu", "--tau", "0.4", "--gate", "0.5"]
    whole, broken = tmp_path / "whole.csv", tmp_path / "broken.csv"
    expected = run("detect", model, *given, "--csv", whole)
    assert expected.exit_code == 0, expected.output
    assert not journal_path(whole).exists()

    stopped = _interrupted(monkeypatch, "detect", model, *given, "--csv", broken)
    assert stopped.exit_code == 130
    assert not broken.exists()
    journal = journal_path(broken).read_text()
    assert len(journal.splitlines()) == 3
    assert "marker" not in journal

    again = run("detect", model, *given, "--csv", broken)
    assert (again.exit_code, "--resume" in again.stderr) == (2, True)
    other = run("detect", model, *given, "--csv", broken, "--resume", "--gate", "0.6")
    assert (other.exit_code, "other options" in other.stderr) == (2, True)
    resumed = run("detect", model, *given, "--csv", broken, "--resume", "--json")
    assert resumed.exit_code == 0, resumed.output
    assert broken.read_bytes() == whole.read_bytes()
    assert not journal_path(broken).exists()
    assert json.loads(resumed.stdout)["cost"]["samples"] == 4 + 4  # one prompt, and no prompt


def test_detect_needs_a_table_to_resume(model: Path, prompts: Path) -> None:
    result = run("detect", model, "--prompts", prompts, "--resume")
    assert (result.exit_code, "--csv" in result.stderr) == (2, True)
