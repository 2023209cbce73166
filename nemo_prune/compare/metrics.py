"""What a method's pictures of a prompt come to, as plain data; `summary` brings prompts together.

Of each prompt every picture is compared with the training picture ("original"), with the unpruned
model's picture of the same noise ("generated"), with the method's own of the other noises ("diversity":
lower is more diverse), and by CLIP with the caption ("alignment").
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from nemo_prune.errors import OptionError, option
from nemo_prune.report.likeness import (
    CONSENSUS_PART,
    Described,
    Likeness,
    is_near,
    near_levels,
)
from nemo_prune.report.pictures import Picture
from nemo_prune.report.targets import open_target


@dataclass(frozen=True, eq=False)
class Reference:
    """What a prompt's pictures are compared with.

    Attributes:
        unpruned: the unpruned model's, by seed.
        target: the training picture, if it is at hand.
        levels: by what ("consensus", "target"), measure -> likeness above which a picture is near.
    """

    unpruned: Sequence[Described]
    target: Described | None
    levels: Mapping[str, Mapping[str, float]]


def reference_of(
    likeness: Likeness,
    unpruned: Sequence[Picture],
    target: Path | None,
    unrelated: Sequence[Described],
) -> Reference:
    """The reference of a prompt, with the levels by which `verify` calls pictures near.

    unrelated: the unpruned model's pictures of ordinary prompts; without any nothing is called near.

    Raises OptionError for a target that cannot be read.
    """
    old = [likeness.describe(picture) for picture in unpruned]
    between = [likeness.to_target(b, a) for a in old for b in old if a is not b]
    chance = [likeness.to_target(a, other) for a in old for other in unrelated]
    levels = {"consensus": near_levels(between, chance, CONSENSUS_PART)}
    wanted = None
    if target is not None:
        height, width = unpruned[0].shape[:2]
        wanted = likeness.describe(open_target(target, width, height))
        if likeness.sscd is not None:
            wanted = replace(wanted, sscd=likeness.sscd(_whole(target)))  # squashed, not cut
        levels["target"] = near_levels(
            [likeness.to_target(wanted, one) for one in old],
            [likeness.to_target(wanted, other) for other in unrelated],
        )
    return Reference(old, wanted, levels)


def _whole(path: Path) -> Picture:
    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise OptionError(f"{option('targets')}: {path}: is not a readable picture") from None


def measure(
    likeness: Likeness, text: str, pictures: Sequence[Picture], reference: Reference
) -> dict[str, Any]:
    """Every comparison of a method's pictures of one prompt, by seed.

    Returns:
        "generated", and with a target "original": a list of measure -> likeness, seed by seed.
        "diversity": the same of each pair, in the order of `itertools.combinations`. With CLIP
        "alignment": a number for each seed. Where it can be told, "near": the seeds whose pictures are
        near what was memorized, by `verify`'s rule.
    """
    own = [likeness.describe(picture) for picture in pictures]
    found: dict[str, Any] = {
        "generated": [likeness.compare(a, b) for a, b in zip(own, reference.unpruned, strict=True)],
        "diversity": [likeness.compare(a, b) for a, b in combinations(own, 2)],
    }
    if reference.target is not None:
        found["original"] = [likeness.to_target(reference.target, one) for one in own]
    if likeness.alignment is not None:
        found["alignment"] = [likeness.alignment(picture, text) for picture in pictures]
    if any(reference.levels.values()):
        near = []
        for seed, one in enumerate(own):
            others = [other for place, other in enumerate(reference.unpruned) if place != seed]
            against = {"consensus": [likeness.to_target(other, one) for other in others]}
            if reference.target is not None:
                against["target"] = [found["original"][seed]]
            if any(
                is_near(scores, reference.levels[kind])
                for kind, rows in against.items()
                for scores in rows
            ):
                near.append(seed)
        found["near"] = near
    return found


def measure_same(
    likeness: Likeness, text: str, pictures: Sequence[Picture], unpruned: Sequence[Picture]
) -> dict[str, Any]:
    """As `measure`, of an ordinary prompt: "generated", and with CLIP "alignment"."""
    found: dict[str, Any] = {
        "generated": [
            likeness.compare(likeness.describe(a), likeness.describe(b))
            for a, b in zip(pictures, unpruned, strict=True)
        ]
    }
    if likeness.alignment is not None:
        found["alignment"] = [likeness.alignment(picture, text) for picture in pictures]
    return found
