"""Somepalli et al. (arXiv 2305.20086): random tokens are put into the caption."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_prune.compare.bench import Bench
from nemo_prune.compare.methods import State
from nemo_prune.compare.rows import generator

_IDS = 49_400  # of CLIP's vocabulary, without its last few


@dataclass(frozen=True)
class RandomTokens:
    """So many random words, each the text of one random token, at random places between words.

    As published: the identifier is uniform in [0, 49400), the place uniform among the blanks, both ends
    included. A token's text may be cut into several tokens again, and what a caption then has beyond
    the text encoder's length is cut off; a note says so. All pictures of a caption have the same words,
    drawn with the run's seed. T5's vocabulary has fewer tokens; all of them are taken there.
    """

    name: str
    title: str
    source: str
    whole_list: bool = False
    unet_only: bool = False
    count: int = 1

    def prepare(self, bench: Bench, prompt: str | None) -> State:
        assert prompt is not None, "its state is a prompt's own"
        began = time.monotonic()
        (length,) = bench.loaded.token_counts([self.caption(bench, prompt)])
        most = bench.loaded.max_tokens
        notes = [f"{length} tokens, cut off at {most}"] if length > most else []
        return {"samples": 0, "seconds": round(time.monotonic() - began, 3), "notes": notes}

    def caption(self, bench: Bench, prompt: str) -> str:
        """The caption with its random words, always the same ones."""
        tokenizer = bench.loaded.text_encoders[0].tokenizer
        lot = generator(bench, self.name, prompt)
        words = prompt.split()
        for _ in range(self.count):
            word = tokenizer.decode([lot.randrange(min(_IDS, len(tokenizer)))]).strip()
            words.insert(lot.randint(0, len(words)), word)
        return " ".join(words)

    def draw(self, bench: Bench, prompt: str, state: State, seeds: Sequence[int]) -> NDArray[np.uint8]:
        del state
        return bench.draw(self.caption(bench, prompt), seeds)
