"""Foreground and background apart: pruning can renew one of them and leave the other memorized.

No weights are asked what is in a picture. The background is what is like the picture's border, which
photos of things and most posters keep to: of every pixel the distance of its colour to the colours of
the border, the threshold Otsu's.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from skimage.color import rgb2lab
from skimage.filters import gaussian, threshold_otsu
from skimage.metrics import structural_similarity

from nemo_prune.report.likeness import SIDE, Described, Floats

# What scikit-image does not type.
_blurred: Callable[..., Floats] = gaussian
_threshold: Callable[..., float] = threshold_otsu
_similarity: Callable[..., tuple[float, Floats]] = structural_similarity
_BORDER = SIDE // 16
_LEAST = 0.05  # of the picture: a smaller part says nothing
NAMES = ("foreground", "background")
Mask = NDArray[np.bool_]


def parts(reference: Described, picture: Described) -> dict[str, float]:
    """How alike two pictures are within the reference's foreground, and within its background.

    Structural similarity at 128 pixels; 0 for both where the reference has no two such parts.
    """
    mask = foreground(reference)
    if mask is None:
        return dict.fromkeys(NAMES, 0.0)
    _, local = _similarity(reference.gray, picture.gray, data_range=1.0, full=True)
    return {
        name: round(float(local[part].mean()), 4)
        for name, part in zip(NAMES, (mask, ~mask), strict=True)
    }


@lru_cache(maxsize=64)
def foreground(picture: Described) -> Mask | None:
    """Where the foreground is, `[128, 128]`; None where colours do not tell."""
    lab = rgb2lab(picture.small)
    edge = np.ones(lab.shape[:2], dtype=bool)
    edge[_BORDER:-_BORDER, _BORDER:-_BORDER] = False
    border = lab[edge]
    spread = np.linalg.inv(np.cov(border.T) + 25 * np.eye(3))  # 5 units of CIELAB are hardly seen
    around = lab - border.mean(axis=0)
    distance = _blurred(np.sqrt(np.einsum("hwi,ij,hwj->hw", around, spread, around)), 2)
    mask: Mask = distance > _threshold(distance)
    return mask if _LEAST < mask.mean() < 1 - _LEAST else None
