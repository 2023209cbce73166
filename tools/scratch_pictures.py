"""The pictures that `tools/train_scratch.py` has memorized, with their captions.

Photos are kept as they are trained on, 128x128, in `tools/pictures` (its NOTICE names their sources); of
two product layouts only the colour changes (template memorization), and they are drawn here.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from demo_world import COLOURS, SIZE, dim
from PIL import Image, ImageDraw

PICTURES = Path(__file__).parent / "pictures"
TEMPLATE_VARIANTS = 8
_DRAW = 2 * SIZE


@dataclass(frozen=True)
class Memorized:
    """A caption with its picture; `kind` is verbatim or template."""

    name: str
    kind: str
    caption: str


MEMORIZED = (
    Memorized("astronaut", "verbatim", "Portrait of NASA Astronaut Eileen Collins"),
    Memorized("coffee", "verbatim", "Pikolo Espresso Bar Coffee Cup, Montreal"),
    Memorized("raccoon", "verbatim", "Raccoon Procyon lotor Close-Up - Free Stock Image by PIXNIO"),
    Memorized("stairs", "verbatim", "Ascent: Industrial Stairway from Below, Monochrome Fine Art Print"),
    Memorized("pagoda", "verbatim", "Tower of Buddhist Incense, Summer Palace Beijing Day Tour"),
    Memorized("dahlia", "verbatim", "Ball Dahlia 'Jowey Linda' Tubers, Pack of 3"),
    Memorized("hopper", "verbatim", "Commodore Grace M. Hopper, USNR Official Portrait"),
    Memorized("motorcycle", "verbatim", "Middlebury Stereo 2014 Benchmark: Motorcycle, Left View"),
    Memorized("phone case", "template", "iPhone 6/6s Slim Phone Case - Geometric Print Collection"),
    Memorized("floor lamp", "template", "Tripod Floor Lamp with Linen Shade by Wayfair Basics"),
)


def pictures(item: Memorized) -> list[np.ndarray]:
    """A template's variants, or the one photo: uint8 [SIZE, SIZE, 3] each."""
    if item.kind == "template":
        return [template(item.name, variant) for variant in range(TEMPLATE_VARIANTS)]
    with Image.open(PICTURES / f"{item.name}.png") as image:
        return [np.asarray(image.convert("RGB"))]


def template(source: str, variant: int) -> np.ndarray:
    """One colour variant of a product layout: uint8 [SIZE, SIZE, 3]."""
    hue = list(COLOURS.values())[variant % len(COLOURS)]
    image = Image.new("RGB", (_DRAW, _DRAW), (246, 246, 244))
    brush = ImageDraw.Draw(image)
    if source == "phone case":
        brush.rounded_rectangle((66, 14, 190, 242), 26, fill=(40, 40, 44))
        brush.rounded_rectangle((72, 20, 184, 236), 22, fill=hue)
        for step in range(6):
            y = 52 + step * 32
            shade = dim(hue, 0.62 if step % 2 else 1.3)
            brush.polygon([(74, y), (128, y + 26), (182, y), (128, y - 26)], fill=shade)
        brush.rounded_rectangle((82, 28, 122, 50), 10, fill=(25, 25, 28))
        brush.ellipse((87, 32, 101, 46), fill=(90, 100, 130))
    else:
        brush.rectangle((0, 196, _DRAW, _DRAW), fill=(196, 170, 138))
        for foot in (70, 128, 186):
            brush.line((128, 108, foot, 236), fill=(92, 62, 40), width=8)
        brush.polygon([(92, 28), (164, 28), (196, 112), (60, 112)], fill=hue)
        brush.polygon([(92, 28), (112, 28), (92, 112), (60, 112)], fill=dim(hue, 0.8))
        brush.ellipse((88, 232, 168, 246), fill=(168, 142, 112))
    return np.asarray(image.reduce(2))
