"""Neurons to zero that a person names: by hand, or as the paper's own results.

The paper's code writes its results as a table separated by semicolons, a row a prompt. Its column
``Refined Neurons`` lists the rows of each layer of the down and mid blocks in the order of the
network, for Stable Diffusion 1 seven of them: ``[[25, 262], [], [98], [105], [364], [], []]``.
"""

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import index
from pathlib import Path
from typing import Any

from nemo_prune.checkpoint.checkpoint import Checkpoint, ValueLayer, check_neurons
from nemo_prune.checkpoint.manifest import Manifest
from nemo_prune.checkpoint.neurons import Neuron, is_neuron_table, network_order, short_name, union
from nemo_prune.checkpoint.statuses import Status
from nemo_prune.errors import ManifestError, OptionError, option
from nemo_prune.files.header import quoted
from nemo_prune.files.strict_json import Fault
from nemo_prune.files.text import MAX_BYTES, read_text
from nemo_prune.files.trees import shown

_COLUMN = "Refined Neurons"
_SUFFIX = ".attn2.to_v"
_TOLD = 20  # prompts at fault that a message names


@dataclass(frozen=True)
class Choice:
    """Which neurons to zero, and what the output may say of where they come from.

    `source_sha256` is of the file that they were found in, None where that is not known.
    """

    neurons: tuple[Neuron, ...]
    provenance: dict[str, str]
    source_sha256: str | None = None


Groups = tuple[tuple[Neuron, ...], ...]
"""The neurons of each prompt, in the order of the prompts."""


def from_manifest(
    manifest: Manifest, top_k: int | None = None, top: int | None = None, path: Path | None = None
) -> Choice:
    """The neurons of a manifest, or some of them.

    top_k: those that most of its prompts share. top: those with the largest attributions; a neuron that
        was found without one counts as the largest, since its prompt hangs on few.
    path: where the manifest lies, for messages.

    Raises ManifestError if `top` is given and no neuron has an attribution.
    """
    if top is not None:
        known: dict[Neuron, float] = {}
        for record in manifest.prompts:
            for neuron, value in record.attribution.items():
                known[neuron] = max(value, known.get(neuron, value))
        if not known:
            none = "holds no attributions", f"search with {option('search')} auto"
            if manifest.options.get("search") == "auto":
                none = (
                    "holds no attributions (none were taken: the candidates were few enough to be tried "
                    "one by one)",
                    f"take all of them, or choose with {option('top_k')} or {option('neurons')}",
                )
            cannot = f"{option('top')} cannot rank its neurons"
            raise ManifestError(f"{path or 'the manifest'}: {none[0]}, so {cannot}; {none[1]}")
        ranked = sorted(manifest.neurons, key=lambda neuron: -known.get(neuron, math.inf))
        manifest = replace(manifest, neurons=union(ranked[:top]))
    groups = tuple(record.neurons for record in manifest.prompts)
    stated = [key for key in ("tau", "gate", "criterion", "timestep") if key in manifest.options]
    notes = {key: str(manifest.options[key]) for key in stated}
    choice = _choice(manifest.neurons, groups, top_k)
    return replace(
        choice, provenance={**notes, **choice.provenance}, source_sha256=manifest.source["sha256"]
    )


def check_fits(manifest: Manifest, path: Path, checkpoint: Checkpoint) -> None:
    """Raise ManifestError, naming both, if the manifest at `path` is of another family or widths.

    Any file of the same architecture will do: another precision, the EMA alone, a fine-tune.
    """
    made_for = manifest.source.get("model")
    why = ""
    if made_for in (None, checkpoint.kind):
        try:
            check_neurons(checkpoint, manifest.neurons)
            return
        except ManifestError as error:
            why = f" ({str(error).removeprefix(f'{checkpoint.path}: ').partition(';')[0]})"
    if why and made_for is not None:
        raise ManifestError(f"{path}: does not fit {checkpoint.path}{why}; mend or make it anew")
    name = shown(manifest.source["path"])
    raise ManifestError(
        f"{path}: was made for {f'{name} ({shown(made_for)})' if made_for else name}, another model "
        f"than {checkpoint.path} ({checkpoint.kind}){why}; apply it to a file of the same architecture"
    )


def check_alike(checkpoints: Sequence[Checkpoint]) -> None:
    """Raise OptionError if models are of several architectures, which number their layers otherwise."""
    shapes = [(c.family, [(v.name, v.rows, v.columns) for v in c.value_layers]) for c in checkpoints]
    for other, shape in zip(checkpoints, shapes, strict=True):
        if shape != shapes[0]:
            raise OptionError(
                f"{other.path}: is another architecture ({other.kind}) than {checkpoints[0].path} "
                f"({checkpoints[0].kind}), in which the same numbers mean other neurons; run them apart"
            )


def no_neurons(manifest: Manifest, path: Path) -> list[str]:
    """A line on a manifest by which nothing is removed; none on any other."""
    return [] if manifest.neurons else [f"{path}: holds no neurons: nothing is pruned"]


