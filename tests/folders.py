"""Diffusers folders around the toy files of `rawfiles`: no torch, no code of the package."""

import hashlib
import json
from pathlib import Path

import rawfiles

WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULER = {"_class_name": "PNDMScheduler", "prediction_type": "epsilon"}


def put(path: Path, text: str | dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return path


def pipeline(root: Path, shape: dict = rawfiles.SD1, dtype: str = "F16", **options) -> Path:
    """A pipeline's folder with one whole `unet/`, a text encoder, a VAE and configs."""
    put(root / "model_index.json", {"_class_name": "StableDiffusionPipeline"})
    put(root / "scheduler" / "scheduler_config.json", SCHEDULER)
    put(root / "unet" / "config.json", {"_class_name": "UNet2DConditionModel"})
    add_copy(root / "unet" / WEIGHTS, shape, dtype, **options)
    (root / "text_encoder").mkdir()
    rawfiles.write(root / "text_encoder" / "model.safetensors",
                   [("text_model.final_layer_norm.weight", "F32", (5,))])  # fmt: skip
    (root / "vae").mkdir()
    rawfiles.write(root / "vae" / WEIGHTS, [("decoder.conv_in.weight", "F32", (2, 4, 3, 3))])
    return root


def add_copy(
    path: Path, shape: dict = rawfiles.SD1, dtype: str = "F16", seed: int = 0, **options
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return rawfiles.write(
        path, rawfiles.unet(shape, "diffusers", dtype, **options), {"format": "pt"}, seed
    )


def shard(path: Path, count: int = 2, variant: str = "") -> Path:
    """Split a file into shards with an index, as diffusers names them; return the index."""
    header, _, data = rawfiles.parse(path)
    metadata = header.pop("__metadata__", None)
    names = list(header)
    listed = {}
    for number in range(count):
        own = names[number::count]
        name = f"diffusion_pytorch_model{variant}-{number + 1:05}-of-{count:05}.safetensors"
        values = {n: data[slice(*header[n]["data_offsets"])] for n in own}
        entries = [(n, header[n]["dtype"], tuple(header[n]["shape"])) for n in own]
        rawfiles.write(path.parent / name, entries, metadata, values=values)
        listed |= dict.fromkeys(own, name)
    path.unlink()
    index = path.parent / f"diffusion_pytorch_model.safetensors.index{variant}.json"
    return put(index, {"metadata": {"total_size": len(data)}, "weight_map": listed})


def tree(root: Path) -> dict[str, bytes]:
    """Every file's content by its path."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def digest(root: Path) -> str:
    """The documented hash of a folder, worked out as sha256sum would."""
    lines = [
        f"{hashlib.sha256(content).hexdigest()}  {name}\n"
        for name, content in sorted(tree(root).items())
        if name.endswith(".safetensors")
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
