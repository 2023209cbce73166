"""The manifest: which neurons, and why. The one document between searching and rewriting.

It is JSON, made to be read, edited, kept in version control and applied on a machine without a
GPU. It holds no prompt texts unless they were asked for. The form, ``nemo-prune-manifest/1``::

    {
      "format": "nemo-prune-manifest/1",
      "version": "0.1.0",                                  of the tool that wrote it
      "source": {"path": "model.safetensors", "sha256": "...",     file name only
                 "model": "sd1, 16 value layers ..."},             may be missing
      "options": {"tau": 0.428, "seeds": 10, ...},
      "prompts": [
        {"index": 0, "status": "suppressed", "score_before": 0.71, "score_after": 0.2,
         "samples": 24, "truncated": false,
         "neurons": [
          {"layer": "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v", "row": 5}]}
      ],
      "neurons": [{"layer": "...", "row": 5}],             the union: what is removed
      "shared": [{"layer": "...", "row": 5, "prompts": [0, 3]}]    only where prompts share neurons
    }

Neurons may have an "attribution" and a "harm": what they do for the memory and for ordinary prompts.
"shared" is for readers; it says again what the prompts' own neurons say.

Statuses are free strings; the tool writes "suppressed", "not memorized", "not removable" (searched
and repaired, and still above tau), "replicated", "still memorized" (the check of the written file says
so), and of a run that was stopped "not confirmed" and "not searched".
"""

import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_prune.checkpoint.neurons import Neuron, is_neuron_table, union
from nemo_prune.errors import CheckpointError, ManifestError, option
from nemo_prune.files.atomic import write_new
from nemo_prune.files.strict_json import Fault, check_keys, parse, typed
from nemo_prune.files.text import read_text
from nemo_prune.files.trees import start_of

