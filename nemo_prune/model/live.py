"""A live diffusers pipeline as a model to score and search, and a live UNet's value layers.

    with opened(pipe) as (checkpoint, model):
        ...                                     # model.unet is pipe.unet, in eval mode

Nothing of the pipeline is changed: train modes and gradients are as before on any exit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from nemo_prune.checkpoint.blocks import DIFFUSERS_VALUE, PIXART_VALUE
from nemo_prune.checkpoint.checkpoint import Checkpoint, ValueLayer
from nemo_prune.checkpoint.families import FAMILIES, Traits
from nemo_prune.checkpoint.foreign import foreign_class, text_in_both
from nemo_prune.checkpoint.neurons import network_order
from nemo_prune.errors import CheckpointError
from nemo_prune.model.configs import Told
from nemo_prune.model.denoiser import LoadedModel, TextEncoder
from nemo_prune.model.prediction import measure
from nemo_prune.model.schedule import alphas_cumprod, checked_schedule

NAME = Path("live pipeline")
"""What stands where a file's path would: in messages, and in manifests as the source's path."""


_FREE_U = ("s1", "s2", "b1", "b2")  # as diffusers sets them on blocks


@contextmanager
def opened(pipeline: Any) -> Iterator[tuple[Checkpoint, LoadedModel]]:
    """The pipeline's UNet and text encoders, described as a checkpoint and ready to predict noise.

    Args:
        pipeline: a diffusers text-to-image pipeline of Stable Diffusion 1, 2 or XL, on one device.

    Raises:
        CheckpointError: it is none, lies on several devices or on none, draws from more than text, has
            a UNet as `describe` refuses or that shows that it predicts something else than its
            scheduler says, a schedule for which no noise difference is defined, or weights that every
            pass replaces or that no gradient passes.
    """
    encoders = tuple(
        TextEncoder(getattr(pipeline, f"tokenizer{end}"), getattr(pipeline, f"text_encoder{end}"))
        for end in ("", "_2")
        if getattr(pipeline, f"text_encoder{end}", None) is not None
    )
    unet = getattr(pipeline, "unet", None)
    if unet is None or not encoders or getattr(pipeline, "scheduler", None) is None:
        raise CheckpointError(
            f"{NAME}: a {type(pipeline).__name__} is no text-to-image pipeline of Stable Diffusion; "
            f"give one with a UNet, text encoder and scheduler, or a checkpoint's path"
        )
    schedule = checked_schedule(dict(pipeline.scheduler.config), NAME)
    checkpoint = describe(unet, schedule["prediction_type"])
    if len(encoders) != (2 if checkpoint.record.pooled else 1):
        raise CheckpointError(
            f"{NAME}: has {len(encoders)} text encoders, which its UNet is not made for"
        )
    channels, side = unet.config["out_channels"], unet.config["sample_size"]
    if unet.config["in_channels"] != channels:
        raise CheckpointError(
            f"{NAME}: its UNet takes {unet.config['in_channels']} channels, so it draws from more than "
            f"text; give a text-to-image pipeline, or the path of an inpainting model"
        )
    modules = (unet, *(encoder.model for encoder in encoders))
    devices = {parameter.device for module in modules for parameter in module.parameters()}
    if len(devices) != 1 or next(iter(devices)).type == "meta":
        raise CheckpointError(f"{NAME}: does not lie on one device; move it there with pipe.to(device)")
    _check_weights(modules)
    device = devices.pop()
    height, width = (side, side) if isinstance(side, int) else side
    model = LoadedModel(
        family=checkpoint.family,
        unet=unet,
        text_encoders=encoders,
        scheduler_config=schedule,
        alphas_cumprod=alphas_cumprod(schedule, NAME).to(device),
        prediction_type=schedule["prediction_type"],
        latent_shape=(channels, height, width),
        value_layers={layer.name: unet.get_submodule(layer.name) for layer in checkpoint.value_layers},
        device=device,
        dtype=unet.dtype,
        notes=_changed_forward(unet),
    )
    with _as_loaded(modules):
        prediction = measure(model, Told(model.prediction_type, "its scheduler's config"))
        prediction.check(NAME)
        yield checkpoint, replace(model, prediction=prediction)


def _check_weights(modules: tuple[nn.Module, ...]) -> None:
    """Refuse weights that could not be used, or not be left as they were; nothing is touched.

    diffusers' layerwise casting puts others in their place at each pass: under torch's inference mode
    such as gradients never pass again.
    """
    parts = [part for module in modules for part in module.modules()]
    hooks = (getattr(part, "_diffusers_hook", None) for part in parts)
    if any("layerwise_casting" in getattr(hook, "hooks", {}) for hook in hooks):
        raise CheckpointError(
            f"{NAME}: its layers are cast at every pass (enable_layerwise_casting), so its weights are "
            f"replaced whenever it runs; load the pipeline again and give it before that call"
        )
    if any(parameter.is_inference() for module in modules for parameter in module.parameters()):
        raise CheckpointError(
            f"{NAME}: its weights were made under torch.inference_mode, so no gradient passes them; "
            f"load the pipeline again outside of it"
        )


def _changed_forward(unet: Any) -> tuple[str, ...]:
    """A note for each setting by which the UNet computes something else than its file would."""
    found = []
    if any(getattr(block, one, None) is not None for block in unet.up_blocks for one in _FREE_U):
        found.append("FreeU is on (pipe.disable_freeu() ends it)")
    # accelerate puts its own there, which only moves weights; so does a scheme that casts layers.
    replaced = [
        name
        for name, module in unet.named_modules()
        if "forward" in vars(module) and not hasattr(module, "_hf_hook")
        and not hasattr(module, "_diffusers_hook")
    ]  # fmt: skip
    if replaced:
        where = f"of its {replaced[0]}" if replaced[0] else "of the whole"
        found.append(f"a program replaced the forward {where} (a cache of features?)")
    return tuple(
        f"the pipeline's UNet is scored as it is set: {what}, so scores may differ from those of its "
        f"file and from what a calibration says"
        for what in found
    )


def describe(unet: Any, prediction_type: str | None = None) -> Checkpoint:
    """A live `UNet2DConditionModel`, or PixArt's transformer, as a checkpoint without files.

    Raises:
        CheckpointError: it has no cross-attention value layers, is of a family that the method does not
            apply to, or computes them in a way that their outputs cannot be changed (compiled, fused).
    """
    classes = [kind.__name__ for kind in type(unet).__mro__ if kind.__module__.startswith("diffusers.")]
    if classes and all(map(foreign_class, classes)):
        raise CheckpointError(f"{NAME}: {foreign_class(classes[0])}")
    if twice := text_in_both(getattr(unet, "config", {})):
        raise CheckpointError(f"{NAME}: {twice}")
    pixart = type(unet).__name__ == "PixArtTransformer2DModel"  # others' blocks are called so too
    value = PIXART_VALUE if pixart else DIFFUSERS_VALUE
    layers = {n: module for n, module in unet.named_modules() if value.fullmatch(f"{n}.weight")}
    if hasattr(unet, "_orig_mod") or any(
        getattr(module, "_compiled_call_impl", None) is not None for module in unet.modules()
    ):
        raise CheckpointError(
            f"{NAME}: its UNet is compiled, and would not notice that neurons are off; give the "
            f"pipeline before torch.compile"
        )
    if not layers:
        raise CheckpointError(f"{NAME}: a {type(unet).__name__} has no cross-attention value layers")
    if any(
        getattr(unet.get_submodule(name.removesuffix(".to_v")), "fused_projections", False)
        for name in layers
    ):
        raise CheckpointError(
            f"{NAME}: its UNet's projections are fused, so its value layers are not used; call "
            f"pipe.unfuse_qkv_projections() first"
        )
    values = tuple(_value_layer(name, layers[name]) for name in sorted(layers, key=network_order))
    traits = Traits(
        names=unet.state_dict().keys(),
        columns=values[0].columns,
        added=getattr(unet, "add_embedding", None) is not None,
        linear=bool(unet.config.get("use_linear_projection")),
        first=values[0].name,
    )
    family = next(family for family in FAMILIES.values() if family.fits(traits))
    if fault := family.refuse(traits):
        raise CheckpointError(f"{NAME}: {fault}")
    return Checkpoint(
        path=NAME,
        family=family.name,
        layout="live",
        value_layers=values,
        copies=(),
        text_encoder=True,
        vae=True,
        ema=False,
        in_channels=unet.config["in_channels"],
        prediction_type=prediction_type,
    )


def _value_layer(name: str, module: Any) -> ValueLayer:
    biases = (f"{name}.bias",) if module.bias is not None else ()
    part = name.partition("_")[0]
    return ValueLayer(name, part, module.out_features, module.in_features, (f"{name}.weight",), biases)


@contextmanager
def _as_loaded(modules: tuple[nn.Module, ...]) -> Iterator[None]:
    """Eval mode and no gradients, as `load_model` gives them; as before on any exit."""
    training = {part: part.training for module in modules for part in module.modules()}
    wanted = [p for module in modules for p in module.parameters() if p.requires_grad]
    try:
        for module in modules:
            module.eval()
        for parameter in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for part, mode in training.items():
            part.training = mode
        for parameter in wanted:
            parameter.requires_grad_(True)