def odd_manifest(manifest: Manifest, path: Path) -> list[str]:
    """What makes a sound manifest of little use, a line each: no neurons, or a stopped run."""
    found = no_neurons(manifest, path)
    stopped = (Status.NOT_CONFIRMED, Status.NOT_SEARCHED)
    if count := sum(record.status in stopped for record in manifest.prompts):
        found.append(
            f"{path}: is of a run that was stopped: {count} of its {len(manifest.prompts)} prompts were "
            f"not searched, or not confirmed; {option('resume')} finishes it"
        )
    return found


def from_results(path: Path, checkpoint: Checkpoint, top_k: int | None = None) -> Choice:
    """All neurons of the paper's result table at `path`, or the `top_k` that most prompts share."""
    groups = read_results(path, checkpoint)
    return _choice(union(*groups), groups, top_k)


def _choice(neurons: Sequence[Neuron], groups: Groups, top_k: int | None) -> Choice:
    notes = {"prompts": str(len(groups))}
    if top_k is None:
        return Choice(tuple(neurons), notes)
    return Choice(most_shared(neurons, groups, top_k), {**notes, "top_k": str(top_k)})


_BY_HAND = re.compile(r"[\w.]+:\d+([\s,]+[\w.]+:\d+)*")  # as `parse_neurons` takes them
_BETWEEN = re.compile(r"\s*,\s*|\s+")


def parse_neurons(text: str, checkpoint: Checkpoint) -> tuple[Neuron, ...]:
    """The neurons that `text`, "layer:row,layer:row,...", names, in the order of the network.

    Line breaks and blanks separate them too, as in a spreadsheet's column.
    A layer is given by its name, with or without the ending ".attn2.to_v", short as `inspect` and
    reports have it, by its tensor's as `diff` has it, or by its number: they count from 0 in the order
    of the network. Raises OptionError for what cannot be read, layers and rows that `checkpoint` does
    not have, and neurons named twice.
    """
    layers = checkpoint.value_layers
    known = _by_name(checkpoint)
    found: list[Neuron] = []
    if Path(text.strip()).suffix.lower() in (".csv", ".tsv", ".json", ".txt"):
        raise OptionError(
            f"{option('neurons')}: {text.strip()!a} is a file; give layer:row of each neuron, such as "
            f"0:17, or a manifest with {option('manifest')}"
        )
    for piece in _BETWEEN.split(re.sub(r"\s*:\s*", ":", text.strip())):
        name, colon, row = (part.strip() for part in piece.rpartition(":"))
        if not colon or not (row.isascii() and row.isdigit() and len(row) < 10):
            raise OptionError(f"{option('neurons')}: {piece.strip()!a} is not layer:row, such as 0:17")
        layer = known.get(name)
        if layer is None:
            raise OptionError(
                f"{option('neurons')}: {checkpoint.path} has no value layer {name!a}; "
                f"give one of the names "
                f"that inspect lists, or a number from 0 to {len(layers) - 1}"
            )
        if int(row) >= layer.rows:
            raise OptionError(
                f"{option('neurons')}: {short_name(layer.name)} of {checkpoint.path} has rows 0 to "
                f"{layer.rows - 1}, not {int(row)}"
            )
        found.append(Neuron(layer.name, int(row)))
    if twice := [neuron for neuron, count in Counter(found).items() if count > 1]:
        raise OptionError(
            f"{option('neurons')}: row {twice[0].row} of {short_name(twice[0].layer)} is named twice"
        )
    return union(found)


def _by_name(checkpoint: Checkpoint) -> dict[str, ValueLayer]:
    """The value layers by whatever they may be called."""
    layers = checkpoint.value_layers
    known = {layer.name: layer for layer in layers}
    known |= {layer.name.removesuffix(_SUFFIX): layer for layer in layers}
    known |= {short_name(layer.name): layer for layer in layers}
    for end in ("", ".weight"):
        known |= {key.removesuffix(end): layer for layer in layers for key in layer.tensors}
    return known | {str(number): layer for number, layer in enumerate(layers)}


def is_by_hand(given: object) -> bool:
    """Whether it is text as `parse_neurons` takes it, which programs take no neurons as."""
    return isinstance(given, str) and _BY_HAND.fullmatch(given) is not None


