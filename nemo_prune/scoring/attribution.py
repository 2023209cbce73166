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

_SHARPNESS = 30.0  # of the soft maximum
_SCALE = 2.0**10  # of the loss in half precision, so that small gradients do not become 0


class Masking:
    """Masks of one value for all neurons of the searched layers, 0 for those that are off.

    Args:
        value_layers: the model's value layers by name.
        layers: those that are searched.
        offs: of each sample of a batch, the neurons that are off, in whatever layer.
        device, dtype: of the masks.
        among: of each sample, the neurons that are asked about; None: all that are on.
    """

    def __init__(
        self,
        value_layers: Mapping[str, nn.Linear],
        layers: Sequence[str],
        offs: Sequence[frozenset[Neuron]],
        device: torch.device,
        dtype: torch.dtype,
        among: Sequence[frozenset[Neuron] | None] = (),
    ) -> None:
        self.layers, self.dtype = layers, dtype
        touched = dict.fromkeys([*layers, *(neuron.layer for off in set(offs) for neuron in off)])
        on = {
            name: torch.ones(len(offs), value_layers[name].out_features, dtype=torch.float32)
            for name in touched
        }
        for sample, off in enumerate(offs):
            for neuron in off:
                on[neuron.layer][sample, neuron.row] = 0
        asked = {name: on[name].clone() for name in layers}
        for sample, neurons in enumerate(among):
            if neurons is not None:
                for name in layers:
                    asked[name][sample] = 0
                for neuron in neurons - offs[sample]:
                    asked[neuron.layer][sample, neuron.row] = 1
        self.on = {name: one.to(device) for name, one in on.items()}
        self.asked = {name: one.to(device) for name, one in asked.items()}

    @property
    def neurons(self) -> tuple[Neuron, ...]:
        """The neurons of the searched layers, layer by layer."""
        return tuple(Neuron(name, row) for name in self.layers for row in range(self.on[name].shape[1]))

    def at(self, point: float) -> dict[str, Tensor]:
        """Layer name -> masks `[n, 1, rows]`; those of searched layers take a gradient."""
        masks = {}
        for name, on in self.on.items():
            searched = name in self.layers
            # A copy of its own, whose gradient is taken, also where nothing else makes it one.
            wanted = on + (point - 1) * self.asked[name] if searched else on
            mask = wanted[:, None].to(self.dtype, copy=True)
            masks[name] = mask.requires_grad_(searched)
        return masks


def attribute(
    masking: Masking,
    memory: Callable[[], Tensor],
    masked: Callable[[Mapping[str, Tensor]], AbstractContextManager[None]],
    points: Sequence[float],
) -> Tensor:
    """How much each neuron's mask lowers `memory` on the way from 1 to 0, sample by sample.

    Returns float32 `[n, neurons]` on the CPU: of `masking.neurons`, 0 for those not asked about.

    Args:
        masking: makes the masks.
        memory: a forward pass -> what is to be explained, one number a sample, `[n]`.
        masked: keeps masks on the value layers: for the backward pass too, since gradient checkpointing
            runs parts of the model again there.
        points: mask values at which the gradient is taken.

    Raises:
        FloatingPointError: a gradient is NaN or infinite.
    """
    scale = 1.0 if masking.dtype == torch.float32 else _SCALE
    total = torch.zeros(1, dtype=torch.float32)
    for point in points:
        masks = masking.at(point)
        with torch.enable_grad(), masked(masks):
            loss = memory().sum() * scale
            gradients = torch.autograd.grad(loss, [masks[name] for name in masking.layers])
        every = torch.cat([gradient.float().sum(dim=1) for gradient in gradients], dim=1)
        total = total.to(every.device) + every / scale / len(points)
    total = (total * torch.cat([masking.asked[name] for name in masking.layers], dim=1)).cpu()
    if not bool(total.isfinite().all()):
        raise FloatingPointError("a gradient is not finite")
    return total


def soft_maxima(found: Tensor, compared: Sequence[Sequence[Tensor]]) -> Tensor:
    """A differentiable largest similarity of each `found[i]` `[c, h, w]` with `compared[i]`: `[n]`."""
    counts = [len(others) for others in compared]
    places = [place for place, count in enumerate(counts) for _ in range(count)]
    # A copy: what was evaluated without gradients may not take part in them as it is.
    scores = ms_ssim(found[places], torch.stack([one for others in compared for one in others]))
    return torch.stack(
        [torch.logsumexp(part * _SHARPNESS, dim=0) / _SHARPNESS for part in torch.split(scores, counts)]
    )
