"""The paper's procedure and its ablations, on a model whose memory is known, and on keys."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benches import PROMPTS
from planted import CHANNELS, engine

from nemo_prune.checkpoint.checkpoint import ValueLayer
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.compare.bench import Bench
from nemo_prune.compare.methods import methods
from nemo_prune.compare.procedure import searcher
from nemo_prune.options import Options
from nemo_prune.scoring.activations import ActivationStatistics
from nemo_prune.scoring.engine import Sample
from nemo_prune.scoring.similarity import ms_ssim
from nemo_prune.search.ladder import Ladder
from nemo_prune.search.literal import literal_search
from nemo_prune.search.protocol import run

TAU, SEEDS = 0.6, 4
CAT = "a very well known grey cat"


def planted(scores: tuple[float, ...] = (0.3, 0.4, 0.5)) -> Any:
    """A bench without pictures: the cat drives neuron 0, which draws it, and 3 a little."""
    made = engine(lambda text: {0: 6.0, 3: 0.5} if "cat" in text else {})
    layer = ValueLayer("value", "mid", CHANNELS, CHANNELS, ("value.weight",))
    ordinary = ActivationStatistics(
        {"value": torch.full((CHANNELS,), 0.1)}, {"value": torch.full((CHANNELS,), 0.2)}, 30
    )
    return SimpleNamespace(
        engine=made, loaded=made.model, options=Options(seeds=SEEDS), kept={}, states={}, samples=0,
        checkpoint=SimpleNamespace(select=lambda _layers: (layer,), value_layers=(layer,)),
        calibration=SimpleNamespace(
            statistics=(ordinary, "this run"),
            thresholds=SimpleNamespace(tau=TAU, tau_source="calibrated"),
            scores=(SimpleNamespace(paths=[(0.0,) * (SEEDS - 2) + (s,) for s in scores]), "this run"),
        ),
        progress=SimpleNamespace(note=lambda _text: None),
    )  # fmt: skip


def found(name: str, prompt: str = CAT) -> dict[str, Any]:
    (method,) = methods([name])
    return method.prepare(planted(), prompt)


@pytest.mark.parametrize("name", ["literal", "gradient-free", "no-top-k", "threshold-mean"])
def test_the_procedure_finds_the_neuron_that_draws(name: str) -> None:
    state = found(name)
    assert state["sets"] == [{"value": [0]}]
    assert state["status"] == ["localized"]
    assert state["stages"].keys() == {"D1/D2", "score", "D3", "D4"}


def test_the_literal_one_is_the_literal_search_scored_by_the_same_seed() -> None:
    bench = planted()
    model = bench.engine
    (prompt,) = model.prompts([CAT])
    clean = {seed: model.evaluate([Sample(prompt, frozenset(), seed)])[0] for seed in range(SEEDS)}
    questions = 0

    def oracle(off: frozenset[Neuron], seed: int) -> float:
        nonlocal questions
        questions += 1
        own = model.evaluate([Sample(prompt, off, seed)])[0]
        others = [clean[i] for i in clean if i != seed] if not off else [clean[seed]]
        return max(float(ms_ssim(own[None], other[None])[0]) for other in others)

    activation = [6.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0]
    ladder = Ladder({"value": [abs(a - 0.1) / 0.2 for a in activation]}, {"value": activation})
    outcome = run(literal_search(ladder, range(SEEDS), TAU), oracle)
    state = found("literal")
    assert state["sets"] == [{"value": [n.row for n in outcome.neurons]}]
    assert state["theta"] == outcome.theta
    assert state["tau"] == TAU
    before = bench.engine.cost.forward
    (method,) = methods(["literal"])
    method.prepare(bench, CAT)
    assert bench.engine.cost.forward - before == questions


def test_what_is_not_memorized_gets_no_neurons() -> None:
    state = found("literal", "the sea")
    assert state["sets"] == [{}]
    assert state["status"] == ["not memorized"]


def test_without_refinement_the_rung_is_kept() -> None:
    ladder = Ladder({"value": [29.5, 6.0]}, {"value": [6.0, 0.5]})
    kept = run(literal_search(ladder, [0, 1], 0.5, refine=False), lambda off, _s: 0.9 * (not off))
    assert [n.row for n in kept.neurons] == [0, 1]
    assert not kept.minimal
    assert kept.samples == 4
    refined = run(literal_search(ladder, [0, 1], 0.5), lambda off, _s: 0.9 * (not off))
    assert len(refined.neurons) == 1
    assert found("no-refinement")["stages"]["D4"] == 0


def test_without_the_k_largest_the_ladder_holds_unusual_neurons_alone() -> None:
    z, activation = {"value": [0.5, 3.0, 0.1]}, {"value": [9.0, 0.2, 0.1]}
    whole, unusual = Ladder(z, activation), Ladder(z, activation, top_k=False)
    assert whole.rung(1) == {Neuron("value", 0)}
    assert {neuron.row for neuron in unusual.order} == {1}
    assert unusual.listed(16, "value") == [Neuron("value", 1)]


@pytest.mark.parametrize(("name", "deviations"), [("low", -2), ("mean", -1), ("high", 1)])
def test_thresholds_lie_deviations_of_ordinary_scores_away(name: str, deviations: int) -> None:
    (method,) = methods([f"threshold-{name}"])
    assert method.tau(planted()) == pytest.approx(TAU + deviations * 0.1)  # type: ignore[attr-defined]
    published = planted()
    published.calibration.thresholds.tau, published.calibration.thresholds.tau_source = (
        0.428,
        "published",
    )
    wanted = {"low": 0.288, "mean": 0.358, "high": 0.498}[name]
    assert method.tau(published) == pytest.approx(wanted)  # type: ignore[attr-defined]


def test_keys_are_switched_off_as_if_their_weights_were_zero(bench: Bench) -> None:
    engine, layers, ordinary = searcher(bench, "down+mid", "to_k")
    names = [layer.name for layer in layers]
    assert all(name.endswith(".attn2.to_k") for name in names)
    assert set(names) < set(ordinary.mean)
    assert engine.criterion == "same-seed"
    assert engine.cost is bench.engine.cost
    off = frozenset(Neuron(name, row) for name in names for row in range(16))
    (prompt,) = engine.prompts([PROMPTS[0]])
    differences = engine.differences(prompt, [0], off)
    before = {name: bench.loaded.unet.get_submodule(name).weight.data for name in names}
    try:
        for name, weight in before.items():
            bench.loaded.unet.get_submodule(name).weight.data = weight.clone()
            bench.loaded.unet.get_submodule(name).weight.data[:16] = 0
        wanted = bench.engine.differences(prompt, [0])
    finally:
        for name, weight in before.items():
            bench.loaded.unet.get_submodule(name).weight.data = weight
    assert torch.allclose(differences, wanted, atol=1e-5)
    assert not torch.allclose(differences, bench.engine.differences(prompt, [0]), atol=1e-5)
    assert searcher(bench, "down+mid", "to_k")[2] is ordinary
