"""The searches against made-up oracles: by hand, and against each other at random."""

import math
import random
import statistics
import zlib
from collections import Counter
from collections.abc import Callable
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.stress import TAU, bits, format_table, make_case, stress_row
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.search.group_testing import gradient_free_search, group_size
from nemo_prune.search.ladder import LAST_RUNG, Ladder
from nemo_prune.search.literal import literal_search
from nemo_prune.search.protocol import Outcome, Question, Search, run

Oracle = Callable[[frozenset[Neuron], int], float]
SEARCHES = pytest.mark.parametrize(
    "kind", [literal_search, gradient_free_search], ids=["literal", "fast"]
)


def neurons(*places: tuple[str, int]) -> frozenset[Neuron]:
    return frozenset(Neuron(*place) for place in places)


def needing(*needed: Neuron, high: float = 0.8, low: float = 0.2) -> Oracle:
    """All seeds score high until all of these neurons are off."""
    return lambda off, _seed: low if off and off >= set(needed) else high


def drive(searching: Search, oracle: Oracle) -> tuple[list[Question], Outcome]:
    """Like `run`, and the questions."""
    questions = [next(searching)]
    try:
        while True:
            off, seeds = questions[-1].off, questions[-1].seeds
            questions.append(searching.send({seed: oracle(off, seed) for seed in seeds}))
    except StopIteration as stop:
        return questions, stop.value


class Recorder:
    """An oracle that remembers what it was asked, and refuses to be asked twice."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self.answers: dict[tuple[frozenset[Neuron], int], float] = {}

    def __call__(self, off: frozenset[Neuron], seed: int) -> float:
        assert (off, seed) not in self.answers
        self.answers[off, seed] = score = self.oracle(off, seed)
        return score

    def check(self, outcome: Outcome) -> None:
        """The outcome is what was answered: valid, 1-minimal, and rightly counted."""
        off = frozenset(outcome.neurons)
        seeds, threshold = outcome.memorized_seeds, outcome.threshold
        assert outcome.samples == len(self.answers)
        if outcome.status == "not memorized":
            return
        assert off
        assert outcome.scores_after == {seed: self.answers[off, seed] for seed in seeds}
        assert max(outcome.scores_after.values()) <= threshold
        for neuron in off if len(off) > 1 else ():
            without = [self.answers.get((off - {neuron}, seed), 0.0) for seed in seeds]
            assert max(without) > threshold


# --- the ladder ---


@pytest.fixture
def ladder() -> Ladder:
    """Two layers whose names sort against the network's order; five candidates at theta = 5."""
    return Ladder(
        z={"zeta": [6.0, 0.1, 5.5, 0.2, 7.0], "alpha": [-9.0, 4.9, 0.3, 8.0, math.nan]},
        activation={"zeta": [1.0, 9.0, 2.0, 3.0, 4.0], "alpha": [1.0, 1.0, 5.0, 2.0, 1.0]},
    )


def test_rung_zero_is_what_exceeds_five_standard_deviations(ladder: Ladder) -> None:
    expected = neurons(("zeta", 0), ("zeta", 2), ("zeta", 4), ("alpha", 0), ("alpha", 3))
    assert ladder.rung(0) == expected


def test_rung_one_adds_the_next_theta_and_each_layers_largest_activation(ladder: Ladder) -> None:
    added = ladder.rung(1) - ladder.rung(0)
    assert added == neurons(("zeta", 1), ("alpha", 1), ("alpha", 2))
    assert ladder.theta(1) == 4.75


def test_equal_activations_enter_by_row() -> None:
    tied = Ladder({"a": [0.0] * 4}, {"a": [1.0] * 4})
    assert [len(tied.rung(i)) for i in range(6)] == [0, 1, 2, 3, 4, 4]
    assert tied.rung(2) == neurons(("a", 0), ("a", 1))


