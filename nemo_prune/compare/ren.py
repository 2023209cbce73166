"""Ren et al. (arXiv 2403.11052): cross-attention's logits are rescaled while pictures are drawn."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nemo_prune.compare.bench import Bench
from nemo_prune.compare.methods import State


@dataclass(frozen=True)
class Rescaled:
    """All cross-attention layers, all steps, before the softmax.

    As published: logits of the padding are minus infinity in both halves of guidance, of which the
    prompt's length counts; the start token's logit is multiplied by c1 in the rows with the prompt. c1
    is 1.25, of the authors' script. A negative logit thus gets smaller, as with them.

    Differs in how it is done: by the start token's key and by a mask, so that fused attention stays in
    use; the logits are the same.
    """

    name: str
    title: str
    source: str
    whole_list: bool = False
    unet_only: bool = True
    c1: float = 1.25

    def prepare(self, bench: Bench, prompt: str | None) -> State:
        del bench, prompt
        return {"samples": 0, "seconds": 0.0, "notes": []}

    def draw(self, bench: Bench, prompt: str, state: State, seeds: Sequence[int]) -> NDArray[np.uint8]:
        del state
        (length,) = bench.loaded.token_counts([prompt])
        within = rescaled(bench.loaded.unet, length, self.c1, guided=bench.guided)
        return bench.draw(prompt, seeds, within=within)


@contextmanager
def rescaled(unet: nn.Module, length: int, c1: float, *, guided: bool) -> Iterator[None]:
    """Rescale the logits of every cross-attention; undone on any exit.

    Args:
        length: tokens of the prompt with start and end; those after it are padding.
        guided: the second half of a batch has the prompt; else all of it.
    """

    def masked(
        _module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        text: Tensor = named["encoder_hidden_states"]
        mask = torch.zeros(len(text), 1, text.shape[1], dtype=text.dtype, device=text.device)
        mask[:, :, length:] = -torch.inf
        return inputs, {**named, "attention_mask": mask}

    def louder(_module: nn.Module, _inputs: object, keys: Tensor) -> Tensor:
        # The key of a token multiplied by c1 multiplies its logit for every query and head.
        factors = torch.ones(len(keys), keys.shape[1], 1, dtype=keys.dtype, device=keys.device)
        factors[len(keys) // 2 if guided else 0 :, 0] = c1
        return keys * factors

    handles = []
    try:
        for name, module in unet.named_modules():
            if name.endswith(".attn2"):
                handles.append(module.register_forward_pre_hook(masked, with_kwargs=True))
            elif name.endswith(".attn2.to_k"):
                handles.append(module.register_forward_hook(louder))
        yield
    finally:
        for handle in handles:
            handle.remove()
