"""What a pruned file says about itself: its metadata, and the header that carries it.

All keys of this tool begin with ``nemo_prune.``::

    nemo_prune.version          of the tool
    nemo_prune.source_sha256    of the whole file that was read
    nemo_prune.original_sha256  only where that file had been pruned before: what it came from
    nemo_prune.neurons          {layer: [rows]} as JSON: every neuron removed, earlier runs' too
    nemo_prune.tau, ...         further notes of this run; those of earlier runs are dropped

Prompts never go in: that would publish again what was just removed.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, get_args

from nemo_prune import __version__
from nemo_prune.checkpoint.neurons import Neuron, union
from nemo_prune.errors import CheckpointError
from nemo_prune.files.header import Header, encode_header
from nemo_prune.files.rewrite import BLOCK
from nemo_prune.files.undo import SOURCE_SHA256
from nemo_prune.options import Criterion

PREFIX = "nemo_prune."
T = TypeVar("T")
VERSION, ORIGINAL_SHA256, NEURONS = (PREFIX + key for key in ("version", "original_sha256", "neurons"))
# Describes how the model is built; kept as it is.
_CONFIG = PREFIX + "config"
MODELSPEC_HASH = "modelspec.hash_sha256"
# kohya's hashes of the old weights, which nothing defines well enough to compute anew.
_STALE = ("sshs_model_hash", "sshs_legacy_hash")


def provenance_of(metadata: Mapping[str, str]) -> dict[str, str]:
    """The `nemo_prune.*` entries of metadata, in their order."""
    return {key: text for key, text in metadata.items() if key.startswith(PREFIX)}


def joint_metadata(headers: Sequence[Header]) -> dict[str, str]:
    """The metadata of all files of a model; the neurons removed are those removed from any of them."""
    if len(headers) == 1:
        return headers[0].metadata
    joint = {key: text for header in headers for key, text in header.metadata.items()}
    if NEURONS in joint:
        joint[NEURONS] = rows_json(union(*map(earlier_neurons, headers)))
    return joint


@dataclass(frozen=True)
class StatedSettings:
    """What a pruned file says of the run that pruned it; None where it says nothing usable.

    Attributes:
        tau, gate: thresholds in [0, 1]; the gate is at least tau.
        timestep: the training timestep that was scored.
        ignored: a line for each entry that is there and cannot be used.
    """

    tau: float | None
    gate: float | None
    criterion: Criterion | None
    timestep: int | None
    ignored: tuple[str, ...]


def stated_settings(metadata: Mapping[str, str], path: Path) -> StatedSettings:
    """The settings in the metadata of `path`, which anybody may have edited: each is checked here."""
    ignored: list[str] = []

    def stated(name: str, read: Callable[[str], T], wanted: str) -> T | None:
        try:
            return read(metadata[PREFIX + name])
        except KeyError:
            return None
        except ValueError:
            ignored.append(f"{path}: its metadata {PREFIX}{name} is not {wanted}, so it is ignored")
            return None

    def threshold(least: float) -> Callable[[str], float]:
        def read(text: str) -> float:
            if not least <= float(text) <= 1:
                raise ValueError
            return float(text)

        return read

    def criterion(text: str) -> Criterion:
        return criteria[criteria.index(text)]

    def timestep(text: str) -> int:
        if not re.fullmatch("[0-9]{1,6}", text):  # int reads digits of other scripts, and 1_0
            raise ValueError
        return int(text)

    criteria: tuple[Criterion, ...] = get_args(Criterion)
    tau = stated("tau", threshold(0), "a number between 0 and 1")
    gate = stated("gate", threshold(tau or 0), f"a number between {tau or 0:g} (tau) and 1")
    return StatedSettings(
        tau,
        gate,
        stated("criterion", criterion, f"one of {', '.join(criteria)}"),
        stated("timestep", timestep, "a timestep"),
        tuple(ignored),
    )


def earlier_neurons(header: Header) -> tuple[Neuron, ...]:
    """The neurons that earlier runs say they removed; CheckpointError if that is damaged."""
    try:
        listed = json.loads(header.metadata.get(NEURONS, "{}"))
        found = [Neuron(layer, row) for layer, rows in listed.items() for row in rows]
        # Escapes can spell half a surrogate pair, which could not be written again.
        "".join(listed).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        found = None
    if found is None or any(type(n.row) is not int or n.row < 0 for n in found):
        raise CheckpointError(
            f"{header.path}: has damaged metadata {NEURONS} (neurons by layer are due); "
            f"remove that entry, or start from the file before it was pruned"
        )
    return union(found)


def original_sha256(header: Header) -> str | None:
    """The hash of the file that the removed neurons are missing from, as earlier runs say."""
    if NEURONS not in header.metadata:
        return None
    return header.metadata.get(ORIGINAL_SHA256) or header.metadata.get(SOURCE_SHA256)


def check_extra(extra: Mapping[str, str]) -> None:
    """Raise ValueError for keys of provenance that are not the caller's to set."""
    for key in extra:
        if _prefixed(key) in (VERSION, SOURCE_SHA256, ORIGINAL_SHA256, NEURONS, _CONFIG):
            raise ValueError(f"provenance cannot set {key}")


def new_header(
    header: Header,
    neurons: Iterable[Neuron],
    original: str | None,
    extra: Mapping[str, str],
    source_sha256: str,
    data_sha256: str,
) -> bytes:
    """The output's first bytes, length field included, up to its data.

    The tensors and their order are the source's, and so is the metadata, extended. `neurons` are
    those to name as removed, `original` the hash of the file that they are missing from, if that is
    not the source. Hashes are 64 hexadecimal digits, so the length does not depend on them;
    `data_sha256` is used only if the source states such a hash.
    """
    old = header.metadata
    metadata = {
        key: text
        for key, text in old.items()
        # What earlier runs noted (tau, ...) is not true of this one; how the model is built is.
        if key not in _STALE and (key == _CONFIG or not key.startswith(PREFIX))
    }
    if MODELSPEC_HASH in old:
        metadata[MODELSPEC_HASH] = f"0x{data_sha256}"
    metadata |= {VERSION: __version__, SOURCE_SHA256: source_sha256}
    if original:
        metadata[ORIGINAL_SHA256] = original
    metadata[NEURONS] = rows_json(neurons)
    metadata |= {_sound(_prefixed(key)): _sound(text) for key, text in extra.items()}
    tensors = {
        tensor.name: {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": (tensor.start - header.data_start, tensor.end - header.data_start),
        }
        for tensor in header.tensors.values()
    }
    # Where the source's data are aligned, theirs begin at the same place of a block, so that the
    # blocks can be shared.
    aligned = header.data_start % 8 == 0
    place = (BLOCK, header.data_start) if aligned else (8, 0)
    return encode_header({"__metadata__": metadata, **tensors}, *place)


def _prefixed(key: str) -> str:
    return key if key.startswith(PREFIX) else PREFIX + key


def _sound(text: str) -> str:
    """`text` with halves of surrogate pairs, which UTF-8 does not have, spelt out."""
    return text.encode("utf-8", "backslashreplace").decode()


def rows_json(neurons: Iterable[Neuron]) -> str:
    """{layer: [rows]} as JSON."""
    rows: dict[str, list[int]] = {}
    for neuron in neurons:
        rows.setdefault(neuron.layer, []).append(neuron.row)
    return json.dumps(rows, separators=(",", ":"), ensure_ascii=False)