FORMAT = "nemo-prune-manifest/1"
_KEYS = {"format", "version", "source", "options", "prompts", "neurons"}
_PROMPT_KEYS = {"index", "status", "score_before", "score_after", "neurons", "samples", "truncated"}
_OPTIONAL_KEYS = {"shared"}
_OPTIONAL_PROMPT_KEYS = {"text", "trajectory", "trajectory_samples", "search"}
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class PromptRecord:
    """What became of one prompt; `index` counts the prompts of the prompt file from 0.

    The scores are memorization scores in [0, 1], or None where none was taken. `samples` counts
    the denoiser's forward passes spent. `truncated`: longer than the text encoder reads.
    """

    index: int
    status: str
    score_before: float | None
    score_after: float | None
    neurons: tuple[Neuron, ...] = ()
    samples: int = 0
    truncated: bool = False
    text: str | None = None
    trajectory: float | None = None
    trajectory_samples: int = 0
    search: str = ""
    attribution: Mapping[Neuron, float] = field(default_factory=dict)
    harm: Mapping[Neuron, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """The document; `source` has "path" (file name only), "sha256" and, unless an older version
    wrote it, "model" (`Checkpoint.kind`); `options` is plain JSON.

    `neurons` is what to remove. As written by the tool it is the union of the prompts' neurons;
    an edited manifest may list others, but not none where its prompts have some.
    """

    version: str
    source: Mapping[str, str]
    options: Mapping[str, Any]
    prompts: tuple[PromptRecord, ...] = ()
    neurons: tuple[Neuron, ...] = ()


def write_manifest(manifest: Manifest, path: Path, overwrite: bool = False) -> None:
    """Write `manifest` to `path`, at once and whole.

    The same manifest gives the same bytes. Raises OutputError where the file cannot be written,
    or exists and `overwrite` is false; ManifestError if what `read_manifest` would refuse is in it.
    """
    path = Path(path)
    text = to_json(manifest)
    _parse(text, path)
    # A file name that is not UTF-8 arrives as half surrogates, which JSON can spell \\uXXXX.
    write_new(path, text.encode("utf-8", "backslashreplace"), overwrite)


def read_manifest(path: Path) -> Manifest:
    """Return the manifest at `path`; ManifestError, one line, if it is not a sound one."""
    path = Path(path)
    wanted = f"the JSON file that {option('manifest')} wrote"
    start = b""
    with suppress(CheckpointError):  # what cannot be read is said below
        start = start_of(path, 9) if path.is_file() else start
    if start[5:] == b"\0\0\0{":
        raise ManifestError(
            f"{path}: is a safetensors file, such as a model or what {option('undo')} kept, and no "
            f"manifest; give {wanted}"
        )
    text = read_text(path, ManifestError, "a manifest", wanted)
    if is_neuron_table(text):
        raise ManifestError(
            f"{path}: is the table of neurons that {option('neurons_csv')} wrote, not the manifest; "
            f"give that, or some of the table's neurons as layer:row with {option('neurons')} of apply"
        )
    return _parse(text, path)


def prompts_by_neuron(manifest: Manifest) -> dict[Neuron, list[int]]:
    """The numbers of the prompts that need each neuron."""
    wanted: dict[Neuron, list[int]] = {}
    for record in manifest.prompts:
        for neuron in record.neurons:
            wanted.setdefault(neuron, []).append(record.index)
    return wanted


def shared_neurons(manifest: Manifest) -> list[dict[str, Any]]:
    """Neurons that more than one prompt needs, in the order of the network, and which prompts."""
    wanted = prompts_by_neuron(manifest)
    shared = union(neuron for neuron, prompts in wanted.items() if len(prompts) > 1)
    return [{**_plain(neuron), "prompts": wanted[neuron]} for neuron in shared]


# ------------------------------------------------------------------------------------- writing


def to_json(manifest: Manifest) -> str:
    """The manifest as JSON text with a newline at its end: one line a neuron."""
    prompts = _block([_prompt_json(record) for record in manifest.prompts], "  ")
    neurons = _block([_dump(_plain(neuron)) for neuron in manifest.neurons], "  ")
    together = _block([_dump(entry) for entry in shared_neurons(manifest)], "  ")
    shared = "" if together == "[]" else f',\n  "shared": {together}'
    return (
        f'{{\n  "format": {_dump(FORMAT)},\n  "version": {_dump(manifest.version)},\n'
        f'  "source": {_dump(dict(manifest.source))},\n'
        f'  "options": {_dump(dict(manifest.options))},\n'
        f'  "prompts": {prompts},\n  "neurons": {neurons}{shared}\n}}\n'
    )


def _prompt_json(record: PromptRecord) -> str:
    fields: dict[str, object] = {
        "index": record.index,
        "status": record.status,
        "score_before": record.score_before,
        "score_after": record.score_after,
        "samples": record.samples,
        "truncated": record.truncated,
    }
    if record.trajectory is not None:
        fields["trajectory"] = record.trajectory
    if record.trajectory_samples:
        fields["trajectory_samples"] = record.trajectory_samples
    if record.search:
        fields["search"] = record.search
    if record.text is not None:
        fields["text"] = record.text
    weights = [
        {
            name: float(f"{of[neuron]:.4g}")
            for name, of in (("attribution", record.attribution), ("harm", record.harm))
            if neuron in of
        }
        for neuron in record.neurons
    ]
    rows = [_plain(neuron) | own for neuron, own in zip(record.neurons, weights, strict=True)]
    neurons = _block([_dump(row) for row in rows], "     ")
    return f'{_dump(fields)[:-1]},\n     "neurons": {neurons}}}'


def _block(items: list[str], indent: str) -> str:
    if not items:
        return "[]"
    return "[" + ",".join(f"\n{indent}  {item}" for item in items) + f"\n{indent}]"


def _plain(neuron: Neuron) -> dict[str, object]:
    return {"layer": neuron.layer, "row": neuron.row}


def _dump(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ManifestError(f"the manifest cannot hold this value: {error}") from None


# ------------------------------------------------------------------------------------- reading


class _OtherVersion(Fault):
    """A manifest whose format another version of this tool reads."""


def _parse(text: str, path: Path) -> Manifest:
    try:
        return _manifest(parse(text))
    except _OtherVersion as fault:
        raise ManifestError(
            f"{path}: {fault}; it is of another version, perhaps a later one: read it with that, or "
            f"make the manifest anew"
        ) from None
    except Fault as fault:
        raise ManifestError(f"{path}: {fault}; give a manifest of this tool, or mend it") from None


def _manifest(parsed: object) -> Manifest:
    if isinstance(parsed, dict) and {"source", "prompts", "neurons", "cost"} <= parsed.keys():
        raise Fault(
            f"is the result that a run prints, not its manifest, which {option('manifest')} of prune or "
            f"{option('output')} of localize wrote"
        )
    if not isinstance(parsed, dict) or "format" not in parsed:
        raise Fault(f'is not a manifest: it has no "format": "{FORMAT}"')
    if parsed["format"] != FORMAT:
        fault = f"is of the format {ascii(parsed['format'])[:60]}, this tool reads {FORMAT}"
        if str(parsed["format"]).startswith(FORMAT.partition("/")[0] + "/"):
            raise _OtherVersion(fault)
        raise Fault(fault)
    check_keys(parsed, "the manifest", _KEYS, _OPTIONAL_KEYS)
    source = typed(parsed, "source", dict, "the manifest")
    check_keys(source, "source", {"path", "sha256"}, {"model"})
    if not all(isinstance(value, str) for value in source.values()):
        raise Fault("has a source whose path, sha256 or model is not a string")
    if not _SHA256.fullmatch(source["sha256"]):
        raise Fault("has a source whose sha256 is not 64 lower-case hexadecimal digits")
    prompts = typed(parsed, "prompts", list, "the manifest")
    options = typed(parsed, "options", dict, "the manifest")
    try:
        # Some of them go into metadata, where half a surrogate pair could not be written.
        json.dumps(options, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        raise Fault("has options that are not Unicode, or nest too deeply") from None
    records = tuple(_prompt(entry, f"prompts[{i}]") for i, entry in enumerate(prompts))
    neurons = _neurons(typed(parsed, "neurons", list, "the manifest"), "neurons")
    if not neurons and any(record.neurons for record in records):
        raise Fault("lists neurons of its prompts, and none to remove, so it contradicts itself")
    return Manifest(
        version=typed(parsed, "version", str, "the manifest"),
        source=source,
        options=options,
        prompts=records,
        neurons=neurons,
    )


def _prompt(entry: object, where: str) -> PromptRecord:
    entry = check_keys(entry, where, _PROMPT_KEYS, _OPTIONAL_PROMPT_KEYS)
    index, samples = typed(entry, "index", int, where), typed(entry, "samples", int, where)
    if index < 0 or samples < 0:
        raise Fault(f"has a negative index or samples in {where}")
    return PromptRecord(
        index=index,
        status=typed(entry, "status", str, where),
        score_before=_score(entry, "score_before", where),
        score_after=_score(entry, "score_after", where),
        neurons=_neurons(typed(entry, "neurons", list, where), f"{where}.neurons"),
        samples=samples,
        truncated=typed(entry, "truncated", bool, where),
        text=typed(entry, "text", str, where) if "text" in entry else None,
        trajectory=_score(entry, "trajectory", where) if "trajectory" in entry else None,
        trajectory_samples=(
            typed(entry, "trajectory_samples", int, where) if "trajectory_samples" in entry else 0
        ),
        search=typed(entry, "search", str, where) if "search" in entry else "",
        attribution=_weights(entry["neurons"], "attribution", where),
        harm=_weights(entry["neurons"], "harm", where),
    )


def _weights(entries: list[dict[str, Any]], key: str, where: str) -> dict[Neuron, float]:
    """What a prompt's neurons say under `key`, where they do."""
    found = {}
    for i, entry in enumerate(entries):
        if key in entry:
            value = _score(entry, key, f"{where}.neurons[{i}]")
            if value is None:
                raise Fault(f"has {key} in {where}.neurons[{i}] that is not a number")
            found[Neuron(entry["layer"], entry["row"])] = value
    return found


def _neurons(entries: list[object], where: str) -> tuple[Neuron, ...]:
    found: dict[Neuron, None] = {}
    for i, entry in enumerate(entries):
        entry = check_keys(entry, f"{where}[{i}]", {"layer", "row"}, {"attribution", "harm"})
        neuron = Neuron(
            typed(entry, "layer", str, f"{where}[{i}]"), typed(entry, "row", int, f"{where}[{i}]")
        )
        if neuron.row < 0:
            raise Fault(f"has a negative row in {where}[{i}]")
        if neuron.row >= 2**63:
            raise Fault(f"has a row in {where}[{i}] that no manifest could mean")
        if neuron in found:
            raise Fault(f"names row {neuron.row} of {neuron.layer!a} twice in {where}")
        found[neuron] = None
    return tuple(found)


def _score(entry: dict[str, Any], key: str, where: str) -> float | None:
    value = entry[key]
    if value is None:
        return None
    # An integer may be too large to be a float, which is what `isfinite` needs to say no.
    sound = type(value) is float or (type(value) is int and abs(value) < 2**53)
    if not sound or not math.isfinite(value):
        raise Fault(f"has {key} in {where} that is neither a number nor null")
    return float(value)
