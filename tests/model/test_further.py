"""Denoisers beside the usual: LCM's, which are told the guidance scale, and instruct-pix2pix.

Folders that diffusers itself saved; scored, searched, drawn with, pruned, and loaded by diffusers again.
"""

import json
from pathlib import Path
from typing import Any

import diffusers
import ldm
import pytest
import torch
from layouts import SIDE
from safetensors.torch import load_file
from tiny import tiny_configs, told_heads

import nemo_prune
from nemo_prune.checkpoint.apply import write_model
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.errors import CheckpointError
from nemo_prune.model import hub, loading
from nemo_prune.model.configs import data_folder, read_config
from nemo_prune.model.tokenizer import load_tokenizer
from nemo_prune.options import Options
from nemo_prune.report.pictures import draw
from nemo_prune.scoring.engine import Engine, Sample
from nemo_prune.scoring.masks import masked_layers, masks_of
from nemo_prune.scoring.opening import open_engine, trajectory_schedule

CPU = torch.device("cpu")


def parts(changes: dict[str, Any]) -> dict[str, Any]:
    """The components of a tiny random Stable Diffusion 1 whose UNet has these changes."""
    configs = tiny_configs("sd1", layers=1, fewer=True)
    unet = configs["unet"] | {"sample_size": SIDE} | changes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {
            "unet": hub.UNet2DConditionModel.from_config(unet).eval(),
            "vae": hub.AutoencoderKL.from_config(configs["vae"]).eval(),
            "text_encoder": hub.CLIPTextModel(
                hub.CLIPTextConfig.from_dict(configs["text_encoder"])
            ).eval(),
            "tokenizer": load_tokenizer(),
            "safety_checker": None, "feature_extractor": None,
        }  # fmt: skip


def schedule(kind: Any) -> Any:
    config = read_config(data_folder("configs", "sd1"), "scheduler")
    return kind.from_config({k: v for k, v in config.items() if k != "_class_name"})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("further")
    plain = {"requires_safety_checker": False}
    lcm = diffusers.StableDiffusionPipeline(
        **parts({"time_cond_proj_dim": 64}), scheduler=schedule(hub.LCMScheduler), **plain
    )
    lcm.save_pretrained(place / "lcm")
    pix2pix = diffusers.StableDiffusionInstructPix2PixPipeline(
        **parts({"in_channels": 8}), scheduler=schedule(hub.DDIMScheduler), **plain
    )
    pix2pix.save_pretrained(place / "pix2pix")
    return {"lcm": place / "lcm", "pix2pix": place / "pix2pix"}


def load(path: Path) -> loading.LoadedModel:
    return loading.load_model(open_checkpoint(path), device=CPU, dtype=torch.float32)


def noise(model: loading.LoadedModel, count: int = 2) -> torch.Tensor:
    return torch.randn(count, *model.latent_shape, generator=torch.Generator().manual_seed(3))


def some_neurons(path: Path) -> list[Neuron]:
    layers = open_checkpoint(path).value_layers
    return [Neuron(layer.name, row) for layer in (layers[0], layers[-1]) for row in (0, 5)]


def test_an_lcm_is_told_the_scale_as_its_pipeline_tells_it(folders: dict[str, Path]) -> None:
    model = load(folders["lcm"])
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        folders["lcm"], safety_checker=None, local_files_only=True
    )
    latents, text = noise(model), model.encode(["a cat", "a dog"])
    told = pipeline.get_guidance_scale_embedding(torch.tensor([6.0, 6.0]), embedding_dim=64)
    with torch.no_grad():
        wanted = pipeline.unet(latents, 961, text, timestep_cond=told, return_dict=False)[0]
        untold = pipeline.unet(latents, 961, text, return_dict=False)[0]
    found = model.predict_noise(latents, 961, text)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert not torch.allclose(found, untold, atol=1e-3)
    # Guided by what it is told, so it is not guided by a second pass too.
    assert trajectory_schedule(model, "trajectory").guidance == 1
    assert trajectory_schedule(load(folders["pix2pix"]), "trajectory").guidance > 1


def test_an_lcm_in_a_single_file_keeps_what_it_is_told(folders: dict[str, Path], tmp_path: Path) -> None:
    """diffusers' own conversion leaves that weight out."""
    unet = load_file(folders["lcm"] / "unet" / "diffusion_pytorch_model.safetensors")
    guidance = unet.pop("time_embedding.cond_proj.weight")
    original = ldm.unet_to_ldm(unet) | {f"{ldm.UNET_PREFIX}time_embed.cond_proj.weight": guidance}
    ldm.save_tensors(tmp_path / "lcm.safetensors", original, told_heads(sample_size=SIDE))
    single = loading.load_model(
        open_checkpoint(tmp_path / "lcm.safetensors"), device=CPU, dtype=torch.float32,
        text_encoder=(folders["lcm"],),
    )  # fmt: skip
    model = load(folders["lcm"])
    latents, text = noise(model), model.encode(["a cat", "a dog"])
    found = single.predict_noise(latents, 961, text)
    torch.testing.assert_close(found, model.predict_noise(latents, 961, text), atol=1e-5, rtol=0)


