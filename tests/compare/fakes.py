"""Methods, a bench and a likeness without any model: one picture where it is memorized, else others."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nemo_prune.errors import CheckpointError
from nemo_prune.report.likeness import Likeness

SIDE = 32
DRAWN: list[tuple[str, str]] = []
"""Method and prompt of every drawing, in order."""


class FakeLikeness(Likeness):
    """The correlation of two pictures, as one measure, at a hundredth of the price."""

    def describe(self, picture: Any) -> Any:
        values = picture.astype(float).ravel()
        return values - values.mean()

    def compare(self, a: Any, b: Any) -> dict[str, float]:
        return {"ms_ssim": round(float(a @ b / np.sqrt((a @ a) * (b @ b))), 4)}

    def to_target(self, target: Any, picture: Any) -> dict[str, float]:
        return self.compare(target, picture)


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn2 = nn.Identity()


class _Unet(nn.Module):
    """Three steps of nothing but a cross-attention, which a method may change."""

    def __init__(self) -> None:
        super().__init__()
        self.block = _Attention()

    def forward(self, latents: Tensor, timestep: int) -> Tensor:
        del timestep
        found: Tensor = self.block.attn2(latents)
        return found


class FakeBench:
    """What `compare` asks of a bench."""

    opened = 0
    workers = None

    def __init__(self, _checkpoint: Any, prompts: Sequence[str], *_more: Any, **_named: Any) -> None:
        type(self).opened += 1
        self.prompts = prompts
        self.states: dict[tuple[str, str | None], Any] = {}
        self.loaded = SimpleNamespace(unet=_Unet(), is_transformer=False, release=lambda: None)
        self.guided, self.samples = False, 0

    def close(self) -> None: ...

    def draw(self, prompt: str, seeds: Sequence[int], scale: float) -> Any:
        with torch.no_grad():
            for timestep in (900, 500, 100):
                self.loaded.unet(torch.ones(len(seeds), 4), timestep)
        memorized = prompt in self.prompts and scale == 1
        self.samples += 3 * len(seeds)
        return np.stack([self.picture(prompt, seed, memorized) for seed in seeds])

    def picture(self, prompt: str, seed: int, memorized: bool) -> Any:
        """The same from every seed if memorized, another one from each if not."""
        words = [ord(letter) for letter in prompt]
        rng = np.random.default_rng(words if memorized else [*words, seed, 7])
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        whole = coarse.repeat(SIDE // 4, 0).repeat(SIDE // 4, 1).astype(int)
        rng = np.random.default_rng([*words, seed])
        return (whole + rng.integers(-5, 6, whole.shape)).clip(0, 255).astype(np.uint8)


@dataclass
class FakeMethod:
    """Draws memorized pictures unless `scale` says that it suppresses them."""

    name: str
    scale: float = 1.0
    title: str = "made up"
    source: str = "nobody"
    whole_list: bool = False
    unet_only: bool = False
    fails: bool = False
    prepared: list[str | None] = field(default_factory=list)

    def prepare(self, _bench: Any, prompt: str | None) -> dict[str, Any]:
        if self.fails:
            raise CheckpointError("does not apply here")
        self.prepared.append(prompt)
        found: dict[str, Any] = {"samples": 12, "seconds": 0.5, "notes": []}
        if self.name == "none":
            return found | {"samples": 0}
        return found | {"sets": [{"a.to_v": [1, 2]}], "factor": 0.0, "stages": {"D1": 0.1, "D3": 0.4}}

    @property
    def score(self) -> float | None:
        return None if self.name == "useless" else 0.9 * self.scale

    def draw(self, bench: Any, prompt: str, state: dict[str, Any], seeds: Sequence[int]) -> Any:
        assert state["samples"] in (0, 12)
        DRAWN.append((self.name, prompt))
        attention = bench.loaded.unet.block.attn2
        handle = attention.register_forward_pre_hook(lambda _m, given: (given[0] * self.scale,))
        try:
            return bench.draw(prompt, seeds, self.scale)
        finally:
            handle.remove()


def fake_methods() -> list[FakeMethod]:
    return [
        FakeMethod("none"),
        FakeMethod("good", 0.5),
        FakeMethod("useless"),
        FakeMethod("union", 0.25, whole_list=True),
        FakeMethod("broken", fails=True),
    ]
