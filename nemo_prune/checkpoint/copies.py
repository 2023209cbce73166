"""The sets of weights in a component's folder: single files, or shards with their index."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_prune.checkpoint.families import SHARD
from nemo_prune.checkpoint.neurons import union
from nemo_prune.checkpoint.provenance import NEURONS, earlier_neurons
from nemo_prune.errors import CheckpointError
from nemo_prune.files.header import Header, quoted, read_header


@dataclass(frozen=True)
class Copy:
    """One whole set of a component's weights: a file, or the shards that an index lists."""

    name: Path
    files: tuple[Path, ...]


def component_copies(folder: Path) -> list[Copy]:
    """The sets of safetensors weights in a component's folder, diffusers' first choice first.

    Raises CheckpointError for an index that cannot be read or lists files that are not there,
    and for a shard that no index lists.
    """
    copies: list[Copy] = []
    claimed: set[Path] = set()
    for index in sorted(folder.glob("*.safetensors.index*.json")):
        shards = tuple(folder / name for name in sorted(set(_weight_map(index).values())))
        copies.append(Copy(index, shards))
        claimed.update(shards)
    for path in sorted(folder.glob("*.safetensors")):
        if path in claimed:
            continue
        if SHARD.search(path.name):
            raise CheckpointError(
                f"{path}: is a shard that no index beside it lists; download the folder again"
            )
        copies.append(Copy(path, (path,)))
    return sorted(copies, key=_preference)


def merged_header(copy: Copy) -> Header:
    """All tensors of a copy as if in one file; the offsets are those in each shard.

    Raises CheckpointError if a file cannot be read, or shards and index contradict each other.
    """
    headers = [read_header(path) for path in copy.files]
    if copy.files == (copy.name,):
        return headers[0]
    tensors = {name: tensor for header in headers for name, tensor in header.tensors.items()}
    listed = _weight_map(copy.name)
    for header in headers:
        for name in header.tensors:
            if listed.get(name) != header.path.name:
                raise CheckpointError(
                    f"{header.path}: holds {quoted(name)}, which {copy.name.name} does not place "
                    f"there; download the folder again"
                )
    for name, file in listed.items():
        if name not in tensors:
            raise CheckpointError(
                f"{copy.name}: places {quoted(name)} in {file}, which lacks it; download the "
                f"folder again"
            )
    size = sum(header.size for header in headers)
    return Header(copy.name, tensors, _metadata(headers), 0, size, b"")


def _metadata(headers: Sequence[Header]) -> dict[str, str]:
    """All shards' metadata; the neurons removed are those removed from any of them."""
    merged = {key: text for header in headers for key, text in header.metadata.items()}
    if NEURONS in merged:
        rows: dict[str, list[int]] = {}
        for neuron in union(*map(earlier_neurons, headers)):
            rows.setdefault(neuron.layer, []).append(neuron.row)
        merged[NEURONS] = json.dumps(rows, separators=(",", ":"), ensure_ascii=False)
    return merged


def _preference(copy: Copy) -> tuple[bool, bool, bool, str]:
    """diffusers takes the usual name without a variant unless it is told otherwise."""
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


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; CheckpointError if there is none."""
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path}: holds no JSON object; download the folder again")
    return parsed
