"""Check that a pruned file is what its manifest promises, and nothing else.

Like `diff`, on which it builds, independent of the code that rewrites; only where value layers and
their copies lie is told by `families`, as for everyone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from nemo_prune.checkpoint.families import Checkpoint
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.errors import ManifestError
from nemo_prune.files.diff import Difference, Runs, opened, read_span, rows_text
from nemo_prune.files.hashing import file_hashes
from nemo_prune.files.header import Header, quoted

_OWN = "nemo_prune."
_CONFIG = "nemo_prune.config"  # describes the model, so it may not change with the rows
_SOURCE, _ORIGINAL = "nemo_prune.source_sha256", "nemo_prune.original_sha256"
_MODELSPEC = "modelspec.hash_sha256"
_HASHES = {_MODELSPEC, "sshs_model_hash", "sshs_legacy_hash"}


@dataclass(frozen=True)
class Expectation:
    """How a difference compares with the one that a manifest promises.

    `rows` counts the rows that the neurons stand for in all copies of their layers, biases
    included. `unexpected` says, a line each, what is not as promised; empty if all is.
    `a_sha256` and `b_sha256` are of the whole files.
    """

    rows: int
    unexpected: tuple[str, ...]
    a_sha256: str
    b_sha256: str

    def describe(self) -> list[str]:
        """Lines for people; with the hashes, as a proof names what it is about."""
        lines = [f"sha256 of the first: {self.a_sha256}", f"sha256 of the second: {self.b_sha256}"]
        if self.unexpected:
            return [*lines, *(f"unexpected: {text}" for text in self.unexpected)]
        return [*lines, f"as expected: {self.rows} rows are zero, and nothing else was changed"]


def expect(a: Checkpoint, b: Header, difference: Difference, neurons: Sequence[Neuron]) -> Expectation:
    """Check that `difference`, of `a` and `b`, is the zeroing of `neurons` and nothing else.

    Their rows must hold zero bytes in every copy of their layers that `a` has, biases included. No
    other tensor byte may differ. Metadata may differ in `nemo_prune.*` (but not `nemo_prune.config`)
    and in hashes of the weights; of these, `nemo_prune.source_sha256` (unless the files are the same
    bytes) and `modelspec.hash_sha256` must be true where they stand. How the header's JSON is spelt
    does not matter.

    Raises ManifestError for neurons that `a` does not have, CheckpointError if a file cannot be read.
    """
    rows = rows_of(a, neurons)
    wrong = [f"only in the first file: {quoted(name)}" for name in difference.only_in_a]
    wrong += [f"only in the second file: {quoted(name)}" for name in difference.only_in_b]
    wrong += [f"of another shape or dtype: {quoted(entry.name)}" for entry in difference.retyped]
    wrong += [f"in another order: {what}" for what in difference.orders if what != "metadata"]
    kept = [[k for k in h.metadata if not _may_change(k)] for h in (a.header, b)]
    if set(kept[0]) == set(kept[1]) and kept[0] != kept[1]:
        wrong.append("in another order: metadata")
    for entry in difference.changed:
        strange = _outside(entry.rows, rows.get(entry.name, set()))
        if strange:
            wrong.append(f"changed: {quoted(entry.name)}, {rows_text(strange)}")
    wrong += _not_zero(b, rows)
    for key in difference.metadata:
        if not _may_change(key):
            wrong.append(f"metadata changed: {quoted(key)}")
    hash_a, hash_b = file_hashes(a.header), file_hashes(b)
    sources = {b.metadata[key] for key in (_SOURCE, _ORIGINAL) if key in b.metadata}
    # A file that was pruned earlier and not this time still names what it was made from then.
    if sources and hash_a.sha256 not in sources and hash_a.sha256 != hash_b.sha256:
        wrong.append(f"metadata untrue: {_SOURCE} is not the first file's hash")
    if b.metadata.get(_MODELSPEC, hash_b.modelspec) != hash_b.modelspec:
        wrong.append(f"metadata untrue: {_MODELSPEC} is not the hash of the second file's weights")
    count = sum(map(len, rows.values()))
    return Expectation(count, tuple(wrong), hash_a.sha256, hash_b.sha256)


def rows_of(checkpoint: Checkpoint, neurons: Sequence[Neuron]) -> dict[str, set[int]]:
    """The rows that `neurons` are, by tensor, in all copies, biases included.

    Raises ManifestError for neurons that the model does not have.
    """
    layers = {layer.name: layer for layer in checkpoint.value_layers}
    found: dict[str, set[int]] = {}
    for neuron in neurons:
        layer = layers.get(neuron.layer)
        if layer is None or not 0 <= neuron.row < layer.rows:
            raise ManifestError(
                f"{checkpoint.path}: has no row {neuron.row} in a value layer "
                f"{quoted(neuron.layer)}; the manifest was made for another model"
            )
        for name in (*layer.tensors, *layer.biases):
            found.setdefault(name, set()).add(neuron.row)
    return found


def _may_change(key: str) -> bool:
    return key != _CONFIG and (key.startswith(_OWN) or key in _HASHES)


def _outside(runs: Runs, rows: set[int]) -> Runs:
    strange: list[list[int]] = []
    for first, last in runs:
        for row in range(first, last + 1):
            if row in rows:
                continue
            if strange and strange[-1][1] == row - 1:
                strange[-1][1] = row
            else:
                strange.append([row, row])
    return tuple((first, last) for first, last in strange)


def _not_zero(b: Header, rows: dict[str, set[int]]) -> list[str]:
    found = []
    with opened(b) as file:
        for name in rows.keys() & b.tensors.keys():
            tensor = b.tensors[name]
            count = tensor.shape[0] if tensor.shape else 0
            for row in sorted(rows[name]):
                if row >= count:
                    continue  # told already, as another shape
                width = (tensor.end - tensor.start) // count
                start = tensor.start + row * width
                if any(read_span(file, b, start, start + width)):
                    found.append(f"not zero: {quoted(name)}, row {row}")
    return sorted(found)
