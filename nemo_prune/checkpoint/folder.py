"""Recognize a diffusers folder: every copy of its denoiser, and what else it holds.

A folder often holds the same denoiser several times: with and without `.fp16` or `.non_ema` in the
name, in `unet_ema/`, as a single file beside the components, as pickles. Memorization stays in
whichever is forgotten, so the whole tree is searched. Hidden folders (`.git`, `.cache`) are no part
of the model. Symbolic links are followed for reading only: a snapshot of Hugging Face's cache is
nothing but links.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nemo_prune.checkpoint.blocks import plain_name
from nemo_prune.checkpoint.checkpoint import WEIGHTS, Checkpoint
from nemo_prune.checkpoint.foreign import (
    audio_class,
    class_of,
    is_addition,
    is_controlnet,
    is_value_like,
    other_noise,
    refuse_pictures,
)
from nemo_prune.checkpoint.recognize import SCALES, SHARD, USUAL_NAMES, identify
from nemo_prune.errors import CheckpointError
from nemo_prune.files.header import Header, is_training_state, quoted, read_header
from nemo_prune.files.strict_json import read_object
from nemo_prune.files.trees import entries, is_apple_double, read_tree, start_of

_DENOISER = ("unet", "transformer")
_USUAL = "diffusion_pytorch_model"
_DENOISERS = re.compile(r"(unet|transformer|prior)([_.-].*)?")
_OTHERS = re.compile(
    r"(text_encoder|vae|vqvae|movq|safety_checker|image_encoder|tokenizer|scheduler|feature_extractor)"
    r"(_.*)?"
)
_EMA = re.compile(r"(^|[^a-z])ema([^a-z]|$)")
# What may lie beside an ONNX graph and is none of the files into which it puts its weights.
_NO_WEIGHTS = {".json", ".md", ".txt", ".py", ".yaml", ".yml", ".png", ".jpg", ".jpeg", ".webp",
               ".csv", ".log", ".sha256", ".safetensors"}  # fmt: skip
# In other letters or under another name safetensors are not read as such, so nothing prunes them.
_SAFETENSORS = {".safetensors", ".sft"}
_PICKLES = {".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle", ".msgpack", ".onnx", ".gguf"}
# So are what other frameworks and engines write, and what is packed.
_COPIES = _PICKLES | {".pb", ".onnx_data", ".data", ".h5", ".hdf5", ".npz", ".npy", ".pdparams",
                      ".tflite", ".mlmodel", ".engine", ".plan", ".trt", ".distcp", ".zip", ".tar",
                      ".tgz", ".gz", ".bz2", ".xz", ".zst", ".lz4", ".7z", ".rar"}  # fmt: skip
# How such files begin, whatever they are called: zip and torch, pickle, GGUF, HDF5, NumPy, safetensors,
# gzip, bzip2, xz, zstd, LZ4, 7-Zip, RAR, tar.
_MAGIC = re.compile(
    rb"PK(\x03\x04|\x07\x08)|\x80[\x02-\x05]|GGUF|\x89HDF|\x93NUMPY|.{5}\0\0\0\{"
    rb"|\x1f\x8b|BZh\d1AY|\xfd7zXZ|\x28\xb5\x2f\xfd|\x04\x22M\x18|7z\xbc\xaf|Rar!|.{257}ustar",
    re.DOTALL,
)
_MAGIC_BYTES = 262
# What lies in the checkpoints of other frameworks.
_FRAMEWORKS = (
    (re.compile(r"manifest\.ocdbt|_CHECKPOINT_METADATA"), "Orbax (JAX)"),
    (re.compile(r"latest_checkpointed_iteration\.txt|iter_\d+|mp_rank_\d+(_\d+)?"), "Megatron"),
)
_CONFIGS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "scheduler")


@dataclass(frozen=True)
class Copy:
    """One whole set of a component's weights: a file, or the shards that an index lists."""

    name: Path
    files: tuple[Path, ...]


