"""Diffusers configs for a checkpoint that carries none: bundled per family, adjusted to its shapes.

A single file holds weights only. Most of its architecture can be read off the tensors' shapes (see
`inference`); what shapes cannot tell (attention heads, latent size, noise schedule) comes from the
family's bundled config, then from the file's own `nemo_prune.config` metadata. A diffusers folder
named by the user replaces all of it. Imports no torch.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from nemo_prune.checkpoint.families import FAMILIES
from nemo_prune.errors import CheckpointError, OptionError, option
from nemo_prune.model.inference import Config, Shapes, infer_text, infer_unet, infer_vae

METADATA_KEY = "nemo_prune.config"
_VOCABULARIES = ("vocab.json", "tokenizer.json")
TOKENIZER_FILES = ("vocab.json", "merges.txt")
# Below the score's window, or above what any such model draws and memory holds.
_SIDES = range(11, 1025)
# What loaders elsewhere take as leave to run code that comes with a config.
_CODE = ("auto_map", "trust_remote_code", "custom_pipeline")
_CLASSES = {
    "unet": r"UNet2DConditionModel",
    "transformer": r"(PixArt)?Transformer2DModel",
    "vae": r"AutoencoderKL",
    "text_encoder": r"CLIPTextModel(WithProjection)?",
    "text_encoder_2": r"CLIPTextModel(WithProjection)?",
    "scheduler": r"\w+Scheduler",
}


@dataclass(frozen=True)
class Told:
    """What a model is told to predict: `type`, None where nothing tells, and `by` whom."""

    type: str | None = None
    by: str = ""


def data_folder(*parts: str) -> Path:
    """A folder among the bundled data, e.g. `data_folder("configs", "sd1")`."""
    return Path(str(files("nemo_prune"))).joinpath("data", *parts)


def holds_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a vocabulary, in either of the forms that tokenizers are kept in."""
    return any((folder / name).is_file() for name in _VOCABULARIES)


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
        config = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise OptionError(f"{folder}: no {config_file(component)} in this config folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise OptionError(
            f"{path}: cannot be read as JSON ({error}); download it again, or mend it"
        ) from None
    if not isinstance(config, dict):
        raise OptionError(f"{path}: holds no JSON object; download it again, or mend it")
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
            f"give the right configs with {option('config')} DIR"
        )
    for component, config in found.items():
        if key := foreign_code(component, config):
            raise CheckpointError(
                f"{path}: its metadata entry {METADATA_KEY} has a {key} that names code, which is not "
                "this tool's to run; remove it"
            )
    return found


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
            raise OptionError(f"{folder}: {option('config')} names no diffusers config folder")
        self.path = path
        self.folder = folder
        self.own = own or {}
        self.family = FAMILIES[family]
        self.overrides = metadata_overrides(metadata, path)

    @property
    def bundled(self) -> Path:
        """The family's bundled configs; OptionError if its models bring their own."""
        if self.family.configs is None:
            raise OptionError(
                f"{self.path}: is a {self.family.name} model, whose configs are not bundled; give its "
                f"whole diffusers folder, or its configs with {option('config')} DIR"
            )
        return data_folder("configs", self.family.configs)

    def component(self, name: str, shapes: Shapes, own: Config | None = None) -> Config:
        """The config of `unet`, `vae`, `text_encoder` or `text_encoder_2`.

        `own` is the component's, where it comes from elsewhere than the model.

        Raises KeyError, naming the tensor, if the shapes lack one that inference needs,
        NotDescribed for a UNet that no config describes, and CheckpointError for one whose attention
        heads nothing tells.
        """
        if self.folder is not None:
            return read_config(self.folder, name)
        if own is not None or name in self.own:
            return dict(own or self.own[name])
        base = read_config(self.bundled, name)
        if name == "unet":
            config = infer_unet(base, shapes)
            stated = self.overrides.get(name, {})
            per_head = isinstance(base.get("attention_head_dim"), list)  # 64 channels each, as trained
            known = {*config["block_out_channels"]} <= {*base["block_out_channels"]}
            if not known and stated.get("attention_head_dim") is None and not per_head:
                # With wrong heads no score means anything, and memorized prompts would pass.
                raise CheckpointError(
                    f"{self.path}: nothing says how many attention heads its UNet has, and its widths "
                    f"are not those of {self.family.name} models; give its diffusers folder, or its "
                    f"configs with {option('config')} DIR"
                )
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

    def told(self, prediction_type: str | None, told_by: str, given: str | None) -> Told:
        """What is told of the prediction type, and by whom, in the precedence of `scheduler`.

        prediction_type, told_by: the checkpoint's own. given: the user's.
        """
        if given:
            return Told(given, option("prediction_type"))
        if self.folder is not None:
            stated = read_config(self.folder, "scheduler").get("prediction_type")
            # Without the path: this stands in manifests.
            return Told(stated, f"the scheduler's config of {option('config')}") if stated else Told()
        if prediction_type:
            return Told(prediction_type, told_by)
        stated = self.overrides.get("scheduler", {}).get("prediction_type")
        return Told(stated, "its metadata") if stated else Told()

    def sample_size(self, unet: Config, prediction_type: str) -> int:
        """The latents' side that the UNet was trained at; OptionError if no score could be taken."""
        if not isinstance(unet["sample_size"], int):
            # Left open, or a pair.
            unet = read_config(self.bundled, self.family.denoiser)
        stated = self.folder is not None or any(
            "sample_size" in configs.get(self.family.denoiser, {})
            for configs in (self.own, self.overrides)
        )
        if self.family.v_side and prediction_type == "v_prediction" and not stated:
            return self.family.v_side
        side = unet["sample_size"]
        if type(side) is not int or side not in _SIDES:
            raise OptionError(
                f"{self.folder or self.path}: its config has the sample_size {str(side)[:40]} where "
                f"{_SIDES[0]} to {_SIDES[-1]} is due"
            )
        return side

    def tokenizer_folder(self, name: str) -> Path | None:
        """`tokenizer` or `tokenizer_2` of the user's folder, None if it has none.

        Raises OptionError if it lies there without a vocabulary.
        """
        place = self.folder / name if self.folder is not None else None
        if place is None or not place.is_dir():
            return None
        if not holds_tokenizer(place):
            raise OptionError(f"{place}: holds neither vocab.json nor tokenizer.json; add one")
        return place

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
