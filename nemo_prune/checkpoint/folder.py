"""Recognize a diffusers folder: every copy of its denoiser, and what else it holds.

A folder often holds the same denoiser several times: with and without `.fp16` or `.non_ema` in the
name, in `unet_ema/`, as a single file beside the components, as pickles. Memorization stays in
whichever is forgotten, so the whole tree is searched. Hidden folders (`.git`, `.cache`) are no part
of the model. Symbolic links are followed for reading only: a snapshot of Hugging Face's cache is
nothing but links.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nemo_prune.checkpoint.copies import Copy, component_copies, merged_header, read_object
from nemo_prune.checkpoint.families import Checkpoint, ValueLayer, identify
from nemo_prune.checkpoint.foreign import is_addition, is_value_like
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.errors import CheckpointError
from nemo_prune.files.header import Header, read_header
from nemo_prune.files.trees import entries, read_tree

DENOISER = "unet"
_USUAL = "diffusion_pytorch_model"
_DENOISERS = re.compile(r"(unet|transformer|prior)([_.-].*)?")
_OTHERS = re.compile(
    r"(text_encoder|vae|vqvae|movq|safety_checker|image_encoder|tokenizer|scheduler|feature_extractor)"
    r"(_.*)?"
)
_EMA = re.compile(r"(^|[^a-z])ema([^a-z]|$)")
# What may lie beside weights and holds none.
_HARMLESS = {".json", ".md", ".txt", ".py", ".yaml", ".yml", ".png", ".jpg", ".jpeg",
             ".webp", ".csv", ""}  # fmt: skip
# In other letters or under another name safetensors are not read as such, so nothing prunes them.
_SAFETENSORS = {".safetensors", ".sft"}
_PICKLES = {".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle", ".msgpack", ".onnx", ".gguf"}
_CONFIGS = ("unet", "vae", "text_encoder", "text_encoder_2", "scheduler")


@dataclass(frozen=True)
class Folder(Checkpoint):
    """A recognized diffusers folder: a pipeline's, or a denoiser's own.

    What `Checkpoint` says is said of the main copy, the one that diffusers loads unasked; `header`
    lists all its shards' tensors, with offsets that hold in the shards only. `tensors` of a value
    layer are "FILE:KEY" for every copy. `layout` is "diffusers" or "unet-folder".

    `main` are the files of the main copy. `parts` are all files that hold value layers, each as a
    checkpoint with just those layers. `others` are all further files, `twins` those that hold
    or may hold the denoiser's weights in a form that is not edited (pickles, ONNX, safetensors by
    another name, ...).
    `configs` are the folder's own, by component.
    """

    main: tuple[Path, ...]
    parts: tuple[Checkpoint, ...]
    others: tuple[Path, ...]
    twins: tuple[Path, ...]
    configs: Mapping[str, dict[str, Any]]

    @property
    def files(self) -> tuple[Path, ...]:
        return self.main


def recognize_folder(root: Path) -> Folder:
    """Return what the folder at `root` holds, from its files' headers and configs alone.

    Raises CheckpointError, one line, if it holds no denoiser of a known family or two different
    ones, a shard is missing or does not match its index, or a file cannot be read.
    """
    _check_kind(root)
    # Before anything is read: any folder may be handed in, a home with broken downloads too.
    looks_right = any(
        _DENOISERS.fullmatch(path.name) if path.is_dir() else path.stem.startswith(_USUAL)
        for path in entries(root)
    )
    files = read_tree(root).files if looks_right else ()
    copies = _denoisers(root, files)
    if not copies:
        raise CheckpointError(f"{root}: {_without_denoiser(root, files)}")
    main = copies[0][1]
    for copy, twin in copies[1:]:
        if _shape(twin) != _shape(main):
            raise CheckpointError(
                f"{copy.name}: is another model than {main.path}, so one list of neurons cannot "
                f"fit both; give a folder with one model"
            )
    parts = tuple(part for copy, found in copies for part in _parts(copy, found))
    edited = {part.path for part in parts}
    twins = tuple(path for path in files if _is_twin(path.relative_to(root)))
    whole = copies[0][0].name.parent != root
    configs = _configs(root, whole)
    return Folder(
        header=replace(main.header, path=root),
        family=main.family,
        layout="diffusers" if whole else "unet-folder",
        value_layers=tuple(_everywhere(root, layer, parts) for layer in main.value_layers),
        text_encoder=bool(whole and component_copies(root / "text_encoder")),
        vae=bool(whole and component_copies(root / "vae")),
        ema=any(twin.ema or _EMA.search(str(copy.name.relative_to(root))) for copy, twin in copies),
        in_channels=main.in_channels,
        prediction_type=configs.get("scheduler", {}).get("prediction_type", main.prediction_type),
        main=copies[0][0].files,
        parts=parts,
        others=tuple(path for path in files if path not in edited and path not in twins),
        twins=twins,
        configs=configs,
    )


def neurons_of(part: Checkpoint, neurons: Sequence[Neuron]) -> list[Neuron]:
    """Those of `neurons` that lie in a part of a folder."""
    layers = {layer.name for layer in part.value_layers}
    return [neuron for neuron in neurons if neuron.layer in layers]


# ----------------------------------------------------------------------------------- the tree


def _check_kind(root: Path) -> None:
    if (root / "snapshots").is_dir() and (root / "blobs").is_dir():
        raise CheckpointError(
            f"{root}: is an entry of Hugging Face's cache, which may hold several revisions; give "
            f"one of the folders in its snapshots/"
        )


def _denoisers(root: Path, files: Sequence[Path]) -> list[tuple[Copy, Checkpoint]]:
    """Every copy of the denoiser, the main one first."""
    found = []
    for folder in sorted({path.parent for path in files if path.suffix == ".safetensors"}):
        for copy in component_copies(folder):
            header = merged_header(copy)
            if _holds_denoiser(folder.relative_to(root), header):
                found.append((copy, identify(header)))
    own = [n for n, (copy, checkpoint) in enumerate(found)
           if copy.name.parent in (root, root / DENOISER)
           and checkpoint.layout == "unet-diffusers"]  # fmt: skip
    if not own:
        return []
    main = max(own, key=lambda n: (found[n][0].name.parent == root / DENOISER, -n))
    return [found[main], *(pair for n, pair in enumerate(found) if n != main)]


def _holds_denoiser(folder: Path, header: Header) -> bool:
    if any(_DENOISERS.fullmatch(part) for part in folder.parts):
        return True
    return any(map(is_value_like, header.tensors)) and not is_addition(header.tensors)


def _without_denoiser(root: Path, files: Sequence[Path]) -> str:
    pickles = [path for path in files if _is_twin(path.relative_to(root))]
    if pickles and is_misnamed(pickles[0]):
        return (
            f"holds its denoiser only by a name that is not read ({pickles[0].relative_to(root)}); "
            f"rename it to end in .safetensors"
        )
    if pickles:
        return (
            f"holds its denoiser only in a form that is not opened ({pickles[0].relative_to(root)}), "
            f"a pickle or the like; save it again with save_pretrained(safe_serialization=True)"
        )
    return "is a folder without unet/; give a diffusers folder, or the .safetensors file itself"


def _is_twin(path: Path) -> bool:
    """True for a file that may hold the denoiser's weights and is not named `.safetensors`."""
    if any(_OTHERS.fullmatch(part) for part in path.parent.parts):
        return False
    if path.name.endswith(".bin.index.json"):
        return True
    if any(_DENOISERS.fullmatch(part) for part in path.parent.parts):
        harmless = path.suffix == ".safetensors" or path.suffix.lower() in _HARMLESS
        return not harmless and not path.name.startswith(".")
    return path.suffix.lower() in _PICKLES or is_misnamed(path)


