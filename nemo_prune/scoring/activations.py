"""What ordinary activations of the value layers are, and how far a prompt's are from them.

Value layers see only the text, so none of this needs a denoiser pass.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_prune.checkpoint.checkpoint import ValueLayer
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.errors import CalibrationError
from nemo_prune.model.denoiser import LoadedModel
from nemo_prune.scoring.thresholds import FEWEST_PROMPTS
from nemo_prune.search.ladder import Ladder


@dataclass(frozen=True)
class ActivationStatistics:
    """Mean and standard deviation over ordinary prompts of each neuron's activation.

    Layer name -> float64 `[rows]`. A neuron's activation is the mean over the 77 tokens of the
    absolute value layer output ("Finding NeMo", D1).
    """

    mean: Mapping[str, Tensor]
    std: Mapping[str, Tensor]
    prompts: int


def activations(model: LoadedModel, layers: Sequence[ValueLayer], text: Tensor) -> dict[str, Tensor]:
    """Layer name -> mean over tokens of |value layer output|, float64 `[n, rows]`, on the CPU.

    `text`: `[n, 77, d]`.
    """
    with torch.inference_mode():
        seen = model.as_seen(text)
        return {
            layer.name: model.value_layers[layer.name](seen).abs().double().mean(dim=1).cpu()
            for layer in layers
        }


def activation_statistics(
    model: LoadedModel,
    layers: Sequence[ValueLayer],
    prompts: Sequence[str],
    batch: int = 64,
    advance: Callable[[int], None] = lambda _count: None,
) -> ActivationStatistics:
    """Statistics over ordinary prompts, in constant memory whatever their number (Welford/Chan).

    Raises CalibrationError for fewer than 30 prompts.
    """
    if len(prompts) < FEWEST_PROMPTS:
        raise CalibrationError(
            f"{len(prompts)} calibration prompts say too little about what is ordinary; "
            f"give at least {FEWEST_PROMPTS}, better several hundred"
        )
    count = 0
    mean = {layer.name: torch.zeros(layer.rows, dtype=torch.float64) for layer in layers}
    squares = {name: torch.zeros_like(zeros) for name, zeros in mean.items()}
    for start in range(0, len(prompts), batch):
        found = activations(model, layers, model.encode(prompts[start : start + batch]))
        size = len(next(iter(found.values())))
        for name, values in found.items():
            step = values.mean(dim=0) - mean[name]
            squares[name] += values.var(dim=0, correction=0) * size
            squares[name] += step.square() * count * size / (count + size)
            mean[name] += step * size / (count + size)
        count += size
        advance(size)
    std = {name: (total / (count - 1)).sqrt() for name, total in squares.items()}
    return ActivationStatistics(mean, std, count)


def ladders(
    model: LoadedModel,
    layers: Sequence[ValueLayer],
    text: Iterable[Tensor],
    ordinary: ActivationStatistics,
) -> list[Ladder]:
    """The ladder of candidate sets of each prompt (D1/D2); `text`: `[77, d]` of each.

    A neuron that never varies over ordinary prompts (one that is off already) has no z-score.
    """
    result = []
    for one in text:
        found = activations(model, layers, one[None])
        z = {}
        for name, values in found.items():
            spread = ordinary.std[name]
            deviation = (values[0] - ordinary.mean[name]).abs()
            z[name] = torch.where(spread > 0, deviation / spread, torch.nan).tolist()
        result.append(Ladder(z, {name: values[0].tolist() for name, values in found.items()}))
    return result


def harms(
    model: LoadedModel, layers: Sequence[ValueLayer], ordinary: ActivationStatistics
) -> dict[Neuron, float]:
    """Neuron -> how much it does for ordinary prompts: its mean activation times its reach.

    The reach is the length of the neuron's column in the attention's output projection. Above 0: a
    neuron that does next to nothing counts as a hundredth of its layer's median.
    """
    found: dict[Neuron, float] = {}
    for layer in layers:
        attention = model.unet.get_submodule(layer.name.removesuffix(".to_v"))
        reach = attention.to_out[0].weight.detach().double().norm(dim=0).cpu()
        harm = ordinary.mean[layer.name] * reach
        harm = harm.clamp_min(max(float(harm.median()) / 100, 1e-12))
        found |= {Neuron(layer.name, row): value for row, value in enumerate(harm.tolist())}
    return found
