"""The default search against made-up oracles, with attributions of every quality."""

import math
import random
import statistics
import zlib
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_searches import Oracle, Recorder, clauses, condition, ladders, needing

from benchmarks.stress import TAU, WIDTHS, make_case, told
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.search import auto
from nemo_prune.search.answer_cache import AnswerCache
from nemo_prune.search.auto import Candidates, auto_search, trajectory_search
from nemo_prune.search.group_testing import gradient_free_search, prefix_schedule
from nemo_prune.search.ladder import Ladder
from nemo_prune.search.literal import literal_search
from nemo_prune.search.protocol import Attribute, Attribution, Outcome, Question, Search, run

QUALITIES = ("right", "noisy", "noisier", "reversed", "constant")
CORRELATION = {"right": 1.0, "noisy": 0.8, "noisier": 0.4, "reversed": -1.0, "constant": 0.0}


def every(ladder: Ladder) -> tuple[Neuron, ...]:
    return tuple(Neuron(layer, row) for layer, z in ladder.z.items() for row in range(len(z)))


def evenly(order: Iterable[Neuron]) -> Candidates:
    order = tuple(order)
    return Candidates(order, dict.fromkeys(order, 1.0))


def attribution_of(
    order: Iterable[Neuron], truth: Counter[Neuron], quality: str, salt: int = 0
) -> Attribution:
    """What each neuron does, as an attribution of this quality says it."""
    order, chance = tuple(order), random.Random(f"{quality}/{salt}")
    if quality == "constant":
        return dict.fromkeys(order, 0.5)
    wanted = [truth[neuron] for neuron in order]
    spread = statistics.pstdev(wanted) or 1.0
    known = CORRELATION[quality]
    noise = spread * math.sqrt(1 / known**2 - 1)
    sign = math.copysign(1, known)
    return {n: sign * value + chance.gauss(0, noise) for n, value in zip(order, wanted, strict=True)}


class Told:
    """Answers attributions, of what is asked; `asked` are the questions."""

    def __init__(self, found: Attribution) -> None:
        self.found, self.asked = found, list[Attribute]()

    def __call__(self, wanted: Attribute) -> Attribution:
        self.asked.append(wanted)
        return told(wanted, self.found)


@st.composite
def cases(draw: st.DrawFn, widest: int = 3) -> tuple[Ladder, Candidates, list[list[frozenset[Neuron]]]]:
    """A ladder, all neurons of its layers with their harm, and each seed's conditions among them."""
    ladder = draw(ladders())
    order = every(ladder)
    harm = draw(st.lists(st.floats(0.1, 3), min_size=len(order), max_size=len(order)))
    # Seldom of neurons that the ladder never comes to.
    pool = clauses(ladder, widest) if ladder.order and draw(st.integers(0, 4)) else None
    if pool is None:
        one = st.frozensets(st.sampled_from(order), min_size=1, max_size=widest)
        pool = st.lists(one, min_size=1, max_size=6)
    return (
        ladder,
        Candidates(order, dict(zip(order, harm, strict=True))),
        [draw(pool) for _ in range(10)],
    )


def importance(needs: list[list[frozenset[Neuron]]], seeds: Iterable[int]) -> Counter[Neuron]:
    return Counter(neuron for seed in seeds for clause in needs[seed] for neuron in clause)


limits = st.tuples(
    st.sampled_from([0, 3, 32]), st.sampled_from([0, 5]), st.sampled_from([2, 64]),
    st.sampled_from([0, 5, 200]),
)  # fmt: skip


def limited(settled: int, short: int, long: int, patience: int) -> patch.multiple:  # type: ignore[valid-type]
    """Small limits, so that few neurons are enough to see every way that the search may take."""
    return patch.multiple(auto, SETTLED=settled, _SHORT=short, _LONG=long, _patience=lambda _n: patience)


