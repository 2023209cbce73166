"""What pruning does to the demo checkpoint: the union against each prompt's own neurons, and what
it costs ordinary pictures.

    python -m benchmarks.side_effects [--json] [--ordinary N] [--images N] [--picture-steps N]

The paper switches off each prompt's own neurons; a file loses the union of all. Both are scored
and drawn here, for every memorized caption, and compared with the training picture. Ordinary
captions that training never saw are drawn by the original, by the pruned model and by one that
lost as many random neurons in each layer; a small classifier of the demo's world
(`benchmarks.demo_judge`) says how often shape and colour are what the caption asks for.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.demo_judge import accuracy, train_judge
from nemo_prune.checkpoint.apply import write_model
from nemo_prune.checkpoint.checkpoint import Checkpoint
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.cli.progress import progress
from nemo_prune.files.prompts import read_prompts
from nemo_prune.localize import prune as pruning
from nemo_prune.localize.localize import FRESH_SEEDS, Localization, localize
from nemo_prune.model.loading import load_pipeline
from nemo_prune.options import Options, Progress, Writing
from nemo_prune.report import demo
from nemo_prune.report.gallery import PictureSettings
from nemo_prune.report.inputs import inputs_of_run
from nemo_prune.report.likeness import Likeness, mean, open_likeness
from nemo_prune.report.pictures import Picture, draw
from nemo_prune.report.targets import open_target
from nemo_prune.report.verify import verify
from nemo_prune.scoring.drift import random_neurons


def measure(folder: Path, ordinary: int, settings: PictureSettings, bar: Progress) -> dict[str, Any]:
    """Everything, as plain JSON; `folder` takes the pruned checkpoints."""
    checkpoint = recognize(demo.CHECKPOINT)
    prompts = read_prompts(demo.DATA / "memorized.txt").texts
    calibration = read_prompts(demo.DATA / "ordinary.txt").texts
    captions = read_prompts(demo.DATA / "ordinary-heldout.txt").texts[:ordinary]
    found = localize(checkpoint, prompts, Options(), bar, calibration_prompts=calibration)
    pruned = folder / "union.safetensors"
    pruning.write(found, Writing(pruned))
    inputs = inputs_of_run(found, pruned, prompts, captions, "ordinary-heldout.txt")
    verified = verify(inputs, Likeness(), PictureSettings(images=0), bar).data
    likeness = open_likeness()
    prompts_table = _prompts(found, folder, pruned, prompts, likeness, settings, bar)
    for row, entry in zip(prompts_table, verified["prompts"], strict=True):
        row["score"] = {
            "before": entry["score_before"], "own": entry["score_own"], "union": entry["score_after"],
        }  # fmt: skip
    return {
        "checkpoint": found.manifest.source["sha256"],
        "tau": found.tau,
        "neurons": len(found.manifest.neurons),
        "dropped": found.cost["neurons_dropped"],
        "cost": found.cost,
        "prompts": prompts_table,
        "drift": {key: verified["drift"][key] for key in ("pruned", "random", "random_draws", "ratio")},
        "ordinary": _ordinary(found, folder, pruned, captions, likeness, settings, bar),
    }


def _pictures(
    checkpoint: Checkpoint, prompts: Sequence[str], seeds: Sequence[int], settings: PictureSettings
) -> list[list[Picture]]:
    pipeline = load_pipeline(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    return draw(pipeline, prompts, seeds, steps=settings.steps, guidance=settings.guidance)


def _without(found: Localization, neurons: Sequence[Neuron], out: Path) -> Checkpoint:
    write_model(found.checkpoint, neurons, out, {}, overwrite=True)
    return recognize(out)


def _prompts(
    found: Localization,
    folder: Path,
    pruned: Path,
    prompts: Sequence[str],
    likeness: Likeness,
    settings: PictureSettings,
    bar: Progress,
) -> list[dict[str, Any]]:
    """Each memorized caption's similarity to its training picture: before, own off, union off."""
    truth = demo.planted()
    seeds = range(FRESH_SEEDS, FRESH_SEEDS + settings.images)
    bar.stage("drawing memorized captions", len(prompts), "captions")
    rows = []
    for text, record in zip(prompts, found.manifest.prompts, strict=True):
        models = {
            "before": found.checkpoint,
            "own": _without(found, record.neurons, folder / "own.safetensors"),
            "union": recognize(pruned),
        }
        similarity = {}
        for name, checkpoint in models.items():
            (drawn,) = _pictures(checkpoint, [text], seeds, settings)
            height, width = drawn[0].shape[:2]
            picture = open_target(demo.DATA / "targets" / truth[text]["target"], width, height)
            target = likeness.describe(picture)
            similarity[name] = mean(
                [likeness.to_target(target, likeness.describe(one)) for one in drawn]
            )
        rows.append({
            "name": truth[text]["name"], "kind": truth[text]["kind"], "status": record.status,
            "neurons": len(record.neurons), "similarity": similarity,
        })  # fmt: skip
        bar.advance()
    return rows


