"""What a run of the model may be told, and opening a model as told."""

import math
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Protocol

from nemo_prune.checkpoint.families import Checkpoint
from nemo_prune.errors import OptionError
from nemo_prune.files.prompts import read_prompts
from nemo_prune.model.devices import pick_device, pick_dtype
from nemo_prune.model.loading import load_model, load_pipeline
from nemo_prune.model.schedule import ddim_timestep
from nemo_prune.scoring.engine import Criterion, Engine
from nemo_prune.scoring.thresholds import DEFAULT_FPR


class Progress(Protocol):
    """What a long job tells its caller about where it is; `done`: what an earlier run has done."""

    def stage(self, name: str, total: int, unit: str, done: int = 0) -> None: ...
    def advance(self, count: int = 1) -> None: ...
    def detail(self, text: str) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass(frozen=True)
class Options:
    """What a run may be told; the defaults are the paper's, but for the criterion and the gate.

    tau: memorization threshold of a seed, and what a suppressed prompt must stay below; None:
        from the calibration, else the published 0.428 where it applies.
    gate: a prompt above it is memorized; None: what ordinary prompts exceed at the rate `fpr`.
    calibration: a file of `nemo-prune calibrate`; `force` uses it though made for another model.
    cache: keep statistics and scores of ordinary prompts between runs.
    prediction_type, text_encoder, config: what the model does not say of itself, or lacks.
    steps, timestep: scores are taken at `timestep`, or at the second of `steps` DDIM steps.

    Raises OptionError for a gate below tau, one of them that is no number, or fewer than 2 seeds.
    """

    seeds: int = 10
    seed: int = 0
    tau: float | None = None
    gate: float | None = None
    fpr: float = DEFAULT_FPR
    calibration: Path | None = None
    cache: bool = True
    force: bool = False
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
    prediction_type: Literal["epsilon", "v"] | None = None
    text_encoder: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if self.seeds < 2:
            raise OptionError("--seeds: the score compares seeds, so it needs at least 2")
        if not 0 < self.fpr < 1:
            raise OptionError(f"--fpr {self.fpr}: is a rate between 0 and 1, such as 0.01")
        for name, value in (("tau", self.tau), ("gate", self.gate)):
            # NaN passes every comparison that a range is checked by, and no score exceeds it.
            if value is not None and not math.isfinite(value):
                raise OptionError(f"--{name} {value}: is no number; give one between 0 and 1")
        if self.tau is not None:
            self.check_gate(self.tau)

    def check_gate(self, tau: float) -> None:
        """Raise OptionError for a gate below tau: no seed of such a prompt need be memorized."""
        if self.gate is not None and self.gate < tau:
            raise OptionError(
                f"--gate {self.gate}: lies below tau ({tau}), which no memorized seed does; "
                f"raise it, or lower --tau too"
            )


def open_engine(checkpoint: Checkpoint, options: Options, progress: Progress | None = None) -> Engine:
    """Load the model as the options say; what it has to tell, now or later, goes to `progress`.

    Raises OptionError for a device or timestep that does not exist, CheckpointError.
    """
    model = load_model(checkpoint, **_loading(options))
    timestep = options.timestep
    if timestep is None:
        timestep = ddim_timestep(model.scheduler_config, options.steps)
    trained = len(model.alphas_cumprod)
    if not 0 <= timestep < trained:
        raise OptionError(f"--timestep {timestep}: the model knows 0 to {trained - 1}")
    engine = Engine(
        model,
        timestep=timestep,
        seed=options.seed,
        criterion=options.criterion,
        batch_size=options.batch_size,
    )
    if progress is not None:
        engine.note = progress.note
        if model.family == "sd2" and not any(
            (checkpoint.prediction_type, options.prediction_type, options.config)
        ):
            progress.note(
                "nothing says whether this Stable Diffusion 2 predicts epsilon or v: taken as epsilon "
                "(512-base); for a 768-v model give --prediction-type v"
            )
    return engine


def open_pipeline(checkpoint: Checkpoint, options: Options) -> Any:
    """A diffusers pipeline of the same model, loaded as `open_engine` loads it; raises alike."""
    return load_pipeline(checkpoint, **_loading(options))


def _loading(options: Options) -> dict[str, Any]:
    device = pick_device(options.device)
    return {
        "device": device,
        "dtype": pick_dtype(device, options.precision),
        "config": options.config,
        "prediction_type": options.prediction_type,
        "text_encoder": options.text_encoder,
    }


def bundled_captions() -> tuple[str, ...]:
    """The 2,000 ordinary captions that come with the package, varied from the first on."""
    return read_prompts(Path(str(files("nemo_prune") / "data" / "ordinary.txt"))).texts
