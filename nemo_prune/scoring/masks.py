"""Switching neurons off for some samples of a batch: masks on the outputs of value layers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy
import torch
from torch import Tensor, nn

from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.model.denoiser import LoadedModel


def masks_of(model: LoadedModel, offs: Sequence[frozenset[Neuron]]) -> dict[str, Tensor]:
    """Layer name -> `[n, 1, rows]` of ones and zeros, for the layers that any sample touches."""
    by_set: dict[frozenset[Neuron], list[int]] = {}
    for sample, off in enumerate(offs):
        by_set.setdefault(off, []).append(sample)
    starts, end = {}, 0
    for layer in {neuron.layer: None for off in by_set for neuron in off}:
        starts[layer] = end
        end += model.value_layers[layer].out_features
    # One array for all layers, set by set: there may be thousands of neurons in each.
    on = numpy.ones((len(offs), end), dtype=bool)
    for off, samples in by_set.items():
        if off:
            places = [starts[neuron.layer] + neuron.row for neuron in off]
            on[numpy.ix_(samples, places)] = False
    masks = torch.from_numpy(on).to(model.device).to(model.dtype)
    return {
        layer: masks[:, None, start : start + model.value_layers[layer].out_features]
        for layer, start in starts.items()
    }


@contextmanager
def masked_layers(layers: Mapping[str, nn.Linear], masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Multiply the output of each value layer by its mask `[n, 1, rows]`; undone on any exit.

    A batch twice as large, without the prompts and with them, takes the masks for each half.
    """

    def hook(mask: Tensor) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def masked(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            times = len(output) // len(mask)
            return output * (mask if times == 1 else mask.repeat(times, 1, 1))

        return masked

    handles = [layers[name].register_forward_hook(hook(mask)) for name, mask in masks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
