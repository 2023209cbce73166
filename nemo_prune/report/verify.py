"""Compare a pruned checkpoint with its original, on seeds that no search used.

    report = verify(inputs, open_likeness(), PictureSettings(), progress)
    report.save(Path("report.html"))

Measured per prompt and over ordinary prompts: memorization scores ("Finding NeMo", section 3.1),
pictures of both models from the same seeds, and the drift of cross-attention outputs. The paper
removes each prompt's own neurons, a file loses the union of all: where a manifest tells them apart,
both are scored.
"""

import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from nemo_prune import __version__
from nemo_prune.checkpoint.diff import compare_models
from nemo_prune.checkpoint.manifest import shared_neurons
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.statuses import Status
from nemo_prune.errors import NemoPruneError, option
from nemo_prune.files.prompts import apart_from
from nemo_prune.localize.localize import FRESH_SEEDS
from nemo_prune.options import Progress
from nemo_prune.report.gallery import (
    Album,
    Measures,
    PictureSettings,
    draw_and_measure,
    inlined_difference,
    told_targets,
)
from nemo_prune.report.inputs import VerifyInputs, check_inputs, judge
from nemo_prune.report.likeness import Likeness
from nemo_prune.report.render import write_card, write_report
from nemo_prune.report.suppression import score_all
from nemo_prune.report.targets import shown_name
from nemo_prune.report.verdict import ENOUGH_SEEDS, notes
from nemo_prune.scoring import drift
from nemo_prune.scoring.engine import Engine
from nemo_prune.scoring.opening import open_engines
from nemo_prune.scoring.sharing import Workers

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
class Report:
    """What `verify` found.

    Attributes:
        data: plain JSON, the same for the same models, options and seeds but for "created" and
            "seconds".
        album: the pictures, for HTML.
        targets: prompt number -> training picture, of those that were used.
    """

    data: dict[str, Any]
    album: Album = field(default_factory=dict)
    targets: Mapping[int, Path] = field(default_factory=dict)

    @property
    def all_suppressed(self) -> bool:
        """Whether no prompt is still memorized, by its score or by its pictures."""
        settled = (Status.SUPPRESSED, Status.NOT_MEMORIZED)
        return all(entry["status"] in settled for entry in self.data["prompts"])

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write it as .html, .md or .json, as the name says.

        Raises:
            OptionError: another suffix.
            OutputError: the file cannot be written, or exists and `overwrite` is false.
        """
        write_report(self.data, self.album, Path(path), overwrite)

    def save_card(self, path: str | Path, overwrite: bool = False) -> None:
        """Write a section for the pruned model's card, Markdown; raises OptionError, OutputError."""
        write_card(self.data, Path(path), overwrite)


@dataclass(frozen=True)
class _Measured:
    """What the denoisers answered; `seconds_a_sample` is what one forward pass took."""

    prompts: list[dict[str, Any]]
    ordinary: list[dict[str, Any]]
    drift: dict[str, Any] | None
    samples: int
    seconds_a_sample: float
    facts: dict[str, Any]


def verify(
    inputs: VerifyInputs, likeness: Likeness, settings: PictureSettings, progress: Progress
) -> Report:
    """Measure suppression, pictures and side effects.

    Raises:
        OptionError: options that do not fit.
        CheckpointError: models whose value layers are not the same, or that cannot be loaded. If more
            than rows of those was changed, a note says so.
    """
    started = time.monotonic()
    removed = check_inputs(inputs.original, inputs.pruned, inputs.prompts, inputs.manifest)
    promise = compare_models(inputs.original.path, inputs.pruned.path, removed).promise
    assert promise is not None, "neurons were named"
    only_rows = not promise.unexpected
    if not only_rows:
        progress.note(
            f"{inputs.pruned.path}: differs from the original in more than zeroed rows, so what is "
            f"measured is not the pruning alone (nemo-prune diff shows what)"
        )
    ordinary = apart_from(inputs.ordinary, inputs.prompts)
    progress.stage("loading the models", 2, "files")
    models = (inputs.original, inputs.pruned)
    original, other = open_engines(models, inputs.options, progress, progress.advance)
    with closing(original):
        measured = _measure(inputs, original, other, ordinary, removed, progress)
        for engine in (original, other):
            engine.model.release()  # its memory is needed for drawing
        memorized = {
            entry["index"]: inputs.prompts[entry["index"]]
            for entry in measured.prompts
            if entry["status"] != Status.NOT_MEMORIZED
        }
        picture_samples = settings.passes(len(memorized), len(ordinary))
        expected = measured.seconds_a_sample * picture_samples
        if measured.facts["device"] != "cuda" and expected > _LONG:
            progress.note(
                f"drawing the pictures will take about {expected / 60:.0f} minutes on this device "
                f"({option('images')} 0 skips them)"
            )
        pictures, measures, album = _draw(
            inputs, likeness, settings, memorized, ordinary, progress, original.workers
        )
    _add_pictures(inputs.tau, measured, measures, album)
    # Both models draw these from the same noises, and much alike: they count once.
    drawn_of = len(measures["ordinary"])
    pictures["level_from"] = {
        "prompts": drawn_of, "pictures": drawn_of * pictures["ordinary_images"],
    }  # fmt: skip

    matched = list(measures.get("targets", {}).values())
    matched = matched or [one.as_json() for one in told_targets(settings)]
    targets = {one["prompt"]: Path(one["file"]) for one in matched if one["doubt"] is None}
    for one in matched:
        path = Path(one["file"])
        one["file"] = path.name if inputs.show_prompts else shown_name(path, inputs.prompts)
    few = 0 < settings.images < ENOUGH_SEEDS and "skipped" not in pictures
    data: dict[str, Any] = {
        "format": FORMAT,
        "version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
        "original": {"path": inputs.original.path.name, "sha256": promise.a_sha256},
        "pruned": {"path": inputs.pruned.path.name, "sha256": promise.b_sha256},
        "options": _options(inputs) | measured.facts,
        "prompts": measured.prompts,
        "ordinary": measured.ordinary,
        "drift": measured.drift,
        "pictures": pictures,
        "targets": {"match": settings.targets_match, "pictures": matched},
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
        "shared": shared_neurons(inputs.manifest) if inputs.manifest else [],
        "cost": {
            **{f"search_{name}": value for name, value in inputs.searched.items()},
            "samples": measured.samples,
            "picture_samples": 0 if "skipped" in pictures else picture_samples,
        },
        "limits": [
            *LIMITS,
            *([f"Pictures were judged on {settings.images} starting noises a prompt; what comes back "
               f"from two of {ENOUGH_SEEDS} may have been missed."] if few else []),
        ],
    }  # fmt: skip
    return Report(data | {"notes": notes(data)}, album, targets)