@given(cases(), st.sampled_from(QUALITIES), st.integers(1, 10), limits, st.integers())
def test_valid_minimal_and_within_the_bound_whatever_the_attributions(
    case: tuple[Ladder, Candidates, list[list[frozenset[Neuron]]]],
    quality: str,
    memorized: int,
    limits: tuple[int, int, int, int],
    salt: int,
) -> None:
    ladder, candidates, needs = case
    oracle = condition(needs, memorized)
    attribution = attribution_of(candidates.order, importance(needs, range(memorized)), quality, salt)

    def searching() -> Search:
        return auto_search(ladder, candidates, range(10), 0.428)

    with limited(*limits):
        recorder, told_ = Recorder(oracle), Told(attribution)
        found = run(searching(), recorder, told_)
        assert run(searching(), oracle, Told(attribution)) == found  # deterministic
    recorder.check(found)
    free = run(gradient_free_search(ladder, range(10), 0.428), oracle)
    assert found.memorized_seeds == free.memorized_seeds
    own = [one.seeds for one in told_.asked if not (one.among or one.off)]
    assert own in ([], [(place % memorized,) for place in range(3)])
    if free.status == "localized":
        assert found.status == "localized"
        prefixes = prefix_schedule(candidates.order, AnswerCache(candidates.order, 0.5)).rungs
        finding = 2 + 2 * math.log2(len(prefixes))
        assert found.samples <= free.samples + finding + limits[3] + 10
    if found.status == "not removable":  # no set of neurons is enough
        assert any(
            not clause & set(candidates.order) for seed in range(10) for clause in needs[seed]
        ) or (max(oracle(frozenset(candidates.order), seed) for seed in range(memorized)) > 0.428)


@given(ladders(), st.integers(1, 10), st.integers(), st.floats(0.2, 0.9), limits)
def test_any_oracle_and_any_attribution_at_all(
    ladder: Ladder, seeds: int, salt: int, tau: float, limits: tuple[int, int, int, int]
) -> None:
    """Without rhyme or reason: valid, 1-minimal, nothing asked twice, and localized whenever a climb of
    the ladder says so."""

    def chance(*about: object) -> float:
        return zlib.crc32(repr((salt, *about)).encode()) / 2**32

    def oracle(off: frozenset[Neuron], seed: int) -> float:
        return chance(sorted(off), seed)

    candidates = evenly(every(ladder))
    attribution = {neuron: chance(neuron) - 0.5 for neuron in candidates.order}
    with limited(*limits):
        recorder = Recorder(oracle)
        found = run(auto_search(ladder, candidates, range(seeds), tau), recorder, Told(attribution))
    recorder.check(found)
    if run(literal_search(ladder, range(seeds), tau), oracle).status == "localized":
        assert found.status == "localized"


@given(cases(), st.integers(1, 10), st.integers(), limits)
def test_almost_monotone(
    case: tuple[Ladder, Candidates, list[list[frozenset[Neuron]]]],
    memorized: int,
    salt: int,
    limits: tuple[int, int, int, int],
) -> None:
    """A monotone oracle that lies once in ten."""
    ladder, candidates, needs = case
    honest = condition(needs, memorized)

    def oracle(off: frozenset[Neuron], seed: int) -> float:
        lies = off and zlib.crc32(repr((salt, sorted(off), seed)).encode()) % 10 == 0
        return 1 - honest(off, seed) if lies else honest(off, seed)

    with limited(*limits):
        recorder = Recorder(oracle)
        told_ = Told(attribution_of(candidates.order, importance(needs, (0, 1)), "noisy", salt))
        recorder.check(run(auto_search(ladder, candidates, range(10), 0.428), recorder, told_))


# --- trajectories ---


def by_trajectory(
    candidates: Candidates, oracle: Oracle, attribution: Attribution, memorized: int
) -> tuple[Recorder, Told, Outcome]:
    """The search where nothing further is off, so that what remains then is known."""
    recorder, told = Recorder(oracle), Told(attribution)
    remaining = {seed: oracle(frozenset(), seed) for seed in range(memorized)}
    return recorder, told, run(trajectory_search(candidates, remaining, 0.428), recorder, told)


@given(cases(), st.sampled_from(QUALITIES), st.integers(1, 8), st.integers())
def test_trajectories_valid_and_minimal_whatever_the_attributions(
    case: tuple[Ladder, Candidates, list[list[frozenset[Neuron]]]],
    quality: str,
    memorized: int,
    salt: int,
) -> None:
    _, candidates, needs = case
    oracle = condition(needs, memorized)
    attribution = attribution_of(candidates.order, importance(needs, range(memorized)), quality, salt)
    recorder, told, found = by_trajectory(candidates, oracle, attribution, memorized)
    assert told.asked == [Attribute((0,), trajectory=True)]
    assert found.status == "localized"  # every condition is about candidates
    recorder.check(found)
    assert found.attribution == tuple(attribution[neuron] for neuron in found.neurons)
    assert by_trajectory(candidates, oracle, attribution, memorized)[2] == found


