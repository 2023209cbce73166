"""Noise differences and their multi-scale structural similarity: the memorization score.

Source: "Finding NeMo", section 3.1. The similarity equals torchmetrics'
`multiscale_structural_similarity_index_measure(kernel_size=11, betas=...)`, on whatever device the
tensors lie, and takes every pair of a batch at once.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

WINDOW = 11  # pixels, with a gaussian of sigma 1.5
SIGMA = 1.5
SCALES = 3
TOTAL_WEIGHT = 0.99  # the paper's 0.33 for each of three scales
_MARGIN = WINDOW // 2
# Of pictures compared with others: what stays in a processor's cache; on a GPU, about 300 MB in all.
_PIXELS_AT_ONCE, _PIXELS_ON_GPU = 2**17, 2**23


def noise_difference(noise: Tensor, latents: Tensor) -> Tensor:
    """What the model adds to its starting noise, scaled to [0, 1] per sample and channel.

    Args:
        noise: the predicted epsilon, `[n, c, h, w]`.
        latents: the starting noise x_T, same shape.

    Returns:
        float32 `[n, c, h, w]`; a channel without any spread becomes 0, NaN stays NaN.
    """
    difference = noise.float() - latents.float()
    low = difference.amin(dim=(2, 3), keepdim=True)
    spread = difference.amax(dim=(2, 3), keepdim=True) - low
    return (difference - low) / spread.clamp_min(torch.finfo(torch.float32).tiny)


def scales_for(side: int) -> int:
    """How many of the three scales fit latents of this side: the window must fit the smallest.

    Raises ValueError below 11 pixels, where not even one fits.
    """
    if side < WINDOW:
        raise ValueError(f"latents of {side} pixels are smaller than the window of {WINDOW}")
    fitting = 1
    while fitting < SCALES and side // 2**fitting >= WINDOW:
        fitting += 1
    return fitting


def ms_ssim(a: Tensor, b: Tensor, *, published: bool = False) -> Tensor:
    """Multi-scale structural similarity of each `a[i]` with `b[i]`; differentiable.

    As many of the paper's three scales as fit, all of the same weight, 0.99 together.

    Args:
        a, b: float32 `[n, c, h, w]` in [0, 1].
        published: in the unit of the published thresholds, that of torchmetrics 1.3.2, which cuts five
            pixels off the last scale too and takes the range of values over the whole of `a` or `b`
            at each scale (so that the result depends on what is compared together).

    Returns:
        float32 `[n]`, at most 1; negative terms count as 0, as in torchmetrics.

    Raises:
        ValueError: pictures smaller than 11 pixels, or of different shapes.
    """
    if a.shape != b.shape:
        raise ValueError(f"pictures of different shapes: {list(a.shape)} and {list(b.shape)}")
    return _in_ranges(a, b, _ranges(a, b) if published else None)


def _ranges(a: Tensor, b: Tensor) -> list[Tensor]:
    """The larger range of values of `a` or `b` at each scale."""
    found = []
    for scale in range(scales_for(min(a.shape[-2:]))):
        if scale:
            a, b = functional.avg_pool2d(a, 2), functional.avg_pool2d(b, 2)
        found.append(torch.maximum(a.max() - a.min(), b.max() - b.min()))
    return found


def _group_ranges(
    a: Tensor, b: Tensor, left: Tensor, right: Tensor, groups: Tensor | None
) -> list[Tensor]:
    """The larger range of values of each pair's group at each scale, `[pairs, 1, 1, 1]`."""
    group = torch.zeros_like(left) if groups is None else groups.to(left.device)
    count = 1 if groups is None else int(groups.max()) + 1
    found = []
    for scale in range(scales_for(min(a.shape[-2:]))):
        if scale:
            a, b = functional.avg_pool2d(a, 2), functional.avg_pool2d(b, 2)
        spans = []
        for pictures, places in ((a, left), (b, right)):
            high = torch.full((count,), -torch.inf, dtype=torch.float32, device=a.device)
            low = -high
            high.scatter_reduce_(0, group, pictures.amax(dim=(1, 2, 3))[places], "amax")
            low.scatter_reduce_(0, group, pictures.amin(dim=(1, 2, 3))[places], "amin")
            spans.append(high - low)
        found.append(torch.maximum(*spans)[group][:, None, None, None])
    return found


