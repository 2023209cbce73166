"""Repairing a union, on a denoiser whose needed neurons are known."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_engine import CHANNELS, TAU, TIMESTEP, Toy
from tiny import Told

from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.localize.repair import Repair, Repaired, Scope
from nemo_prune.model.denoiser import LoadedModel
from nemo_prune.options import Criterion
from nemo_prune.scoring.engine import Baseline, Engine, Prompt
from nemo_prune.search.auto import Candidates
from nemo_prune.search.group_testing import gradient_free_search
from nemo_prune.search.ladder import Ladder
from nemo_prune.search.protocol import Outcome, Search

SEEDS = 4


@pytest.fixture
def engine() -> Engine:
    return make_engine("cross-seed")


def make_engine(criterion: Criterion) -> Engine:
    unet = Toy().eval().requires_grad_(False)
    model = LoadedModel(
        family="sd1", unet=unet, text_encoders=(), scheduler_config={},
        alphas_cumprod=torch.linspace(1, 0, 1000), prediction_type="epsilon",
        latent_shape=(4, 16, 16), value_layers={"first": unet.layers[0], "second": unet.layers[1]},
        device=torch.device("cpu"), dtype=torch.float32,
    )  # fmt: skip
    return Engine(model, timestep=TIMESTEP, criterion=criterion)


def prompt(**drives: float) -> Prompt:
    text = torch.zeros(77, CHANNELS)
    for channel, strength in drives.items():
        text[:, int(channel.removeprefix("c"))] = strength
    return Prompt(text)


def begin(one: Prompt, seeds: Any) -> Search:
    activation = one.text[0].tolist()
    z = [10.0 if value else 0.0 for value in activation]
    layers = ("first", "second")
    return gradient_free_search(
        Ladder(dict.fromkeys(layers, z), dict.fromkeys(layers, activation)), tuple(seeds), TAU
    )


def outcome(status: Any, *rows: int) -> Outcome:
    neurons = tuple(Neuron(layer, row) for layer in ("first", "second") for row in rows)
    return Outcome(status, neurons, {0: 0.9}, (0,), {0: 0.2}, TAU, 5.0, len(neurons), 10, 2)


def fixed(
    engine: Engine, outcomes: dict[int, Outcome], prompts: dict[int, Prompt], rounds: int = 3
) -> Repaired:
    return repairing(engine, outcomes, prompts).run(rounds)


def repairing(
    engine: Engine, outcomes: dict[int, Outcome], prompts: dict[int, Prompt], begin: Any = begin
) -> Repair:
    scope = Scope([], Candidates((), {}), begin)
    return Repair(engine, outcomes, prompts, [scope], tau=TAU, seeds=SEEDS, progress=Told())


@pytest.mark.parametrize("criterion", ["same-seed", "cross-seed"])
def test_a_prompt_that_stays_memorized_is_searched_on_the_pruned_model(criterion: Criterion) -> None:
    engine = make_engine(criterion)
    prompts = {3: prompt(c0=2.0, c1=2.0)}
    found = fixed(engine, {3: outcome("localized", 1)}, prompts)
    assert {n.row for n in found.neurons[3]} == {0, 1}
    assert found.scores[3] <= TAU
    assert found.samples[3] > 0
    assert all(
        hook == {} for hook in (layer._forward_hooks for layer in engine.model.value_layers.values())
    )


def test_a_score_near_tau_is_probed_on_more_seeds(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten seeds may say "suppressed" where thirty do not; the seeds that say otherwise are searched."""
    asked: list[int] = []
    really = Engine.probe

    def fading(
        engine: Engine, one: Prompt, off: frozenset[Neuron], seeds: Any, known: Any = None
    ) -> tuple[dict[int, float], Baseline]:
        asked.append(len(seeds))
        found, baseline = really(engine, one, off, seeds, known)
        others = dict.fromkeys(found, 0.8 * TAU)
        if len(seeds) == 3 * SEEDS and len(off) == 2:
            others |= dict.fromkeys(list(seeds)[-SEEDS:], 1.1 * TAU)
        return others, baseline

    searched: list[tuple[int, ...]] = []

    def begun(one: Prompt, seeds: Any) -> Search:
        searched.append(tuple(seeds))
        return begin(one, seeds)

    monkeypatch.setattr(Engine, "probe", fading)
    prompts = {0: prompt(c0=2.0, c1=2.0)}
    found = repairing(engine, {0: outcome("localized", 1)}, prompts, begun).run(3)
    assert asked[:4] == [SEEDS, 3 * SEEDS, SEEDS, 3 * SEEDS]
    assert searched == [tuple(range(3 * SEEDS, 4 * SEEDS))]
    assert found.scores[0] <= TAU