@given(cases(), st.sampled_from(QUALITIES), st.integers(1, 8), st.integers(), st.integers(0, 30))
def test_trajectories_cut_short_are_valid_and_say_so(
    case: tuple[Ladder, Candidates, list[list[frozenset[Neuron]]]],
    quality: str,
    memorized: int,
    salt: int,
    enough: int,
) -> None:
    _, candidates, needs = case
    oracle = condition(needs, memorized)
    attribution = attribution_of(candidates.order, importance(needs, range(memorized)), quality, salt)
    recorder, told = Recorder(oracle), Told(attribution)
    remaining = {seed: oracle(frozenset(), seed) for seed in range(memorized)}
    found = run(trajectory_search(candidates, remaining, 0.428, enough=enough), recorder, told)
    assert found.status == "localized"
    assert max(oracle(frozenset(found.neurons), seed) for seed in range(memorized)) <= 0.428
    assert found.minimal == (found.samples < enough)
    if found.minimal:
        recorder.check(found)


def test_trajectories_cut_short_take_no_more_than_what_finds_the_prefix() -> None:
    """Each of 60 neurons is needed, and showing so takes as many trajectories."""
    candidates = evenly(Neuron("a", row) for row in range(100))
    needed = frozenset(candidates.order[:60])

    def oracle(off: frozenset[Neuron], _seed: int) -> float:
        return 0.2 if needed <= off else 0.9

    worth = {neuron: 2.0 if neuron in needed else 1.0 for neuron in candidates.order}
    spent = {}
    for enough in (math.inf, 20):
        search = trajectory_search(candidates, dict.fromkeys(range(8), 0.9), 0.428, enough=enough)
        found = run(search, Recorder(oracle), Told(worth))
        assert needed <= set(found.neurons)
        spent[enough] = found.samples
    assert spent[math.inf] > 60
    assert spent[20] <= 20 + 8 + 8  # and one question of all seeds, twice


def test_trajectories_that_no_neurons_change_end_at_once() -> None:
    """Samples are dear there: nothing is refined that is of no use."""
    candidates = evenly(Neuron("a", row) for row in range(100))
    recorder, told, found = by_trajectory(
        candidates, lambda _off, _seed: 0.9, dict.fromkeys(candidates.order, 1.0), 8
    )
    assert (found.status, found.neurons) == ("not removable", ())
    assert found.samples == 1
    assert (frozenset(candidates.order), 0) in recorder.answers
    assert told.asked == []
    nothing = evenly(())
    assert by_trajectory(nothing, lambda _off, _seed: 0.9, {}, 2)[2].status == "not removable"


def test_one_seed_whose_trajectory_nothing_changes_is_not_removable() -> None:
    candidates = evenly(Neuron("a", row) for row in range(100))

    def oracle(off: frozenset[Neuron], seed: int) -> float:
        return 0.8 if seed == 5 or not off else 0.2

    _, _, found = by_trajectory(candidates, oracle, dict.fromkeys(candidates.order, 1.0), 8)
    assert (found.status, found.neurons) == ("not removable", ())
    assert found.samples < 40


def test_every_question_of_the_trajectory_search_is_about_trajectories() -> None:
    candidates = evenly(Neuron("a", row) for row in range(9))
    search = trajectory_search(candidates, {3: 0.9, 4: 0.7}, 0.4)
    asked = [next(search)]
    with suppress(StopIteration):
        while True:
            one = asked[-1]
            assert one.trajectory
            if isinstance(one, Attribute):
                asked.append(search.send(dict.fromkeys(candidates.order, 1.0)))
            else:
                score = 0.1 if Neuron("a", 5) in one.off else 0.8
                asked.append(search.send(dict.fromkeys(one.seeds, score)))
    assert asked[:2] == [
        Question(frozenset(candidates.order), (3,), trajectory=True), Attribute((3,), trajectory=True)
    ]  # fmt: skip
    assert all(isinstance(one, Question) and one.off for one in asked[2:])
    assert len(asked) > 4


# --- by hand ---


@pytest.fixture
def wide() -> Ladder:
    """Forty candidates at the first rung, more than are refined without an attribution."""
    return Ladder({"a": [6.0] * 40 + [0.0] * 40}, {"a": [0.0] * 80})


