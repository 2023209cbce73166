"""Every family, layout and dtype: loaded as diffusers loads it, and pruned alike."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from layouts import DEPTH, DTYPES, SIDE, described, folder, recast, single_file
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import ldm, open_clip, same_weights, tiny_configs, tiny_tensors, told_heads

from nemo_prune.checkpoint.inspect import inspection
from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.cli.main import main
from nemo_prune.errors import CheckpointError, OptionError
from nemo_prune.model import hub, loading, weights
from nemo_prune.model.configs import data_folder, read_config

CPU = torch.device("cpu")
FAMILIES = ("sd1", "sd2", "sdxl")
PROCESS = r"was trained on another noise process \(flow matching, EDM, consistency\), for which"
PROMPTS = ["a photo of a cat", "Hello! 12 dogs", ""]
# So many that a threshold of 0 makes the prompt of each random model memorized.
SEEDS = {"sd1": 2, "sd2": 4, "sdxl": 6}
# One layer of few neurons, so that the search is short.
LAYERS = {"sd1": "down_blocks.0.attentions.0*", "sd2": "down_blocks.0.attentions.0*",
          "sdxl": "down_blocks.1.attentions.0.transformer_blocks.0*"}  # fmt: skip


def load(path: Path, **options: Any) -> loading.LoadedModel:
    return loading.load_model(
        open_checkpoint(path), **({"device": CPU, "dtype": torch.float32} | options)
    )


def noise(model: loading.LoadedModel, prompts: list[str] = PROMPTS) -> torch.Tensor:
    """What the model predicts for fixed latents and prompts."""
    latents = torch.randn(len(prompts), 4, 16, 16, generator=torch.Generator().manual_seed(0))
    return model.predict_noise(latents, 961, *model.encode_pooled(prompts))


def from_pretrained(root: Path, family: str, **options: Any) -> Any:
    kind = hub.StableDiffusionXLPipeline if family == "sdxl" else hub.StableDiffusionPipeline
    if family == "sdxl":
        options["add_watermarker"] = False
    pipeline = kind.from_pretrained(root, local_files_only=True, dtype=torch.float32, **options)
    pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layouts")


@pytest.fixture(scope="module")
def single(place: Path) -> dict[str, Path]:
    return {family: single_file(place / f"{family}.safetensors", family) for family in FAMILIES}


@pytest.fixture(scope="module")
def models(single: dict[str, Path]) -> dict[str, loading.LoadedModel]:
    """What all layouts of a family must load as; nobody changes it."""
    return {family: load(path) for family, path in single.items()}


@pytest.fixture(scope="module")
def folders(place: Path) -> dict[str, Path]:
    return {family: folder(place / f"{family}-folder", family) for family in FAMILIES}


# ---------------------------------------------------------------- folders load as in diffusers


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_loads_bit_equal_to_diffusers(
    family: str, folders: dict[str, Path], models: dict[str, loading.LoadedModel]
) -> None:
    model, theirs = load(folders[family]), from_pretrained(folders[family], family)
    assert same_weights(model.unet, theirs.unet)
    text, pooled = model.encode_pooled(PROMPTS)
    expected = theirs.encode_prompt(PROMPTS, device=CPU, num_images_per_prompt=1,
                                    do_classifier_free_guidance=False)  # fmt: skip
    assert torch.equal(text, expected[0])
    added = None
    if family == "sdxl":
        assert torch.equal(pooled, expected[2])
        side = 8 * SIDE
        ids = torch.tensor([[side, side, 0, 0, side, side]] * len(PROMPTS), dtype=torch.float32)
        added = {"text_embeds": pooled, "time_ids": ids}
    latents = torch.randn(len(PROMPTS), 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = theirs.unet(
            latents.contiguous(memory_format=torch.channels_last), 961, text, added_cond_kwargs=added
        ).sample
    assert torch.equal(noise(model), wanted)
    assert torch.equal(noise(models[family]), wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_draws_what_diffusers_draws(family: str, folders: dict[str, Path]) -> None:
    ours = loading.load_pipeline(open_checkpoint(folders[family]), device=CPU, dtype=torch.float32)
    theirs = from_pretrained(folders[family], family)
    theirs.scheduler = hub.DDIMScheduler.from_pretrained(folders[family], subfolder="scheduler")
    assert same_weights(ours.vae, theirs.vae)

    def draw(pipeline: Any) -> Any:
        generator = torch.Generator().manual_seed(1)
        return pipeline("a cat", height=64, width=64, num_inference_steps=2, generator=generator,
                        output_type="np").images  # fmt: skip

    # How the weights lie in memory rounds SDXL's pooled text otherwise, in the last digit.
    assert abs(draw(ours) - draw(theirs)).max() <= (1e-4 if family == "sdxl" else 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_shards_load_as_diffusers_loads_them(
    place: Path, models: dict[str, loading.LoadedModel], family: str
) -> None:
    root = folder(place / f"{family}-shards", family, shards=True)
    for component in ("unet", "text_encoder", "vae"):
        assert len(list((root / component).glob("*-of-*.safetensors"))) > 1, component
    assert torch.equal(noise(load(root)), noise(models[family]))
    shutil.rmtree(root)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_with_one_variant_alone_loads(place: Path, family: str) -> None:
    root = folder(place / f"{family}-variant", family, dtype="F16", variant="fp16")
    assert (root / "unet" / "diffusion_pytorch_model.fp16.safetensors").exists()
    theirs = from_pretrained(root, family, variant="fp16")
    model = load(root)
    assert same_weights(model.unet, theirs.unet)
    assert same_weights(model.text_encoders[0].model, theirs.text_encoder)
    if family == "sdxl":
        assert same_weights(model.text_encoders[1].model, theirs.text_encoder_2)


@pytest.mark.parametrize("family", FAMILIES)
def test_of_several_variants_the_usual_one_is_loaded(
    place: Path, folders: dict[str, Path], models: dict[str, loading.LoadedModel], family: str
) -> None:
    root = shutil.copytree(folders[family], place / f"{family}-variants")
    weights = root / "unet" / "diffusion_pytorch_model.safetensors"
    for variant in ("fp16", "non_ema", "a"):
        other = {name: torch.ones_like(t) for name, t in load_file(weights).items()}
        save_file(other, weights.with_suffix(f".{variant}.safetensors"))
    assert torch.equal(noise(load(root)), noise(models[family]))
    shutil.rmtree(root)


def test_an_old_folders_vae_loads_as_in_diffusers(place: Path, folders: dict[str, Path]) -> None:
    root = shutil.copytree(folders["sd1"], place / "old-vae")
    path = root / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in load_file(path).items():
        for new, former in old.items():
            name = name.replace(f".{new}.", f".{former}.")
        tensors[name] = tensor
    assert any(".proj_attn." in name for name in tensors)
    save_file(tensors, path)
    ours = loading.load_pipeline(open_checkpoint(root), device=CPU, dtype=torch.float32)
    assert same_weights(ours.vae, from_pretrained(root, "sd1").vae)


@pytest.mark.parametrize("family", FAMILIES)
def test_inpainting_folders(place: Path, family: str) -> None:
    root = folder(place / f"{family}-inpainting", family, in_channels=9)
    model = load(root)
    assert model.blank is not None
    assert model.blank.shape == (1, 5, 16, 16)
    assert noise(model).shape == (3, 4, 16, 16)
    # The same inputs by hand: a mask of ones, and the grey picture as the VAE sees it.
    theirs = from_pretrained(root, family)
    with torch.no_grad():
        grey = theirs.vae.encode(torch.zeros(1, 3, 128, 128)).latent_dist.mode()
    assert torch.equal(model.blank[:, 1:], grey * theirs.vae.config.scaling_factor)
    assert torch.equal(model.blank[:, :1], torch.ones(1, 1, 16, 16))


def test_a_folders_own_words_on_its_schedule(place: Path, folders: dict[str, Path]) -> None:
    root = shutil.copytree(folders["sd2"], place / "v-zero-snr")
    path = root / "scheduler" / "scheduler_config.json"
    own = {
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    model = load(root)
    assert model.prediction_type == "v_prediction"
    assert model.alphas_cumprod[999] < 1e-6
    theirs = hub.DDIMScheduler.from_pretrained(root, subfolder="scheduler")
    assert torch.equal(model.alphas_cumprod, theirs.alphas_cumprod)
    assert model.latent_shape == (4, SIDE, SIDE), "the folder's sample size, not a guess from v"


# ----------------------------------------------------------------- dtypes load as what they are


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_single_files_of_every_dtype_are_the_same_model(
    place: Path, models: dict[str, loading.LoadedModel], family: str, dtype: str
) -> None:
    path = single_file(place / "dtype.safetensors", family, dtype, vae=False)
    assert same_weights(load(path).unet, models[family].unet)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_folders_of_every_dtype_are_the_same_model(
    place: Path,
    folders: dict[str, Path],
    models: dict[str, loading.LoadedModel],
    family: str,
    dtype: str,
) -> None:
    root = recast(shutil.copytree(folders[family], place / f"folder-{family}-{dtype}"), dtype)
    assert same_weights(load(root).unet, models[family].unet)
    shutil.rmtree(root)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("names", ["LDM", "diffusers"])
@pytest.mark.parametrize("family", FAMILIES)
def test_unets_alone_of_every_dtype_are_the_same_model(
    place: Path, single: dict[str, Path], folders: dict[str, Path], family: str, names: str, dtype: str
) -> None:
    wanted = load_file(folders[family] / "unet" / "diffusion_pytorch_model.safetensors")
    stored = wanted
    if names == "LDM":
        whole = load_file(single[family]).items()
        stored = {name: tensor for name, tensor in whole if name.startswith(ldm.UNET_PREFIX)}
    path = place / "alone.safetensors"
    ldm.save_tensors(path, {name: t.to(DTYPES[dtype]) for name, t in stored.items()}, {})
    found = weights.read_unet(open_checkpoint(path))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name].float(), wanted[name]) for name in found)


@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_dtypes_in_one_file(
    place: Path, single: dict[str, Path], models: dict[str, loading.LoadedModel], family: str
) -> None:
    tensors = load_file(single[family])
    kinds = list(DTYPES.values())
    mixed = {
        name: t.to(kinds[n % len(kinds)]) if t.is_floating_point() else t
        for n, (name, t) in enumerate(sorted(tensors.items()))
    }
    path = place / "mixed.safetensors"
    ldm.save_tensors(path, mixed, described(family))
    assert same_weights(load(path).unet, models[family].unet)


@pytest.mark.parametrize("ending", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_scaled_fp8_is_multiplied_out(
    place: Path,
    single: dict[str, Path],
    models: dict[str, loading.LoadedModel],
    family: str,
    ending: str,
    per_row: bool,
) -> None:
    tensors = load_file(single[family])
    scaled = dict(tensors)
    for name, tensor in tensors.items():
        if name.startswith(ldm.UNET_PREFIX) and name.endswith(".weight") and tensor.ndim > 1:
            stem = name.removesuffix("weight")
            scaled[name] = (tensor / 2).to(torch.float8_e4m3fn)
            rows = (tensor.shape[0],) if per_row else ()
            scaled[stem + ending] = torch.full(rows, 2.0)
            scaled[stem + "scale_input"] = torch.tensor(7.0)
    scaled["model.diffusion_model.scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    path = place / "scaled.safetensors"
    save_file(scaled, path, described(family))
    ours, theirs = load(path).unet.state_dict(), models[family].unet.state_dict()
    for name, wanted in theirs.items():
        # Halves of the smallest numbers do not fit in 8 bits.
        assert torch.allclose(ours[name], wanted, atol=2**-9, rtol=0), name


def in_scaled_fp8(path: Path, out: Path, prefix: str) -> Path:
    """The file with the matrices below `prefix` at half their size and a factor of 2 beside them."""
    scaled = dict(load_file(path))
    for name, tensor in list(scaled.items()):
        if name.startswith(prefix) and name.endswith(".weight") and tensor.ndim > 1:
            scaled[name] = (tensor / 2).to(torch.float8_e4m3fn)
            scaled[name.removesuffix("weight") + "scale_weight"] = torch.tensor(2.0)
    with safe_open(path, "pt") as file:
        save_file(scaled, out, metadata=file.metadata())
    return out


@pytest.mark.parametrize("kind", ["single file", "--text-encoder FILE", "folder", "OpenCLIP", "VAE"])
def test_scaled_fp8_is_multiplied_out_beside_the_unet_too(
    place: Path, single: dict[str, Path], folders: dict[str, Path], kind: str
) -> None:
    family = "sd2" if kind == "OpenCLIP" else "sd1"
    path, given = place / "scaled-text.safetensors", ()
    if kind == "VAE":
        in_scaled_fp8(single[family], path, "first_stage_model.")
    elif kind in ("single file", "OpenCLIP"):
        in_scaled_fp8(single[family], path, "cond_stage_model.")
    elif kind == "folder":
        path = shutil.copytree(folders[family], place / "scaled-folder")
        weights = path / "text_encoder" / "model.safetensors"
        in_scaled_fp8(folders[family] / "text_encoder" / "model.safetensors", weights, "")
    else:
        given = (in_scaled_fp8(folders[family] / "text_encoder" / "model.safetensors", path, ""),)
        path = single[family]

    def part(path: Path, *given: Path) -> dict[str, torch.Tensor]:
        if kind == "VAE":
            options: dict[str, Any] = {"device": CPU, "dtype": torch.float32}
            return loading.load_pipeline(open_checkpoint(path), **options).vae.state_dict()
        return load(path, text_encoder=given).text_encoders[0].model.state_dict()

    ours, theirs = part(path, *given), part(single[family])
    for name, wanted in theirs.items():
        assert torch.allclose(ours[name], wanted, atol=2**-9, rtol=0), name


# ------------------------------------------------------------------ UNets without text encoder


def text_encoder_sources(place: Path, family: str, single: Path, whole: Path) -> dict[str, list[Path]]:
    names = ["text_encoder", "text_encoder_2"][: 2 if family == "sdxl" else 1]
    sources = {
        "single file": [single],
        "pipeline": [whole],
        "folders": [whole / name for name in names],
        "files": [whole / name / "model.safetensors" for name in names],
        # The order does not matter: the widths tell.
        "reversed": [whole / name / "model.safetensors" for name in reversed(names)],
    }
    if family != "sd1":
        name = names[-1]
        tensors = load_file(whole / name / "model.safetensors")
        count = tiny_configs(family)[name]["num_hidden_layers"]
        path = place / f"{family}-openclip.safetensors"
        # SD2's encoder has no projection; OpenCLIP's file has one, and so one layer more than is used.
        renamed = open_clip(tensors, "", count + (family == "sd2"))
        save_file({name: tensor.clone().contiguous() for name, tensor in renamed.items()}, path)
        sources["openclip"] = [*sources["files"][:-1], path]
    return sources


@pytest.mark.parametrize("family", FAMILIES)
def test_a_unet_alone_takes_its_text_encoder_from_anywhere(
    place: Path,
    single: dict[str, Path],
    folders: dict[str, Path],
    models: dict[str, loading.LoadedModel],
    family: str,
) -> None:
    wanted = noise(models[family])
    unets = {
        "ldm": place / f"{family}-unet-ldm.safetensors",
        "diffusers": place / f"{family}-unet-diffusers.safetensors",
    }
    tensors = load_file(single[family])
    metadata = described(family)
    ldm.save_tensors(
        unets["ldm"], {n: t for n, t in tensors.items() if n.startswith(ldm.UNET_PREFIX)}, metadata
    )
    weights = load_file(folders[family] / "unet" / "diffusion_pytorch_model.safetensors")
    ldm.save_tensors(unets["diffusers"], weights, metadata)
    unets["folder"] = folders[family] / "unet"
    sources = text_encoder_sources(place, family, single[family], folders[family])
    for name, unet in unets.items():
        with pytest.raises(CheckpointError, match="text_encoder PATH"):
            load(unet)
        # How an encoder is read depends on the family alone, not on how its UNet is stored.
        kinds = sources if name == "ldm" else {"files"}
        for kind in kinds:
            found = noise(load(unet, text_encoder=tuple(sources[kind])))
            assert torch.equal(found, wanted), (name, kind)


def test_text_encoders_that_do_not_fit(
    place: Path, single: dict[str, Path], folders: dict[str, Path]
) -> None:
    def refused(model: str, *given: Path) -> str:
        with pytest.raises((OptionError, CheckpointError)) as caught:
            load(folders[model] / "unet", text_encoder=given)
        return str(caught.value)

    assert "SDXL takes two" in refused("sdxl", folders["sdxl"] / "text_encoder")
    assert "this model takes one" in refused("sd1", single["sd1"], single["sd1"])
    assert "holds no CLIP text encoder" in refused("sd1", folders["sd1"] / "vae")
    assert "holds no CLIP text encoder" in refused("sd1", single["sdxl"])
    assert "no such file" in refused("sd1", place / "nothing")
    alien = shutil.copytree(folders["sd1"] / "text_encoder", place / "alien")
    config = json.loads((alien / "config.json").read_text()) | {"model_type": "gpt2"}
    (alien / "config.json").write_text(json.dumps(config))
    assert "only CLIP's are known" in refused("sd1", alien)
    (alien / "model.safetensors").rename(alien / "pytorch_model.bin")
    assert "holds no CLIP" in refused("sd1", alien)


def test_a_text_encoder_of_a_foreign_kind_is_not_replaced(
    place: Path, single: dict[str, Path], folders: dict[str, Path]
) -> None:
    """Its denoiser was trained with that, so that scores with another would find nothing memorized."""
    clip = folders["sd1"] / "text_encoder"

    def refused(path: Path, *given: Path) -> str:
        with pytest.raises(CheckpointError) as caught:
            load(path, text_encoder=given)
        return str(caught.value)

    bert = shutil.copytree(folders["sd1"], place / "bert")
    (bert / "text_encoder" / "config.json").write_text('{"model_type": "bert"}')
    for path in (bert, bert / "unet", bert / "unet" / "diffusion_pytorch_model.safetensors"):
        assert "its own text encoder is of the kind 'bert'" in refused(path, clip)
    assert "only CLIP's are known" in refused(bert)
    # Latent diffusion's text-to-image, and a folder whose encoder was left out.
    for name, listed in (("bert", "LDMBertModel"), ("text_encoder", "ChineseCLIPTextModel")):
        shutil.rmtree(bert / "text_encoder", ignore_errors=True)
        (bert / "model_index.json").write_text(json.dumps({name: ["x", listed]}))
        assert f"its own text encoder is of the kind '{listed}'" in refused(bert, clip)
        message = refused(bert)
        assert f"its text encoder is of the kind '{listed}', and only CLIP's are known" in message
        assert "text_encoder PATH" not in message
    (bert / "model_index.json").write_text('{"text_encoder": ["x", "LongCLIPTextModel"]}')
    load(bert, text_encoder=(clip,))
    tensors = {n: t for n, t in load_file(single["sd1"]).items() if not n.startswith("cond_stage")}
    table = "cond_stage_model.transformer.embeddings.word_embeddings.weight"
    ldm.save_tensors(place / "b.safetensors", tensors | {table: torch.zeros(9, 8)}, described("sd1"))
    assert inspection(open_checkpoint(place / "b.safetensors"))["text_encoder_foreign"] == "bert"
    assert "its own text encoder is of the kind 'bert'" in refused(place / "b.safetensors", clip)


@pytest.mark.parametrize("kind", ["AutoencoderTiny", "AsymmetricAutoencoderKL"])
def test_a_vae_of_another_kind_is_named(place: Path, folders: dict[str, Path], kind: str) -> None:
    folder = shutil.copytree(folders["sd1"], place / kind)
    config = json.loads((folder / "vae" / "config.json").read_text()) | {"_class_name": kind}
    (folder / "vae" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"its VAE is of the class '{kind}', and only an Autoenc"):
        loading.load_pipeline(open_checkpoint(folder), device=CPU, dtype=torch.float32)


# ------------------------------------------------------------------------- what is predicted


def test_who_has_the_word_on_what_is_predicted(place: Path, folders: dict[str, Path]) -> None:
    marked = place / "marked.safetensors"
    tensors = tiny_tensors("sd2", vae=False, layers=DEPTH) | {"v_pred": torch.zeros(1)}
    ldm.save_tensors(marked, tensors, described("sd2"))
    stated = place / "stated.safetensors"
    ldm.save_tensors(stated, tensors, described("sd2") | {"modelspec.prediction_type": "epsilon"})
    whole = folders["sd2"]
    assert load(marked).prediction_type == "v_prediction"
    assert load(stated).prediction_type == "epsilon", "modelspec before the marker"
    assert load(stated, prediction_type="v").prediction_type == "v_prediction", "the user before all"
    assert load(whole, prediction_type="v").prediction_type == "v_prediction"
    assert load(marked, config=whole).prediction_type == "epsilon", "--config overrides inference"
    assert load(marked, config=whole, prediction_type="v").prediction_type == "v_prediction"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"prediction_type": "sample"},
            "its scheduler says that it predicts 'sample'; the noise difference is defined for "
            "epsilon and v alone; give such a model, or, if its config is wrong, say which with",
        ),
        ({"prediction_type": "flow_prediction"}, PROCESS),
        ({"use_flow_sigmas": True}, PROCESS),
        ({"_class_name": "CMStochasticIterativeScheduler", "num_train_timesteps": 40}, PROCESS),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, PROCESS),
        ({"_class_name": "EDMDPMSolverMultistepScheduler"}, PROCESS),
        (
            {"beta_schedule": "unheard of"},
            "its scheduler's config describes no noise schedule that is known",
        ),
    ],
)
def test_schedules_that_are_refused(
    place: Path, folders: dict[str, Path], change: dict[str, str], words: str
) -> None:
    root = place / "schedule"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(folders["sd1"], root)
    path = root / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=words):
        load(root)


def test_models_on_another_noise_process_in_a_single_file(place: Path) -> None:
    path = place / "edm.safetensors"
    ldm.save_tensors(path, tiny_tensors("sd1", vae=False) | {"edm_mean": torch.zeros(1)}, told_heads())
    with pytest.raises(CheckpointError, match=PROCESS):
        load(path)


def test_unets_that_draw_from_a_picture_too(place: Path) -> None:
    path = single_file(place / "pix2pix.safetensors", in_channels=8)
    with pytest.raises(
        CheckpointError, match="its UNet takes 8 channels, so it draws from more than text"
    ):
        load(path)


# ------------------------------------------------------------------- full-size lists of tensors

NUMBERS = {"sd1": (7, 5760, 16, 12480), "sd2": (7, 5760, 16, 12480), "sdxl": (34, 40960, 70, 83200)}


def sparse(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """A full-size file in which only the header takes room on the disk; weights are F16 zeros."""
    header, position = {}, 0
    for name, tensor in tensors.items():
        end = position + 2 * tensor.numel()
        entry = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [position, end]}
        header[name], position = entry, end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + position)
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_full_size_files_are_recognized_by_their_true_lists_of_tensors(
    tmp_path: Path, family: str
) -> None:
    """diffusers' own model says which tensors there are, its own converter which LDM names it takes."""
    config = read_config(data_folder("configs", family), "unet")
    with torch.device("meta"):
        state = hub.UNet2DConditionModel.from_config(config).state_dict()
    renamed = ldm.unet_to_ldm(state)
    depth = {"layers_per_block": 2} | ({"addition_embed_type": "text_time"} if family == "sdxl" else {})
    back = hub.convert_ldm_unet_checkpoint(dict(renamed), depth)
    # It puts None where there is a weight without a bias.
    back = {n: t for n, t in back.items() if t is not None}
    assert {n: t.shape for n, t in back.items()} == {n: t.shape for n, t in state.items()}

    twins = {"model_ema." + n.removeprefix("model.").replace(".", ""): t for n, t in renamed.items()}
    (tmp_path / "unet").mkdir()
    files = {
        "unet-diffusers": sparse(tmp_path / "a.safetensors", state),
        "unet-ldm": sparse(tmp_path / "b.safetensors", renamed | twins),
        "unet-folder": sparse(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", state).parent,
    }
    own = {
        n.removesuffix(".weight"): t.shape for n, t in state.items() if n.endswith("attn2.to_v.weight")
    }
    for layout, path in files.items():
        found = open_checkpoint(path)
        assert (found.family, found.layout, found.ema) == (family, layout, layout == "unet-ldm")
        assert {v.name: (v.rows, v.columns) for v in found.value_layers} == own
        some, everything = found.select("down+mid"), found.select("all")
        assert NUMBERS[family] == (
            len(some), sum(v.rows for v in some), len(everything), sum(v.rows for v in everything),
        )  # fmt: skip


# ------------------------------------------------------------------------------ thinner UNets


@pytest.mark.parametrize("kind", ["ldm", "diffusers"])
def test_a_thinner_unet_is_inferred_from_its_shapes(place: Path, kind: str) -> None:
    """Fewer levels, one layer a block, other widths, no attention in the last block."""
    config = tiny_configs("sd1")["unet"] | {
        "block_out_channels": [32, 64, 64],
        "down_block_types": ["CrossAttnDownBlock2D"] * 2 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 2,
        "layers_per_block": 1,
    }
    torch.manual_seed(0)
    theirs = hub.UNet2DConditionModel.from_config(config).eval()
    state = theirs.state_dict()
    rest = {n: t for n, t in tiny_tensors("sd1").items() if not n.startswith(ldm.UNET_PREFIX)}
    path = place / f"thin-{kind}.safetensors"
    if kind == "ldm":
        ldm.save_tensors(path, ldm.unet_to_ldm(state) | rest, told_heads())
        encoder: tuple[Path, ...] = ()
    else:
        ldm.save_tensors(path, state, told_heads())
        encoder = (place / "thin-encoder.safetensors",)
        ldm.save_tensors(encoder[0], rest, {})
    model = load(path, text_encoder=encoder)
    assert same_weights(model.unet, theirs)
    assert len(model.value_layers) == 2 + 1 + 4
    theirs.to(memory_format=torch.channels_last)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    text = model.encode(["a cat"])
    with torch.no_grad():
        wanted = theirs(latents.contiguous(memory_format=torch.channels_last), 500, text).sample
    assert torch.equal(model.predict_noise(latents, 500, text), wanted)


# --------------------------------------------------------------- the same neurons in each layout


def prune(model: Path, out: Path, family: str = "sd1", *options: object) -> dict[str, Any]:
    """One search, and nothing after it: what a model computes is the same whatever asks it."""
    prompts = out.with_suffix(".txt")
    prompts.write_text("a photo of a red fox\n")
    arguments = ["prune", model, "--prompts", prompts, "-o", out, "--json", "--tau", "0", "--gate", "0",
                 "--seeds", SEEDS[family], "--device", "cpu", "--rounds", "0", "--confirm", "none",
                 "--layers", LAYERS[family], *options]  # fmt: skip
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code in (0, 1), result.output
    told: dict[str, Any] = json.loads(result.stdout)
    for entry in told["prompts"]:
        entry.pop("samples")
    return told


LAYOUTS = {
    **{dtype: {"dtype": dtype} for dtype in ("BF16", "F8_E5M2")},
    "EMA twin": {"ema": True},
    "folder": {},
    "shards": {"shards": True},
    "folder with unet_ema": {"ema": True},
    "UNet alone": {},
}


@pytest.fixture(scope="module")
def expected(place: Path, single: dict[str, Path]) -> dict[str, dict[str, Any]]:
    return {
        family: prune(single[family], place / f"{family}-clean.safetensors", family)
        for family in FAMILIES
    }


def apart(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The prompts of a result without the list that they came from, which each run has its own."""
    return [{key: value for key, value in one.items() if key != "file"} for one in found["prompts"]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_neurons_and_scores(
    place: Path, single: dict[str, Path], expected: dict[str, dict[str, Any]], layout: str
) -> None:
    wanted = expected["sd1"]
    options: list[object] = []
    assert wanted["neurons"], "a test that finds nothing tests nothing"
    if layout in DTYPES or layout == "EMA twin":
        model = single_file(place / f"same-{layout}.safetensors", **LAYOUTS[layout])
        out = place / f"same-{layout}-clean.safetensors"
    elif layout == "UNet alone":
        model, out = place / "same-unet.safetensors", place / "same-unet-clean.safetensors"
        alone = {n: t for n, t in load_file(single["sd1"]).items() if n.startswith(ldm.UNET_PREFIX)}
        ldm.save_tensors(model, alone, described("sd1"))
        options = ["--text-encoder", single["sd1"]]
    else:
        model = folder(place / f"same-{layout}", **LAYOUTS[layout])
        out = place / f"same-{layout}-clean"
        kept = {"--undo": place / f"same-{layout}-rows", "--manifest": place / f"same-{layout}.json"}
        options = [*(text for pair in kept.items() for text in pair)]
        options += ["--link"] if layout == "folder" else []
    told = prune(model, out, "sd1", *options)
    assert told["neurons"] == wanted["neurons"]
    assert apart(told) == apart(wanted)
    theirs = load(place / "sd1-clean.safetensors")
    ours = load(out, text_encoder=(single["sd1"],) if layout == "UNet alone" else ())
    assert same_weights(ours.unet, theirs.unet)
    assert torch.equal(noise(ours), noise(theirs))
    if out.is_dir():
        assert same_weights(from_pretrained(out, "sd1").unet, theirs.unet)
        back = place / f"same-{layout}-back"
        for arguments in (
            ["diff", model, out, "--expect", kept["--manifest"]],
            ["restore", out, "--undo", kept["--undo"], "-o", back],
            ["diff", model, back],
        ):
            result = CliRunner().invoke(main, [str(argument) for argument in arguments])
            assert result.exit_code == 0, result.output
    else:
        found = json.loads(CliRunner().invoke(main, ["inspect", str(out), "--json"]).stdout)
        zeroed = {v["name"]: v["zeroed"] for v in found["value_layers"] if v["zeroed"]}
        rows: dict[str, list[int]] = {}
        for neuron in wanted["neurons"]:
            rows.setdefault(neuron["layer"], []).append(neuron["row"])
        assert zeroed == rows


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_other_families_give_the_same_neurons_in_file_and_folder(
    place: Path, folders: dict[str, Path], expected: dict[str, dict[str, Any]], family: str
) -> None:
    out = place / f"{family}-clean-folder"
    told = prune(folders[family], out, family)
    assert told["neurons"], "a test that finds nothing tests nothing"
    assert told["neurons"] == expected[family]["neurons"]
    assert apart(told) == apart(expected[family])
    theirs = load(place / f"{family}-clean.safetensors")
    assert same_weights(from_pretrained(out, family).unet, theirs.unet)
