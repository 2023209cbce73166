"""What pruning does to ordinary prompts inside the denoiser: the drift of cross-attention outputs.

A zeroed row acts on every prompt. How much is measured at the output of each cross-attention
(`attn2`, all blocks) as the relative change ||pruned - original|| / ||original|| from the same
starting noise at the timestep that is scored. The control switches off as many randomly drawn
neurons in each layer, which says how much any removal of that size would do.
"""

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.scoring.engine import Engine, Prompt

CONTROLS = 3  # random draws
_DIGITS = 5


def measure(
    engine: Engine,
    prompts: Sequence[Prompt],
    off: Collection[Neuron],
    *,
    seed: int,
    pruned: tuple[Engine, Sequence[Prompt]] | None = None,
    advance: Callable[[int], None] = lambda _count: None,
) -> dict[str, Any]:
    """Drift of every cross-attention output, by layer, beside that of as many random neurons.

    Args:
        engine: of the original model.
        prompts: ordinary ones, encoded by `engine`; each is looked at from one starting noise.
        off: the neurons that were, or would be, removed.
        seed: number of the first starting noise; also what the random neurons are drawn with.
        pruned: the pruned model's engine and the prompts as it encodes them; None: switch `off`
            off in the original.

    Returns:
        "layers": [{"layer", "removed", "pruned", "random"}], the means over prompts (and draws),
        in network order; "pruned", "random": the means over all layers; "random_draws": that of
        each draw; "ratio": pruned to random, None where random is 0.
    """
    removed = frozenset(off)
    draws = [random_neurons(engine, removed, random.Random(f"{seed} {i}")) for i in range(CONTROLS)]
    other, twins = pruned or (engine, prompts)
    moving = Moving(engine, other, frozenset() if pruned else removed, draws)
    noises = range(seed, seed + len(prompts))
    items = list(zip(prompts, twins, noises, strict=True))
    sums: dict[str, list[float]] = {}
    for variants in engine.each(moving, items, lambda _place, _found: advance(1)):
        for column, change in enumerate(variants):
            for layer, value in change.items():
                sums.setdefault(layer, [0.0] * len(variants))[column] += value
    count = len(prompts)
    table = {layer: [total / count for total in totals] for layer, totals in sums.items()}
    by_draw = [sum(row[c] for row in table.values()) / len(table) for c in range(1 + CONTROLS)]
    drift, control = by_draw[0], sum(by_draw[1:]) / CONTROLS
    return {
        "layers": [
            {
                "layer": layer,
                "removed": sum(neuron.layer == f"{layer}.to_v" for neuron in removed),
                "pruned": round(row[0], _DIGITS),
                "random": round(sum(row[1:]) / CONTROLS, _DIGITS),
            }
            for layer, row in table.items()
        ],
        "prompts": count,
        "pruned": round(drift, _DIGITS),
        "random": round(control, _DIGITS),
        "random_draws": [round(value, _DIGITS) for value in by_draw[1:]],
        "ratio": round(drift / control, 3) if control > 0 else None,
    }


@dataclass(frozen=True)
class Moving:
    """Work: `changes` of prompts' outputs from their noises: of a model with `off` off, then of draws.

    other: the model, the original or one that has its own prompts.
    """

    engine: Engine
    other: Engine
    off: frozenset[Neuron]
    draws: Sequence[frozenset[Neuron]]

    def __call__(
        self, items: Sequence[tuple[Prompt, Prompt, int]]
    ) -> Iterator[tuple[int, list[dict[str, float]]]]:
        for place, (prompt, twin, noise) in enumerate(items):
            before = _outputs(self.engine, prompt, noise, frozenset())
            variants = [(self.other, twin, self.off)]
            variants += [(self.engine, prompt, draw) for draw in self.draws]
            yield place, [changes(before, _outputs(*one[:2], noise, one[2])) for one in variants]


def moved(engine: Engine, prompts: Sequence[Prompt], off: Collection[Neuron], *, seed: int) -> float:
    """`measure`'s "pruned" alone, without the random neurons: two samples a prompt."""
    found: list[float] = []
    for place, prompt in enumerate(prompts):
        before = _outputs(engine, prompt, seed + place, frozenset())
        after = _outputs(engine, prompt, seed + place, frozenset(off))
        found += changes(before, after).values()
    return sum(found) / len(found)


def changes(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, float]:
    """The relative change of each layer's output, in network order."""
    return {
        layer: float((after[layer] - output).norm() / output.norm().clamp_min(1e-12))
        for layer, output in before.items()
    }


def _outputs(engine: Engine, prompt: Prompt, noise: int, off: frozenset[Neuron]) -> dict[str, Tensor]:
    """The cross-attention outputs of one sample, of the model that answered in the end."""
    with recorded(engine.model.unet) as found:
        engine.differences(prompt, [noise], off)
    return found


@contextmanager
def recorded(unet: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Name of each cross-attention -> its output in the last pass, float32; undone on any exit."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            found[name] = output.detach().float()

        return hook

    handles = [
        module.register_forward_hook(keep(name))
        for name, module in unet.named_modules()
        if name.endswith(".attn2")
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def random_neurons(engine: Engine, removed: Collection[Neuron], rng: random.Random) -> frozenset[Neuron]:
    """As many others in each layer; where a layer has not enough others, all of them."""
    found: list[Neuron] = []
    for layer, module in engine.model.value_layers.items():
        rows = {neuron.row for neuron in removed if neuron.layer == layer}
        # A row that was zero before drifts nothing, which would flatter no one but the control.
        live = module.weight.detach().abs().amax(dim=1).gt(0).tolist()
        others = [row for row, alive in enumerate(live) if alive and row not in rows]
        found += [Neuron(layer, row) for row in rng.sample(others, min(len(rows), len(others)))]
    return frozenset(found)