def test_few_candidates_take_no_attribution() -> None:
    ladder = Ladder({"a": [6.0] * 30 + [0.0] * 50}, {"a": [0.0] * 80})
    oracle = needing(Neuron("a", 7))
    found = run(auto_search(ladder, evenly(every(ladder)), range(10), 0.428), oracle)
    assert (found.neurons, found.order, found.attribution) == ((Neuron("a", 7),), "ladder", ())
    free = run(gradient_free_search(ladder, range(10), 0.428), oracle)
    assert found.samples <= free.samples + 1


def test_what_the_ladder_never_comes_to_is_found_by_attribution(wide: Ladder) -> None:
    oracle = needing(Neuron("a", 70), Neuron("a", 3))
    attribution = dict.fromkeys(every(wide), 0.1) | {Neuron("a", 70): 0.9, Neuron("a", 3): 0.8}
    found = run(auto_search(wide, evenly(every(wide)), range(10), 0.428), oracle, Told(attribution))
    assert (found.status, found.order, found.candidates) == ("localized", "attribution", 2)
    assert found.neurons == (Neuron("a", 3), Neuron("a", 70))
    assert found.attribution == pytest.approx((0.8, 0.9))
    # Score and confirm, the short rung, all of them, prefixes of 1, 2 (and 4 on the way), the proof.
    assert found.samples <= 20 + 8
    assert run(gradient_free_search(wide, range(10), 0.428), oracle).status == "not removable"


def test_the_most_memory_for_the_least_harm_comes_first() -> None:
    order = tuple(Neuron("a", row) for row in range(4))
    harm = dict(zip(order, (1.0, 10.0, 0.5, 1.0), strict=True))
    attribution = dict(zip(order[:3], (1.0, 2.0, 0.6), strict=True))
    assert Candidates(order, harm).by_merit(attribution) == [order[2], order[0], order[1]]
    tied = Candidates(order, dict.fromkeys(order, 1.0)).by_merit(dict.fromkeys(order, 0.3))
    assert tied == list(order)


def test_of_two_ways_to_suppress_the_harmless_one_is_taken(wide: Ladder) -> None:
    one, other = Neuron("a", 5), Neuron("a", 6)
    harm = dict.fromkeys(every(wide), 1.0) | {one: 4.0}
    attribution = dict.fromkeys(every(wide), 0.1) | {one: 1.0, other: 0.9}

    def oracle(off: frozenset[Neuron], _seed: int) -> float:
        return 0.2 if {one, other} & off else 0.8

    candidates = Candidates(every(wide), harm)
    found = run(auto_search(wide, candidates, range(4), 0.428), oracle, Told(attribution))
    assert found.neurons == (other,)


def test_a_long_prefix_is_compared_with_the_ladder() -> None:
    ladder = Ladder({"a": [6.0] * 40 + [0.0] * 200}, {"a": [0.0] * 240})
    needed = Neuron("a", 12)
    reversed_ = dict.fromkeys(every(ladder), 0.5) | {needed: 0.0}
    found = run(
        auto_search(ladder, evenly(every(ladder)), range(10), 0.428), needing(needed), Told(reversed_)
    )
    assert (found.neurons, found.order, found.candidates) == ((needed,), "ladder", 40)


def test_a_refinement_that_takes_too_long_is_given_up(wide: Ladder) -> None:
    """Ten seeds that object one after the other, each to what the others allowed."""
    needs = [[frozenset({Neuron("a", seed)})] for seed in range(10)]
    attribution = {neuron: -float(neuron.row) for neuron in every(wide)}
    with patch.object(auto, "_patience", lambda _n: 3):
        recorder = Recorder(condition(needs, 10))
        search = auto_search(wide, evenly(every(wide)), range(10), 0.428)
        found = run(search, recorder, Told(attribution))
    recorder.check(found)
    assert (found.status, found.order) == ("localized", "ladder")
    assert len(found.neurons) == 10