def test_a_clear_score_is_not_probed_twice(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    really = Engine.probe

    def spy(
        engine: Engine, one: Prompt, off: frozenset[Neuron], seeds: Any, known: Any = None
    ) -> tuple[dict[int, float], Baseline]:
        asked.append(len(seeds))
        return really(engine, one, off, seeds, known)

    monkeypatch.setattr(Engine, "probe", spy)
    found = fixed(engine, {0: outcome("localized", 0)}, {0: prompt(c0=2.0)})
    assert found.scores[0] < TAU / 2
    assert asked == [SEEDS]


def test_without_rounds_it_is_probed_and_left(engine: Engine) -> None:
    found = fixed(engine, {0: outcome("localized", 1)}, {0: prompt(c0=2.0, c1=2.0)}, rounds=0)
    assert {n.row for n in found.neurons[0]} == {1}
    assert found.scores[0] > TAU
    assert found.confirming == 2 * SEEDS


def test_what_is_driven_past_the_value_layers_ends_not_removable(engine: Engine) -> None:
    """The search on the pruned model comes to the end of its ladder, once; nothing is added."""
    prompts = {0: prompt(c0=0.5, c5=3.0)}
    found = fixed(engine, {0: outcome("localized", 0)}, prompts)
    assert found.scores[0] > TAU
    assert {n.row for n in found.neurons[0]} == {0}
    again = fixed(engine, {0: outcome("not removable", 0)}, prompts)
    assert again.samples == {}


def test_one_neuron_that_a_second_search_found_is_kept(engine: Engine) -> None:
    """There is nothing to drop, and so nothing to ask."""
    nothing = replace(outcome("localized"), neurons=())
    found = fixed(engine, {0: nothing}, {0: prompt(c0=2.0)})
    assert found.samples
    assert len(found.off) >= 1
    lone = repairing(engine, {0: replace(nothing, neurons=(Neuron("first", 0),))}, {0: prompt()})
    lone.probe()
    lone.reduce()
    assert lone.result.off == {Neuron("first", 0)}


def test_neurons_that_no_prompt_needs_are_dropped(engine: Engine) -> None:
    prompts = {0: prompt(c0=2.0), 1: prompt(c1=2.0)}
    found = fixed(engine, {0: outcome("localized", 0, 3), 1: outcome("localized", 1, 4)}, prompts)
    assert {n.row for n in found.off} <= {0, 1}
    assert {n.row for n in found.dropped} >= {3, 4}
    assert max(found.scores.values()) <= TAU
    for index, one in prompts.items():
        assert max(engine.probe(one, found.off, range(500, 510))[0].values()) <= TAU, index


def test_what_fresh_seeds_miss_is_put_back(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = {0: prompt(c0=2.0), 1: prompt(c1=2.0)}
    outcomes = {0: outcome("localized", 0), 1: outcome("localized", 1)}
    keep = tuple(n for n in outcomes[0].neurons)  # a reduction that was fooled: all of prompt 1's go
    monkeypatch.setattr("nemo_prune.localize.repair.run_union", lambda *_arguments: keep)
    found = fixed(engine, outcomes, prompts)
    assert found.neurons[1] == outcomes[1].neurons
    assert found.dropped == ()


def test_what_another_prompt_misses_is_put_back_too(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompt 0 needs a neuron that only prompt 1 brought; the reduction was fooled into dropping it."""
    prompts = {0: prompt(c0=2.0, c1=2.0), 1: prompt(c2=2.0)}
    outcomes = {0: outcome("localized", 0), 1: outcome("localized", 1, 2)}
    keep = tuple(n for n in (*outcomes[0].neurons, *outcomes[1].neurons) if n.row != 1)
    monkeypatch.setattr("nemo_prune.localize.repair.run_union", lambda *_arguments: keep)
    found = fixed(engine, outcomes, prompts)
    assert found.dropped == ()
    for index, one in prompts.items():
        assert max(engine.probe(one, found.off, range(500, 510))[0].values()) <= TAU, index


def test_a_single_prompt_loses_what_a_second_search_made_superfluous(engine: Engine) -> None:
    prompts = {3: prompt(c0=2.0, c1=2.0)}
    found = fixed(engine, {3: outcome("localized", 1, 4)}, prompts)
    assert {n.row for n in found.off} <= {0, 1}
    assert {n.row for n in found.dropped} >= {4}
    assert max(engine.probe(prompts[3], found.off, range(500, 510))[0].values()) <= TAU


def test_a_union_of_nothing_is_fine(engine: Engine) -> None:
    assert fixed(engine, {}, {}).off == frozenset()


def test_a_prompt_that_the_searched_layers_cannot_suppress_is_searched_in_all() -> None:
    """What lies in other layers too is not called not removable before these were tried."""
    engine, one, told = make_engine("cross-seed"), prompt(c0=2.0), Told()

    def narrow(_prompt: Prompt, _seeds: Any) -> Search:
        raise AssertionError("came to its end already")

    scopes = [Scope(["first"], Candidates((), {}), narrow), Scope([], Candidates((), {}), begin)]
    first = replace(outcome("not removable", 0), neurons=(Neuron("first", 0),))
    repair = Repair(engine, {0: first}, {0: one}, scopes, tau=TAU, seeds=SEEDS, progress=told)
    found = repair.run(3)
    assert found.neurons[0] == (Neuron("first", 0), Neuron("second", 0))
    assert found.scores[0] <= TAU
    assert found.widened == {0}
    assert any("all layers are searched" in note for note in told.notes)
    # With the narrow scope alone it stays what it was.
    repair = Repair(engine, {0: first}, {0: one}, scopes[:1], tau=TAU, seeds=SEEDS, progress=Told())
    assert repair.run(3).scores[0] > TAU
