"""Pictures that come back after the score's timestep, on a denoiser that is known to draw them."""

import dataclasses
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from test_engine import CHANNELS, TAU, TIMESTEP, Toy, hooks, loaded
from tiny import Told
from torch import Tensor

from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.statuses import GONE
from nemo_prune.localize.confirm import (
    FIRST_SEED,
    MOST_DRIFT,
    SEEDS,
    UNRELATED,
    Confirmation,
    unrelated_ends,
)
from nemo_prune.scoring.engine import Engine, Prompt, Sample
from nemo_prune.scoring.sharing import work_for_another
from nemo_prune.scoring.trajectory import Ends, Reference, schedule_from
from nemo_prune.search.auto import Candidates

SCHEDULE = schedule_from(961, 5)
EARLY = 900  # the score looks above it, most of a trajectory lies below
LAYERS = ("first", "second")


class LateToy(Toy):
    """The first layer's neurons draw their pictures at early timesteps, the second's at later ones."""

    def forward(self, inputs: Tensor, timestep: int, text: Tensor, **_options: Any) -> Any:
        layer = self.layers[0 if timestep >= EARLY else 1]
        drive = layer(text).mean(dim=1) + text.mean(dim=1) * torch.eye(CHANNELS)[-1]
        picture = (drive[:, :, None, None, None] * self.pictures).sum(dim=1)
        return (inputs + picture + 0.5 * inputs.flip(-1),)


def prompt(**drives: float) -> Prompt:
    text = torch.zeros(77, CHANNELS)
    for channel, strength in drives.items():
        text[:, int(channel.removeprefix("c"))] = strength
    return Prompt(text)


@pytest.fixture
def engine() -> Engine:
    unet = LateToy().eval().requires_grad_(False)
    layers = {"first": unet.layers[0], "second": unet.layers[1]}
    model = dataclasses.replace(
        loaded(), unet=unet, value_layers=layers, alphas_cumprod=torch.linspace(0.99, 0.2, 1000)
    )
    one = Engine(model, timestep=TIMESTEP)
    one.prompts = lambda texts: [prompt() for _ in texts]  # type: ignore[method-assign]
    return one


@pytest.fixture
def confirmation(engine: Engine) -> Confirmation:
    told = Told()
    ends = unrelated_ends(engine, ["a"] * UNRELATED, SCHEDULE, told)
    assert len(ends) == UNRELATED
    return Confirmation(engine, SCHEDULE, ends, told)


def scope(*layers: str) -> tuple[Sequence[str], Candidates]:
    order = tuple(Neuron(layer, row) for layer in layers for row in range(CHANNELS))
    return layers, Candidates(order, dict.fromkeys(order, 1.0))


BOTH = [scope(*LAYERS)]
EARLY_NEURON, LATE_NEURON = Neuron("first", 0), Neuron("second", 0)


def largest(confirmation: Confirmation, index: int, one: Prompt, off: frozenset[Neuron]) -> float:
    """What remains on twenty seeds that nothing else uses."""
    samples = [Sample(one, off, seed) for seed in range(500, 520)]
    ends = confirmation.engine.trajectories(samples, SCHEDULE)
    found = confirmation.references[index].remaining(dict(enumerate(ends, start=500)))
    return max(found.values())


def test_what_comes_back_at_later_timesteps_is_found(engine: Engine, confirmation: Confirmation) -> None:
    """The score calls it suppressed, the picture is drawn all the same."""
    one = prompt(c0=2.0)
    off = frozenset({EARLY_NEURON})
    assert max(engine.probe(one, frozenset(), range(10))[0].values()) > TAU
    assert max(engine.probe(one, off, range(10))[0].values()) <= TAU
    assert confirmation.refer(3, one, (0, 1)).judged
    assert largest(confirmation, 3, one, off) > GONE
    found = confirmation.remove(3, one, off, BOTH, rounds=3)
    assert found == {EARLY_NEURON, LATE_NEURON}
    result = confirmation.result
    assert result.neurons == {3: (LATE_NEURON,)}
    assert not result.drawn(3)
    assert largest(confirmation, 3, one, found) < GONE
    (outcome,) = result.outcomes[3]
    assert (outcome.status, outcome.order) == ("localized", "attribution")
    assert len(outcome.attribution) == 1
    assert result.widened == result.exhausted == set()
    assert hooks(engine.model) == 0


def test_passes_are_counted_with_what_they_cost(engine: Engine, confirmation: Confirmation) -> None:
    one, before = prompt(c0=2.0), engine.cost.samples
    confirmation.refer(3, one, (0, 1))
    assert confirmation.result.passes[3] == 2 * SCHEDULE.passes
    confirmation.remove(3, one, {EARLY_NEURON}, BOTH, rounds=3)
    assert confirmation.result.passes[3] == engine.cost.samples - before
    assert engine.cost.backward > 0