def recognize_folder(root: Path) -> Checkpoint:
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
    found = _denoisers(root, files)
    if not found:
        raise CheckpointError(f"{root}: {_without_denoiser(root, files)}")
    main = found[0]
    refuse_pictures(main.path.parent, root)
    for other in found[1:]:
        why = "" if _shape(other) != _shape(main) else _unlike(main, other)
        if why is not None:
            raise CheckpointError(
                f"{other.path}: is another model than {main.path}, so one list of neurons cannot "
                f"fit both{why}; give a folder with one model"
            )
    copies = tuple(copy.copies[0] for copy in found)
    edited = {part.path for copy in copies for part in copy}
    twins = tuple(path for path in files if _is_twin(root, path))
    whole = main.path.parent != root
    configs = _configs(root, main.record.denoiser, whole)
    stated = configs.get("scheduler", {}).get("prediction_type")
    noise = other_noise(configs.get("scheduler", {}))
    return replace(
        main,
        path=root,
        layout="diffusers" if whole else "unet-folder",
        copies=copies,
        text_encoder=bool(whole and component_copies(root / "text_encoder")),
        vae=bool(whole and component_copies(root / "vae")),
        ema=any(copy.ema or _EMA.search(str(copy.path.relative_to(root))) for copy in found),
        prediction_type=stated or main.prediction_type,
        told_by="its scheduler's config" if stated else main.told_by,
        unclear=f"{root}: {noise}" if noise else main.unclear,
        others=tuple(path for path in files if path not in edited and path not in twins),
        twins=twins,
        configs=configs,
    )


# ----------------------------------------------------------------------------------- the tree


def _check_kind(root: Path) -> None:
    if (root / "snapshots").is_dir() and (root / "blobs").is_dir():
        raise CheckpointError(
            f"{root}: is an entry of Hugging Face's cache, which may hold several revisions; give "
            f"one of the folders in its snapshots/"
        )
    if fault := audio_class(class_of(root)):
        raise CheckpointError(f"{root}: {fault}")


def _denoisers(root: Path, files: Sequence[Path]) -> list[Checkpoint]:
    """Every copy of the denoiser, the main one first; each by the path of its file or index."""
    found = []
    places = [root / name for name in _DENOISER]
    for folder in sorted({path.parent for path in files if path.suffix == WEIGHTS}):
        for copy in component_copies(folder):
            headers = _headers(copy)
            if _holds_denoiser(folder.relative_to(root), headers):
                names = [name for header in headers for name in header.tensors]
                if folder not in (root, *places) and is_controlnet(names):
                    raise CheckpointError(
                        f"{copy.name}: holds a ControlNet, not a text-to-image model alone, and its "
                        f"value layers would stay unpruned; move {folder.relative_to(root)}/ out of "
                        f"{root}"
                    )
                found.append(identify(copy.name, headers, folder))
    plain = [copy for copy in found if copy.layout == "unet-diffusers"]
    own = [copy for copy in plain if copy.path.parent in (root, *places)]
    if not own:
        return []
    main = next((copy for copy in own if copy.path.parent in places), own[0])
    return [main, *(copy for copy in found if copy is not main)]


def _holds_denoiser(folder: Path, headers: Sequence[Header]) -> bool:
    if any(_DENOISERS.fullmatch(part) for part in folder.parts):
        return True
    names = [name for header in headers for name in header.tensors]
    return any(map(is_value_like, names)) and not is_addition(names)


