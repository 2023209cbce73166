"""Methods that multiply some outputs of some layers: neurons, keys, channels."""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.compare.bench import Bench
from nemo_prune.compare.methods import ENTRIES, State

Rows = Mapping[str, Sequence[int]]
"""Module of the denoiser -> which of its outputs: a linear map's rows, a convolution's channels."""


@contextmanager
def multiplied(unet: nn.Module, rows: Rows, factor: float) -> Iterator[None]:
    """Multiply these outputs by a factor, for every prompt and step; undone on any exit."""

    def hook(places: Sequence[int]) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def changed(module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            axis = 1 if isinstance(module, nn.Conv2d) else output.ndim - 1
            mask = torch.ones(output.shape[axis], dtype=output.dtype)
            mask[list(places)] = factor
            shape = [1] * output.ndim
            shape[axis] = -1
            return output * mask.view(shape).to(output.device)

        return changed

    handles = []
    try:
        for name, places in rows.items():
            if places:
                handles.append(unet.get_submodule(name).register_forward_hook(hook(places)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def by_module(neurons: Iterable[Neuron]) -> dict[str, list[int]]:
    """Neurons as `Rows`."""
    rows: dict[str, list[int]] = {}
    for neuron in neurons:
        rows.setdefault(neuron.layer, []).append(neuron.row)
    return {name: sorted(found) for name, found in rows.items()}


def state_of(
    sets: Sequence[Rows], samples: int, seconds: float, notes: Sequence[str] = (), factor: float = 0.0,
    **more: Any,
) -> State:  # fmt: skip
    """The state of a method that multiplies outputs."""
    return {
        "samples": samples,
        "seconds": round(seconds, 3),
        "notes": list(notes),
        "sets": [{name: list(found) for name, found in rows.items()} for rows in sets],
        "factor": factor,
        **more,
    }


def state_for(bench: Bench, name: str, prompt: str | None) -> State:
    """The state of another method, prepared if nobody has yet."""
    key = name, prompt
    if key not in bench.states:
        bench.states[key] = ENTRIES[name].make().prepare(bench, prompt)
    return bench.states[key]


def generator(bench: Bench, *what: object) -> random.Random:
    """Random numbers that depend on the run's seed and on what they are for, and on nothing else."""
    words = "\0".join(map(str, (bench.options.seed, *what)))
    return random.Random(sha256(words.encode(errors="surrogatepass")).digest())


@dataclass(frozen=True)
class Multiplying:
    """A method whose state says which outputs are multiplied by what; see `State`."""

    name: str
    title: str
    source: str
    whole_list: bool = False
    unet_only: bool = False

    def prepare(self, bench: Bench, prompt: str | None) -> State:
        raise NotImplementedError

    def draw(self, bench: Bench, prompt: str, state: State, seeds: Sequence[int]) -> NDArray[np.uint8]:
        """Pictures with the state's sets; a picture's set goes by its number."""
        unet, sets = bench.loaded.unet, state["sets"]
        if not sets:
            return bench.draw(prompt, seeds)
        found: list[Any] = [None] * len(seeds)
        for place, rows in enumerate(sets):
            places = [i for i, seed in enumerate(seeds) if seed % len(sets) == place]
            if places:
                with multiplied(unet, rows, state["factor"]):
                    pictures = bench.draw(prompt, [seeds[i] for i in places])
                for i, picture in zip(places, pictures, strict=True):
                    found[i] = picture
        return np.stack(found)


@dataclass(frozen=True)
class Unpruned(Multiplying):
    """The model as it is."""

    def prepare(self, bench: Bench, prompt: str | None) -> State:
        del bench, prompt
        return state_of([], 0, 0.0)


@dataclass(frozen=True)
class RandomRows(Multiplying):
    """As many neurons as `nemo` removes, in the same layers, drawn by lot.

    As published there are five draws; pictures take them in turn. Neurons that `nemo` removes may be
    among them, as they may in the paper; in a layer of few rows that is likely.
    """

    repeats: int = 5

    def prepare(self, bench: Bench, prompt: str | None) -> State:
        base = state_for(bench, "nemo", prompt)
        began = time.monotonic()
        counts = {name: len(rows) for name, rows in base["sets"][0].items()} if base["sets"] else {}
        layers = bench.loaded.value_layers
        lot = generator(bench, self.name, prompt)
        sets = [
            {name: sorted(lot.sample(range(layers[name].out_features), count))
             for name, count in counts.items()}
            for _ in range(self.repeats)
        ]  # fmt: skip
        return state_of(sets, base["samples"], base["seconds"] + time.monotonic() - began)
