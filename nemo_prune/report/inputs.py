"""The inputs of `verify`: two checkpoints, prompts, and what is known of how one became the other."""

import filecmp
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nemo_prune.checkpoint.checkpoint import Checkpoint
from nemo_prune.checkpoint.diff import unremoved
from nemo_prune.checkpoint.manifest import Manifest
from nemo_prune.checkpoint.neurons import Neuron, union
from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.checkpoint.provenance import StatedSettings
from nemo_prune.checkpoint.statuses import GONE, Status
from nemo_prune.checkpoint.zeros import model_zeros
from nemo_prune.errors import CheckpointError, OptionError, option
from nemo_prune.files.atomic import same_file
from nemo_prune.files.header import quoted
from nemo_prune.files.prompts import bundled_captions, told_of
from nemo_prune.localize.localize import Localization
from nemo_prune.options import BUNDLED_ORDINARY, Options, Progress
from nemo_prune.scoring.opening import open_engine
from nemo_prune.scoring.ordinary import Ordinary

_FAILED = (Status.NOT_REMOVABLE, Status.REPLICATED)  # what a run could not make suppressed


@dataclass(frozen=True)
class VerifyInputs:
    """What `verify` looks at.

    Attributes:
        gate: score above which a prompt is memorized, where no manifest says so; None: tau.
        manifest: which prompt asked for which neuron; its prompts are numbered like `prompts`.
        ordinary_from: where the ordinary prompts come from, for the report.
        searched: what finding the neurons cost, where that is known.
        places: of each prompt, the file and the line where it stands, if that is known.
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
    places: Sequence[tuple[str, int]] = ()

    @property
    def memorized_above(self) -> float:
        """The gate, tau where none is known."""
        return self.tau if self.gate is None else self.gate


def inputs_of_run(
    found: Localization,
    pruned: Path,
    prompts: Sequence[str],
    ordinary: Sequence[str],
    ordinary_from: str,
    places: Sequence[tuple[str, int]] = (),
) -> VerifyInputs:
    """The inputs for the file `pruned` that was just written from what `found` holds."""
    return VerifyInputs(
        original=found.checkpoint,
        pruned=open_checkpoint(pruned),
        prompts=prompts,
        ordinary=ordinary,
        options=found.options,
        tau=found.tau,
        tau_source=found.thresholds.tau_source,
        gate=found.thresholds.gate.value,
        gate_source=found.thresholds.gate_source,
        manifest=found.manifest,
        show_prompts=any(record.text is not None for record in found.manifest.prompts),
        ordinary_from=ordinary_from,
        # Without what depends on the cache: two runs alike must give the same report.
        searched={name: found.cost[name] for name in ("samples", "check_samples")},
        places=places,
    )


def bundled_ordinary() -> tuple[tuple[str, ...], str]:
    """The bundled prompts that side effects are looked for with, and their name in the report."""
    return bundled_captions()[:BUNDLED_ORDINARY], f"the first {BUNDLED_ORDINARY} of the bundled list"


def as_pruned(asked: Options, stated: StatedSettings, said: Collection[str]) -> Options:
    """`asked`, with what the pruned file states; `said` names the options that are to stay."""
    if "criterion" not in said and stated.criterion is not None:
        asked = replace(asked, criterion=stated.criterion)
    if not {"steps", "timestep"} & set(said):
        asked = replace(asked, timestep=stated.timestep)
    return asked


def verify_thresholds(
    original: Checkpoint,
    asked: Options,
    captions: Sequence[str] | None,
    stated: StatedSettings,
    progress: Progress,
) -> tuple[float, str, float | None, str]:
    """tau, the gate, and the source of each: the pruned file, unless options ask for others.

    captions: ordinary prompts to take them from, if they are to be taken from some.

    Raises OptionError, CheckpointError, CalibrationError.
    """
    if stated.tau is not None and asked.tau is None and not asked.calibration and not captions:
        asked.check_gate(stated.tau)
        if asked.gate is not None:
            return stated.tau, "the pruned file's", asked.gate, "given"
        gate_source = "tau" if stated.gate is None else "the pruned file's"
        return stated.tau, "the pruned file's", stated.gate, gate_source
    engine = open_engine(original, asked, progress, workers=True)
    with closing(engine):
        found = Ordinary(engine, original, asked, captions, progress).thresholds
    engine.model.release()
    return found.tau, found.tau_source, found.gate.value, found.gate_source


def check_inputs(
    original: Checkpoint, pruned: Checkpoint, prompts: Sequence[str], manifest: Manifest | None
) -> tuple[Neuron, ...]:
    """Refuse what does not belong together, from the files alone: no model is loaded.

    Returns:
        The neurons that are zero in all copies in `pruned` and not in `original`, in network order.

    Raises:
        CheckpointError: the two do not have the same value layers.
        OptionError: the two are one model, or exchanged; the manifest is about other prompts, or names
            neurons that are not zero.
    """
    if _are_one(original, pruned):
        raise OptionError(
            f"{pruned.path}: is {original.path}, or the same bytes; give the original and the pruned one"
        )
    shapes = [[(layer.name, layer.rows) for layer in c.value_layers] for c in (original, pruned)]
    if shapes[0] != shapes[1]:
        raise CheckpointError(
            f"{pruned.path}: has other value layers than {original.path}; it was not made from it"
        )
    before, after = _zero_neurons(original), _zero_neurons(pruned)
    if before - after and not after - before:
        raise OptionError(
            f"{original.path}: has rows of zeros that {pruned.path} has not, and lacks none of its own; "
            f"give the original first, then the pruned one"
        )
    if manifest is not None:
        _check_manifest(manifest, prompts, pruned)
    return union(after - before)


def _are_one(original: Checkpoint, pruned: Checkpoint) -> bool:
    """Whether two models have the same weights, byte for byte."""
    ours, theirs = original.weights(), pruned.weights()
    return ours.keys() == theirs.keys() and all(
        same_file(path, theirs[place]) or filecmp.cmp(path, theirs[place], shallow=False)
        for place, path in ours.items()
    )


def _zero_neurons(checkpoint: Checkpoint) -> frozenset[Neuron]:
    return frozenset(
        Neuron(layer, row)
        for layer, zeros in model_zeros(checkpoint).items()
        for row in zeros.everywhere
    )


def _check_manifest(manifest: Manifest, prompts: Sequence[str], pruned: Checkpoint) -> None:
    records = manifest.prompts
    if len(records) != len(prompts):
        raise OptionError(
            f"{option('manifest')}: is about {len(records)} prompts, the prompt file holds "
            f"{len(prompts)} different ones; give the two that belong together"
        )
    for record, prompt in zip(records, prompts, strict=True):
        if record.text is not None and record.text != prompt:
            raise OptionError(
                f"{option('manifest')}: its prompt {record.index} is another than the "
                f"prompt file's; give the two that belong together"
            )
    # Zero, not zeroed since: a row that the original had lost already is as removed as any.
    if missing := unremoved(pruned, manifest.neurons):
        raise OptionError(
            f"{option('manifest')}: names row {missing[0].row} of {quoted(missing[0].layer)}, which is "
            f"not zeroed in {pruned.path}; give the manifest that it was pruned by"
        )


def judge(entry: dict[str, Any], inputs: VerifyInputs) -> None:
    """Add a prompt's status by its scores, and what else is known of it."""
    index = entry["index"]
    record = inputs.manifest.prompts[index] if inputs.manifest else None
    # Whether to search was decided when the manifest was made, on more than these scores.
    memorized = (
        record.status != Status.NOT_MEMORIZED
        if record and record.status != Status.NOT_SEARCHED
        else entry["score_before"] > inputs.memorized_above
    )
    kept = Status(record.status) if record and record.status in _FAILED else None
    if not memorized:
        status = Status.NOT_MEMORIZED
    elif entry["score_after"] > inputs.tau:
        status = Status.NOT_REMOVABLE if kept == Status.NOT_REMOVABLE else Status.STILL_MEMORIZED
    else:
        # That a trajectory still drew it is not undone by a score.
        drawn = record is not None and (record.trajectory or 0) >= GONE
        status = kept if kept and (drawn or kept == Status.REPLICATED) else Status.SUPPRESSED
    entry["status"] = status
    if record is not None:
        entry["neurons"] = [{"layer": n.layer, "row": n.row} for n in record.neurons]
        if record.trajectory is not None:
            entry["trajectory"] = record.trajectory
    entry |= told_of(index, inputs.prompts, inputs.places, inputs.show_prompts)
