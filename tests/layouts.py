"""One tiny random model in every layout and dtype that checkpoints come in."""

import json
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny import config_folder, ldm, small_unet, tiny_tensors
from torch import Tensor

from nemo_prune.model import hub
from nemo_prune.model.configs import TOKENIZER_FILES, data_folder

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
SIDE = 16  # of the latents
DEPTH = 1  # layers a block


def described(family: str) -> dict[str, str]:
    """The metadata of `single_file`."""
    return {"nemo_prune.config": json.dumps({"unet": small_unet(SIDE, family)})}


def exact(**options: Any) -> dict[str, Tensor]:
    """The tensors rounded to numbers that each of `DTYPES` holds exactly; options of `tiny_tensors`.

    One layer a block: how blocks of several are numbered is asked in test_loading and test_distilled.
    """
    whole = {"layers": DEPTH, "in_channels": 4} | options
    return dict(_rounded(tuple(sorted(whole.items()))))


@lru_cache(maxsize=4)
def _rounded(options: tuple[tuple[str, Any], ...]) -> dict[str, Tensor]:
    """Rounded once, since many tests start from the same tensors; nobody changes them."""

    def rounded(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return tensor.to(torch.float8_e5m2).to(torch.float8_e4m3fn).to(torch.float8_e5m2).float()

    return {name: rounded(tensor) for name, tensor in tiny_tensors(**dict(options)).items()}


def single_file(path: Path, family: str = "sd1", dtype: str = "F32", **options: Any) -> Path:
    """The model as an LDM single file; `options` are those of `tiny_tensors`."""
    tensors = {
        name: t.to(DTYPES[dtype]) if t.is_floating_point() else t
        for name, t in exact(family=family, **options).items()
    }
    ldm.save_tensors(path, tensors, described(family))
    return path


def pipeline_of(path: Path, family: str, in_channels: int = 4) -> Any:
    """What diffusers makes of a single file when it is handed the true configs."""
    configs = path.with_suffix(".config")
    if not configs.exists():
        config_folder(configs, family, in_channels, DEPTH)
        unet = configs / "unet" / "config.json"
        unet.write_text(json.dumps(json.loads(unet.read_text()) | small_unet(SIDE, family)))
    kind = hub.StableDiffusionXLPipeline if family == "sdxl" else hub.StableDiffusionPipeline
    options = {"add_watermarker": False} if family == "sdxl" else {}
    return kind.from_single_file(
        str(path), config=str(configs), local_files_only=True, torch_dtype=torch.float32, **options
    )


def folder(root: Path, family: str = "sd1", dtype: str = "F32", shards: bool = False,
           variant: str | None = None, in_channels: int = 4, ema: bool = False) -> Path:  # fmt: skip
    """The same model as a folder that diffusers itself saved.

    Its vocabularies are in the two files of published models, which are read in a fifth of the time.
    """
    path = single_file(root.with_suffix(".safetensors"), family, in_channels=in_channels)
    pipeline = pipeline_of(path, family, in_channels).to(DTYPES[dtype])
    options = {"max_shard_size": "600KB"} if shards else {}
    pipeline.save_pretrained(root, variant=variant, **options)
    for vocabulary in root.glob("tokenizer*/tokenizer.json"):
        for name in TOKENIZER_FILES:
            shutil.copy(data_folder("tokenizer", name), vocabulary.parent)
        vocabulary.unlink()
    if ema:
        pipeline.unet.save_pretrained(root / "unet_ema")
    path.unlink()
    shutil.rmtree(path.with_suffix(".config"))
    return root


def recast(root: Path, dtype: str) -> Path:
    """Convert a folder's UNet files to a dtype that diffusers itself does not save."""
    for path in (root / "unet").glob("*.safetensors"):
        save_file({n: t.to(DTYPES[dtype]) for n, t in load_file(path).items()}, path)
    return root
