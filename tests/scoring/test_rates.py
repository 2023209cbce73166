"""Rates of labelled scores: against counting every pair and every threshold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_prune.scoring.rates import accuracy, separation

# Few distinct values, so that there are ties.
LABELLED = st.lists(
    st.tuples(st.sampled_from([0.1, 0.2, 0.3, 0.5, 0.9]), st.booleans()), min_size=2, max_size=60
).filter(lambda rows: len({label for _, label in rows}) == 2)


@given(LABELLED)
def test_equal_to_counting(rows: list[tuple[float, bool]]) -> None:
    scores, labels = zip(*rows, strict=True)
    positive = [score for score, label in rows if label]
    negative = [score for score, label in rows if not label]
    found = separation(scores, labels)
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert found.auroc == pytest.approx(sum(pairs) / len(pairs))
    best = 0.0
    for threshold in [*set(scores), 2.0]:
        if sum(n >= threshold for n in negative) <= 0.01 * len(negative):
            best = max(best, sum(p >= threshold for p in positive) / len(positive))
    assert found.tpr_at_fpr_1 == pytest.approx(best)
    assert found.roc[0] == (0, 0, None)
    assert found.roc[-1][:2] == (1, 1)
    for fpr, tpr, threshold in found.roc[1:]:
        assert threshold is not None
        assert fpr == pytest.approx(sum(n >= threshold for n in negative) / len(negative))
        assert tpr == pytest.approx(sum(p >= threshold for p in positive) / len(positive))
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in zip(found.roc, found.roc[1:], strict=False))
    assert area == pytest.approx(found.auroc)


def test_accuracy_and_missing_kinds() -> None:
    assert accuracy([0.1, 0.6, 0.7, 0.5], [False, True, False, True], 0.5) == 0.5
    with pytest.raises(ValueError, match="both"):
        separation([0.1, 0.2], [True, True])
