"""The searches on checkpoints that memorized by duplication alone: what they cost, and what it is worth.

Part of `benchmarks.search`. Each folder is one that `benchmarks.natural` trained: `natural.safetensors`,
`memorized.txt`, `targets/`. Every search runs as `prune` runs it, with the repair of the union and the
confirmation by trajectories. Then, with the union off:

    drift       of held-out ordinary captions, beside as many random neurons
    pictures    the memorized captions' pictures of fresh seeds, by the report's rule: how many are near
    tradeoff    of the default search, for each photo: more and more of its own neurons, then all there
                are: how many, their drift, and r, the largest of eight seeds
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.stress import format_table
from nemo_prune.checkpoint.apply import write_model
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.cli.progress import progress
from nemo_prune.files.prompts import read_prompts
from nemo_prune.localize.localize import FRESH_SEEDS, Localization, localize
from nemo_prune.options import Options, Progress
from nemo_prune.report.demo import DATA
from nemo_prune.report.gallery import PictureSettings, draw_and_measure
from nemo_prune.report.likeness import open_likeness
from nemo_prune.report.targets import read_targets
from nemo_prune.scoring import drift
from nemo_prune.scoring.engine import Engine, Prompt, Sample

SEARCHES = ("literal", "gradient-free", "auto")
_CURVE_SEEDS = range(50_000, 50_008)  # never used by a search or a confirmation
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of a photo's own neurons
_CURVE_CAPTIONS = 6  # whose drift is measured at every point of a curve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--natural", type=Path, nargs="+", default=[], metavar="FOLDER")
    parser.add_argument("--searches", nargs="+", choices=SEARCHES, default=SEARCHES)
    parser.add_argument("--captions", type=int, help="of each folder, the first ones; default: all")
    parser.add_argument("--ordinary", type=int, default=20, help="held-out captions for drift")
    parser.add_argument("--pictures", type=int, default=8, help="seeds a caption; 0: none are drawn")
    parser.add_argument("--picture-steps", type=int, default=50)
    parser.add_argument("--no-tradeoff", action="store_true", help="leave the curves out")


def measure(
    given: argparse.Namespace, options: Options, sample_flops: Callable[[Engine], int]
) -> dict[str, Any]:
    """Folder's name -> search -> what it found and cost."""
    heldout = read_prompts(DATA / "ordinary-heldout.txt").texts[: given.ordinary]
    result: dict[str, Any] = {}
    with progress(quiet=False) as bar:
        for folder in given.natural:
            captions = read_prompts(folder / "memorized.txt").texts[: given.captions]
            result[folder.name] = {
                search: _search(
                    folder, captions, replace(options, search=search), heldout, given, sample_flops, bar
                )
                for search in given.searches
            }
    return result


def _search(
    folder: Path,
    captions: Sequence[str],
    options: Options,
    heldout: Sequence[str],
    given: argparse.Namespace,
    sample_flops: Callable[[Engine], int],
    bar: Progress,
) -> dict[str, Any]:
    found = localize(recognize(folder / "natural.safetensors"), captions, options, bar)
    engine, records = found.engine, found.manifest.prompts
    passes = sum(record.trajectory_samples for record in records)
    samples = found.cost["samples"] + found.cost["check_samples"]
    result: dict[str, Any] = {
        "tau": found.tau,
        "status": [str(record.status) for record in records],
        "neurons_per_prompt": [len(record.neurons) for record in records],
        "samples_per_prompt": [record.samples for record in records],
        "trajectory_passes_per_prompt": [record.trajectory_samples for record in records],
        "remaining": [record.trajectory for record in records],
        "widened": sorted(found.confirmed.widened),
        "samples": samples,
        "trajectory_passes": passes,
        "backward": found.cost["backward"],
        "seconds": found.cost["seconds"],
        "flops": round((samples + passes) * sample_flops(engine)),
        "union": len(found.manifest.neurons),
    }
    encoded = engine.prompts(heldout)
    off = frozenset(found.manifest.neurons)
    bar.stage("measuring drift", len(encoded), "captions")
    moved = drift.measure(engine, encoded, off, seed=FRESH_SEEDS, advance=bar.advance)
    result["drift"] = {name: moved[name] for name in ("pruned", "random", "ratio")}
    if options.search == "auto" and not given.no_tradeoff:
        bar.stage("drawing the trade-off", len(captions), "captions")
        result["tradeoff"] = []
        for index, prompt in enumerate(engine.prompts(captions)):
            result["tradeoff"].append(_curve(found, index, prompt, encoded[:_CURVE_CAPTIONS]))
            bar.advance()
    if given.pictures:
        result["pictures"] = _pictures(found, folder, captions, heldout, given, bar)
    return result


