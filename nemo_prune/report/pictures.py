"""Draw pictures with a checkpoint and compare them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nemo_prune.model.hub import quiet
from nemo_prune.scoring.similarity import ms_ssim

Picture = NDArray[np.uint8]  # [height, width, 3]


@quiet()
def draw(
    pipeline: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = 30,
    guidance: float = 7.0,
    negative: str = "",
    embeddings: Mapping[str, Tensor] | None = None,
    advance: Callable[[int], None] = lambda _count: None,
) -> list[list[Picture]]:
    """One row of pictures per prompt, one picture per seed; a seed's noise is always the same.

    negative: a negative prompt. embeddings: instead of the text of the one prompt, by the pipeline's own
    names of such arguments, `[1, ...]` each.

    All seeds of a prompt at once, or in as many parts as the device's memory asks for; raises
    torch.OutOfMemoryError where it does not hold one.
    """

    def some(prompt: str, part: Sequence[int]) -> list[Picture]:
        more: dict[str, Any] = {"negative_prompt": [negative] * len(part)} if negative else {}
        for name, one in (embeddings or {}).items():
            more[name] = one.expand(len(part), *one.shape[1:])
        drawn = pipeline(
            None if embeddings else [prompt] * len(part),
            generator=[torch.Generator().manual_seed(seed) for seed in part],
            num_inference_steps=steps, guidance_scale=guidance, output_type="np", **more,
        ).images  # fmt: skip
        return [(picture * 255).round().astype(np.uint8) for picture in drawn]

    rows: list[list[Picture]] = []
    at_once = max(1, len(seeds))
    while len(rows) < len(prompts):
        prompt = prompts[len(rows)]
        parts = [seeds[i : i + at_once] for i in range(0, len(seeds), at_once)]
        try:
            rows.append([picture for part in parts for picture in some(prompt, part)])
        except torch.OutOfMemoryError:
            if at_once == 1:
                raise
            at_once = (at_once + 1) // 2
            continue
        advance(1)
    return rows


def similarity(a: Picture, b: Picture) -> float:
    """MS-SSIM of two pictures of one size, at most 1."""
    left, right = (torch.from_numpy(p.copy()).permute(2, 0, 1)[None].float() / 255 for p in (a, b))
    return float(ms_ssim(left, right)[0])
