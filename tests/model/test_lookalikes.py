"""Models of diffusers whose tensors look like those that are read: none is taken for one of them."""

import inspect
import json
import re
import struct
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tiny import run

from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.errors import CheckpointError
from nemo_prune.model.live import describe

# Those that are read: here, their class. Of Transformer2DModel only what PixArt was saved as.
OWN = {
    "UNet2DConditionModel": "sd1",
    "PixArtTransformer2DModel": "pixart",
    "Transformer2DModel": "pixart",
}
_PATCHES = {"in_channels": 4, "sample_size": 32, "patch_size": 2, "num_layers": 1}
_ALPHA = _PATCHES | {"out_channels": 8, "caption_channels": 64, "norm_type": "ada_norm_single"}
SIZES: dict[str, dict[str, Any]] = {
    "PixArtTransformer2DModel": {"num_layers": 1, "caption_channels": 64},
    "Transformer2DModel": {**_ALPHA, "cross_attention_dim": 1408},
    "LatteTransformer3DModel": {**_ALPHA, "cross_attention_dim": 1408},
    "LuminaNextDiT2DModel": {"num_layers": 1, "num_kv_heads": 32},
    "HunyuanDiT2DModel": {**_PATCHES, "num_layers": 2},
    "HiDreamImageTransformer2DModel": {
        "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 1, "num_single_layers": 1,
        "caption_channels": [8, 8], "llama_layers": [0], "max_resolution": (16, 16),
    },
    "DreamLiteTransformer2DModel": {"in_channels": 32, "num_layers": 1, "cross_attention_dim": 64},
    "TransformerTemporalModel": {"in_channels": 32, "num_layers": 1},
    "WanVACETransformer3DModel": {"vace_layers": [0], "num_layers": 1},
    "AudioLDM2UNet2DConditionModel": {
        "in_channels": 8, "out_channels": 8, "cross_attention_dim": ((None, 768, 1024),) * 4,
        "block_out_channels": (32, 64, 96, 96), "attention_head_dim": 8, "norm_num_groups": 8,
    },
}  # fmt: skip
_FEW = ("num_layers", "num_single_layers", "num_refiner_layers", "num_hidden_layers", "depth")


DENOISERS = [
    name
    for name in sorted(dir(diffusers))
    if re.search(r"(Transformer|UNet|DiT|UVit)\w*Model|UNet$|PriorTr|Transformer$", name)
    and "Control" not in name
]


def made(name: str) -> Any:
    """A model of this class without weights; skipped where it cannot be made of few parts."""
    cls = getattr(diffusers, name)
    few = {key: 1 for key in inspect.signature(cls.__init__).parameters if key in _FEW}
    try:
        with torch.device("meta"):
            return cls(**SIZES.get(name, few))
    except (TypeError, ValueError, RuntimeError) as error:
        pytest.skip(str(error))


def header_of(model: Any, path: Path) -> Path:
    """A safetensors file with the tensors of a model, all of them a hole in the disk."""
    header, end = {}, 0
    for name, tensor in model.state_dict().items():
        start, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "F16", "shape": [*tensor.shape], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of classes that diffusers means to move
@pytest.mark.parametrize("name", DENOISERS)
def test_none_is_taken_for_a_family_by_its_tensors(name: str, tmp_path: Path) -> None:
    model = made(name)
    lone = header_of(model, tmp_path / "lone" / "m.safetensors")
    component = tmp_path / "folder" / ("unet" if "UNet" in name else "transformer")
    header_of(model, component / "diffusion_pytorch_model.safetensors")
    (component / "config.json").write_text(json.dumps({"_class_name": name}))
    listed = tmp_path / "listed" / "transformer"
    header_of(model, listed / "diffusion_pytorch_model.safetensors")
    index = {"_class_name": "MyPipeline", "transformer": ["diffusers", name]}
    (listed.parent / "model_index.json").write_text(json.dumps(index))
    weights = component / "diffusion_pytorch_model.safetensors"
    for path in (lone, component.parent, component, weights, listed.parent):
        if family := OWN.get(name):
            assert open_checkpoint(path).family == family
        else:
            with pytest.raises(CheckpointError):
                open_checkpoint(path)
    if name not in OWN:
        with pytest.raises(CheckpointError):
            describe(model)


def tiny_allegro(place: Path) -> Path:
    allegro: Any = diffusers.AllegroTransformer3DModel
    model = allegro(
        num_attention_heads=2, attention_head_dim=12, num_layers=1, cross_attention_dim=24,
        caption_channels=24, sample_height=8, sample_width=8, sample_frames=4,
    )  # fmt: skip
    model.save_pretrained(place / "transformer")
    index = {"_class_name": "AllegroPipeline", "transformer": ["diffusers", type(model).__name__]}
    (place / "model_index.json").write_text(json.dumps(index))
    return place


def test_allegro_is_not_pruned_as_pixart(tmp_path: Path) -> None:
    folder = tiny_allegro(tmp_path / "allegro")
    lone = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    for arguments in (
        ["inspect", folder],
        ["inspect", lone],
        ["apply", folder, "--neurons", "0:3", "-o", tmp_path / "out"],
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "is a video model, a family the method was never tried on" in result.stderr
    (folder / "transformer" / "config.json").unlink()
    assert "is a video model" in run("inspect", folder).stderr
    (folder / "model_index.json").unlink()
    assert "is a transformer with cross-attention: of these PixArt" in run("inspect", folder).stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("CogView3PlusTransformer2DModel", "is a CogView model: its attention joins text and picture"),
        ("CogView4Transformer2DModel", "is a CogView model: its attention joins text and picture"),
        ("CogVideoXTransformer3DModel", "is a video model"),
        ("LuminaNextDiT2DModel", "is a Lumina model, a transformer which the method was never tried on"),
        ("UVit2DModel", "is an aMUSEd model, which predicts the tokens of a picture and no noise"),
    ],
)
def test_they_are_called_what_they_are(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(header_of(made(name), tmp_path / "m" / "m.safetensors"))
