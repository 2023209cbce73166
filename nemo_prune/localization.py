"""Find the neurons behind each prompt of a checkpoint: load, calibrate, search, probe."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal, Protocol

from nemo_prune import __version__
from nemo_prune.calibration import (
    PUBLISHED_TAU,
    activation_statistics,
    calibrated_tau,
    ladders,
)
from nemo_prune.denoiser import TOKENS
from nemo_prune.engine import Criterion, Engine, Prompt
from nemo_prune.errors import Interrupted, OptionError
from nemo_prune.families import Checkpoint
from nemo_prune.fast_search import search
from nemo_prune.loading import ddim_timestep, load_model, pick_device, pick_dtype
from nemo_prune.manifest import Manifest, PromptRecord, union
from nemo_prune.prompts import read_prompts
from nemo_prune.repair import Repaired, repair
from nemo_prune.search import Outcome, Search, literal_search
from nemo_prune.surgery import file_sha256

SUPPRESSED, NOT_MEMORIZED, STILL = "suppressed", "not memorized", "still memorized"
NOT_SEARCHED, NOT_REMOVABLE = "not searched", "not removable"
FRESH_SEEDS = 1000
"""What was written is checked on seeds from here on: no search ever uses them."""
_BUNDLED_TAU_PROMPTS = 100  # of the bundled captions: each costs as many samples as seeds


class Progress(Protocol):
    """What a long job tells its caller about where it is."""

    def stage(self, name: str, total: int, unit: str) -> None: ...
    def advance(self, count: int = 1) -> None: ...
    def detail(self, text: str) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass(frozen=True)
class Options:
    """What a run may be told; the defaults are the paper's, but for the criterion.

    tau: memorization threshold; None: from the calibration prompts, else the published 0.428
        where it applies, else calibrated on bundled captions.
    rounds: how often prompts that stay memorized are searched again.
    steps, timestep: scores are taken at `timestep`, or at the second of `steps` DDIM steps.
    """

    seeds: int = 10
    seed: int = 0
    tau: float | None = None
    steps: int = 50
    timestep: int | None = None
    device: str = "auto"
    precision: str = "auto"
    layers: str = "down+mid"
    criterion: Criterion = "cross-seed"
    search: Literal["fast", "literal"] = "fast"
    batch_size: int | None = None
    rounds: int = 3
    config: Path | None = None


@dataclass(frozen=True)
class Localization:
    """What was found, and the loaded model it was found with.

    tau_source: "given", "calibrated", "published" or "bundled captions".
    """

    checkpoint: Checkpoint
    options: Options
    engine: Engine
    manifest: Manifest
    tau: float
    tau_source: str
    outcomes: tuple[Outcome, ...]
    cost: dict[str, float]


def localize(
    checkpoint: Checkpoint,
    prompts: Sequence[str],
    options: Options,
    progress: Progress,
    *,
    calibration_prompts: Sequence[str] | None = None,
    show_prompts: bool = False,
) -> Localization:
    """Find the neurons behind each prompt.

    The search's own seeds may all agree where others would not, and it sees one prompt: the union of
    what was found is probed, repaired and reduced on fresh seeds (`repair`).

    Raises OptionError, CheckpointError, CalibrationError; Interrupted on Ctrl-C in the search.
    """
    started = time.monotonic()
    if options.seeds < 2:
        raise OptionError("--seeds: the score compares seeds, so it needs at least 2")
    layers = checkpoint.select(options.layers)
    progress.stage("loading the model", 1, "file")
    source_sha256 = file_sha256(checkpoint.path)
    engine = open_engine(checkpoint, options)
    model = engine.model
    progress.advance()
    counts = model.token_counts(prompts)
    for index, count in enumerate(counts):
        if count > TOKENS:
            progress.note(f"prompt {index}: {count} tokens, truncated to {TOKENS}")
    ordinary = calibration_prompts or bundled_captions()
    statistics = activation_statistics(model, layers, ordinary)
    tau, tau_source = pick_tau(engine, options, calibration_prompts, progress)
    calibration_samples = engine.cost.samples
    encoded = engine.prompts(prompts)
    procedure = literal_search if options.search == "literal" else search
    settings = {
        "tau": tau,
        "tau_source": tau_source,
        "criterion": options.criterion,
        "seeds": options.seeds,
        "seed": options.seed,
        "timestep": engine.timestep,
        "layers": options.layers,
        "precision": str(model.dtype).removeprefix("torch."),
        "search": options.search,
        "calibration_prompts": len(ordinary),
    }
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
            source={"path": checkpoint.path.name, "sha256": source_sha256},
            options=settings,
            prompts=records,
            neurons=union(*(record.neurons for record in records)),
        )

    progress.stage("searching", len(prompts), "prompts")

    def on_samples(_count: int) -> None:
        progress.detail(f"{engine.cost.samples - calibration_samples} samples")

    def on_finished(index: int, outcome: Outcome) -> None:
        finished[index] = outcome
        progress.advance()

    def begin(prompt: Prompt, on: Sequence[int]) -> Search:
        (path,) = ladders(model, layers, [prompt.text], statistics)
        return procedure(path, on, tau)

    try:
        engine.run(
            [(prompt, begin(prompt, range(options.seeds))) for prompt in encoded],
            in_flight=1 if options.search == "literal" else 64,
            on_samples=on_samples,
            on_finished=on_finished,
        )
        searched = {i: o for i, o in sorted(finished.items()) if o.status != "not memorized"}
        progress.stage("probing on more seeds", len(searched), "prompts")
        repaired = repair(
            engine, searched, {index: encoded[index] for index in searched}, begin,
            tau=tau, seeds=options.seeds, rounds=options.rounds,
            stage=lambda name, count: progress.stage(name, count, "prompts"),
        )  # fmt: skip
    except KeyboardInterrupt:
        raise Interrupted(manifest(), len(finished)) from None
    cost = {
        "samples": engine.cost.samples - calibration_samples - repaired.confirming,
        "seconds": round(time.monotonic() - started, 1),
        "calibration_samples": calibration_samples,
        "check_samples": repaired.confirming,
        "neurons_dropped": len(repaired.dropped),
    }
    outcomes = tuple(finished[index] for index in range(len(prompts)))
    return Localization(checkpoint, options, engine, manifest(), tau, tau_source, outcomes, cost)


def bundled_captions() -> tuple[str, ...]:
    """Ordinary captions that come with the package, for models without calibration prompts."""
    return read_prompts(Path(str(files("nemo_prune") / "data" / "ordinary.txt"))).texts


def open_engine(checkpoint: Checkpoint, options: Options) -> Engine:
    """Load the model as the options say.

    Raises OptionError for a device or timestep that does not exist, CheckpointError.
    """
    device = pick_device(options.device)
    dtype = pick_dtype(device, options.precision)
    model = load_model(checkpoint, device=device, dtype=dtype, config=options.config)
    timestep = options.timestep
    if timestep is None:
        timestep = ddim_timestep(model.scheduler_config, options.steps)
    trained = len(model.alphas_cumprod)
    if not 0 <= timestep < trained:
        raise OptionError(f"--timestep {timestep}: the model knows 0 to {trained - 1}")
    return Engine(
        model,
        timestep=timestep,
        seed=options.seed,
        criterion=options.criterion,
        batch_size=options.batch_size,
    )


def pick_tau(
    engine: Engine, options: Options, calibration: Sequence[str] | None, progress: Progress
) -> tuple[float, str]:
    """tau and where it is from: given, calibrated, published, or "bundled captions"."""
    if options.tau is not None:
        return options.tau, "given"
    model = engine.model
    if calibration is None:
        published = ddim_timestep(model.scheduler_config)
        if model.family == "sd1" and model.latent_shape[1:] == (64, 64) and engine.timestep == published:
            return PUBLISHED_TAU, "published"
        calibration, source = bundled_captions()[:_BUNDLED_TAU_PROMPTS], "bundled captions"
        progress.note(
            "no published tau fits this model: calibrating one on bundled captions "
            "(--calibration-prompts FILE is better, --tau X skips it)"
        )
    else:
        source = "calibrated"
    progress.stage("calibrating tau", len(calibration), "ordinary prompts")
    return calibrated_tau(engine, calibration, range(options.seeds), progress.advance), source


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
