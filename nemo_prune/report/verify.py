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

from nemo_prune import __version__
from nemo_prune.checkpoint.diff import compare_models
from nemo_prune.checkpoint.statuses import Status
from nemo_prune.errors import NemoPruneError, option
from nemo_prune.localize.localize import FRESH_SEEDS
from nemo_prune.options import Progress
from nemo_prune.report.gallery import (
    Album,
    Measures,
    PictureSettings,
    draw_and_measure,
    inlined_difference,
)
from nemo_prune.report.inputs import VerifyInputs, check_inputs, judge, shared_neurons
from nemo_prune.report.likeness import Likeness
from nemo_prune.report.suppression import score_all
from nemo_prune.scoring import drift
from nemo_prune.scoring.engine import Engine
from nemo_prune.scoring.opening import open_engine

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
class Verification:
    """`data` is plain JSON, the same for the same models, options and seeds but for "created" and
    "seconds"; `album` holds the pictures."""

    data: dict[str, Any]
    album: Album = field(default_factory=dict)

    @property
    def all_suppressed(self) -> bool:
        return all(
            entry["status"] in (Status.SUPPRESSED, Status.NOT_MEMORIZED)
            for entry in self.data["prompts"]
        )


def verify(
    inputs: VerifyInputs, likeness: Likeness, settings: PictureSettings, progress: Progress
) -> Verification:
    """Measure suppression, pictures and side effects.

    Raises OptionError for options that do not fit, CheckpointError for models whose value layers
    are not the same, or that cannot be loaded. Whether more than rows of those was changed is told.
    """
    started = time.monotonic()
    options = inputs.options
    removed = check_inputs(inputs.original, inputs.pruned, inputs.prompts, inputs.manifest)
    promise = compare_models(inputs.original.path, inputs.pruned.path, removed).promise
    assert promise is not None, "neurons were named"
    only_rows = not promise.unexpected
    if not only_rows:
        progress.note(
            f"{inputs.pruned.path}: differs from the original in more than zeroed rows, so what is "
            f"measured is not the pruning alone (nemo-prune diff tells what)"
        )
    known = set(inputs.prompts)
    ordinary = [text for text in inputs.ordinary if text not in known]
    progress.stage("loading the models", 2, "files")
    original = open_engine(inputs.original, options, progress)
    progress.advance()
    other = open_engine(inputs.pruned, options, progress)
    progress.advance()

    scoring = time.monotonic()
    progress.stage("scoring both models", len(inputs.prompts) + len(ordinary), "prompts")
    prompts = score_all(original, other, inputs.prompts, options, inputs.manifest, progress)
    unmemorized = score_all(original, other, ordinary, options, None, progress)
    for entry in prompts:
        judge(entry, inputs)
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
        e["index"]: inputs.prompts[e["index"]] for e in prompts if e["status"] != Status.NOT_MEMORIZED
    }
    picture_samples = settings.passes(len(memorized), len(ordinary))
    if facts["device"] != "cuda":
        expected = per_sample * picture_samples
        if expected > _LONG:
            progress.note(
                f"drawing the pictures will take about {expected / 60:.0f} minutes on this device "
                f"({option('images')} 0 skips them)"
            )
    pictures, measures, album = _draw(inputs, likeness, settings, memorized, ordinary, progress)
    for group, entries in (("prompts", prompts), ("ordinary", unmemorized)):
        for entry in entries:
            entry["pictures"] = measures[group].get(entry["index"])
            before, after = entry.pop("differences")
            if group == "prompts" and entry["index"] in memorized:
                shown = album["prompts"].setdefault(entry["index"], {})
                shown["noise_before"] = inlined_difference(before)
                shown["noise_after"] = inlined_difference(after)

    data: dict[str, Any] = {
        "format": FORMAT,
        "version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
        "original": {"path": inputs.original.path.name, "sha256": promise.a_sha256},
        "pruned": {"path": inputs.pruned.path.name, "sha256": promise.b_sha256},
        "options": {
            "tau": inputs.tau,
            "tau_source": inputs.tau_source,
            "gate": inputs.memorized_above,
            "gate_source": inputs.gate_source,
            "criterion": options.criterion,
            "seeds": options.seeds,
            "seed": options.seed,
            "first_seed": FRESH_SEEDS,
            "timestep": timestep,
            "fpr": options.fpr,
            "layers": options.layers,
            "search": options.search,
            "rounds": options.rounds,
            "ordinary_from": inputs.ordinary_from,
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
            for layer in inputs.original.value_layers
        ],
        "neurons": len(removed),
        "only_rows": only_rows,
        "shared": shared_neurons(inputs.manifest),
        "cost": {
            **{f"search_{name}": value for name, value in inputs.searched.items()},
            "samples": samples,
            "picture_samples": 0 if "skipped" in pictures else picture_samples,
        },
        "limits": list(LIMITS),
    }
    return Verification(data, album)


def _draw(
    inputs: VerifyInputs,
    likeness: Likeness,
    settings: PictureSettings,
    prompts: Mapping[int, str],
    ordinary: Sequence[str],
    progress: Progress,
) -> tuple[dict[str, Any], Measures, Album]:
    """How pictures were drawn ("skipped": why none were), their measures, and the pictures."""
    told: dict[str, Any] = {
        "images": settings.images,
        "ordinary_images": settings.ordinary_images if settings.images else 0,
        "steps": settings.steps,
        "guidance": settings.guidance,
    }
    if settings.images:
        models = (inputs.original, inputs.pruned)
        try:
            return told, *draw_and_measure(
                models, inputs.options, settings, prompts, ordinary, likeness, progress
            )
        except (NemoPruneError, torch.OutOfMemoryError) as error:
            # The scores stand without pictures, and may have taken hours.
            told["skipped"] = str(error).partition("\n")[0]
            progress.note(f"no pictures: {told['skipped']}")
    empty: dict[str, dict[int, dict[str, Any]]] = {"prompts": {}, "ordinary": {}}
    return told, empty, {group: {} for group in empty}


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
