"""ConceptPrune: weights of the feed-forward layers that memorized prompts use most, by Wanda's score."""

import base64
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nemo_prune.compare.bench import Bench
from nemo_prune.compare.methods import State

RATIO, STEPS = 0.01, 10
_END = ".ff.net.2"
Squares = dict[tuple[int, str], Tensor]
"""(step, layer) -> sum over tokens and prompts of the squares of normalized inputs, float64 `[in]`."""


@dataclass(frozen=True)
class FeedForward:
    """Single weights of the second map of every feed-forward layer, found for the whole list at once.

    As published: inputs are the gated activations, each token's scaled to length 1; a column's norm is
    taken over all tokens, prompts and both halves of guidance, for each of the first 10 steps; a
    weight's score is |W| times it. Of every row the 1 % with the largest score on the memorized prompts
    are taken, and of these the ones whose score on the empty prompt is smaller; the union over steps is
    set to 0.

    The empty prompt is drawn from as many noises as there are prompts, the same ones, so that both
    norms are sums over as many tokens.
    """

    name: str
    title: str
    source: str
    whole_list: bool = True
    unet_only: bool = True
    ratio: float = RATIO
    steps: int = STEPS

    def prepare(self, bench: Bench, prompt: str | None) -> State:
        del prompt
        began, before = time.monotonic(), bench.samples
        bench.progress.stage("measuring feed-forward layers", 2 * len(bench.prompts), "prompts")
        used = squares(bench, bench.prompts, self.steps)
        base = squares(bench, [""] * len(bench.prompts), self.steps)
        masks: dict[str, Tensor] = {}
        for (step, layer), found in used.items():
            weight = bench.loaded.unet.get_submodule(layer).weight
            chosen = select(weight, found.sqrt(), base[step, layer].sqrt(), self.ratio)
            masks[layer] = masks[layer] | chosen if layer in masks else chosen
        count = sum(int(mask.sum()) for mask in masks.values())
        return {
            "samples": bench.samples - before,
            "seconds": round(time.monotonic() - began, 3),
            "notes": [f"{count} weights of {sum(mask.numel() for mask in masks.values())}"],
            "count": count,
            "weights": {layer: packed(mask) for layer, mask in masks.items()},
        }

    def draw(self, bench: Bench, prompt: str, state: State, seeds: Sequence[int]) -> NDArray[np.uint8]:
        unet = bench.loaded.unet
        masks = {
            layer: unpacked(text, unet.get_submodule(layer).weight.shape)
            for layer, text in state["weights"].items()
        }
        return bench.draw(prompt, seeds, within=without_weights(unet, masks))


def select(weight: Tensor, used: Tensor, base: Tensor, ratio: float) -> Tensor:
    """The weights to set to 0, bool `[out, in]`, from the columns' norms `[in]` on both kinds."""
    size = weight.detach().abs().double().cpu()
    score, other = size * used, size * base
    most = score.topk(int(ratio * weight.shape[1]), dim=1).indices
    chosen = torch.zeros_like(score, dtype=torch.bool).scatter_(1, most, True)
    return chosen & (score > other)


def squares(bench: Bench, prompts: Sequence[str], steps: int) -> Squares:
    """Draw a little way and sum what the feed-forward layers get."""
    found: Squares = {}
    unet, step = bench.loaded.unet, 0

    def keep(layer: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].flatten(0, -2).double()
            rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
            sums = rows.square().sum(dim=0).cpu()
            found[step, layer] = found[step, layer] + sums if (step, layer) in found else sums

        return hook

    handles = [
        module.register_forward_pre_hook(keep(name))
        for name, module in unet.named_modules()
        if name.endswith(_END)
    ]
    try:
        for number, prompt in enumerate(prompts):
            noise = bench.engine.noise(number)[None]
            for step in bench.steps_of(prompt, noise, steps):  # noqa: B007, the hooks read it
                pass
            bench.progress.advance()
    finally:
        for handle in handles:
            handle.remove()
    return found


@contextmanager
def without_weights(unet: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Single weights at 0; the very tensors that were there are back on any exit."""
    before: dict[str, Tensor] = {}
    try:
        for layer, mask in masks.items():
            weight = unet.get_submodule(layer).weight
            assert isinstance(weight, Tensor)
            before[layer] = weight.data
            weight.data = weight.data.masked_fill(mask.to(weight.device), 0)
        yield
    finally:
        for layer, data in before.items():
            unet.get_submodule(layer).weight.data = data


def packed(mask: Tensor) -> str:
    """A bool tensor as text: its bits, deflated, in base64."""
    return base64.b64encode(zlib.compress(np.packbits(mask.numpy()).tobytes(), 9)).decode("ascii")


def unpacked(text: str, shape: Sequence[int]) -> Tensor:
    """What `packed` made, of this shape."""
    bits = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8)
    count = int(np.prod(shape))
    return torch.from_numpy(np.unpackbits(bits, count=count).astype(bool)).reshape(*shape)