def test_rungs_are_nested_and_theta_ends_at_one(ladder: Ladder) -> None:
    rungs = [ladder.rung(i) for i in range(LAST_RUNG + 1)]
    assert all(lower <= upper for lower, upper in pairwise(rungs))
    assert ladder.theta(LAST_RUNG) == 1.0


def test_theta_itself_is_not_exceeded() -> None:
    ladder = Ladder({"a": [5.0, 1.0] + [9.0] * 20}, {"a": [0.0] * 2 + [1.0] * 20})
    assert Neuron("a", 0) not in ladder.rung(0)
    assert Neuron("a", 0) in ladder.rung(1)
    assert Neuron("a", 1) not in ladder.rung(LAST_RUNG)


def test_suspicion_is_absolute_and_never_nan(ladder: Ladder) -> None:
    assert ladder.suspicion(Neuron("alpha", 0)) == 9.0
    assert ladder.suspicion(Neuron("alpha", 4)) == 0.0


def test_network_order_is_not_the_order_of_names(ladder: Ladder) -> None:
    ordered = ladder.in_network_order(neurons(("alpha", 0), ("zeta", 4), ("zeta", 2)))
    assert ordered == (Neuron("zeta", 2), Neuron("zeta", 4), Neuron("alpha", 0))


@pytest.mark.parametrize("activation", [{"b": [1.0]}, {"a": [1.0, 2.0]}, {}])
def test_a_ladder_of_two_minds_is_refused(activation: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match="differ"):
        Ladder({"a": [1.0]}, activation)


# --- by hand ---


def test_the_literal_search_asks_exactly_what_the_paper_asks(ladder: Ladder) -> None:
    a0, a3 = Neuron("alpha", 0), Neuron("alpha", 3)
    z0, z2, z4 = Neuron("zeta", 0), Neuron("zeta", 2), Neuron("zeta", 4)
    oracle = needing(z0, z4)
    asked, outcome = drive(literal_search(ladder, (3, 1), tau=0.5), oracle)
    assert all(question.seeds == (3, 1) for question in asked)
    assert [question.off for question in asked] == [
        frozenset(),
        frozenset({a0, a3, z0, z2, z4}),  # D3, theta = 5
        frozenset({z0, z2, z4}),  # D4: the layer nearest the mid block goes
        frozenset({z2, z4}),  # the other layer would leave nothing: neuron by neuron
        frozenset({z0, z4}),
        frozenset({z0}),
    ]
    assert outcome.neurons == (z0, z4)
    assert (outcome.samples, outcome.questions) == (12, 6)


@SEARCHES
def test_localized(kind: type, ladder: Ladder) -> None:
    oracle = needing(Neuron("zeta", 4), Neuron("alpha", 1))
    outcome = run(kind(ladder, range(10), 0.428), oracle)
    assert outcome.status == "localized"
    assert outcome.neurons == (Neuron("zeta", 4), Neuron("alpha", 1))
    assert (outcome.theta, outcome.candidates, outcome.threshold) == (4.75, 8, 0.428)
    assert outcome.memorized_seeds == tuple(range(10))
    assert outcome.scores_before == dict.fromkeys(range(10), 0.8)
    assert outcome.scores_after == dict.fromkeys(range(10), 0.2)


@SEARCHES
def test_not_memorized_costs_one_question(kind: type, ladder: Ladder) -> None:
    outcome = run(kind(ladder, range(10), 0.428), lambda _off, _seed: 0.428)
    assert outcome.status == "not memorized"
    assert outcome.neurons == ()
    assert outcome.theta is None
    assert (outcome.samples, outcome.questions) == (10, 1)


@SEARCHES
def test_only_memorized_seeds_count(kind: type, ladder: Ladder) -> None:
    def oracle(off: frozenset[Neuron], seed: int) -> float:
        if seed >= 3:
            return 0.9 if off else 0.1  # not memorized, whatever it scores later
        return needing(Neuron("zeta", 0))(off, seed)

    outcome = run(kind(ladder, range(10), 0.428), oracle)
    assert outcome.memorized_seeds == (0, 1, 2)
    assert outcome.neurons == (Neuron("zeta", 0),)