def test_a_picture_that_is_gone_costs_eight_trajectories_and_no_search(
    engine: Engine, confirmation: Confirmation
) -> None:
    one, off = prompt(c0=2.0), frozenset({EARLY_NEURON, LATE_NEURON})
    confirmation.refer(0, one, (0, 1))
    assert confirmation.remove(0, one, off, BOTH, rounds=3) == off
    assert confirmation.result.passes[0] == (2 + SEEDS) * SCHEDULE.passes <= 100
    assert engine.cost.backward == 0
    assert confirmation.result.outcomes == confirmation.result.neurons == {}


def test_without_rounds_it_is_said_to_be_drawn_and_left(
    engine: Engine, confirmation: Confirmation
) -> None:
    one, off = prompt(c0=2.0), frozenset({EARLY_NEURON})
    confirmation.refer(0, one, (0, 1))
    assert confirmation.remove(0, one, off, BOTH, rounds=0) == off
    assert confirmation.result.drawn(0)
    assert confirmation.result.remaining[0] >= GONE  # type: ignore[operator]
    assert confirmation.result.outcomes == {}
    assert engine.cost.backward == 0


def test_further_layers_are_searched_where_the_first_are_not_enough(confirmation: Confirmation) -> None:
    one, off = prompt(c0=2.0), frozenset({EARLY_NEURON})
    confirmation.refer(0, one, (0, 1))
    scopes = [scope("first"), scope(*LAYERS)]
    assert confirmation.remove(0, one, off, scopes, rounds=3) == off | {LATE_NEURON}
    assert confirmation.result.widened == {0}
    assert not confirmation.result.drawn(0)


def test_further_layers_are_left_alone_where_the_first_are_enough(confirmation: Confirmation) -> None:
    one, off = prompt(c0=2.0), frozenset({EARLY_NEURON})
    confirmation.refer(0, one, (0, 1))
    found = confirmation.remove(0, one, off, [scope("second"), scope(*LAYERS)], rounds=3)
    assert found == off | {LATE_NEURON}
    assert confirmation.result.widened == set()


def test_a_picture_that_no_value_neuron_draws_is_said_to_stay(confirmation: Confirmation) -> None:
    """Nothing is switched off in vain."""
    one, off = prompt(c0=1.0, c5=3.0), frozenset({EARLY_NEURON})
    confirmation.refer(0, one, (0, 1))
    found = confirmation.remove(0, one, off, [scope("first"), scope(*LAYERS)], rounds=3)
    assert found == off
    assert confirmation.result.drawn(0)
    assert confirmation.result.exhausted == {0}
    assert confirmation.result.neurons == {}


def test_neurons_that_would_ruin_ordinary_prompts_are_not_taken(engine: Engine) -> None:
    """The picture could go, and with it the model: it is said, and the neurons stay on."""
    one, off, told = prompt(c0=2.0), frozenset({EARLY_NEURON}), Told()
    ends = unrelated_ends(engine, ["a"] * UNRELATED, SCHEDULE, told)
    heard: list[frozenset[Neuron]] = []

    def drift(more: frozenset[Neuron]) -> float:
        heard.append(more)
        return MOST_DRIFT + 0.1

    confirmation = Confirmation(engine, SCHEDULE, ends, told, drift=drift)
    confirmation.refer(0, one, (0, 1))
    assert confirmation.remove(0, one, off, BOTH, rounds=3) == off
    assert heard == [off | {LATE_NEURON}]
    result = confirmation.result
    assert result.drawn(0)
    assert result.harmful == {0: MOST_DRIFT + 0.1}
    assert result.neurons == {}
    assert result.outcomes[0][0].tradeoff  # what it would have taken
    assert any("60%" in note and "50%" in note for note in told.notes)


def test_without_layers_to_search_nothing_is_called_exhausted(confirmation: Confirmation) -> None:
    one, off = prompt(c0=2.0), frozenset({EARLY_NEURON})
    confirmation.refer(0, one, (0, 1))
    assert confirmation.remove(0, one, off, [], rounds=3) == off
    assert confirmation.result.drawn(0)
    assert confirmation.result.exhausted == set()


def test_what_cannot_be_judged_is_noted_and_left(engine: Engine, confirmation: Confirmation) -> None:
    one, off = prompt(), frozenset({EARLY_NEURON})
    assert not confirmation.refer(0, one, (0, 1)).judged
    before = engine.cost.samples
    assert confirmation.remove(0, one, off, BOTH, rounds=3) == off
    assert confirmation.result.remaining == {0: None}
    assert not confirmation.result.drawn(0)
    assert engine.cost.samples == before


