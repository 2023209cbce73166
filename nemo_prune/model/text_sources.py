"""Where a model's text encoders come from: its own file, its folder, or what the user names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_prune.checkpoint.folder import component_copies
from nemo_prune.checkpoint.foreign import foreign_encoder, is_kolors
from nemo_prune.errors import CheckpointError, OptionError, option
from nemo_prune.files.header import quoted, read_header
from nemo_prune.files.strict_json import read_object
from nemo_prune.model.configs import holds_tokenizer
from nemo_prune.model.inference import Config
from nemo_prune.model.weights import (
    Tensors,
    name_text_encoder,
    read_component,
    read_tensors,
    read_text_encoder,
)

if TYPE_CHECKING:
    from nemo_prune.checkpoint.checkpoint import Checkpoint
    from nemo_prune.checkpoint.families import Family

_KOLORS = (
    "text encoder (ChatGLM3), whose tokenizer is code of its own, so prompts cannot be scored or "
    "searched; known neurons can be removed with nemo-prune apply"
)
_WIDTH = "embeddings.token_embedding.weight"


@dataclass(frozen=True, eq=False)
class TextSource:
    """One text encoder, not built yet.

    Attributes:
        path: the file or folder that it comes from, for errors.
        tensors: under transformers' names without `text_model.` in front; may be {}.
        config: transformers' config, None where only shapes tell.
        tokenizer: the folder of its own tokenizer, None for the bundled one.
    """

    path: Path
    tensors: Tensors
    config: Config | None = None
    tokenizer: Path | None = None


def text_sources(checkpoint: Checkpoint, given: tuple[Path, ...] = ()) -> list[TextSource]:
    """The text encoders of a model in the order in which its UNet wants them; SDXL has two.

    Args:
        checkpoint: whose encoders to find.
        given: checkpoints, diffusers folders, or encoders' own files or folders that replace them.

    Raises:
        CheckpointError: one is missing or cannot be read, or is no CLIP; or some are given for a model
            whose own is of another kind.
        OptionError: what was given is no or are too many encoders.
    """
    family = checkpoint.record
    if checkpoint.layout != "diffusers" and is_kolors(checkpoint.family, checkpoint.tensors):
        raise CheckpointError(f"{checkpoint.path}: is a UNet of Kolors, whose {_KOLORS}")
    if given and (foreign := foreign_encoder(checkpoint)):
        raise CheckpointError(
            f"{checkpoint.path}: its own text encoder is of the kind {foreign!a}, with which its "
            f"denoiser was trained, and what {option('text_encoder')} gives says "
            f"nothing to it, so prompts cannot be scored or searched; known neurons can be removed with "
            f"nemo-prune apply"
        )
    if family.denoiser == "transformer":
        return [_t5_source(given[0] if given else checkpoint.path)]
    wanted = len(family.text_prefixes)
    if given:
        found = [source for path in given for source in _given(path, family)]
        if len(found) != wanted:
            raise OptionError(
                f"{option('text_encoder')} {given[0]}: {len(found)} text encoders were given where "
                f"{'SDXL takes two' if wanted == 2 else 'this model takes one'}"
            )
        if len(given) > 1:
            # Files do not say which they are, but SDXL's first is always the narrower one.
            found.sort(key=lambda source: source.tensors[_WIDTH].shape[1])
        return found
    if checkpoint.is_folder:
        found = _of_folder(checkpoint.path) if checkpoint.layout == "diffusers" else []
    else:
        found = _of_file(checkpoint.path, family, checkpoint.wrapper)
    names = ("text encoder", "text encoder 2")
    for name, source in zip(names[:wanted], [*found, None, None], strict=False):
        if source is None or not source.tensors:
            if foreign := foreign_encoder(checkpoint):
                raise CheckpointError(
                    f"{checkpoint.path}: its text encoder is of the kind {foreign!a}, and only CLIP's "
                    f"are known; give a Stable Diffusion 1, 2 or XL model"
                )
            other = _elsewhere(checkpoint)
            raise CheckpointError(
                f"{checkpoint.path}: holds no {name}"
                f"{other and f' under a name that is read, only {quoted(other)}'}, which prompts need; "
                f"give one with {option('text_encoder')} PATH"
            )
    return found[:wanted]


def _elsewhere(checkpoint: Checkpoint) -> str:
    """The table of words of a file's text encoder under a prefix that is none of its family's, or ""."""
    known = checkpoint.record.text_prefixes
    for name in () if checkpoint.is_folder else checkpoint.tensors:
        plain = name.removeprefix(checkpoint.wrapper)
        if plain.endswith("token_embedding.weight") and not plain.startswith(known):
            return name
    return ""


def _given(path: Path, family: Family) -> list[TextSource]:
    if path.is_dir():
        found = _of_folder(path) or ([_of_component(path)] if component_copies(path) else [])
    else:
        header = read_header(path, named=False)
        if any(name.startswith(family.text_prefixes) for name in header.tensors):
            found = _of_file(path, family)
        else:
            tensors = name_text_encoder(read_tensors(path), unused_layer=family.unused_text_layer)
            found = [TextSource(path, tensors)]
    found = [source for source in found if _WIDTH in source.tensors]
    if not found:
        raise OptionError(
            f"{option('text_encoder')} {path}: holds no CLIP text encoder; give a "
            f"checkpoint or diffusers "
            f"folder of the same family, or the encoder's own .safetensors file or folder"
        )
    return found


def _of_file(path: Path, family: Family, wrapper: str = "") -> list[TextSource]:
    unused = family.unused_text_layer
    return [
        TextSource(path, read_text_encoder(path, prefix, unused_layer=unused, wrapper=wrapper))
        for prefix in family.text_prefixes
    ]


def _of_folder(root: Path) -> list[TextSource]:
    names = ("", "_2")
    return [
        _of_component(root / f"text_encoder{suffix}", root / f"tokenizer{suffix}")
        for suffix in names
        if (root / f"text_encoder{suffix}").is_dir()
    ]


def _of_component(folder: Path, tokenizer: Path | None = None) -> TextSource:
    path = folder / "config.json"
    config = read_object(path) if path.is_file() else None
    kind = (config or {}).get("model_type", "clip_text_model")
    if kind == "chatglm" or "ChatGLMModel" in (config or {}).get("architectures", ()):
        raise CheckpointError(f"{folder}: is Kolors' {_KOLORS}")
    if not str(kind).startswith("clip"):
        raise CheckpointError(
            f"{folder}: is a text encoder of the kind {kind!a}, and only CLIP's are known; give a "
            f"Stable Diffusion 1, 2 or XL model"
        )
    tensors = {name.removeprefix("text_model."): t for name, t in read_component(folder).items()}
    has = tokenizer is not None and holds_tokenizer(tokenizer)
    return TextSource(folder, tensors, config, tokenizer if has else None)


def _t5_source(root: Path) -> TextSource:
    """PixArt's text encoder in a diffusers folder; CheckpointError if it has none."""
    folder, tokenizer = root / "text_encoder", root / "tokenizer"
    tensors = read_component(folder) if folder.is_dir() else {}
    path = folder / "config.json"
    if root.is_file() or (root / "config.json").is_file():
        raise CheckpointError(
            f"{root}: is not a diffusers folder, and a PixArt's text encoder (T5) is read with its "
            f"tokenizer; give the folder that holds text_encoder/ and tokenizer/ with "
            f"{option('text_encoder')}"
        )
    if not tensors or not path.is_file():
        raise CheckpointError(
            f"{root}: holds no text encoder (T5), which prompts need; give the diffusers folder of a "
            f"PixArt with {option('text_encoder')}"
        )
    config = read_object(path)
    if config.get("model_type") != "t5":
        raise CheckpointError(
            f"{folder}: is a text encoder of the kind {config.get('model_type')!a}, and PixArt takes T5"
        )
    # Its two names for one table; files have one of them.
    table = tensors.get("shared.weight", tensors.get("encoder.embed_tokens.weight"))
    if table is not None:
        tensors |= {"shared.weight": table, "encoder.embed_tokens.weight": table}
    return TextSource(folder, tensors, config, tokenizer)
