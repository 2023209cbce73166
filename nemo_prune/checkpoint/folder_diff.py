"""Compare two folders file by file, and check that a pruned one is what its manifest promises.

Built on `diff` and `expectation`, and like them independent of the code that rewrites; where a
folder keeps the copies of its denoiser is told by `folders`, as for everyone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_prune.checkpoint.expectation import Expectation, expect, rows_of
from nemo_prune.checkpoint.folder import Folder, neurons_of
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.surgery import file_sha256
from nemo_prune.files import diff
from nemo_prune.files.diff import Difference
from nemo_prune.files.header import read_header
from nemo_prune.files.trees import Tree, read_tree, shown, weights_sha256

_WEIGHTS = ".safetensors"


@dataclass(frozen=True)
class FolderDifference:
    """All that differs between the folders of two trees; paths are relative to them.

    `weights` has the difference, maybe none, of every safetensors file that both hold, `others` are
    further files of which the bytes differ. `hidden` are folders that were not compared (`.git`,
    `.cache`), as they are no part of a model; they make no difference.
    """

    a: Tree
    b: Tree
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    others: tuple[str, ...]
    weights: Mapping[str, Difference]
    hidden: tuple[str, ...]

    def __bool__(self) -> bool:
        """True if anything differs."""
        return bool(self.only_in_a or self.only_in_b or self.others or any(self.weights.values()))


@dataclass(frozen=True)
class FolderExpectation(Expectation):
    """How a folder compares with what its manifest promises; the hashes are `folder_sha256`.

    `left_out` are copies of the denoiser in forms that are not edited, which the second folder
    rightly lacks.
    """

    left_out: tuple[str, ...]

    def describe(self) -> list[str]:
        """Lines for people."""
        left_out = [f"left out, as it cannot be pruned: {shown(place)}" for place in self.left_out]
        return [*left_out, *super().describe()]


def compare_folders(a: Path, b: Path) -> FolderDifference:
    """Return everything that differs between the files below two folders.

    Safetensors files are compared by `compare`, all others by their bytes. Raises CheckpointError
    for what cannot be read, is no sound safetensors file though called one, or is no file at all.
    """
    trees = read_tree(a), read_tree(b)
    first, second = (tree.places() for tree in trees)
    weights: dict[str, Difference] = {}
    others = []
    for place in sorted(first.keys() & second.keys()):
        one, two = first[place], second[place]
        if one.suffix == _WEIGHTS:
            weights[place] = diff.compare(read_header(one), read_header(two))
        elif file_sha256(one) != file_sha256(two):
            others.append(place)
    hidden = {path.relative_to(tree.root).as_posix() for tree in trees for path in tree.hidden}
    return FolderDifference(
        *trees,
        only_in_a=tuple(sorted(first.keys() - second.keys())),
        only_in_b=tuple(sorted(second.keys() - first.keys())),
        others=tuple(others),
        weights=weights,
        hidden=tuple(sorted(hidden)),
    )


def to_json(difference: FolderDifference) -> dict[str, Any]:
    """What `diff --json` prints; "weights" has the safetensors files that differ, as for files."""
    return {
        "identical": not difference,
        "only_in_a": difference.only_in_a,
        "only_in_b": difference.only_in_b,
        "others": difference.others,
        "weights": {place: diff.to_json(found) for place, found in difference.weights.items() if found},
        "hidden": difference.hidden,
    }


def describe(difference: FolderDifference) -> list[str]:
    """`difference` in lines for people."""
    lines = [f"only in the first: {shown(place)}" for place in difference.only_in_a]
    lines += [f"only in the second: {shown(place)}" for place in difference.only_in_b]
    lines += [f"{shown(place)}: the bytes differ" for place in difference.others]
    for place, found in difference.weights.items():
        if found:
            lines += [f"{shown(place)}: {line}" for line in diff.describe(found)]
    lines = lines or ["the folders hold the same files, byte for byte"]
    return [*lines, *(f"not compared, a hidden folder: {shown(place)}" for place in difference.hidden)]


def expect_folder(
    a: Folder, difference: FolderDifference, neurons: Sequence[Neuron]
) -> FolderExpectation:
    """Check that `difference`, of `a` and another, is the zeroing of `neurons` and nothing else.

    Every file with value layers must be as `expect` has it for the neurons that lie in it, all
    others the same bytes. Twins in forms that are not edited must be gone: memorization is in them.

    Raises ManifestError for neurons that `a` does not have, CheckpointError if a file cannot be read.
    """
    rows = rows_of(a, neurons)
    parts = {part.path.relative_to(a.path).as_posix(): part for part in a.parts}
    twins = {path.relative_to(a.path).as_posix() for path in a.twins}
    first, second = difference.a.places(), difference.b.places()
    wrong = [
        f"only in the first folder: {shown(place)}"
        for place in difference.only_in_a
        if place not in twins
    ]
    wrong += [f"only in the second folder: {shown(place)}" for place in difference.only_in_b]
    wrong += [
        f"{shown(place)}: is still there, a copy of the denoiser that cannot be pruned"
        for place in sorted(twins & second.keys())
    ]
    wrong += [f"{shown(place)}: the bytes differ" for place in difference.others if place not in twins]
    before: dict[str, str] = {}
    after: dict[str, str] = {}
    for place, found in difference.weights.items():
        if place in parts:
            own = neurons_of(parts[place], neurons)
            told = expect(parts[place], read_header(second[place]), found, own)
            before[place], after[place] = told.a_sha256, told.b_sha256
            wrong += [f"{shown(place)}: {text}" for text in told.unexpected]
            continue
        before[place], after[place] = file_sha256(first[place]), file_sha256(second[place])
        if found:
            wrong += [f"{shown(place)}: {text}" for text in diff.describe(found)]
    for hashes, files in ((before, first), (after, second)):
        for place in files.keys() - difference.weights.keys():
            if files[place].suffix == _WEIGHTS:
                hashes[place] = file_sha256(files[place])
    return FolderExpectation(
        rows=sum(map(len, rows.values())),
        unexpected=tuple(wrong),
        a_sha256=weights_sha256(before),
        b_sha256=weights_sha256(after),
        left_out=tuple(sorted(twins - second.keys())),
    )
