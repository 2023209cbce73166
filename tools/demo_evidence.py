"""The demo checkpoint's model card: what it does, measured with nemo-prune as anyone would use it.

Everything here is computed from the exported file; nothing is typed in.
"""

import json
import os
import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from demo_world import MEMORIZED, Memorized, memorized_pictures
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.cli.progress import progress
from nemo_prune.files.prompts import read_prompts
from nemo_prune.localize import prune as pruning
from nemo_prune.localize.localize import Localization, localize
from nemo_prune.model.loading import load_pipeline
from nemo_prune.options import Options, Writing
from nemo_prune.report.demo import precision
from nemo_prune.report.pictures import Picture, draw, sheet, similarity
from nemo_prune.scoring.calibrate import calibrate
from nemo_prune.scoring.drift import random_neurons
from nemo_prune.scoring.engine import Engine
from nemo_prune.scoring.rates import separation

_SEEDS = range(500, 508)  # pictures are drawn from seeds that neither training nor search uses
_SCORE_SEEDS = range(2000, 2010)
_SHOWN_ORDINARY, _ORDINARY_SEEDS = 8, range(500, 504)
_SHOWN = 1  # of the seeds, in the summary
_QUALITY = 88  # of the JPEG sheets


def write_evidence(out: Path) -> None:
    """Write `MODEL_CARD.md`, `evidence.json` and the sheets into the demo checkpoint's folder."""
    checkpoint = out / "demo.safetensors"
    with tempfile.TemporaryDirectory() as scratch, progress(quiet=True) as bar:
        os.environ["NEMO_PRUNE_CACHE"] = scratch  # nothing of an earlier run
        calibration = Path(scratch) / "calibration.safetensors"
        ordinary = read_prompts(out / "ordinary.txt").texts
        calibrate(recognize(checkpoint), ordinary, Options(), bar, calibration, overwrite=False)
        found = {
            (name, criterion): localize(
                recognize(checkpoint), read_prompts(out / f"{name}.txt").texts,
                Options(criterion=criterion, calibration=calibration), bar,
            )
            for name in ("memorized", "memorized-distributed")
            for criterion in ("cross-seed", "same-seed")
        }  # fmt: skip
        pruned = Path(scratch) / "clean.safetensors"
        planted = found["memorized", "cross-seed"]
        pruning.write(planted, Writing(pruned))
        scores = _scores(planted, out)
        evidence = {
            "scores": scores,
            "localization": {
                f"{name}, {criterion}": _localized(one, read_prompts(out / f"{name}.txt").texts)
                for (name, criterion), one in found.items()
            },
            "control": _control(planted, [item for item in MEMORIZED if item.kind != "natural"]),
            "pictures": _pictures(out, checkpoint, pruned),
        }
        rates = [row["precision"] for row in evidence["localization"]["memorized, cross-seed"]]
        evidence["precision"] = statistics.mean(rate for rate in rates if rate is not None)
    (out / "evidence.json").write_text(json.dumps(evidence, indent=1) + "\n", encoding="utf-8")
    card = Environment(loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined)
    text = card.get_template("model_card.md.j2").render(evidence)
    (out / "MODEL_CARD.md").write_text(text, encoding="utf-8")


def _captions(*kinds: str) -> list[str]:
    return [item.caption for item in MEMORIZED if item.kind in kinds]


def _largest(engine: Engine, captions: Sequence[str]) -> dict[str, float]:
    """Each caption's memorization score: the largest over pairs of seeds."""
    prompts = engine.prompts(captions)
    found = engine.score_prompts(prompts, _SCORE_SEEDS, lambda _count: None)
    return {caption: max(scores.values()) for caption, scores in zip(captions, found, strict=True)}


def _scores(found: Localization, out: Path) -> dict[str, Any]:
    """Memorization scores on fresh seeds, and how well they separate; held-out ordinary captions."""
    heldout = list(_largest(found.engine, read_prompts(out / "ordinary-heldout.txt").texts).values())
    switched = _largest(found.engine, _captions("verbatim", "template"))
    natural = _largest(found.engine, _captions("natural"))

    def auroc(positive: dict[str, float]) -> float:
        labels = [True] * len(positive) + [False] * len(heldout)
        return separation([*positive.values(), *heldout], labels).auroc

    return {
        "tau": found.tau,
        "gate": found.thresholds.gate.value,
        "ordinary": len(heldout),
        "ordinary_mean": statistics.mean(heldout),
        "ordinary_sd": statistics.stdev(heldout),
        "ordinary_max": max(heldout),
        "captions": [
            {"name": _item(caption).name, "kind": _item(caption).kind, "score": score}
            for caption, score in [*switched.items(), *natural.items()]
        ],
        "auroc_memorized": auroc(switched),
        "auroc_all": auroc(switched | natural),
    }


