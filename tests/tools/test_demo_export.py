"""The demo's architecture through `tools/demo_export.py`: one file that loads as it was built."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from demo_export import export
from scratch_models import SCHEDULER_CONFIG, TEXT_CONFIG, UNET_CONFIG, VAE_CONFIG

from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.files.header import read_header
from nemo_prune.model import hub, loading
from nemo_prune.model.schedule import ddim_timestep
from nemo_prune.report.demo import write_config_folder

CPU = torch.device("cpu")
PROMPTS = ["Chelsea the Cat by Stefan van der Walt", "a red ball on grass", ""]
OTHER_UNET = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "norm_num_groups": 16,
}
OTHER_TEXT = TEXT_CONFIG | {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
OTHER_VAE = VAE_CONFIG | {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "sample_size": 32,
    "scaling_factor": 0.5,
}
ARCHITECTURES = {
    "demo": (TEXT_CONFIG, UNET_CONFIG, VAE_CONFIG),
    "other": (OTHER_TEXT, OTHER_UNET, OTHER_VAE),
}


@dataclass(frozen=True)
class Exported:
    """An architecture with random weights, its file, and diffusers' own reading of that file."""

    name: str
    models: tuple[Any, Any, Any]
    path: Path
    reference: Any


@pytest.fixture(scope="module", params=ARCHITECTURES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp(request.param)
    text, unet, vae = ARCHITECTURES[request.param]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        models = (
            hub.CLIPTextModel(hub.CLIPTextConfig(**text)),
            hub.UNet2DConditionModel(**unet),
            hub.AutoencoderKL(**vae),
        )
    path = folder / "model.safetensors"
    export(*models, path, {"modelspec.title": "A test", "modelspec.hash_sha256": "stale"})
    settings = write_config_folder(folder / "config", *models)
    pipeline = hub.StableDiffusionPipeline.from_single_file(
        str(path), config=str(settings), local_files_only=True, safety_checker=None
    )
    pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.set_progress_bar_config(disable=True)
    return Exported(request.param, models, path, pipeline)


def test_denoiser_and_text_encoder_equal_diffusers(exported: Exported) -> None:
    model = loading.load_model(recognize(exported.path), device=CPU, dtype=torch.float32)
    text = model.encode(PROMPTS)
    expected, _ = exported.reference.encode_prompt(
        PROMPTS, device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    assert torch.equal(text, expected)
    noise = torch.randn(len(PROMPTS), *model.latent_shape, generator=torch.Generator())
    with torch.no_grad():
        theirs = exported.reference.unet(
            noise.contiguous(memory_format=torch.channels_last), 961, text
        ).sample
    assert torch.equal(model.predict_noise(noise, 961, text), theirs)
    assert ddim_timestep(model.scheduler_config) == 961
    trained = hub.DDIMScheduler(**SCHEDULER_CONFIG).alphas_cumprod
    assert torch.equal(model.alphas_cumprod, trained)


def test_models_compute_what_they_computed_before(exported: Exported) -> None:
    """Against the models that were exported, so that a wrong setting in the folder shows too."""
    model = loading.load_model(recognize(exported.path), device=CPU, dtype=torch.float32)
    text, unet, _ = exported.models
    text, unet = text.eval(), unet.eval()
    for source in (text, unet):
        source.load_state_dict({k: t.half().float() for k, t in source.state_dict().items()})
    ids = model.text_encoders[0].tokenizer(PROMPTS, padding="max_length", return_tensors="pt")
    noise = torch.randn(len(PROMPTS), *model.latent_shape, generator=torch.Generator())
    with torch.no_grad():
        states = text(ids["input_ids"]).last_hidden_state
        predicted = unet(noise, 500, states).sample
    assert torch.allclose(model.encode(PROMPTS), states, atol=1e-6)
    assert torch.allclose(model.predict_noise(noise, 500, states), predicted, atol=1e-4)


def test_pipeline_draws_what_diffusers_draws_at_the_trained_size(exported: Exported) -> None:
    ours = loading.load_pipeline(recognize(exported.path), device=CPU, dtype=torch.float32)

    def draw(pipeline: Any) -> Any:
        noise = torch.Generator().manual_seed(1)
        return pipeline(PROMPTS[0], num_inference_steps=2, generator=noise, output_type="np").images

    pictures = draw(ours)
    side = 128 if exported.name == "demo" else 32
    assert pictures.shape == (1, side, side, 3)
    assert (pictures == draw(exported.reference)).all()


def test_file_describes_itself(exported: Exported) -> None:
    found = recognize(exported.path)
    assert (found.family, found.layout, found.prediction_type) == ("sd1", "ldm", "epsilon")
    assert found.text_encoder
    assert found.vae
    metadata = read_header(exported.path).metadata
    assert metadata["format"] == "pt"
    assert metadata["modelspec.title"] == "A test"
    raw = exported.path.read_bytes()
    data = raw[8 + int.from_bytes(raw[:8], "little") :]
    assert metadata["modelspec.hash_sha256"] == "0x" + hashlib.sha256(data).hexdigest()
    told = json.loads(metadata["nemo_prune.config"])
    assert told["unet"]["norm_num_groups"] == (8 if exported.name == "demo" else 16)
    if exported.name == "demo":
        names = [layer.name.split(".transformer_blocks")[0] for layer in found.select("down+mid")]
        down = [f"down_blocks.{block}.attentions.{layer}" for block in range(3) for layer in range(2)]
        assert names == [*down, "mid_block.attentions.0"]
        assert metadata["modelspec.resolution"] == "128x128"
        assert len(raw) <= 30_000_000


def test_equal_models_give_equal_bytes(exported: Exported, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    export(*exported.models, again, {"modelspec.title": "A test"})
    assert again.read_bytes() == exported.path.read_bytes()