def named_neurons(given: object, checkpoint: Checkpoint) -> tuple[Neuron, ...]:
    """Neurons that a program names: (layer, row), {"layer": ..., "row": ...}, or {layer: rows} of all.

    A layer is called as `parse_neurons` has it, or is its number. Rows stay unchecked, as do whole names
    of layers that `checkpoint` does not have.

    Raises ManifestError for a layer by a name that none has, OptionError for what names no neurons.
    """
    known = _by_name(checkpoint)
    first = checkpoint.value_layers[0].name
    found = []
    one: Any = given
    try:
        if isinstance(given, str):
            raise TypeError
        if isinstance(given, Neuron):
            given = [given]
        if isinstance(given, Mapping):
            pairs: list[object] = []
            for one in given.items():
                pairs += [(one[0], row) for row in one[1]]
            given = pairs
        for one in given:  # type: ignore[attr-defined]
            layer, row = (one["layer"], one["row"]) if isinstance(one, Mapping) else one
            if str(getattr(row, "dtype", type(row).__name__)).removeprefix("torch.") == "bool":
                raise OptionError(
                    f"{option('neurons')}: a row is a number, not True or False; of a mask give the "
                    f"places that are true, as numpy.flatnonzero does"
                )
            row, name = index(row), layer if isinstance(layer, str) else str(index(layer))
            if name not in known and _SUFFIX not in name:
                raise ManifestError(
                    f"{checkpoint.path}: has no value layer {quoted(name)}; give its name, such as "
                    f"{first} or {short_name(first)}, or its number from 0 to "
                    f"{len(checkpoint.value_layers) - 1}"
                )
            found.append(Neuron(known[name].name if name in known else name, row))
    except (TypeError, ValueError, KeyError):
        hand = "; layer:row is how the command line has them" if is_by_hand(one) else ""
        raise OptionError(
            f"{option('neurons')}: give a manifest, or Neuron(layer, row) of each; a layer is its name, "
            f"such as {first}, or its number; {type(one).__name__} {str(one)[:60]!a} is none{hand}"
        ) from None
    return tuple(found)


def read_results(path: Path, checkpoint: Checkpoint) -> Groups:
    """The refined neurons of each prompt in a result table of the paper's code.

    Raises ManifestError, one line, for a file that is not such a table, or whose layers and rows
    are not those of `checkpoint`; all prompts at fault are named at once. The prompts themselves are not
    kept.
    """
    layers = checkpoint.select("down+mid")
    text = read_text(path, ManifestError, "a result table", "the result file of the paper's code")
    if is_neuron_table(text):
        raise ManifestError(
            f"{path}: is the table of neurons that {option('neurons_csv')} wrote, not the paper's; "
            f"give the manifest with {option('manifest')}, or neurons as layer:row with "
            f"{option('neurons')}"
        )
    # Fields longer than the csv module's default are real: thousands of initial neurons.
    usual = csv.field_size_limit(MAX_BYTES)
    try:
        # Programs that it went through separate otherwise.
        separator = max(";,\t", key=text.partition("\n")[0].count)
        table = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        if _COLUMN not in (table.fieldnames or ()):
            raise ManifestError(
                f"{path}: has no column {_COLUMN!r}; give the result file of the paper's code"
            )
        faults: list[str] = []
        groups = []
        for number, line in enumerate(table, start=1):
            try:
                groups.append(_row(line.get(_COLUMN), layers, checkpoint))
            except Fault as fault:
                faults.append(f"prompt {number}: {fault}")
    except csv.Error as error:
        raise ManifestError(f"{path}: is not a table that can be read ({error})") from None
    finally:
        csv.field_size_limit(usual)  # other tables are read by the default
    if faults:
        more = f"; and {len(faults) - _TOLD} more" if len(faults) > _TOLD else ""
        raise ManifestError(f"{path}: {'; '.join(faults[:_TOLD])}{more}")
    if not any(groups):
        raise ManifestError(f"{path}: names no neurons; give the results of memorized prompts")
    return tuple(groups)


def most_shared(neurons: Sequence[Neuron], groups: Groups, count: int) -> tuple[Neuron, ...]:
    """The `count` of `neurons` that most of `groups`, one a prompt, hold; all if there are fewer.

    Of equally shared ones, those that come first in the network. In the order of the network.
    """
    shared = Counter(neuron for group in groups for neuron in set(group))
    ranked = sorted(neurons, key=lambda n: (-shared[n], network_order(n.layer), n.row))
    return union(ranked[:count])


def _row(field: str | None, layers: Sequence[ValueLayer], checkpoint: Checkpoint) -> tuple[Neuron, ...]:
    """The neurons of one prompt; Fault for what is none."""
    try:
        lists = json.loads(field or "")
    except (ValueError, RecursionError):
        lists = None
    if not isinstance(lists, list) or not all(_are_rows(rows) for rows in lists):
        raise Fault(f"{_COLUMN!r} is not a list of lists of row numbers")
    if len(lists) != len(layers):
        raise Fault(
            f"lists neurons of {len(lists)} layers, but {checkpoint.path} has {len(layers)} value "
            f"layers in its down and mid blocks, so they are of another model"
        )
    for layer, rows in zip(layers, lists, strict=True):
        if rows and max(rows) >= layer.rows:
            raise Fault(
                f"{short_name(layer.name)} of {checkpoint.path} has rows 0 to {layer.rows - 1}, not "
                f"{max(rows)}, so the results are of another model"
            )
    # The code may list a row twice: once as an outlier, once as one of the largest.
    return union(
        Neuron(layer.name, row) for layer, rows in zip(layers, lists, strict=True) for row in rows
    )


def _are_rows(value: object) -> bool:
    return isinstance(value, list) and all(type(row) is int and row >= 0 for row in value)
