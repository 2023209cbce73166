"""The second half of the main job: write the pruned checkpoint, check it, sum up.

Imports torch; everything that a torch-free verb needs lies in `surgery` and `manifest`.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nemo_prune.checkpoint.apply import Written, write_model
from nemo_prune.checkpoint.manifest import PromptRecord
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.checkpoint.statuses import Status
from nemo_prune.localize.localize import FRESH_SEEDS, Localization
from nemo_prune.options import Progress, Writing
from nemo_prune.scoring import drift
from nemo_prune.scoring.engine import Baseline, Engine, Prompt
from nemo_prune.scoring.memory import peak_memory
from nemo_prune.scoring.opening import open_engine


def write(found: Localization, writing: Writing) -> Written:
    """Write the pruned checkpoint to `writing.output`: the union of all prompts' neurons is zeroed.

    Raises what `write_model` raises.
    """
    assert writing.output is not None
    provenance = {
        "tau": str(found.tau),
        "gate": str(found.thresholds.gate.value),
        "criterion": found.options.criterion,
        "timestep": str(found.engine.timestep),
        "prompts": str(len(found.manifest.prompts)),
    }
    return write_model(
        found.checkpoint,
        found.manifest.neurons,
        writing.output,
        provenance,
        overwrite=writing.overwrite,
        undo=writing.undo,
        link=writing.link,
        drop_pickles=writing.drop_pickles,
        sidecars=writing.sidecars,
        hashed=True,
    )


def check(found: Localization, pruned: Path, prompts: Sequence[str], progress: Progress) -> Localization:
    """Load the written file and score every memorized prompt against the original.

    The seeds are ones that the search did not use. The records' `score_after` and `status` become
    what this check says: it sees the union of all neurons, in the file itself. What trajectories
    said with the same rows masked stands. The original's weights are given back before the written
    ones are loaded, so memory holds one model at a time.
    """
    started = time.monotonic()
    fresh = range(FRESH_SEEDS, FRESH_SEEDS + found.options.seeds)
    original = found.engine
    before = original.cost.samples
    records = list(found.manifest.prompts)
    searched = [record.index for record in records if record.status != Status.NOT_MEMORIZED]
    progress.stage("checking the written file", len(searched), "prompts")
    texts = [prompts[index] for index in searched]
    baselines = original.each(Baselines(original, fresh), original.prompts(texts), numbers=searched)
    original.close()
    original.model.release()
    other = open_engine(open_checkpoint(pruned), found.options, progress)
    for index, baseline, prompt in zip(searched, baselines, other.prompts(texts), strict=True):
        after = max(original.compare(baseline, other, prompt, fresh).values())
        status = Status(records[index].status)
        if after > found.tau:
            status = Status.NOT_REMOVABLE if status == Status.NOT_REMOVABLE else Status.STILL_MEMORIZED
        elif status == Status.NOT_REMOVABLE and found.options.confirm == "none":
            status = Status.SUPPRESSED
        records[index] = replace(records[index], score_after=after, status=status)
        progress.advance()
    seconds = round(found.cost["seconds"] + time.monotonic() - started, 1)
    samples = original.cost.samples - before + other.cost.samples
    samples += int(found.cost["check_samples"])
    return replace(
        found,
        manifest=replace(found.manifest, prompts=tuple(records)),
        cost={**found.cost, "seconds": seconds, "check_samples": samples},
    )


@dataclass(frozen=True)
class Baselines:
    """Work: the noise differences of prompts on some seeds."""

    engine: Engine
    seeds: Sequence[int]

    def __call__(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Baseline]]:
        for place, prompt in enumerate(prompts):
            yield place, self.engine.baseline(prompt, self.seeds)


def expected_drift(found: Localization, ordinary: Sequence[str], progress: Progress) -> float:
    """Mean relative change of ordinary prompts' cross-attention outputs if the union were removed."""
    progress.stage("measuring drift", len(ordinary), "ordinary prompts")
    engine = found.engine
    measured = drift.measure(
        engine, engine.prompts(ordinary), found.manifest.neurons, seed=FRESH_SEEDS,
        advance=progress.advance,
    )  # fmt: skip
    return float(measured["pruned"])


def summary(found: Localization, written: Written | None) -> dict[str, Any]:
    """The job's result as plain JSON: the object that `--json` prints."""
    manifest = found.manifest
    peak = peak_memory(found.engine.model.device)
    return {
        "version": manifest.version,
        "source": {"path": str(found.checkpoint.path), "sha256": manifest.source["sha256"]},
        "output": written and {"path": str(written.path), "sha256": written.sha256},
        **found.thresholds.as_json(),
        "statistics_from": found.statistics_from,
        "criterion": found.options.criterion,
        "confirm": found.options.confirm,
        "prediction": manifest.options["prediction"],
        "prompts": [_prompt_json(record) | _further(found, record.index) for record in manifest.prompts],
        "neurons": _neurons_json(manifest.neurons),
        "cost": {**found.cost, "peak_memory_mb": round(peak / 1e6)},
    }


def _prompt_json(record: PromptRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "index": record.index,
        "status": record.status,
        "score_before": record.score_before,
        "score_after": record.score_after,
        "neurons": _neurons_json(record.neurons),
        "trajectory": record.trajectory,
        "samples": record.samples,
        "trajectory_samples": record.trajectory_samples,
        "search": record.search,
        "truncated": record.truncated,
    }
    return fields | ({"text": record.text} if record.text is not None else {})


def _further(found: Localization, index: int) -> dict[str, Any]:
    """What searching further for a drawn picture showed: neurons added, and what was left of it."""
    outcomes = found.confirmed.outcomes.get(index)
    if not outcomes:
        return {}
    return {
        "added": len(found.confirmed.neurons.get(index, ())),
        "all_layers": index in found.confirmed.widened,
        "minimal": index not in found.confirmed.rough,
        "too_harmful": index in found.confirmed.harmful,
        "tradeoff": [
            {"neurons": count, "remaining": left}
            for outcome in outcomes
            for count, left in outcome.tradeoff
        ],
    }


def _neurons_json(neurons: Sequence[Neuron]) -> list[dict[str, Any]]:
    return [neuron._asdict() for neuron in neurons]
