"""The judge of the demo's world: what a caption says, and how verdicts are counted."""

import random
from pathlib import Path

import pytest
import torch
from demo_world import COLOURS, SHAPES, draw_scene, random_scene
from torch import Tensor

from benchmarks.demo_judge import Judge, _tensor, accuracy, named, save_features, train_judge
from nemo_prune.compare.quality import open_extractors


class Stubborn(Judge):
    """Always sees the same."""

    def __init__(self, shape: str, colour: str) -> None:
        super().__init__()
        self.answer = SHAPES.index(shape), list(COLOURS).index(colour)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        shape, colour = (torch.zeros(len(pictures), n) for n in (len(SHAPES), len(COLOURS)))
        shape[:, self.answer[0]] = colour[:, self.answer[1]] = 1
        return shape, colour


def test_every_caption_of_the_world_is_understood() -> None:
    rng = random.Random(0)
    for _ in range(300):
        scene = random_scene(rng)
        expected = (scene.shape, scene.colour) if scene.shape else None
        assert named(scene.caption) == expected


def test_accuracy_counts_shapes_colours_and_both_and_leaves_out_empty_landscapes() -> None:
    captions = [
        "a red house in the snow",
        "a small red car",
        "a blue house at night",
        "an empty landscape",
    ]
    rng = random.Random(0)
    pictures = [draw_scene(random_scene(rng), rng) for _ in captions]
    found = accuracy(Stubborn("house", "red"), pictures, captions)
    assert (found.shape, found.colour, found.both, found.pictures) == pytest.approx(
        (2 / 3, 2 / 3, 1 / 3, 3)
    )


def test_training_is_seeded() -> None:
    first, second = train_judge(seed=1, steps=3), train_judge(seed=1, steps=3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other = train_judge(seed=2, steps=3)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_its_features_serve_compare_in_inceptions_place(tmp_path: Path) -> None:
    judge = train_judge(seed=1, steps=3)
    save_features(judge, tmp_path / "judge.pt")
    pictures = [draw_scene(random_scene(random.Random(i)), random.Random(i)) for i in range(3)]
    extractors = open_extractors(tmp_path / "judge.pt", None, torch.device("cpu"))
    (features,) = [one.features(pictures) for one in extractors]
    assert features.shape == (3, 256)
    with torch.inference_mode():
        own = judge.features(torch.stack([_tensor(one) for one in pictures])).double()
    # Pictures are made larger for Inception and smaller again.
    assert torch.nn.functional.cosine_similarity(features, own).min() > 0.95
