"""Diffusers configs for a checkpoint that carries none: bundled per family, adjusted to its shapes.

A single file holds weights only. Most of its architecture can be read off the tensors' shapes;
what shapes cannot tell (attention heads, latent size, noise schedule) comes from the family's
bundled config, then from the file's own `nemo_prune.config` metadata. A diffusers folder named by
the user replaces all of it. Imports no torch.
"""

import json
import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from nemo_prune.errors import CheckpointError, OptionError

Config = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

METADATA_KEY = "nemo_prune.config"
TOKENIZER_FILES = ("vocab.json", "merges.txt")
# Every CLIP text encoder that Stable Diffusion uses has heads of this many channels.
_TEXT_HEAD = 64
# The side of SD2's latents where it predicts v (768 px pictures); the bundled 64 is for epsilon.
_SD2_V_SAMPLE_SIZE = 96
# Below the score's window, or above what any such model draws and memory holds.
_SIDES = range(11, 1025)
# What loaders elsewhere take as leave to run code that comes with a config.
_CODE = ("auto_map", "trust_remote_code", "custom_pipeline")
_CLASSES = {
    "unet": r"UNet2DConditionModel",
    "vae": r"AutoencoderKL",
    "text_encoder": r"CLIPTextModel(WithProjection)?",
    "text_encoder_2": r"CLIPTextModel(WithProjection)?",
    "scheduler": r"\w+Scheduler",
}


def data_folder(*parts: str) -> Path:
    """A folder among the bundled data, e.g. `data_folder("configs", "sd1")`."""
    return Path(str(files("nemo_prune"))).joinpath("data", *parts)


def config_file(component: str) -> str:
    """Where a diffusers folder keeps a component's config, relative to the folder."""
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    return f"{component}/{name}"


def read_config(folder: Path, component: str) -> Config:
    """A component's config out of a diffusers folder.

    Raises OptionError if the file is missing, holds no JSON object, or names code to run.
    """
    path = folder / config_file(component)
    if path.exists() and not path.is_file():
        raise OptionError(f"{path}: is not a regular file")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise OptionError(f"{folder}: no {config_file(component)} in this config folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise OptionError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(config, dict):
        raise OptionError(f"{path}: holds no JSON object")
    if key := foreign_code(component, config):
        raise OptionError(f"{path}: its {key} names code that is not this tool's to run; remove it")
    return config


def foreign_code(component: str, config: Config) -> str | None:
    """The key of a config by which it names code, or a class that is not the component's."""
    if key := next((key for key in _CODE if key in config), None):
        return key
    name = config.get("_class_name", None)
    known = _CLASSES.get(component, "")
    return None if name is None or re.fullmatch(known, str(name)) else "_class_name"


def metadata_overrides(metadata: Mapping[str, str], path: Path) -> dict[str, Config]:
    """The file's own word on its architecture: `{component: {key: value}}`, {} if it has none.

    Raises CheckpointError if the metadata entry is not a JSON object of objects, or names code.
    """
    if METADATA_KEY not in metadata:
        return {}
    try:
        found = json.loads(metadata[METADATA_KEY])
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(part, dict) for part in found.values()):
        raise CheckpointError(
            f"{path}: its metadata entry {METADATA_KEY} is not a JSON object of configs; "
            "give the right configs with --config DIR"
        )
    for component, config in found.items():
        if key := foreign_code(component, config):
            raise CheckpointError(
                f"{path}: its metadata entry {METADATA_KEY} has a {key} that names code, which is not "
                "this tool's to run; remove it"
            )
    return found


def _count(names: Iterable[str], pattern: str) -> int:
    """How many indices the pattern's group takes in the names: the largest plus one, or 0."""
    found = [int(match[1]) for name in names if (match := re.match(pattern, name))]
    return max(found, default=-1) + 1


