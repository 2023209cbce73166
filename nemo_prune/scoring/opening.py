"""A model opened as the options say."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from nemo_prune.checkpoint.checkpoint import Checkpoint
from nemo_prune.errors import OptionError, option
from nemo_prune.model.denoiser import LoadedModel
from nemo_prune.model.devices import pick_device, pick_dtype
from nemo_prune.model.inference import Config
from nemo_prune.model.loading import load_model, load_pipeline, model_schedule
from nemo_prune.model.schedule import alphas_cumprod, ddim_timestep
from nemo_prune.model.steady import make_steady
from nemo_prune.options import Options, Progress
from nemo_prune.scoring.engine import Engine
from nemo_prune.scoring.notes import notes_on_words
from nemo_prune.scoring.trajectory import GUIDANCE, STEPS, Schedule, schedule_from
from nemo_prune.scoring.workers import open_workers, start_workers, wants_workers

PICTURE_STEPS = 25


def open_engine(
    checkpoint: Checkpoint,
    options: Options,
    progress: Progress | None = None,
    loaded: LoadedModel | None = None,
    *,
    workers: bool = False,
) -> Engine:
    """Load the model as the options say; what it has to tell, now or later, goes to `progress`.

    loaded: the model, where it is in memory already; then the options that say how to load are not read.
    workers: start those that the options ask for; `Engine.close` ends them.

    Raises OptionError for a device or timestep that does not exist, CheckpointError; WorkerError.
    """
    if not workers or not wants_workers(options):
        return _engine(checkpoint, options, progress, loaded)
    if loaded is not None:
        raise OptionError(
            f"{option('workers')}: a live pipeline lies in this process alone; give a model's file"
        )
    return open_engines([checkpoint], options, progress)[0]


def open_engines(
    checkpoints: Sequence[Checkpoint],
    options: Options,
    progress: Progress | None = None,
    opened: Callable[[], None] = lambda: None,
) -> list[Engine]:
    """`open_engine` of each; the first has the workers that the options ask for, who hold all.

    opened: told of each.
    """
    started = None
    if wants_workers(options):
        for checkpoint in checkpoints:
            scored_timestep(checkpoint, options)
        started = start_workers(checkpoints, options)
    try:
        engines = []
        for checkpoint in checkpoints:
            engines.append(_engine(checkpoint, options, progress, None))
            opened()
        if started:
            open_workers(started, engines, progress)
    except BaseException:
        if started:
            started.close()
        raise
    return engines


def _engine(
    checkpoint: Checkpoint, options: Options, progress: Progress | None, loaded: LoadedModel | None
) -> Engine:
    if loaded is None:
        loading = _loading(options)
        scored_timestep(checkpoint, options)  # raises before anything is read
        model = load_model(checkpoint, **loading)
        if model.device.type == "cpu" and model.dtype == torch.float32 and not model.is_transformer:
            make_steady(model.unet)
    else:
        model = loaded
    trained = len(model.alphas_cumprod)
    timestep = _timestep(model.scheduler_config, trained, options, checkpoint.path)
    engine = Engine(
        model,
        timestep=timestep,
        seed=options.seed,
        criterion="cross-seed" if options.criterion == "trajectory" else options.criterion,
        batch_size=options.batch_size,
        published=model.family == "sd1" and model.latent_shape[1:] == (64, 64),
    )
    engine.path = checkpoint.path
    if progress is not None:
        engine.note = progress.note
        if model.prediction is not None and model.prediction.note:
            progress.note(model.prediction.note)
        for line in (*model.notes, *notes_on_words(model)):
            progress.note(line)
    return engine


def scored_timestep(checkpoint: Checkpoint, options: Options) -> int:
    """The training timestep at which scores are taken; no model is loaded.

    Raises OptionError for one that the schedule does not have, CheckpointError for no schedule.
    """
    schedule = model_schedule(checkpoint, options.config, options.prediction_type)
    return _timestep(schedule, len(alphas_cumprod(schedule, checkpoint.path)), options, checkpoint.path)


def _timestep(schedule: Config, trained: int, options: Options, path: Path) -> int:
    timestep = options.timestep
    if timestep is None:
        if options.steps > trained:
            raise OptionError(
                f"{path}: its noise schedule has {trained} steps, too few for {options.steps}; give at "
                f"most so many with {option('steps')}, or a place in it with {option('timestep')}"
            )
        timestep = ddim_timestep(schedule, options.steps)
    if not 0 <= timestep < trained:
        raise OptionError(f"{option('timestep')} {timestep}: the model knows 0 to {trained - 1}")
    return timestep


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


def trajectory_schedule(model: LoadedModel, confirm: str) -> Schedule:
    """A few steps for "trajectory", as many as a picture takes for "pictures"."""
    first = ddim_timestep(model.scheduler_config, 50, 0)
    steps = PICTURE_STEPS if confirm == "pictures" else STEPS
    # Where the denoiser is told the scale, its noise with the prompt is guided already.
    return schedule_from(first, steps, 1.0 if model.embeds_guidance else GUIDANCE)