def test_an_instruct_pix2pix_draws_from_text_with_no_picture(folders: dict[str, Path]) -> None:
    model = load(folders["pix2pix"])
    assert model.latent_shape == (4, SIDE, SIDE)
    pipeline = diffusers.StableDiffusionInstructPix2PixPipeline.from_pretrained(
        folders["pix2pix"], safety_checker=None, local_files_only=True
    )
    latents, text = noise(model), model.encode(["a cat", "a dog"])
    with torch.no_grad():
        padded = torch.cat([latents, torch.zeros_like(latents)], 1)
        wanted = pipeline.unet(padded, 961, text, return_dict=False)[0]
    torch.testing.assert_close(model.predict_noise(latents, 961, text), wanted, atol=1e-5, rtol=0)


def test_of_pictures_with_depth_the_colours_are_drawn(tmp_path: Path) -> None:
    """LDM3D, as diffusers draws it; other channels than a picture's three are none known."""
    configs = tiny_configs("sd1")
    made = parts({})
    made["vae"] = hub.AutoencoderKL.from_config(configs["vae"] | {"in_channels": 6, "out_channels": 6})
    root = tmp_path / "ldm3d"
    pipeline = diffusers.StableDiffusionLDM3DPipeline(
        **made, scheduler=schedule(hub.DDIMScheduler), image_encoder=None, requires_safety_checker=False
    )
    pipeline.save_pretrained(root)
    pipeline.set_progress_bar_config(disable=True)

    def drawn() -> list[Any]:
        return draw(
            loading.load_pipeline(open_checkpoint(root), device=CPU, dtype=torch.float32),
            ["a cat"], [3], steps=2,
        )[0]  # fmt: skip

    generator = [torch.Generator().manual_seed(3)]
    given = {"num_inference_steps": 2, "guidance_scale": 7.0, "output_type": "np"}
    wanted = pipeline(["a cat"], generator=generator, **given).rgb[0]
    assert abs(drawn()[0] / 255 - wanted).max() < 0.01
    with pytest.raises(
        CheckpointError, match=r"its VAE is one of pictures of 6 channels, and only one of"
    ):
        loading.load_vae(open_checkpoint(root), CPU)
    index = root / "model_index.json"
    index.write_text(
        json.dumps(json.loads(index.read_text()) | {"_class_name": "StableDiffusionPipeline"})
    )
    with pytest.raises(CheckpointError, match=r"ldm3d: its VAE is one of pictures of 6 channels"):
        drawn()


def test_as_many_channels_of_another_kind_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """A depth estimator takes eight channels too, and has no text to memorize by."""
    other = tmp_path / "marigold"
    for path in folders["pix2pix"].rglob("*"):
        target = other / path.relative_to(folders["pix2pix"])
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    index = other / "model_index.json"
    index.write_text(
        json.dumps(json.loads(index.read_text()) | {"_class_name": "MarigoldDepthPipeline"})
    )
    with pytest.raises(CheckpointError, match="takes 8 channels, so it draws from more than text"):
        load(other)


@pytest.mark.parametrize("kind", ["lcm", "pix2pix"])
def test_masks_are_what_a_pruned_folder_computes_and_diffusers_loads_it(
    folders: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    neurons = some_neurons(folders[kind])
    out = tmp_path / "clean"
    write_model(open_checkpoint(folders[kind]), neurons, out, {})
    model, pruned = load(folders[kind]), load(out)
    latents, text = noise(model), model.encode(["a cat", "a dog"])
    with masked_layers(model.value_layers, masks_of(model, [frozenset(neurons)] * 2)):
        wanted = model.predict_noise(latents, 961, text)
    found = pruned.predict_noise(latents, 961, text)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    assert not torch.allclose(found, model.predict_noise(latents, 961, text), atol=1e-5)
    theirs = diffusers.DiffusionPipeline.from_pretrained(out, local_files_only=True, safety_checker=None)
    for neuron in neurons:
        assert not theirs.unet.get_submodule(neuron.layer).weight[neuron.row].any()
    # It draws as itself, and from text alone as the report draws it.
    theirs.set_progress_bar_config(disable=True)
    given = {"image": torch.zeros(1, 4, SIDE, SIDE)} if kind == "pix2pix" else {}
    generator = torch.Generator().manual_seed(0)
    assert theirs("a cat", num_inference_steps=2, generator=generator, **given).images
    ours = loading.load_pipeline(open_checkpoint(out), device=CPU, dtype=torch.float32)
    (row,) = draw(ours, ["a cat"], [0, 1], steps=2)
    assert row[0].shape == row[1].shape
    assert (row[0] != row[1]).any()


@pytest.mark.parametrize("kind", ["lcm", "pix2pix"])
def test_they_are_scored_and_searched(folders: dict[str, Path], kind: str) -> None:
    engine: Engine = open_engine(open_checkpoint(folders[kind]), Options(device="cpu"))
    schedule = trajectory_schedule(engine.model, "trajectory")
    (prompt,) = engine.prompts(["a cat"])
    assert len(engine.baseline(prompt, [0, 1])) == 2
    (end,) = engine.trajectories([Sample(prompt, frozenset(), 0)], schedule)
    assert end.isfinite().all()
    found = nemo_prune.localize(
        folders[kind], ["a cat"], calibration_prompts=[f"caption {n}" for n in range(30)],
        tau=-0.2, gate=-0.1, seeds=2, confirm="none", layers="mid", device="cpu",
        cache=False, precision="fp32",
    )  # fmt: skip
    (record,) = found.prompts
    assert record.status == "not removable"  # no score of random weights lies below such a tau
    assert record.samples > 10
