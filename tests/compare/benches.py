"""A bench around a tiny random model."""

from pathlib import Path

import torch

from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.compare.bench import Bench
from nemo_prune.options import Options

PROMPTS = ["a very well known grey cat", "a dog that is on every poster"]
ORDINARY = ["the sea at night"]
CAPTIONS = tuple(f"an ordinary thing, number {number}" for number in range(30))


def make(path: Path, prompts: list[str] = PROMPTS, **options: object) -> Bench:
    asked = {"seeds": 3, "tau": 0.2, "gate": 0.2, "confirm": "none", "device": "cpu"} | options
    made = Bench(
        recognize(path), prompts, ORDINARY, Options(**asked),  # type: ignore[arg-type]
        steps=2, calibration_prompts=CAPTIONS,
    )  # fmt: skip
    with torch.no_grad():
        for layer in made.loaded.value_layers.values():
            layer.weight[:4] *= 30  # a few neurons that matter
    return made
