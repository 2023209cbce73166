"""The settings of a config that change what a model computes and no weight.

    settings_of(model)  # {"unet.norm_num_groups": 8}

Written in one way, whoever wrote the config: what has its class's default is left out, as a config may
leave it out, and so is what the weights' names and shapes, or their fingerprint, tell already.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nemo_prune.model.hub import DDIMScheduler
from nemo_prune.model.inference import Config

if TYPE_CHECKING:
    from nemo_prune.model.denoiser import LoadedModel

Settings = dict[str, Any]

# Told by names and shapes, or without effect where nothing is trained; upcasting is about rounding.
_BY_SHAPE = frozenset(
    {
        "addition_time_embed_dim", "attention_bias", "block_out_channels", "caption_channels",
        "cross_attention_dim", "down_block_types", "dropout", "encoder_hid_dim", "in_channels",
        "layers_per_block", "mid_block_type", "norm_elementwise_affine", "num_class_embeds",
        "num_layers", "out_channels", "patch_size", "projection_class_embeddings_input_dim",
        "reverse_transformer_layers_per_block", "time_cond_proj_dim", "time_embedding_dim",
        "transformer_layers_per_block", "up_block_types", "upcast_attention", "use_linear_projection",
    }
)  # fmt: skip
# Told elsewhere: heads and activations in the weights' fingerprint, the size as that of the latents.
_ELSEWHERE = frozenset(
    {"attention_head_dim", "num_attention_heads", "num_heads", "hidden_act", "sample_size"}
)
# All that CLIP and T5 read of their configs when they run; the rest are shapes, and what trains them.
_OF_TEXT = ("layer_norm_eps", "layer_norm_epsilon", "relative_attention_max_distance")
_END = (2, 49407)  # of CLIP's text; 2, in older configs, stands for the same
_OF_SCHEDULE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas",
                "rescale_betas_zero_snr")  # fmt: skip
_SAME = {"swish": "silu"}


def settings_of(model: "LoadedModel") -> Settings:
    """What a model is run with beyond its weights, as plain JSON: "component.setting" to value."""
    return settings_from(
        model,
        dict(getattr(model.unet, "config", {})),
        [encoder.model.config.to_dict() for encoder in model.text_encoders],
    )


def settings_from(model: "LoadedModel", denoiser: Config, encoders: Sequence[Config]) -> Settings:
    """`settings_of` the model if these were its denoiser's config and its encoders' whole ones."""
    found = _differing(type(model.unet), denoiser)
    settings = _named(
        model.record.denoiser,
        {key: value for key, value in found.items() if key not in _BY_SHAPE | _ELSEWHERE},
    )
    for number, config in enumerate(encoders):
        text = {key: config[key] for key in _OF_TEXT if key in config}
        if model.record.pooled and config.get("eos_token_id") not in _END:
            text["eos_token_id"] = config.get("eos_token_id")
        settings |= _named(numbered("text_encoder", number), text)
    if model.prediction_type == "v_prediction":  # else no score depends on it
        schedule = _differing(DDIMScheduler, model.scheduler_config)
        settings |= _named("scheduler", {k: v for k, v in schedule.items() if k in _OF_SCHEDULE})
    return settings


def numbered(component: str, number: int) -> str:
    """What a diffusers folder calls a model's text encoder, or tokenizer, `number`, from 0."""
    return f"{component}_{number + 1}" if number else component


def differing(before: Settings, now: Settings, between: str) -> list[str]:
    """What tells two models' settings apart, in words: "norm_num_groups 8 `between` 16"."""
    return [
        f"{key} {_shown(before, key)} {between} {_shown(now, key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def contradicted(kind: type | None, stated: Config, taken: Config) -> list[str]:
    """What a model's own config of a component states and the one that is `taken` sets otherwise.

    kind: the component's class, whose defaults hold for what `taken` leaves out; None for a text
        encoder's.
    """
    defaults = _defaults(kind) if kind else {}
    keys = defaults.keys() - _BY_SHAPE if kind else (*_OF_TEXT, "hidden_act", "num_attention_heads")
    return [
        f"{key} {_plain(taken.get(key, defaults.get(key)))} instead of {_plain(stated[key])}"
        for key in sorted(keys)
        if key in stated
        and (kind or key in taken)
        and _plain(stated[key]) != _plain(taken.get(key, defaults.get(key)))
    ]


def _shown(settings: Settings, key: str) -> str:
    return str(settings[key])[:40] if key in settings else "at its default"


def _named(component: str, settings: Settings) -> Settings:
    return {f"{component}.{key}": value for key, value in settings.items()}


def _defaults(kind: type) -> dict[str, Any]:
    parameters = inspect.signature(kind.__init__).parameters.values()  # type: ignore[misc]
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _differing(kind: type, config: Mapping[str, Any]) -> Settings:
    """What a config sets otherwise than its class does, of what the class knows."""
    defaults = _defaults(kind)
    return {
        key: _plain(config[key])
        for key in sorted(defaults.keys() & config.keys())
        if _plain(config[key]) != _plain(defaults[key])
    }


def _plain(value: Any) -> Any:
    """A value as JSON has it: one for all blocks alike is one value, an activation has one name."""
    if isinstance(value, list | tuple):
        values = [_plain(one) for one in value]
        return values[0] if values and all(one == values[0] for one in values) else values
    if isinstance(value, str):
        return _SAME.get(value.lower(), value)
    return value if isinstance(value, int | float | None) else str(value)