def _without_denoiser(root: Path, files: Sequence[Path]) -> str:
    states = [path.name for path in entries(root) if is_training_state(path)]
    if states and not any(_DENOISERS.fullmatch(path.name) for path in entries(root)):
        return (
            f"is the saved state of a training run ({', '.join(states[:3])}), not a model; give the "
            f"folder that the training saved at its end, or the safetensors file of its UNet"
        )
    pickles = [p for p in files if _is_twin(root, p) and not is_training_state(p)]
    if pickles and is_misnamed(pickles[0]):
        return (
            f"holds its denoiser only by a name that is not read ({pickles[0].relative_to(root)}); "
            f"rename it to end in .safetensors"
        )
    graphs = [path.relative_to(root) for path in pickles if path.suffix.lower() == ".onnx"]
    if graphs and {path.suffix.lower() for path in pickles} & _PICKLES == {".onnx"}:
        return f"is an ONNX export ({graphs[0]}); give the diffusers folder it was made from"
    if pickles:
        kind = "Flax's weights" if pickles[0].suffix == ".msgpack" else "a pickle or the like"
        return (
            f"holds its denoiser only in a form that is not opened ({pickles[0].relative_to(root)}), "
            f"{kind}; save it again with save_pretrained(safe_serialization=True)"
        )
    if (root / "snapshots").is_dir():
        return (
            "is a model's place in the Hugging Face cache; give the folder of one version, which lies "
            "in snapshots/"
        )
    for name in ("adapter_config.json", "pytorch_lora_weights.safetensors"):  # PEFT, diffusers
        if (root / name).is_file():
            return f"holds a LoRA or the like ({name}); merge it into its model and give that"
    for path in entries(root):
        if by := next((by for names, by in _FRAMEWORKS if names.fullmatch(path.name)), None):
            return (
                f"is a checkpoint of {by} ({path.name}), which is not read; give a diffusers folder or "
                f"the .safetensors file itself"
            )
    # What the folder holds instead says best what it is.
    for copy in component_copies(root):
        if copy.name.name.startswith(USUAL_NAMES):
            identify(copy.name, _headers(copy), root)
    stated = class_of(root)
    loose = [path.name for path in entries(root) if path.suffix.lower() in _PICKLES]
    if loose and not stated:
        return (
            f"is a folder without unet/, and {loose[0]} in it is not opened, as it can run code when "
            f"loaded; give a diffusers folder, or a .safetensors file"
        )
    index = root / "model_index.json"
    if stated and index.is_file() and not read_object(index).keys() & set(_DENOISER):
        # Nothing is missing, so there is no other folder of it to give.
        return (
            f"is of the class {stated}, a folder without unet/ by its model_index.json, which is none "
            f"that is read; give a Stable Diffusion 1, 2 or XL checkpoint"
        )
    return (
        f"is {f'of the class {stated}, ' if stated else ''}a folder without unet/; give a diffusers "
        f"folder, or the .safetensors file itself"
    )


def _is_twin(root: Path, file: Path) -> bool:
    """True for a file that may hold the denoiser's weights and is not named `.safetensors`.

    Told by its name, or by how it begins; the other components' folders are their own.
    """
    path = file.relative_to(root)
    if any(_OTHERS.fullmatch(part) for part in path.parent.parts):
        return False
    if path.name.endswith(".bin.index.json"):
        return True
    if path.suffix == WEIGHTS:
        return False
    suffix = path.suffix.lower()
    # TensorFlow's variables are .data-00000-of-00001
    if suffix.partition("-")[0] in _COPIES or is_misnamed(path) or is_training_state(path):
        return True
    # A graph's weights lie beside it in files of any name.
    beside = any(_DENOISERS.fullmatch(part) for part in path.parent.parts)
    if beside and suffix not in _NO_WEIGHTS and any(file.parent.glob("*.onnx")):
        return not path.name.startswith(".")
    return _MAGIC.match(start_of(file, _MAGIC_BYTES)) is not None


def is_misnamed(path: Path) -> bool:
    """True for what its name says is safetensors, but not as programs spell it."""
    return path.suffix.lower() in _SAFETENSORS and path.suffix != ".safetensors"


def _configs(root: Path, denoiser: str, whole: bool) -> dict[str, dict[str, Any]]:
    places = {name: root / name for name in _CONFIGS} if whole else {denoiser: root}
    found = {}
    for name, place in places.items():
        path = place / ("scheduler_config.json" if name == "scheduler" else "config.json")
        if path.is_file():
            found[name] = read_object(path)
    return found


