"""The audit: every attempt to bring pruned pictures back, and what came of it, as plain data.

found = audit(AuditInputs(...), Silent())
found.save(Path("audit.html"))
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from nemo_prune import __version__
from nemo_prune.audit.chasing import Rounds, published
from nemo_prune.audit.finished import Finished
from nemo_prune.audit.inputs import AuditInputs, Models
from nemo_prune.audit.mending import Mending, mend
from nemo_prune.audit.outcome import LIMITS, came_back
from nemo_prune.audit.pictures import Wanted, draw_more, passes
from nemo_prune.audit.render import write_audit
from nemo_prune.audit.strength import Effort
from nemo_prune.audit.triggers import Judges, samples_of, try_words
from nemo_prune.audit.words import Variation
from nemo_prune.checkpoint.diff import compare_models
from nemo_prune.errors import CheckpointError, OptionError, option
from nemo_prune.files.prompts import told_of
from nemo_prune.options import Progress, Writing
from nemo_prune.report.inputs import check_inputs
from nemo_prune.scoring.engine import Engine
from nemo_prune.scoring.journal import Journal, fingerprint_of_run
from nemo_prune.scoring.sharing import share
from nemo_prune.scoring.trajectory import Reference

FORMAT = "nemo-prune-audit/3"
_SHOWN = 8  # wordings of a caption that brought its picture back and are drawn


class NothingMemorized(OptionError):
    """The original memorized none of the prompts, so that nothing can be brought back."""


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
    inputs: AuditInputs, progress: Progress, journal: Path | None = None, resume: bool = False,
    repairing: Writing | None = None,
) -> Audit:  # fmt: skip
    """Try to bring every prompt's picture back.

    Args:
        journal: keeps what is done with; removed at the end. resume: go on with it.
        repairing: where a model goes that also lacks what still triggers, and what hardening found;
            None: none is written.

    Raises:
        NothingMemorized: by the original, of these prompts.
        OptionError: a model that differs in more than zeroed rows is to be repaired or hardened.
        CheckpointError: models whose value layers are not the same, or that cannot be loaded.
        OutputError: the journal cannot be used, or an earlier run left it and `resume` is false.
    """
    started = time.monotonic()
    removed = check_inputs(inputs.original, inputs.pruned, inputs.prompts, None)
    promise = compare_models(inputs.original.path, inputs.pruned.path, removed).promise
    assert promise is not None, "neurons were named"
    if (repairing is not None or inputs.harden) and promise.unexpected:
        raise OptionError(
            f"{inputs.pruned.path}: differs from {inputs.original.path} in more than zeroed rows "
            f"({promise.unexpected[0]}), so what is found there need not help here; leave out "
            f"{option('repair')} and {option('harden')}"
        )
    if promise.unexpected:
        progress.note(
            f"{inputs.pruned.path}: differs from the original in more than zeroed rows, so what is "
            f"found is not of the pruning alone (nemo-prune diff shows what)"
        )
    finished = Finished(None)
    if journal is not None:
        hashes = f"{promise.a_sha256} {promise.b_sha256}"
        run = fingerprint_of_run(hashes, inputs.prompts, None, _settings(inputs))
        finished = Finished(Journal.open(journal, run, resume=resume))
    models = Models(inputs, removed, progress)
    try:
        words = _words(models, finished)
        memorized = [index for index, one in words.items() if one["memorized"]]
        if not memorized:
            finished.close()
            if journal is not None:
                journal.unlink(missing_ok=True)
            raise NothingMemorized(
                f"{inputs.original.path}: memorized none of these prompts, by score or by trajectory, "
                f"so there is nothing to bring back; give the prompts that were pruned, or the model as "
                f"it was"
            )
        cost = {"samples": models.samples}
        rounds = Rounds(models, memorized, finished)
        first = rounds.run(0)
        cost["embedding_samples"] = models.samples - sum(cost.values())
        mending = Mending(models, words, rounds, finished)
        overlaps = mending.overlaps(first)
        hardened = mending.harden(first, inputs.harden)
        repair = mending.repair(hardened) if repairing is not None else None
        cost["search_samples"] = models.samples - sum(cost.values())
        pictures, skipped, cost["picture_samples"] = _pictures(models, words, finished)
        models.close()
        repaired = None
        if repair is not None and repairing is not None:
            repaired = mend(inputs, repair, words, repairing, progress)
    finally:
        models.close()
        finished.close()
    data: dict[str, Any] = {
        "format": FORMAT,
        "version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
        "original": {"path": inputs.original.path.name, "sha256": promise.a_sha256},
        "pruned": {"path": inputs.pruned.path.name, "sha256": promise.b_sha256},
        "neurons": len(removed),
        "options": _settings(inputs),
        "prompts": entries(inputs, words, pictures, published(first)["prompts"]),
        "controls": published(first)["controls"],
        "overlaps": overlaps,
        "hardened": [{**one, **published(one)} for one in hardened],
        "repaired": repaired,
        "no_pictures": skipped,
        "cost": cost,
        "limits": list(LIMITS),
    }
    if journal is not None:
        journal.unlink(missing_ok=True)
    return Audit(data)


def _words(models: Models, finished: Finished) -> dict[int, dict[str, Any]]:
    """`try_words` of every prompt."""
    inputs, progress = models.inputs, models.progress
    places = range(len(inputs.prompts))
    left = [index for index in places if finished.get(f"words {index}") is None]
    if left:
        effort, schedule = inputs.effort, models.schedule
        trying = Trying(models.original, models.pruned, effort, models.judges)
        if models.workers is None:
            trying = replace(trying, advance=progress.advance)
        tried = [inputs.variations(index) for index in left]
        most = [samples_of(effort, len(one), schedule) for one in tried]
        total, texts = sum(most), sum(map(len, tried))
        progress.note(
            f"strength {inputs.strength}: up to {texts} wordings of {len(left)} prompts, about "
            f"{total:,} denoiser samples and more for each alarm"
        )
        progress.stage("trying other words", total, "samples")

        def on_done(place: int, told: tuple[dict[str, Any], Reference]) -> None:
            found, reference = told
            finished.add(f"words {left[place]}", found)
            if models.workers:
                models.judges.remember(models.caption(left[place]), reference)
                progress.advance(most[place])

        share(models.workers, trying, tried, on_done, left)
    return {index: finished.get(f"words {index}") for index in places}


@dataclass(frozen=True)
class Trying:
    """Work: `try_words` of captions, each by its variations; what the original draws of it too."""

    original: Engine
    pruned: Engine
    effort: Effort
    judges: Judges
    advance: Callable[[int], None] = lambda _count: None

    def __call__(
        self, items: Sequence[Sequence[Variation]]
    ) -> Iterator[tuple[int, tuple[dict[str, Any], Reference]]]:
        for place, tried in enumerate(items):
            found = try_words(self.original, self.pruned, tried, self.effort, self.judges, self.advance)
            (caption,) = self.original.prompts([tried[0].text])
            yield place, (found, self.judges.reference(self.original, caption))


def _pictures(
    models: Models, words: Mapping[int, dict[str, Any]], finished: Finished
) -> tuple[dict[int, dict[str, Any]], str | None, int]:
    """`draw_more` of what the original memorized; why no pictures were drawn; what they took.

    The models are released: a pipeline does not fit beside them.
    """
    inputs, progress = models.inputs, models.progress
    places = [index for index, one in words.items() if one["memorized"]]
    wanted = {}
    for index in places:
        if finished.get(f"pictures {index}") is None:
            texts = [one.text for one in inputs.variations(index)]
            back = [place for place, word in enumerate(words[index]["words"]) if word["back"]]
            of_words = words[index]["words"]
            named = {place: texts[of_words[place]["place"]] for place in back[:_SHOWN]}
            wanted[index] = Wanted(inputs.prompts[index], named, inputs.targets.get(index))
    skipped, samples = None, 0
    if wanted and models.codec is None:
        skipped, wanted = models.no_codec, {}
    workers = models.workers if wanted else None
    if wanted:
        before = models.samples
        progress.stage("drawing the original's pictures", len(wanted), "prompts")
        unrelated, references = models.unrelated, {}
        for index in wanted:
            references[index] = models.pictures(index)
            progress.advance()
        samples = passes(list(wanted.values()), inputs.effort) + models.samples - before
    models.release()
    if wanted:
        count = len(wanted) * sum(style.seeds for style in inputs.effort.styles)
        progress.note(f"{count} more pictures of the pruned model, {samples:,} denoiser samples in all")
        try:
            draw_more(
                inputs.pruned,
                inputs.options,
                wanted,
                references,
                unrelated,
                inputs.effort,
                models.likeness,
                progress,
                lambda index, found: finished.add(f"pictures {index}", found),
                workers,
            )
        except (CheckpointError, torch.OutOfMemoryError) as error:
            # What words brought back stands without pictures.
            skipped, samples = str(error).partition("\n")[0], 0
            progress.note(f"no more pictures: {skipped}")
    found = {index: finished.get(f"pictures {index}") for index in places}
    return {index: one for index, one in found.items() if one is not None}, skipped, samples


def entries(
    inputs: AuditInputs,
    words: Mapping[int, Mapping[str, Any]],
    pictures: Mapping[int, Mapping[str, Any]],
    embeddings: Mapping[int, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """A prompt's findings of all kinds, with where it stands, and texts if those are to be shown."""
    found = []
    for index, one in sorted(words.items()):
        entry: dict[str, Any] = {"index": index, **one, "pictures": pictures.get(index)}
        entry["embeddings"] = embeddings.get(index)
        entry |= told_of(index, inputs.prompts, inputs.places, inputs.show_prompts)
        if inputs.show_prompts:
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
        "unseen": len(inputs.unseen),
        "harden": inputs.harden,
        "device": options.device,
    }
