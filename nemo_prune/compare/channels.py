"""Channels of convolutions, drawn by lot: what the paper's appendix C.8 compares neurons with."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from nemo_prune.compare.bench import Bench
from nemo_prune.compare.methods import State
from nemo_prune.compare.rows import Multiplying, generator, state_of


@dataclass(frozen=True)
class RandomChannels(Multiplying):
    """A share of the output channels of every 3x3 convolution of one down block's residual layers.

    One set for each down block; pictures take them in turn, so draw as many as there are blocks. Which
    of a block's convolutions the paper means is not said: here both of every residual layer.
    """

    share: float = 0.5

    def prepare(self, bench: Bench, prompt: str | None) -> State:
        began = time.monotonic()
        lot = generator(bench, self.name, prompt)
        sets = []
        for convolutions in _down_blocks(bench.loaded.unet):
            sets.append(
                {name: sorted(lot.sample(range(channels), round(self.share * channels)))
                 for name, channels in convolutions}
            )  # fmt: skip
        return state_of(sets, 0, time.monotonic() - began)


def _down_blocks(unet: nn.Module) -> list[Sequence[tuple[str, int]]]:
    """Of each down block the names and output channels of its residual layers' convolutions."""
    blocks: dict[str, list[tuple[str, int]]] = {}
    for name, module in unet.named_modules():
        parts = name.split(".")
        if parts[0] == "down_blocks" and "resnets" in parts and parts[-1] in ("conv1", "conv2"):
            assert isinstance(module, nn.Conv2d)
            blocks.setdefault(parts[1], []).append((name, module.out_channels))
    return list(blocks.values())
