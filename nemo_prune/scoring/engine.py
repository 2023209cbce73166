"""The engine: holds the denoiser and answers the searches' questions, in full batches.

Many prompts' searches are in flight at once; their open questions are packed into batches. Every
pair (neurons off, seed) is one denoiser sample.
"""

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.model.denoiser import LoadedModel
from nemo_prune.options import Criterion
from nemo_prune.scoring.batches import Batches, Prompt, Sample
from nemo_prune.scoring.similarity import ms_ssim, pairwise
from nemo_prune.search.literal import Answer, Question
from nemo_prune.search.union import Pair, UnionSearch

T = TypeVar("T")
PROMPTS_AT_ONCE = 256
"""Prompts whose embeddings are held at once, however long a list is."""
_IN_FLIGHT = 64
_DIGITS = 5  # of a score: what is left of the noise of another batch size is below that


class Engine(Batches):
    """Answers the searches' questions about a model.

    Args:
        model, timestep, seed, batch_size: see `Batches`.
        criterion: what a pruned difference is compared with: the unpruned one of the same seed
            (the paper), or those of all other seeds.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        timestep: int,
        seed: int = 0,
        criterion: Criterion = "cross-seed",
        batch_size: int | None = None,
    ) -> None:
        super().__init__(model, timestep=timestep, seed=seed, batch_size=batch_size)
        self.criterion = criterion

    # ------------------------------------------------------------------------------------ scores

    def score_prompts(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], advance: Callable[[int], None]
    ) -> list[dict[int, float]]:
        """Each prompt's scores without pruning: seed -> best pairwise score with another seed."""
        scores = []
        for prompt in prompts:
            samples = [Sample(prompt, frozenset(), seed) for seed in seeds]
            prompt.clean = dict(zip(seeds, self.evaluate(samples), strict=True))
            scores.append(self._best_pairs(prompt, seeds))
            advance(1)
        return scores

    def compare(
        self, prompt: Prompt, seeds: Sequence[int], pruned: "Engine", twin: Prompt
    ) -> dict[int, float]:
        """The criterion's scores of another model, already pruned, against this one.

        `twin` is the prompt as the pruned model's engine encodes it; both draw the same noise.
        """
        self.remember(prompt, seeds)
        found = pruned.evaluate([Sample(twin, frozenset(), seed) for seed in seeds])
        return self._scores(prompt, seeds, seeds, found)

    def remember(self, prompt: Prompt, seeds: Sequence[int]) -> None:
        """Have the prompt's own noise differences at hand for `compare`."""
        missing = [seed for seed in seeds if seed not in prompt.clean]
        samples = [Sample(prompt, frozenset(), seed) for seed in missing]
        prompt.clean.update(zip(missing, self.evaluate(samples), strict=True))

    def probe(self, prompt: Prompt, off: frozenset[Neuron], seeds: Sequence[int]) -> dict[int, float]:
        """The criterion's scores on seeds that no search used: two samples a seed."""
        prompt.clean = {seed: prompt.clean[seed] for seed in seeds if seed in prompt.clean}
        self.remember(prompt, seeds)
        found = self.evaluate([Sample(prompt, off, seed) for seed in seeds])
        return self._scores(prompt, seeds, seeds, found)

    def differences(
        self, prompt: Prompt, seeds: Sequence[int], off: frozenset[Neuron] = frozenset()
    ) -> Tensor:
        """The noise differences of a prompt with neurons off, float32 `[seeds, c, h, w]`."""
        return torch.stack(self.evaluate([Sample(prompt, off, seed) for seed in seeds]))

    def _best_pairs(self, prompt: Prompt, seeds: Sequence[int]) -> dict[int, float]:
        best = pairwise(torch.stack([prompt.clean[seed] for seed in seeds])).amax(dim=1)
        return {seed: _rounded(score) for seed, score in zip(seeds, best.tolist(), strict=True)}

    def _scores(
        self, prompt: Prompt, seeds: Sequence[int], against: Sequence[int], pruned: Sequence[Tensor]
    ) -> dict[int, float]:
        """The criterion for the pruned differences of `seeds`, compared with those of `against`."""
        left, right = [], []
        for seed, difference in zip(seeds, pruned, strict=True):
            others = [seed] if self.criterion == "same-seed" else [i for i in against if i != seed]
            left += [difference] * len(others)
            right += [prompt.clean[i] for i in others]
        values = iter(ms_ssim(torch.stack(left), torch.stack(right)).tolist())
        width = 1 if self.criterion == "same-seed" else len(against) - 1
        return {seed: _rounded(max(next(values) for _ in range(width))) for seed in seeds}

    # ---------------------------------------------------------------------------------- searches

    def run(
        self,
        searches: Sequence[tuple[Prompt, Generator[Question, Answer, T]]],
        *,
        in_flight: int | None = None,
        on_samples: Callable[[int], None] = lambda _count: None,
        on_finished: Callable[[int, T], None] = lambda _index, _outcome: None,
        base: frozenset[Neuron] = frozenset(),
    ) -> list[T]:
        """Run searches to their ends, with at most `in_flight` of them open at once.

        By default as many as a batch has samples, and 64 at least: most questions are about one
        seed, so with fewer open a large batch would never be full.

        With neurons in `base` they are off throughout: the searches are about the model as pruned
        so far, and their first question is answered with the criterion's scores against the
        unpruned differences, which each prompt must still have (as after `probe`).

        Open questions are answered in rounds: all samples that the open searches ask for now, in
        batches of `batch_size`. `on_finished` is called as each one ends, in whatever order.
        Differences of the unpruned model that a prompt still has are not evaluated again.
        """
        outcomes: dict[int, T] = {}
        waiting = deque(enumerate(searches))
        open_: dict[int, Question] = {}
        while waiting or open_:
            while waiting and len(open_) < (in_flight or max(_IN_FLIGHT, self.batch_size)):
                index, (_, search) = waiting.popleft()
                open_[index] = next(search)
            asked = {
                index: [
                    Sample(searches[index][0], question.off | base, seed)
                    for seed in question.seeds
                    if question.off or base or seed not in searches[index][0].clean
                ]
                for index, question in open_.items()
            }
            samples = [sample for wanted in asked.values() for sample in wanted]
            differences = iter(self.evaluate(samples, on_samples))
            for index, question in list(open_.items()):
                prompt, search = searches[index]
                found = {sample.seed: next(differences) for sample in asked[index]}
                try:
                    open_[index] = search.send(self._answer(prompt, question, found, base))
                except StopIteration as end:
                    outcomes[index] = end.value
                    del open_[index]
                    prompt.clean = {}
                    on_finished(index, end.value)
        return [outcomes[index] for index in range(len(searches))]

    def run_union(self, search: UnionSearch, prompts: Mapping[int, Prompt]) -> tuple[Neuron, ...]:
        """Run a search over the union to its end, each of its questions in full batches.

        `prompts`: by number; each must still have its unpruned differences (as after `probe`).
        """
        question = next(search)
        while True:
            samples = [Sample(prompts[index], question.off, seed) for index, seed in question.pairs]
            answer: dict[Pair, float] = {}
            for (index, seed), one in zip(question.pairs, self.evaluate(samples), strict=True):
                prompt = prompts[index]
                answer[index, seed] = self._scores(prompt, [seed], list(prompt.clean), [one])[seed]
            try:
                question = search.send(answer)
            except StopIteration as end:
                kept: tuple[Neuron, ...] = end.value
                return kept

    def _answer(
        self, prompt: Prompt, question: Question, found: dict[int, Tensor], base: frozenset[Neuron]
    ) -> dict[int, float]:
        if not question.off and not base:
            known = prompt.clean | found
            prompt.clean = {seed: known[seed] for seed in question.seeds}
            return self._best_pairs(prompt, question.seeds)
        return self._scores(prompt, question.seeds, list(prompt.clean), list(found.values()))


def _rounded(score: float) -> float:
    return round(score, _DIGITS)
