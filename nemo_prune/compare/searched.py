"""This tool's own search as a method: each prompt's own neurons, or the union of all prompts'."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from nemo_prune.compare.bench import Bench
from nemo_prune.compare.methods import State
from nemo_prune.compare.rows import Multiplying, by_module, state_of
from nemo_prune.errors import Interrupted
from nemo_prune.localize.localize import Localization, localize


@dataclass(frozen=True)
class Nemo(Multiplying):
    """The default search, as `prune` runs it: gate, search, repair, confirmation by trajectories.

    Of one prompt its own neurons alone, as the paper's Table 1 blocks them; of the whole list the union
    that a pruned file lacks.
    """

    def prepare(self, bench: Bench, prompt: str | None) -> State:
        return searched(bench, bench.prompts if self.whole_list or prompt is None else [prompt])


def searched(bench: Bench, prompts: Sequence[str]) -> State:
    """The state of a localization of these prompts with the bench's options."""
    began, before = time.monotonic(), bench.samples
    _ = bench.calibration.statistics, bench.calibration.thresholds
    calibrated = time.monotonic()
    try:
        found = localize(
            bench.checkpoint, prompts, bench.options, bench.progress,
            calibration_prompts=bench.calibration_prompts, ordinary=bench.calibration,
        )  # fmt: skip
    except Interrupted:
        raise KeyboardInterrupt from None
    samples = round(sum(found.cost[f"{kind}samples"] for kind in ("", "check_", "trajectory_")))
    spent = bench.samples - before - samples  # on tau and the gate, and on ordinary trajectories
    return state_of(
        [by_module(found.manifest.neurons)],
        samples,
        time.monotonic() - calibrated,
        _notes(found),
        status=[str(record.status) for record in found.manifest.prompts],
        calibrating={"seconds": round(calibrated - began, 3), "samples": spent},
    )


def _notes(found: Localization) -> list[str]:
    statuses = [record.status for record in found.manifest.prompts]
    return [f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses)]
