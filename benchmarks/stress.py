"""How many samples the searches take on random oracles of known size.

    python -m benchmarks.stress [--json] [--auto]

Each row draws prompts whose right answer is known: SD1's seven value layers, a ladder whose climb
ends at a rung with exactly `candidates` neurons, `needed` of them drawn evenly from all (|z| tells
nothing: the worst case for a search that trusts it) or mostly from the most suspicious ones. Ten
seeds, all memorized; each scores above tau until all neurons that it needs are off, less the more
of them are off. Samples are denoiser samples, pairs of (neurons off, seed).

`floor` is what a search that reads its answers as yes or no cannot go below on average: every seed
once to score the prompt, every seed once to confirm the result, and the bits that tell which of the
possible results it is, one of which a confirming answer may carry. It leaves out finding the rung,
not knowing how many are needed, and proving that every neuron found is, which takes one more answer
for each (`floor_with_proof`), less those that happen to serve both ends. There is none where |z|
or an attribution tells something. How far a score lies above tau is left unread: here it counts what
is missing, which is the oracle's making and not a model's.

Rows of the default search (`auto_rows`) answer its request for an attribution of all 5,760 neurons with
one of stated quality: 1 for a needed neuron, 0 for any other, and normal noise such that among the
ladder's candidates the correlation with the right answer is as stated; the thousands of other neurons
have as much noise. -1: needed neurons come last. What returns would bring back is answered with the same
numbers. `total` counts the passes of gradients too: three samples for each point and seed.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.search.auto import Candidates, auto_search
from nemo_prune.search.group_testing import gradient_free_search
from nemo_prune.search.ladder import LAST_RUNG, THETA_START, THETA_STEP, Ladder
from nemo_prune.search.literal import literal_search
from nemo_prune.search.protocol import Attribute, Attribution, run

TAU = 0.428
WIDTHS = (320, 320, 640, 640, 1280, 1280, 1280)  # SD1's value layers, down blocks and mid block
CANDIDATES = (10, 27, 100, 300, 675, 3000)
NEEDED = (1, 4, 21, 100)
CORRELATIONS = (1.0, 0.8, 0.4, 0.0, -1.0)
_GRADIENT = 3  # samples that a forward and a backward pass count as


@dataclass(frozen=True)
class Case:
    """A made-up prompt: its ladder, its answers, the right result, how many bits tell it, candidates."""

    ladder: Ladder
    oracle: Callable[[frozenset[Neuron], int], float]
    needed: frozenset[Neuron]
    bits: float
    candidates: int

    @property
    def neurons(self) -> tuple[Neuron, ...]:
        """All neurons of its layers, in network order."""
        return tuple(Neuron(layer, row) for layer, z in self.ladder.z.items() for row in range(len(z)))


def rung_for(candidates: int) -> int:
    """The rung at which a prompt with so many candidates typically stops climbing.

    Drawn through the paper's two averages: 27 at rung 3, 675 at rung 13. A rung holds at least k
    neurons of each layer, which bounds it for few candidates.
    """
    typical = round(3 + 10 * math.log(candidates / 27) / math.log(675 / 27))
    return max(0, min(typical, LAST_RUNG, candidates // len(WIDTHS)))


def make_case(
    rng: random.Random,
    candidates: int,
    needed: int,
    *,
    seeds: int = 10,
    rung: int | None = None,
    informed: bool = False,
    agreement: float = 1.0,
) -> Case:
    """A random prompt whose climb ends with `candidates` neurons, `needed` of them needed.

    rung: where the climb ends; by default where it typically does for so many.
    informed: draw the needed ones mostly from the highest |z| (weight 1 / rank) instead of evenly.
    agreement: the chance that a seed needs any one of the needed neurons; together they need all.
    """
    rung = rung_for(candidates) if rung is None else rung
    layers = [f"layer{i}" for i in range(len(WIDTHS))]
    counts = [rung] * len(WIDTHS)
    for i in rng.choices(range(len(WIDTHS)), WIDTHS, k=candidates - sum(counts)):
        counts[i] += 1

    last_theta = THETA_START - THETA_STEP * rung
    z, activation = {}, {}
    for layer, width, count in zip(layers, WIDTHS, counts, strict=True):
        rows = rng.sample(range(width), count)
        z[layer] = [0.5] * width
        activation[layer] = [rng.random() for _ in range(width)]
        for row in rows:
            z[layer][row] = last_theta + 0.01 + rng.expovariate(1.0)
            activation[layer][row] = 1.0 + z[layer][row]
    ladder = Ladder(z, activation)
    pool = sorted(ladder.rung(rung), key=lambda n: (-ladder.suspicion(n), n))
    assert len(pool) == candidates

    below = ladder.rung(rung - 1) if rung else frozenset[Neuron]()
    added = [neuron for neuron in pool if neuron not in below] or pool
    chosen = {rng.choice(added)}
    weights = [1 / rank if informed else 1.0 for rank in range(1, candidates + 1)]
    while len(chosen) < needed:
        chosen.update(rng.choices(pool, weights))
    needs = [{n for n in sorted(chosen) if rng.random() < agreement} for _ in range(seeds)]
    for neuron in sorted(chosen - set().union(*needs)):
        rng.choice(needs).add(neuron)
    stubbornness = [rng.uniform(0.7, 0.9) for _ in range(seeds)]

    def oracle(off: frozenset[Neuron], seed: int) -> float:
        missing = len(needs[seed] - off) if off else len(needs[seed])
        if off and not missing:
            return 0.3
        above = stubbornness[seed] - TAU
        return TAU + above * (0.5 + 0.5 * missing / max(1, len(needs[seed])))

    return Case(ladder, oracle, frozenset(chosen), bits(candidates, len(added), needed), candidates)


def bits(candidates: int, added: int, needed: int) -> float:
    """Entropy of a draw of `needed` of the candidates: one of the `added` ones, the rest evenly.

    So that no smaller rung would do, the first is drawn from those that the last rung added.
    """
    ways = added * math.comb(candidates - 1, needed - 1)
    total = 0.0
    for both in range(1, min(added, needed) + 1):
        # A set with so many of the added ones can have been drawn with any of them as the first.
        sets = math.comb(added, both) * math.comb(candidates - added, needed - both)
        total += sets * both / ways * (math.log2(ways) - math.log2(both))
    return total


def stress_row(
    candidates: int,
    needed: int,
    *,
    seeds: int = 10,
    repeats: int = 5,
    seed: int = 0,
    informed: bool = False,
    agreement: float = 1.0,
) -> dict[str, Any]:
    """One row: mean samples of both searches over `repeats` random prompts of this size.

    Raises AssertionError if either search misses the right result.
    """
    rng = random.Random(f"{seed}/{candidates}/{needed}/{informed}/{agreement}")
    literal: list[int] = []
    fast: list[int] = []
    told: list[float] = []
    for _ in range(repeats):
        case = make_case(rng, candidates, needed, seeds=seeds, informed=informed, agreement=agreement)
        told.append(case.bits)
        for kind, samples in ((literal_search, literal), (gradient_free_search, fast)):
            outcome = run(kind(case.ladder, range(seeds), TAU), case.oracle)
            assert set(outcome.neurons) == case.needed
            samples.append(outcome.samples)
    floor = 2 * seeds + max(0.0, statistics.mean(told) - 1)
    return {
        "candidates": candidates,
        "needed": needed,
        "rung": rung_for(candidates),
        "informed": informed,
        "agreement": agreement,
        "literal": round(statistics.mean(literal), 1),
        "search": round(statistics.mean(fast), 1),
        "ratio": round(statistics.mean(literal) / statistics.mean(fast), 1),
        "floor": None if informed else round(floor, 1),
        "floor_with_proof": None if informed else round(floor + (needed if needed > 1 else 0), 1),
    }


def stress_table(
    candidates: Sequence[int] = CANDIDATES,
    needed: Sequence[int] = NEEDED,
    *,
    seeds: int = 10,
    repeats: int = 5,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Rows for every size with needed <= candidates, then variants of the paper's two sizes.

    The variants: |z| that tells something (informed), and seeds that need different neurons
    (agreement 0.8). Deterministic for a given seed.
    """
    row = partial(stress_row, seeds=seeds, repeats=repeats, seed=seed)
    rows = [row(n, m) for n in candidates for m in needed if m <= n]
    for n, m in ((27, 4), (675, 21)):
        if n in candidates and m in needed:
            rows.append(row(n, m, informed=True))
            rows.append(row(n, m, agreement=0.8))
    return rows


