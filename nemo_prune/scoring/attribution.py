"""What matters to a memory: integrated gradients of the criterion over masks of the value neurons.

Every value neuron of the searched layers gets a mask value m, 1 where it is on. The memorization
criterion, with a soft maximum over what it is compared with, is a differentiable function of the masks.
Its gradient is averaged over a few points on the straight line from all masks 1 to all masks 0
(integrated gradients, Sundararajan et al., 2017). Points inside alone: at one point only, or at the
ends, one caption in eight came out with far more neurons than needed.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.scoring.similarity import ms_ssim

POINTS = (0.75, 0.5, 0.25)
_SHARPNESS = 30.0  # of the soft maximum
_SCALE = 2.0**10  # of the loss in half precision, so that small gradients do not become 0


class Masking:
    """Masks of one value for all neurons of the searched layers, 0 for those that are off.

    Args:
        value_layers: the model's value layers by name.
        layers: those that are searched.
        off: neurons that are off, in whatever layer.
        samples: in a batch.
        device, dtype: of the masks.
    """

    def __init__(
        self,
        value_layers: Mapping[str, nn.Linear],
        layers: Sequence[str],
        off: frozenset[Neuron],
        samples: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.layers = layers
        self.samples, self.dtype = samples, dtype
        touched = dict.fromkeys([*layers, *(neuron.layer for neuron in off)])
        self.on = {name: torch.ones(value_layers[name].out_features, device=device) for name in touched}
        for neuron in off:
            self.on[neuron.layer][neuron.row] = 0

    def at(self, point: float) -> dict[str, Tensor]:
        """Layer name -> masks `[n, 1, rows]`; those of searched layers take a gradient."""
        masks = {}
        for name, on in self.on.items():
            searched = name in self.layers
            mask = (on * point if searched else on)[None, None].repeat(self.samples, 1, 1)
            masks[name] = mask.to(self.dtype).requires_grad_(searched)
        return masks


def attribute(
    masking: Masking,
    memory: Callable[[], Tensor],
    masked: Callable[[Mapping[str, Tensor]], AbstractContextManager[None]],
    points: Sequence[float] | None = None,
) -> dict[Neuron, float]:
    """Neuron -> how much its mask lowers `memory` on the way from 1 to 0, summed over samples.

    Args:
        masking: makes the masks; neurons that are off are left out of the answer.
        memory: a forward pass -> what is to be explained, one number a sample, `[n]`.
        masked: keeps masks on the value layers: for the backward pass too, since gradient checkpointing
            runs parts of the model again there.
        points: mask values at which the gradient is taken; default `POINTS`.

    Raises:
        FloatingPointError: a gradient is NaN or infinite.
    """
    scale = 1.0 if masking.dtype == torch.float32 else _SCALE
    total = {name: torch.zeros_like(masking.on[name]) for name in masking.layers}
    points = points or POINTS
    for point in points:
        masks = masking.at(point)
        with torch.enable_grad(), masked(masks):
            loss = memory().sum() * scale
            gradients = torch.autograd.grad(loss, [masks[name] for name in masking.layers])
        for name, gradient in zip(masking.layers, gradients, strict=True):
            total[name] += gradient.float().sum(dim=(0, 1)) / scale / len(points)
    if not all(bool(one.isfinite().all()) for one in total.values()):
        raise FloatingPointError("a gradient is not finite")
    return {
        Neuron(name, row): value
        for name in masking.layers
        for row, (value, on) in enumerate(
            zip(total[name].tolist(), masking.on[name].tolist(), strict=True)
        )
        if on
    }


def soft_maxima(found: Tensor, compared: Sequence[Sequence[Tensor]]) -> Tensor:
    """A differentiable largest similarity of each `found[i]` `[c, h, w]` with `compared[i]`: `[n]`."""
    maxima = []
    for one, others in zip(found, compared, strict=True):
        # A copy: what was evaluated without gradients may not take part in them as it is.
        others_ = torch.stack(list(others))
        scores = ms_ssim(one[None].expand_as(others_), others_)
        maxima.append(torch.logsumexp(scores * _SHARPNESS, dim=0) / _SHARPNESS)
    return torch.stack(maxima)
