"""The families of models that the method applies to: to add one, add its record here.

Everything that differs between them stands in the record, but for two things: a folder of diffusers
configs in ``nemo_prune/data/configs/``, and, for tensor names that diffusers' converters do not know, a
conversion in ``nemo_prune/model/weights.py``.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Traits:
    """What a family is recognized by, read from a file's header.

    names: of all tensors.
    columns: channels of the text that the value layers take.
    added: whether the UNet takes more than text and time, as SDXL does (a pooled embedding, sizes).
    linear: whether the maps into attention are linear ones, not 1x1 convolutions; None if unknown.
    first: the canonical name of the first value layer.
    """

    names: Collection[str]
    columns: int
    added: bool
    linear: bool | None
    first: str

    def has(self, *stems: str) -> bool:
        """Whether a tensor's name begins with one of `stems`."""
        return any(name.startswith(stems) for name in self.names)


@dataclass(frozen=True)
class Published:
    """Thresholds of the paper and where they hold.

    tau: score above which a seed counts as memorized; also what a suppressed prompt stays below.
    gate: score above which a prompt counts as memorized.
    side: of the latents that they were measured on.
    seeds: of a prompt; the score is a maximum over pairs of them, so more seeds raise it.
    """

    tau: float
    gate: float
    side: int
    seeds: int


@dataclass(frozen=True)
class Family:
    """One family of models.

    name: as JSON and manifests have it.
    configs: the folder of its diffusers configs in ``data/configs``; None where models bring their own.
    fits: whether a file is of this family, if it is of none before it in `FAMILIES`.
    refuse: why a file that fits cannot be pruned all the same; None if it can.
    text_prefixes: where a single file keeps its text encoders, in the order of the UNet.
    pooled: whether the UNet also takes a pooled embedding and the picture's size, and of the text
        the encoders' last hidden layer but one.
    unused_text_layer: whether original files hold one more layer of the text encoder than is used.
    v_side: the side of the latents of its models that predict v, where it is not the config's.
    published: the paper's thresholds, None where it has none.
    denoiser: what a diffusers folder calls it, "unet" or "transformer".
    """

    name: str
    configs: str | None
    fits: Callable[[Traits], bool]
    text_prefixes: tuple[str, ...]
    refuse: Callable[[Traits], str | None] = lambda _: None
    pooled: bool = False
    unused_text_layer: bool = False
    v_side: int | None = None
    published: Published | None = None
    denoiser: str = "unet"


def _refuse_sdxl(traits: Traits) -> str | None:
    lone = traits.has("conditioner.embedders.0.model.") and not traits.has("conditioner.embedders.1.")
    if traits.columns == 1280 or lone:
        return "is the SDXL refiner, which only retouches what the base model drew; prune that"
    if traits.first.startswith("down_blocks.0."):
        return (
            "is of an unknown family: it has SDXL's added conditions but attends to text in "
            "its first block (unCLIP?); give a Stable Diffusion 1, 2 or XL checkpoint"
        )
    return None


def _is_sd2(traits: Traits) -> bool:
    if traits.columns == 1024 or traits.has("cond_stage_model.model."):
        return True
    sd1 = traits.columns == 768 or traits.has("cond_stage_model.transformer.")
    # A thinner UNet alone: SD2 projects by a linear map, SD1 by a 1x1 convolution.
    return not sd1 and bool(traits.linear)


FAMILIES = {
    family.name: family
    for family in (
        Family(
            name="pixart",
            configs=None,
            fits=lambda traits: traits.first.startswith("transformer_blocks."),
            text_prefixes=("text_encoder.",),
            denoiser="transformer",
        ),
        Family(
            name="sdxl",
            configs="sdxl",
            fits=lambda traits: traits.added or traits.columns == 2048,
            refuse=_refuse_sdxl,
            text_prefixes=("conditioner.embedders.0.", "conditioner.embedders.1."),
            pooled=True,
        ),
        Family(
            name="sd2",
            configs="sd2",
            fits=_is_sd2,
            text_prefixes=("cond_stage_model.",),
            unused_text_layer=True,
            v_side=96,  # pictures of 768 px; the config's 64 is for models that predict epsilon
        ),
        Family(
            name="sd1",
            configs="sd1",
            fits=lambda _: True,
            text_prefixes=("cond_stage_model.",),
            published=Published(tau=0.428, gate=0.5, side=64, seeds=10),
        ),
    )
}
"""By name, in the order in which files are tried."""