def test_a_prompt_profits_from_what_is_off_for_those_before_it(
    engine: Engine, confirmation: Confirmation
) -> None:
    first, second = prompt(c0=2.0), prompt(c0=1.5)
    off = frozenset({EARLY_NEURON})
    for index, one in enumerate((first, second)):
        confirmation.refer(index, one, (0, 1))
    off = confirmation.remove(0, first, off, BOTH, rounds=3)
    backward = engine.cost.backward
    assert confirmation.remove(1, second, off, BOTH, rounds=3) == off
    assert engine.cost.backward == backward
    assert set(confirmation.result.neurons) == {0}
    assert not confirmation.result.drawn(1)


@pytest.mark.parametrize(("drawn", "asked"), [(0, [1]), (2, [1, 2]), (7, [1, 2, 5]), (None, [1, 2, 5])])
def test_one_seed_of_eight_is_enough_to_be_drawn(
    confirmation: Confirmation, monkeypatch: pytest.MonkeyPatch, drawn: int | None, asked: list[int]
) -> None:
    """The largest counts, since a mean hides what some seeds draw; a few are asked at a time."""
    one = prompt(c0=2.0)
    reference = confirmation.refer(0, one, (0, 1))
    widths: list[int] = []

    def trajectories(_self: Engine, samples: Sequence[Sample], *_more: object) -> list[Tensor]:
        widths.append(len(samples))
        return [
            reference.latents[0] if sample.seed == 40 + (-1 if drawn is None else drawn)
            else confirmation.unrelated[sample.seed % UNRELATED]
            for sample in samples
        ]  # fmt: skip

    monkeypatch.setattr(Engine, "trajectories", trajectories)
    found = confirmation.look(0, one, frozenset(), range(40, 48))
    assert widths == asked
    assert len(found) == sum(asked)
    assert confirmation.result.drawn(0) == (drawn is not None)
    assert confirmation.result.remaining[0] == max(found.values())


