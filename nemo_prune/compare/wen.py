"""Wen et al. (arXiv 2407.21720): the text embedding is adjusted until the noise norm falls."""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nemo_prune.compare.bench import Bench
from nemo_prune.compare.methods import State
from nemo_prune.files.prompts import apart_from
from nemo_prune.model.schedule import ddim_timestep

STEPS, RATE = 10, 0.05
PUBLISHED_TARGET, PUBLISHED_PICTURES = 3.0, 4
_ORDINARY = 20  # captions that say what norm is ordinary, one picture each
_AT_ONCE = 4  # pictures in a backward pass


@dataclass(frozen=True)
class Wen:
    """The conditional embedding trained, before pictures are drawn, on their own starting noises.

    As published: the loss is ||eps(prompt) - eps("")||, one norm over all pictures, at the first step
    of the schedule; AdamW, rate .05, at most 10 updates, none once the loss is at most the target,
    which is tested before each; the embedding of the start token stays; one embedding for all pictures.

    Differs: the target. The authors give none by default and 3 for four pictures of Stable Diffusion 1
    in their README; the norm grows with the root of the number of pictures, so 3 / 2 per picture is
    taken here, times that root, where the model and the size of its latents are theirs. Elsewhere it is
    the median of ordinary captions' norms. AdamW's decay does not touch the start token here.
    """

    name: str
    title: str
    source: str
    whole_list: bool = False
    unet_only: bool = True

    def prepare(self, bench: Bench, prompt: str | None) -> State:
        """Nothing but the target, the same for every prompt: the embedding is of the pictures drawn."""
        del prompt
        began, before = time.monotonic(), bench.samples
        if "norm target" not in bench.kept:
            bench.kept["norm target"] = _target(bench)
        each, whence = bench.kept["norm target"]
        return {
            "samples": bench.samples - before,
            "seconds": round(time.monotonic() - began, 3),
            "notes": [f"target {each:.4g} a picture, {whence}"],
            "target": each,
        }

    def draw(self, bench: Bench, prompt: str, state: State, seeds: Sequence[int]) -> NDArray[np.uint8]:
        target = state["target"] * math.sqrt(len(seeds))
        embedding, _ = adjusted(bench, prompt, bench.noise(seeds), target)
        return bench.draw(prompt, seeds, embedding=embedding)


def adjusted(
    bench: Bench, prompt: str, latents: Tensor, target: float | None, steps: int = STEPS,
    rate: float = RATE,
) -> tuple[Tensor, list[float]]:  # fmt: skip
    """The adjusted embedding `[tokens, d]`, float32, and the loss before each update and at the end.

    latents: of the pictures, `[n, c, h, w]`. target: of the norm over all of them; None: every update
    is made.
    """
    texts = bench.texts(prompt)
    embedding = texts["prompt_embeds"][0].float()
    start, rest = embedding[:1], embedding[1:].clone().requires_grad_()
    without = predictions(bench, texts, latents)
    optimizer = torch.optim.AdamW([rest], lr=rate)
    losses: list[float] = []
    for step in range(steps + 1):
        wanted = step < steps
        loss, gradient = norm(bench, texts, latents, torch.cat([start, rest]), without, wanted)
        losses.append(loss)
        if not wanted or (target is not None and loss <= target):
            break
        assert gradient is not None
        rest.grad = gradient[1:]
        optimizer.step()
    return torch.cat([start, rest]).detach(), losses


def norm(
    bench: Bench,
    texts: dict[str, Tensor],
    latents: Tensor,
    embedding: Tensor,
    without: Tensor,
    gradient: bool = True,
) -> tuple[float, Tensor | None]:
    """||eps(embedding) - without|| over all latents at once, and its gradient by the embedding.

    The squares are summed part by part, so that no graph of all pictures is held.
    """
    at_once = _AT_ONCE if bench.loaded.device.type == "cuda" else 1  # elsewhere more gains nothing
    while True:
        try:
            return _norm(bench, texts, latents, embedding, without, gradient, at_once)
        except torch.OutOfMemoryError:
            if at_once == 1:
                raise
        at_once //= 2


def _norm(
    bench: Bench,
    texts: dict[str, Tensor],
    latents: Tensor,
    embedding: Tensor,
    without: Tensor,
    gradient: bool,
    at_once: int,
) -> tuple[float, Tensor | None]:
    leaf = embedding.detach().clone().requires_grad_(gradient)
    total, timestep = 0.0, first_timestep(bench)
    model = bench.loaded
    for part, other in zip(torch.split(latents, at_once), torch.split(without, at_once), strict=True):
        with torch.set_grad_enabled(gradient):
            found = model.predict_noise(
                part, timestep, *_batched(model.dtype, len(part), leaf[None], texts, "")
            )
            square = (found.float() - other).square().sum()
            if gradient:
                square.backward()  # type: ignore[no-untyped-call]
                bench.engine.cost.backward += len(part)
        bench.engine.cost.forward += len(part)
        total += square.item()
    length = math.sqrt(total)
    if leaf.grad is None:
        return length, None
    return length, leaf.grad / max(2 * length, 1e-12)


def predictions(bench: Bench, texts: dict[str, Tensor], latents: Tensor) -> Tensor:
    """The noise without the prompt at the first step, float32 `[n, c, h, w]`."""
    model, found = bench.loaded, []
    with torch.no_grad():
        for part in torch.split(latents, _AT_ONCE):
            text = texts["negative_prompt_embeds"]
            given = _batched(model.dtype, len(part), text, texts, "negative_")
            found.append(model.predict_noise(part, first_timestep(bench), *given).float())
            bench.engine.cost.forward += len(part)
    return torch.cat(found)


def _batched(
    dtype: torch.dtype, count: int, text: Tensor, texts: dict[str, Tensor], kind: str
) -> tuple[Tensor, Tensor | None]:
    """A text, and SDXL's pooled one of a kind ("" or "negative_"), for so many latents."""
    pooled = texts.get(f"{kind}pooled_prompt_embeds")
    return text.to(dtype).expand(count, -1, -1), None if pooled is None else pooled.expand(count, -1)


def first_timestep(bench: Bench) -> int:
    """The training timestep of a picture's first step."""
    return ddim_timestep(bench.loaded.scheduler_config, bench.steps, 0)


def _target(bench: Bench) -> tuple[float, str]:
    """The norm of one picture to get below, and where it comes from."""
    if bench.engine.published:
        return PUBLISHED_TARGET / math.sqrt(PUBLISHED_PICTURES), "the authors' README for four pictures"
    captions = apart_from(bench.calibration.captions, bench.prompts)[:_ORDINARY]
    norms = []
    for number, caption in enumerate(captions):
        texts, latents = bench.texts(caption), bench.engine.noise(number)[None]
        without = predictions(bench, texts, latents)
        embedding = texts["prompt_embeds"][0].float()
        norms.append(norm(bench, texts, latents, embedding, without, gradient=False)[0])
    return statistics.median(norms), f"the median of {len(norms)} ordinary captions"