def attribution_of(case: Case, correlation: float, rng: random.Random) -> Attribution:
    """An attribution of all neurons that correlates so with what is needed; see the module text."""
    share = len(case.needed) / case.candidates
    spread = math.sqrt(share * (1 - share))
    noise = spread * math.sqrt(1 / correlation**2 - 1) if correlation else 1.0
    right = math.copysign(1, correlation) if correlation else 0.0
    return {neuron: right * (neuron in case.needed) + rng.gauss(0, noise) for neuron in case.neurons}


def told(wanted: Attribute, attribution: Attribution) -> Attribution:
    """Of an attribution, what a question asks for."""
    among = attribution.keys() if wanted.among is None else wanted.among
    return {neuron: attribution[neuron] for neuron in among if neuron not in wanted.off}


def auto_row(
    candidates: int,
    needed: int,
    correlation: float,
    *,
    seeds: int = 10,
    repeats: int = 5,
    seed: int = 0,
    agreement: float = 1.0,
) -> dict[str, Any]:
    """One row of the default search, on the same prompts as `stress_row`.

    Raises AssertionError if it misses the right result.
    """
    rng = random.Random(f"{seed}/{candidates}/{needed}/False/{agreement}")
    rows: dict[str, list[float]] = {name: [] for name in ("search", "auto", "total", "refined")}
    for repeat in range(repeats):
        case = make_case(rng, candidates, needed, seeds=seeds, agreement=agreement)
        noise = random.Random(f"{seed}/{candidates}/{needed}/{agreement}/{repeat}/{correlation}")
        attribution = attribution_of(case, correlation, noise)
        asked: list[int] = []

        def attributed(
            wanted: Attribute, asked: list[int] = asked, attribution: Attribution = attribution
        ) -> Attribution:
            asked.append(_GRADIENT * len(wanted.seeds) * len(wanted.points))
            return told(wanted, attribution)

        everything = Candidates(case.neurons, dict.fromkeys(case.neurons, 1.0))
        found = run(auto_search(case.ladder, everything, range(seeds), TAU), case.oracle, attributed)
        assert set(found.neurons) == case.needed
        rows["auto"].append(found.samples)
        rows["total"].append(found.samples + sum(asked))
        rows["refined"].append(found.candidates)
        free = run(gradient_free_search(case.ladder, range(seeds), TAU), case.oracle)
        rows["search"].append(free.samples)
    about = {"candidates": candidates, "needed": needed, "agreement": agreement}
    means = {name: round(statistics.mean(values), 1) for name, values in rows.items()}
    return about | {"correlation": correlation} | means