def _curve(
    found: Localization, index: int, prompt: Prompt, ordinary: Sequence[Prompt]
) -> list[dict[str, Any]]:
    """Neurons off, r, and drift, for more and more of a photo's own neurons; empty without a judge."""
    engine, record = found.engine, found.manifest.prompts[index]
    reference = found.references.get(index)
    if reference is None or not reference.judged:
        return []
    merit = {n: record.attribution.get(n, 0.0) / record.harm.get(n, 1.0) for n in record.neurons}
    own = sorted(record.neurons, key=lambda neuron: -merit[neuron])
    everything = [
        Neuron(name, row)
        for name, layer in engine.model.value_layers.items()
        for row in range(layer.out_features)
    ]
    points = []
    for part in [*(own[: round(share * len(own))] for share in _SHARES), everything]:
        off = frozenset(part)
        samples = [Sample(prompt, off, seed) for seed in _CURVE_SEEDS]
        ends = engine.trajectories(samples, reference.schedule)
        remaining = reference.remaining(dict(zip(_CURVE_SEEDS, ends, strict=True)))
        moved = drift.measure(engine, ordinary, off, seed=FRESH_SEEDS) if off else {"pruned": 0.0}
        points.append({"neurons": len(off), "r": max(remaining.values()), "drift": moved["pruned"]})
    return points


def _pictures(
    found: Localization,
    folder: Path,
    captions: Sequence[str],
    heldout: Sequence[str],
    given: argparse.Namespace,
    bar: Progress,
) -> dict[str, Any]:
    """How many of each caption's pictures are near what was memorized, before and with the union off.

    None where that cannot be judged. "ordinary": likeness of ordinary captions' pictures, same seed.
    """
    settings = PictureSettings(
        images=given.pictures,
        steps=given.picture_steps,
        targets=read_targets(folder / "targets", captions),
    )
    with tempfile.TemporaryDirectory() as temporary:
        pruned = Path(temporary) / "pruned.safetensors"
        write_model(found.checkpoint, found.manifest.neurons, pruned, {})
        measures, _ = draw_and_measure(
            (found.checkpoint, recognize(pruned)), found.options, settings,
            dict(enumerate(captions)), heldout, open_likeness(), bar,
        )  # fmt: skip
    rows = [measures["prompts"][index] for index in range(len(captions))]
    ordinary = [one["before_after"]["ms_ssim"] for one in measures["ordinary"].values()]
    return {
        "seeds": given.pictures,
        "near_before": [row.get("near_before") for row in rows],
        "near_after": [row.get("near_after") for row in rows],
        "ordinary": round(sum(ordinary) / len(ordinary), 4) if ordinary else None,
    }


def rendered(name: str, searches: dict[str, Any]) -> str:
    """The results of one folder as text."""
    rows = []
    for search, one in searches.items():
        near = one.get("pictures", {}).get("near_after", [])
        rows.append({
            "natural": name,
            "search": search,
            "samples": round(one["samples"]),
            "passes": one["trajectory_passes"],
            "TFLOP": round(one["flops"] / 1e12, 2),
            "seconds": one["seconds"],
            "neurons": " ".join(map(str, one["neurons_per_prompt"])),
            "union": one["union"],
            "drift": one["drift"]["pruned"],
            "random": one["drift"]["random"],
            "suppressed": f"{one['status'].count('suppressed')}/{len(one['status'])}",
            "still near": f"{sum(bool(count) for count in near)}/{len(near)}" if near else None,
        })  # fmt: skip
    parts = [format_table(rows)]
    for search, one in searches.items():
        for index, curve in enumerate(one.get("tradeoff", ())):
            points = "  ".join(f"{p['neurons']}: r {p['r']:.2f}, drift {p['drift']:.3f}" for p in curve)
            parts.append(f"{search}, caption {index}: {points or 'cannot be judged'}")
    return "\n".join(parts)