def _shape(checkpoint: Checkpoint) -> tuple[object, ...]:
    layers = tuple((layer.name, layer.rows, layer.columns) for layer in checkpoint.value_layers)
    return checkpoint.family, layers


def _unlike(main: Checkpoint, other: Checkpoint) -> str | None:
    """Where two copies with the same value layers are of different models; None if they look alike."""
    ours, theirs = _tensors(main), _tensors(other)
    if main.layout == other.layout:
        for name in sorted(ours.keys() | theirs.keys()):
            if ours.get(name) != theirs.get(name):
                both = name in ours and name in theirs
                return f" ({quoted(name)} is {'of two shapes' if both else 'in one of them alone'})"
        return None
    # By other names: what tells the kinds of one family apart.
    if main.in_channels != other.in_channels:
        return f" (they take {main.in_channels} and {other.in_channels} channels)"
    distilled = [any("cond_proj." in name for name in names) for names in (ours, theirs)]
    return " (one of them is an LCM)" if distilled[0] != distilled[1] else None


def _tensors(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """The shapes of a copy's tensors, without markers and factors, which other precisions lack."""
    plain = {plain_name(name, checkpoint.wrapper): t.shape for name, t in checkpoint.tensors.items()}
    return {n: shape for n, shape in plain.items() if "." in n and not n.endswith(SCALES)}


# ----------------------------------------------------------------- a component's sets of weights


def component_copies(folder: Path) -> list[Copy]:
    """The sets of safetensors weights in a component's folder, diffusers' first choice first.

    Raises CheckpointError for an index that cannot be read or lists files that are not there,
    and for a shard that no index lists.
    """
    copies: list[Copy] = []
    claimed: set[Path] = set()
    for index in sorted(folder.glob("*.safetensors.index*.json")):
        if is_apple_double(index):
            continue
        shards = tuple(folder / name for name in sorted(set(_weight_map(index).values())))
        copies.append(Copy(index, shards))
        claimed.update(shards)
    for path in sorted(folder.glob("*.safetensors")):
        if path in claimed or is_apple_double(path):
            continue
        if SHARD.search(path.name):
            raise CheckpointError(
                f"{path}: is a shard that no index beside it lists; download the folder again"
            )
        copies.append(Copy(path, (path,)))
    return sorted(copies, key=_preference)


def _headers(copy: Copy) -> list[Header]:
    """The headers of a copy's files.

    Raises CheckpointError if one cannot be read, or shards and index contradict each other.
    """
    headers = [read_header(path, named=False) for path in copy.files]
    if copy.files == (copy.name,):
        return headers
    listed = _weight_map(copy.name)
    for header in headers:
        for name in header.tensors:
            if listed.get(name) != header.path.name:
                raise CheckpointError(
                    f"{header.path}: holds {quoted(name)}, which {copy.name.name} does not place "
                    f"there; download the folder again"
                )
    held = {name for header in headers for name in header.tensors}
    for name, file in listed.items():
        if name not in held:
            raise CheckpointError(
                f"{copy.name}: places {quoted(name)} in {file}, which lacks it; download the "
                f"folder again"
            )
    return headers


def _preference(copy: Copy) -> tuple[bool, bool, bool, str]:
    """A sorting key: by default diffusers takes the usual name without a variant."""
    stem, _, rest = copy.name.name.partition(".")
    variant = re.sub(r"\.?(safetensors|index|json)\b", "", "." + rest)
    usual = stem in ("diffusion_pytorch_model", "model")
    return not usual, variant != "", "non_ema" in variant, copy.name.name


def _weight_map(index: Path) -> dict[str, str]:
    listed = read_object(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
        raise CheckpointError(f"{index}: lists no weights (weight_map); download the folder again")
    for file in set(listed.values()):
        # Nothing outside the folder is ever read, let alone written, on an index's word.
        if Path(file).name != file or not (index.parent / file).is_file():
            raise CheckpointError(
                f"{index}: lists {quoted(file)}, which is not beside it; download the folder again"
            )
    return listed
