"""UNets that are not shaped as the families' own: other blocks, other depths, no middle, biases."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import SIDE
from safetensors.torch import load_file
from tiny import ldm, run, same_weights, tiny_configs, told_heads, write_tiny
from torch import Tensor

from nemo_prune.checkpoint.manifest import read_manifest
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.errors import CheckpointError
from nemo_prune.model import hub, loading
from nemo_prune.report.inputs import check_inputs
from nemo_prune.scoring.activations import activations
from nemo_prune.scoring.engine import Engine, Sample
from nemo_prune.scoring.similarity import noise_difference

CPU = torch.device("cpu")
MID = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
DOWN, CROSS_DOWN, UP, CROSS_UP = (
    f"{kind}{side}Block2D" for side in ("Down", "Up") for kind in ("", "CrossAttn")
)
FOUR: dict[str, Any] = {
    "down_block_types": [CROSS_DOWN] * 3 + [DOWN],
    "up_block_types": [UP] + [CROSS_UP] * 3,
}
# What each is named after, at a few channels.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "SSD-1B": ("sdxl", {
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [1, [2, 2], [1, 2]],
        "reverse_transformer_layers_per_block": [[2, 2, 3], [2, 1, 1], 1],
    }),
    "Segmind Vega": ("sdxl", {
        "mid_block_type": "UNetMidBlock2D", "transformer_layers_per_block": [1, 1, 2],
    }),
    "KOALA": ("sdxl", {
        "layers_per_block": 1, "mid_block_type": None, "transformer_layers_per_block": [1, 2, 3],
    }),
    "small-sd": ("sd1", {"layers_per_block": 1, "mid_block_type": None}),
    "tiny-sd": ("sd1", {
        "layers_per_block": 1, "mid_block_type": None, "block_out_channels": [32, 64, 96],
        "down_block_types": [CROSS_DOWN] * 3, "up_block_types": [CROSS_UP] * 3,
    }),
    "SDXS": ("sd2", {
        "layers_per_block": 1, "mid_block_type": None, "block_out_channels": [64, 64, 128],
        "down_block_types": [DOWN, CROSS_DOWN, CROSS_DOWN], "attention_head_dim": [1, 1, 2],
        "up_block_types": [CROSS_UP, CROSS_UP, CROSS_UP],
    }),
    "blocks of other lengths": ("sd1", FOUR | {"layers_per_block": [1, 3, 2, 1]}),
    "attention in other blocks": ("sd1", {
        "down_block_types": [DOWN, CROSS_DOWN, DOWN, CROSS_DOWN],
        "up_block_types": [UP, UP, CROSS_UP, UP],
    }),
    "a deeper middle": ("sd1", FOUR | {"transformer_layers_per_block": [1, 1, 2, 3]}),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("distilled")


@pytest.fixture(scope="module")
def whole(place: Path) -> dict[str, Path]:
    return {
        family: write_tiny(place / f"{family}.safetensors", family) for family in ("sd1", "sd2", "sdxl")
    }


def unet(family: str, changes: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = tiny_configs(family)["unet"] | {"sample_size": SIDE} | changes
    return hub.UNet2DConditionModel.from_config(config).eval()


def load(path: Path, *text_encoder: Path, **options: Any) -> loading.LoadedModel:
    return loading.load_model(
        open_checkpoint(path), device=CPU, dtype=torch.float32, text_encoder=text_encoder, **options
    )


def with_rest(whole: Mapping[str, Path], family: str, state: dict[str, Tensor], path: Path) -> Path:
    """A single file of this UNet and the text encoders and VAE of another."""
    rest = {n: t for n, t in load_file(whole[family]).items() if not n.startswith(ldm.UNET_PREFIX)}
    ldm.save_tensors(path, ldm.unet_to_ldm(state) | rest, told_heads(family, sample_size=SIDE))
    return path


@pytest.mark.parametrize("layout", ["single file", "UNet alone", "folder"])
@pytest.mark.parametrize("shape", SHAPES)
def test_distilled_unets_load_as_in_diffusers(
    place: Path, whole: dict[str, Path], shape: str, layout: str
) -> None:
    family, changes = SHAPES[shape]
    theirs = unet(family, changes)
    encoder: tuple[Path, ...] = (whole[family],)
    if layout == "single file":
        path, encoder = (
            with_rest(whole, family, theirs.state_dict(), place / "m.safetensors"),
            (),
        )
    elif layout == "UNet alone":
        path = place / "unet.safetensors"
        ldm.save_tensors(path, theirs.state_dict(), told_heads(family, sample_size=SIDE))
    else:
        path = place / f"{shape}-folder"
        theirs.save_pretrained(path)
    found, model = open_checkpoint(path), load(path, *encoder)
    assert found.family == family
    assert same_weights(model.unet, theirs)
    values = {n for n, _ in theirs.named_modules() if n.endswith(".attn2.to_v")}
    assert values == set(model.value_layers)
    chosen = {layer.name for layer in found.select("down+mid")}
    assert chosen == {name for name in values if not name.startswith("up")}
    theirs.to(memory_format=torch.channels_last)
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    text, pooled = model.encode_pooled(["a cat", ""])
    added = None
    if family == "sdxl":
        side = 8 * model.latent_shape[1]
        ids = torch.tensor([[side, side, 0, 0, side, side]] * 2, dtype=torch.float32)
        added = {"text_embeds": pooled, "time_ids": ids}
    with torch.no_grad():
        wanted = theirs(
            latents.contiguous(memory_format=torch.channels_last), 500, text, added_cond_kwargs=added
        ).sample
    assert torch.equal(model.predict_noise(latents, 500, text, pooled), wanted)


@pytest.mark.parametrize("shape", ["blocks of other lengths", "SDXS", "SSD-1B"])
def test_the_rows_zeroed_are_those_of_the_layers_that_diffusers_sees(
    place: Path, whole: dict[str, Path], shape: str
) -> None:
    """Row 1 of each layer by number."""
    family, changes = SHAPES[shape]
    source = with_rest(whole, family, unet(family, changes).state_dict(), place / "rows.safetensors")
    count = len(open_checkpoint(source).value_layers)
    chosen = ",".join(f"{number}:1" for number in range(count))
    out = place / f"{shape}-clean.safetensors"
    assert run("apply", source, "--neurons", chosen, "-o", out).exit_code == 0
    before, after = (load(path).unet.state_dict() for path in (source, out))
    for name, tensor in before.items():
        wanted = tensor.clone()
        if name.endswith(".attn2.to_v.weight"):
            wanted[1] = 0
            count -= 1
        assert torch.equal(after[name], wanted), name
    assert count == 0


@pytest.mark.parametrize("shape", ["small-sd", "SSD-1B"])
def test_distilled_unets_are_localized(place: Path, whole: dict[str, Path], shape: str) -> None:
    """Through `localize` with its default layers, which are down and, where there is one, mid."""
    family, changes = SHAPES[shape]
    source = with_rest(whole, family, unet(family, changes).state_dict(), place / "l.safetensors")
    (place / "prompts.txt").write_text("a cat\n")
    (place / "ordinary.txt").write_text("".join(f"photo {n}\n" for n in range(30)))
    manifest = place / f"{shape}.json"
    done = run("localize", source, "--prompts", place / "prompts.txt", "--device", "cpu",
               "--calibration-prompts", place / "ordinary.txt", "--tau", "0", "--gate", "0",
               "--seeds", "2", "-o", manifest)  # fmt: skip
    assert done.exit_code in (0, 1), done.stderr
    found, checkpoint = read_manifest(manifest), open_checkpoint(source)
    assert found.source["model"] == checkpoint.kind
    parts = {layer.part for layer in checkpoint.select("down+mid")}
    assert parts == {"down"}, "neither has attention in the middle"
    layers = {layer.name for layer in checkpoint.select("down+mid")}
    assert found.neurons
    assert {neuron.layer for neuron in found.neurons} <= layers


UNDESCRIBED = {
    "attention in some layers": (
        {}, lambda n: n.startswith("down_blocks.1.attentions.0."),
        "has attention in some layers of down_blocks.1 and not in the others",
    ),
    "fewer up layers": (
        {}, lambda n: n.startswith(("up_blocks.3.resnets.2.", "up_blocks.3.attentions.2.")),
        "has up blocks of [3, 3, 3, 2] layers to down blocks of [2, 2, 2, 2]",
    ),
    "a middle of two layers": (
        {}, lambda n: n.startswith("mid_block.attentions."),
        "has 2 layers and no attention in its mid block",
    ),
    "a middle of another depth": (
        {"down_block_types": [CROSS_DOWN] * 4, "up_block_types": [CROSS_UP] * 4,
         "transformer_layers_per_block": [1, 1, 1, 2]},
        lambda n: n.startswith("mid_block.attentions.0.transformer_blocks.1."),
        "has a mid block of depth 1 after a down block of depth 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNDESCRIBED)
def test_unets_that_no_config_describes(place: Path, whole: dict[str, Path], kind: str) -> None:
    changes, lacks, words = UNDESCRIBED[kind]
    state = {n: t for n, t in unet("sd1", changes).state_dict().items() if not lacks(n)}
    path = place / "undescribed.safetensors"
    ldm.save_tensors(path, state, {})
    assert open_checkpoint(path).value_layers, "the bytes world can still inspect and prune it"
    with pytest.raises(CheckpointError) as caught:
        load(path, whole["sd1"])
    assert words in str(caught.value)
    assert "which no config of diffusers describes" in str(caught.value)


def test_a_folder_whose_config_does_not_fit_its_weights(place: Path, whole: dict[str, Path]) -> None:
    path = place / "misfit"
    unet("sd1", {}).save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"mid_block_type": None}))
    with pytest.raises(
        CheckpointError, match=r"unet\.mid_block\..* has no place in a model of this kind"
    ):
        load(path, whole["sd1"])


# ------------------------------------------------------------------------------------- biases


@pytest.fixture(scope="module")
def biased(place: Path, whole: dict[str, Path]) -> Path:
    """A single file whose value layers have biases, large enough to matter."""
    tensors = load_file(whole["sd1"])
    generator = torch.Generator().manual_seed(4)
    for name, tensor in list(tensors.items()):
        if name.endswith(".attn2.to_v.weight"):
            bias = torch.randn(tensor.shape[0], generator=generator)
            tensors[name.removesuffix("weight") + "bias"] = bias
    path = place / "biased.safetensors"
    ldm.save_tensors(path, tensors, told_heads(sample_size=SIDE))
    return path


def test_biases_are_part_of_the_model(biased: Path) -> None:
    model = load(biased)
    stored = load_file(biased)
    bias = stored[f"{ldm.UNET_PREFIX}middle_block.1.transformer_blocks.0.attn2.to_v.bias"]
    layer = model.value_layers[MID]
    assert torch.equal(layer.bias, bias)
    # What a neuron's activation is taken from: the layer's output, bias and all.
    text = model.encode(["a cat"])
    (found,) = activations(model, open_checkpoint(biased).select(MID), text)[MID]
    by_hand = (text[0] @ layer.weight.T + bias).abs().mean(dim=0)
    torch.testing.assert_close(found.float(), by_hand, atol=1e-5, rtol=0)


def test_a_neuron_that_is_off_has_no_bias_either(place: Path, biased: Path) -> None:
    """The search's masks, the file with rows and biases zeroed, and zeroing by hand are the same."""
    off = frozenset(
        Neuron(layer.name, row)
        for layer in open_checkpoint(biased).select("down+mid")
        for row in range(0, 32, 2)
    )
    engine = Engine(load(biased), timestep=961)
    out = place / "biased-clean.safetensors"
    chosen = ",".join(f"{neuron.layer}:{neuron.row}" for neuron in sorted(off))
    assert run("apply", biased, "--neurons", chosen, "-o", out).exit_code == 0
    removed = check_inputs(open_checkpoint(biased), open_checkpoint(out), (), None)
    assert set(removed) == off

    by_hand = load(biased)
    weight_alone = load(biased)
    with torch.no_grad():
        for neuron in off:
            by_hand.value_layers[neuron.layer].weight[neuron.row] = 0
            by_hand.value_layers[neuron.layer].bias[neuron.row] = 0
            weight_alone.value_layers[neuron.layer].weight[neuron.row] = 0
    (prompt,) = engine.prompts(["a cat"])
    (masked,) = engine.evaluate([Sample(prompt, off, 0)])
    noise = engine.noise(0)[None]
    wanted, without = (
        noise_difference(model.predict_noise(noise, 961, prompt.text[None]), noise)[0]
        for model in (by_hand, weight_alone)
    )
    torch.testing.assert_close(masked, wanted, atol=1e-5, rtol=0)
    assert (masked - without).abs().max() > 1e-3, "the biases must matter to this test"

    # As `verify` compares the two files.
    pruned = Engine(load(out), timestep=961)
    (twin,) = pruned.prompts(["a cat"])
    assert torch.equal(
        pruned.differences(twin, [0])[0],
        noise_difference(by_hand.predict_noise(noise, 961, prompt.text[None]), noise)[0],
    )
    expected, baseline = engine.probe(prompt, off, [0, 1])
    assert engine.compare(baseline, pruned, twin, [0, 1]) == pytest.approx(expected, abs=1e-4)
