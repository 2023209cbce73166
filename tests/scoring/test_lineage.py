"""A pruned copy is known from another model by hashes, and takes what was measured on its original."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Told, run, write_small

from nemo_prune.checkpoint.apply import write_model
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.errors import CalibrationError
from nemo_prune.model.denoiser import LoadedModel
from nemo_prune.model.loading import load_model
from nemo_prune.options import Options
from nemo_prune.scoring.activations import activation_statistics
from nemo_prune.scoring.calibration_file import fingerprint, read_calibration, write_calibration
from nemo_prune.scoring.lineage import lineage, weights_sha256, zero_rows, zeroed_since
from nemo_prune.scoring.opening import open_engine
from nemo_prune.scoring.ordinary import Ordinary

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
OFF = [Neuron(LAYER, 3), Neuron(LAYER, 9), Neuron(LAYER.replace("0", "1", 1), 2)]
ORDINARY = [f"a photo of {i} cats" for i in range(30)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its pruned copy, ordinary prompts, and the model's calibration."""
    folder = tmp_path_factory.mktemp("lineage")
    model = write_small(folder / "model.safetensors", side=16)
    write_model(recognize(model), OFF, folder / "clean.safetensors", {})
    (folder / "p.txt").write_text("a fox\na dog\n")
    (folder / "ordinary.txt").write_text("\n".join(ORDINARY))
    made = run("calibrate", model, "--prompts", folder / "ordinary.txt", "-o", folder / "c.safetensors",
               "--no-cache", "--seeds", "2", "--device", "cpu", "-q")  # fmt: skip
    assert made.exit_code == 0, made.output
    return folder


def loaded(path: Path) -> LoadedModel:
    return load_model(recognize(path), device=torch.device("cpu"), dtype=torch.float32)


def test_a_pruned_copy_is_known_and_nothing_else(folder: Path) -> None:
    original, pruned = loaded(folder / "model.safetensors"), loaded(folder / "clean.safetensors")
    before = lineage(original)
    assert weights_sha256(original) == fingerprint(original) != fingerprint(pruned)
    assert zeroed_since(before, original, before) is None, "nothing differs"
    found = zeroed_since(before, pruned, lineage(pruned))
    assert found is not None
    off = {Neuron(name, row) for name, mask in found.items() for row in mask.nonzero()[:, 0].tolist()}
    assert off == set(OFF)

    def refused() -> bool:
        return zeroed_since(before, pruned, lineage(pruned)) is None

    value = pruned.value_layers[LAYER].weight
    with torch.no_grad():
        value[5, 0] += 1e-3
        assert refused(), "a row was changed, not zeroed"
        value[5, 0] -= 1e-3
        value[3] = 1e-9
        assert refused(), "nearly zero"
        value[3] = -0.0
        key = pruned.unet.get_submodule(LAYER.replace("to_v", "to_k")).weight
        assert not refused()
        key[0, 0] += 1
    assert refused(), "another tensor"
    assert zeroed_since(lineage(pruned), original, before) is None, "the other way round"


def test_a_bias_is_a_part_of_its_row() -> None:
    layer = torch.nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight[1:] = 0
        layer.bias[2] = 0
    assert zero_rows(layer).tolist() == [False, False, True]


def detect(folder: Path, model: str, *more: object) -> dict[str, Any]:
    result = run("detect", folder / model, "--prompts", folder / "p.txt", "--seeds", "2",
                 "--device", "cpu", "--json", *more)  # fmt: skip
    assert result.exit_code == 0, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    return told | {"notes": result.stderr}


def test_a_pruned_file_takes_the_calibration_of_its_original(folder: Path) -> None:
    given = ("--calibration", folder / "c.safetensors")
    first, second = (detect(folder, name, *given) for name in ("model.safetensors", "clean.safetensors"))
    assert (first["tau"], first["gate"]) == (second["tau"], second["gate"])
    assert first["gate_source"] == "calibration file"
    assert second["gate_source"] == second["tau_source"] == "calibration file of the original"
    assert second["cost"]["calibration_samples"] == 0
    assert "c.safetensors: what is ordinary is taken from the original, from which" in second["notes"]
    assert "differs in 3 zeroed value rows and nothing else" in second["notes"]
    assert "taken from the original" not in first["notes"]


def test_its_statistics_are_what_would_be_measured(folder: Path) -> None:
    """Value layers see the text alone: the other neurons' activations are as they were."""
    checkpoint = recognize(folder / "clean.safetensors")
    options = Options(device="cpu", seeds=2, calibration=folder / "c.safetensors")
    engine = open_engine(checkpoint, options)
    taken, whence = Ordinary(engine, checkpoint, options, None, Told()).statistics
    assert whence == "file"
    measured = activation_statistics(engine.model, checkpoint.value_layers, ORDINARY)
    for name, mean in measured.mean.items():
        assert torch.allclose(taken.mean[name], mean, rtol=1e-6)
        assert torch.allclose(taken.std[name], measured.std[name], rtol=1e-5, atol=1e-9)
    assert taken.mean[LAYER][3] == taken.std[LAYER][3] == 0


def test_the_manifest_says_so(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.json"
    result = run("localize", folder / "clean.safetensors", "--prompts", folder / "p.txt", "-o", out,
                 "--calibration", folder / "c.safetensors", "--tau", "1", "--gate", "1", "--seeds", "2",
                 "--device", "cpu", "--json", "-q")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads(out.read_text())["options"]["calibration_of"] == "the original"
    assert json.loads(result.stdout)["statistics_from"] == "file of the original"


def test_the_cache_serves_a_pruned_file_too(folder: Path, cache: Path) -> None:
    given = ("--calibration-prompts", folder / "ordinary.txt")
    first = detect(folder, "model.safetensors", *given)
    second = detect(folder, "clean.safetensors", *given)
    assert (first["scores_from"], second["scores_from"]) == ("this run", "cache")
    assert first["gate"] == second["gate"]
    assert second["gate_source"] == "calibrated on the original"
    assert len(list(cache.iterdir())) == 1


def test_a_calibration_without_hashes_is_for_its_model_alone(folder: Path, tmp_path: Path) -> None:
    old = replace(read_calibration(folder / "c.safetensors"), lineage=None)
    write_calibration(old, tmp_path / "old.safetensors")
    checkpoint = recognize(folder / "clean.safetensors")
    options = Options(device="cpu", seeds=2, calibration=tmp_path / "old.safetensors")
    with pytest.raises(CalibrationError, match="other weights"):
        Ordinary(open_engine(checkpoint, options), checkpoint, options, None, Told())
