"""What is verified: two checkpoints, prompts, and what is known of both from where they came."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nemo_prune.checkpoint.checkpoint import Checkpoint
from nemo_prune.checkpoint.diff import unremoved
from nemo_prune.checkpoint.manifest import Manifest
from nemo_prune.checkpoint.neurons import Neuron, union
from nemo_prune.checkpoint.zeros import model_zeros
from nemo_prune.errors import CheckpointError, OptionError, option
from nemo_prune.files.header import quoted
from nemo_prune.localize.localize import NOT_MEMORIZED, NOT_REMOVABLE, NOT_SEARCHED, STILL, SUPPRESSED
from nemo_prune.options import Options


@dataclass(frozen=True)
class Subject:
    """What is verified.

    gate: the score above which a prompt is memorized, where no manifest says so; None: tau.
    manifest: which prompt asked for which neuron; its prompts are numbered like `prompts`.
    ordinary_from: where the ordinary prompts come from, for the report.
    searched: what finding the neurons cost, where that is known.
    """

    original: Checkpoint
    pruned: Checkpoint
    prompts: Sequence[str]
    ordinary: Sequence[str]
    options: Options
    tau: float
    tau_source: str
    gate: float | None = None
    gate_source: str = "tau"
    manifest: Manifest | None = None
    show_prompts: bool = False
    ordinary_from: str = "the bundled list"
    searched: Mapping[str, Any] = field(default_factory=dict)

    @property
    def memorized_above(self) -> float:
        """The gate, tau where none is known."""
        return self.tau if self.gate is None else self.gate


def removed_neurons(original: Checkpoint, pruned: Checkpoint) -> tuple[Neuron, ...]:
    """The neurons that are zero in all copies in `pruned` and not in `original`, in network order.

    Raises CheckpointError if the two do not have the same value layers.
    """
    shapes = [[(layer.name, layer.rows) for layer in c.value_layers] for c in (original, pruned)]
    if shapes[0] != shapes[1]:
        raise CheckpointError(
            f"{pruned.path}: has other value layers than {original.path}; it was not made from it"
        )
    before, after = model_zeros(original), model_zeros(pruned)
    return union(
        Neuron(layer, row)
        for layer, zeros in after.items()
        for row in zeros.everywhere
        if layer not in before or row not in before[layer].everywhere
    )


def check_manifest(subject: Subject) -> None:
    """Raise OptionError for a manifest of other prompts, or of neurons that are not zeroed."""
    if subject.manifest is None:
        return
    records = subject.manifest.prompts
    if len(records) != len(subject.prompts):
        raise OptionError(
            f"{option('manifest')}: is about {len(records)} prompts, the prompt file holds "
            f"{len(subject.prompts)} different ones; give the two that belong together"
        )
    for record, prompt in zip(records, subject.prompts, strict=True):
        if record.text is not None and record.text != prompt:
            raise OptionError(
                f"{option('manifest')}: its prompt {record.index} is another than the "
                f"prompt file's; give the "
                f"two that belong together"
            )
    left = unremoved(subject.pruned, subject.manifest.neurons)
    if left:
        raise OptionError(
            f"{option('manifest')}: names row {left[0].row} of {quoted(left[0].layer)}, which is "
            f"not zeroed in {subject.pruned.path}; give the manifest that it was pruned by"
        )


def judge(entry: dict[str, Any], subject: Subject) -> None:
    """Add what became of a prompt, and what else is known of it."""
    index = entry["index"]
    record = subject.manifest.prompts[index] if subject.manifest else None
    # Whether to search was decided when the manifest was made, on more than these scores.
    memorized = (
        record.status != NOT_MEMORIZED
        if record and record.status != NOT_SEARCHED
        else entry["score_before"] > subject.memorized_above
    )
    if not memorized:
        status = NOT_MEMORIZED
    elif entry["score_after"] <= subject.tau:
        status = SUPPRESSED
    else:
        status = NOT_REMOVABLE if record and record.status == NOT_REMOVABLE else STILL
    entry["status"] = status
    if record is not None:
        entry["neurons"] = [{"layer": n.layer, "row": n.row} for n in record.neurons]
    if subject.show_prompts:
        entry["text"] = subject.prompts[index]


def shared_neurons(manifest: Manifest | None) -> list[dict[str, Any]]:
    """Neurons that more than one prompt asked for, and which prompts."""
    if manifest is None:
        return []
    wanted: dict[Neuron, list[int]] = {}
    for record in manifest.prompts:
        for neuron in record.neurons:
            wanted.setdefault(neuron, []).append(record.index)
    shared = union(neuron for neuron, prompts in wanted.items() if len(prompts) > 1)
    return [{"layer": n.layer, "row": n.row, "prompts": wanted[n]} for n in shared]
