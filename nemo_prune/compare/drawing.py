"""What the comparison needs while a method draws: its score, its first step alone, its progress."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nemo_prune.compare.bench import Bench
from nemo_prune.compare.methods import UNPRUNED, Method, State
from nemo_prune.compare.rows import multiplied
from nemo_prune.localize.localize import FRESH_SEEDS
from nemo_prune.options import Progress, Silent
from nemo_prune.scoring.criterion import best_pairs
from nemo_prune.scoring.engine import Sample


def memorization_score(
    bench: Bench, method: Method, text: str, state: State, unpruned: dict[str, dict[int, Tensor]]
) -> float | None:
    """`verify`'s score of a prompt with a method's outputs off, on noises that no search used.

    None for methods that do something else; of several sets of outputs the first is taken.
    unpruned: the unpruned model's noise differences by prompt, which are added to.
    """
    engine, seeds = bench.engine, range(FRESH_SEEDS, FRESH_SEEDS + bench.options.seeds)
    (prompt,) = engine.prompts([text])
    samples = [Sample(prompt, frozenset(), seed) for seed in seeds]
    if text not in unpruned:
        unpruned[text] = dict(zip(seeds, engine.evaluate(samples), strict=True))
    if method.name == UNPRUNED:
        return max(best_pairs(unpruned[text], published=engine.published).values())
    if not state.get("sets"):
        return None
    with multiplied(bench.loaded.unet, state["sets"][0], state["factor"]):
        after = dict(zip(seeds, engine.evaluate(samples), strict=True))
    return max(engine.scores(after, unpruned[text]).values())


class Within(Silent):
    """Progress of what a method does for one prompt: words beside the one bar."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.label, self.began = "", False
        self._name, self._done, self._total = "", 0, None

    def stage(self, name: str, total: int | None, unit: str, done: int = 0) -> None:
        del unit
        self._name, self._done, self._total = name, done, total  # type: ignore[assignment]
        self.detail(name)

    def advance(self, count: int = 1) -> None:
        self._done += count
        self.detail(f"{self._name} {self._done}" + (f" of {self._total}" if self._total else ""))

    def detail(self, text: str) -> None:
        if self.began:
            self._progress.detail(f"{self.label}: {text}")

    def note(self, text: str) -> None:
        if not self.began:  # later ones speak of one prompt as if it were a list
            self._progress.note(text)


class EnoughError(Exception):
    """The first step is over."""


@contextmanager
def first_step(unet: nn.Module) -> Iterator[None]:
    """Raise `EnoughError` when the drawing comes to its second timestep.

    Passes with a gradient, such as a method's own before it draws, are none of the drawing.
    """
    first: list[float] = []

    def hook(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            return
        timestep = given[1] if len(given) > 1 else named["timestep"]
        now = float(timestep.flatten()[0] if isinstance(timestep, Tensor) else timestep)
        if first and now < first[0]:
            raise EnoughError
        first[:] = [now]

    handle = unet.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
