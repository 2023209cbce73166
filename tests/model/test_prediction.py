"""What a denoiser predicts: as it is told, as it is measured, and where the two disagree.

The demo is an epsilon model; with its output turned into v, exactly, it is a v model.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import run, write_small

from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.checkpoint.sidecar import read_sidecar
from nemo_prune.errors import CheckpointError
from nemo_prune.model import loading
from nemo_prune.model.denoiser import LoadedModel
from nemo_prune.report.demo import CHECKPOINT

CPU = torch.device("cpu")
QUICK = ["--seeds", "2", "--device", "cpu", "--tau", "0.1", "--gate", "0.2", "--no-cache"]
LDM_V = 'model:\n  params:\n    parameterization: "v"\n'
SGM_V = (
    "model:\n  params:\n    denoiser_config:\n      params:\n        scaling_config:\n"
    "          target: sgm.modules.diffusionmodules.denoiser_scaling.VScaling\n"
)


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo without a word on what it predicts."""
    path = tmp_path_factory.mktemp("prediction") / "silent.safetensors"
    with safe_open(CHECKPOINT, "pt") as file:
        metadata = file.metadata()
    kept = {"nemo_prune.config": metadata["nemo_prune.config"]}
    described = json.loads(kept["nemo_prune.config"])
    described.get("scheduler", {}).pop("prediction_type", None)
    save_file(load_file(CHECKPOINT), path, {"nemo_prune.config": json.dumps(described)})
    assert open_checkpoint(path).prediction_type is None
    return path


