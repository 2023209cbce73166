"""How well both measures tell memorized captions of the demo from ordinary ones.

    python -m benchmarks.detection [--json] [--device auto] [--precision auto]

tau, the gate and the margins come from `ordinary.txt`; the ordinary side is `ordinary-heldout.txt`,
which neither training nor thresholds have seen. Every caption is scored on all ten seeds once;
early stopping is replayed on those scores, which gives exactly what `detect` would have decided
after how many samples. Captions whose memorization was not planted (`memorized-distributed.txt`)
are counted apart and with the others.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.files.prompts import read_prompts
from nemo_prune.options import DEFAULT_FPR, Options
from nemo_prune.report.demo import CHECKPOINT, DATA
from nemo_prune.scoring.detect import score_paths
from nemo_prune.scoring.opening import open_engine
from nemo_prune.scoring.rates import separation
from nemo_prune.scoring.thresholds import decided, gate_from, margins_from, tau_from

SEEDS = range(10)


@dataclass(frozen=True)
class Scored:
    """Of each caption the score after 2, 3, ... seeds, and the mean noise norm over all."""

    paths: Sequence[Sequence[float]]
    norms: Sequence[float]

    @property
    def scores(self) -> list[float]:
        return [path[-1] for path in self.paths]

    def __add__(self, other: "Scored") -> "Scored":
        return Scored([*self.paths, *other.paths], [*self.norms, *other.norms])


def early(path: Sequence[float], gate: float, margins: Sequence[float]) -> tuple[int, bool]:
    """How many seeds `detect` would have taken, and its decision."""
    for seeds, score in enumerate(path, start=2):
        if decided(score, seeds, gate, margins):
            return seeds, score > gate
    return len(path) + 1, path[-1] > gate


def figures(
    calibration: Scored, ordinary: Scored, planted: Scored, distributed: Scored
) -> dict[str, Any]:
    """Everything that is claimed about detection, from scores alone."""
    tau = tau_from(calibration.scores)
    gate = gate_from(calibration.scores, DEFAULT_FPR, tau)
    margins = margins_from(calibration.paths)
    groups = {"ordinary": ordinary, "memorized": planted, "distributed": distributed}
    stopping, equal = {}, []
    for name, group in groups.items():
        found = [early(path, gate.value, margins) for path in group.paths]
        same = [one[1] == (score > gate.value) for one, score in zip(found, group.scores, strict=True)]
        equal += same
        stopping[name] = {
            "captions": len(found),
            "samples_per_caption": sum(seeds for seeds, _ in found) / len(found),
            "above_gate": sum(score > gate.value for score in group.scores) / len(found),
            "decisions_equal": sum(same) / len(same),
        }
    result: dict[str, Any] = {
        "tau": tau,
        "gate": asdict(gate),
        "margins": margins,
        "false_findings_at_gate": stopping["ordinary"]["above_gate"],
        "share_of_samples_ordinary": stopping["ordinary"]["samples_per_caption"] / len(SEEDS),
        "decisions_equal": sum(equal) / len(equal),
        "groups": stopping,
        "separation": {},
    }
    for name, positive in (("memorized", planted), ("memorized and distributed", planted + distributed)):
        labels = [True] * len(positive.norms) + [False] * len(ordinary.norms)
        both = positive + ordinary
        result["separation"][name] = {
            measure: {"auroc": found.auroc, "tpr_at_fpr_1": found.tpr_at_fpr_1}
            for measure, found in (
                ("score", separation(both.scores, labels)),
                ("noise_norm", separation(both.norms, labels)),
            )
        }
    return result


def measure(options: Options) -> dict[str, Any]:
    """Score all captions of the demo and return the figures; 5,100 denoiser samples."""
    engine = open_engine(recognize(CHECKPOINT), options)
    scored = [
        Scored(*score_paths(engine, read_prompts(DATA / f"{name}.txt").texts, SEEDS))
        for name in ("ordinary", "ordinary-heldout", "memorized", "memorized-distributed")
    ]
    return figures(*scored)


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    gate = result["gate"]
    high = "none" if gate["high"] is None else f"{gate['high']:.3f}"
    lines = [
        f"tau {result['tau']:.3f}; gate {gate['value']:.3f} at a rate of {gate['fpr']:g} from "
        f"{gate['prompts']} captions, 95 % interval {gate['low']:.3f} to {high}",
        "",
        "| captions | measure | AUROC | TPR at 1 % FPR |",
        "|---|---|---:|---:|",
    ]
    for name, measures in result["separation"].items():
        for key, found in measures.items():
            label = key.replace("_", " ")
            lines.append(f"| {name} | {label} | {found['auroc']:.4f} | {found['tpr_at_fpr_1']:.3f} |")
    lines += [
        "",
        "| captions | number | above the gate | samples a caption, of 10 | decisions as with 10 |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in result["groups"].items():
        lines.append(
            f"| {name} | {row['captions']} | {row['above_gate']:.3f} | "
            f"{row['samples_per_caption']:.2f} | {row['decisions_equal']:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    given = parser.parse_args()
    result = measure(Options(device=given.device, precision=given.precision))
    print(json.dumps(result) if given.json else table(result))


if __name__ == "__main__":
    main()
