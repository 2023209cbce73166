"""How the outcome depends on tau, the number of seeds and the timestep, on the demo checkpoint.

    python -m benchmarks.sensitivity [--json]

As in the paper's appendix: tau at mean - sd, mean, mean + sd (the default) and mean + 2 sd of
ordinary prompts' scores, against neurons removed, prompts suppressed (on fresh seeds, by the
default tau) and drift of ordinary prompts' cross-attention outputs. Then the number of seeds and
the timestep, each with its own calibration.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.search import SEEDS
from benchmarks.stress import format_table
from nemo_prune import drift
from nemo_prune.console import progress
from nemo_prune.demo import CHECKPOINT, DATA
from nemo_prune.detect import score_paths
from nemo_prune.families import recognize
from nemo_prune.localization import FRESH_SEEDS, Localization, localize
from nemo_prune.opening import Options, open_engine
from nemo_prune.prompts import read_prompts

_ORDINARY = 50  # held-out captions whose drift is measured
_FRESH = range(FRESH_SEEDS, FRESH_SEEDS + len(SEEDS))


def row(name: str, found: Localization, prompts: Sequence[str], tau: float) -> dict[str, Any]:
    """One line of the table: what one setting found, judged on fresh seeds by `tau`."""
    engine = found.engine
    off = frozenset(found.manifest.neurons)
    after = [max(engine.probe(p, off, _FRESH).values()) for p in engine.prompts(prompts)]
    heldout = engine.prompts(read_prompts(DATA / "ordinary-heldout.txt").texts[:_ORDINARY])
    moved = drift.measure(engine, heldout, found.manifest.neurons, seed=FRESH_SEEDS)
    return {
        "setting": name,
        "tau": round(found.tau, 3),
        "neurons": len(off),
        "suppressed": f"{sum(score <= tau for score in after)}/{len(after)}",
        "largest after": round(max(after), 3),
        "drift": round(float(moved["pruned"]), 4),
        "samples": int(found.cost["samples"]),
    }


def main() -> None:
    """Print the table, or with --json a list of objects."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sensitivity", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    as_json = parser.parse_args().json
    checkpoint = recognize(CHECKPOINT)
    prompts = read_prompts(DATA / "memorized.txt").texts
    ordinary = read_prompts(DATA / "ordinary.txt").texts
    scores = [path[-1] for path in score_paths(open_engine(checkpoint, Options()), ordinary, SEEDS)[0]]
    mean, deviation = statistics.mean(scores), statistics.stdev(scores)
    rows = []
    with progress(quiet=True) as bar:

        def run(name: str, options: Options, judge: float | None) -> None:
            found = localize(checkpoint, prompts, options, bar, calibration_prompts=ordinary)
            rows.append(row(name, found, prompts, found.tau if judge is None else judge))

        for name, shift in (("mean - sd", -1), ("mean", 0), ("mean + sd", 1), ("mean + 2 sd", 2)):
            run(f"tau {name}", Options(tau=round(mean + shift * deviation, 4)), mean + deviation)
        for seeds in (4, 20):
            run(f"{seeds} seeds", Options(seeds=seeds), mean + deviation)
        for timestep in (981, 921, 801):
            run(f"t = {timestep}", Options(timestep=timestep), None)
    print(json.dumps(rows) if as_json else format_table(rows))


if __name__ == "__main__":
    main()
