"""Find the neurons behind each prompt of a checkpoint: load, calibrate, search, probe, confirm."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from nemo_prune import __version__
from nemo_prune.checkpoint.checkpoint import Checkpoint, ValueLayer, model_sha256
from nemo_prune.checkpoint.manifest import Manifest, PromptRecord
from nemo_prune.checkpoint.neurons import Neuron, union
from nemo_prune.checkpoint.statuses import Status
from nemo_prune.errors import Interrupted, option
from nemo_prune.files.prompts import apart_from, bundled_captions
from nemo_prune.localize.confirm import (
    SEEDS,
    UNRELATED,
    Confirmation,
    Confirmed,
    unrelated_ends,
)
from nemo_prune.localize.repair import Repair, Repaired, Scope
from nemo_prune.model.denoiser import LoadedModel
from nemo_prune.options import Options, Progress
from nemo_prune.scoring import drift
from nemo_prune.scoring.activations import ActivationStatistics, harms, ladders
from nemo_prune.scoring.calibration_file import fingerprint
from nemo_prune.scoring.detect import gated
from nemo_prune.scoring.engine import PROMPTS_AT_ONCE, Engine, Job, Prompt
from nemo_prune.scoring.journal import Journal, fingerprint_of_run
from nemo_prune.scoring.notes import tokens_of
from nemo_prune.scoring.opening import open_engine, trajectory_schedule
from nemo_prune.scoring.ordinary import Ordinary, check_apart
from nemo_prune.scoring.searching import finished_searches
from nemo_prune.scoring.thresholds import Thresholds
from nemo_prune.scoring.trajectory import Reference
from nemo_prune.search.auto import Candidates, auto_search
from nemo_prune.search.group_testing import gradient_free_search
from nemo_prune.search.literal import literal_search
from nemo_prune.search.protocol import Outcome, Search, Tally, outcome_from

FRESH_SEEDS = 10_000
"""What was written is checked on seeds from here on: no search ever uses them."""


@dataclass(frozen=True)
class Localization:
    """What was found, and the loaded model it was found with.

    statistics_from: where the activation statistics come from: "file", "cache" or "this run"; of a
        pruned model, they may be those "of the original".
    confirmed: what trajectories say of each memorized prompt. references: what they were compared with.
    """

    checkpoint: Checkpoint
    options: Options
    engine: Engine
    manifest: Manifest
    thresholds: Thresholds
    statistics_from: str
    outcomes: tuple[Outcome, ...]
    cost: dict[str, float]
    confirmed: Confirmed = field(default_factory=Confirmed)
    references: Mapping[int, Reference] = field(default_factory=dict)

    @property
    def tau(self) -> float:
        return self.thresholds.tau


def localize(
    checkpoint: Checkpoint,
    prompts: Sequence[str],
    options: Options,
    progress: Progress,
    *,
    calibration_prompts: Sequence[str] | None = None,
    show_prompts: bool = False,
    keep: Path | None = None,
    resume: bool = False,
    loaded: LoadedModel | None = None,
    ordinary: Ordinary | None = None,
) -> Localization:
    """Find the neurons behind each prompt that the gate calls memorized; leave the others alone.

    The search's own seeds may all agree where others would not, and it sees one prompt: the union of
    what was found is probed, repaired and reduced on fresh seeds (`repair`). Then every prompt is
    confirmed by trajectories, and searched further where its picture is still drawn (`confirm`).

    keep: a journal of finished searches, which the caller removes; `resume` takes up the one that an
        earlier run left there, and ends with the same manifest as an unbroken run.
    loaded: the model, where it is in memory already; its source's hash is then the weights' fingerprint.
    ordinary: what is ordinary for it, where that is known; its engine then searches. Lists that follow
        one another share all of it.

    If workers were asked for, the caller closes the `engine` of what is returned.

    Raises OptionError, CheckpointError, CalibrationError; OutputError for a journal of another run;
    Interrupted on Ctrl-C in the search; WorkerError.
    """
    run = _Run(
        checkpoint, prompts, options, progress, calibration_prompts, show_prompts, loaded, ordinary
    )
    try:
        if keep is not None:
            run.open_journal(keep, resume)
        run.search()
        run.repair()
        run.confirm()
        run.complete = True
    except KeyboardInterrupt:
        run.engine.close()
        raise Interrupted(run.manifest(), len(run.finished)) from None
    except BaseException:
        run.engine.close()
        raise
    finally:
        run.close()
    return run.localization()


class _Run:
    """One localization, step by step."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        prompts: Sequence[str],
        options: Options,
        progress: Progress,
        calibration_prompts: Sequence[str] | None,
        show_prompts: bool,
        loaded: LoadedModel | None = None,
        ordinary: Ordinary | None = None,
    ) -> None:
        self.started = time.monotonic()
        self.checkpoint, self.prompts, self.options = checkpoint, prompts, options
        self.progress, self.show_prompts = progress, show_prompts
        self.calibration_prompts = calibration_prompts
        self.names = [layer.name for layer in checkpoint.select(options.layers)]
        if overlap := check_apart(prompts, calibration_prompts, options):
            progress.note(overlap)
        progress.stage("loading the model", 1, "file")
        if ordinary is not None:
            self.source_sha256, self.engine = ordinary.fingerprint, ordinary.engine
        else:
            self.source_sha256 = fingerprint(loaded) if loaded else model_sha256(checkpoint)
            self.engine = open_engine(checkpoint, options, progress, loaded, workers=True)
        try:
            self._prepare(ordinary)
        except BaseException:
            self.engine.close()
            raise

    def _prepare(self, ordinary: Ordinary | None) -> None:
        """Everything that is known before the search."""
        checkpoint, prompts, options, progress = (
            self.checkpoint, self.prompts, self.options, self.progress,
        )  # fmt: skip
        progress.advance()
        self.counts, notes = tokens_of(self.engine.model, prompts)
        for line in notes:
            progress.note(line)
        self.most_tokens = self.engine.model.max_tokens
        for index, count in enumerate(self.counts):
            if count > self.most_tokens:
                progress.note(f"prompt {index}: {count} tokens, truncated to {self.most_tokens}")
        self.ordinary = ordinary or Ordinary(
            self.engine, checkpoint, options, self.calibration_prompts, progress
        )
        self.statistics, self.statistics_from = self.ordinary.statistics
        if "activations" in self.ordinary.of_original:
            self.statistics_from += " of the original"
        self.thresholds = self.ordinary.thresholds
        self.calibration_samples = self.engine.cost.samples
        self.scopes = [self._scope(self.names)]
        every = [layer.name for layer in checkpoint.value_layers]
        if options.layers == "auto" and every != self.names:
            self.scopes.append(self._scope(every))
        self.complete = False
        self.finished: dict[int, Outcome] = {}
        self.spent: dict[int, int] = {}
        self.repaired: Repaired | None = None
        self.confirmation: Confirmation | None = None
        self.journal: Journal | None = None
        self.settings = {
            "tau": self.thresholds.tau,
            "tau_source": self.thresholds.tau_source,
            "gate": self.thresholds.gate.value,
            "gate_source": self.thresholds.gate_source,
            "criterion": options.criterion,
            "confirm": options.confirm,
            "seeds": options.seeds,
            "seed": options.seed,
            "timestep": self.engine.timestep,
            "layers": options.layers,
            "precision": self.engine.model.precision,
            "search": options.search,
            "calibration_prompts": self.statistics.prompts,
            **({"calibration_of": "the original"} if self.ordinary.of_original else {}),
        }

    def _scope(self, names: Sequence[str]) -> Scope:
        return scope_of(
            self.engine, self.checkpoint, names, self.statistics, self.options, self.thresholds.tau
        )

    def open_journal(self, path: Path, resume: bool) -> None:
        settings = self.settings | {"scored by": self.ordinary.scored_by}
        fingerprint = fingerprint_of_run(
            self.source_sha256, self.prompts, self.calibration_prompts, settings
        )
        self.journal = Journal.open(path, fingerprint, resume=resume)
        for key, value in self.journal.entries.items():
            self.spent[int(key)] = value.pop("spent")
            self.finished[int(key)] = outcome_from(value)

    def close(self) -> None:
        if self.journal:
            self.journal.close()

    # -------------------------------------------------------------------------------------- steps

    def search(self) -> None:
        """Search every prompt that the gate calls memorized, in chunks whose embeddings fit."""
        waiting = [index for index in range(len(self.prompts)) if index not in self.finished]
        total = len(self.prompts)
        self.progress.stage("searching", total, "prompts", done=len(self.finished))
        gate = self.thresholds.gate.value
        searching = Searching(self.engine, self.scopes[0], self.options, self.thresholds.tau, gate)
        if not self.engine.workers:  # who would not see the progress
            searching = replace(searching, on_samples=self._on_samples)

        def on_found(place: int, found: tuple[Outcome, int]) -> None:
            self._on_finished(waiting[place], *found)

        texts = [self.prompts[index] for index in waiting]
        self.engine.each(searching, texts, on_found, numbers=waiting)

    def _on_samples(self, _count: int) -> None:
        spent = self.engine.cost.samples - self.calibration_samples
        self.progress.detail(f"{spent} samples")

    def _on_finished(self, index: int, outcome: Outcome, samples: int) -> None:
        self.finished[index], self.spent[index] = outcome, samples
        if self.journal:
            self.journal.add(str(index), {**asdict(outcome), "spent": samples})
        if self.engine.workers:
            self._on_samples(samples)
        self.progress.advance()

    @property
    def searched(self) -> dict[int, Outcome]:
        """The memorized prompts' outcomes, by number."""
        return {i: o for i, o in sorted(self.finished.items()) if o.status != "not memorized"}

    def repair(self) -> None:
        """Probe the union on fresh seeds; search again, drop what no prompt needs."""
        encoded = self.engine.prompts([self.prompts[index] for index in self.searched])
        self.repairing = Repair(
            self.engine, self.searched, dict(zip(self.searched, encoded, strict=True)),
            self.scopes[:1] if self.options.search == "literal" else self.scopes,
            tau=self.thresholds.tau, seeds=self.options.seeds, progress=self.progress,
        )  # fmt: skip
        by_trajectory = self.options.criterion == "trajectory"
        self.repaired = (
            self.repairing.result if by_trajectory else self.repairing.run(self.options.rounds)
        )

    def confirm(self) -> None:
        """Draw trajectories of every prompt that the score calls suppressed; search on if need be."""
        repaired = self.repaired
        assert repaired is not None
        by_trajectory, tau = self.options.criterion == "trajectory", self.thresholds.tau
        indices = [i for i in self.searched if by_trajectory or repaired.scores[i] <= tau]
        if (self.options.confirm == "none" and not by_trajectory) or not indices:
            return
        engine, options = self.engine, self.options
        schedule = trajectory_schedule(engine.model, options.confirm)
        captions = self.calibration_prompts or bundled_captions()
        ordinary = apart_from(captions, self.prompts)[:UNRELATED]
        before, began = engine.cost.samples, time.monotonic()
        ends = unrelated_ends(engine, ordinary, schedule, self.progress, self.ordinary.ends)
        samples = engine.cost.samples - before
        self.calibration_samples += samples
        per_sample = (time.monotonic() - began) / max(1, samples)
        worth = options.confirm_trajectories
        heard = engine.prompts(ordinary)
        self.confirmation = Confirmation(
            engine, schedule, ends, self.progress, worth, Moved(engine, heard),
            () if options.confirm == "pictures" else ordinary, self.ordinary.ends,
        )  # fmt: skip
        self.confirmation.result.widened |= repaired.widened
        # The paper's procedure ends where it ends.
        scopes = [] if options.search == "literal" else [(s.layers, s.candidates) for s in self.scopes]
        prompts = engine.prompts([self.prompts[index] for index in indices])
        off = repaired.off
        each = (SEEDS + 2) * schedule.passes
        self.progress.note(
            f"confirming {len(indices)} prompts by trajectories takes {len(indices) * each} denoiser "
            f"samples, about {round(len(indices) * each * per_sample)} s; those that are still "
            f"drawn are searched further, which takes several times as many"
        )
        self.progress.stage("confirming by trajectories", None, "samples")
        best = [_highest(self.finished[index].scores_before) for index in indices]
        self.confirmation.refer_all(indices, prompts, best)
        for index in indices:
            if not self.confirmation.references[index].judged:
                self.progress.note(
                    f"prompt {index}: the unpruned model's own trajectories do not agree, so they "
                    f"cannot tell whether its picture is gone"
                )
        for index in self.confirmation.remove_all(indices, prompts, off, scopes, options.rounds):
            # At once, so that the manifest of an interrupted run has them.
            added = self.confirmation.result.neurons.get(index, ())
            repaired.neurons[index] = union(repaired.neurons[index], added)
            if index in self.confirmation.result.rough - self.confirmation.result.harmful.keys():
                self.progress.note(
                    f"prompt {index}: not all of its neurons were shown to be needed; more than "
                    f"{option('confirm_trajectories')} {worth} may spare some"
                )
            self.progress.detail(f"prompt {index} done")
        self.calibration_samples += self.confirmation.result.ordinary
        if by_trajectory:
            self.repairing.probe()

    # ------------------------------------------------------------------------------------ results

    def manifest(self) -> Manifest:
        records = tuple(self._record(index) for index in range(len(self.prompts)))
        prediction = self.engine.model.prediction
        return Manifest(
            version=__version__,
            source={
                "path": self.checkpoint.path.name,
                "sha256": self.source_sha256,
                "model": self.checkpoint.kind,
            },
            options=self.settings | {"prediction": prediction.as_json() if prediction else None},
            prompts=records,
            neurons=union(*(record.neurons for record in records)),
        )

    def _record(self, index: int) -> PromptRecord:
        outcome, repaired = self.finished.get(index), self.repaired
        truncated = self.counts[index] > self.most_tokens
        text = self.prompts[index] if self.show_prompts else None
        if outcome is None:
            return PromptRecord(index, Status.NOT_SEARCHED, None, None, truncated=truncated, text=text)
        neurons, samples = outcome.neurons, self.spent[index]
        after = max(outcome.scores_after.values(), default=None)
        if repaired is not None and index in repaired.neurons:
            neurons, after = repaired.neurons[index], repaired.scores[index]
            samples += repaired.samples.get(index, 0)
        confirmed = self.confirmation.result if self.confirmation else Confirmed()
        status = Status.SUPPRESSED
        if outcome.status == "not memorized":
            status = Status.NOT_MEMORIZED
        elif not self.complete and index not in confirmed.remaining:
            status = Status.NOT_CONFIRMED
        elif after is not None and after > self.thresholds.tau:
            status = Status.NOT_REMOVABLE
        elif confirmed.drawn(index):
            kept = index in confirmed.exhausted or index in confirmed.harmful
            status = Status.NOT_REMOVABLE if kept else Status.REPLICATED
        searches = [outcome, *confirmed.outcomes.get(index, ())]
        known = {
            neuron: value
            for one in searches
            if one.attribution
            for neuron, value in zip(one.neurons, one.attribution, strict=True)
        }
        harm = self.scopes[-1].candidates.harm
        return PromptRecord(
            index=index,
            status=status,
            score_before=max(outcome.scores_before.values()),
            score_after=after,
            neurons=neurons,
            samples=samples,
            truncated=truncated,
            text=text,
            trajectory=confirmed.remaining.get(index),
            trajectory_samples=confirmed.passes.get(index, 0),
            search=" + ".join(dict.fromkeys(one.order for one in searches if one.neurons)),
            attribution={neuron: known[neuron] for neuron in neurons if neuron in known},
            harm={n: harm[n] for n in neurons if n in harm},
        )

    def localization(self) -> Localization:
        repaired = self.repaired
        assert repaired is not None
        confirmed = self.confirmation.result if self.confirmation else Confirmed()
        confirming = sum(confirmed.passes.values()) + confirmed.in_vain
        spent = self.engine.cost.samples - self.calibration_samples
        cost: dict[str, float] = {
            "samples": spent - repaired.confirming - confirming,
            "seconds": round(time.monotonic() - self.started, 1),
            "calibration_samples": self.calibration_samples,
            "check_samples": repaired.confirming,
            "trajectory_samples": confirming,
            "backward": self.engine.cost.backward,
            "neurons_dropped": len(repaired.dropped),
        }
        outcomes = tuple(self.finished[index] for index in range(len(self.prompts)))
        return Localization(
            self.checkpoint, self.options, self.engine, self.manifest(), self.thresholds,
            self.statistics_from, outcomes, cost, confirmed,
            self.confirmation.references if self.confirmation else {},
        )  # fmt: skip


