"""Denoisers of random weights, full size or tiny, and memories planted beside them.

A random network memorizes nothing, so a benchmark that needs a search plants one: the engine answers
every question with all its work, and the search hears what a made-up memory would say instead.
"""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.model import hub
from nemo_prune.model.configs import data_folder
from nemo_prune.model.denoiser import LoadedModel
from nemo_prune.model.devices import memory_format
from nemo_prune.scoring.engine import Prompt
from nemo_prune.search.ladder import Ladder
from nemo_prune.search.protocol import Attribute, Attribution, Steps

_TINY_SIDE, _TINY_WIDTH, _TINY_POOLED = 16, 64, 32


def config_of(family: str, component: str = "unet", *, tiny: bool = False) -> dict[str, Any]:
    """The family's config of a component; tiny: of the same blocks at a few channels."""
    config: dict[str, Any] = json.loads(
        (data_folder("configs", family) / component / "config.json").read_text()
    )
    if tiny and component == "unet":
        widths = [32, 64, 96, 96] if family == "sd1" else [64, 64, 128, 128]
        config["block_out_channels"] = widths[: len(config["block_out_channels"])]
        config |= {"cross_attention_dim": _TINY_WIDTH, "sample_size": _TINY_SIDE}
        if family != "sd1":
            config["attention_head_dim"] = [width // 64 for width in config["block_out_channels"]]
        if family == "sdxl":
            config["transformer_layers_per_block"] = [1, 1, 2]
            config["projection_class_embeddings_input_dim"] = 6 * 256 + _TINY_POOLED
    elif tiny:
        config |= {"hidden_size": _TINY_WIDTH, "intermediate_size": 2 * _TINY_WIDTH}
        config |= {"num_attention_heads": 1, "num_hidden_layers": 2}
    return config


def random_model(
    family: str, device: torch.device, dtype: torch.dtype, *, tiny: bool = False
) -> LoadedModel:
    """A denoiser of the family with random weights, made on its device, and no text encoder."""
    config = config_of(family, tiny=tiny)
    torch.manual_seed(0)
    with torch.device(device), hub.quiet():
        unet = hub.UNet2DConditionModel.from_config(config).eval().requires_grad_(False)
        unet = unet.to(device, dtype, memory_format=memory_format(device))
    side = config["sample_size"]
    layers = [n.removesuffix(".weight") for n, _ in unet.named_parameters() if ".attn2.to_v." in n]
    return LoadedModel(
        family=family,
        unet=unet,
        text_encoders=(),
        scheduler_config={},
        alphas_cumprod=torch.linspace(0.999, 0.005, 1000, device=device),
        prediction_type="epsilon",
        latent_shape=(4, side, side),
        value_layers={name: unet.get_submodule(name) for name in layers},
        device=device,
        dtype=dtype,
    )


def random_prompts(model: LoadedModel, count: int) -> list[Prompt]:
    """Prompts as the model's text encoder might embed them, of normal noise."""
    config = model.unet.config
    device, dtype, pooled = model.device, model.dtype, None
    if model.record.pooled:
        width = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        pooled = torch.randn(count, width, device=device, dtype=dtype)
    text = torch.randn(count, 77, config["cross_attention_dim"], device=device, dtype=dtype)
    return [Prompt(one, None if pooled is None else pooled[i]) for i, one in enumerate(text)]


@dataclass(frozen=True)
class Planted:
    """A made-up memory: every seed scores above tau until all `needed` neurons are off."""

    ladder: Ladder
    needed: frozenset[Neuron]
    attribution: Attribution
    tau: float

    def score(self, off: frozenset[Neuron], seed: int) -> float:
        """What the memory says of a seed with neurons off: less, the more of them are needed ones."""
        missing = len(self.needed - off) / len(self.needed)
        above = 0.3 + 0.02 * (seed % 10)
        return self.tau + above * (0.5 + 0.5 * missing) if missing else self.tau / 2

    def answers(self, search: Steps[Any]) -> Steps[Any]:
        """The search, whose questions the engine answers for nothing: it hears the memory's answers."""
        asked = next(search)
        while True:
            yield asked
            try:
                if isinstance(asked, Attribute):
                    asked = search.send(self.attribution)
                else:
                    asked = search.send({seed: self.score(asked.off, seed) for seed in asked.seeds})
            except StopIteration as end:
                return end.value


def plant(layers: Mapping[str, int], needed: int, tau: float, rng: random.Random) -> Planted:
    """A memory of so many neurons, drawn evenly from `layers` (name -> rows).

    |z| tells nothing of them but that they lie in the ladder; an attribution tells most.
    """
    every = [Neuron(layer, row) for layer, rows in layers.items() for row in range(rows)]
    chosen = frozenset(rng.sample(every, min(needed, len(every))))
    z = {
        layer: [abs(rng.gauss(0, 1)) + (Neuron(layer, row) in chosen) for row in range(rows)]
        for layer, rows in layers.items()
    }
    attribution = {neuron: (neuron in chosen) + rng.gauss(0, 0.05) for neuron in every}
    return Planted(Ladder(z, z), chosen, attribution, tau)