def _ordinary(
    found: Localization,
    folder: Path,
    pruned: Path,
    captions: Sequence[str],
    likeness: Likeness,
    settings: PictureSettings,
    bar: Progress,
) -> dict[str, Any]:
    """Ordinary captions, one picture each: accuracy, and similarity to the original's picture."""
    bar.stage("training the judge", 1, "classifier")
    judge = train_judge()
    bar.advance()
    rng = random.Random(f"{FRESH_SEEDS} side effects")
    control = random_neurons(found.engine, found.manifest.neurons, rng)
    models = {
        "before": found.checkpoint,
        "union": recognize(pruned),
        "random": _without(found, sorted(control), folder / "random.safetensors"),
    }
    bar.stage("drawing ordinary captions", len(models), "models")
    result: dict[str, Any] = {}
    original = None
    for name, checkpoint in models.items():
        drawn = [row[0] for row in _pictures(checkpoint, captions, [0], settings)]
        described = [likeness.describe(picture) for picture in drawn]
        original = original or described
        pairs = zip(original, described, strict=True)
        result[name] = {
            "accuracy": asdict(accuracy(judge, drawn, captions)),
            "to_original": mean([likeness.compare(a, b) for a, b in pairs]),
        }
        bar.advance()
    return result


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "| caption | kind | neurons | score before | own | union | MS-SSIM before | own | union |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["prompts"]:
        score, similarity = row["score"], row["similarity"]
        numbers = [score["before"], score["own"], score["union"]]
        numbers += [similarity[name]["ms_ssim"] for name in ("before", "own", "union")]
        cells = ["–" if number is None else f"{number:.2f}" for number in numbers]
        lines.append(f"| {row['name']} | {row['kind']} | {row['neurons']} | {' | '.join(cells)} |")
    drift = result["drift"]
    lines += [
        "",
        f"{result['neurons']} neurons in the union, {result['dropped']:.0f} dropped as not needed; "
        f"tau {result['tau']}. Drift of ordinary prompts {100 * drift['pruned']:.2f} %, of as many "
        f"random neurons {100 * drift['random']:.2f} %.",
        "",
        "| ordinary captions | shape right | colour right | both | MS-SSIM to the original's picture |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in result["ordinary"].items():
        right = row["accuracy"]
        lines.append(
            f"| {name} ({right['pictures']}) | {right['shape']:.2f} | {right['colour']:.2f} | "
            f"{right['both']:.2f} | {row['to_original']['ms_ssim']:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--ordinary", type=int, default=60, help="ordinary captions (default: 60)")
    parser.add_argument(
        "--images", type=int, default=4, help="pictures a memorized caption (default: 4)"
    )
    parser.add_argument("--picture-steps", type=int, default=30, help="DDIM steps (default: 30)")
    options = parser.parse_args()
    settings = PictureSettings(images=options.images, steps=options.picture_steps)
    with tempfile.TemporaryDirectory() as folder, progress(quiet=False) as bar:
        result = measure(Path(folder), options.ordinary, settings, bar)
    print(json.dumps(result) if options.json else table(result))


if __name__ == "__main__":
    main()