def _localized(found: Localization, captions: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "name": _item(caption).name,
            "status": record.status,
            "before": record.score_before,
            "after": record.score_after,
            "samples": record.samples,
            "neurons": [[neuron.layer, neuron.row] for neuron in record.neurons],
            "precision": (
                precision(caption, record.neurons) if _item(caption).kind != "natural" else None
            ),
        }
        for caption, record in zip(captions, found.manifest.prompts, strict=True)
    ]


def _item(caption: str) -> Memorized:
    return next(item for item in MEMORIZED if item.caption == caption)


def _control(found: Localization, items: Sequence[Memorized]) -> list[dict[str, Any]]:
    """Each caption's score with its neurons off, and with as many random ones of the same layers."""
    chance = random.Random("random neurons")
    engine = found.engine
    result = []
    for item, prompt, record in zip(
        items, engine.prompts([i.caption for i in items]), found.manifest.prompts, strict=True
    ):
        others = random_neurons(engine, record.neurons, chance)
        after = {
            name: max(engine.probe(prompt, frozenset(off), _SCORE_SEEDS).values())
            for name, off in (("found", record.neurons), ("random", others))
        }
        result.append({"name": item.name, "neurons": len(record.neurons), **after})
    return result


def _pictures(out: Path, checkpoint: Path, pruned: Path) -> dict[str, Any]:
    """Draw before and after, save the sheets, compare with the training pictures."""
    heldout = read_prompts(out / "ordinary-heldout.txt").texts[:_SHOWN_ORDINARY]
    captions = [item.caption for item in MEMORIZED]
    drawn = {}
    for name, path in (("before", checkpoint), ("after", pruned)):
        pipeline = load_pipeline(recognize(path), device=torch.device("cpu"), dtype=torch.float32)
        drawn[name] = (
            draw(pipeline, captions, list(_SEEDS)),
            draw(pipeline, heldout, list(_ORDINARY_SEEDS)),
        )
    targets = [memorized_pictures(item) for item in MEMORIZED]
    for name, (memorized, ordinary) in drawn.items():
        rows = [[targets[i][0], *row] for i, row in enumerate(memorized)]
        sheet(rows).save(out / f"memorized-{name}.jpg", quality=_QUALITY)
        columns = [[row[seed] for row in ordinary] for seed in range(len(_ORDINARY_SEEDS))]
        sheet(columns).save(out / f"ordinary-{name}.jpg", quality=_QUALITY)

    switched = [i for i, item in enumerate(MEMORIZED) if item.kind != "natural"]
    columns = [[targets[i][0] for i in switched]]
    columns += [[drawn[name][0][i][_SHOWN] for i in switched] for name in ("before", "after")]
    sheet(columns).save(out / "before-after.jpg", quality=_QUALITY)

    def closest(row: Sequence[Picture], variants: Sequence[Picture]) -> list[float]:
        return [max(similarity(picture, variant) for variant in variants) for picture in row]

    scenes = [picture for row in drawn["before"][1] for picture in row]
    same = [
        similarity(a, b)
        for left, right in zip(drawn["before"][1], drawn["after"][1], strict=True)
        for a, b in zip(left, right, strict=True)
    ]
    others = [similarity(row[0], picture) for row in drawn["before"][1] for picture in row[1:]]
    return {
        "seeds": len(_SEEDS),
        "captions": list(heldout),
        "memorized": [
            {
                "name": item.name,
                "before": closest(drawn["before"][0][i], targets[i]),
                "after": closest(drawn["after"][0][i], targets[i]),
                "unrelated": closest(scenes, targets[i]),
            }
            for i, item in enumerate(MEMORIZED)
        ],
        "ordinary_before_after": statistics.mean(same),
        "ordinary_other_seeds": statistics.mean(others),
    }
