"""Drift of cross-attention outputs: against a model whose rows are zero, and the control."""

import copy
import dataclasses
import random

import pytest
import torch
from test_engine import LOUD, engine, names, rows, zeroed
from tiny import write_small

from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.model.denoiser import LoadedModel
from nemo_prune.model.loading import load_model
from nemo_prune.scoring.drift import CONTROLS, measure, random_neurons, recorded

TEXTS = ["a cat", "the sea at night"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    path = write_small(
        tmp_path_factory.mktemp("drift") / "tiny.safetensors", side=16, layers=2, fewer=False, vae=False
    )
    loaded = load_model(recognize(path), device=torch.device("cpu"), dtype=torch.float32)
    with torch.no_grad():
        for layer in loaded.value_layers.values():
            layer.weight[:LOUD] *= 30
    return dataclasses.replace(loaded, latent_shape=(4, 16, 16))


def test_neurons_off_drift_as_a_file_without_them_does(model: LoadedModel) -> None:
    off = rows(model, 1, 0, 1) | rows(model, 6, 2)
    original, pruned = engine(model), engine(zeroed(model, off))
    masked = measure(original, original.prompts(TEXTS), off, seed=7)
    filed = measure(
        original, original.prompts(TEXTS), off, seed=7, pruned=(pruned, pruned.prompts(TEXTS))
    )
    assert masked["pruned"] == pytest.approx(filed["pruned"], abs=1e-4)
    assert masked["random_draws"] == filed["random_draws"]
    assert masked["pruned"] > 1.5 * masked["random"] > 0, "the loud rows must matter more than others"
    assert masked["ratio"] == pytest.approx(masked["pruned"] / masked["random"], rel=0.01)
    by_layer = {entry["layer"]: entry for entry in masked["layers"]}
    assert len(by_layer) == len(model.value_layers)
    first = by_layer[names(model)[0].removesuffix(".to_v")]
    assert first["removed"] == first["pruned"] == 0, "nothing comes before it"
    assert by_layer[names(model)[1].removesuffix(".to_v")]["removed"] == 2
    assert all(not module._forward_hooks for module in model.unet.modules())


def test_one_layer_is_the_relative_change_of_its_output(model: LoadedModel) -> None:
    off = rows(model, 0, 0)
    one = engine(model)
    (prompt,) = one.prompts(TEXTS[:1])
    name = names(model)[0].removesuffix(".to_v")
    with recorded(model.unet) as before:
        one.differences(prompt, [7])
    with recorded(zeroed(model, off).unet) as after:
        engine(dataclasses.replace(model)).differences(prompt, [7], off)
    assert after == {}, "recorded another model"
    with recorded(model.unet) as after:
        one.differences(prompt, [7], off)
    expected = float((after[name] - before[name]).norm() / before[name].norm())
    found = measure(one, [prompt], off, seed=7)
    assert found["layers"][0]["pruned"] == pytest.approx(expected, abs=1e-5)


def test_a_model_that_overflows_is_measured_in_fp32(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = rows(model, 1, 0, 1)
    exact = engine(model)
    expected = measure(exact, exact.prompts(TEXTS), off, seed=7)
    unet = copy.deepcopy(model.unet).bfloat16()
    layers = {name: unet.get_submodule(name) for name in model.value_layers}
    half = dataclasses.replace(model, unet=unet, value_layers=layers, dtype=torch.bfloat16)
    unet.up_blocks[0].register_forward_hook(
        lambda module, _inputs, output: output * (float("nan") if module.training else 1.0)
    )
    unet.train()  # tells the hook in which precision it is; nothing here has dropout
    in_fp32, in_any = unet.float, unet.to
    monkeypatch.setattr(unet, "float", lambda: in_fp32().eval())
    monkeypatch.setattr(unet, "to", lambda dtype: in_any(dtype).train())
    one = engine(half)
    notes: list[str] = []
    one.note = notes.append
    found = measure(one, one.prompts(TEXTS), off, seed=7)
    assert found["pruned"] == pytest.approx(expected["pruned"], rel=0.05)
    assert found["random_draws"] == pytest.approx(expected["random_draws"], rel=0.05)
    assert len(notes) == 1
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.bfloat16}, "given back"


def test_removing_nothing_drifts_nothing(model: LoadedModel) -> None:
    one = engine(model)
    found = measure(one, one.prompts(TEXTS[:1]), (), seed=0)
    assert found["pruned"] == found["random"] == 0
    assert found["ratio"] is None
    assert len(found["random_draws"]) == CONTROLS


def test_the_control_takes_as_many_other_living_rows(model: LoadedModel) -> None:
    removed = rows(model, 1, 0, 1, 2) | rows(model, 6, 5)
    dead = zeroed(model, frozenset(Neuron(names(model)[1], row) for row in range(3, 20)))
    drawn = random_neurons(engine(dead), removed, random.Random(0))
    assert not drawn & removed
    counts = {name: sum(n.layer == name for n in drawn) for name in names(model)}
    assert counts == {name: sum(n.layer == name for n in removed) for name in names(model)}
    assert all(n.row >= 20 for n in drawn if n.layer == names(model)[1])
