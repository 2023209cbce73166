"""The procedure exactly as the paper states it (D1 to D4 of "Finding NeMo", section 3.2).

It stays for good: the economical searches are compared with it, and it reproduces published tables.
"""

from __future__ import annotations

from collections.abc import Sequence

from nemo_prune.search.ladder import LAST_RUNG, Ladder
from nemo_prune.search.protocol import Outcome, Search, Tally, check_seeds, not_memorized


def literal_search(
    ladder: Ladder,
    seeds: Sequence[int],
    tau: float,
    *,
    as_published: bool = False,
    refine: bool = True,
) -> Search:
    """D1 to D4 to the letter: every evaluation on all seeds, one candidate at a time.

    The ladder is climbed rung by rung from theta = 5 (D3). Refinement (D4) unblocks whole layers
    from the mid block backwards and drops those that are not needed, then does the same neuron by
    neuron in the layers left, in the same order of layers, rows ascending. Like the paper's, it
    repeats itself where a layer holds one candidate. Only the empty set is never asked about.

    as_published: as the authors' code does where it differs from the paper: the ladder ends before
        theta = 1, and each layer's candidates are its unusual rows followed by its largest ones, so
        that a row which is both is tested twice, and dropped at its second place if at all.

    refine: whether D4 follows; without it the neurons are the rung's.

    tau: the score above which a seed counts as memorized. Raises ValueError as `Tally.ask` does.
    """
    seeds = check_seeds(seeds)
    tally = Tally()
    before = yield from tally.ask(frozenset(), seeds)
    memorized = tuple(seed for seed in seeds if before[seed] > tau)
    if not memorized:
        return not_memorized(before, tau)

    rung, after = 0, {seed: before[seed] for seed in memorized}
    for rung in range(LAST_RUNG if as_published else LAST_RUNG + 1):
        if not ladder.rung(rung):
            continue
        scores = yield from tally.ask(ladder.rung(rung), seeds)
        after = {seed: scores[seed] for seed in memorized}
        if max(after.values()) <= tau:
            break
    reached = max(after.values())
    threshold = max(tau, reached)

    listed = [
        entry
        for layer in reversed(list(ladder.z))
        for entry in (ladder.listed(rung, layer) if as_published else sorted(ladder.of(rung, layer)))
    ]
    kept = list(listed)
    for layer in dict.fromkeys(neuron.layer for neuron in listed if refine):
        left = [neuron for neuron in kept if neuron.layer != layer]
        if not left:
            continue
        scores = yield from tally.ask(frozenset(left), seeds)
        if max(scores[seed] for seed in memorized) <= threshold:
            kept, after = left, {seed: scores[seed] for seed in memorized}
    for neuron in list(kept) if refine else ():
        left = list(kept)
        left.remove(neuron)  # of two entries of one row the first
        if not left:
            continue
        scores = yield from tally.ask(frozenset(left), seeds)
        if max(scores[seed] for seed in memorized) <= threshold:
            kept, after = left, {seed: scores[seed] for seed in memorized}

    return Outcome(
        status="localized" if reached <= tau else "not removable",
        neurons=ladder.in_network_order(kept),
        scores_before=before,
        memorized_seeds=memorized,
        scores_after=after,
        threshold=threshold,
        theta=ladder.theta(rung),
        candidates=len(set(listed)),
        samples=tally.samples,
        questions=tally.questions,
        minimal=refine,
    )
