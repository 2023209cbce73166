"""Thresholds from ordinary scores: against their definitions and exact probabilities."""

import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_prune.scoring.thresholds import (
    gate_from,
    margins_from,
    prompts_for,
    standing_apart,
    tau_from,
)

SCORES = st.lists(st.floats(0, 1), min_size=30, max_size=300)
RATES = st.sampled_from([0.001, 0.01, 0.02, 0.05, 0.1, 0.5])


def at_most(hits: int, count: int, share: float) -> float:
    """P(Binomial(count, share) <= hits), term by term."""
    return sum(math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(hits + 1))


def test_tau_is_mean_plus_one_deviation() -> None:
    scores = [0.3, 0.4, 0.5, 0.45, 0.2]
    assert tau_from(scores) == pytest.approx(
        statistics.mean(scores) + statistics.stdev(scores), abs=1e-4
    )


@given(SCORES, RATES, st.floats(0, 1))
def test_the_gate_is_never_below_tau_nor_above_1(scores: list[float], rate: float, tau: float) -> None:
    gate = gate_from(scores, rate, tau)
    assert tau - 1e-5 <= gate.value <= 1
    assert gate.prompts == len(scores)
    if gate.low is not None and gate.high is not None:
        assert gate.low <= gate.high


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=30, max_size=110), RATES)
def test_of_one_more_prompt_at_most_the_rate_lies_above(scores: list[float], rate: float) -> None:
    """Leave each prompt out in turn: exchangeable prompts exceed the others' gate at the rate."""
    above = sum(
        score > gate_from(scores[:i] + scores[i + 1 :], rate, 0).value + 1e-5
        for i, score in enumerate(scores)
    )
    # Below 1 / rate prompts a rank that keeps the promise does not exist.
    assert above / len(scores) <= max(rate, 1 / len(scores))


def test_the_gate_is_the_score_of_its_rank() -> None:
    scores = [i / 1000 for i in range(1, 300)]  # 299 of them: rank 297 of .01
    random.Random(0).shuffle(scores)
    gate = gate_from(scores, 0.01, 0)
    assert gate.value == 0.297
    assert not gate.extrapolated
    assert not gate.raised
    assert gate_from(scores, 0.1, 0).value == 0.270
    assert gate_from(scores, 0.01, 0.5).value == 0.5
    assert gate_from(scores, 0.01, 0.5).raised


def test_too_few_prompts_for_the_rate_are_extrapolated_and_say_so() -> None:
    scores = [statistics.NormalDist(0.4, 0.05).inv_cdf((i + 0.5) / 40) for i in range(40)]
    gate = gate_from(scores, 0.001, 0)
    assert gate.extrapolated
    assert gate.value > max(scores)
    assert gate.value == pytest.approx(0.4 + 3.09 * statistics.stdev(scores), abs=2e-3)
    assert gate.high is None
    assert gate_from([*scores, 0.9], 0.001, 0).value >= 0.9  # never below one that was seen
    assert gate_from([0.3] * 30, 0.01, 0).value == pytest.approx(0.3, abs=1e-5)


@pytest.mark.parametrize("rate", [0.5, 0.1, 0.05, 0.03, 0.02, 0.01, 0.007, 0.003, 0.001])
def test_so_many_prompts_are_enough_and_one_less_is_not(rate: float) -> None:
    needed = prompts_for(rate)
    assert not gate_from([i / 2000 for i in range(needed)], rate, 0).extrapolated
    assert needed == 30 or gate_from([i / 2000 for i in range(needed - 1)], rate, 0).extrapolated


@pytest.mark.parametrize(("count", "rate"), [(300, 0.05), (1000, 0.01), (500, 0.01), (200, 0.02)])
def test_the_interval_is_the_narrowest_that_binomial_probabilities_allow(
    count: int, rate: float
) -> None:
    gate = gate_from([float(i) for i in range(1, count + 1)], rate, 0)
    assert gate.low is not None
    assert gate.high is not None
    low, high = int(gate.low), int(gate.high)
    assert at_most(low - 1, count, 1 - rate) <= 0.025 < at_most(low, count, 1 - rate)
    assert at_most(high - 1, count, 1 - rate) >= 0.975 > at_most(high - 2, count, 1 - rate)


def test_few_prompts_bound_the_gate_on_one_side_only() -> None:
    gate = gate_from([i / 300 for i in range(300)], 0.01, 0)
    assert gate.low is not None
    assert gate.high is None  # .99 ** 300 > .025: all may lie below the true one


def test_margins_are_what_90_percent_of_prompts_rise_by() -> None:
    rises = [i / 1000 for i in range(99)]
    paths = [(0.3, 0.3 + rise / 2, 0.3 + rise) for rise in rises]
    assert margins_from(paths) == pytest.approx((0.089, 0.0445))
    assert margins_from([(0.1,), (0.2,)]) == ()


def test_memorized_prompts_stand_apart_and_a_normal_tail_does_not() -> None:
    lot = random.Random(0)
    ordinary = [lot.gauss(0.55, 0.05) for _ in range(300)]
    assert standing_apart(ordinary) == []
    assert standing_apart([*ordinary, 0.97, 0.85]) == [0.85, 0.97]
    assert standing_apart([0.5] * 40 + [0.9]) == [], "nothing is told by scores that are all the same"
