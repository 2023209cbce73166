"""A small classifier of the procedural world: which shape, which colour is in a picture?

It judges whether ordinary pictures of the demo checkpoint still show what their captions say.
Trained on freshly drawn scenes in about a minute on two cores; used by `benchmarks.side_effects`,
never shipped. `python -m benchmarks.demo_judge` trains one and says how well it does on new scenes;
`--features FILE` also writes what it sees as TorchScript, which `nemo-prune compare --inception FILE`
takes in Inception's place: of 128-pixel scenes, that network says little.
"""

import argparse
import random
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
from demo_world import COLOURS, SHAPES, Scene, draw_scene, random_scene

_SIDE = 64  # pixels; the world's pictures have twice as many
_BATCH = 48
_RATE = 3e-3
_SHAPES, _COLOURS = list(SHAPES), list(COLOURS)


class Judge(nn.Module):
    """`[n, 3, 64, 64]` in [0, 1] -> logits of the shape `[n, 8]` and of its colour `[n, 10]`."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for narrow, wide in ((3, 24), (24, 48), (48, 96), (96, 128)):
            layers += [
                nn.Conv2d(narrow, wide, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(wide),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(2 * 128, len(_SHAPES) + len(_COLOURS))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.head(self.features(pictures))
        return logits[:, : len(_SHAPES)], logits[:, len(_SHAPES) :]

    def features(self, pictures: Tensor) -> Tensor:
        """`[n, 3, 64, 64]` in [0, 1] -> `[n, 256]`."""
        found = self.body(pictures - 0.5)
        # The mean tells the colour, the maximum what is there at all.
        return torch.cat([found.mean(dim=(2, 3)), found.amax(dim=(2, 3))], dim=1)


class Features(nn.Module):
    """`[n, 3, h, w]` from 0 to 255 -> the judge's features, `[n, 256]`; as Inception's are asked for."""

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self.judge = judge

    def forward(self, pictures: Tensor) -> Tensor:
        return self.judge.features(functional.adaptive_avg_pool2d(pictures / 255, _SIDE))


def save_features(judge: Judge, path: Path) -> None:
    """Write them as TorchScript."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(Features(judge), torch.zeros(2, 3, 299, 299))  # type: ignore[no-untyped-call]
        traced.save(str(path))


@dataclass(frozen=True)
class Accuracy:
    """The part of pictures whose shape, colour, or both are what the caption says."""

    shape: float
    colour: float
    both: float
    pictures: int


def train_judge(seed: int = 0, steps: int = 1200) -> Judge:
    """The same seed gives the same judge on the same machine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge()
        optimizer = torch.optim.AdamW(judge.parameters(), lr=_RATE)
        rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
        rng = random.Random(f"judge {seed}")
        for _ in range(steps):
            scenes = [_scene(rng) for _ in range(_BATCH)]
            pictures = torch.stack([_blurred(draw_scene(scene, rng), rng) for scene in scenes])
            shapes, colours = judge(pictures)
            loss = functional.cross_entropy(shapes, _labels(scenes, "shape", _SHAPES))
            loss = loss + functional.cross_entropy(colours, _labels(scenes, "colour", _COLOURS))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            rates.step()
    return judge.eval()


@torch.inference_mode()
def accuracy(judge: Judge, pictures: Sequence[np.ndarray], captions: Sequence[str]) -> Accuracy:
    """How many pictures, uint8 `[h, w, 3]`, show what their captions say.

    Captions of empty landscapes are left out; at least one of another kind is needed.
    """
    pairs = [(p, named(c)) for p, c in zip(pictures, captions, strict=True) if named(c) is not None]
    shapes, colours = judge(torch.stack([_tensor(picture) for picture, _ in pairs]))
    right = [
        (_SHAPES[shape] == truth[0], _COLOURS[colour] == truth[1])
        for shape, colour, (_, truth) in zip(
            shapes.argmax(1).tolist(), colours.argmax(1).tolist(), pairs, strict=True
        )
        if truth is not None
    ]
    count = len(right)
    return Accuracy(
        shape=sum(a for a, _ in right) / count,
        colour=sum(b for _, b in right) / count,
        both=sum(a and b for a, b in right) / count,
        pictures=count,
    )


def named(caption: str) -> tuple[str, str] | None:
    """The shape and colour in a caption of the world; None for an empty landscape."""
    words = caption.split()
    shape = next((word for word in words if word in SHAPES), None)
    colour = next((word for word in words if word in COLOURS), None)
    return (shape, colour) if shape and colour else None


def _scene(rng: random.Random) -> Scene:
    while (scene := random_scene(rng)).shape is None:
        pass
    return scene


def _labels(scenes: Sequence[Scene], what: str, classes: Sequence[str]) -> Tensor:
    return torch.tensor([classes.index(getattr(scene, what)) for scene in scenes])


def _blurred(picture: np.ndarray, rng: random.Random) -> Tensor:
    """Generated pictures are softer and noisier than drawn ones: learn not to mind."""
    pixels = _tensor(picture)
    if rng.random() < 0.5:
        pixels = functional.avg_pool2d(pixels[None], 3, stride=1, padding=1, count_include_pad=False)[0]
    return (pixels + torch.randn_like(pixels) * rng.uniform(0, 0.05)).clamp(0, 1)


def _tensor(picture: np.ndarray) -> Tensor:
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
    return functional.adaptive_avg_pool2d(pixels, _SIDE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--features", type=Path, metavar="FILE")
    options = parser.parse_args()
    judge = train_judge(options.seed, options.steps)
    if options.features:
        save_features(judge, options.features)
    rng = random.Random(f"test {options.seed}")
    scenes = [_scene(rng) for _ in range(500)]
    print(accuracy(judge, [draw_scene(s, rng) for s in scenes], [s.caption for s in scenes]))


if __name__ == "__main__":
    main()
