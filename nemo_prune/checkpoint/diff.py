"""Compare two models file by file, and check that a pruned one is what its manifest promises.

Built on `files/diff.py`, and like that independent of the code that rewrites; only where value layers
and their copies lie is taken from the recognized model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_prune.checkpoint.checkpoint import WEIGHTS, Checkpoint, Part
from nemo_prune.checkpoint.foreign import no_model
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.open import are_folders, open_checkpoint
from nemo_prune.checkpoint.zeros import zero_in_value
from nemo_prune.errors import CheckpointError, ManifestError
from nemo_prune.files import diff
from nemo_prune.files.diff import Difference, Runs, nonzero_rows, rows_text
from nemo_prune.files.hashing import file_hashes, file_sha256, joint_sha256
from nemo_prune.files.header import Header, quoted, read_header
from nemo_prune.files.trees import Tree, is_apple_double, read_tree, shown

_OWN = "nemo_prune."
_CONFIG = "nemo_prune.config"  # describes the model, so it may not change with the rows
_SOURCE, _ORIGINAL = "nemo_prune.source_sha256", "nemo_prune.original_sha256"
_MODELSPEC = "modelspec.hash_sha256"
_HASHES = {_MODELSPEC, "sshs_model_hash", "sshs_legacy_hash"}


@dataclass(frozen=True)
class ModelDifference:
    """All that differs between two files or two folders.

    `a` and `b` are the files by their paths in the folders; of a file, itself by "". `weights` has the
    difference, maybe none, of every safetensors file that both hold, `others` are further files of
    which the bytes differ. `hidden` was not compared (`.git`, `.cache`, `._name`), as it is no part of
    a model; it makes no difference.
    """

    a: Mapping[str, Path]
    b: Mapping[str, Path]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    others: tuple[str, ...]
    weights: Mapping[str, Difference]
    hidden: tuple[str, ...]

    def __bool__(self) -> bool:
        """True if anything differs."""
        return bool(self.only_in_a or self.only_in_b or self.others or any(self.weights.values()))

    def to_json(self) -> dict[str, Any]:
        """What `diff --json` prints; of folders, "weights" has the files that differ."""
        if "" in self.weights:
            return diff.to_json(self.weights[""])
        return {
            "identical": not self,
            "only_in_a": self.only_in_a,
            "only_in_b": self.only_in_b,
            "others": self.others,
            "weights": {place: diff.to_json(found) for place, found in self.weights.items() if found},
            "hidden": self.hidden,
        }

    def describe(self) -> list[str]:
        """Lines for people."""
        if "" in self.weights:
            return diff.describe(self.weights[""])
        lines = [f"only in the first: {shown(place)}" for place in self.only_in_a]
        lines += [f"only in the second: {shown(place)}" for place in self.only_in_b]
        lines += [f"{shown(place)}: the bytes differ" for place in self.others]
        for place, found in self.weights.items():
            lines += _in_file(place, diff.describe(found) if found else ())
        lines = lines or ["the folders hold the same files, byte for byte"]
        for place in self.hidden:
            kind = "macOS's own file" if is_apple_double(Path(place)) else "a hidden folder"
            lines.append(f"not compared, {kind}: {shown(place)}")
        return lines


@dataclass(frozen=True)
class Expectation:
    """How a difference compares with the one that a manifest promises.

    `rows` counts the rows that the neurons stand for in all copies of their layers, biases
    included. `unexpected` says, a line each, what is not as promised; empty if all is.
    `a_sha256` and `b_sha256` are those of `model_sha256`. `left_out`, of folders, are copies of the
    denoiser in forms that are not edited, which the second folder rightly lacks. `metadata` are the
    entries that rightly differ, `nemo_prune.*` as one.
    """

    rows: int
    unexpected: tuple[str, ...]
    a_sha256: str
    b_sha256: str
    left_out: tuple[str, ...] | None = None
    metadata: tuple[str, ...] = ()

    def describe(self) -> list[str]:
        """Lines for people; with the hashes, as a proof names what it is about."""
        lines = [f"left out, as it cannot be pruned: {shown(place)}" for place in self.left_out or ()]
        lines += [f"sha256 of the first: {self.a_sha256}", f"sha256 of the second: {self.b_sha256}"]
        if self.unexpected:
            return [*lines, *(f"unexpected: {text}" for text in self.unexpected)]
        but = f" but metadata that say so ({', '.join(self.metadata)})" if self.metadata else ""
        return [*lines, f"as expected: {self.rows} rows are zero, and nothing else was changed{but}"]

    def to_json(self) -> dict[str, Any]:
        """What `diff --expect --json` prints of it."""
        found = {
            "holds": not self.unexpected,
            "rows": self.rows,
            "unexpected": self.unexpected,
            "a_sha256": self.a_sha256,
            "b_sha256": self.b_sha256,
        }
        return found if self.left_out is None else found | {"left_out": self.left_out}


@dataclass(frozen=True)
class Comparison:
    """What `compare_models` found; `promise` is how it compares with a manifest, if one was given."""

    difference: ModelDifference
    promise: Expectation | None


def compare_models(a: Path, b: Path, neurons: Sequence[Neuron] | None = None) -> Comparison:
    """Return everything that differs between two files, or two folders.

    With `neurons`, also whether `b` is `a` with just these zeroed. Raises CheckpointError for what
    cannot be read, ManifestError for neurons that `a` does not have.
    """
    are_folders(a, b)
    checkpoint = open_checkpoint(a) if neurons is not None else None
    found = compare(a, b)
    promise = None
    if checkpoint is not None and neurons is not None:
        promise = expect(checkpoint, found, neurons)
    return Comparison(found, promise)


def compare(a: Path, b: Path) -> ModelDifference:
    """Return everything that differs between two files, or the files below two folders.

    Safetensors files are compared tensor by tensor, all others by their bytes. Raises CheckpointError
    for what cannot be read, is no sound safetensors file though called one, or is no file at all.
    """
    folders = are_folders(a, b)
    trees = [read_tree(path) if folders else Tree(path, (path,), ()) for path in (a, b)]
    first, second = (tree.places() if folders else {"": tree.root} for tree in trees)
    weights: dict[str, Difference] = {}
    others = []
    for place in sorted(first.keys() & second.keys()):
        one, two = first[place], second[place]
        if not folders or one.suffix == WEIGHTS:
            headers = read_header(one), read_header(two)
            kinds = [no_model(header.tensors) for header in headers]
            if not folders and any(kinds) and not all(kinds):
                odd = kinds.index("") ^ 1
                raise CheckpointError(f"{(one, two)[odd]}: {kinds[odd]}")
            weights[place] = diff.compare(*headers)
        elif file_sha256(one) != file_sha256(two):
            others.append(place)
    hidden = {path.relative_to(tree.root).as_posix() for tree in trees for path in tree.hidden}
    return ModelDifference(
        a=first,
        b=second,
        only_in_a=tuple(sorted(first.keys() - second.keys())),
        only_in_b=tuple(sorted(second.keys() - first.keys())),
        others=tuple(others),
        weights=weights,
        hidden=tuple(sorted(hidden)),
    )


def unremoved(pruned: Checkpoint, neurons: Sequence[Neuron]) -> list[Neuron]:
    """Those of `neurons` that the model does not have, or of which some copy is not all zero bytes.

    This is what `expect` asks of a pruned model too. Raises CheckpointError if it cannot be read.
    """
    layers = {layer.name: layer.rows for layer in pruned.value_layers}
    left = {n for n in neurons if not 0 <= n.row < layers.get(n.layer, 0)}
    for part in pruned.parts:
        names = {key: v.name for v in part.value_layers for key in (*v.tensors, *v.biases)}
        rows = part.rows(set(neurons) - left)
        left |= {Neuron(names[key], row) for key, row in nonzero_rows(part.header, rows)}
    return sorted(left)


# ------------------------------------------------------------------------------------- expecting


def expect(a: Checkpoint, difference: ModelDifference, neurons: Sequence[Neuron]) -> Expectation:
    """Check that `difference`, of `a` and another, is the zeroing of `neurons` and nothing else.

    Their rows must hold zero bytes in every copy of their layers that `a` has, biases included. No
    other tensor byte may differ. The metadata of files with value layers may differ in `nemo_prune.*`
    (but not `nemo_prune.config`) and in hashes of the weights; of these, `nemo_prune.source_sha256`
    (unless the files are the same bytes) and `modelspec.hash_sha256` must be true where they stand.
    How the header's JSON is spelt does not matter. All other files must be the same bytes. Twins in
    forms that are not edited must be gone: memorization is in them.

    Raises ManifestError for neurons that `a` does not have, CheckpointError if a file cannot be read.
    """
    layers = {layer.name: layer.rows for layer in a.value_layers}
    for neuron in neurons:
        if not 0 <= neuron.row < layers.get(neuron.layer, 0):
            raise ManifestError(
                f"{a.path}: has no row {neuron.row} in a value layer "
                f"{quoted(neuron.layer)}; the manifest was made for another model"
            )
    parts = {a.place(part.path): part for part in a.parts if part.value_layers}
    twins = {a.place(path) for path in a.twins}
    wrong = [
        f"only in the first folder: {shown(place)}"
        for place in difference.only_in_a
        if place not in twins
    ]
    wrong += [f"only in the second folder: {shown(place)}" for place in difference.only_in_b]
    wrong += [
        f"{shown(place)}: is still there, a copy of the denoiser that cannot be pruned"
        for place in sorted(twins & difference.b.keys())
    ]
    wrong += [f"{shown(place)}: the bytes differ" for place in difference.others if place not in twins]
    before: dict[str, str] = {}
    after: dict[str, str] = {}
    for place, found in difference.weights.items():
        if place in parts:
            second = read_header(difference.b[place])
            texts, before[place], after[place] = _expect_part(parts[place], second, found, neurons)
            wrong += _in_file(place, texts)
        elif found:
            wrong += _in_file(place, diff.describe(found))
    for hashes, files in ((before, difference.a), (after, difference.b)):
        for place, path in files.items():
            if path.suffix == WEIGHTS and place not in hashes:
                hashes[place] = file_sha256(path)
    noted = {key for place in parts.keys() & difference.weights for key in
             difference.weights[place].metadata}  # fmt: skip
    rows = [rows for part in a.parts for rows in part.rows(set(neurons)).values()]
    return Expectation(
        rows=sum(map(len, rows)),
        unexpected=tuple(wrong),
        a_sha256=joint_sha256(before) if a.is_folder else before[""],
        b_sha256=joint_sha256(after) if a.is_folder else after[""],
        left_out=tuple(sorted(twins - difference.b.keys())) if a.is_folder else None,
        metadata=tuple(sorted({f"{_OWN}*" if key.startswith(_OWN) else key for key in noted})),
    )


def _in_file(place: str, texts: Sequence[str]) -> list[str]:
    return [f"{shown(place)}: {text}" if place else text for text in texts]


def _expect_part(
    a: Part, b: Header, difference: Difference, neurons: Sequence[Neuron]
) -> tuple[list[str], str, str]:
    """What is not as `expect` says in a file with value layers, and the hashes of the two files."""
    rows = a.rows(set(neurons))
    wrong = [f"only in the first file: {quoted(name)}" for name in difference.only_in_a]
    wrong += [f"only in the second file: {quoted(name)}" for name in difference.only_in_b]
    wrong += [f"of another shape or dtype: {quoted(entry.name)}" for entry in difference.retyped]
    wrong += [f"in another order: {what}" for what in difference.orders if what != "metadata"]
    kept = [[k for k in h.metadata if not _may_change(k)] for h in (a.header, b)]
    if set(kept[0]) == set(kept[1]) and kept[0] != kept[1]:
        wrong.append("in another order: metadata")
    for entry in difference.changed:
        if outside := _outside(entry.rows, set(rows.get(entry.name, ()))):
            wrong.append(f"changed: {quoted(entry.name)}, {rows_text(outside)}")
    left = nonzero_rows(b, rows)
    negative = zero_in_value(b, left) if left else ()
    wrong += sorted(
        f"{'negative zeros, which pruning does not write' if one in negative else 'not zero'}: "
        f"{quoted(one[0])}, row {one[1]}"
        for one in left
    )
    wrong += [f"metadata changed: {quoted(k)}" for k in difference.metadata if not _may_change(k)]
    hash_a, hash_b = file_hashes(a.header), file_hashes(b)
    sources = {b.metadata[key] for key in (_SOURCE, _ORIGINAL) if key in b.metadata}
    # A file that was pruned earlier and not this time still names what it was made from then.
    if sources and hash_a.sha256 not in sources and hash_a.sha256 != hash_b.sha256:
        wrong.append(f"metadata untrue: {_SOURCE} is not the first file's hash")
    if b.metadata.get(_MODELSPEC, hash_b.modelspec) != hash_b.modelspec:
        wrong.append(f"metadata untrue: {_MODELSPEC} is not the hash of the second file's weights")
    return wrong, hash_a.sha256, hash_b.sha256


def _may_change(key: str) -> bool:
    return key != _CONFIG and (key.startswith(_OWN) or key in _HASHES)


def _outside(runs: Runs, rows: set[int]) -> Runs:
    """The runs of those rows in `runs` that are not in `rows`."""
    found: list[list[int]] = []
    for first, last in runs:
        for row in range(first, last + 1):
            if row in rows:
                continue
            if found and found[-1][1] == row - 1:
                found[-1][1] = row
            else:
                found.append([row, row])
    return tuple((first, last) for first, last in found)
