"""Notes on lists of prompts, and on their scores, that make little sense."""

import statistics
from collections.abc import Iterator, Sequence

from nemo_prune.errors import option
from nemo_prune.model.denoiser import LoadedModel
from nemo_prune.scoring.detect import Detection

FEWEST = 10  # prompts: that all of fewer score below a mean may be chance


def tokens_of(model: LoadedModel, prompts: Sequence[str]) -> tuple[list[int], Iterator[str]]:
    """How many tokens each prompt has, and notes on what the prompts are to the model."""
    ids = model.token_ids(prompts)
    return [len(one) for one in ids], _notes_on_tokens(model, ids)


def _notes_on_tokens(model: LoadedModel, ids: Sequence[Sequence[int]]) -> Iterator[str]:
    if count := model.with_added_words(ids):
        yield (
            f"{count} prompts hold words that were added to this model's tokenizer (textual "
            f"inversions), read as its pipeline reads them"
        )
    yield from _alike(ids, model.max_tokens)


def notes_on_words(model: LoadedModel) -> Iterator[str]:
    """A note if the text encoder knows words for which there is no tokenizer."""
    if count := model.unknown_words:
        yield (
            f"the text encoder has {count} words more than its tokenizer, as with textual inversions, "
            f"and prompts that hold those are read as other words; give the tokenizer too, in a "
            f"diffusers folder with {option('text_encoder')} or {option('config')}"
        )


def _alike(ids: Sequence[Sequence[int]], most: int) -> Iterator[str]:
    # The last place of a truncated prompt is taken by the end token.
    distinct = len({tuple(one[: most - 1]) for one in ids})
    why = f"the text encoder ignores case and whatever follows {most} tokens"
    if distinct == 1 < len(ids):
        yield f"all {len(ids)} prompts are the same to the model, so they have one score: {why}"
    elif distinct < len(ids):
        yield f"{len(ids) - distinct} prompts are the same to the model as one before them: {why}"


def notes_on_scores(
    detections: Sequence[Detection], ordinary: Sequence[Sequence[float]]
) -> Iterator[str]:
    """A note if all prompts score below the mean of ordinary ones.

    Of prompts of any kind some lie above it. If none does, the ordinary scores were likely made with
    another text encoder, or the prompts say nothing to this one.

    ordinary: of each ordinary prompt its score after 2, 3, ... seeds.
    """
    if len(detections) < FEWEST:
        return
    means = [statistics.fmean(scores) for scores in zip(*ordinary, strict=True)]
    if all(one.score < means[one.seeds - 2] for one in detections):
        yield (
            f"all {len(detections)} prompts score below the mean of ordinary prompts: were both scored "
            f"with the same text encoder, and are the prompts captions in its language?"
        )
