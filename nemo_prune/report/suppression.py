"""How memorized a prompt is in a model and in its pruned twin: scores on seeds no search used."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from nemo_prune.checkpoint.manifest import Manifest
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.localize.localize import FRESH_SEEDS
from nemo_prune.options import Options, Progress
from nemo_prune.scoring.batches import Prompt
from nemo_prune.scoring.engine import Engine
from nemo_prune.scoring.similarity import ms_ssim, pairwise

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
    found = []
    for index, (prompt, twin) in enumerate(
        zip(original.prompts(texts), other.prompts(texts), strict=True)
    ):
        own = manifest.prompts[index].neurons if manifest else ()
        found.append(
            {"index": index, "pictures": None}
            | score(original, other, prompt, twin, options, frozenset(own))
        )
        progress.advance()
    return found


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
    before, after = original.differences(prompt, seeds), other.differences(twin, seeds)
    return {
        "score_before": _rounded(pairwise(before).max()),
        "score_after": _criterion(before, after, options.criterion),
        "within_after": _rounded(pairwise(after).max()),
        "same_seed": _rounded(ms_ssim(before, after).mean()),
        "score_own": _criterion(before, original.differences(prompt, seeds, own), options.criterion)
        if own
        else None,
        "differences": (before[0], after[0]),
    }


def _criterion(before: Tensor, after: Tensor, criterion: str) -> float:
    """The largest score of a pruned difference against the original's: same seed, or all others."""
    count = len(before)
    if criterion == "same-seed":
        return _rounded(ms_ssim(after, before).max())
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
    left, right = zip(*pairs, strict=True)
    return _rounded(ms_ssim(after[list(left)], before[list(right)]).max())


def _rounded(score: Tensor) -> float:
    return round(float(score), _DIGITS)