def scope_of(
    engine: Engine, checkpoint: Checkpoint, names: Sequence[str], statistics: ActivationStatistics,
    options: Options, tau: float,
) -> Scope:  # fmt: skip
    """Layers of a model to search, by name, and the search that the options ask for."""
    layers = [layer for layer in checkpoint.value_layers if layer.name in set(names)]
    order = tuple(Neuron(layer.name, row) for layer in layers for row in range(layer.rows))
    candidates = Candidates(order, harms(engine.model, layers, statistics))
    begin = Beginning(engine, layers, candidates, statistics, options, tau)
    return Scope(names, candidates, begin)


@dataclass(frozen=True)
class Beginning:
    """Begins a search of one prompt in some layers on some seeds, as the options say."""

    engine: Engine
    layers: Sequence[ValueLayer]
    candidates: Candidates
    statistics: ActivationStatistics
    options: Options
    tau: float

    def __call__(self, prompt: Prompt, seeds: Sequence[int]) -> Search:
        (ladder,) = ladders(self.engine.model, self.layers, [prompt.text], self.statistics)
        if self.options.search == "literal":
            return literal_search(ladder, seeds, self.tau, as_published=self.options.as_published)
        if self.options.search == "gradient-free":
            return gradient_free_search(ladder, seeds, self.tau)
        return auto_search(ladder, self.candidates, seeds, self.tau)


