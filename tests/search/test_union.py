"""Reducing a union: what no prompt needs goes, whatever the oracle nobody is worse off."""

from collections.abc import Callable, Mapping

from hypothesis import given
from hypothesis import strategies as st

from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.search.union import Pair, UnionSearch, reduce_union

TAU = 0.5
Oracle = Callable[[frozenset[Neuron], Pair], float]


def neuron(row: int) -> Neuron:
    return Neuron("mid_block.attentions.0.transformer_blocks.0.attn2.to_v", row)


def neurons(*rows: int) -> frozenset[Neuron]:
    return frozenset(map(neuron, rows))


def drive(search: UnionSearch, oracle: Oracle) -> tuple[frozenset[Neuron], list[int]]:
    """What is kept, and the number of pairs of each question."""
    sizes = []
    try:
        question = next(search)
        while True:
            assert question.off, "nothing off is never asked about"
            assert len(set(question.pairs)) == len(question.pairs) > 0
            sizes.append(len(question.pairs))
            question = search.send({pair: oracle(question.off, pair) for pair in question.pairs})
    except StopIteration as end:
        return frozenset(end.value), sizes


def reduced(
    own: Mapping[int, frozenset[Neuron]], seeds: int, oracle: Oracle
) -> tuple[frozenset[Neuron], int]:
    whole = frozenset().union(*own.values())
    known = {(prompt, seed): oracle(whole, (prompt, seed)) for prompt in own for seed in range(seeds)}
    kept, sizes = drive(reduce_union(own, known, TAU), oracle)
    for pair, score in known.items():
        assert oracle(kept, pair) <= max(TAU, score)
    return kept, sum(sizes)


def needing(
    needs: Mapping[Pair, frozenset[Neuron]], otherwise: frozenset[Neuron] = frozenset()
) -> Oracle:
    """Each pair is suppressed by its own set, and everybody by `otherwise` too."""

    def oracle(off: frozenset[Neuron], pair: Pair) -> float:
        return 0.2 if needs[pair] <= off or (otherwise and otherwise <= off) else 0.8

    return oracle


def test_where_every_neuron_is_needed_all_stay_for_one_sample_each() -> None:
    own = {0: neurons(1, 2), 1: neurons(3), 2: neurons(4, 5, 6)}
    oracle = needing({(prompt, seed): own[prompt] for prompt in own for seed in range(5)})
    kept, samples = reduced(own, 5, oracle)
    assert kept == neurons(1, 2, 3, 4, 5, 6)
    assert samples == 6


def test_neurons_made_superfluous_by_another_prompt_go() -> None:
    own = {0: neurons(1), 1: neurons(2, 3)}
    needs = {(0, seed): neurons(1) for seed in range(3)} | {
        (1, seed): neurons(2, 3) for seed in range(3)
    }
    kept, _ = reduced(own, 3, needing(needs, otherwise=neurons(1)))
    assert kept == neurons(1)


def test_a_large_superfluous_part_goes_for_few_samples() -> None:
    own = {0: neurons(*range(200)), 1: neurons(500)}
    needs = {(0, 0): neurons(7), (1, 0): neurons(500)}
    kept, samples = reduced(own, 1, needing(needs))
    assert kept == neurons(7, 500)
    assert samples < 60


def test_a_bystander_that_objects_is_heard() -> None:
    """Prompt 1 never asked for neuron 1, yet is only suppressed with it off."""
    own = {0: neurons(1, 2), 1: neurons(3)}
    needs = {(0, 0): neurons(2), (1, 0): neurons(1, 3)}
    kept, _ = reduced(own, 1, needing(needs))
    assert kept == neurons(1, 2, 3)


def test_a_seed_that_objects_is_heard() -> None:
    own = {0: neurons(1, 2)}
    needs = {(0, 0): neurons(1), (0, 1): neurons(1), (0, 2): neurons(2)}
    assert reduced(own, 3, needing(needs))[0] == neurons(1, 2)


def test_of_many_seeds_that_object_one_speaks_for_all() -> None:
    """Nine seeds miss what the most stubborn one did not: asking all of them would cost 200 samples."""
    own = {0: neurons(*range(20))}
    needs = {(0, seed): own[0] for seed in range(9)} | {(0, 9): neurons(0)}
    kept, samples = reduced(own, 10, needing(needs))
    assert kept == own[0]
    assert samples < 100


def test_what_was_not_suppressed_anyway_may_not_get_worse() -> None:
    own = {0: neurons(1, 2, 3)}

    def oracle(off: frozenset[Neuron], _pair: Pair) -> float:
        return 0.9 if neuron(2) not in off else 0.7

    assert reduced(own, 1, oracle)[0] == neurons(2)


sets = st.frozensets(st.integers(0, 7), min_size=1, max_size=5).map(lambda rows: neurons(*rows))


@given(st.lists(sets, min_size=1, max_size=4), st.data())
def test_with_monotone_scores_every_neuron_kept_is_needed(
    own_sets: list[frozenset[Neuron]], data: st.DataObject
) -> None:
    own = dict(enumerate(own_sets))
    whole = sorted(frozenset().union(*own_sets))
    subset = st.frozensets(st.sampled_from(whole), min_size=1)
    ways = {
        (prompt, seed): data.draw(st.lists(subset, min_size=1, max_size=3))
        for prompt in own
        for seed in range(2)
    }

    def oracle(off: frozenset[Neuron], pair: Pair) -> float:
        return 0.1 if any(way <= off for way in ways[pair]) else 0.9

    kept, _ = reduced(own, 2, oracle)
    for one in kept:
        less = kept - {one}
        assert not less or any(oracle(less, pair) > TAU for pair in ways)


@given(st.lists(sets, min_size=1, max_size=3), st.integers())
def test_whatever_the_scores_nobody_is_worse_off(own_sets: list[frozenset[Neuron]], salt: int) -> None:
    def oracle(off: frozenset[Neuron], pair: Pair) -> float:
        return hash((salt, tuple(sorted(n.row for n in off)), pair)) % 100 / 100

    reduced(dict(enumerate(own_sets)), 2, oracle)
