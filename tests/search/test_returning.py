"""What is not needed comes back by gradients; what is left is proved, whatever the gradients say."""

import math
from collections.abc import Mapping, Sequence

from test_searches import Oracle, Recorder

from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.search.answer_cache import AnswerCache
from nemo_prune.search.group_testing import prefix_schedule
from nemo_prune.search.protocol import Attribute, Attribution, Question
from nemo_prune.search.returning import Returning

TAU = 0.5
ORDER = tuple(Neuron("a", row) for row in range(200))
SEEDS = tuple(range(8))


class Linear:
    """Each seed's score rises by what every neuron that is on does for it; exact gradients.

    does: neuron -> what it does; others do nothing. more: seed -> the same for this seed alone.
    """

    def __init__(
        self, does: Mapping[Neuron, float], more: Mapping[int, Mapping[Neuron, float]] | None = None
    ) -> None:
        self.does, self.more = does, more or {}
        self.asked: list[Attribute] = []

    def of(self, neuron: Neuron, seed: int) -> float:
        return self.more.get(seed, {}).get(neuron, self.does.get(neuron, 0.0))

    def score(self, off: frozenset[Neuron], seed: int) -> float:
        return 0.1 + sum(self.of(neuron, seed) for neuron in ORDER if neuron not in off)

    def gradient(self, wanted: Attribute) -> Attribution:
        self.asked.append(wanted)
        among = ORDER if wanted.among is None else wanted.among
        return {n: sum(self.of(n, seed) for seed in wanted.seeds) for n in among if n not in wanted.off}


def search(
    order: Sequence[Neuron], oracle: Oracle, model: Linear, *,
    harm: Mapping[Neuron, float] | None = None,
) -> tuple[Returning, Recorder]:  # fmt: skip
    """Run it to its end, judged by all seeds."""
    cache, recorder = AnswerCache(ORDER, TAU), Recorder(oracle)
    before = {seed: 0.9 - 0.01 * seed for seed in SEEDS}
    one = Returning(
        cache, before, SEEDS, prefix_schedule(order, cache), harm or dict.fromkeys(ORDER, 1.0)
    )
    steps, reply = one.run(), None
    try:
        while True:
            asked = steps.send(reply)  # type: ignore[arg-type]
            if isinstance(asked, Question):
                reply = {seed: recorder(asked.off, seed) for seed in asked.seeds}
            else:
                reply = model.gradient(asked)
    except StopIteration:
        return one, recorder


def check(one: Returning, recorder: Recorder) -> frozenset[Neuron]:
    """Valid and 1-minimal, by what was really answered; the neurons kept."""
    kept = frozenset(one.cache.neurons(one.kept))
    assert not one.exhausted
    assert all(recorder.answers[kept, seed] <= TAU for seed in SEEDS)
    for neuron in kept:
        assert max(recorder.answers.get((kept - {neuron}, seed), 0.0) for seed in SEEDS) > TAU
    return kept


NEEDED = frozenset(ORDER[10:160:10])


def test_what_does_nothing_comes_back_at_once() -> None:
    """Fifteen of 200 are needed, and the last of them stands at place 150 of the order."""
    model = Linear(dict.fromkeys(NEEDED, 0.5))
    one, recorder = search(ORDER, model.score, model)
    assert check(one, recorder) == NEEDED
    # The prefix, all seeds twice, one gradient of two seeds and one to see that no more comes back.
    assert len(model.asked) <= 3
    assert one.cache.tally.samples <= 15 + 2 * len(SEEDS) + 2 * math.log2(200) + 8
    assert one.cache.tally.spent == one.cache.tally.samples + 6 * len(model.asked)
    first = model.asked[0]
    assert (first.points, first.off, len(first.seeds)) == ((0.0,), frozenset(), 2)
    assert first.among is not None
    assert first.among > NEEDED


def test_of_many_small_parts_as_many_come_back_as_may() -> None:
    """Each of 100 does a little; what may stay on is what does least."""
    model = Linear({n: 0.02 * (1 + n.row / 100) for n in ORDER[:100]} | {ORDER[120]: 0.5})
    one, recorder = search(ORDER, model.score, model)
    kept = check(one, recorder)
    left = sum(model.does[neuron] for neuron in ORDER[:100] if neuron not in kept)
    assert 0.35 < left <= 0.4  # as much memory as the threshold allows
    back = [neuron for neuron in ORDER[:100] if neuron not in kept]
    assert sum(neuron.row for neuron in back) / len(back) < 20


def test_what_does_most_harm_comes_back_first() -> None:
    model = Linear(dict.fromkeys(ORDER[:40], 0.03) | {ORDER[60]: 0.5})
    harm = {neuron: 5.0 if neuron.row % 4 == 0 else 1.0 for neuron in ORDER}
    one, recorder = search(ORDER, model.score, model, harm=harm)
    kept = check(one, recorder)
    back = [neuron for neuron in ORDER[:40] if neuron not in kept]
    assert sum(harm[neuron] > 1 for neuron in back) == 10


def test_useless_gradients_cost_samples_and_nothing_else() -> None:
    model = Linear(dict.fromkeys(NEEDED, 0.5))

    class Wrong(Linear):
        def gradient(self, wanted: Attribute) -> Attribution:
            return {neuron: -value for neuron, value in super().gradient(wanted).items()}

    one, recorder = search(ORDER, model.score, Wrong(model.does))
    assert check(one, recorder) == NEEDED


def test_a_seed_that_objects_to_a_return_takes_back_what_it_needs() -> None:
    """A seed that nobody asked for a gradient misses one neuron that no other seed does."""
    extra = Neuron("a", 33)
    model = Linear(dict.fromkeys(NEEDED, 0.5), {7: dict.fromkeys(NEEDED, 0.5) | {extra: 0.6}})
    one, recorder = search(ORDER, model.score, model)
    assert check(one, recorder) == NEEDED | {extra}
    assert one.cache.tally.samples < 90


def test_a_seed_that_the_order_does_not_help_gets_its_own() -> None:
    """What the last seed needs stands at the end of the order."""
    extra = ORDER[-1]
    model = Linear(dict.fromkeys(ORDER[:10], 0.5), {7: dict.fromkeys(ORDER[:10], 0.5) | {extra: 0.6}})
    one, recorder = search(ORDER, model.score, model)
    assert check(one, recorder) == {*ORDER[:10], extra}
    own = [wanted for wanted in model.asked if wanted.among is None]
    assert [(wanted.seeds, wanted.off) for wanted in own] == [((7,), frozenset(ORDER[:10]))]
    assert one.cache.tally.samples < 60


def test_a_seed_that_nothing_helps_ends_it() -> None:
    model = Linear(dict.fromkeys(NEEDED, 0.5))
    one, _ = search(ORDER, lambda off, seed: 0.8 if seed == 5 else model.score(off, seed), model)
    assert one.exhausted


def test_answers_that_contradict_each_other_end_it() -> None:
    """More neurons off, and a seed that accepted fewer refuses."""
    needed = set(ORDER[:20])

    def oracle(off: frozenset[Neuron], seed: int) -> float:
        return 0.2 if needed <= off and (seed == 0 or len(off) % 2) else 0.8

    one, recorder = search(ORDER, oracle, Linear(dict.fromkeys(needed, 0.5)))
    if not one.exhausted:
        check(one, recorder)
