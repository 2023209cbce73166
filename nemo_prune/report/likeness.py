"""How alike two pictures are, and which pictures are near a memorized one.

Measures need no weights, but for two that take local ones. A picture is described once and then
compared with many. No measure ever loads anything from a network: SSCD and CLIP come from files that
the user names.

How alike unrelated pictures are depends on them: to a tile of clear sky any sky is alike. So whether
a picture is near is judged by no absolute threshold; ordinary prompts' pictures of the same run say
what each measure is worth, and the original model's own pictures how near a replica comes.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from skimage.color import rgb2gray, rgb2lab
from skimage.feature import hog
from torch import Tensor

from nemo_prune.errors import OptionError, option
from nemo_prune.files.hashing import file_sha256
from nemo_prune.report.pictures import Picture
from nemo_prune.scoring.similarity import ms_ssim

Floats = NDArray[np.float64]
SIDE = 128  # pixels at which colour, edges and regions are compared, whatever the picture's size
_WHOLE = 256  # pixels at most at which whole pictures are: more cost much and see noise alone
_LAB_BINS, _LAB_RANGE = (8, 10, 10), ((0, 100), (-80, 80), (-80, 80))
_FLAT = 0.04  # a tile that varies less than this (of white) matches any sky
_SSCD_SIDE = 288  # pixels, as SSCD was trained
_SQUASHED_SIDE = 320  # as the paper's tables were made
_Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]
_IMAGENET: _Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP: _Statistics = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

MEANINGS = {
    "ms_ssim": "multi-scale structural similarity of the whole picture",
    "edges": "correlation of histograms of oriented gradients: the layout, whatever the colours",
    "colour": "overlap of the colour histograms in CIELAB, wherever the colours are",
    "region": "best normalized cross-correlation of any part of the target, a quarter of its area, "
    "anywhere in the picture",
    "sscd": "cosine of SSCD copy-detection descriptors",
    "clip": "cosine of a picture's and its prompt's CLIP embeddings",
}


@dataclass(frozen=True, eq=False)
class Described:
    """What the measures look at of one picture: `[3, h, w]` in [0, 1], 128 pixels wide, descriptors."""

    tensor: Tensor
    small: Picture
    gray: Floats
    colour: Floats
    edges: Floats
    sscd: Floats | None

    @cached_property
    def windows(self) -> tuple[NDArray[np.complex128], Floats]:
        """The spectrum of the picture, and each window's norm around its mean, for `_region`."""
        sums = [_sliding_sums(values, SIDE // 2) for values in (self.gray, self.gray * self.gray)]
        variation = sums[1] - sums[0] ** 2 / (SIDE // 2) ** 2
        return np.fft.rfft2(self.gray), np.sqrt(variation.clip(0))

    @cached_property
    def tiles(self) -> NDArray[np.complex128]:
        """Spectra of the parts of the picture that vary, each less its mean and of norm 1."""
        half, quarter = SIDE // 2, SIDE // 4
        places = [(y, x) for y in (0, quarter, half) for x in (0, quarter, half)]
        parts = [self.gray[y : y + half, x : x + half] for y, x in places]
        varied = [part for part in parts if part.std() > _FLAT] or [max(parts, key=np.std)]
        around = np.stack([part - part.mean() for part in varied])
        norms = np.linalg.norm(around, axis=(1, 2), keepdims=True)
        return np.conj(np.fft.rfft2(around / norms.clip(1e-12), s=self.gray.shape))


@dataclass(frozen=True, eq=False)
class Likeness:
    """The measures of a run: those without weights, and SSCD and CLIP where files were given.

    sscd, clip: a TorchScript file and a folder; see `open_likeness`.
    """

    sscd: Callable[[Picture], Floats] | None = None
    alignment: Callable[[Picture, str], float] | None = None
    used: list[dict[str, str]] = field(default_factory=list)

    def describe(self, picture: Picture) -> Described:
        """Everything that `compare` needs of a picture, uint8 `[height, width, 3]`."""
        small = np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.LANCZOS))
        gray: Floats = rgb2gray(small)
        lab = rgb2lab(small).reshape(-1, 3)
        low, high = zip(*_LAB_RANGE, strict=True)
        counts, _ = np.histogramdd(lab.clip(low, high), bins=_LAB_BINS, range=_LAB_RANGE)
        whole = Image.fromarray(picture)
        whole.thumbnail((_WHOLE, _WHOLE), Image.Resampling.LANCZOS)
        return Described(
            tensor=torch.from_numpy(np.array(whole)).permute(2, 0, 1).float() / 255,
            small=small,
            gray=gray,
            colour=counts / counts.sum(),
            edges=hog(gray, pixels_per_cell=(16, 16), cells_per_block=(2, 2)),
            sscd=self.sscd(picture) if self.sscd else None,
        )

    def try_out(self) -> None:
        """Describe and align a blank picture: raises OptionError for files that cannot do it."""
        blank = np.zeros((64, 64, 3), np.uint8)
        self.describe(blank)
        if self.alignment is not None:
            self.alignment(blank, "a picture")

    def compare(self, a: Described, b: Described) -> dict[str, float]:
        """Measure -> similarity of two pictures of one size; 1 for a picture and itself."""
        found = {
            "ms_ssim": float(ms_ssim(a.tensor[None], b.tensor[None])[0]),
            "edges": _correlation(a.edges, b.edges),
            "colour": float(np.minimum(a.colour, b.colour).sum()),
        }
        if a.sscd is not None and b.sscd is not None:
            found["sscd"] = float(a.sscd @ b.sscd)
        return {name: round(value, 4) for name, value in found.items()}

    def to_target(self, target: Described, picture: Described) -> dict[str, float]:
        """`compare`, and how well the best part of the target is found anywhere in the picture.

        Pruning can break up a memorized picture and leave its foreground: a whole-picture measure
        does not see that.
        """
        return self.compare(target, picture) | {"region": round(_region(target, picture), 4)}


def open_likeness(
    sscd: Path | None = None, clip: Path | None = None, *, as_published: bool = False
) -> Likeness:
    """The measures without weights, and SSCD (a TorchScript file) and CLIP (a folder) if given.

    `used` says which measures these are and from which file (SHA-256).

    as_published: SSCD sees pictures squashed to 320 x 320, as in the paper's tables.

    Raises OptionError for a file or folder that cannot be used.
    """
    used = [
        {"name": name, "meaning": MEANINGS[name]} for name in ("ms_ssim", "edges", "colour", "region")
    ]
    describe = align = None
    if sscd is not None:
        describe = _open_sscd(sscd, as_published)
        used.append(_from_file("sscd", sscd, sscd))
    if clip is not None:
        align = _open_clip(clip)
        used.append(_from_file("clip", clip, clip_weights(clip)))
    return Likeness(describe, align, used)


def mean(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each measure over comparisons; empty for none."""
    if not scores:
        return {}
    return {name: round(sum(s[name] for s in scores) / len(scores), 4) for name in scores[0]}


# ------------------------------------------------------------------------------- near or not

Scores = Mapping[str, float]  # measure -> similarity of two pictures
TARGET_PART, CONSENSUS_PART = 1 / 2, 1 / 3
"""Where between chance and a replica a picture becomes near: by the training picture, by the original's
pictures of other seeds. Those are more alike among themselves (MS-SSIM .99) than any of them is to
the training picture (.65 to .80), so the same picture comes less far on their scale: at a third the two
judge alike, at half replicas that anyone recognizes were missed."""
SHARED = {"colour"}  # a palette is no copy: unrelated pictures of one kind have it in common


@dataclass(frozen=True)
class Nearness:
    """Which pictures are near what was memorized.

    Attributes:
        levels: measure -> the similarity above which a picture is near; see `near_levels`.
        before, after: seed by seed, in the original and in the pruned model.
    """

    levels: dict[str, float]
    before: tuple[bool, ...]
    after: tuple[bool, ...]


def judge_near(
    before: Sequence[Sequence[Scores]],
    after: Sequence[Sequence[Scores]],
    unrelated: Sequence[Scores],
    part: float = TARGET_PART,
) -> Nearness | None:
    """Judge each picture of a prompt by the references of what was memorized.

    The reference is the training picture, or, where that is not at hand, the original model's
    pictures of the *other* seeds: what a memorized caption draws from every seed is its own target.
    A picture is near if it is near any reference, so a replica from one seed of many counts.

    Args:
        before: [picture][reference], the original model's pictures.
        after: [picture][reference], the pruned model's from the same seeds.
        unrelated: ordinary prompts' pictures, of both models, against the same references.
        part: see `near_levels`.

    Returns:
        None if it cannot be judged: no measure tells the original's pictures from chance.
    """
    levels = near_levels([scores for row in before for scores in row], unrelated, part)
    if not levels:
        return None
    near = [tuple(any(is_near(s, levels) for s in row) for row in rows) for rows in (before, after)]
    return Nearness(levels, *near)


def near_levels(
    original: Sequence[Scores], unrelated: Sequence[Scores], part: float = TARGET_PART
) -> dict[str, float]:
    """Measure -> the similarity above which a picture is near; only measures that tell.

    The level lies between the nearest unrelated picture (0) and the original's nearest one (1), at
    `part`. The nearest of the original's, since even a model that replicates from one seed of ten
    replicates; the nearest of the unrelated ones, since their mean says nothing about how far chance
    goes. A measure tells if the original's nearest exceeds the nearest unrelated one by more than that
    exceeds their mean: else chance could go as far.
    """
    found = {}
    for name in original[0] if original and unrelated else ():
        if name in SHARED:
            continue
        others = [scores[name] for scores in unrelated]
        replica, chance = max(scores[name] for scores in original), max(others)
        spread = chance - sum(others) / len(others)
        if replica - chance > spread:
            found[name] = round(chance + part * (replica - chance), 4)
    return found


def is_near(picture: Scores, levels: Mapping[str, float]) -> bool:
    """Whether any measure exceeds its level: each of them sees replication of another kind."""
    return any(picture[name] > level for name, level in levels.items())


def nearest(scores: Sequence[Scores]) -> dict[str, float]:
    """The largest of each measure over comparisons; empty for none."""
    return {name: max(one[name] for one in scores) for name in (scores[0] if scores else ())}


# ---------------------------------------------------------------------------------- measures


def _correlation(a: Floats, b: Floats) -> float:
    a, b = a - a.mean(), b - b.mean()
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length > 0 else float(np.array_equal(a, b))


def _region(target: Described, picture: Described) -> float:
    """The largest normalized cross-correlation of a tile of the target and a window of the picture."""
    spectrum, norms = picture.windows
    # A circular correlation at the picture's size: no window of the first rows and columns wraps.
    found = np.fft.irfft2(target.tiles * spectrum, s=picture.gray.shape)
    found = found[:, : norms.shape[0], : norms.shape[1]]
    scores = np.divide(found, norms, out=np.zeros_like(found), where=norms > 1e-6)
    return min(1.0, float(scores.max()))


def _sliding_sums(values: Floats, side: int) -> Floats:
    """The sum over every square window of `side` pixels."""
    integral = np.pad(values.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    found: Floats = (
        integral[side:, side:] - integral[:-side, side:] - integral[side:, :-side]
        + integral[:-side, :-side]
    )  # fmt: skip
    return found


# ------------------------------------------------------------------------------ local weights


def _open_sscd(path: Path, squashed: bool) -> Callable[[Picture], Floats]:
    load: Any = torch.jit.load
    try:
        with warnings.catch_warnings():
            # SSCD is published in this form, whatever torch thinks of it by now.
            warnings.simplefilter("ignore", DeprecationWarning)
            model = load(str(path), map_location="cpu").eval()
    except (OSError, ValueError, RuntimeError):
        what = "is not a TorchScript file" if path.exists() else "no such file"
        raise OptionError(f"{option('sscd')} {path}: {what}; give SSCD's .torchscript.pt") from None

    def describe(picture: Picture) -> Floats:
        side = _SQUASHED_SIDE if squashed else _SSCD_SIDE
        try:
            with torch.inference_mode():
                output = model(_normalized(picture, side, _IMAGENET, squashed))
            found: Floats = output[0].double().numpy()
        except (RuntimeError, TypeError, IndexError, AttributeError):
            raise OptionError(
                f"{option('sscd')} {path}: does not describe a picture; give SSCD's model"
            ) from None
        return found / max(float(np.linalg.norm(found)), 1e-12)

    return describe


def open_clip_model(folder: Path) -> tuple[Any, Any]:
    """A CLIP model of transformers and its tokenizer, from a folder; raises OptionError."""
    from nemo_prune.model.hub import CLIPModel, CLIPTokenizer, quiet

    if not folder.is_dir():
        raise OptionError(
            f"{option('clip')} {folder}: is not a folder; give one with a CLIP model of transformers"
        )
    try:
        with quiet():
            model = CLIPModel.from_pretrained(folder, local_files_only=True).float().eval()
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError):
        raise OptionError(f"{option('clip')} {folder}: holds no CLIP model with its tokenizer") from None
    return model, tokenizer


def clip_pixels(picture: Picture, side: int) -> Tensor:
    """A picture as CLIP takes it, `[1, 3, side, side]`."""
    return _normalized(picture, side, _CLIP)


def _open_clip(folder: Path) -> Callable[[Picture, str], float]:
    model, tokenizer = open_clip_model(folder)
    side = model.config.vision_config.image_size
    length = model.config.text_config.max_position_embeddings

    def align(picture: Picture, prompt: str) -> float:
        pixels = clip_pixels(picture, side)
        tokens = tokenizer(prompt, return_tensors="pt", truncation=True, max_length=length)
        with torch.inference_mode():
            found = model(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"],
                pixel_values=pixels,
            )  # fmt: skip
        return round(float((found.image_embeds * found.text_embeds).sum()), 4)

    return align


def _normalized(picture: Picture, side: int, statistics: _Statistics, squashed: bool = False) -> Tensor:
    """The picture as a network takes it, `[1, 3, side, side]`; generated ones are near square."""
    image = Image.fromarray(picture)
    if squashed:
        image = image.resize((side, side), Image.Resampling.BILINEAR)
    else:
        image = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255
    mean_, std = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in statistics)
    return ((pixels - mean_) / std)[None]


def _from_file(name: str, path: Path, weights: Path) -> dict[str, str]:
    return {"name": name, "meaning": MEANINGS[name], "file": path.name, "sha256": file_sha256(weights)}


def clip_weights(folder: Path) -> Path:
    """The file with a CLIP model's weights; raises OptionError where there is not one."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise OptionError(f"{option('clip')} {folder}: holds no model.safetensors")