def _measure(
    inputs: VerifyInputs, original: Engine, other: Engine, ordinary: Sequence[str],
    removed: Sequence[Neuron], progress: Progress,
) -> _Measured:  # fmt: skip
    """Scores and drift."""
    options = inputs.options
    started = time.monotonic()
    progress.stage("scoring both models", len(inputs.prompts) + len(ordinary), "prompts")
    prompts = score_all(original, other, inputs.prompts, options, inputs.manifest, progress)
    unmemorized = score_all(original, other, ordinary, options, None, progress)
    for entry in prompts:
        judge(entry, inputs)
    samples = original.cost.samples + other.cost.samples
    seconds_a_sample = (time.monotonic() - started) / max(1, samples)

    progress.stage("measuring drift", len(ordinary), "ordinary prompts")
    drifted = drift.measure(
        original, original.prompts(ordinary), removed, seed=FRESH_SEEDS,
        pruned=(other, other.prompts(ordinary)), advance=progress.advance,
    ) if ordinary else None  # fmt: skip
    return _Measured(
        prompts,
        unmemorized,
        drifted,
        original.cost.samples + other.cost.samples,
        seconds_a_sample,
        {"timestep": original.timestep, **_model_facts(original)},
    )


def _add_pictures(tau: float, measured: _Measured, measures: Measures, album: Album) -> None:
    """Each prompt's measures of pictures, its status in their light, and its noise differences."""
    for group, entries in (("prompts", measured.prompts), ("ordinary", measured.ordinary)):
        for entry in entries:
            found = entry["pictures"] = measures[group].get(entry["index"])
            before, after = entry.pop("differences")
            if group == "prompts" and entry["status"] != Status.NOT_MEMORIZED:
                if entry["score_after"] <= tau:
                    entry["status"] = _by_pictures(entry["status"], found)
                shown = album["prompts"].setdefault(entry["index"], {})
                shown["noise_before"] = inlined_difference(before)
                shown["noise_after"] = inlined_difference(after)


def _by_pictures(status: Status, pictures: Mapping[str, Any] | None) -> Status:
    """The status of a prompt below tau: pictures overrule its score and a manifest's trajectory."""
    if not pictures or "near_after" not in pictures:
        return status
    if pictures["near_after"]:
        return Status.REPLICATED if status == Status.SUPPRESSED else status
    return Status.SUPPRESSED if len(pictures["consensus_after"]) >= ENOUGH_SEEDS else status


def _draw(
    inputs: VerifyInputs,
    likeness: Likeness,
    settings: PictureSettings,
    prompts: Mapping[int, str],
    ordinary: Sequence[str],
    progress: Progress,
    workers: Workers | None,
) -> tuple[dict[str, Any], Measures, Album]:
    """How pictures were drawn ("skipped": why none were), their measures, and the pictures."""
    how: dict[str, Any] = {
        "images": settings.images,
        "ordinary_images": settings.ordinary_images if settings.images else 0,
        "steps": settings.steps,
        "guidance": settings.guidance,
    }
    if settings.images:
        models = (inputs.original, inputs.pruned)
        try:
            return how, *draw_and_measure(
                models, inputs.options, settings, prompts, ordinary, likeness, progress, workers
            )
        except (NemoPruneError, torch.OutOfMemoryError) as error:
            # The scores stand without pictures, and may have taken hours.
            how["skipped"] = str(error).partition("\n")[0]
            progress.note(f"no pictures: {how['skipped']}")
    empty: dict[str, dict[int, dict[str, Any]]] = {"prompts": {}, "ordinary": {}}
    return how, empty, {group: {} for group in empty}


def _options(inputs: VerifyInputs) -> dict[str, Any]:
    options = inputs.options
    return {
        "tau": inputs.tau,
        "tau_source": inputs.tau_source,
        "gate": inputs.memorized_above,
        "gate_source": inputs.gate_source,
        "criterion": options.criterion,
        "seeds": options.seeds,
        "seed": options.seed,
        "first_seed": FRESH_SEEDS,
        "fpr": options.fpr,
        "layers": options.layers,
        "search": options.search,
        "rounds": options.rounds,
        "ordinary_from": inputs.ordinary_from,
    }


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
