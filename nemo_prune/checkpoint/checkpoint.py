"""A model on disk: its weight files with the value layers in them, and the files beside them.

A model is parts. A single file is one part; a diffusers folder has a part for every file with weights
of its denoiser, which may be there several times (EMA, fp16) and each time in several shards.
"""

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_prune.checkpoint.families import FAMILIES, Family
from nemo_prune.checkpoint.neurons import Neuron, short_name
from nemo_prune.checkpoint.provenance import joint_metadata
from nemo_prune.errors import ManifestError, OptionError, option
from nemo_prune.files.hashing import file_sha256, joint_sha256
from nemo_prune.files.header import Header, Tensor, quoted

WEIGHTS = ".safetensors"
_EXIT = re.compile(r"(^|\.)(?<!coder\.)(conv_out|out\.2)\.weight$")  # of a UNet, not of a VAE


def channels_from_text(outputs: int, pix2pix: bool) -> tuple[int, ...]:
    """How many channels a UNet may take that can draw from text alone.

    As many as it gives; with a mask and what is masked (inpainting); of instruct-pix2pix a picture more.
    """
    return (outputs, 2 * outputs + 1, *([2 * outputs] if pix2pix else []))


@dataclass(frozen=True)
class ValueLayer:
    """The map `attn2.to_v` of one cross-attention block.

    `name` is canonical: its module's name in diffusers. `part` is "down", "mid" or "up", of a
    transformer "transformer".
    The weight is [rows, columns], a row a neuron, the columns the text embedding's channels.
    `tensors` are the keys of the weight, the main one first, then EMA twins in the same file;
    `biases` likewise, [rows], and usually empty.
    """

    name: str
    part: str
    rows: int
    columns: int
    tensors: tuple[str, ...]
    biases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """A file with weights of the denoiser; `value_layers` have the keys that lie in this file.

    Of a shard they may be none, or lack the weight and have the bias alone.
    """

    header: Header
    value_layers: tuple[ValueLayer, ...]

    @property
    def path(self) -> Path:
        return self.header.path

    def own(self, neurons: Iterable[Neuron]) -> list[Neuron]:
        """Those of `neurons` that lie in this file, in whole or in part."""
        layers = {layer.name for layer in self.value_layers}
        return [neuron for neuron in neurons if neuron.layer in layers]

    def rows(self, neurons: Iterable[Neuron]) -> dict[str, list[int]]:
        """The rows that `neurons` are in this file, ascending, by tensor: weights, biases, EMA twins."""
        layers = {layer.name: layer for layer in self.value_layers}
        found: dict[str, list[int]] = {}
        for neuron in sorted(self.own(neurons)):
            layer = layers[neuron.layer]
            for name in (*layer.tensors, *layer.biases):
                found.setdefault(name, []).append(neuron.row)
        return found


