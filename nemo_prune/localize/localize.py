"""Find the neurons behind each prompt of a checkpoint: load, calibrate, search, probe."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from nemo_prune import __version__
from nemo_prune.checkpoint.checkpoint import Checkpoint, model_sha256
from nemo_prune.checkpoint.manifest import Manifest, PromptRecord
from nemo_prune.checkpoint.neurons import union
from nemo_prune.errors import Interrupted
from nemo_prune.localize.repair import Repaired, repair
from nemo_prune.model.denoiser import TOKENS
from nemo_prune.options import Options, Progress
from nemo_prune.scoring.activations import ladders
from nemo_prune.scoring.batches import Prompt
from nemo_prune.scoring.detect import gated
from nemo_prune.scoring.engine import PROMPTS_AT_ONCE, Engine
from nemo_prune.scoring.journal import Journal, fingerprint_of_run
from nemo_prune.scoring.opening import open_engine
from nemo_prune.scoring.ordinary import Ordinary
from nemo_prune.scoring.thresholds import Thresholds
from nemo_prune.search.group_testing import search
from nemo_prune.search.literal import Outcome, Search, literal_search, outcome_from

SUPPRESSED, NOT_MEMORIZED, STILL = "suppressed", "not memorized", "still memorized"
NOT_SEARCHED, NOT_REMOVABLE = "not searched", "not removable"
FRESH_SEEDS = 10_000
"""What was written is checked on seeds from here on: no search ever uses them."""


@dataclass(frozen=True)
class Localization:
    """What was found, and the loaded model it was found with.

    statistics_from: where the activation statistics come from: "file", "cache" or "this run".
    """

    checkpoint: Checkpoint
    options: Options
    engine: Engine
    manifest: Manifest
    thresholds: Thresholds
    statistics_from: str
    outcomes: tuple[Outcome, ...]
    cost: dict[str, float]

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
) -> Localization:
    """Find the neurons behind each prompt that the gate calls memorized; leave the others alone.

    The search's own seeds may all agree where others would not, and it sees one prompt: the union of
    what was found is probed, repaired and reduced on fresh seeds (`repair`).

    keep: a journal of finished searches, removed at the end; `resume` takes up the one that an
        earlier run left there, and ends with the same manifest as an unbroken run.

    Raises OptionError, CheckpointError, CalibrationError; OutputError for a journal of another run;
    Interrupted on Ctrl-C in the search.
    """
    started = time.monotonic()
    layers = checkpoint.select(options.layers)
    progress.stage("loading the model", 1, "file")
    source_sha256 = model_sha256(checkpoint)
    engine = open_engine(checkpoint, options, progress)
    model = engine.model
    progress.advance()
    counts = model.token_counts(prompts)
    for index, count in enumerate(counts):
        if count > TOKENS:
            progress.note(f"prompt {index}: {count} tokens, truncated to {TOKENS}")
    ordinary = Ordinary(engine, checkpoint, options, calibration_prompts, progress)
    statistics, statistics_from = ordinary.statistics
    thresholds = ordinary.thresholds
    tau, gate = thresholds.tau, thresholds.gate.value
    calibration_samples = engine.cost.samples
    seeds = tuple(range(options.seeds))
    settings = {
        "tau": tau,
        "tau_source": thresholds.tau_source,
        "gate": gate,
        "gate_source": thresholds.gate_source,
        "criterion": options.criterion,
        "seeds": options.seeds,
        "seed": options.seed,
        "timestep": engine.timestep,
        "layers": options.layers,
        "precision": model.precision,
        "search": options.search,
        "calibration_prompts": statistics.prompts,
    }
    procedure = literal_search if options.search == "literal" else search
    finished: dict[int, Outcome] = {}
    repaired: Repaired | None = None

    def manifest() -> Manifest:
        records = tuple(
            _record(index, finished.get(index), tau, counts[index] > TOKENS,
                    text if show_prompts else None, repaired)
            for index, text in enumerate(prompts)
        )  # fmt: skip
        return Manifest(
            version=__version__,
            source={
                "path": checkpoint.path.name,
                "sha256": source_sha256,
                "model": checkpoint.kind,
            },
            options=settings,
            prompts=records,
            neurons=union(*(record.neurons for record in records)),
        )

    journal = None
    if keep is not None:
        all_settings = settings | {"scored by": ordinary.scored_by}
        run = fingerprint_of_run(source_sha256, prompts, calibration_prompts, all_settings)
        journal = Journal.open(keep, run, resume=resume)
        finished.update((int(key), outcome_from(value)) for key, value in journal.entries.items())
    progress.stage("searching", len(prompts), "prompts", done=len(finished))

    def on_samples(_count: int) -> None:
        progress.detail(f"{engine.cost.samples - calibration_samples} samples")

    def on_finished(indices: Sequence[int], place: int, outcome: Outcome) -> None:
        finished[indices[place]] = outcome
        if journal:
            journal.add(str(indices[place]), asdict(outcome))
        progress.advance()

    def begin(prompt: Prompt, on: Sequence[int]) -> Search:
        (path,) = ladders(model, layers, [prompt.text], statistics)
        return procedure(path, on, tau)

    try:
        waiting = [index for index in range(len(prompts)) if index not in finished]
        for start in range(0, len(waiting), PROMPTS_AT_ONCE):
            chunk = waiting[start : start + PROMPTS_AT_ONCE]
            engine.run(
                [
                    (prompt, gated(partial(begin, prompt, seeds), seeds, tau, gate))
                    for prompt in engine.prompts([prompts[i] for i in chunk])
                ],
                in_flight=1 if options.search == "literal" else None,
                on_samples=on_samples,
                on_finished=partial(on_finished, chunk),
            )
        searched = {i: o for i, o in sorted(finished.items()) if o.status != "not memorized"}
        progress.stage("probing on more seeds", len(searched), "prompts")
        encoded = engine.prompts([prompts[index] for index in searched])
        repaired = repair(
            engine, searched, dict(zip(searched, encoded, strict=True)), begin,
            tau=tau, seeds=options.seeds, rounds=options.rounds,
            stage=lambda name, count: progress.stage(name, count, "prompts"),
        )  # fmt: skip
    except KeyboardInterrupt:
        raise Interrupted(manifest(), len(finished)) from None
    finally:
        if journal:
            journal.close()
    cost = {
        "samples": engine.cost.samples - calibration_samples - repaired.confirming,
        "seconds": round(time.monotonic() - started, 1),
        "calibration_samples": calibration_samples,
        "check_samples": repaired.confirming,
        "neurons_dropped": len(repaired.dropped),
    }
    outcomes = tuple(finished[index] for index in range(len(prompts)))
    return Localization(
        checkpoint, options, engine, manifest(), thresholds, statistics_from, outcomes, cost
    )


def _record(
    index: int,
    outcome: Outcome | None,
    tau: float,
    truncated: bool,
    text: str | None,
    repaired: Repaired | None,
) -> PromptRecord:
    if outcome is None:
        return PromptRecord(index, NOT_SEARCHED, None, None, truncated=truncated, text=text)
    neurons, samples = outcome.neurons, outcome.samples
    after = max(outcome.scores_after.values(), default=None)
    if repaired is not None and index in repaired.neurons:
        neurons, after = repaired.neurons[index], repaired.scores[index]
        samples += repaired.samples.get(index, 0)
    status = NOT_REMOVABLE if after is not None and after > tau else SUPPRESSED
    return PromptRecord(
        index=index,
        status=NOT_MEMORIZED if outcome.status == "not memorized" else status,
        score_before=max(outcome.scores_before.values()),
        score_after=after,
        neurons=neurons,
        samples=samples,
        truncated=truncated,
        text=text,
    )
