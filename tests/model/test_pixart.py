"""PixArt: a transformer with text-only cross-attention and a T5, from a folder that diffusers saved."""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import run, tiny_configs

import nemo_prune
from nemo_prune.checkpoint.apply import write_model
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.errors import CheckpointError, OptionError
from nemo_prune.model import hub, loading
from nemo_prune.options import Options
from nemo_prune.report.pictures import draw
from nemo_prune.scoring.calibration_file import fingerprint
from nemo_prune.scoring.engine import Engine, Job, Sample
from nemo_prune.scoring.masks import masked_layers, masks_of
from nemo_prune.scoring.opening import open_engine, trajectory_schedule
from nemo_prune.search.protocol import Attribute

CPU = torch.device("cpu")
SIDE = 32
LETTERS = [chr(n) for n in range(ord("a"), ord("z") + 1)]


def t5_tokenizer() -> Any:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in LETTERS] + [("▁cat", -4.0), ("▁dog", -4.0)]
    return hub.T5Tokenizer(vocab=pieces, extra_ids=0)


def pixart(place: Path, kind: str) -> Path:
    """A tiny random PixArt; "told its size" is an alpha with the further conditions of 1024 pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = diffusers.PixArtTransformer2DModel(
            num_attention_heads=2, attention_head_dim=24, num_layers=2, cross_attention_dim=48,
            caption_channels=24, sample_size=SIDE, use_additional_conditions=kind == "told its size",
        )  # fmt: skip
        # As made, its text's path begins at zero: nothing would depend on a prompt.
        for parameter in transformer.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        t5 = hub.T5EncoderModel(hub.T5Config(
            vocab_size=64, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3,
            feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False,
        ))  # fmt: skip
        vae = hub.AutoencoderKL.from_config(tiny_configs("sd1")["vae"])
    schedule = diffusers.DPMSolverMultistepScheduler(beta_end=0.02, beta_schedule="linear")
    made = hub.PixArtSigmaPipeline if kind == "sigma" else hub.PixArtAlphaPipeline
    made(
        tokenizer=t5_tokenizer(), text_encoder=t5, vae=vae, transformer=transformer, scheduler=schedule
    ).save_pretrained(place / kind)  # fmt: skip
    return place / kind


@pytest.fixture(scope="module", params=["alpha", "sigma"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pixart(tmp_path_factory.mktemp("pixart"), request.param)


@pytest.fixture(scope="module")
def sigma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pixart(tmp_path_factory.mktemp("sigma"), "sigma")


def load(path: Path, **options: Any) -> loading.LoadedModel:
    return loading.load_model(open_checkpoint(path), device=CPU, dtype=torch.float32, **options)


def noise(model: loading.LoadedModel) -> torch.Tensor:
    return torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(3))


def some_neurons(path: Path) -> list[Neuron]:
    layers = open_checkpoint(path).value_layers
    return [Neuron(layer.name, row) for layer in layers for row in (0, 5, 7)]


def test_a_live_transformer_is_masked(folder: Path) -> None:
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    layer = pipe.transformer.get_submodule("transformer_blocks.0.attn2.to_v")
    text = torch.ones(1, 3, layer.in_features)
    whole = layer(text)
    for given in (pipe, pipe.transformer):
        with nemo_prune.masked(given, [(0, 5)]):
            assert not layer(text)[..., 5].any()
            assert torch.equal(layer(text)[..., :5], whole[..., :5])
        assert torch.equal(layer(text), whole)


@pytest.mark.parametrize("kind", ["alpha", "told its size", "sigma"])
def test_it_predicts_what_its_pipeline_predicts(kind: str, tmp_path: Path) -> None:
    folder = pixart(tmp_path, kind)
    model = load(folder)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    prompts = ["A cat ", "two dogs and a cat"]
    length = 300 if folder.name == "sigma" else 120
    wanted, mask, *_ = pipeline.encode_prompt(
        prompts, do_classifier_free_guidance=False, max_sequence_length=length
    )
    text, ours = model.encode_pooled(prompts)
    assert ours is not None
    assert torch.equal(ours, mask.float())
    torch.testing.assert_close(text, wanted * mask[..., None], atol=1e-5, rtol=0)
    latents = noise(model)
    size = torch.tensor([[8.0 * SIDE, 8.0 * SIDE]] * 2)
    conditions = {"resolution": size, "aspect_ratio": size[:, :1] / size[:, 1:]}
    if kind != "told its size":
        conditions = {"resolution": None, "aspect_ratio": None}
    with torch.no_grad():
        theirs = pipeline.transformer(
            latents, encoder_hidden_states=wanted, encoder_attention_mask=mask,
            timestep=torch.tensor([961, 961]), added_cond_kwargs=conditions, return_dict=False,
        )[0].chunk(2, dim=1)[0]  # fmt: skip
    found = model.predict_noise(latents, 961, text, ours)
    torch.testing.assert_close(found, theirs, atol=1e-4, rtol=0)
    assert not torch.allclose(found[0], model.predict_noise(latents, 961, text.flip(0), ours.flip(0))[0])
    assert model.max_tokens == length
    assert model.latent_shape == (4, SIDE, SIDE)


def test_masks_are_what_a_pruned_folder_computes_and_diffusers_draws_with_it(
    folder: Path, tmp_path: Path
) -> None:
    neurons, out = some_neurons(folder), tmp_path / folder.name
    write_model(open_checkpoint(folder), neurons, out, {})
    model, pruned = load(folder), load(out)
    text, mask = model.encode_pooled(["a cat", "a dog"])
    latents = noise(model)
    with masked_layers(model.value_layers, masks_of(model, [frozenset(neurons)] * 2)):
        wanted = model.predict_noise(latents, 961, text, mask)
    found = pruned.predict_noise(latents, 961, text, mask)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert not torch.allclose(found, model.predict_noise(latents, 961, text, mask), atol=1e-4)
    theirs = diffusers.DiffusionPipeline.from_pretrained(out, local_files_only=True)
    for neuron in neurons:
        layer = theirs.transformer.get_submodule(neuron.layer)
        assert not layer.weight[neuron.row].any()
        assert not layer.bias[neuron.row].any()
    ours = loading.load_pipeline(open_checkpoint(out), device=CPU, dtype=torch.float32)
    assert type(ours) is type(theirs)
    (row,) = draw(ours, ["a cat"], [0, 1], steps=2)
    assert row[0].shape == (8 * SIDE, 8 * SIDE, 3)
    assert (row[0] != row[1]).any()


def test_it_is_searched_in_all_its_layers(sigma: Path) -> None:
    checkpoint = open_checkpoint(sigma)
    assert checkpoint.family == "pixart"
    names = [layer.name for layer in checkpoint.value_layers]
    assert names == [f"transformer_blocks.{n}.attn2.to_v" for n in range(2)]
    assert [layer.name for layer in checkpoint.select("auto")] == names
    with pytest.raises(OptionError, match=r"no value layer matches 'down\+mid'"):
        checkpoint.select("down+mid")
    engine: Engine = open_engine(checkpoint, Options(device="cpu"))
    assert fingerprint(engine.model) == fingerprint(load(sigma))
    (prompt,) = engine.prompts(["a cat"])
    job = Job(prompt, iter(()), engine.baseline(prompt, [0, 1]), layers=names)  # type: ignore[arg-type]
    found = engine.attribution(job, Attribute((0, 1)))
    assert {neuron.layer for neuron in found} == set(names)
    assert any(value != 0 for value in found.values())
    (end,) = engine.trajectories(
        [Sample(prompt, frozenset(), 0)], trajectory_schedule(engine.model, "trajectory")
    )
    assert end.isfinite().all()
    manifest = nemo_prune.localize(
        sigma, ["a cat"], calibration_prompts=[f"{a} {b}" for a in LETTERS[:6] for b in LETTERS[:5]],
        tau=-0.2, gate=-0.1, seeds=2, confirm="none", layers=names[0], device="cpu", cache=False,
    )  # fmt: skip
    assert manifest.prompts[0].samples > 10


def test_what_does_not_belong_to_a_pixart_is_refused(sigma: Path, tmp_path: Path) -> None:
    def changed(name: str) -> Path:
        return Path(shutil.copytree(sigma, tmp_path / name))

    def refused(path: Path, error: type[Exception] = CheckpointError, **options: Any) -> str:
        with pytest.raises(error) as caught:
            load(path, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    alone = tmp_path / "alone.safetensors"
    weights = load_file(sigma / "transformer" / "diffusion_pytorch_model.safetensors")
    save_file(weights, alone)
    assert "configs are not bundled; give its whole diffusers folder" in refused(alone, OptionError)
    other = changed("allegro")
    config = other / "transformer" / "config.json"
    told = json.loads(config.read_text()) | {"_class_name": "AllegroTransformer3DModel"}
    config.write_text(json.dumps(told))
    assert "is a video model" in refused(other)
    mute = changed("mute")
    shutil.rmtree(mute / "text_encoder")
    assert "holds no text encoder (T5)" in refused(mute)
    assert load(mute, text_encoder=(sigma,)).max_tokens == 300
    for part in (sigma / "text_encoder", sigma / "text_encoder" / "model.safetensors"):
        with pytest.raises(CheckpointError, match="the folder that holds text_encoder/ and tokenizer/"):
            load(mute, text_encoder=(part,))
    wordless = changed("wordless")
    (wordless / "tokenizer" / "tokenizer.json").unlink()
    assert "holds neither tokenizer.json nor spiece.model" in refused(wordless)
    (wordless / "tokenizer" / "spiece.model").write_bytes(b"never read")
    assert "tokenizer: " in refused(wordless)
    out = tmp_path / "patch.safetensors"
    neuron = ["--neurons", "0:3", "--lora", out]
    result = run("apply", sigma, *neuron)
    assert result.exit_code == 2
    assert "is a pixart model, for which no LoRA is written" in result.stderr
    assert not out.exists()


def test_kolors_is_pruned_by_a_list_of_neurons_and_not_searched(tmp_path: Path) -> None:
    """SDXL's UNet with ChatGLM, which nothing here can tokenize for."""
    unet = tiny_configs("sdxl")["unet"] | {
        "encoder_hid_dim": 96, "encoder_hid_dim_type": "text_proj", "sample_size": SIDE,
        "projection_class_embeddings_input_dim": 6 * 256 + 96,
    }  # fmt: skip
    root = tmp_path / "kolors"
    hub.UNet2DConditionModel.from_config(unet).save_pretrained(root / "unet")
    for place, told in (
        ("model_index.json", {"_class_name": "KolorsPipeline"}),
        ("text_encoder/config.json", {"model_type": "chatglm", "architectures": ["ChatGLMModel"]}),
        ("scheduler/scheduler_config.json", {"_class_name": "EulerDiscreteScheduler",
                                             "prediction_type": "epsilon"}),
    ):  # fmt: skip
        (root / place).parent.mkdir(exist_ok=True)
        (root / place).write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match=r"is Kolors' text encoder \(ChatGLM3\), whose tokenizer"):
        load(root)
    for path in (root / "unet", root / "unet" / "diffusion_pytorch_model.safetensors"):
        for given in ((), (root,)):  # it would not help
            with pytest.raises(CheckpointError, match=r": is a UNet of Kolors, whose text encoder"):
                load(path, text_encoder=given)
    out = tmp_path / "clean"
    assert run("apply", root, "--neurons", "0:3", "-o", out).exit_code == 0
    theirs = hub.UNet2DConditionModel.from_pretrained(out / "unet", local_files_only=True)
    layer = open_checkpoint(out).value_layers[0]
    assert not theirs.get_submodule(layer.name).weight[3].any()
