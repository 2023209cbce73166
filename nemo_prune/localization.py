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
from nemo_prune.engine import Criterion, Engine
from nemo_prune.errors import Interrupted, OptionError
from nemo_prune.families import Checkpoint
from nemo_prune.fast_search import search
from nemo_prune.loading import ddim_timestep, load_model, pick_device, pick_dtype
from nemo_prune.manifest import Manifest, PromptRecord, union
from nemo_prune.models import model_sha256
from nemo_prune.prompts import read_prompts
from nemo_prune.search import Outcome, literal_search

SUPPRESSED, NOT_MEMORIZED, STILL = "suppressed", "not memorized", "still memorized"
NOT_SEARCHED = "not searched"
ROUNDS = 3
"""How often a prompt is searched again if seeds that the search did not use object."""
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
    config: Path | None = None
    prediction_type: Literal["epsilon", "v"] | None = None
    text_encoder: tuple[Path, ...] = ()


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

    The search's own seeds may all agree where others would not: what was found is probed on fresh
    seeds, and a prompt that one of them still shows is searched again on all seeds so far.

    Raises OptionError, CheckpointError, CalibrationError; Interrupted on Ctrl-C in the search.
    """
    started = time.monotonic()
    if options.seeds < 2:
        raise OptionError("--seeds: the score compares seeds, so it needs at least 2")
    layers = checkpoint.select(options.layers)
    progress.stage("loading the model", 1, "file")
    source_sha256 = model_sha256(checkpoint)
    engine = open_engine(checkpoint, options)
    model = engine.model
    progress.advance()
    if model.family == "sd2" and not any(
        (checkpoint.prediction_type, options.prediction_type, options.config)
    ):
        progress.note(
            "nothing says whether this Stable Diffusion 2 predicts epsilon or v: taken as epsilon "
            "(512-base); for a 768-v model give --prediction-type v"
        )
    counts = model.token_counts(prompts)
    for index, count in enumerate(counts):
        if count > TOKENS:
            progress.note(f"prompt {index}: {count} tokens, truncated to {TOKENS}")
    ordinary = calibration_prompts or bundled_captions()
    statistics = activation_statistics(model, layers, ordinary)
    tau, tau_source = _tau(engine, options, calibration_prompts, progress)
    calibration_samples = engine.cost.samples
    encoded = engine.prompts(prompts)
    paths = ladders(model, layers, (prompt.text for prompt in encoded), statistics)
    procedure = literal_search if options.search == "literal" else search
    seeds = tuple(range(options.seeds))
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

    def manifest() -> Manifest:
        records = tuple(
            _record(index, finished.get(index), tau, counts[index] > TOKENS,
                    text if show_prompts else None)
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

    def look_for(indices: Sequence[int], known: tuple[int, ...]) -> None:
        jobs = [(encoded[i], procedure(paths[i], known, tau)) for i in indices]
        engine.run(
            jobs,
            in_flight=1 if options.search == "literal" else 64,
            on_samples=on_samples,
            on_finished=lambda place, outcome: on_finished(indices[place], outcome),
        )

    confirming = 0
    try:
        look_for(range(len(prompts)), seeds)
        for round_ in range(1, ROUNDS + 1):
            spent = engine.cost.samples
            fresh = range(options.seeds * round_, options.seeds * (round_ + 1))
            off = frozenset(manifest().neurons)
            objecting = [
                index
                for index, outcome in finished.items()
                if outcome.status == "localized"
                and max(engine.probe(encoded[index], off, fresh).values()) > tau
            ]
            confirming += engine.cost.samples - spent
            if not objecting:
                break
            progress.stage("searching on more seeds", len(objecting), "prompts")
            look_for(objecting, tuple(range(options.seeds * (round_ + 1))))
    except KeyboardInterrupt:
        raise Interrupted(manifest(), len(finished)) from None
    cost = {
        "samples": engine.cost.samples - calibration_samples - confirming,
        "seconds": round(time.monotonic() - started, 1),
        "calibration_samples": calibration_samples,
        "check_samples": confirming,
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
    model = load_model(
        checkpoint,
        device=device,
        dtype=dtype,
        config=options.config,
        prediction_type=options.prediction_type,
        text_encoder=options.text_encoder,
    )
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


def _tau(
    engine: Engine, options: Options, calibration: Sequence[str] | None, progress: Progress
) -> tuple[float, str]:
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
    index: int, outcome: Outcome | None, tau: float, truncated: bool, text: str | None
) -> PromptRecord:
    if outcome is None:
        return PromptRecord(index, NOT_SEARCHED, None, None, truncated=truncated, text=text)
    after = max(outcome.scores_after.values(), default=None)
    status = STILL if after is not None and after > tau else SUPPRESSED
    return PromptRecord(
        index=index,
        status=NOT_MEMORIZED if outcome.status == "not memorized" else status,
        score_before=max(outcome.scores_before.values()),
        score_after=after,
        neurons=outcome.neurons,
        samples=outcome.samples,
        truncated=truncated,
        text=text,
    )
