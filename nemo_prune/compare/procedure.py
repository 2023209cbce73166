"""The paper's procedure, its ablations, and the same search elsewhere: on the keys."""

import statistics
import time
from dataclasses import dataclass, replace
from typing import Any, Literal

from nemo_prune.checkpoint.checkpoint import ValueLayer
from nemo_prune.compare.bench import Bench
from nemo_prune.compare.methods import State
from nemo_prune.compare.rows import Multiplying, by_module, state_for, state_of
from nemo_prune.scoring.activations import ActivationStatistics, activation_statistics, ladders
from nemo_prune.scoring.engine import Engine, Job
from nemo_prune.scoring.searching import run_searches
from nemo_prune.search.group_testing import gradient_free_search
from nemo_prune.search.ladder import LAST_RUNG, Ladder
from nemo_prune.search.literal import literal_search
from nemo_prune.search.protocol import Outcome, Question, Search

_PUBLISHED_DEVIATION = 0.07
"""Of ordinary prompts' scores on Stable Diffusion 1: .288, .358, .428, .498 are the published steps."""


@dataclass(frozen=True)
class Procedure(Multiplying):
    """D1 to D4 of one prompt, scored by the same seed, at the bench's tau.

    literal: ask as the paper does, one candidate at a time; else by group testing, which starts from
    the
        same ladder and also ends where every neuron left was shown to be needed, for a fraction of the
        samples. Ablations vary the latter.
    place: the maps whose outputs are searched, "to_v" (neurons) or "to_k" (keys).
    layers: as `Options.layers` has them.
    deviations: standard deviations above the mean of ordinary prompts' scores at which tau lies; the
        paper's is 1.
    top_k, refine: whether the k largest activations of each layer are candidates too, and whether D4
        follows.

    As in the paper, a prompt of which no seed scores above tau gets no neurons; where the ladder ends
    above tau its last rung is refined at the score reached. Differs from the authors' code in what
    `literal_search` names, unless the options ask for `as_published`.
    """

    literal: bool = False
    place: Literal["to_v", "to_k"] = "to_v"
    layers: str | None = None
    deviations: float = 1.0
    top_k: bool = True
    refine: bool = True

    def prepare(self, bench: Bench, prompt: str | None) -> State:
        assert prompt is not None, "its state is a prompt's own"
        options = bench.options
        first, start = bench.samples, time.monotonic()
        engine, layers, ordinary = searcher(bench, self.layers or options.layers, self.place)
        tau = self.tau(bench)
        before, began = bench.samples, time.monotonic()
        calibrating = {"seconds": round(began - start, 3), "samples": before - first}
        (encoded,) = engine.prompts([prompt])
        (ladder,) = ladders(engine.model, layers, [encoded.text], ordinary)
        ladder = replace(ladder, top_k=self.top_k)
        stages = {"D1/D2": time.monotonic() - began, "score": 0.0, "D3": 0.0, "D4": 0.0}
        seeds = range(options.seeds)
        if self.literal or not self.refine:
            search = literal_search(
                ladder, seeds, tau, as_published=options.as_published, refine=self.refine
            )
        else:
            search = gradient_free_search(ladder, seeds, tau)
        names = [layer.name for layer in layers]
        found: list[Outcome] = run_searches(
            engine, [Job(encoded, timed(search, ladder, stages), layers=names)]
        )
        outcome = found[0]
        return state_of(
            [by_module(outcome.neurons)],
            bench.samples - before,
            time.monotonic() - began,
            [outcome.status],
            status=[outcome.status],
            tau=round(tau, 4),
            theta=outcome.theta,
            candidates=outcome.candidates,
            calibrating=calibrating,
            stages={name: round(seconds, 3) for name, seconds in stages.items()},
        )

    def tau(self, bench: Bench) -> float:
        """The threshold, so many deviations from where it lies in the paper."""
        found = bench.calibration.thresholds
        if self.deviations == 1:
            return found.tau
        spread = _PUBLISHED_DEVIATION
        if found.tau_source != "published":
            paths = bench.calibration.scores[0].paths
            spread = statistics.stdev(path[: bench.options.seeds - 1][-1] for path in paths)
        return found.tau + (self.deviations - 1) * spread


@dataclass(frozen=True)
class Scaled(Multiplying):
    """What `nemo` finds for a prompt, multiplied by a factor in place of 0."""

    factor: float = 0.0

    def prepare(self, bench: Bench, prompt: str | None) -> State:
        return {**state_for(bench, "nemo", prompt), "factor": self.factor}


def searcher(
    bench: Bench, wanted: str, place: str
) -> tuple[Engine, list[ValueLayer], ActivationStatistics]:
    """An engine that switches outputs of `place` off, its layers, and their ordinary activations.

    It shares the bench's model and cost. Scores are the paper's: with the unpruned difference of the
    same seed.
    """
    model = bench.loaded
    layers = list(bench.checkpoint.select(wanted))
    if place != "to_v":
        layers = [_at(layer, place) for layer in layers]
        every = [_at(layer, place) for layer in bench.checkpoint.value_layers]
        modules = {layer.name: model.unet.get_submodule(layer.name) for layer in every}
        model = replace(model, value_layers=modules)
    engine = Engine(
        model, timestep=bench.engine.timestep, seed=bench.options.seed, criterion="same-seed",
        batch_size=bench.options.batch_size, published=bench.engine.published,
    )  # fmt: skip
    engine.cost, engine.note = bench.engine.cost, bench.progress.note
    if place == "to_v":
        return engine, layers, bench.calibration.statistics[0]
    if (kept := bench.kept.get(place)) is None:
        captions = bench.calibration.captions
        bench.progress.stage(f"measuring ordinary activations of {place}", len(captions), "prompts")
        kept = activation_statistics(model, every, captions, advance=bench.progress.advance)
        bench.kept[place] = kept
    return engine, layers, kept


def _at(layer: ValueLayer, place: str) -> ValueLayer:
    return replace(layer, name=f"{layer.name.removesuffix('.to_v')}.{place}")


def timed(search: Search, ladder: Ladder, stages: dict[str, float]) -> Search:
    """The search, with the seconds that its questions took added to their stages.

    Questions about a rung of the ladder are of D3, further ones of D4.
    """
    rungs = {ladder.rung(rung) for rung in range(LAST_RUNG + 1)}
    asked = next(search)
    while True:
        began = time.monotonic()
        reply = yield asked
        off = asked.off if isinstance(asked, Question) else frozenset[Any]()
        stages["score" if not off else "D3" if off in rungs else "D4"] += time.monotonic() - began
        try:
            asked = search.send(reply)
        except StopIteration as end:
            outcome: Outcome = end.value
            return outcome