@SEARCHES
def test_not_removable_goes_on_with_the_score_reached(kind: type, ladder: Ladder) -> None:
    needed = neurons(("zeta", 4), ("alpha", 0))

    def oracle(off: frozenset[Neuron], seed: int) -> float:
        return 0.9 - 0.1 * len(off & needed) - 0.01 * seed

    outcome = run(kind(ladder, range(10), 0.428), oracle)
    assert outcome.status == "not removable"
    assert outcome.theta == 1.0
    assert outcome.threshold == pytest.approx(0.7)
    assert outcome.candidates == 10
    # Seed 0 is the one that set the threshold; with one neuron back it scores above it.
    assert set(outcome.neurons) == needed


@SEARCHES
def test_a_ladder_without_neurons_removes_nothing(kind: type) -> None:
    outcome = run(kind(Ladder({}, {}), range(4), 0.428), lambda _off, _seed: 0.8)
    assert (outcome.status, outcome.neurons, outcome.candidates) == ("not removable", (), 0)
    assert outcome.threshold == 0.8
    assert outcome.scores_after == outcome.scores_before


@SEARCHES
def test_useless_answers_are_refused(kind: type, ladder: Ladder) -> None:
    with pytest.raises(ValueError, match="no usable score"):
        run(kind(ladder, range(3), 0.428), lambda _off, _seed: math.nan)
    going = kind(ladder, range(3), 0.428)
    next(going)
    with pytest.raises(ValueError, match="no usable score"):
        going.send({0: 0.5, 1: 0.5})


@SEARCHES
@pytest.mark.parametrize("seeds", [(), (1, 1)])
def test_seeds_must_be_some_and_distinct(kind: type, ladder: Ladder, seeds: tuple[int]) -> None:
    with pytest.raises(ValueError, match="a search needs seeds"):
        next(kind(ladder, seeds, 0.428))


def test_one_candidate_takes_the_floor() -> None:
    ladder = Ladder({"a": [6.0, 0.0]}, {"a": [1.0, 0.0]})
    outcome = run(gradient_free_search(ladder, range(10), 0.428), needing(Neuron("a", 0)))
    assert outcome.samples == 20


def test_a_seed_that_objects_joins_and_nothing_is_forgotten(ladder: Ladder) -> None:
    first, second = Neuron("zeta", 4), Neuron("alpha", 0)

    def oracle(off: frozenset[Neuron], seed: int) -> float:
        if not off:
            return 0.9 if seed == 0 else 0.8
        return 0.2 if (second if seed == 2 else first) in off else 0.6

    recorder = Recorder(oracle)
    outcome = run(gradient_free_search(ladder, range(4), 0.428), recorder)
    recorder.check(outcome)
    assert set(outcome.neurons) == {first, second}


def test_a_lower_rung_is_found_even_if_the_whole_ladder_fails(ladder: Ladder) -> None:
    """Not monotone: only the third rung works. The climb finds it, so must the bisection."""
    only = ladder.rung(2)
    recorder = Recorder(lambda off, _seed: 0.2 if off == only else 0.8)
    outcome = run(gradient_free_search(ladder, range(4), 0.428), recorder)
    recorder.check(outcome)
    assert outcome.status == "localized"
    assert set(outcome.neurons) == only


def test_groups_are_an_even_bet() -> None:
    assert group_size(0.5, 100) == 1
    assert group_size(0.01, 1000) == 69
    assert group_size(0.01, 80) == 80
    assert group_size(0.999, 5) == 1


# --- at random ---


@st.composite
def ladders(draw: st.DrawFn) -> Ladder:
    """Up to four layers, some neurons at every height of the ladder."""
    width = draw(st.integers(1, 6))
    row = st.lists(st.sampled_from([0.0, 1.2, 3.0, 4.0, 5.5, 6.0, 7.0]), min_size=width)
    height = row.map(lambda values: values[:width])
    size = st.lists(st.floats(0, 1), min_size=width).map(lambda values: values[:width])
    layers = [f"layer{i}" for i in range(draw(st.integers(1, 4)))]
    return Ladder({n: draw(height) for n in layers}, {n: draw(size) for n in layers})