def infer_unet(base: Config, shapes: Shapes) -> Config:
    """`base` with everything that a UNet's shapes tell.

    Args:
        base: the family's config; its attention heads are kept if they are one number (SD1) and
            follow from the widths if they are listed per level (SD2, SDXL: 64 channels a head).
        shapes: diffusers tensor names to shapes.

    Raises:
        KeyError: with the name of a tensor that every such UNet has and this one lacks.
    """
    levels = _count(shapes, r"down_blocks\.(\d+)\.")
    widths = [shapes[f"down_blocks.{n}.resnets.0.conv1.weight"][0] for n in range(levels)]

    def blocks(side: str) -> list[str]:
        kinds = []
        for n in range(levels):
            attends = any(name.startswith(f"{side}_blocks.{n}.attentions.") for name in shapes)
            kinds.append(f"{'CrossAttn' if attends else ''}{side.title()}Block2D")
        return kinds

    def depth(n: int) -> int:
        # Blocks without attention ignore it, but the list needs an entry for them.
        start = rf"down_blocks\.{n}\.attentions\.0\.transformer_blocks\.(\d+)\."
        return max(1, _count(shapes, start))

    config = {
        **base,
        "block_out_channels": widths,
        "down_block_types": blocks("down"),
        "up_block_types": blocks("up"),
        "layers_per_block": _count(shapes, r"down_blocks\.0\.resnets\.(\d+)\."),
        "transformer_layers_per_block": [depth(n) for n in range(levels)],
        "in_channels": shapes["conv_in.weight"][1],
        "out_channels": shapes["conv_out.weight"][0],
    }
    if not any(name.startswith("mid_block.") for name in shapes):
        config["mid_block_type"] = None
    if isinstance(base.get("attention_head_dim"), list):
        config["attention_head_dim"] = [max(1, width // _TEXT_HEAD) for width in widths]
    values = [name for name in shapes if name.endswith(".attn2.to_v.weight")]
    if values:
        config["cross_attention_dim"] = shapes[values[0]][1]
        entrance = values[0].split(".transformer_blocks.")[0] + ".proj_in.weight"
        config["use_linear_projection"] = len(shapes[entrance]) == 2
    if "add_embedding.linear_1.weight" in shapes:
        config["projection_class_embeddings_input_dim"] = shapes["add_embedding.linear_1.weight"][1]
    return config


def infer_text(base: Config, shapes: Shapes) -> Config:
    """`base` with everything that a CLIP text encoder's shapes tell.

    Args:
        base: the family's config.
        shapes: transformers' tensor names, without `text_model.` in front, to shapes.

    Raises:
        KeyError: with the name of a tensor that every such encoder has and this one lacks.
    """
    vocabulary, width = shapes["embeddings.token_embedding.weight"]
    config = {
        **base,
        "vocab_size": vocabulary,
        "hidden_size": width,
        "max_position_embeddings": shapes["embeddings.position_embedding.weight"][0],
        "num_hidden_layers": _count(shapes, r"encoder\.layers\.(\d+)\."),
        "num_attention_heads": max(1, width // _TEXT_HEAD),
        "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
    }
    if "text_projection.weight" in shapes:
        config["projection_dim"] = shapes["text_projection.weight"][0]
    return config


def infer_vae(base: Config, shapes: Shapes) -> Config:
    """`base` with everything that an autoencoder's shapes (diffusers names) tell.

    Raises KeyError with the name of a tensor that every such autoencoder has and this one lacks.
    """
    levels = _count(shapes, r"encoder\.down_blocks\.(\d+)\.")
    widths = [shapes[f"encoder.down_blocks.{n}.resnets.0.conv1.weight"][0] for n in range(levels)]
    return {
        **base,
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": _count(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "latent_channels": shapes["decoder.conv_in.weight"][1],
    }


class Configs:
    """Where each component's config comes from, for one checkpoint.

    Precedence: the user's folder, the model's own configs, the file's metadata, the shapes, the
    family's bundled config.
    """

    def __init__(
        self,
        family: str,
        metadata: Mapping[str, str],
        path: Path,
        folder: Path | None,
        own: Mapping[str, Config] | None = None,
    ) -> None:
        """Read the overrides; `folder` is the user's `--config DIR`, `own` a diffusers folder's.

        Raises OptionError for a folder that is none, CheckpointError for unreadable metadata.
        """
        if folder is not None and not folder.is_dir():
            raise OptionError(f"{folder}: --config names no diffusers config folder")
        self.path = path
        self.folder = folder
        self.own = own or {}
        self.bundled = data_folder("configs", family)
        self.overrides = metadata_overrides(metadata, path)

    def component(self, name: str, shapes: Shapes, own: Config | None = None) -> Config:
        """The config of `unet`, `vae`, `text_encoder` or `text_encoder_2`.

        `own` is the component's, where it comes from elsewhere than the model.

        Raises KeyError, naming the tensor, if the shapes lack one that inference needs.
        """
        if self.folder is not None:
            return read_config(self.folder, name)
        if own is not None or name in self.own:
            return dict(own or self.own[name])
        base = read_config(self.bundled, name)
        if name == "unet":
            config = infer_unet(base, shapes)
        elif name == "vae":
            config = infer_vae(base, shapes)
        else:
            config = infer_text(base, shapes)
        return config | self.overrides.get(name, {})

    def scheduler(
        self, prediction_type: str | None, *, given: str | None = None, zero_snr: bool = False
    ) -> Config:
        """The noise schedule as a `DDIMScheduler` config.

        Args:
            prediction_type: what the checkpoint says of itself; None leaves the config's word. A
                user's folder overrides it, and the marker for `zero_snr` too.
            given: what the user says; overrides all.
            zero_snr: the file is marked as trained with a zero terminal signal-to-noise ratio;
                that has a meaning with v prediction only.
        """
        config: Config = {"prediction_type": "epsilon"}
        if self.folder is not None:
            config |= read_config(self.folder, "scheduler")
            prediction_type, zero_snr = None, False
        elif "scheduler" in self.own:
            config |= self.own["scheduler"]
        else:
            config |= read_config(self.bundled, "scheduler") | self.overrides.get("scheduler", {})
        if given or prediction_type:
            config["prediction_type"] = given or prediction_type
        if zero_snr and config["prediction_type"] == "v_prediction":
            config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return config

    def sample_size(self, family: str, unet: Config, prediction_type: str) -> int:
        """The latents' side that the UNet was trained at; OptionError if no score could be taken."""
        if not isinstance(unet["sample_size"], int):
            # Left open, or a pair.
            unet = read_config(self.bundled, "unet")
        told = self.folder is not None or any(
            "sample_size" in configs.get("unet", {}) for configs in (self.own, self.overrides)
        )
        if family == "sd2" and prediction_type == "v_prediction" and not told:
            return _SD2_V_SAMPLE_SIZE
        side = unet["sample_size"]
        if type(side) is not int or side not in _SIDES:
            raise OptionError(
                f"{self.folder or self.path}: its config has the sample_size {str(side)[:40]} where "
                f"{_SIDES[0]} to {_SIDES[-1]} is due"
            )
        return side

    def tokenizer(self, name: str) -> Config:
        """Settings of `tokenizer` or `tokenizer_2`; only the padding token differs by family."""
        path = self.bundled / name / "tokenizer_config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        return dict(settings)


def complete_folder(family: str, configs: Mapping[str, Config], destination: Path) -> Path:
    """Write a whole diffusers config folder, tokenizers included, weights not; return it.

    Args:
        family: whose bundled folder to start from.
        configs: `{component: config}` that replace the bundled ones.
        destination: a folder that does not exist yet.
    """
    bundled = data_folder("configs", family)
    for source in sorted(bundled.rglob("*.json")):
        target = destination / source.relative_to(bundled)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
        if source.name == "tokenizer_config.json":
            for name in TOKENIZER_FILES:
                shared = data_folder("tokenizer", name)
                (target.parent / name).write_bytes(shared.read_bytes())
    for component, config in configs.items():
        text = json.dumps(config, indent=2) + "\n"
        (destination / config_file(component)).write_text(text, encoding="utf-8")
    return destination
