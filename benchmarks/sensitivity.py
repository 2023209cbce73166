"""How the outcome depends on tau, the number of seeds and the timestep, on the demo checkpoint.

    python -m benchmarks.sensitivity [--list NAME] [--json] [--captions N] [--prompts N]

As in the paper's appendix: tau at mean - sd, mean, mean + sd (the default) and mean + 2 sd of
ordinary prompts' scores, against neurons removed, prompts suppressed and drift of ordinary prompts.
Then the number of seeds, calibrated on the same captions, and the timestep, each calibrated at
that timestep on the first 100 of them.

"suppressed" counts memorized captions on ten seeds that no search used, by one and the same tau:
the default one, or at another timestep that one's own. "drift" is the relative change of
cross-attention outputs for held-out captions, "random" that of as many random neurons.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.search import SEEDS
from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.cli.progress import progress
from nemo_prune.files.prompts import read_prompts
from nemo_prune.localize.localize import FRESH_SEEDS, Localization, localize
from nemo_prune.options import Options
from nemo_prune.report.demo import CHECKPOINT, DATA
from nemo_prune.scoring import drift
from nemo_prune.scoring.calibrate import calibrate
from nemo_prune.scoring.calibration_file import read_calibration

_SHIFTS = (("mean - sd", -1), ("mean", 0), ("mean + sd", 1), ("mean + 2 sd", 2))
_FEWER, _MORE = 4, 20  # seeds, beside the ten
_TIMESTEPS = (981, 921, 801)  # beside 961
_TIMESTEP_CAPTIONS = 100  # to calibrate each timestep with: as many as a rate of 1 % needs
_ORDINARY = 20  # held-out captions whose drift is measured
_FRESH = range(FRESH_SEEDS, FRESH_SEEDS + len(SEEDS))


def row(name: str, found: Localization, prompts: Sequence[str], tau: float) -> dict[str, Any]:
    """One line of a table: what one setting found, judged on fresh seeds by `tau`."""
    engine = found.engine
    off = frozenset(found.manifest.neurons)
    after = [max(engine.probe(p, off, _FRESH)[0].values()) for p in engine.prompts(prompts)]
    heldout = engine.prompts(read_prompts(DATA / "ordinary-heldout.txt").texts[:_ORDINARY])
    moved = drift.measure(engine, heldout, off, seed=FRESH_SEEDS)
    return {
        "setting": name,
        "tau": round(found.tau, 3),
        "neurons a prompt": round(statistics.mean(len(r.neurons) for r in found.manifest.prompts), 1),
        "neurons in all": len(off),
        "suppressed": f"{sum(score <= tau for score in after)}/{len(after)}",
        "largest score after": round(max(after), 3),
        "drift": round(float(moved["pruned"]), 4),
        "random": round(float(moved["random"]), 4),
        "samples a prompt": round(found.cost["samples"] / len(prompts), 1),
    }


def measure(folder: Path, captions: Sequence[str], prompts: Sequence[str]) -> dict[str, Any]:
    """The three tables as lists of rows, and what tau is made of; `folder` takes calibrations."""
    checkpoint = recognize(CHECKPOINT)
    with progress(quiet=False) as bar:

        def calibrated(name: str, some: Sequence[str], **options: Any) -> Path:
            calibrate(checkpoint, some, Options(cache=False, **options), bar, folder / name, False)
            return folder / name

        def found(name: str, calibration: Path, judge: float | None = None, **options: Any) -> Any:
            localized = localize(
                checkpoint, prompts, Options(calibration=calibration, cache=False, **options), bar
            )
            return row(name, localized, prompts, localized.tau if judge is None else judge)

        # Of its scores after 2, 3, ... seeds every smaller number of seeds takes its own.
        every = calibrated("seeds", captions, seeds=_MORE)
        kept = read_calibration(every).scores
        assert kept is not None
        scores = [path[len(SEEDS) - 2] for path in kept.paths]
        mean, deviation = statistics.mean(scores), statistics.stdev(scores)
        default = mean + deviation
        by_tau = [
            found(f"tau = {name}", every, default, tau=round(mean + shift * deviation, 4))
            for name, shift in _SHIFTS
        ]
        usual = by_tau[[shift for _, shift in _SHIFTS].index(1)]
        by_seeds = [
            usual | {"setting": f"{seeds} seeds"}
            if seeds == len(SEEDS)
            else found(f"{seeds} seeds", every, default, seeds=seeds)
            for seeds in (_FEWER, len(SEEDS), _MORE)
        ]
        by_timestep = [usual | {"setting": "t = 961"}]
        for timestep in _TIMESTEPS:
            at = calibrated(f"t{timestep}", captions[:_TIMESTEP_CAPTIONS], timestep=timestep)
            by_timestep.append(found(f"t = {timestep}", at, timestep=timestep))
    return {
        "captions": len(captions),
        "mean": round(mean, 4),
        "sd": round(deviation, 4),
        "tau": by_tau,
        "seeds": by_seeds,
        "timestep": by_timestep,
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        f"Scores of {result['captions']} ordinary captions on ten seeds: mean {result['mean']}, "
        f"sd {result['sd']}.",
    ]
    for key in ("tau", "seeds", "timestep"):
        names = list(result[key][0])
        lines += ["", f"| {' | '.join(names)} |", "|---" + "|---:" * (len(names) - 1) + "|"]
        lines += [f"| {' | '.join(str(one[name]) for name in names)} |" for one in result[key]]
    return "\n".join(lines)


def main() -> None:
    """Print the tables as Markdown, or with --json one object."""
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    lists = ("memorized", "memorized-distributed")
    parser.add_argument("--list", choices=lists, default=lists[0], help="memorized captions")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--captions", type=int, help="ordinary captions to calibrate with (all)")
    parser.add_argument("--prompts", type=int, help="memorized captions to localize (all)")
    given = parser.parse_args()
    captions = read_prompts(DATA / "ordinary.txt").texts[: given.captions]
    prompts = read_prompts(DATA / f"{given.list}.txt").texts[: given.prompts]
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), captions, prompts)
    print(json.dumps(result) if given.json else table(result))


if __name__ == "__main__":
    main()