def test_seeds_that_no_search_saw_decide(
    confirmation: Confirmation, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, asked = prompt(c0=2.0), list[list[int]]()
    confirmation.refer(0, one, (0, 1))
    really = Confirmation.look

    def spy(self: Confirmation, index: int, one: Prompt, off: frozenset[Neuron], seeds: Any) -> Any:
        asked.append(list(seeds))
        return really(self, index, one, off, seeds)

    monkeypatch.setattr(Confirmation, "look", spy)
    confirmation.remove(0, one, {EARLY_NEURON}, BOTH, rounds=3)
    assert asked == [
        list(range(FIRST_SEED, FIRST_SEED + SEEDS)),
        list(range(FIRST_SEED + SEEDS, FIRST_SEED + 2 * SEEDS)),
    ]


@pytest.mark.parametrize(
    ("few", "more", "drawn", "asked"),
    [
        ([0.1, 0.19], {}, False, []),  # clear in five steps
        ([0.1, 0.5], {}, True, []),
        ([0.25, 0.32, 0.3], {1: 0.1, 2: 0.2, 0: 0.32}, False, [1, 2, 0]),
        ([0.25, 0.32, 0.3, 0.21], {1: 0.1, 2: 0.36}, True, [1, 2]),  # until one is drawn
    ],
)
def test_what_is_unclear_in_five_steps_is_drawn_in_ten(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, few: list[float], more: dict[int, float],
    drawn: bool, asked: list[int],
) -> None:  # fmt: skip
    """Pictures fade by degrees: the seeds that draw most of one decide, in twice as many steps."""
    told = Told()
    ends = unrelated_ends(engine, ["a"] * 2, SCHEDULE, told)
    confirmation = Confirmation(engine, SCHEDULE, ends, told, ordinary=["a"] * 2)
    one, seen = prompt(c0=2.0), list[int]()
    confirmation.refer(0, one, (0, 1))

    def remaining(self: Reference, ends: dict[int, Tensor]) -> dict[int, float]:
        if self.schedule is SCHEDULE:
            return {seed: few[seed] if seed < len(few) else 0.0 for seed in ends}
        assert len(self.schedule.timesteps) == 10
        assert self.schedule.timesteps[0] == SCHEDULE.timesteps[0]
        seen.extend(ends)
        return {seed: more[seed] for seed in ends}

    monkeypatch.setattr(Reference, "remaining", remaining)
    for _again in range(2):
        seen.clear()
        passes, samples = confirmation.result.passes[0], engine.cost.samples
        ordinary = confirmation.result.ordinary
        found = confirmation.look(0, one, frozenset(), range(SEEDS))
        assert found == {seed: few[seed] if seed < len(few) else 0.0 for seed in found}
        assert confirmation.result.drawn(0) == drawn
        assert seen == asked
        assert confirmation.result.remaining[0] == (max(more[s] for s in asked) if asked else max(few))
        taken = engine.cost.samples - samples - (confirmation.result.ordinary - ordinary)
        assert confirmation.result.passes[0] - passes == taken, "ordinary prompts are no prompt's cost"
    assert confirmation.result.ordinary == (2 * 20 if asked else 0), "once, and only if need be"


def test_ordinary_trajectories_are_drawn_once_for_all_who_share_them(engine: Engine) -> None:
    known: Ends = {}
    first = unrelated_ends(engine, ["a"] * 2, SCHEDULE, Told(), known)
    before = engine.cost.samples
    assert unrelated_ends(engine, ["a"] * 2, SCHEDULE, Told(), known) is first
    assert engine.cost.samples == before
    assert unrelated_ends(engine, ["a"] * 3, SCHEDULE, Told(), known) is not first
    assert engine.cost.samples > before


def test_a_search_for_what_only_more_steps_show_goes_further_down(
    confirmation: Confirmation, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, goals = prompt(c0=2.0), list[float]()
    confirmation.refer(0, one, (0, 1))
    really = Confirmation._search

    def look(self: Confirmation, index: int, *_more: object) -> dict[int, float]:
        self.result.remaining[index] = 0.1 if goals else 0.45
        return dict.fromkeys(range(SEEDS), 0.3)

    def search(self: Confirmation, *arguments: Any) -> Any:
        goals.append(arguments[4])
        return really(self, *arguments)

    monkeypatch.setattr(Confirmation, "look", look)
    monkeypatch.setattr(Confirmation, "_search", search)
    confirmation.remove(0, one, {EARLY_NEURON}, BOTH, rounds=3)
    assert goals == [0.2]


def test_layers_that_are_off_already_end_a_search_at_once(confirmation: Confirmation) -> None:
    one = prompt(c0=2.0)
    confirmation.refer(0, one, (0, 1))
    off = frozenset(scope("first")[1].order)
    scopes = [scope("first"), scope(*LAYERS)]
    assert confirmation.remove(0, one, off, scopes, rounds=3) == off | {LATE_NEURON}
    assert confirmation.result.widened == {0}


class Apart:
    """Workers in this process: what they get and give is pickled, as between processes."""

    count = 3

    def __init__(self, engine: Engine) -> None:
        work_for_another(engine)

    def each(self, work: Any, items: Any, on_done: Any, numbers: Any) -> dict[int, Any]:
        del numbers
        work, items = pickle.loads(pickle.dumps((work, items)))
        found = {place: pickle.loads(pickle.dumps(result)) for place, result in work(items)}
        for place in reversed(found):  # as they come
            on_done(place, found[place])
        return found

    def keep(self, value: Any) -> Any:
        kept = pickle.dumps(value)
        return Loaded(kept)


def no_drift(_off: frozenset[Neuron]) -> float:
    return 0.0


@dataclasses.dataclass
class Loaded:
    kept: bytes

    def get(self) -> Any:
        return pickle.loads(self.kept)


def test_workers_confirm_prompts_as_one_after_the_other_would(engine: Engine) -> None:
    """What the second prompt needs, the fourth profits from; looks that came too early do not count."""
    prompts = [prompt(c0=2.0), prompt(c1=2.0), prompt(c0=2.0), prompt(c1=2.0, c2=2.0), prompt(c2=2.0)]
    indices, seeds = [0, 2, 3, 5, 7], [(0, 1)] * 5
    off = frozenset(Neuron("first", row) for row in range(3)) | {LATE_NEURON}
    ends = unrelated_ends(engine, ["a"] * UNRELATED, SCHEDULE, Told())

    def confirmed() -> tuple[Confirmation, list[int], Told]:
        told = Told()
        one = Confirmation(engine, SCHEDULE, ends, told, drift=no_drift)
        one.refer_all(indices, prompts, seeds)
        scopes = [scope("first"), scope(*LAYERS)]
        return one, list(one.remove_all(indices, prompts, off, scopes, 3)), told

    alone, order, told = confirmed()
    assert order == indices
    assert alone.result.in_vain == 0
    assert set(alone.result.neurons) == {2, 5}
    engine.workers = Apart(engine)  # type: ignore[assignment]
    shared, order, told_by_workers = confirmed()
    assert order == indices
    assert shared.result.in_vain > 0
    assert dataclasses.replace(shared.result, in_vain=0) == alone.result
    assert told_by_workers.notes == told.notes
    for index in indices:
        assert torch.equal(*(torch.stack(c.references[index].latents) for c in (alone, shared)))
