"""The audit: every attempt to bring pruned pictures back, and what came of it, as plain data.

found = audit(AuditInputs(...), Silent())
found.save(Path("audit.html"))
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from nemo_prune import __version__
from nemo_prune.audit.outcome import LIMITS, came_back
from nemo_prune.audit.pictures import Wanted, draw_more, passes
from nemo_prune.audit.render import write_audit
from nemo_prune.audit.strength import EFFORTS, Effort, Strength
from nemo_prune.audit.triggers import Judges, samples_of, try_words
from nemo_prune.audit.words import Variation, variations
from nemo_prune.checkpoint.checkpoint import Checkpoint
from nemo_prune.checkpoint.diff import compare_models
from nemo_prune.errors import CheckpointError, OptionError
from nemo_prune.files.prompts import apart_from, bundled_captions
from nemo_prune.localize.confirm import UNRELATED, unrelated_ends
from nemo_prune.options import Options, Progress
from nemo_prune.report.inputs import check_inputs
from nemo_prune.report.likeness import open_likeness
from nemo_prune.scoring.journal import Journal, fingerprint_of_run
from nemo_prune.scoring.opening import open_engine, trajectory_schedule

FORMAT = "nemo-prune-audit/1"
_SHOWN = 8  # wordings of a caption that brought its picture back and are drawn


@dataclass(frozen=True)
class AuditInputs:
    """What an audit looks at.

    Attributes:
        prompts: captions whose pictures were pruned from `original`, giving `pruned`.
        options: how the models are loaded, and the seed of all that is drawn by lot.
        gate: score above which a prompt is memorized; tau: what suppressed prompts stay below.
        thresholds_from: where the two come from.
        targets: prompt number -> training picture.
        places: of each prompt, the file and the line where it stands, if that is known.
    """

    original: Checkpoint
    pruned: Checkpoint
    prompts: Sequence[str]
    options: Options
    tau: float
    gate: float
    thresholds_from: str
    strength: Strength = "standard"
    targets: Mapping[int, Path] = field(default_factory=dict)
    show_prompts: bool = False
    places: Sequence[tuple[str, int]] = ()

    @property
    def effort(self) -> Effort:
        return EFFORTS[self.strength]

    def variations(self, index: int) -> list[Variation]:
        """The words that are tried for one of the prompts."""
        caption, count = self.prompts[index], self.effort.variations
        return variations(caption, self.prompts, count, self.options.seed)


@dataclass(frozen=True)
class Audit:
    """What `audit` found.

    Attributes:
        data: plain JSON, the same for the same models, options and seeds but for "created" and
            "seconds".
    """

    data: dict[str, Any] = field(default_factory=dict)

    @property
    def came_back(self) -> bool:
        """Whether any picture did."""
        return any(came_back(entry) for entry in self.data["prompts"])

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write it as .html or .json, as the name says; raises OptionError, OutputError."""
        write_audit(self.data, Path(path), overwrite)


def audit(
    inputs: AuditInputs, progress: Progress, journal: Path | None = None, resume: bool = False
) -> Audit:
    """Try to bring every prompt's picture back.

    Args:
        journal: keeps the prompts that are done with; removed at the end. resume: go on with it.

    Raises:
        OptionError: the original memorized none of the prompts, so that nothing can be brought back.
        CheckpointError: models whose value layers are not the same, or that cannot be loaded.
        OutputError: the journal cannot be used, or an earlier run left it and `resume` is false.
    """
    started = time.monotonic()
    removed = check_inputs(inputs.original, inputs.pruned, inputs.prompts, None)
    promise = compare_models(inputs.original.path, inputs.pruned.path, removed).promise
    assert promise is not None, "neurons were named"
    done = _Done(None)
    if journal is not None:
        hashes = f"{promise.a_sha256} {promise.b_sha256}"
        run = fingerprint_of_run(hashes, inputs.prompts, None, _settings(inputs))
        done = _Done(Journal.open(journal, run, resume=resume))
    try:
        words, samples = _words(inputs, progress, done)
        pictures, skipped, picture_samples = _pictures(inputs, words, progress, done)
    finally:
        done.close()
    data: dict[str, Any] = {
        "format": FORMAT,
        "version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
        "original": {"path": inputs.original.path.name, "sha256": promise.a_sha256},
        "pruned": {"path": inputs.pruned.path.name, "sha256": promise.b_sha256},
        "neurons": len(removed),
        "options": _settings(inputs),
        "prompts": entries(inputs, words, pictures),
        "no_pictures": skipped,
        "cost": {"samples": samples, "picture_samples": picture_samples},
        "limits": list(LIMITS),
    }
    if journal is not None:
        journal.unlink(missing_ok=True)
    if not any(entry["memorized"] for entry in data["prompts"]):
        raise OptionError(
            f"{inputs.original.path}: memorized none of these prompts, by score or by trajectory, so "
            f"there is nothing to bring back; give the prompts that were pruned, or the model as it was"
        )
    return Audit(data)