def clauses(ladder: Ladder, widest: int) -> st.SearchStrategy[list[frozenset[Neuron]]]:
    """A monotone condition: of each of these sets at least one neuron must be off."""
    one = st.frozensets(st.sampled_from(ladder.order), min_size=1, max_size=widest)
    return st.lists(one, min_size=1, max_size=6)


def condition(needs: list[list[frozenset[Neuron]]], memorized: int) -> Oracle:
    """Seed i scores low once its condition holds; the first `memorized` do not before."""

    def oracle(off: frozenset[Neuron], seed: int) -> float:
        if not off:
            return 0.9 - 0.01 * seed if seed < memorized else 0.2
        missing = sum(not clause & off for clause in needs[seed])
        return 0.3 if not missing else 0.6 + 0.01 * missing - 0.001 * seed

    return oracle


@given(st.data())
def test_monotone_seeds_that_disagree(data: st.DataObject) -> None:
    """Valid and 1-minimal, the climb's rung, and less than two evaluations above the literal's."""
    ladder, seeds = data.draw(ladders()), 10
    needs = [data.draw(clauses(ladder, 3)) for _ in range(seeds)]
    oracle = condition(needs, data.draw(st.integers(1, seeds)))
    recorder = Recorder(oracle)
    fast = run(gradient_free_search(ladder, range(seeds), 0.428), recorder)
    literal = run(literal_search(ladder, range(seeds), 0.428), oracle)
    recorder.check(fast)
    for name in ("status", "theta", "candidates", "threshold", "memorized_seeds", "scores_before"):
        assert getattr(fast, name) == getattr(literal, name), name
    assert fast.samples < literal.samples + 2 * seeds


@given(st.data(), st.integers(4, 10))
def test_never_more_samples_where_one_seed_is_the_most_stubborn(data: st.DataObject, seeds: int) -> None:
    # Of three seeds the literal search asks so few that dropping whole layers can save it a sample more.
    ladder = data.draw(ladders())
    full = data.draw(clauses(ladder, 3))
    needs = [full[: max(1, len(full) - seed)] for seed in range(seeds)]
    oracle = condition(needs, data.draw(st.integers(1, seeds)))
    recorder = Recorder(oracle)
    fast = run(gradient_free_search(ladder, range(seeds), 0.428), recorder)
    recorder.check(fast)
    assert fast.samples <= run(literal_search(ladder, range(seeds), 0.428), oracle).samples


@given(st.data(), st.integers(1, 10))
def test_the_same_neurons_where_one_minimal_set_exists(data: st.DataObject, seeds: int) -> None:
    ladder = data.draw(ladders())
    needs = [data.draw(clauses(ladder, 1)) for _ in range(seeds)]
    oracle = condition(needs, data.draw(st.integers(1, seeds)))
    fast = run(gradient_free_search(ladder, range(seeds), 0.428), oracle)
    assert fast.status == "localized"
    assert fast.neurons == run(literal_search(ladder, range(seeds), 0.428), oracle).neurons


@given(ladders(), st.integers(1, 10), st.integers(), st.floats(0.2, 0.9))
def test_any_oracle_at_all(ladder: Ladder, seeds: int, salt: int, tau: float) -> None:
    """Scores without rhyme or reason: still valid, 1-minimal, nothing asked twice, and localized
    whenever the literal search says so."""

    def oracle(off: frozenset[Neuron], seed: int) -> float:
        return zlib.crc32(repr((salt, sorted(off), seed)).encode()) / 2**32

    recorder = Recorder(oracle)
    fast = run(gradient_free_search(ladder, range(seeds), tau), recorder)
    recorder.check(fast)
    literal = run(literal_search(ladder, range(seeds), tau), oracle)
    assert fast.memorized_seeds == literal.memorized_seeds
    if literal.status == "localized":
        assert fast.status == "localized"
    assert fast == run(gradient_free_search(ladder, range(seeds), tau), oracle)  # deterministic


