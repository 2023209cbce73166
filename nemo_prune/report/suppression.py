"""How memorized a prompt is in a model and in its pruned twin: scores on seeds no search used."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nemo_prune.checkpoint.manifest import Manifest
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.localize.localize import FRESH_SEEDS
from nemo_prune.options import Options, Progress
from nemo_prune.scoring.criterion import best_pairs
from nemo_prune.scoring.engine import Engine, Prompt, Sample
from nemo_prune.scoring.similarity import ms_ssim

_DIGITS = 5


def score_all(
    original: Engine,
    other: Engine,
    texts: Sequence[str],
    options: Options,
    manifest: Manifest | None,
    progress: Progress,
) -> list[dict[str, Any]]:
    """The `score` of every prompt, with "index", and "pictures" for what is measured later.

    manifest: whose prompts, in the same order, say which neurons are a prompt's own.
    """
    own = [record.neurons for record in manifest.prompts] if manifest else [()] * len(texts)
    items = list(zip(original.prompts(texts), other.prompts(texts), own, strict=True))
    found = original.each(
        Scoring(original, other, options), items, lambda _place, _found: progress.advance()
    )
    return [{"index": index, "pictures": None} | one for index, one in enumerate(found)]


@dataclass(frozen=True)
class Scoring:
    """Work: `score` of prompts, each as both models encode it, with its own neurons."""

    original: Engine
    other: Engine
    options: Options

    def __call__(
        self, items: Sequence[tuple[Prompt, Prompt, Sequence[Neuron]]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for place, (prompt, twin, own) in enumerate(items):
            found = score(self.original, self.other, prompt, twin, self.options, frozenset(own))
            yield place, found


def score(
    original: Engine,
    other: Engine,
    prompt: Prompt,
    twin: Prompt,
    options: Options,
    own: frozenset[Neuron],
) -> dict[str, Any]:
    """The scores of one prompt in both models, on seeds from FRESH_SEEDS on.

    "score_before", "within_after": the best pairwise score within the original, within the pruned
    model; "score_after": the criterion's, pruned against original; "same_seed": mean score of the
    two from the same seed; "score_own": the criterion's with only the neurons `own` off, None
    without any; "differences": the first seed's in both models, `[c, h, w]`.
    """
    seeds = range(FRESH_SEEDS, FRESH_SEEDS + options.seeds)
    before, after = original.baseline(prompt, seeds), other.baseline(twin, seeds)
    unit = {"published": original.published}
    found = {
        "score_before": max(best_pairs(before, **unit).values()),
        "score_after": max(original.scores(after, before).values()),
        "within_after": max(best_pairs(after, **unit).values()),
        "same_seed": _rounded(
            ms_ssim(torch.stack(list(before.values())), torch.stack(list(after.values())), **unit).mean()
        ),
        "score_own": None,
        "differences": (before[seeds[0]], after[seeds[0]]),
    }
    if own:
        samples = [Sample(prompt, own, seed) for seed in seeds]
        apart = dict(zip(seeds, original.evaluate(samples), strict=True))
        found["score_own"] = max(original.scores(apart, before).values())
    return found


def _rounded(score: Tensor) -> float:
    return round(float(score), _DIGITS)