def _ignore(_count: int) -> None: ...


@dataclass(frozen=True)
class Searching:
    """Work: search prompts that the gate calls memorized; the outcome of each, and its samples."""

    engine: Engine
    scope: Scope
    options: Options
    tau: float
    gate: float
    on_samples: Callable[[int], None] = _ignore

    def __call__(self, texts: Sequence[str]) -> Iterator[tuple[int, tuple[Outcome, int]]]:
        for start in range(0, len(texts), PROMPTS_AT_ONCE):
            encoded = self.engine.prompts(texts[start : start + PROMPTS_AT_ONCE])
            jobs = [self._job(one) for one in encoded]
            finished = finished_searches(
                self.engine,
                jobs,
                in_flight=1 if self.options.search == "literal" else None,
                on_samples=self.on_samples,
            )
            for place, outcome in finished:
                yield start + place, (outcome, jobs[place].samples)

    def _job(self, prompt: Prompt) -> Job:
        seeds = tuple(range(self.options.seeds))
        inner: Callable[[], Search] = partial(self.scope.begin, prompt, seeds)
        if self.options.criterion == "trajectory":
            inner = partial(left_alone, seeds, self.tau)
        return Job(prompt, gated(inner, seeds, self.tau, self.gate), layers=self.scope.layers)


def _highest(scores: Mapping[int, float]) -> list[int]:
    """The two seeds of the highest scores."""
    return sorted(scores, key=lambda seed: -scores[seed])[:2]


@dataclass(frozen=True)
class Moved:
    """How far ordinary prompts move with some neurons off."""

    engine: Engine
    ordinary: Sequence[Prompt]

    def __call__(self, off: frozenset[Neuron]) -> float:
        return drift.moved(self.engine, self.ordinary, off, seed=FRESH_SEEDS)


def left_alone(seeds: Sequence[int], tau: float) -> Search:
    """A search that scores a prompt and finds nothing: trajectories do the rest."""
    before = yield from Tally().ask(frozenset(), tuple(seeds))
    memorized = tuple(seed for seed in seeds if before[seed] > tau)
    return Outcome("localized", (), before, memorized, {}, tau, None, 0, len(before), 1, order="")
