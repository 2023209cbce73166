"""Activation statistics: equal to computing them directly."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from tiny import write_tiny

from nemo_prune.checkpoint.checkpoint import Checkpoint, ValueLayer
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.errors import CalibrationError
from nemo_prune.model.denoiser import LoadedModel
from nemo_prune.model.loading import load_model
from nemo_prune.scoring.activations import activation_statistics, activations, ladders
from nemo_prune.search.ladder import LAST_RUNG

PROMPTS = [f"a photo of {i} {'cats' if i % 2 else 'old red houses by the sea'}" for i in range(33)]
DEAD = 5  # a row of the first value layer without any weight


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path: Path = tmp_path_factory.mktemp("calibration") / "tiny.safetensors"
    return recognize(write_tiny(path))


@pytest.fixture(scope="module")
def layers(checkpoint: Checkpoint) -> tuple[ValueLayer, ...]:
    return tuple(checkpoint.select("down+mid"))


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint, layers: tuple[ValueLayer, ...]) -> LoadedModel:
    loaded = load_model(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    with torch.no_grad():
        loaded.value_layers[layers[0].name].weight[DEAD] = 0
    return dataclasses.replace(loaded, latent_shape=(4, 16, 16))


def test_activations_are_the_mean_over_tokens(
    model: LoadedModel, layers: tuple[ValueLayer, ...]
) -> None:
    text = model.encode(PROMPTS[:3])
    found = activations(model, layers, text)
    assert list(found) == [layer.name for layer in layers]
    for layer in layers:
        weight = model.value_layers[layer.name].weight
        expected = (text.double() @ weight.double().T).abs().mean(dim=1)
        assert found[layer.name].shape == (3, layer.rows)
        torch.testing.assert_close(found[layer.name], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 7, 32, 64])
def test_statistics_equal_direct_ones(
    model: LoadedModel, layers: tuple[ValueLayer, ...], batch: int
) -> None:
    found = activation_statistics(model, layers, PROMPTS, batch)
    direct = activations(model, layers, model.encode(PROMPTS))
    assert found.prompts == len(PROMPTS)
    assert list(found.mean) == list(found.std) == [layer.name for layer in layers]
    for name, values in direct.items():
        torch.testing.assert_close(found.mean[name], values.mean(dim=0), atol=1e-7, rtol=1e-6)
        torch.testing.assert_close(found.std[name], values.std(dim=0), atol=1e-7, rtol=1e-5)


def test_too_few_prompts(model: LoadedModel, layers: tuple[ValueLayer, ...]) -> None:
    with pytest.raises(CalibrationError, match="29 "):
        activation_statistics(model, layers, PROMPTS[:29])
    assert activation_statistics(model, layers, PROMPTS[:30]).prompts == 30


def test_ladders(model: LoadedModel, layers: tuple[ValueLayer, ...]) -> None:
    ordinary = activation_statistics(model, layers, PROMPTS)
    text = model.encode(["", "a strange thing"])
    found = ladders(model, layers, text, ordinary)
    direct = activations(model, layers, text)
    assert len(found) == 2
    dead = Neuron(layers[0].name, DEAD)
    for prompt, ladder in enumerate(found):
        assert list(ladder.z) == [layer.name for layer in layers]
        for name, z in ladder.z.items():
            values = direct[name][prompt]
            expected = ((values - ordinary.mean[name]) / ordinary.std[name]).abs()
            if name == dead.layer:
                assert math.isnan(z[DEAD])
                expected[DEAD] = torch.nan
            torch.testing.assert_close(
                torch.tensor(z, dtype=torch.float64), expected, rtol=1e-4, atol=1e-4, equal_nan=True
            )
            assert ladder.activation[name] == pytest.approx(values.tolist(), rel=1e-5)
        assert ladder.activation[dead.layer][DEAD] == 0
        assert dead not in ladder.rung(LAST_RUNG)
        assert ladder.suspicion(dead) == 0
