"""What a comparison does prompt by prompt, here or in a process that works for another."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nemo_prune.compare.bench import Bench
from nemo_prune.compare.drawing import memorization_score
from nemo_prune.compare.methods import Method, State
from nemo_prune.errors import CalibrationError, CheckpointError, OptionError
from nemo_prune.report.pictures import Picture
from nemo_prune.scoring.sharing import Kept

TOLD = (CheckpointError, OptionError, CalibrationError, torch.OutOfMemoryError)
"""What may happen to one method and not to others."""


def prepared(bench: Bench, method: Method, prompt: str | None) -> State:
    """What a method finds, and how long that took."""
    began = time.monotonic()
    state = dict(method.prepare(bench, prompt))
    state.setdefault("seconds", round(time.monotonic() - began, 3))
    return state


@dataclass(frozen=True)
class Preparing:
    """Work: states of prompts, each with what is known of it; a state, or why there is none, and others
    that it was built on."""

    bench: Kept[Bench]
    method: Method

    def __call__(
        self, items: Sequence[tuple[str, dict[str, State]]]
    ) -> Iterator[tuple[int, tuple[State | str, dict[str, State]]]]:
        bench = self.bench.get()
        for place, (text, known) in enumerate(items):
            bench.states.update({(name, text): state for name, state in known.items()})
            found: State | str
            try:
                found = prepared(bench, self.method, text)
            except TOLD as error:
                found = line(error)
            now = {name: state for (name, of), state in bench.states.items() if of == text}
            yield place, (found, {name: now[name] for name in now.keys() - known.keys()})


@dataclass(frozen=True)
class Drawing:
    """Work: pictures of texts, each with a method's state, and what they took.

    tolerant: what fails is told in their place.
    """

    bench: Kept[Bench]
    method: Method
    seeds: Sequence[int]
    tolerant: bool

    def __call__(
        self, items: Sequence[tuple[str, State]]
    ) -> Iterator[tuple[int, tuple[dict[str, Any], list[Picture]]]]:
        bench = self.bench.get()
        for place, (text, state) in enumerate(items):
            began, before = time.monotonic(), bench.samples
            try:
                pictures = list(self.method.draw(bench, text, state, self.seeds))
            except TOLD as error:
                if not self.tolerant:
                    raise
                yield place, ({"error": line(error)}, [])
                continue
            seconds = round(time.monotonic() - began, 3)
            samples, count = bench.samples - before, len(self.seeds)
            yield place, ({"seconds": seconds, "samples": samples, "pictures": count}, pictures)


@dataclass(frozen=True)
class Scoring:
    """Work: memorization scores of texts, each with a method's state; see `memorization_score`."""

    bench: Kept[Bench]
    method: Method
    unpruned: dict[str, dict[int, Tensor]]

    def __call__(self, items: Sequence[tuple[str, State]]) -> Iterator[tuple[int, float | None]]:
        bench = self.bench.get()
        for place, (text, state) in enumerate(items):
            yield place, memorization_score(bench, self.method, text, state, self.unpruned)


def line(error: BaseException) -> str:
    """The first line of what an error says."""
    return str(error).partition("\n")[0]
