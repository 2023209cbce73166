"""The procedure as the authors' code does it, by hand."""

import pytest
from test_searches import drive, needing, neurons

from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.search.ladder import LAST_RUNG, Ladder
from nemo_prune.search.literal import literal_search

TAU = 0.5


@pytest.fixture
def ladder() -> Ladder:
    """At theta = 4.75, k = 1: rows 0, 2 of one layer, 1, 3 of the other; row 3 is also its largest."""
    return Ladder(
        z={"down": [4.8, 0.0, -4.9, 0.0], "mid": [0.0, 4.8, 0.0, 4.9]},
        activation={"down": [0.1, 0.9, 0.2, 0.3], "mid": [0.1, 0.2, 0.3, -0.9]},
    )


def test_unusual_rows_come_before_the_largest_and_a_row_may_be_both(ladder: Ladder) -> None:
    d, m = ([Neuron(layer, row) for row in range(4)] for layer in ("down", "mid"))
    assert ladder.listed(0, "down") == []
    assert ladder.listed(1, "down") == [d[0], d[2], d[1]]
    assert ladder.listed(1, "mid") == [m[1], m[3], m[3]]
    assert ladder.listed(3, "mid") == [m[1], m[3], m[3], m[2], m[1]]
    for rung in range(LAST_RUNG + 1):
        for layer in ("down", "mid"):
            assert set(ladder.listed(rung, layer)) == ladder.of(rung, layer)


def test_order_and_duplicates_are_the_authors(ladder: Ladder) -> None:
    d0, d1, d2 = (Neuron("down", row) for row in (0, 1, 2))
    m1, m3 = Neuron("mid", 1), Neuron("mid", 3)
    asked, outcome = drive(literal_search(ladder, (0, 1), TAU, as_published=True), needing(d1, m1))
    assert [question.off for question in asked] == [
        frozenset(),
        frozenset({d0, d1, d2, m1, m3}),  # the first rung that holds anything
        frozenset({d0, d1, d2}),  # without the layer nearest the mid block: refused
        frozenset({m1, m3}),  # without the other: refused
        frozenset({d0, d1, d2, m3}),  # row 1, the unusual one: needed
        frozenset({d0, d1, d2, m1, m3}),  # row 3 stands there twice, so one entry less changes nothing
        frozenset({d0, d1, d2, m1}),  # at its second place it is dropped
        frozenset({d1, d2, m1}),
        frozenset({d1, m1}),  # row 2 before row 1, which is only among the largest
        frozenset({m1}),
    ]
    assert outcome.neurons == (d1, m1)
    assert (outcome.candidates, outcome.samples, outcome.questions) == (5, 20, 10)


def test_the_papers_own_goes_by_rows(ladder: Ladder) -> None:
    d0, d1, d2 = (Neuron("down", row) for row in (0, 1, 2))
    m1, m3 = Neuron("mid", 1), Neuron("mid", 3)
    asked, outcome = drive(literal_search(ladder, (0, 1), TAU), needing(d1, m1))
    assert [question.off for question in asked][4:] == [
        frozenset({d0, d1, d2, m3}),
        frozenset({d0, d1, d2, m1}),
        frozenset({d1, d2, m1}),
        frozenset({d2, m1}),
        frozenset({d1, m1}),
    ]
    assert outcome.neurons == (d1, m1)


@pytest.mark.parametrize("published", [False, True])
def test_a_needed_row_that_stands_twice_is_kept_once(ladder: Ladder, published: bool) -> None:
    _, outcome = drive(
        literal_search(ladder, (0, 1), TAU, as_published=published), needing(Neuron("mid", 3))
    )
    assert outcome.neurons == (Neuron("mid", 3),)


def test_the_ladder_ends_before_theta_is_one() -> None:
    """What only the last rung holds is found by the paper's algorithm, not by the authors' code."""
    ladder = Ladder({"a": [6.0, 1.2, 1.1, *[9.0] * 17]}, {"a": [9.0, 0.1, 0.1, *[1.0] * 17]})
    late = Neuron("a", 1)
    assert late in ladder.rung(LAST_RUNG)
    assert late not in ladder.rung(LAST_RUNG - 1)
    asked, own = drive(literal_search(ladder, (0, 1), TAU), needing(late))
    assert (own.status, own.neurons, own.theta) == ("localized", (late,), 1.0)
    others, published = drive(literal_search(ladder, (0, 1), TAU, as_published=True), needing(late))
    assert published.status == "not removable"
    assert published.theta == 1.25
    assert published.threshold == 0.8
    rungs = [question.off for question in asked[1 : LAST_RUNG + 2]]
    assert [question.off for question in others[1 : LAST_RUNG + 1]] == rungs[:-1]
    assert others[LAST_RUNG + 1].off != rungs[-1]


def test_a_layer_is_dropped_with_all_its_entries(ladder: Ladder) -> None:
    d1 = Neuron("down", 1)
    asked, outcome = drive(literal_search(ladder, (0, 1), TAU, as_published=True), needing(d1))
    assert asked[2].off == neurons(("down", 0), ("down", 1), ("down", 2))
    assert not any(n.layer == "mid" for question in asked[2:] for n in question.off)
    assert outcome.neurons == (d1,)
