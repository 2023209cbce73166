"""Loading offline: the same model as diffusers loads, or one clear error."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import rawfiles
import torch
from safetensors.torch import load_file
from tiny import (
    config_folder,
    ldm,
    open_clip,
    same_weights,
    tiny_configs,
    tiny_tensors,
    told_heads,
    write_tiny,
)

from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.errors import CheckpointError, OptionError
from nemo_prune.model import configs, devices, hub, inference, loading, tokenizer, weights
from nemo_prune.model.prediction import Prediction, Told, measure
from nemo_prune.model.schedule import ddim_timestep
from nemo_prune.scoring.calibration_file import fingerprint
from nemo_prune.scoring.engine import Engine, _NotFiniteError
from nemo_prune.scoring.similarity import noise_difference

CPU = torch.device("cpu")
FAMILIES = ("sd1", "sd2", "sdxl")
PROMPTS = ["a photo of a cat", "Hello! 12 dogs", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def files(folder: Path) -> dict[str, Path]:
    return {family: write_tiny(folder / f"{family}.safetensors", family) for family in FAMILIES}


@pytest.fixture(autouse=True)
def _few_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a model predicts is measured on a few pixels: on all of SDXL's that takes seconds."""

    def measured(model: loading.LoadedModel, told: Told) -> Prediction:
        blank = None if model.blank is None else model.blank[..., :16, :16]
        shape = (model.latent_shape[0], 16, 16)
        return measure(replace(model, latent_shape=shape, blank=blank), told)

    monkeypatch.setattr(loading, "measure", measured)


def load(path: Path, **options: Any) -> loading.LoadedModel:
    options = {"device": CPU, "dtype": torch.float32} | options
    return loading.load_model(recognize(path), **options)


