"""The noise schedule that a model was trained with, and what it predicts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nemo_prune.checkpoint.foreign import other_noise
from nemo_prune.errors import CheckpointError, OptionError, option
from nemo_prune.model.configs import Configs, Told
from nemo_prune.model.hub import DDIMScheduler
from nemo_prune.model.inference import Config

if TYPE_CHECKING:
    from nemo_prune.checkpoint.checkpoint import Checkpoint


def read_schedule(checkpoint: Checkpoint, configs: Configs, prediction_type: str | None) -> Config:
    """The scheduler's config; its "prediction_type" is "epsilon" or "v_prediction".

    `prediction_type`, "epsilon" or "v", is what the UNet predicts, whatever the model says.
    Raises CheckpointError for a model for which no noise difference is defined.
    """
    config = configs.scheduler(
        checkpoint.prediction_type, given=_full_name(prediction_type), zero_snr=checkpoint.zero_snr
    )
    return checked_schedule(config, checkpoint.path, checkpoint.tensors)


def told_prediction(checkpoint: Checkpoint, configs: Configs, prediction_type: str | None) -> Told:
    """What is told of what the model predicts; the arguments are `read_schedule`'s.

    Raises CheckpointError if what is told contradicts itself or cannot be read.
    """
    if checkpoint.unclear and prediction_type is None and configs.folder is None:
        raise CheckpointError(checkpoint.unclear)
    return configs.told(checkpoint.prediction_type, checkpoint.told_by, _full_name(prediction_type))


def _full_name(prediction_type: str | None) -> str | None:
    return "v_prediction" if prediction_type == "v" else prediction_type


def checked_schedule(config: Config, path: Path, names: Collection[str] = ()) -> Config:
    """`config`, if a noise difference is defined for a model with it and tensors of these names.

    Raises CheckpointError, of `path`, if none is.
    """
    if fault := other_noise(config, names):
        raise CheckpointError(f"{path}: {fault}")
    if config.get("prediction_type") not in ("epsilon", "v_prediction"):
        raise CheckpointError(
            f"{path}: its scheduler says that it predicts {config.get('prediction_type')!a}; "
            f"the noise difference is defined for epsilon and v alone; give such a model, or, if its "
            f"config is wrong, say which with {option('prediction_type')}"
        )
    return config


def alphas_cumprod(schedule: Config, path: Path) -> Tensor:
    """The schedule's cumulated alphas, [timesteps]; CheckpointError, of `path`, if it has none."""
    try:
        alphas: Tensor = DDIMScheduler.from_config(schedule).alphas_cumprod
    except (ValueError, TypeError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path}: its scheduler's config describes no noise schedule that is known "
            f"({error}); give another with {option('config')} DIR"
        ) from None
    return alphas


def ddim_timestep(scheduler_config: Mapping[str, Any], steps: int = 50, index: int = 1) -> int:
    """The training timestep at which a DDIM schedule evaluates its step `index`, from 0.

    The paper's code takes the second of 50 steps: 961 for Stable Diffusion 1.

    Raises OptionError if the schedule has no such step.
    """
    scheduler = DDIMScheduler.from_config(dict(scheduler_config))
    if not 0 <= index < steps <= int(scheduler.config["num_train_timesteps"]):
        raise OptionError(f"a schedule of {steps} steps has no step {index}")
    scheduler.set_timesteps(steps)
    return int(scheduler.timesteps[index])