class _Done:
    """What is finished, on the disk where there is a journal."""

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal
        self._found: dict[str, Any] = journal.entries if journal else {}

    def get(self, key: str) -> Any:
        return self._found.get(key)

    def add(self, key: str, value: Any) -> None:
        if self._journal:
            self._journal.add(key, value)
        self._found[key] = value

    def close(self) -> None:
        if self._journal:
            self._journal.close()


def _words(
    inputs: AuditInputs, progress: Progress, done: _Done
) -> tuple[dict[int, dict[str, Any]], int]:
    """`try_words` of every prompt, and the denoiser samples that it took."""
    places = range(len(inputs.prompts))
    left = [index for index in places if done.get(f"words {index}") is None]
    samples = 0
    if left:
        progress.stage("loading the models", 2, "files")
        original = open_engine(inputs.original, inputs.options, progress)
        progress.advance()
        pruned = open_engine(inputs.pruned, inputs.options, progress)
        progress.advance()
        schedule = trajectory_schedule(original.model, "trajectory")
        ordinary = apart_from(bundled_captions(), inputs.prompts)[:UNRELATED]
        judges = Judges(
            inputs.tau, inputs.gate, schedule, unrelated_ends(original, ordinary, schedule, progress)
        )
        tried = {index: inputs.variations(index) for index in left}
        total = sum(samples_of(inputs.effort, len(one), schedule) for one in tried.values())
        texts = sum(map(len, tried.values()))
        progress.note(
            f"strength {inputs.strength}: up to {texts} wordings of {len(left)} prompts, about "
            f"{total:,} denoiser samples and more for each alarm"
        )
        progress.stage("trying other words", total, "samples")
        for index in left:
            found = try_words(original, pruned, tried[index], inputs.effort, judges, progress.advance)
            done.add(f"words {index}", found)
        samples = original.cost.samples + pruned.cost.samples
        for engine in (original, pruned):
            engine.model.release()
    return {index: done.get(f"words {index}") for index in places}, samples


def _pictures(
    inputs: AuditInputs, words: Mapping[int, dict[str, Any]], progress: Progress, done: _Done
) -> tuple[dict[int, dict[str, Any]], str | None, int]:
    """`draw_more` of what the original memorized; why no pictures were drawn; what they took."""
    places = [index for index, one in words.items() if one["memorized"]]
    wanted = {}
    for index in places:
        if done.get(f"pictures {index}") is None:
            texts = [one.text for one in inputs.variations(index)]
            back = [place for place, word in enumerate(words[index]["words"]) if word["back"]]
            of_words = words[index]["words"]
            named = {place: texts[of_words[place]["place"]] for place in back[:_SHOWN]}
            wanted[index] = Wanted(inputs.prompts[index], named, inputs.targets.get(index))
    skipped, samples = None, 0
    if wanted:
        samples = passes(list(wanted.values()), inputs.effort.styles)
        count = len(wanted) * sum(style.seeds for style in inputs.effort.styles)
        progress.note(f"{count} more pictures of the pruned model, {samples:,} denoiser samples in all")
        try:
            draw_more(
                (inputs.original, inputs.pruned),
                inputs.options,
                wanted,
                apart_from(bundled_captions(), inputs.prompts),
                inputs.effort.styles,
                open_likeness(),
                progress,
                lambda index, found: done.add(f"pictures {index}", found),
            )
        except (CheckpointError, torch.OutOfMemoryError) as error:
            # What words brought back stands without pictures.
            skipped, samples = str(error).partition("\n")[0], 0
            progress.note(f"no more pictures: {skipped}")
    found = {index: done.get(f"pictures {index}") for index in places}
    return {index: one for index, one in found.items() if one is not None}, skipped, samples


def entries(
    inputs: AuditInputs,
    words: Mapping[int, Mapping[str, Any]],
    pictures: Mapping[int, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """A prompt's findings of all kinds, with where it stands, and texts if those are to be shown."""
    found = []
    for index, one in sorted(words.items()):
        entry: dict[str, Any] = {"index": index, **one, "pictures": pictures.get(index)}
        if inputs.places:
            entry["file"], entry["line"] = inputs.places[index]
        if inputs.show_prompts:
            entry["text"] = inputs.prompts[index]
            tried = inputs.variations(index)
            entry["words"] = [{**word, "text": tried[word["place"]].text} for word in one["words"]]
        found.append(entry)
    return found


def _settings(inputs: AuditInputs) -> dict[str, Any]:
    options = inputs.options
    return {
        "strength": inputs.strength,
        **asdict(inputs.effort),
        "tau": inputs.tau,
        "gate": inputs.gate,
        "thresholds_from": inputs.thresholds_from,
        "seed": options.seed,
        "steps": options.steps,
        "timestep": options.timestep,
        "precision": options.precision,
        "targets": sorted(inputs.targets),
        "device": options.device,
    }