def is_misnamed(path: Path) -> bool:
    """True for what its name says is safetensors, but not as programs spell it."""
    return path.suffix.lower() in _SAFETENSORS and path.suffix != ".safetensors"


def _configs(root: Path, whole: bool) -> dict[str, dict[str, Any]]:
    places = {name: root / name for name in _CONFIGS} if whole else {DENOISER: root}
    found = {}
    for name, place in places.items():
        path = place / ("scheduler_config.json" if name == "scheduler" else "config.json")
        if path.is_file():
            found[name] = read_object(path)
    return found


# --------------------------------------------------------------------------------- its copies


def _shape(checkpoint: Checkpoint) -> tuple[object, ...]:
    layers = tuple((layer.name, layer.rows, layer.columns) for layer in checkpoint.value_layers)
    return checkpoint.family, layers


def _parts(copy: Copy, found: Checkpoint) -> list[Checkpoint]:
    """The copy's files that hold value layers, each with its own share of them."""
    parts = []
    for path in copy.files:
        header = found.header if len(copy.files) == 1 else read_header(path)
        here = header.tensors.keys()
        layers = tuple(
            replace(
                layer,
                tensors=tuple(key for key in layer.tensors if key in here),
                biases=tuple(key for key in layer.biases if key in here),
            )
            for layer in found.value_layers
            if here & {*layer.tensors, *layer.biases}
        )
        if layers:
            parts.append(replace(found, header=replace(header, path=path), value_layers=layers))
    return parts


def _everywhere(root: Path, layer: ValueLayer, parts: Sequence[Checkpoint]) -> ValueLayer:
    """The layer with the keys of all its copies, whatever file they lie in."""
    places = [
        (part.path.relative_to(root), own)
        for part in parts
        for own in part.value_layers
        if own.name == layer.name
    ]
    return replace(
        layer,
        tensors=tuple(f"{path}:{key}" for path, own in places for key in own.tensors),
        biases=tuple(f"{path}:{key}" for path, own in places for key in own.biases),
    )