def test_not_removable_goes_on_as_the_ladder_ends(wide: Ladder) -> None:
    needed = {Neuron("a", 3), Neuron("a", 8)}

    def oracle(off: frozenset[Neuron], _seed: int) -> float:
        return 0.9 - 0.1 * len(off & needed)

    attribution = dict.fromkeys(every(wide), 0.5)
    found = run(auto_search(wide, evenly(every(wide)), range(4), 0.428), oracle, Told(attribution))
    free = run(gradient_free_search(wide, range(4), 0.428), oracle)
    assert found.status == free.status == "not removable"
    assert (set(found.neurons), found.threshold) == (needed, free.threshold)
    # A neuron that is off already when the search begins has no attribution.
    del attribution[Neuron("a", 3)]
    found = run(auto_search(wide, evenly(every(wide)), range(4), 0.428), oracle, Told(attribution))
    assert dict(zip(found.neurons, found.attribution, strict=True))[Neuron("a", 3)] == 0


def test_one_seed_that_nothing_helps_is_not_removable_at_the_cost_of_the_ladder(wide: Ladder) -> None:
    """The most stubborn seed accepts a short prefix, another accepts nothing."""

    def oracle(off: frozenset[Neuron], seed: int) -> float:
        if seed == 3:
            return 0.6
        return 0.2 if Neuron("a", 5) in off else 0.9

    attribution = dict.fromkeys(every(wide), 0.1) | {Neuron("a", 5): 1.0}
    found = run(auto_search(wide, evenly(every(wide)), range(4), 0.428), oracle, Told(attribution))
    free = run(gradient_free_search(wide, range(4), 0.428), oracle)
    assert found.status == free.status == "not removable"
    assert found.samples <= free.samples + 30


@pytest.mark.parametrize("seeds", [(), (1, 1)])
def test_seeds_must_be_some_and_distinct(wide: Ladder, seeds: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="a search needs seeds"):
        next(auto_search(wide, evenly(every(wide)), seeds, 0.428))


def test_not_memorized_costs_one_question(wide: Ladder) -> None:
    found = run(auto_search(wide, evenly(every(wide)), range(10), 0.428), lambda _off, _seed: 0.428)
    assert (found.status, found.samples, found.questions) == ("not memorized", 10, 1)


# --- how many samples, at the paper's sizes ---


@pytest.mark.parametrize(("candidates", "needed"), [(100, 4), (675, 21)])
@pytest.mark.parametrize("quality", QUALITIES)
@pytest.mark.parametrize("agreement", [1.0, 0.8])
def test_the_bound_at_the_papers_sizes(
    candidates: int, needed: int, quality: str, agreement: float
) -> None:
    case = make_case(random.Random(candidates), candidates, needed, agreement=agreement)
    order = [Neuron(f"layer{i}", row) for i, width in enumerate(WIDTHS) for row in range(width)]
    attribution = attribution_of(order, Counter(case.needed), quality)
    recorder = Recorder(case.oracle)
    search = auto_search(case.ladder, evenly(order), range(10), TAU)
    found = run(search, recorder, Told(attribution))
    recorder.check(found)
    assert set(found.neurons) == case.needed
    free = run(gradient_free_search(case.ladder, range(10), TAU), case.oracle).samples
    prefixes = len(prefix_schedule(order, AnswerCache(order, TAU)).rungs)
    assert found.samples <= free + 2 + 2 * math.log2(prefixes) + auto._patience(64)
    if quality in ("right", "noisy"):
        assert found.samples <= 0.75 * free


def test_a_seed_that_misses_nothing_any_more_is_not_asked_first_again_and_again() -> None:
    """What a later seed needs makes the first one accept; the proof asks the one that objects."""
    wanted, extra = {Neuron("a", row) for row in range(12)}, Neuron("a", 30)
    ladder = Ladder({"a": [6.0] * 31}, {"a": [0.0] * 31})

    def oracle(off: frozenset[Neuron], seed: int) -> float:
        if not off:
            return 0.9 - 0.01 * seed
        enough = wanted | {extra} <= off if seed == 1 else wanted <= off or extra in off
        return 0.2 if enough else 0.7

    recorder = Recorder(oracle)
    order = ladder.order
    attribution = {n: 2.0 - 0.01 * n.row if n in wanted else 0.1 for n in order}
    with patch.object(auto, "SETTLED", 0):
        found = run(auto_search(ladder, evenly(order), range(6), 0.428), recorder, Told(attribution))
    recorder.check(found)
    assert set(found.neurons) == wanted | {extra}
    assert sum(len(off) == len(wanted) and seed == 0 for off, seed in recorder.answers) <= 3
