"""How good ordinary pictures still are: FID, KID, CLIP-FID and CMMD, with local feature extractors.

torchmetrics computes FID and KID; it is an optional extra and imported on first use. Inception comes
from a TorchScript file (the one that clean-fid and StyleGAN use, `inception-2015-12-05.pt`), CLIP from a
folder. Nothing is fetched. The pictures compared with are real ones, or those of the unpruned model from
other noises; the fewer there are, the larger these distances are for no reason but that.
"""

import importlib.util
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from nemo_prune.errors import OptionError, option
from nemo_prune.files.hashing import file_sha256
from nemo_prune.report.likeness import clip_pixels, clip_weights, open_clip_model
from nemo_prune.report.pictures import Picture

EXTRA = "compare"
MEANINGS = {
    "fid": "Fréchet distance of Inception features",
    "kid": "squared maximum mean discrepancy of Inception features, cubic kernel",
    "clip_fid": "Fréchet distance of CLIP image embeddings",
    "cmmd": "maximum mean discrepancy of CLIP image embeddings, Gaussian kernel of width 10, x 1000 "
    "(arXiv 2401.09603)",
}
_SIDE = 299  # pixels, as Inception takes them
_BATCH = 32
_SUBSETS, _SUBSET = 100, 1000  # of KID
_SIGMA, _SCALE = 10.0, 1000.0  # of CMMD


@dataclass(frozen=True, eq=False)
class Extractor:
    """What turns pictures into features: "inception" or "clip", and its file.

    describe: pictures to float64 `[n, d]`.
    """

    name: str
    describe: Callable[[Sequence[Picture]], Tensor]
    used: dict[str, str]

    def features(self, pictures: Iterable[Picture]) -> Tensor:
        """Of many pictures, some at a time: float64 `[n, d]` on the CPU."""
        rows, part = [], []
        for picture in pictures:
            part.append(picture)
            if len(part) == _BATCH:
                rows.append(self.describe(part))
                part = []
        if part:
            rows.append(self.describe(part))
        return torch.cat(rows)

    def distances(self, features: Tensor, reference: Tensor) -> dict[str, float]:
        """How far two sets of pictures lie apart; at least two of each."""
        distance = round(_frechet(features, reference), 4)
        if self.name == "inception":
            return {"fid": distance, "kid": round(_kernel(features, reference), 6)}
        return {"clip_fid": distance, "cmmd": round(cmmd(features, reference), 4)}


def check_package() -> None:
    """Raise OptionError where torchmetrics is missing; imports nothing."""
    if importlib.util.find_spec("torchmetrics") is None:
        raise OptionError(
            f"{option('inception')}, {option('clip')}: FID, KID and CLIP-FID need torchmetrics, which "
            f"is not installed; pip install 'nemo-prune[{EXTRA}]'"
        )


def open_extractors(
    inception: Path | None, clip: Path | None, device: torch.device
) -> tuple[Extractor, ...]:
    """The extractors that were given, tried on one picture each.

    Raises OptionError for a file or folder that cannot be used, or a missing package.
    """
    if inception is None and clip is None:
        return ()
    check_package()
    found = []
    if inception is not None:
        describe = _open_inception(inception, device)
        used = {"name": "inception", "file": inception.name, "sha256": file_sha256(inception)}
        found.append(Extractor("inception", describe, used))
    if clip is not None:
        describe = _open_clip(clip, device)
        used = {"name": "clip", "file": clip.name, "sha256": file_sha256(clip_weights(clip))}
        found.append(Extractor("clip", describe, used))
    for one in found:
        one.describe([np.zeros((64, 64, 3), np.uint8)])
    return tuple(found)


def _open_inception(path: Path, device: torch.device) -> Callable[[Sequence[Picture]], Tensor]:
    load: Any = torch.jit.load
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            model = load(str(path), map_location=device).eval()
    except (OSError, ValueError, RuntimeError):
        what = "is not a TorchScript file" if path.exists() else "no such file"
        raise OptionError(
            f"{option('inception')} {path}: {what}; give inception-2015-12-05.pt"
        ) from None
    # Without this the published file gives classes.
    arguments = {one.name for one in model.forward.schema.arguments}
    more = {"return_features": True} if "return_features" in arguments else {}

    def describe(pictures: Sequence[Picture]) -> Tensor:
        try:
            with torch.inference_mode():
                pixels = torch.stack([_resized(one) for one in pictures]).to(device)
                found: Tensor = model(pixels, **more)
                if found.shape[0] != len(pictures) or found.dim() != 2:
                    raise TypeError
                return found.double().cpu()
        except (RuntimeError, TypeError, AttributeError, IndexError):
            raise OptionError(
                f"{option('inception')} {path}: does not describe pictures; give inception-2015-12-05.pt"
            ) from None

    return describe


def _resized(picture: Picture) -> Tensor:
    """Float32 `[3, 299, 299]` from 0 to 255, each channel resized as clean-fid does it."""
    rows = []
    for channel in range(3):
        plane = Image.fromarray(picture[..., channel].astype(np.float32))
        resized = plane.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
        rows.append(np.asarray(resized).clip(0, 255))
    return torch.from_numpy(np.stack(rows))


def _open_clip(folder: Path, device: torch.device) -> Callable[[Sequence[Picture]], Tensor]:
    model, _ = open_clip_model(folder)
    model = model.to(device)
    side = model.config.vision_config.image_size

    def describe(pictures: Sequence[Picture]) -> Tensor:
        pixels = torch.cat([clip_pixels(picture, side) for picture in pictures]).to(device)
        with torch.inference_mode():
            pooled = model.vision_model(pixel_values=pixels).pooler_output
            found: Tensor = model.visual_projection(pooled)
        return found.double().cpu()

    return describe


class _AsTheyAre(nn.Module):
    """Features for torchmetrics that are features already."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.num_features = count

    def forward(self, features: Tensor) -> Tensor:
        return features


def _frechet(features: Tensor, reference: Tensor) -> float:
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_AsTheyAre(features.shape[1]), normalize=True)
    metric.update(reference, real=True)
    metric.update(features, real=False)
    return float(metric.compute())


def _kernel(features: Tensor, reference: Tensor) -> float:
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(_SUBSET, len(features), len(reference))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)  # how much memory features take
        torch.manual_seed(0)  # of the subsets
        metric = KernelInceptionDistance(
            feature=_AsTheyAre(features.shape[1]), subsets=_SUBSETS, subset_size=size, normalize=True
        )
        metric.update(reference, real=True)
        metric.update(features, real=False)
        return float(metric.compute()[0])


def cmmd(features: Tensor, reference: Tensor) -> float:
    """CMMD of two sets of CLIP embeddings, `[n, d]` and `[m, d]`: the biased estimator, as published."""
    a, b = (nn.functional.normalize(one, dim=1) for one in (features, reference))

    def kernel(x: Tensor, y: Tensor) -> float:
        return float(torch.exp(-torch.cdist(x, y).square() / (2 * _SIGMA**2)).mean())

    return _SCALE * (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b))


def real_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder of real ones. Raises OptionError for fewer than two."""
    kinds = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
    there = folder.rglob("*") if folder.is_dir() else ()
    found = sorted(path for path in there if path.suffix.lower() in kinds)
    if len(found) < 2:
        raise OptionError(f"{option('reference')} {folder}: is no folder of pictures; give at least two")
    return found


def real_picture(path: Path) -> Picture:
    """One of them, uint8 `[height, width, 3]`. Raises OptionError."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise OptionError(
            f"{option('reference')}: {path}: is not a readable picture; remove it"
        ) from None
