"""Compare a pruned checkpoint with its original, on seeds that no search used; plain data comes out.

What is measured, per prompt and over ordinary prompts: memorization scores ("Finding NeMo",
section 3.1), pictures of both models from the same seeds, and the drift of cross-attention
outputs. The paper removes each prompt's own neurons, a file loses the union of all: where a
manifest tells them apart, both are scored.
"""

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch

from nemo_prune import __version__, drift
from nemo_prune.engine import Engine
from nemo_prune.errors import CheckpointError, NemoPruneError, OptionError
from nemo_prune.families import Checkpoint
from nemo_prune.gallery import Album, PictureSettings, draw_and_measure, inlined_difference
from nemo_prune.header import quoted
from nemo_prune.likeness import Likeness
from nemo_prune.localization import (
    FRESH_SEEDS,
    NOT_MEMORIZED,
    NOT_REMOVABLE,
    NOT_SEARCHED,
    STILL,
    SUPPRESSED,
)
from nemo_prune.manifest import Manifest, Neuron, union
from nemo_prune.models import compare_models, model_zeros
from nemo_prune.opening import Options, Progress, open_engine
from nemo_prune.suppression import score_all

FORMAT = "nemo-prune-report/1"
_LONG = 60  # seconds of drawing that deserve a word beforehand

LIMITS = (
    "Suppressed means: these prompts no longer trigger it. It is not erased: another prompt, or a "
    "text embedding optimized towards the picture, may still bring it back (arXiv 2507.16880).",
    "The score looks at one early timestep, and at a limited number of starting noises.",
    "Fine-tuning, merging with an unpruned model, or a LoRA on the value layers can undo it.",
    "Ordinary prompts were sampled; one that is not among them may have changed more.",
)


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


@dataclass(frozen=True)
class Verification:
    """`data` is plain JSON, the same for the same models, options and seeds but for "created" and
    "seconds"; `album` holds the pictures."""

    data: dict[str, Any]
    album: Album = field(default_factory=dict)

    @property
    def all_suppressed(self) -> bool:
        return all(entry["status"] in (SUPPRESSED, NOT_MEMORIZED) for entry in self.data["prompts"])


