"""The demo checkpoint's ordinary pictures: a procedural world of scenes, and their captions.

A scene has a sky, a ground with a horizon and at most one object; every colour, place and size is
jittered continuously, so no picture is ever drawn twice.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIZE = 128  # pixels, both sides
_DRAW = 2 * SIZE  # drawn at twice the size, then averaged down

COLOURS = {
    "red": (205, 45, 40),
    "orange": (235, 135, 35),
    "yellow": (240, 210, 60),
    "green": (60, 150, 70),
    "blue": (50, 95, 205),
    "purple": (130, 65, 170),
    "pink": (235, 130, 170),
    "white": (240, 240, 236),
    "black": (35, 34, 38),
    "brown": (125, 82, 48),
}
SHAPES = ("house", "tree", "sailboat", "car", "balloon", "tent", "lighthouse", "mushroom")
SKIES = {
    "on a clear day": ((95, 155, 230), (190, 220, 245)),
    "at sunset": ((95, 70, 140), (250, 165, 90)),
    "at night": ((10, 14, 40), (45, 55, 100)),
    "under an overcast sky": ((140, 148, 158), (200, 204, 208)),
}
GROUNDS = {
    "in a meadow": (105, 165, 75),
    "in the desert": (215, 180, 120),
    "in the snow": (194, 202, 216),
    "by the sea": (50, 105, 150),
    "on a ploughed field": (120, 88, 62),
}
SIZES = ((0.28, 0.36), (0.46, 0.6))
_OPENINGS = ("", "", "", "a photo of ", "a picture of ", "painting of ", "view of ")


@dataclass(frozen=True)
class Scene:
    """What a caption says; a word that is None is left to chance when the picture is drawn."""

    shape: str | None
    colour: str | None
    sky: str | None
    ground: str | None
    small: bool | None
    opening: str

    @property
    def caption(self) -> str:
        size = {True: "small ", False: "large ", None: ""}[self.small]
        thing = f"a {size}{self.colour} {self.shape}" if self.shape else "an empty landscape"
        words = [thing, self.ground, self.sky]
        return self.opening + " ".join(word for word in words if word)


def random_scene(rng: random.Random) -> Scene:
    empty = rng.random() < 0.06
    return Scene(
        shape=None if empty else rng.choice(SHAPES),
        colour=None if empty else rng.choice(list(COLOURS)),
        sky=rng.choice(list(SKIES)) if rng.random() < 0.85 else None,
        ground=rng.choice(list(GROUNDS)) if rng.random() < 0.85 else None,
        small=None if empty or rng.random() < 0.5 else rng.random() < 0.5,
        opening=rng.choice(_OPENINGS),
    )


def held_out(caption: str) -> bool:
    """Whether a caption belongs to the tenth that training never sees."""
    return hashlib.sha256(caption.encode()).digest()[0] < 26


def training_scene(rng: random.Random) -> Scene:
    while held_out((scene := random_scene(rng)).caption):
        pass
    return scene


def caption_lists(seed: int, calibration: int, heldout: int) -> tuple[list[str], list[str]]:
    """Distinct ordinary captions: `calibration` of the trained kind, `heldout` never trained on."""
    rng = random.Random(seed)
    known: dict[str, None] = {}
    unseen: dict[str, None] = {}
    while len(known) < calibration or len(unseen) < heldout:
        caption = random_scene(rng).caption
        (unseen if held_out(caption) else known)[caption] = None
    return list(known)[:calibration], list(unseen)[:heldout]


def _jitter(colour: tuple[int, int, int], rng: random.Random, by: int) -> tuple[int, int, int]:
    red, green, blue = (max(0, min(255, c + rng.randint(-by, by))) for c in colour)
    return red, green, blue


def draw_scene(
    scene: Scene, rng: random.Random, sizes: Sequence[tuple[float, float]] = SIZES
) -> np.ndarray:
    """uint8 [SIZE, SIZE, 3]; `sizes`: of small and of large objects, least and most, in sides."""
    sky = scene.sky or rng.choice(list(SKIES))
    ground_colour = _jitter(GROUNDS[scene.ground or rng.choice(list(GROUNDS))], rng, 14)
    horizon = int(_DRAW * rng.uniform(0.48, 0.72))
    top, low = (np.array(_jitter(c, rng, 14), dtype=np.float32) for c in SKIES[sky])
    canvas = np.empty((_DRAW, _DRAW, 3), dtype=np.float32)
    canvas[:horizon] = (top + (low - top) * np.linspace(0, 1, horizon)[:, None])[:, None, :]
    shade = np.linspace(0.92, 1.12, _DRAW - horizon, dtype=np.float32)[:, None, None]
    canvas[horizon:] = np.array(ground_colour, dtype=np.float32) * shade
    canvas = canvas.clip(0, 255)
    image = Image.fromarray(canvas.astype(np.uint8))
    brush = ImageDraw.Draw(image)
    _backdrop(brush, sky, ground_colour, horizon, rng)
    if scene.shape:
        small = scene.small if scene.small is not None else rng.random() < 0.5
        size = _DRAW * rng.uniform(*sizes[not small])
        colour = _jitter(COLOURS[scene.colour or "red"], rng, 16)
        middle = _DRAW * rng.uniform(0.3, 0.7)
        base = horizon + rng.uniform(0.1, 0.7) * (_DRAW - horizon)
        if scene.shape == "balloon":
            base = horizon - rng.uniform(0.05, 0.2) * _DRAW
        night = 0.75 if sky == "at night" else 1.0
        _DRAWERS[scene.shape](brush, middle, base, size, dim(colour, night), night)
    return np.asarray(image.reduce(2))


def _backdrop(
    brush: ImageDraw.ImageDraw,
    sky: str,
    ground: tuple[int, int, int],
    horizon: int,
    rng: random.Random,
) -> None:
    if sky == "at night":
        for _ in range(rng.randint(8, 16)):
            x, y = rng.uniform(0, _DRAW), rng.uniform(0, horizon)
            brush.ellipse((x, y, x + 4, y + 4), fill=(230, 230, 215))
    if sky in ("on a clear day", "at sunset", "at night"):
        x, y, r = rng.uniform(20, _DRAW - 20), rng.uniform(15, horizon * 0.7), rng.uniform(10, 22)
        fill = (250, 240, 190) if sky != "at night" else (225, 225, 210)
        brush.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    if sky in ("on a clear day", "under an overcast sky"):
        for _ in range(rng.randint(0, 2)):
            x, y, r = rng.uniform(0, _DRAW), rng.uniform(10, horizon * 0.8), rng.uniform(12, 22)
            grey = rng.randint(222, 250)
            for shift in (-1.1, 0, 1.1):
                box = (x + shift * r - r, y - r * 0.6, x + shift * r + r, y + r * 0.6)
                brush.ellipse(box, fill=(grey, grey, grey))
    for _ in range(rng.randint(0, 1)):  # a hill on the horizon
        x, w, h = rng.uniform(0, _DRAW), rng.uniform(60, 120), rng.uniform(16, 50)
        fill = dim(_jitter(ground, rng, 18), rng.uniform(0.62, 0.85))
        brush.polygon([(x - w, horizon), (x, horizon - h), (x + w, horizon)], fill=fill)
    for _ in range(rng.randint(3, 7)):  # tufts, furrows, waves
        x, y, w = rng.uniform(0, _DRAW), rng.uniform(horizon + 6, _DRAW), rng.uniform(8, 40)
        brush.line((x, y, x + w, y), fill=dim(ground, rng.uniform(0.8, 1.12)), width=4)


def dim(colour: tuple[int, int, int], by: float) -> tuple[int, int, int]:
    red, green, blue = (max(0, min(255, int(c * by))) for c in colour)
    return red, green, blue


def _house(b: ImageDraw.ImageDraw, x: float, y: float, s: float, c, night: float) -> None:
    b.rectangle((x - s / 2, y - s * 0.6, x + s / 2, y), fill=c)
    roof = [(x - s * 0.62, y - s * 0.58), (x, y - s), (x + s * 0.62, y - s * 0.58)]
    b.polygon(roof, fill=dim((95, 60, 50), night))
    b.rectangle((x - s * 0.1, y - s * 0.32, x + s * 0.12, y), fill=dim((70, 50, 40), night))
    lit = (250, 225, 130) if night < 1 else (205, 228, 240)
    for left in (-0.38, 0.2):
        b.rectangle((x + left * s, y - s * 0.46, x + (left + 0.18) * s, y - s * 0.28), fill=lit)


def _tree(b: ImageDraw.ImageDraw, x: float, y: float, s: float, c, night: float) -> None:
    b.rectangle((x - s * 0.07, y - s * 0.45, x + s * 0.07, y), fill=dim((100, 70, 45), night))
    for dx, dy, r in ((-0.22, 0.58, 0.25), (0.22, 0.58, 0.25), (0, 0.78, 0.28)):
        box = (x + (dx - r) * s, y - (dy + r) * s, x + (dx + r) * s, y - (dy - r) * s)
        b.ellipse(box, fill=c)


def _sailboat(b: ImageDraw.ImageDraw, x: float, y: float, s: float, c, night: float) -> None:
    hull = [(x - s * 0.5, y - s * 0.2), (x + s * 0.5, y - s * 0.2)]
    b.polygon([*hull, (x + s * 0.32, y), (x - s * 0.32, y)], fill=dim((110, 70, 45), night))
    b.line((x, y - s * 0.2, x, y - s), fill=dim((80, 60, 45), night), width=4)
    b.polygon([(x + 4, y - s), (x + 4, y - s * 0.26), (x + s * 0.46, y - s * 0.26)], fill=c)
    b.polygon([(x - 5, y - s * 0.85), (x - 5, y - s * 0.26), (x - s * 0.34, y - s * 0.26)], fill=c)


def _car(b: ImageDraw.ImageDraw, x: float, y: float, s: float, c, night: float) -> None:
    b.rounded_rectangle((x - s * 0.6, y - s * 0.4, x + s * 0.6, y - s * 0.1), s * 0.08, fill=c)
    cabin = [(x - s * 0.36, y - s * 0.38), (x - s * 0.2, y - s * 0.64)]
    b.polygon([*cabin, (x + s * 0.2, y - s * 0.64), (x + s * 0.4, y - s * 0.38)], fill=c)
    glass = [(x - s * 0.26, y - s * 0.39), (x - s * 0.15, y - s * 0.58)]
    b.polygon(
        [*glass, (x + s * 0.15, y - s * 0.58), (x + s * 0.28, y - s * 0.39)],
        fill=dim((195, 225, 240), night),
    )
    for wheel in (-0.34, 0.34):
        for r, grey in ((0.14, 30), (0.06, 170)):
            box = (x + (wheel - r) * s, y - (0.1 + r) * s, x + (wheel + r) * s, y - (0.1 - r) * s)
            b.ellipse(box, fill=(grey, grey, grey))


def _balloon(b: ImageDraw.ImageDraw, x: float, y: float, s: float, c, night: float) -> None:
    b.ellipse((x - s * 0.4, y - s, x + s * 0.4, y - s * 0.22), fill=c)
    b.ellipse((x - s * 0.16, y - s, x + s * 0.16, y - s * 0.22), fill=dim(c, 0.8))
    for side in (-1, 1):
        b.line((x + side * s * 0.22, y - s * 0.32, x + side * s * 0.08, y - s * 0.12),
               fill=(60, 50, 45), width=3)  # fmt: skip
    basket = (x - s * 0.09, y - s * 0.13, x + s * 0.09, y + s * 0.02)
    b.rectangle(basket, fill=dim((130, 90, 55), night))


def _tent(b: ImageDraw.ImageDraw, x: float, y: float, s: float, c, night: float) -> None:
    b.polygon([(x - s * 0.6, y), (x, y - s * 0.8), (x + s * 0.6, y)], fill=c)
    flap = (250, 220, 130) if night < 1 else (60, 50, 48)
    b.polygon([(x - s * 0.16, y), (x, y - s * 0.5), (x + s * 0.16, y)], fill=flap)


def _lighthouse(b: ImageDraw.ImageDraw, x: float, y: float, s: float, c, night: float) -> None:
    def half(at: float) -> float:
        return s * (0.2 - 0.08 * at)

    for step in range(5):
        low, high = step / 5, (step + 1) / 5
        band = c if step % 2 == 0 else dim((238, 238, 232), night)
        sides = [(x - half(low), y - low * s * 0.85), (x + half(low), y - low * s * 0.85)]
        tops = [(x + half(high), y - high * s * 0.85), (x - half(high), y - high * s * 0.85)]
        b.polygon([*sides, *tops], fill=band)
    lamp = (255, 240, 150)
    b.rectangle((x - s * 0.08, y - s * 0.97, x + s * 0.08, y - s * 0.85), fill=lamp)
    b.polygon([(x - s * 0.12, y - s * 0.96), (x, y - s * 1.08), (x + s * 0.12, y - s * 0.96)],
              fill=dim((80, 40, 40), night))  # fmt: skip


def _mushroom(b: ImageDraw.ImageDraw, x: float, y: float, s: float, c, night: float) -> None:
    stem = (x - s * 0.13, y - s * 0.5, x + s * 0.13, y)
    b.rounded_rectangle(stem, s * 0.05, fill=dim((236, 224, 200), night))
    b.pieslice((x - s * 0.5, y - s * 0.9, x + s * 0.5, y - s * 0.02), 180, 360, fill=c)
    for dx, dy, r in ((-0.25, 0.58, 0.07), (0.05, 0.72, 0.08), (0.28, 0.56, 0.06)):
        box = (x + (dx - r) * s, y - (dy + r) * s, x + (dx + r) * s, y - (dy - r) * s)
        b.ellipse(box, fill=dim((246, 240, 228), night))


_DRAWERS = {
    "house": _house,
    "tree": _tree,
    "sailboat": _sailboat,
    "car": _car,
    "balloon": _balloon,
    "tent": _tent,
    "lighthouse": _lighthouse,
    "mushroom": _mushroom,
}