@dataclass(frozen=True)
class Checkpoint:
    """A recognized model, a file or a diffusers folder.

    path: of the file or folder.
    family: "sd1", "sd2", "sdxl" or "pixart"; `record` has what is known of it.
    layout: "ldm" (a single file with a text encoder or VAE beside the UNet), "unet-ldm" or
        "unet-diffusers" (a UNet alone, by the names it uses); of folders "diffusers" (a pipeline's)
        or "unet-folder" (a denoiser's own).
    value_layers: in the order of the network, with the main copy's keys.
    copies: every whole set of the denoiser's weights, as its files; first the main one, which
        diffusers loads by default.
    in_channels: of the denoiser: 4, or 9 for inpainting.
    prediction_type: "epsilon", "v_prediction", or None where the model does not say; `told_by` names
        what says so ("its metadata", the sidecar's name, ...), "" if nothing does.
    zero_snr: it is marked as trained with a zero terminal signal-to-noise ratio.
    unclear: why what is told of its prediction type cannot be used, as a message; None if it can.
    others: a folder's further files, which stay as they are.
    twins: those that hold or may hold the denoiser's weights in a form that is not edited (pickles,
        ONNX, safetensors by another name, ...).
    configs: a folder's own, by component.
    wrapper: what stands before every tensor's name in the main copy, "" as a rule; see `plain_name`.
    """

    path: Path
    family: str
    layout: str
    value_layers: tuple[ValueLayer, ...]
    copies: tuple[tuple[Part, ...], ...]
    text_encoder: bool
    vae: bool
    ema: bool
    in_channels: int
    prediction_type: str | None
    others: tuple[Path, ...] = ()
    twins: tuple[Path, ...] = ()
    configs: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    wrapper: str = ""
    told_by: str = ""
    zero_snr: bool = False
    unclear: str | None = None

    def __reduce__(self) -> tuple[Callable[[Path], "Checkpoint"], tuple[Path]]:
        """A checkpoint is sent as its path: it is opened where it arrives."""
        from nemo_prune.checkpoint.open import open_checkpoint

        return open_checkpoint, (self.path.absolute(),)

    @property
    def record(self) -> Family:
        return FAMILIES[self.family]

    @property
    def is_folder(self) -> bool:
        return self.layout in ("diffusers", "unet-folder")

    @property
    def parts(self) -> tuple[Part, ...]:
        """All files with weights of the denoiser, the main copy's first."""
        return tuple(part for copy in self.copies for part in copy)

    @property
    def files(self) -> tuple[Path, ...]:
        """The file or files that together hold the main copy of the denoiser."""
        return tuple(part.path for part in self.copies[0])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The main copy's tensors, each at its place in its own file."""
        return {name: t for part in self.copies[0] for name, t in part.header.tensors.items()}

    @property
    def out_channels(self) -> int:
        """Of a UNet; 0 where the main copy does not tell."""
        exits = (tensor.shape[0] for name, tensor in self.tensors.items() if _EXIT.search(name))
        return next(exits, 0)

    @property
    def metadata(self) -> dict[str, str]:
        """The main copy's; the neurons removed are those removed from any of its files."""
        return joint_metadata([part.header for part in self.copies[0]])

    @property
    def kind(self) -> str:
        """The family and the size of its value layers; equal for all files of one architecture."""
        rows = sum(layer.rows for layer in self.value_layers)
        return (
            f"{self.family}, {len(self.value_layers)} value layers with {rows} rows, "
            f"{self.value_layers[0].columns} text channels"
        )

    def select(self, layers: str) -> tuple[ValueLayer, ...]:
        """The value layers that `layers` names, in the order of the network.

        "auto" (down+mid; of a transformer all), "down+mid" (the paper's), any other sum of "down", "mid"
        and "up", "all", or patterns on names, canonical or short (`*`, `?`, `[...]`), separated by
        commas. Raises OptionError for a pattern that matches nothing.
        """
        if layers == "auto":
            layers = "down+mid" if {v.part for v in self.value_layers} & {"down", "mid"} else "all"
        chosen: set[str] = set()
        for pattern in layers.split(","):
            matching = {v.name for v in self.value_layers if _matches(v, pattern.strip())}
            if not matching:
                example = short_name(self.value_layers[0].name).rpartition(".")[0]
                usual = "" if self.value_layers[0].part == "transformer" else "down+mid, "
                raise OptionError(
                    f"{option('layers')} {layers}: no value layer matches {pattern.strip()!r}; give "
                    f"{usual}all, or patterns such as {example}.*"
                )
            chosen |= matching
        return tuple(v for v in self.value_layers if v.name in chosen)

    def place(self, path: Path) -> str:
        """A file's path in the folder, with slashes on every system; "" for a model of one file."""
        return path.relative_to(self.path).as_posix() if self.is_folder else ""

    def kept(self) -> dict[str, Path]:
        """All files but `twins`, by `place`, in the order of their paths."""
        paths = sorted({*self.others, *(part.path for part in self.parts)})
        return {self.place(path): path for path in paths}

    def weights(self) -> dict[str, Path]:
        """The folder's safetensors files, by `place`; of a file, itself by ""."""
        if not self.is_folder:
            return {"": self.path}
        return {place: path for place, path in self.kept().items() if path.suffix == WEIGHTS}


def _matches(layer: ValueLayer, pattern: str) -> bool:
    parts = {part.strip() for part in pattern.split("+")}
    if parts <= {"down", "mid", "up"}:
        return layer.part in parts
    names = (layer.name, short_name(layer.name))
    return pattern == "all" or any(fnmatch.fnmatchcase(name, pattern) for name in names)


def model_sha256(checkpoint: Checkpoint) -> str:
    """The SHA-256 of the file, or one for all weights of the folder; 64 lower-case hex digits.

    Of a folder it is the hash of the lines `HASH  PATH` that sha256sum prints for the folder's
    safetensors files, by path, in the order of the paths' bytes. To have it by hand::

        cd FOLDER && find -L * -name '*.safetensors' | LC_ALL=C sort | xargs sha256sum | sha256sum

    Raises CheckpointError if a file cannot be read.
    """
    hashes = {place: file_sha256(path) for place, path in checkpoint.weights().items()}
    return joint_sha256(hashes) if checkpoint.is_folder else hashes[""]


def check_neurons(checkpoint: Checkpoint, neurons: Sequence[Neuron]) -> None:
    """Raise ManifestError if some of `neurons` are not the model's, or are named twice."""
    layers = {layer.name: layer for layer in checkpoint.value_layers}
    seen: set[Neuron] = set()
    for neuron in neurons:
        layer = layers.get(neuron.layer)
        if layer is None:
            raise ManifestError(
                f"{checkpoint.path}: has no value layer {quoted(neuron.layer)}; the neurons are "
                f"those of another model"
            )
        if not 0 <= neuron.row < layer.rows:
            raise ManifestError(
                f"{checkpoint.path}: {short_name(layer.name)} has rows 0 to {layer.rows - 1}, not "
                f"{neuron.row}; the neurons are those of another model"
            )
        if neuron in seen:
            raise ManifestError(
                f"{checkpoint.path}: row {neuron.row} of {short_name(layer.name)} is to be zeroed "
                f"twice; name each neuron once"
            )
        seen.add(neuron)
