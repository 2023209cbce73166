"""From each prompt's own neurons to a union that holds: probe, search again, drop what is not needed.

A search sees its own seeds and its own prompt. Here all prompts are probed on fresh seeds with the
union off, as a file will have it. A prompt that objects is searched again on the model as pruned so
far, and gets further neurons; what no prompt needs any more is dropped.

Memory that is spread over many neurons fades by degrees, and a minimal set leaves it just under tau,
where one probe in two would say otherwise. So a prompt that comes near tau is probed on more seeds,
and searched again on those that hold on longest.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nlargest
from itertools import count

from nemo_prune.checkpoint.neurons import Neuron, union
from nemo_prune.scoring.batches import Prompt
from nemo_prune.scoring.engine import Engine
from nemo_prune.search.literal import Outcome, Search
from nemo_prune.search.union import reduce_union

_NEAR = 0.5  # of tau: what a probe that scores higher has not settled yet
_LOOKS = 3  # times as many seeds for it


@dataclass
class Repaired:
    """What became of the searched prompts, by number.

    neurons: each prompt's part of the union. scores: the largest score on the fresh seeds that were
    last asked, with the union off. samples: spent on searching again. dropped: not needed by any
    prompt. confirming: samples spent on probing and dropping.
    """

    neurons: dict[int, tuple[Neuron, ...]]
    scores: dict[int, float] = field(default_factory=dict)
    samples: dict[int, int] = field(default_factory=dict)
    dropped: tuple[Neuron, ...] = ()
    confirming: int = 0

    @property
    def off(self) -> frozenset[Neuron]:
        return frozenset(union(*self.neurons.values()))


def repair(
    engine: Engine,
    outcomes: Mapping[int, Outcome],
    prompts: Mapping[int, Prompt],
    begin: Callable[[Prompt, Sequence[int]], Search],
    *,
    tau: float,
    seeds: int,
    rounds: int,
    stage: Callable[[str, int], None] = lambda _name, _prompts: None,
) -> Repaired:
    """Probe the union of all outcomes' neurons, repair it at most `rounds` times, then reduce it.

    outcomes, prompts: of the memorized prompts, by number. begin: makes a search of a prompt on
    seeds. seeds: how many the first search used; every probe takes as many further ones, and three
    times as many for a score between tau/2 and tau. A prompt whose search came to the end of its
    ladder is not searched again.
    """
    result = Repaired({index: outcome.neurons for index, outcome in outcomes.items()})
    hopeful = {index for index, outcome in outcomes.items() if outcome.status == "localized"}
    known: dict[int, dict[int, float]] = {}
    blocks = (range(start, start + _LOOKS * seeds) for start in count(seeds, _LOOKS * seeds))
    for round_ in range(rounds + 1):
        known = _probe(engine, prompts, next(blocks), tau, result)
        again = [index for index in hopeful if result.scores[index] > tau]
        if not again or round_ == rounds:
            break
        stage("searching the pruned model", len(again))
        searches = [
            (prompts[i], begin(prompts[i], sorted(nlargest(seeds, known[i], key=known[i].__getitem__))))
            for i in again
        ]
        for index, found in zip(again, engine.run(searches, base=result.off), strict=True):
            result.samples[index] = result.samples.get(index, 0) + found.samples
            if found.status == "not removable":
                hopeful.discard(index)  # more neurons off, and still there: not worth the damage
            else:
                result.neurons[index] = union(result.neurons[index], found.neurons)
    if result.off and (len(prompts) > 1 or result.samples):
        stage("dropping neurons that are not needed", len(prompts))
        _reduce(engine, prompts, known, next(blocks), tau, result)
    return result


def _probe(
    engine: Engine,
    prompts: Mapping[int, Prompt],
    fresh: range,
    tau: float,
    result: Repaired,
) -> dict[int, dict[int, float]]:
    """The scores on the first third of the fresh seeds, or on all of them where they come near tau."""
    spent, off, known = engine.cost.samples, result.off, {}
    for index, prompt in prompts.items():
        known[index] = engine.probe(prompt, off, fresh[: len(fresh) // _LOOKS])
        if _NEAR * tau < max(known[index].values()) <= tau:
            known[index] = engine.probe(prompt, off, fresh)
    result.scores = {index: max(scores.values()) for index, scores in known.items()}
    result.confirming += engine.cost.samples - spent
    return known


def _reduce(
    engine: Engine,
    prompts: Mapping[int, Prompt],
    known: Mapping[int, Mapping[int, float]],
    fresh: range,
    tau: float,
    result: Repaired,
) -> None:
    """Drop neurons while the probed seeds allow it, then look whether fresh seeds agree."""
    spent = engine.cost.samples
    pairs = {(index, seed): score for index, scores in known.items() for seed, score in scores.items()}
    kept = engine.run_union(reduce_union(result.neurons, pairs, tau), prompts)
    result.confirming += engine.cost.samples - spent
    if len(kept) == len(result.off):
        return
    before, scores = dict(result.neurons), dict(result.scores)
    result.neurons = {i: tuple(n for n in own if n in kept) for i, own in before.items()}
    _probe(engine, prompts, fresh, tau, result)
    if any(score > tau >= scores[index] for index, score in result.scores.items()):
        # Fresh seeds miss what the probed ones did not; whose neurons they miss is not known.
        result.neurons, result.scores = before, scores
    result.dropped = tuple(n for n in union(*before.values()) if n not in result.off)