def verify(
    subject: Subject, likeness: Likeness, settings: PictureSettings, progress: Progress
) -> Verification:
    """Measure suppression, pictures and side effects.

    Raises OptionError for options that do not fit, CheckpointError for models whose value layers
    are not the same, or that cannot be loaded. Whether more than rows of those was changed is told.
    """
    started = time.monotonic()
    options = subject.options
    removed = removed_neurons(subject.original, subject.pruned)
    _check_manifest(subject, removed)
    promise = compare_models(subject.original.path, subject.pruned.path, removed).promise
    assert promise is not None, "neurons were named"
    only_rows = not promise.unexpected
    if not only_rows:
        progress.note(
            f"{subject.pruned.path}: differs from the original in more than zeroed rows, so what is "
            f"measured is not the pruning alone (nemo-prune diff tells what)"
        )
    known = set(subject.prompts)
    ordinary = [text for text in subject.ordinary if text not in known]
    progress.stage("loading the models", 2, "files")
    original = open_engine(subject.original, options, progress)
    progress.advance()
    other = open_engine(subject.pruned, options, progress)
    progress.advance()

    scoring = time.monotonic()
    progress.stage("scoring both models", len(subject.prompts) + len(ordinary), "prompts")
    prompts = score_all(original, other, subject.prompts, options, subject.manifest, progress)
    unmemorized = score_all(original, other, ordinary, options, None, progress)
    for entry in prompts:
        _judge(entry, subject)
    samples = original.cost.samples + other.cost.samples
    per_sample = (time.monotonic() - scoring) / max(1, samples)

    progress.stage("measuring drift", len(ordinary), "ordinary prompts")
    measured = drift.measure(
        original, original.prompts(ordinary), removed, seed=FRESH_SEEDS,
        pruned=(other, other.prompts(ordinary)), advance=progress.advance,
    ) if ordinary else None  # fmt: skip
    samples = original.cost.samples + other.cost.samples
    facts, timestep = _model_facts(original), original.timestep
    del original, other  # their memory is needed for drawing

    memorized = {
        e["index"]: subject.prompts[e["index"]] for e in prompts if e["status"] != NOT_MEMORIZED
    }
    pictures: dict[str, Any] = {
        "images": settings.images,
        "steps": settings.steps,
        "guidance": settings.guidance,
    }
    album: Album = {"prompts": {}, "ordinary": {}}
    picture_samples = settings.passes(len(memorized), len(ordinary)) if settings.images else 0
    if settings.images:
        expected = per_sample * picture_samples
        if facts["device"] != "cuda" and expected > _LONG:
            progress.note(
                f"drawing the pictures will take about {expected / 60:.0f} minutes on this device "
                f"(--images 0 skips them)"
            )
        models = (subject.original, subject.pruned)
        try:
            measures, album = draw_and_measure(
                models, options, settings, memorized, ordinary, likeness, progress
            )
        except (NemoPruneError, torch.OutOfMemoryError) as error:
            # The scores stand without pictures, and may have taken hours.
            reason = str(error).partition("\n")[0]
            progress.note(f"no pictures: {reason}")
            pictures["skipped"], picture_samples = reason, 0
        else:
            for group, entries in (("prompts", prompts), ("ordinary", unmemorized)):
                for entry in entries:
                    entry["pictures"] = measures[group].get(entry["index"])
    for entry in (*prompts, *unmemorized):
        before, after = entry.pop("differences")
        if "status" in entry and entry["index"] in memorized:
            shown = album["prompts"].setdefault(entry["index"], {})
            shown["noise_before"] = inlined_difference(before)
            shown["noise_after"] = inlined_difference(after)

    data: dict[str, Any] = {
        "format": FORMAT,
        "version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
        "original": {"path": subject.original.path.name, "sha256": promise.a_sha256},
        "pruned": {"path": subject.pruned.path.name, "sha256": promise.b_sha256},
        "options": {
            "tau": subject.tau,
            "tau_source": subject.tau_source,
            "gate": subject.memorized_above,
            "gate_source": subject.gate_source,
            "criterion": options.criterion,
            "seeds": options.seeds,
            "seed": options.seed,
            "first_seed": FRESH_SEEDS,
            "timestep": timestep,
            "fpr": options.fpr,
            "layers": options.layers,
            "search": options.search,
            "rounds": options.rounds,
            "ordinary_from": subject.ordinary_from,
            **facts,
        },
        "prompts": prompts,
        "ordinary": unmemorized,
        "drift": measured,
        "pictures": pictures,
        "measures": likeness.used if settings.images else [],
        "layers": [
            {
                "layer": layer.name,
                "rows": layer.rows,
                "removed": [n.row for n in removed if n.layer == layer.name],
            }
            for layer in subject.original.value_layers
        ],
        "neurons": len(removed),
        "only_rows": only_rows,
        "shared": _shared(subject.manifest),
        "cost": {
            **{f"search_{name}": value for name, value in subject.searched.items()},
            "samples": samples,
            "picture_samples": picture_samples,
        },
        "limits": list(LIMITS),
    }
    return Verification(data, album)


def _check_manifest(subject: Subject, removed: Sequence[Neuron]) -> None:
    """Raise OptionError for a manifest of other prompts, or of neurons that are not zeroed."""
    if subject.manifest is None:
        return
    records = subject.manifest.prompts
    if len(records) != len(subject.prompts):
        raise OptionError(
            f"--manifest: is about {len(records)} prompts, the prompt file holds "
            f"{len(subject.prompts)} different ones; give the two that belong together"
        )
    for record, prompt in zip(records, subject.prompts, strict=True):
        if record.text is not None and record.text != prompt:
            raise OptionError(
                f"--manifest: its prompt {record.index} is another than the prompt file's; give the "
                f"two that belong together"
            )
    strange = sorted(set(subject.manifest.neurons) - set(removed))
    if strange:
        raise OptionError(
            f"--manifest: names row {strange[0].row} of {quoted(strange[0].layer)}, which is not "
            f"zeroed in {subject.pruned.path}; give the manifest that it was pruned by"
        )


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


# ------------------------------------------------------------------------------- what is known


def _judge(entry: dict[str, Any], subject: Subject) -> None:
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


def _shared(manifest: Manifest | None) -> list[dict[str, Any]]:
    """Neurons that more than one prompt asked for, and which prompts."""
    if manifest is None:
        return []
    wanted: dict[Neuron, list[int]] = {}
    for record in manifest.prompts:
        for neuron in record.neurons:
            wanted.setdefault(neuron, []).append(record.index)
    shared = union(neuron for neuron, prompts in wanted.items() if len(prompts) > 1)
    return [{"layer": n.layer, "row": n.row, "prompts": wanted[n]} for n in shared]


def _model_facts(engine: Engine) -> Mapping[str, str]:
    from importlib.metadata import version

    model = engine.model
    return {
        "family": model.family,
        "latents": "x".join(map(str, model.latent_shape)),
        "device": model.device.type,
        "precision": model.precision,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "diffusers", "transformers", "scikit-image")},
    }