def reference(path: Path, family: str, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """What diffusers makes of the file when it is handed the true configs."""
    kind = hub.StableDiffusionXLPipeline if family == "sdxl" else hub.StableDiffusionPipeline
    options = {"add_watermarker": False} if family == "sdxl" else {}
    described = folder / f"{family}-config"
    if not described.exists():
        config_folder(described, family)
    pipeline = kind.from_single_file(
        str(path), config=str(described), local_files_only=True, torch_dtype=dtype, **options
    )
    pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_equal_diffusers_bit_for_bit(family: str, files: dict[str, Path], folder: Path) -> None:
    model = load(files[family])
    pipeline = reference(files[family], family, folder)

    text, pooled = model.encode_pooled(PROMPTS)
    expected = pipeline.encode_prompt(PROMPTS, device=CPU, num_images_per_prompt=1,
                                      do_classifier_free_guidance=False)  # fmt: skip
    assert torch.equal(text, expected[0])
    assert torch.equal(model.encode(PROMPTS), expected[0])
    added = None
    if family == "sdxl":
        assert pooled is not None
        assert torch.equal(pooled, expected[2])
        ids = torch.tensor([[1024, 1024, 0, 0, 1024, 1024]] * len(PROMPTS), dtype=torch.float32)
        added = {"text_embeds": pooled, "time_ids": ids}

    noise = torch.randn(len(PROMPTS), 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = pipeline.unet(
            noise.contiguous(memory_format=torch.channels_last),
            961,
            text,
            added_cond_kwargs=added,
        ).sample
    assert torch.equal(model.predict_noise(noise, 961, text, pooled), theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_pipeline_draws_the_pictures_that_diffusers_draws(
    family: str, files: dict[str, Path], folder: Path
) -> None:
    ours = loading.load_pipeline(recognize(files[family]), device=CPU, dtype=torch.float32)
    theirs = reference(files[family], family, folder)
    assert same_weights(ours.vae, theirs.vae)

    def draw(pipeline: Any) -> Any:
        return pipeline(
            "a photo of a cat!",
            height=64,
            width=64,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(1),
            output_type="np",
        ).images

    assert abs(draw(ours) - draw(theirs)).max() <= (1e-4 if family == "sdxl" else 1e-5)


def test_half_precision_file_loads_as_any_dtype(folder: Path) -> None:
    path = write_tiny(folder / "half.safetensors", dtype=torch.float16)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        model = load(path, dtype=dtype)
        pipeline = reference(path, "sd1", folder, dtype)
        assert same_weights(model.unet, pipeline.unet)
        assert same_weights(model.text_encoders[0].model, pipeline.text_encoder)
        assert model.encode(["a"]).dtype == dtype


@pytest.mark.parametrize("family", FAMILIES)
def test_ema_twins_are_not_what_is_loaded(family: str, folder: Path, files: dict[str, Path]) -> None:
    path = write_tiny(folder / "ema.safetensors", family, ema=True)
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if name.startswith("model_ema.diffusion_model"):
            tensors[name] = torch.ones_like(tensor)
    ldm.save_tensors(path, tensors, told_heads(family))
    assert recognize(path).ema
    assert same_weights(load(path).unet, load(files[family]).unet)


def test_loaded_model_describes_itself(files: dict[str, Path]) -> None:
    model = load(files["sd1"])
    assert model.latent_shape == (4, 64, 64)
    assert model.prediction_type == "epsilon"
    assert model.alphas_cumprod.shape == (1000,)
    assert len(model.value_layers) == 16
    for name, layer in model.value_layers.items():
        assert model.unet.get_submodule(name) is layer
        assert isinstance(layer, torch.nn.Linear)
    assert not model.unet.training
    assert not any(weight.requires_grad for weight in model.unet.parameters())
    assert model.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


def test_token_counts_include_start_and_end(files: dict[str, Path]) -> None:
    model = load(files["sd1"])
    assert model.token_counts(["a photo of a cat", "", "a " * 75, "a " * 100]) == [7, 2, 77, 102]
    assert model.token_counts([]) == []
    assert model.encode([]).shape == (0, 77, 64)
    assert torch.equal(model.encode(["a " * 100]), model.encode(["a " * 75]))


def test_many_prompts_are_encoded_in_order(files: dict[str, Path]) -> None:
    model = load(files["sd1"])
    prompts = [f"number {n}" for n in range(70)]
    together = model.encode(prompts)
    assert together.shape == (70, 77, 64)
    assert torch.allclose(together[69], model.encode(prompts[69:])[0], atol=1e-5)


def test_tokenizer_is_clip() -> None:
    clip = tokenizer.load_tokenizer()
    assert len(clip) == 49_408
    ids = clip("a photo of a cat", padding="max_length")["input_ids"]
    assert ids == [49406, 320, 1125, 539, 320, 2368, *[49407] * 71]
    assert tokenizer.load_tokenizer("!")("a cat", padding="max_length")["input_ids"][-1] == 0


def test_v_prediction_is_converted_to_noise(files: dict[str, Path], folder: Path) -> None:
    settings = config_folder(folder / "v-config", "sd2")
    path = settings / "scheduler" / "scheduler_config.json"
    schedule = json.loads(path.read_text()) | {"prediction_type": "v_prediction"}
    path.write_text(json.dumps(schedule))
    epsilon, v = load(files["sd2"]), load(files["sd2"], config=settings)
    assert v.prediction_type == "v_prediction"
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    text = v.encode(["a cat"])
    alpha = v.alphas_cumprod[500]
    raw = epsilon.predict_noise(latents, 500, text)
    expected = alpha.sqrt() * raw + (1 - alpha).sqrt() * latents
    assert torch.allclose(v.predict_noise(latents, 500, text), expected)


def test_sd2_that_predicts_v_draws_larger_pictures(folder: Path) -> None:
    path = write_tiny(folder / "v.safetensors", "sd2", metadata={"modelspec.prediction_type": "v"})
    pipeline = loading.load_pipeline(recognize(path), device=CPU, dtype=torch.float32)
    assert pipeline.unet.config["sample_size"] * pipeline.vae_scale_factor == 768
    assert load(path).latent_shape == (4, 96, 96)


@pytest.mark.parametrize("family", FAMILIES)
def test_inpainting_sees_a_picture_masked_everywhere(family: str, folder: Path) -> None:
    small = told_heads(family, sample_size=16)
    path = write_tiny(folder / "inpainting.safetensors", family, in_channels=9, metadata=small)
    model = load(path)
    assert model.latent_shape == (4, 16, 16)
    assert model.blank is not None
    assert model.blank.shape == (1, 5, 16, 16)
    assert model.blank[0, 0].min() == 1
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    text, pooled = model.encode_pooled(["a cat", ""])
    added = None
    if family == "sdxl":
        ids = torch.tensor([[128, 128, 0, 0, 128, 128]] * 2, dtype=torch.float32)
        added = {"text_embeds": pooled, "time_ids": ids}
    inputs = torch.cat([latents, model.blank.expand(2, -1, -1, -1)], dim=1)
    with torch.no_grad():
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        wanted = model.unet(inputs, 961, text, added_cond_kwargs=added).sample
    assert torch.equal(model.predict_noise(latents, 961, text, pooled), wanted)
    with pytest.raises(CheckpointError, match="an inpainting model draws only into a given picture"):
        loading.load_pipeline(recognize(path), device=CPU, dtype=torch.float32)


def test_an_inpainting_unet_alone_says_what_it_needs_a_vae_for(tmp_path: Path) -> None:
    entries = rawfiles.unet(rawfiles.SD1, "diffusers", in_channels=9)
    path = rawfiles.write(tmp_path / "u.safetensors", entries)
    loader = loading._Loader(recognize(path), CPU, torch.float32, None)
    with pytest.raises(CheckpointError, match="masked picture that it is scored with; give the diff"):
        loader.blank((4, 8, 8), 5)


def test_a_vae_that_overflows_in_half_precision(folder: Path) -> None:
    """It sees the masked picture in float32, whatever the UNet computes in."""
    tensors = tiny_tensors(in_channels=9)
    tensors["first_stage_model.encoder.conv_in.bias"][0] = 1e5
    path = folder / "hot.safetensors"
    small = told_heads(sample_size=16)
    ldm.save_tensors(path, tensors, small)
    wanted = load(path).blank
    assert wanted is not None
    assert wanted.isfinite().all()
    for dtype in (torch.float16, torch.bfloat16):
        model = load(path, dtype=dtype)
        assert model.blank is not None
        assert model.blank.dtype == torch.float32
        assert torch.equal(model.blank, wanted)
    noise = model.predict_noise(torch.zeros(1, 4, 16, 16), 961, model.encode(["a cat"]))
    assert noise.dtype == torch.bfloat16
    engine = Engine(model, timestep=961, seed=0)
    engine.note = lambda _: None

    def work(exact: loading.LoadedModel) -> torch.Tensor:
        if exact.dtype != torch.float32:
            raise _NotFiniteError
        return exact.predict_noise(torch.zeros(1, 4, 16, 16), 961, model.encode(["a cat"]).float())

    noise = engine._with_fp32(work)
    assert noise.dtype == torch.float32
    assert noise.isfinite().all()


PUBLISHED_SIZES = {
    "sd1": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd2": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_bundled_configs_give_the_published_numbers_of_weights(family: str) -> None:
    bundled = configs.data_folder("configs", family)
    for component, size in PUBLISHED_SIZES[family].items():
        config = configs.read_config(bundled, component)
        model = make(component, config)
        assert sum(weight.numel() for weight in model.parameters()) == size, component


def make(component: str, config: dict[str, Any]) -> torch.nn.Module:
    def build() -> Any:
        if component == "unet":
            return hub.UNet2DConditionModel.from_config(config)
        if component == "vae":
            return hub.AutoencoderKL.from_config(config)
        second = component == "text_encoder_2"
        kind = hub.CLIPTextModelWithProjection if second else hub.CLIPTextModel
        return kind(hub.CLIPTextConfig.from_dict(config))

    return weights.build(build, Path("a config"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", ["tiny", "full"])
def test_configs_are_inferred_from_shapes(family: str, size: str) -> None:
    """Shapes of one size, starting from the other size's config, give back the first config."""
    bundled = configs.data_folder("configs", family)
    small = tiny_configs(family)
    for component in small:
        full = configs.read_config(bundled, component)
        true, base = (small[component], full) if size == "tiny" else (full, small[component])
        shapes = weights.shapes_of(make(component, true).state_dict())
        shapes = {name.removeprefix("text_model."): shape for name, shape in shapes.items()}
        if component == "unet":
            found = inference.infer_unet(base, shapes)
            assert found.pop("transformer_layers_per_block") == true.get(
                "transformer_layers_per_block", [1] * 4
            )
            assert found.pop("use_linear_projection") == true.get("use_linear_projection", False)
            true = {k: v for k, v in true.items() if k in found}
        elif component == "vae":
            found = inference.infer_vae(base, shapes)
        else:
            found = inference.infer_text(base, shapes)
            if "text_projection.weight" not in shapes:
                # Without a projection its width shows nowhere and matters nowhere.
                found["projection_dim"] = true["projection_dim"]
        assert found == true


@pytest.mark.parametrize(("layers", "projection"), [(24, True), (24, False), (23, False)])
def test_sd2_uses_23_layers_of_open_clip_however_many_the_file_holds(
    monkeypatch: pytest.MonkeyPatch, layers: int, projection: bool
) -> None:
    config = configs.read_config(configs.data_folder("configs", "sd2"), "text_encoder")
    state = make("text_encoder", config).state_dict()
    tensors = open_clip(state, "cond_stage_model.model.", layers)
    if not projection:
        del tensors["cond_stage_model.model.text_projection"]
    monkeypatch.setattr(weights, "read_tensors", lambda *_: tensors)
    found = weights.read_text_encoder(Path("a file"), "cond_stage_model.", unused_layer=True)
    shapes = weights.shapes_of(found)
    assert inference.infer_text(config, shapes)["num_hidden_layers"] == 23
    assert shapes.keys() - {"text_projection.weight"} == state.keys()


def test_metadata_tells_what_shapes_cannot(folder: Path) -> None:
    told = {"unet": {"attention_head_dim": 1, "sample_size": 32}}
    path = write_tiny(folder / "told.safetensors", metadata={configs.METADATA_KEY: json.dumps(told)})
    model = load(path)
    assert model.latent_shape == (4, 32, 32)
    assert model.unet.config["attention_head_dim"] == 1
    assert model.unet.mid_block.attentions[0].transformer_blocks[0].attn2.heads == 1


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"unet": 3}'])
def test_unreadable_metadata_is_refused(folder: Path, text: str) -> None:
    path = write_tiny(folder / "bad.safetensors", metadata={configs.METADATA_KEY: text})
    with pytest.raises(CheckpointError, match="is not a JSON object of configs"):
        load(path)


def test_config_folder_overrides_inference(files: dict[str, Path], folder: Path) -> None:
    settings = config_folder(folder / "override")
    path = settings / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attention_head_dim": 2}))
    assert load(files["sd1"], config=settings).unet.config["attention_head_dim"] == 2

    path.write_text(json.dumps(json.loads(path.read_text()) | {"block_out_channels": [32] * 4}))
    with pytest.raises(
        CheckpointError,
        match=r"has shape \[.*\] where its config asks for \[.*; give the right configs with config",
    ):
        load(files["sd1"], config=settings)

    path.write_text("{")
    with pytest.raises(OptionError, match="cannot be read as JSON"):
        load(files["sd1"], config=settings)
    path.unlink()
    with pytest.raises(OptionError, match=r"no unet/config\.json"):
        load(files["sd1"], config=settings)
    with pytest.raises(OptionError, match="names no diffusers config folder"):
        load(files["sd1"], config=folder / "nowhere")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_each_part_of_a_config_folder_is_used(files: dict[str, Path], tmp_path: Path) -> None:
    """Its tokenizer, text encoder and schedule as well as its UNet, for a file and for a folder."""
    settings = config_folder(tmp_path / "config")
    whole = tmp_path / "model"
    reference(files["sd1"], "sd1", tmp_path).save_pretrained(whole)
    vocabulary = json.loads((settings / "tokenizer" / "vocab.json").read_text())
    swapped = {"cat</w>": vocabulary["dog</w>"], "dog</w>": vocabulary["cat</w>"]}
    edit(settings / "tokenizer" / "vocab.json", **swapped)
    edit(settings / "scheduler" / "scheduler_config.json", beta_end=0.02)
    for model in (files["sd1"], whole):
        plain = loading.load_model(open_checkpoint(model), device=CPU, dtype=torch.float32)
        changed = loading.load_model(
            open_checkpoint(model), device=CPU, dtype=torch.float32, config=settings
        )
        assert torch.equal(changed.encode(["a cat"]), plain.encode(["a dog"]))
        assert not torch.equal(changed.encode(["a cat"]), plain.encode(["a cat"]))
        assert changed.alphas_cumprod[999] < plain.alphas_cumprod[999]
        assert fingerprint(changed) != fingerprint(plain), "another cache entry"
    edit(settings / "text_encoder" / "config.json", hidden_act="gelu")
    edit(settings / "unet" / "config.json", sample_size=24, attention_head_dim=4)
    again = load(files["sd1"], config=settings)
    assert again.text_encoders[0].model.config.hidden_act == "gelu"
    assert not torch.equal(again.encode(["a cat"]), changed.encode(["a cat"]))
    assert again.latent_shape == (4, 24, 24)
    assert fingerprint(again) != fingerprint(changed)


def test_a_config_folder_without_tokenizer_leaves_it(files: dict[str, Path], tmp_path: Path) -> None:
    settings = config_folder(tmp_path / "config")
    shutil.rmtree(settings / "tokenizer")
    wanted = load(files["sd1"]).encode(["a cat"])
    assert torch.equal(load(files["sd1"], config=settings).encode(["a cat"]), wanted)


def test_tokenizers_that_cannot_be_used(files: dict[str, Path], tmp_path: Path) -> None:
    settings = config_folder(tmp_path / "config")
    place = settings / "tokenizer"

    def refused(error: type[Exception]) -> str:
        with pytest.raises(error) as caught:
            load(files["sd1"], config=settings)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    vocabulary = json.loads((place / "vocab.json").read_text())
    edit(place / "vocab.json", **{"a new word</w>": len(vocabulary)})
    words = f"{place}: knows 49409 tokens where the text encoder of {files['sd1']} knows 49408"
    assert words in refused(CheckpointError)
    (place / "vocab.json").write_text("{")
    assert f"{place}: cannot be read as CLIP's tokenizer" in refused(CheckpointError)
    (place / "vocab.json").unlink()
    assert f"{place}: holds neither vocab.json nor tokenizer.json" in refused(OptionError)


@pytest.mark.parametrize(
    ("dropped", "named"),
    [
        ("model.diffusion_model.out.2.bias", r"unet\.conv_out\.bias"),
        ("model.diffusion_model.time_embed.0.weight", r"unet\.time_embedding\.linear_1\.weight"),
        ("model.diffusion_model.middle_block.1.norm.weight", r"unet\.mid_block\.attentions\.0"),
        ("model.diffusion_model.input_blocks.3.0.op.bias", r"unet\.down_blocks\.0\.downsamplers"),
        (
            "cond_stage_model.transformer.text_model.final_layer_norm.weight",
            r"text_encoder\..*final_layer_norm\.weight",
        ),
        (
            "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
            r"text_encoder\..*token_embedding\.weight",
        ),
    ],
)
def test_missing_weight_is_named(folder: Path, dropped: str, named: str) -> None:
    path = write_tiny(folder / "dropped.safetensors", drop=[dropped])
    with pytest.raises(CheckpointError, match=named):
        load(path)


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("text of another width", CheckpointError, r"gives 128 channels where the UNet takes 64"),
        ("pickle", CheckpointError, r"text_encoder: holds its weights as a pickle only"),
        ("no such block", CheckpointError, r"its config describes no model that loads"),
        ("a tensor too many", CheckpointError, r"unet\.mid_block\..* has no place in a model"),
        ("a list as config", OptionError, r"unet/config\.json: holds no JSON object"),
    ],
)
def test_what_does_not_fit_is_one_line(
    tmp_path: Path, kind: str, error: type[Exception], words: str
) -> None:
    tensors, metadata, options = tiny_tensors(vae=False), told_heads(), {}
    if kind == "text of another width":
        config = tiny_configs("sdxl")["text_encoder_2"]
        wide = hub.CLIPTextModel(hub.CLIPTextConfig.from_dict(config)).state_dict()
        tensors |= ldm.text_encoder_to_ldm(wide)
    elif kind == "pickle":
        (tmp_path / "text_encoder").mkdir()
        (tmp_path / "text_encoder" / "pytorch_model.bin").write_bytes(b"never opened")
        options["text_encoder"] = (tmp_path,)
    elif kind == "no such block":
        metadata = told_heads(down_block_types=["UnheardOf"] * 4)
    elif kind == "a tensor too many":
        tensors["model.diffusion_model.middle_block.1.extra.weight"] = torch.zeros(2)
    else:
        options["config"] = config_folder(tmp_path / "config")
        (tmp_path / "config" / "unet" / "config.json").write_text("[]")
    path = tmp_path / "model.safetensors"
    ldm.save_tensors(path, tensors, metadata)
    with pytest.raises(error, match=words) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", "model.", ""])
def test_unet_alone_is_read_under_every_prefix(
    folder: Path, files: dict[str, Path], prefix: str
) -> None:
    tensors = {
        name.replace(ldm.UNET_PREFIX, prefix): tensor
        for name, tensor in tiny_tensors(text_encoder=False, vae=False).items()
    }
    path = folder / "alone.safetensors"
    ldm.save_tensors(path, tensors, told_heads())
    found = weights.read_unet(recognize(path))
    expected = load(files["sd1"]).unet.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    with pytest.raises(
        CheckpointError,
        match="holds no text encoder, which prompts need; give one with text_encoder PATH",
    ):
        load(path)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", ""])
@pytest.mark.parametrize(
    "name", ["camera_embed.0.weight", "time_embed.4.bias", "input_blocks.0.1.weight", "null_text"]
)
def test_what_a_unet_would_leave_out_is_refused_wherever_it_lies(
    tmp_path: Path, prefix: str, name: str
) -> None:
    """At its root too, as MVDream's camera, which diffusers' conversion passes over."""
    tensors = {n.replace(ldm.UNET_PREFIX, prefix): t for n, t in tiny_tensors(vae=False).items()}
    path = tmp_path / "model.safetensors"
    ldm.save_tensors(path, tensors | {f"{prefix}{name}": torch.ones(2, 2)}, told_heads())
    with pytest.raises(CheckpointError, match=rf": unet\.{name} has no place in a model of this kind"):
        load(path)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
def test_what_is_no_part_of_the_unet_is_left_alone(
    tmp_path: Path, files: dict[str, Path], prefix: str
) -> None:
    """Markers, a schedule, other parts of the model and averages of it beside a UNet of any prefix."""
    tensors = {n.replace(ldm.UNET_PREFIX, prefix): t for n, t in tiny_tensors().items()}
    others = ("first_stage_model.x.weight", "cond_stage_model.x.weight", "model_ema.decay", "betas")
    more = {name: torch.ones(2) for name in (*others, f"{prefix}scaled_fp8")}
    path = tmp_path / "model.safetensors"
    ldm.save_tensors(path, tensors | more, told_heads())
    assert same_weights(load(path).unet, load(files["sd1"]).unet)


def test_unet_alone_is_read_under_diffusers_names(folder: Path, files: dict[str, Path]) -> None:
    expected = load(files["sd1"]).unet.state_dict()
    path = folder / "diffusers.safetensors"
    ldm.save_tensors(path, {**expected, "v_pred": torch.zeros(1)}, told_heads())
    found = weights.read_unet(recognize(path))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("family", FAMILIES)
def test_zero_terminal_snr_is_read_from_its_marker(
    family: str, folder: Path, files: dict[str, Path]
) -> None:
    """The noise is converted from v by the rescaled schedule, down to no signal at all."""
    tensors = load_file(files[family]) | {"v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)}
    path = folder / "ztsnr.safetensors"
    ldm.save_tensors(path, tensors, told_heads(family))
    model, plain = load(path), load(files[family])
    assert model.prediction_type == "v_prediction"
    assert model.alphas_cumprod[999] < 1e-6
    assert plain.alphas_cumprod[999] > 1e-3
    schedule = plain.scheduler_config | {"rescale_betas_zero_snr": True}
    alphas = hub.DDIMScheduler.from_config(schedule).alphas_cumprod
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    text, pooled = plain.encode_pooled(["a cat"])
    for timestep in (500, 961, 999):
        v = plain.predict_noise(latents, timestep, text, pooled)
        wanted = alphas[timestep].sqrt() * v + (1 - alphas[timestep]).sqrt() * latents
        found = model.predict_noise(latents, timestep, text, pooled)
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
        assert noise_difference(found, latents).isfinite().all()


def test_missing_components_are_named(folder: Path) -> None:
    path = write_tiny(folder / "mute.safetensors", text_encoder=False)
    with pytest.raises(
        CheckpointError,
        match="holds no text encoder, which prompts need; give one with text_encoder PATH",
    ):
        load(path)
    tensors = {f"x.{n}" if n.startswith("cond_") else n: t for n, t in tiny_tensors().items()}
    ldm.save_tensors(folder / "elsewhere.safetensors", tensors, told_heads())
    with pytest.raises(CheckpointError, match=r"under a name that is read, only 'x\.cond_stage_model\."):
        load(folder / "elsewhere.safetensors")
    path = write_tiny(folder / "blind.safetensors", vae=False)
    assert load(path).latent_shape == (4, 64, 64)
    with pytest.raises(CheckpointError, match="holds no VAE, which drawing pictures needs"):
        loading.load_pipeline(recognize(path), device=CPU, dtype=torch.float32)


def test_text_encoder_without_its_usual_prefix_loads(folder: Path, files: dict[str, Path]) -> None:
    tensors = {
        name.replace("transformer.text_model.", "transformer."): tensor
        for name, tensor in tiny_tensors().items()
    }
    path = folder / "prefix.safetensors"
    ldm.save_tensors(path, tensors, told_heads())
    ours, theirs = load(path).text_encoders[0].model, load(files["sd1"]).text_encoders[0].model
    assert same_weights(ours, theirs)


def test_convolutions_lie_as_each_device_computes_them_fastest() -> None:
    assert devices.memory_format(CPU) == torch.channels_last
    assert devices.memory_format(torch.device("mps")) == torch.channels_last
    assert devices.memory_format(torch.device("cuda")) == torch.contiguous_format


def test_device_and_precision() -> None:
    assert devices.pick_device("cpu") == CPU
    assert devices.pick_device("auto").type in ("cpu", "cuda", "mps")
    assert devices.pick_dtype(CPU, "auto") == torch.float32
    assert devices.pick_dtype(torch.device("cuda"), "auto") == torch.float16
    assert devices.pick_dtype(CPU, "bf16") == torch.bfloat16
    with pytest.raises(OptionError, match="precision fp8: unknown; use auto, fp32, fp16 or bf16"):
        devices.pick_dtype(CPU, "fp8")
    with pytest.raises(OptionError, match="device tpu: unknown; use auto, cpu, cuda or mps"):
        devices.pick_device("tpu")


def test_devices_with_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.pick_device("cpu:0") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.pick_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(OptionError, match="device cuda:2: not available here, where 2 are"):
        devices.pick_device("cuda:2")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_device_is_refused() -> None:
    with pytest.raises(OptionError, match="device cuda: not available here"):
        devices.pick_device("cuda:0")
    with pytest.raises(OptionError, match="device cuda: not available here"):
        devices.pick_device("cuda")


def test_timesteps_are_those_of_the_papers_code(files: dict[str, Path]) -> None:
    schedule = load(files["sd1"]).scheduler_config
    assert ddim_timestep(schedule) == 961
    assert ddim_timestep(schedule, index=0) == 981
    with pytest.raises(OptionError, match="a schedule of 50 steps has no step 50"):
        ddim_timestep(schedule, steps=50, index=50)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are Unicode there")
def test_a_name_that_is_not_utf_8_is_called_so(tmp_path: Path) -> None:
    path = tmp_path / b"m\xff.safetensors".decode(errors="surrogateescape")
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"has a name that is not UTF-8.*; rename it"):
        weights.read_tensors(path)
