"""Searches, run on an engine: their open questions are answered in rounds, in full batches.

Many prompts' searches are in flight at once. In each round all samples that they ask for now are packed
together; what a search asks, and when it ends, is its own affair (`search/`).
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.scoring.criterion import best_pairs_of_each, scores_of_each
from nemo_prune.scoring.engine import Baseline, Engine, Job, Prompt, Sample
from nemo_prune.scoring.sharing import Kept
from nemo_prune.search.protocol import Attribute, Question, Reply
from nemo_prune.search.union import UnionSearch

T = TypeVar("T")
_IN_FLIGHT = 64


def run_searches(
    engine: Engine,
    jobs: Sequence[Job],
    *,
    in_flight: int | None = None,
    on_samples: Callable[[int], None] = lambda _count: None,
    on_noise: Callable[[Sequence[Sample], Tensor], None] | None = None,
    on_finished: Callable[[int, T], None] = lambda _index, _outcome: None,
) -> list[T]:
    """Run searches to their ends, with at most `in_flight` of them open at once.

    By default as many as a batch has samples, and 64 at least: most questions are about one
    seed, so with fewer open a large batch would never be full.

    Open questions are answered in rounds: all samples that the open searches ask for now, in
    batches of `batch_size`. `on_finished` is called as each one ends, in whatever order; after
    that its job's baseline is empty.

    on_noise: as `Engine.evaluate` takes it, for the samples of questions with nothing off.
    """
    outcomes: dict[int, T] = {}
    for index, outcome in finished_searches(
        engine, jobs, in_flight=in_flight, on_samples=on_samples, on_noise=on_noise
    ):
        outcomes[index] = outcome
        on_finished(index, outcome)
    return [outcomes[index] for index in range(len(jobs))]


def finished_searches(
    engine: Engine,
    jobs: Sequence[Job],
    *,
    in_flight: int | None = None,
    on_samples: Callable[[int], None] = lambda _count: None,
    on_noise: Callable[[Sequence[Sample], Tensor], None] | None = None,
) -> Iterator[tuple[int, Any]]:
    """`run_searches`, that gives each search's place and outcome as it ends."""
    waiting = deque(enumerate(jobs))
    open_: dict[int, Question | Attribute] = {}
    while waiting or open_:
        while waiting and len(open_) < (in_flight or max(_IN_FLIGHT, engine.batch_size)):
            index, job = waiting.popleft()
            try:
                open_[index] = next(job.search)
            except StopIteration as end:  # no neuron is left to ask about
                yield index, end.value
        asked = {index: (jobs[index], one) for index, one in open_.items()}
        replies = _answer(engine, asked, on_samples, on_noise)
        for index, reply in replies.items():
            try:
                open_[index] = jobs[index].search.send(reply)
            except StopIteration as end:
                del open_[index]
                jobs[index].baseline = {}
                yield index, end.value


def _answer(
    engine: Engine,
    asked: Mapping[int, tuple[Job, Question | Attribute]],
    on_samples: Callable[[int], None],
    on_noise: Callable[[Sequence[Sample], Tensor], None] | None,
) -> dict[int, Reply]:
    """One round: a reply to each open question; those of a kind share batches."""
    replies: dict[int, Reply] = {}
    single: dict[int, list[Sample]] = {}
    guided: dict[int, list[Sample]] = {}
    gradients: dict[Any, list[int]] = {}
    for index, (job, one) in asked.items():
        if isinstance(one, Attribute):
            apart = one.trajectory or not engine.together
            kind = index if apart else (tuple(job.layers), one.points)
            gradients.setdefault(kind, []).append(index)
            continue
        off = one.off | job.base
        known = {} if off or one.trajectory else job.baseline
        samples = [Sample(job.prompt, off, seed) for seed in one.seeds if seed not in known]
        if one.trajectory:
            guided[index] = samples
        else:
            single[index] = samples
            job.samples += len(samples)
    for indices in gradients.values():
        before = engine.cost.samples
        wanted = [(asked[i][0], asked[i][1]) for i in indices]
        replies |= zip(indices, engine.attributions(wanted), strict=True)  # type: ignore[arg-type]
        spent, left = engine.cost.samples - before, sum(len(asked[i][1].seeds) for i in indices)
        on_samples(spent)
        for index in indices:  # each its share, all of them what was spent
            seeds = len(asked[index][1].seeds)
            share = spent * seeds // left
            asked[index][0].samples += share
            spent, left = spent - share, left - seeds
    found = iter(
        engine.evaluate([s for samples in single.values() for s in samples], on_samples, on_noise)
    )
    pruned: dict[int, tuple[Baseline, Baseline]] = {}
    unpruned: dict[int, Baseline] = {}
    for index, samples in single.items():
        job, one = asked[index]
        assert isinstance(one, Question)
        taken = {sample.seed: next(found) for sample in samples}
        if one.off or job.base:
            pruned[index] = taken, job.baseline
        else:
            known = job.baseline | taken
            job.baseline = unpruned[index] = {seed: known[seed] for seed in one.seeds}
    # All at once: on a GPU the many small steps of a score cost more than its arithmetic.
    if pruned:
        scores = scores_of_each(list(pruned.values()), engine.criterion, published=engine.published)
        replies |= zip(pruned, scores, strict=True)
    if unpruned:
        pairs = best_pairs_of_each(list(unpruned.values()), published=engine.published)
        replies |= zip(unpruned, pairs, strict=True)
    for index, samples in guided.items():
        reference = asked[index][0].reference
        assert reference is not None
        ends = engine.trajectories(samples, reference.schedule, on_samples)
        asked[index][0].samples += len(samples) * reference.schedule.passes
        replies[index] = reference.remaining({s.seed: e for s, e in zip(samples, ends, strict=True)})
    return replies


def run_union(
    engine: Engine,
    search: UnionSearch,
    prompts: Mapping[int, Prompt],
    baselines: Mapping[int, Baseline],
    on_samples: Callable[[int], None] = lambda _count: None,
) -> tuple[Neuron, ...]:
    """Run a search over the union to its end, each of its questions in full batches.

    prompts, baselines: by number, with the baseline of each seed that may be asked about.
    """
    work = Pairs(engine)
    known = {index: engine.keep((prompts[index], baseline)) for index, baseline in baselines.items()}
    answer: Any = None  # starts it; a union of one neuron ends without a question
    while True:
        try:
            question = search.send(answer)
        except StopIteration as end:
            left: tuple[Neuron, ...] = end.value
            return left
        items = [(known[index], question.off, seed) for index, seed in question.pairs]
        numbers = [index for index, _ in question.pairs]
        scores = engine.each(work, items, lambda _place, _score: on_samples(1), numbers)
        answer = dict(zip(question.pairs, scores, strict=True))


@dataclass(frozen=True)
class Pairs:
    """Work: scores of prompts, each with its baseline, neurons off and seed."""

    engine: Engine

    def __call__(
        self, items: Sequence[tuple[Kept[tuple[Prompt, Baseline]], frozenset[Neuron], int]]
    ) -> Iterator[tuple[int, float]]:
        engine = self.engine
        known = [one.get() for one, _, _ in items]
        samples = [
            Sample(prompt, off, seed) for (prompt, _), (_, off, seed) in zip(known, items, strict=True)
        ]
        found = engine.evaluate(samples)
        scores = scores_of_each(
            [
                ({sample.seed: one}, baseline)
                for sample, one, (_, baseline) in zip(samples, found, known, strict=True)
            ],
            engine.criterion,
            published=engine.published,
        )
        for place, score in enumerate(scores):
            yield place, score[items[place][2]]