@given(st.data(), st.integers(1, 10), st.integers())
def test_almost_monotone(data: st.DataObject, seeds: int, salt: int) -> None:
    """A monotone oracle that lies once in ten: inference must not survive the lie."""
    ladder = data.draw(ladders())
    honest = condition([data.draw(clauses(ladder, 3)) for _ in range(seeds)], seeds)

    def oracle(off: frozenset[Neuron], seed: int) -> float:
        lies = off and zlib.crc32(repr((salt, sorted(off), seed)).encode()) % 10 == 0
        return 1 - honest(off, seed) if lies else honest(off, seed)

    recorder = Recorder(oracle)
    recorder.check(run(gradient_free_search(ladder, range(seeds), 0.428), recorder))


@SEARCHES
@settings(max_examples=30)
@given(data=st.data())
def test_first_question_and_never_an_empty_one(kind: type, data: st.DataObject) -> None:
    ladder = data.draw(ladders())
    oracle = condition([data.draw(clauses(ladder, 2)) for _ in range(5)], 4)
    questions, outcome = drive(kind(ladder, (0, 1, 2, 3, 4), 0.428), oracle)
    assert questions[0] == Question(frozenset(), (0, 1, 2, 3, 4))
    assert all(question.off and question.seeds for question in questions[1:])
    assert outcome.samples == sum(len(question.seeds) for question in questions)
    assert outcome.questions == len(questions)


# --- how many samples ---


@pytest.mark.parametrize("agreement", [1.0, 0.8])
def test_small_prompts_stay_near_the_floor_of_twenty(agreement: float) -> None:
    rng = random.Random(1)
    samples = []
    for _ in range(150):
        candidates = rng.randint(2, 15)
        needed = rng.randint(1, min(4, candidates))
        case = make_case(rng, candidates, needed, rung=0, agreement=agreement)
        recorder = Recorder(case.oracle)
        outcome = run(gradient_free_search(case.ladder, range(10), TAU), recorder)
        recorder.check(outcome)
        assert set(outcome.neurons) == case.needed
        samples.append(outcome.samples)
    assert statistics.mean(samples) <= 32


def test_the_papers_sizes() -> None:
    verbatim, template = stress_row(27, 4), stress_row(675, 21, repeats=2)
    assert verbatim["floor"] <= verbatim["search"] <= verbatim["floor_with_proof"] + 8
    assert verbatim["ratio"] >= 5
    assert template["search"] <= 1.2 * template["floor_with_proof"]
    assert template["ratio"] >= 20


@pytest.mark.parametrize(("candidates", "added", "needed"), [(6, 2, 3), (6, 6, 2), (5, 4, 5), (7, 1, 1)])
def test_the_floor_counts_every_way_to_draw_what_is_needed(
    candidates: int, added: int, needed: int
) -> None:
    drawn = Counter(
        frozenset([first, *rest])
        for first in range(added)
        for rest in combinations([i for i in range(candidates) if i != first], needed - 1)
    )
    shares = [count / drawn.total() for count in drawn.values()]
    assert bits(candidates, added, needed) == pytest.approx(-sum(p * math.log2(p) for p in shares))


def test_growth_is_logarithmic_in_candidates_and_linear_in_needed() -> None:
    few, many = (stress_row(n, 4, repeats=3)["search"] for n in (30, 1920))
    assert many - few <= 4 * 6 + 8  # 64 times as many: 6 bits a needed neuron, and the ladder
    some, tenfold = (stress_row(600, m, repeats=2)["search"] for m in (4, 40))
    assert tenfold - 20 <= 10 * (some - 20)


def test_the_table_prints() -> None:
    assert "candidates" in format_table([stress_row(10, 1, repeats=1)])