def _in_ranges(a: Tensor, b: Tensor, ranges: list[Tensor] | None) -> Tensor:
    """`ms_ssim`, in the published unit where the range of values at each scale is given."""
    published, scales = ranges is not None, scales_for(min(a.shape[-2:]))
    score = torch.ones(len(a), dtype=torch.float32, device=a.device)
    inside = slice(_MARGIN, -_MARGIN)
    for scale in range(scales):
        if scale:
            a, b = functional.avg_pool2d(a, 2), functional.avg_pool2d(b, 2)
        similarity, contrast = _ssim(a, b, 1.0 if ranges is None else ranges[scale])
        # As torchmetrics does: contrast counts where the window fits, similarity to the border.
        if scale < scales - 1:
            mean = contrast[..., inside, inside].mean(dim=(1, 2, 3))
        elif published:
            mean = similarity[..., inside, inside].mean(dim=(1, 2, 3))
        else:
            mean = similarity.mean(dim=(1, 2, 3))
        score = score * mean.relu() ** (TOTAL_WEIGHT / scales)
    return score


def ms_ssim_pairs(
    a: Tensor,
    b: Tensor,
    left: Tensor,
    right: Tensor,
    *,
    published: bool = False,
    groups: Tensor | None = None,
) -> Tensor:
    """MS-SSIM of the pairs `a[left[i]]`, `b[right[i]]`, some at a time, so that memory is bounded.

    Args:
        a, b: float32 `[n, c, h, w]` and `[m, c, h, w]` in [0, 1].
        left, right: int64 `[pairs]` on the CPU.
        published: as `ms_ssim` takes it, of the pairs of a group together.
        groups: int64 `[pairs]` on the CPU, from 0 on; None: all are one group.

    Returns:
        float32 `[pairs]` on the CPU.
    """
    if not len(left):
        return torch.zeros(0, dtype=torch.float32)
    most = _PIXELS_AT_ONCE if a.device.type == "cpu" else _PIXELS_ON_GPU
    at_once = max(1, most // max(1, a[0].numel()))
    left, right = left.to(a.device), right.to(b.device)
    ranges = _group_ranges(a, b, left, right, groups) if published else None
    parts = []
    for i in range(0, len(left), at_once):
        part = slice(i, i + at_once)
        parts.append(_in_ranges(a[left[part]], b[right[part]], ranges and [r[part] for r in ranges]))
    return torch.cat(parts).cpu()  # once: whoever waits for a GPU leaves it idle


def pairwise(differences: Tensor) -> Tensor:
    """MS-SSIM of every pair of `differences` [n, c, h, w]: symmetric float32 `[n, n]`, NaN inside.

    The diagonal is -1: no seed is its own partner.
    """
    count = len(differences)
    first, second = torch.triu_indices(count, count, offset=1)
    scores = torch.full((count, count), -1.0, dtype=torch.float32)
    found = ms_ssim_pairs(differences, differences, first, second)
    scores[first, second] = found
    scores[second, first] = found
    return scores.to(differences.device)


def _ssim(a: Tensor, b: Tensor, range_: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """(similarity, contrast sensitivity) at every pixel, each `[n, c, h, w]`, for values in a range."""
    blur_down = _blur(a.shape[-2], a.device)
    blur_right = _blur(a.shape[-1], a.device).T
    c1, c2 = (0.01 * range_) ** 2, (0.03 * range_) ** 2

    def blurred(x: Tensor) -> Tensor:
        return blur_down @ x @ blur_right

    mean_a, mean_b = blurred(a), blurred(b)
    variance_a = (blurred(a * a) - mean_a * mean_a).clamp_min(0)
    variance_b = (blurred(b * b) - mean_b * mean_b).clamp_min(0)
    covariance = blurred(a * b) - mean_a * mean_b
    contrast = (2 * covariance + c2) / (variance_a + variance_b + c2)
    luminance = (2 * mean_a * mean_b + c1) / (mean_a * mean_a + mean_b * mean_b + c1)
    return luminance * contrast, contrast


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # kept for later calls, which may want gradients
def _blur(side: int, device: torch.device) -> Tensor:
    """The gaussian window as a matrix `[side, side]` on a device, reflecting at the borders."""
    offsets = torch.arange(WINDOW, dtype=torch.float64) - _MARGIN
    window = torch.exp(-((offsets / SIGMA) ** 2) / 2)
    window /= window.sum()
    matrix = torch.zeros(side, side, dtype=torch.float64)
    for row in range(side):
        for weight, place in zip(window, range(row - _MARGIN, row + _MARGIN + 1), strict=True):
            inside = abs(place) if place < side else 2 * (side - 1) - place
            matrix[row, inside] += weight
    return matrix.float().to(device)
