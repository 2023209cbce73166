"""What verify refuses or accepts before any model is loaded, and what it takes from metadata."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pytest
from click.testing import Result
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import run, write_small

from nemo_prune.checkpoint.apply import write_model
from nemo_prune.checkpoint.manifest import Manifest, PromptRecord, write_manifest
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.options import Criterion

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An original, one file pruned from it of row 3, and one pruned from that of rows 3 and 9."""
    folder = tmp_path_factory.mktemp("inputs")
    model = write_small(folder / "model.safetensors", side=16)
    one, two = folder / "one.safetensors", folder / "two.safetensors"
    write_model(recognize(model), [Neuron(LAYER, 3)], one, {})
    write_model(recognize(one), [Neuron(LAYER, 3), Neuron(LAYER, 9)], two, {})
    (folder / "prompts.txt").write_text("a caption\n")
    (folder / "ordinary.txt").write_text("a boat\na hill\n")
    return folder


def with_metadata(source: Path, out: Path, **entries: str) -> Path:
    """The file again, with these `nemo_prune.*` entries."""
    with safe_open(source, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() | {f"nemo_prune.{name}": text for name, text in entries.items()}
    save_file(tensors, out, metadata)
    return out


def manifest_of(
    place: Path,
    rows: Sequence[int],
    prompts: int = 1,
    status: str = "suppressed",
    trajectory: float | None = None,
) -> Path:
    neurons = tuple(Neuron(LAYER, row) for row in rows)
    records = tuple(
        PromptRecord(i, status, 0.9, 0.2, neurons=neurons, trajectory=trajectory) for i in range(prompts)
    )
    source = {"path": "model.safetensors", "sha256": "0" * 64}
    write_manifest(Manifest("0.1.0", source, {}, records, neurons), place, True)
    return place


def verify(folder: Path, original: str, pruned: Path, *more: object) -> Result:
    return run("verify", folder / original, pruned, "--prompts", folder / "prompts.txt",
               "--ordinary", folder / "ordinary.txt", "--images", "0", "--seeds", "3",
               "--device", "cpu", *more)  # fmt: skip


def test_a_row_that_the_original_had_lost_already_may_be_in_the_manifest(
    folder: Path, tmp_path: Path
) -> None:
    """As for diff --expect: the row is zero, whoever zeroed it."""
    manifest = manifest_of(tmp_path / "m.json", [3, 9])
    pair = (folder / "one.safetensors", folder / "two.safetensors")
    assert run("diff", *pair, "--expect", manifest).exit_code == 0
    result = verify(
        folder, "one.safetensors", pair[1], "--manifest", manifest, "--tau", "1", "--json", "-q"
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["neurons"] == 1, "one was removed between the two"


def test_a_manifest_that_does_not_fit_is_refused_before_thresholds_are_calibrated(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "nemo_prune.scoring.opening.open_engine", lambda *_: pytest.fail("loaded the model")
    )
    clean = folder / "one.safetensors"
    for manifest, words in (
        (manifest_of(tmp_path / "rows.json", [5]), "--manifest: names row 5"),
        (manifest_of(tmp_path / "more.json", [3], prompts=2), "is about 2 prompts"),
    ):
        result = verify(folder, "model.safetensors", clean, "--manifest", manifest,
                        "--calibration-prompts", folder / "ordinary.txt")  # fmt: skip
        assert result.exit_code == 2, result.output
        assert words in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("entry", "text", "wanted"),
    [
        ("criterion", "nonsense", f"one of {', '.join(get_args(Criterion))}"),
        ("timestep", "\u00b2", "a timestep"),
        ("timestep", "9" * 5000, "a timestep"),
        ("gate", "0.2", "a number between 0.3 (tau) and 1"),
        ("gate", "nan", "a number between 0.3 (tau) and 1"),
    ],
)
def test_metadata_that_say_nonsense_are_named_and_ignored(
    folder: Path, tmp_path: Path, entry: str, text: str, wanted: str
) -> None:
    edited = with_metadata(
        folder / "one.safetensors", tmp_path / "edited.safetensors", **{"tau": "0.3", entry: text}
    )
    result = verify(folder, "model.safetensors", edited, "--json")
    assert result.exit_code in (0, 1), result.output
    said = " ".join(result.stderr.split())
    assert f"its metadata nemo_prune.{entry} is not {wanted}, so it is ignored" in said
    settings = json.loads(result.stdout)["options"]
    assert settings["criterion"] == "cross-seed"
    assert settings["timestep"] == 961
    assert (settings["tau"], settings["gate"]) == (0.3, 0.3)


def test_sound_metadata_are_used(folder: Path, tmp_path: Path) -> None:
    edited = with_metadata(folder / "one.safetensors", tmp_path / "edited.safetensors", tau="0.3",
                           gate="0.4", criterion="same-seed", timestep="721")  # fmt: skip
    result = verify(folder, "model.safetensors", edited, "--json", "-q")
    settings = json.loads(result.stdout)["options"]
    assert [settings[name] for name in ("tau", "gate", "criterion", "timestep")] == [
        0.3, 0.4, "same-seed", 721
    ]  # fmt: skip
    assert (settings["tau_source"], settings["gate_source"]) == ("the pruned file's",) * 2