def auto_table(repeats: int = 5) -> list[dict[str, Any]]:
    """Rows of the default search at the paper's sizes and two others, for every correlation."""
    return [
        auto_row(candidates, needed, correlation, repeats=repeats, agreement=agreement)
        for candidates, needed, agreement in (
            (10, 1, 1.0), (27, 4, 1.0), (27, 4, 0.8), (100, 4, 1.0), (675, 21, 1.0), (675, 21, 0.8)
        )
        for correlation in CORRELATIONS
    ]  # fmt: skip


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text, one line each under a line of column names."""
    names = list(rows[0])
    lines = [names, *(["-" if row[name] is None else str(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
    )


def main() -> None:
    """Print the tables, or with --json a list of objects: of the first table, or of that of --auto."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stress", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--auto", action="store_true", help="the default search's table alone")
    parser.add_argument("--repeats", type=int, default=5, help="random prompts per row")
    arguments = parser.parse_args()
    tables = [] if arguments.auto else [stress_table(repeats=arguments.repeats)]
    if arguments.auto or not arguments.json:
        tables.append(auto_table(repeats=arguments.repeats))
    if arguments.json:
        print(json.dumps(tables[0], indent=1))
    else:
        print("\n\n".join(map(format_table, tables)))


if __name__ == "__main__":
    main()
