"""From each prompt's own neurons to a union that holds: probe, search again, drop what is not needed.

A search sees its own seeds and its own prompt. Here all prompts are probed on fresh seeds with the
union off, as a file will have it. A prompt that objects is searched again on the model as pruned so
far, and gets further neurons; what no prompt needs any more is dropped.

Memory that is spread over many neurons fades by degrees, and a minimal set leaves it just under tau,
where one probe in two would say otherwise. So a prompt that comes near tau is probed on more seeds,
and searched again on those that hold on longest. One that stays above tau with every neuron of the
searched layers off is searched in the next wider scope, on top of what is off already.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nlargest
from itertools import count

from nemo_prune.checkpoint.neurons import Neuron, union
from nemo_prune.options import Progress
from nemo_prune.scoring.engine import Baseline, Engine, Job, Prompt
from nemo_prune.scoring.searching import finished_searches, run_union
from nemo_prune.search.auto import Candidates
from nemo_prune.search.protocol import Outcome, Search
from nemo_prune.search.union import reduce_union

_NEAR = 0.5  # of tau: what a probe that scores higher has not settled yet
_LOOKS = 3  # times as many seeds for it


@dataclass
class Repaired:
    """What became of the searched prompts, by number.

    neurons: each prompt's part of the union. scores: the largest score on the fresh seeds that were
    last asked, with the union off. samples: spent on searching again. dropped: not needed by any
    prompt. confirming: samples spent on probing and dropping. widened: prompts that took neurons of a
    wider scope.
    """

    neurons: dict[int, tuple[Neuron, ...]]
    scores: dict[int, float] = field(default_factory=dict)
    samples: dict[int, int] = field(default_factory=dict)
    dropped: tuple[Neuron, ...] = ()
    confirming: int = 0
    widened: set[int] = field(default_factory=set)

    @property
    def off(self) -> frozenset[Neuron]:
        return frozenset(union(*self.neurons.values()))


@dataclass(frozen=True)
class Scope:
    """Layers that may be searched: their names, what they hold, and what makes a search of a prompt on
    seeds in them, as a job without a base."""

    layers: Sequence[str]
    candidates: Candidates
    begin: Callable[[Prompt, Sequence[int]], Search]


class Repair:
    """Probes the union of all outcomes' neurons, repairs it, then reduces it.

    Args:
        engine: of the unpruned model.
        outcomes, prompts: of the memorized prompts, by number.
        scopes: where to search, the narrowest first; the outcomes are of the first one.
        tau: what a suppressed prompt's score must not exceed.
        seeds: how many the first search used; every probe takes as many further ones, and three
            times as many for a score between tau/2 and tau.
        progress: is told of every sample.
    """

    def __init__(
        self,
        engine: Engine,
        outcomes: Mapping[int, Outcome],
        prompts: Mapping[int, Prompt],
        scopes: Sequence[Scope],
        *,
        tau: float,
        seeds: int,
        progress: Progress,
    ) -> None:
        self.engine, self.prompts, self.scopes = engine, prompts, scopes
        self.tau, self.seeds, self.progress = tau, seeds, progress
        # By prompt, the scope of its next search; one too many where even the widest was not enough.
        self.scope = {i: int(one.status != "localized") for i, one in outcomes.items()}
        self.result = Repaired({index: outcome.neurons for index, outcome in outcomes.items()})
        self.baselines: dict[int, Baseline] = {}
        self.known: dict[int, dict[int, float]] = {}
        self._blocks = (range(at, at + _LOOKS * seeds) for at in count(seeds, _LOOKS * seeds))

    def run(self, rounds: int) -> Repaired:
        """Probe, search again at most `rounds` times, reduce.

        A prompt whose search came to the end of the widest scope is not searched again.
        """
        result = self.result
        for round_ in range(rounds + 1):
            self.probe()
            above = [index for index in self.prompts if result.scores[index] > self.tau]
            again = [index for index in above if self.scope[index] < len(self.scopes)]
            if not again or round_ == rounds:
                break
            # The narrow ones first: what they take off may be enough for the others.
            narrowest = min(self.scope[index] for index in again)
            again = [index for index in again if self.scope[index] == narrowest]
            if narrowest:
                numbers = ", ".join(map(str, again))
                self.progress.note(f"prompt {numbers}: not removable there, so all layers are searched")
            self.search_again(again)
        if result.off and (len(self.prompts) > 1 or result.samples):
            self.reduce()
        return result

    def probe(self, only: Sequence[int] | None = None) -> None:
        """Score on the first third of fresh seeds, or on all of them where they come near tau."""
        fresh, result = next(self._blocks), self.result
        indices = list(self.prompts) if only is None else only
        self.progress.stage("probing on more seeds", len(indices), "prompts")
        spent, off = self.engine.cost.samples, result.off

        def on_found(place: int, found: tuple[dict[int, float], Baseline]) -> None:
            index = indices[place]
            self.known[index], self.baselines[index] = found
            result.scores[index] = max(found[0].values())
            self.progress.advance()

        probing = Probing(self.engine, off, fresh, self.tau)
        encoded = [self.prompts[index] for index in indices]
        self.engine.each(probing, encoded, on_found, numbers=indices)
        result.confirming += self.engine.cost.samples - spent

    def search_again(self, again: Sequence[int]) -> None:
        """Search prompts on the model as pruned so far, on the seeds that hold on longest."""
        self.progress.stage("searching the pruned model", len(again), "prompts")
        result, items = self.result, []
        (number,) = {self.scope[index] for index in again}
        scope = self.scopes[number]
        for index in again:
            known = self.known[index]
            seeds = sorted(nlargest(self.seeds, known, key=known.__getitem__))
            items.append((self.prompts[index], seeds, self.baselines[index]))
        made: list[tuple[Outcome, int]] = self.engine.each(
            SearchingAgain(self.engine, scope, result.off), items,
            lambda _place, _found: self.progress.advance(), numbers=again,
        )  # fmt: skip
        found = [outcome for outcome, _ in made]
        shared = sum(samples for _, samples in made) // len(again)
        for index, outcome in zip(again, found, strict=True):
            result.samples[index] = result.samples.get(index, 0) + shared
            if outcome.status == "not removable":
                self.scope[index] += 1  # more neurons off, and still there: not worth the damage
            else:
                result.neurons[index] = union(result.neurons[index], outcome.neurons)
                if self.scope[index]:
                    result.widened.add(index)

    def reduce(self) -> None:
        """Drop neurons while the probed seeds allow it; put back what fresh seeds then miss.

        A prompt keeps at least one neuron of its own, though others' may do: what a score hardly needs a
        picture may, and the manifest says what each prompt hangs on.
        What is put back is what the objecting prompts asked for, and all that was dropped if that is
        not enough: whose neurons another prompt misses is not known.
        """
        engine, result = self.engine, self.result
        self.progress.stage("dropping neurons that are not needed", None, "samples")
        spent = engine.cost.samples
        pairs = {
            (index, seed): score
            for index, scores in self.known.items()
            for seed, score in scores.items()
        }
        search = reduce_union(result.neurons, pairs, self.tau)
        kept = set(run_union(engine, search, self.prompts, self.baselines, self.progress.advance))
        for own in result.neurons.values():
            if own and kept.isdisjoint(own):
                kept.add(own[0])
        result.confirming += engine.cost.samples - spent
        before, scores = dict(result.neurons), dict(result.scores)
        whole = result.off
        while len(kept) < len(whole):
            result.neurons = {i: tuple(n for n in own if n in kept) for i, own in before.items()}
            self.probe()
            objecting = [i for i, s in result.scores.items() if s > self.tau >= scores[i]]
            if not objecting:
                break
            theirs = set(union(*(before[index] for index in objecting))) - kept
            kept = kept | theirs if theirs else set(whole)
        if len(kept) == len(whole):
            result.neurons, result.scores = before, scores
        result.dropped = tuple(n for n in union(*before.values()) if n not in kept)


@dataclass(frozen=True)
class Probing:
    """Work: the scores of prompts with neurons off, on a third of the seeds or on all, and the
    baselines."""

    engine: Engine
    off: frozenset[Neuron]
    fresh: Sequence[int]
    tau: float

    def __call__(
        self, prompts: Sequence[Prompt]
    ) -> Iterator[tuple[int, tuple[dict[int, float], Baseline]]]:
        some = self.fresh[: len(self.fresh) // _LOOKS]
        for place, prompt in enumerate(prompts):
            scores, baseline = self.engine.probe(prompt, self.off, some)
            if _NEAR * self.tau < max(scores.values()) <= self.tau:
                scores, baseline = self.engine.probe(prompt, self.off, self.fresh, baseline)
            yield place, (scores, baseline)


@dataclass(frozen=True)
class SearchingAgain:
    """Work: search prompts on the model as pruned so far; the outcome of each, and its samples."""

    engine: Engine
    scope: Scope
    off: frozenset[Neuron]

    def __call__(
        self, items: Sequence[tuple[Prompt, Sequence[int], Baseline]]
    ) -> Iterator[tuple[int, tuple[Outcome, int]]]:
        layers = self.scope.layers
        jobs = [
            Job(one, self.scope.begin(one, seeds), dict(baseline), self.off, layers=layers)
            for one, seeds, baseline in items
        ]
        for place, outcome in finished_searches(self.engine, jobs):
            yield place, (outcome, jobs[place].samples)