@pytest.fixture
def as_v(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every UNet is loaded as the v model of the same pictures."""
    original = loading._Loader.model

    def model(loader: Any, unet: Any, *arguments: Any) -> LoadedModel:
        found = original(loader, unet, *arguments)
        if not unet._forward_hooks:

            def to_v(_module: Any, inputs: Any, output: Any) -> Any:
                alpha = found.alphas_cumprod[int(inputs[1])].clamp(min=0.004)
                clean = (inputs[0] - (1 - alpha).sqrt() * output[0]) / alpha.sqrt()
                return (alpha.sqrt() * output[0] - (1 - alpha).sqrt() * clean,)

            unet.register_forward_hook(to_v)
        return found

    monkeypatch.setattr(loading._Loader, "model", model)


def load(path: Path, **options: Any) -> LoadedModel:
    return loading.load_model(open_checkpoint(path), device=CPU, dtype=torch.float32, **options)


def beside(folder: Path, silent: Path, text: str) -> Path:
    """The silent model under a name that has this sidecar."""
    path = folder / "model.safetensors"
    path.symlink_to(silent)
    (folder / "model.yaml").write_text(text)
    return path


def test_where_nothing_tells_an_epsilon_model_is_measured(silent: Path) -> None:
    found = load(silent).prediction
    assert found is not None
    assert (found.type, found.told.type, found.measured) == ("epsilon", None, "epsilon")
    assert list(found.correlations) == [999]  # one sample is enough
    assert found.correlations[999] > 0.99
    assert found.note is not None
    assert "nothing says" in found.note
    assert "epsilon, as measured" in found.note


@pytest.mark.usefixtures("as_v")
def test_where_nothing_tells_a_v_model_is_measured_and_read_as_such(silent: Path) -> None:
    model = load(silent)
    assert model.prediction is not None
    assert model.prediction.measured == model.prediction_type == "v_prediction"
    assert model.scheduler_config["prediction_type"] == "v_prediction"
    found = model.prediction.correlations
    assert abs(found[999]) < 0.5 < 0.95 < found[249]
    # So it is the same denoiser as the epsilon model that it was made from.
    model.unet._forward_hooks.clear()
    noise = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    text = model.encode(["a cat"])
    as_epsilon = model.output(noise, 961, text)
    load(silent)  # hooks are put on again elsewhere
    again = load(silent)
    torch.testing.assert_close(again.predict_noise(noise, 961, text), as_epsilon, atol=1e-3, rtol=0)


@pytest.mark.parametrize("text", [LDM_V, SGM_V])
def test_a_sidecar_that_says_v_of_an_epsilon_model_is_refused(
    tmp_path: Path, silent: Path, text: str
) -> None:
    path = beside(tmp_path, silent, text)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n")
    result = run("detect", path, "--prompts", prompts, *QUICK)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()[-1:]
    assert "model.yaml says that the model predicts v, but it predicts epsilon" in line
    assert "1.00 at timestep 999" in line
    assert "--prediction-type epsilon" in line
    assert not result.stdout
    # The user's word is above the sidecar's.
    assert load(path, prediction_type="epsilon").prediction_type == "epsilon"


@pytest.mark.usefixtures("as_v")
@pytest.mark.parametrize("text", [LDM_V, SGM_V, LDM_V + "    rescale_betas_zero_snr: true\n"])
def test_a_sidecar_is_read_and_said(tmp_path: Path, silent: Path, text: str) -> None:
    path = beside(tmp_path, silent, text)
    shown = json.loads(run("inspect", path, "--json").stdout)
    assert shown["prediction_type"] == "v_prediction"
    assert shown["prediction_type_told_by"] == "model.yaml"
    assert "prediction type: v_prediction (model.yaml)" in run("inspect", path).stdout
    model = load(path)
    assert model.prediction is not None
    assert model.prediction.note is None  # told and measured agree
    assert model.prediction.as_json()["told_by"] == "model.yaml"
    assert (model.alphas_cumprod[-1] < 1e-6) == ("zero_snr" in text)


@pytest.mark.usefixtures("as_v")
@pytest.mark.parametrize("told", ["prediction_type", "its metadata"])
def test_a_v_model_that_is_called_epsilon_is_refused(silent: Path, told: str) -> None:
    by_metadata = told == "its metadata"
    path, options = (CHECKPOINT, {}) if by_metadata else (silent, {"prediction_type": "epsilon"})
    with pytest.raises(
        CheckpointError, match=f"{told} says .* epsilon, but it predicts v: .* hardly"
    ) as one:
        load(path, **options)
    assert "\n" not in str(one.value)


def test_of_random_weights_nothing_is_measured_and_what_is_told_holds(tmp_path: Path) -> None:
    path = write_small(tmp_path / "tiny.safetensors", side=16)
    for options, wanted in (({}, "epsilon"), ({"prediction_type": "v"}, "v_prediction")):
        model = load(path, **options)
        assert model.prediction_type == wanted
        assert model.prediction is not None
        assert model.prediction.measured is None
        assert model.prediction.note is not None
        assert "its output shows neither" in model.prediction.note
        by = "prediction_type" if options else None  # as Python spells it, without marks
        assert model.prediction.as_json()["told_by"] == by


def test_the_manifest_and_the_json_have_what_was_measured(tmp_path: Path, silent: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n")
    result = run("detect", silent, "--prompts", prompts, *QUICK, "--json")
    assert result.exit_code == 0, result.stderr
    wanted = {"type": "epsilon", "told_by": None, "measured": "epsilon", "correlations": {"999": 1.0}}
    assert json.loads(result.stdout)["prediction"] == wanted
    assert result.stderr.count("nothing says whether the model predicts epsilon or v") == 1
    small = write_small(tmp_path / "tiny.safetensors", side=16)
    manifest, captions = tmp_path / "manifest.json", tmp_path / "ordinary.txt"
    captions.write_text("\n".join(f"caption {n}" for n in range(30)))
    result = run("localize", small, "--prompts", prompts, "-o", manifest, *QUICK[:4],
                 "--calibration-prompts", captions, "--tau", "0.98", "--gate", "0.99")  # fmt: skip
    assert manifest.exists(), result.stderr
    assert json.loads(manifest.read_text())["options"]["prediction"]["measured"] is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: [", "cannot be read as YAML"),
        ("a: b: c", "cannot be read as YAML"),
        ("model: !!python/object/apply:os.system ['false']", "cannot be read as YAML"),
        ("#" * 2**21, "is too large for a model's settings (2097152 bytes)"),
        ("\xff", "is not UTF-8"),
        (
            "model:\n  params:\n    parameterization: x0\n",
            "predicts 'x0'; the noise difference is defined for eps and v alone: give such",
        ),
        ("model: {params: {parameterization: v, parameterization: eps}}", "a key stands twice"),
        (
            "model: {params: {parameterization: v, denoiser_config: {params: {scaling_config: "
            "{target: sgm.EpsScaling}}}}}",
            "contradicts itself: its parameterization is v",
        ),
    ],
)
def test_a_sidecar_that_cannot_be_used_is_refused_by_name(
    tmp_path: Path, silent: Path, text: str, words: str
) -> None:
    path = beside(tmp_path, silent, "")
    (tmp_path / "model.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"model\.yaml: ") as one:
        load(path)
    assert words in str(one.value)
    assert "\n" not in str(one.value)
    # What changes bytes alone does not ask what the model predicts.
    inspected = run("inspect", path)
    assert inspected.exit_code == 0
    assert "prediction type: unclear: " in inspected.stdout
    assert load(path, prediction_type="epsilon").prediction_type == "epsilon"


def test_a_sidecar_and_the_file_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    path = write_small(tmp_path / "model.safetensors", side=16)
    save_file(load_file(path) | {"v_pred": torch.zeros(1)}, path)
    (tmp_path / "model.yaml").write_text("model: {params: {parameterization: eps}}")
    with pytest.raises(CheckpointError, match="epsilon where its marker v_pred says v_prediction"):
        load(path)


@pytest.mark.parametrize("text", ["", "just words", "- 1\n- 2", "model: {params: [1]}", "model: 3"])
def test_a_yaml_of_another_kind_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.yaml").write_text(text)
    found = read_sidecar(tmp_path / "model.safetensors")
    assert found is not None
    assert (found[1].prediction_type, found[1].zero_snr, found[1].fault) == (None, False, None)
    assert read_sidecar(tmp_path / "other.safetensors") is None
