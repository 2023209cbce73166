"""Screening as pure logic with made-up scores, and what the engine measures for it."""

import random
from collections.abc import Callable

import pytest
import torch
from test_engine import CHANNELS, loaded

from nemo_prune.model.denoiser import LoadedModel
from nemo_prune.scoring.detect import Detection, Screened, detect, gated, score_paths, screening
from nemo_prune.scoring.engine import Engine, Job, Prompt
from nemo_prune.scoring.searching import run_searches
from nemo_prune.scoring.similarity import noise_difference, pairwise
from nemo_prune.scoring.thresholds import gate_from, margins_from
from nemo_prune.search.ladder import Ladder
from nemo_prune.search.literal import literal_search
from nemo_prune.search.protocol import Answer, Outcome, Question, not_memorized

SEEDS = tuple(range(10))
Pairs = dict[tuple[int, int], float]


def drive(
    pairs: Pairs, seeds: tuple[int, ...] = SEEDS, *args: object
) -> tuple[Screened, list[Question]]:
    steps, asked = screening(seeds, *args), []  # type: ignore[arg-type]
    try:
        question = next(steps)
        while True:
            asked.append(question)
            question = steps.send(best(pairs, question))
    except StopIteration as stop:
        return stop.value, asked


def best(pairs: Pairs, question: Question) -> Answer:
    return {
        a: max(pairs[min(a, b), max(a, b)] for b in question.seeds if a != b) for a in question.seeds
    }


def drawn(generator: random.Random, middle: float, spread: float) -> Pairs:
    return {
        (a, b): min(1.0, max(0.0, generator.gauss(middle, spread)))
        for b in SEEDS
        for a in SEEDS
        if a < b
    }


def test_without_a_gate_every_seed_is_used() -> None:
    pairs = drawn(random.Random(1), 0.3, 0.1)
    found, asked = drive(pairs)
    assert [len(question.seeds) for question in asked] == list(range(2, 11))
    assert list(found.path) == [
        max(score for (_, b), score in pairs.items() if b < count) for count in range(2, 11)
    ]
    assert len(found.scores) == 10


def test_it_stops_above_the_gate_and_where_nothing_can_rise_to_it() -> None:
    pairs = drawn(random.Random(1), 0.3, 0.0)
    margins = (0.5, 0.4, 0.35, 0.2, 0.1, 0, 0, 0)
    found, _ = drive(pairs, SEEDS, 0.6, margins)
    assert len(found.scores) == 5  # .3 + .35 might still reach .6, .3 + .2 does not
    found, _ = drive(pairs, SEEDS, 0.6, (0.1,) * 8)
    assert len(found.scores) == 4  # two or three seeds may miss what others show
    found, _ = drive(pairs, SEEDS, 0.29, margins)
    assert len(found.scores) == 2
    found, _ = drive(pairs | {(2, 3): 0.9}, SEEDS, 0.85, (1.0,) * 8)
    assert len(found.scores) == 4
    found, _ = drive(pairs, SEEDS, 0.6, ())
    assert len(found.scores) == 10  # without margins none is clear early


def test_decisions_equal_those_of_all_seeds_at_less_than_half_of_the_samples() -> None:
    """Ordinary prompts vary among themselves, memorized ones in how many seeds show it."""
    generator = random.Random(2)

    def ordinary() -> Pairs:
        return drawn(generator, generator.gauss(0.26, 0.05), 0.08)

    def memorized() -> Pairs:
        return drawn(generator, generator.uniform(0.55, 0.9), 0.06)

    paths = [drive(ordinary())[0].path for _ in range(300)]
    gate = gate_from([path[-1] for path in paths], 0.01, 0).value
    margins = margins_from(paths)
    spent, equal = [], []
    for make, count in ((ordinary, 500), (memorized, 100)):
        for _ in range(count):
            pairs = make()
            early = drive(pairs, SEEDS, gate, margins)[0]
            equal.append((early.path[-1] > gate) == (drive(pairs)[0].path[-1] > gate))
            if make is ordinary:
                spent.append(len(early.scores))
    assert sum(spent) / len(spent) <= 5
    assert sum(equal) / len(equal) >= 0.99


def test_unusable_seeds_and_scores() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        next(screening((1,)))
    steps = screening((0, 1))
    next(steps)
    with pytest.raises(ValueError, match="no usable score"):
        steps.send({0: 0.5, 1: float("nan")})


@pytest.mark.parametrize(("gate", "begun"), [(0.5, True), (0.95, False)])
def test_a_search_is_begun_only_above_the_gate(gate: float, begun: bool) -> None:
    pairs = drawn(random.Random(3), 0.9, 0.0)
    ladder = Ladder({"layer": [9.0, 0.0]}, {"layer": [1.0, 0.0]})
    began = []

    def inner() -> "object":
        began.append(True)
        return literal_search(ladder, SEEDS, 0.4)

    search = gated(inner, SEEDS, 0.4, gate)  # type: ignore[arg-type]
    outcome = finish(search, lambda question: best(pairs, question) if not question.off else
                     dict.fromkeys(question.seeds, 0.1))  # fmt: skip
    assert bool(began) == begun
    assert outcome.status == ("localized" if begun else "not memorized")
    if not begun:
        assert outcome == not_memorized(outcome.scores_before, 0.4)


def test_nothing_is_left_alone_before_all_seeds_are_seen() -> None:
    """A template may show from half of the seeds, the last ones here."""
    ladder = Ladder({"layer": [9.0, 0.0]}, {"layer": [1.0, 0.0]})

    def answer(question: Question) -> Answer:
        late = [seed for seed in question.seeds if seed >= 5]
        shown = len(late) > 1 and not question.off
        return {seed: 0.9 if shown and seed in late else 0.1 for seed in question.seeds}

    search = gated(lambda: literal_search(ladder, tuple(range(10)), 0.4), range(10), 0.4, 0.6)
    assert finish(search, answer).status == "localized"


def finish(search: object, answer: Callable[[Question], Answer]) -> Outcome:
    question = next(search)  # type: ignore[call-overload]
    try:
        while True:
            question = search.send(answer(question))  # type: ignore[attr-defined]
    except StopIteration as stop:
        outcome: Outcome = stop.value
        return outcome


# ------------------------------------------------------------------------------------ the engine


class Speaking(LoadedModel):
    """The toy with a text encoder: "3 0.5" drives channel 3 by .5, "" nothing."""

    def encode_pooled(self, prompts: object, _tokens: object = None) -> tuple[torch.Tensor, None]:
        text = torch.zeros(len(prompts), 77, CHANNELS)  # type: ignore[arg-type]
        for i, prompt in enumerate(prompts):  # type: ignore[arg-type, var-annotated]
            if prompt:
                channel, strength = prompt.split()
                text[i, :, int(channel)] = float(strength)
        return text, None


@pytest.fixture
def model() -> LoadedModel:
    return loaded(Speaking)


PROMPTS = ["0 2.0", "1 0.05", "2 0.0", "3 1.0", "4 0.3"]


def test_both_measures_equal_direct_ones(model: LoadedModel) -> None:
    engine = Engine(model, timestep=961)
    found = detect(engine, PROMPTS, range(5), 0.6, early=False)
    noise = torch.stack([engine.noise(seed) for seed in range(5)])
    empty = model.predict_noise(noise, 961, model.encode([""]).expand(5, -1, -1))
    for index, (one, prompt) in enumerate(zip(found, PROMPTS, strict=True)):
        predicted = model.predict_noise(noise, 961, model.encode([prompt]).expand(5, -1, -1))
        score = pairwise(noise_difference(predicted, noise)).max().item()
        norm = (predicted - empty).flatten(1).norm(dim=1).mean().item()
        assert (one.index, one.seeds) == (index, 5)
        assert one.score == pytest.approx(score, abs=1e-4)
        assert one.noise_norm == pytest.approx(norm, abs=1e-4)
        assert one.memorized == (score > 0.6)
    assert {one.memorized for one in found} == {True, False}
    assert engine.cost.samples == 5 * (len(PROMPTS) + 1)  # one unconditional pass a seed for all


def test_clear_prompts_take_fewer_samples_and_decide_the_same(model: LoadedModel) -> None:
    every = detect(Engine(model, timestep=961), PROMPTS, range(6), 0.6, early=False)
    engine = Engine(model, timestep=961)
    told: list[Detection] = []
    early = detect(engine, PROMPTS, range(6), 0.6, (0.3,) * 4, on_found=told.append)
    assert [one.memorized for one in early] == [one.memorized for one in every]
    assert min(one.seeds for one in early) == 2
    assert engine.cost.samples == 6 + sum(one.seeds for one in early)
    assert sorted(told, key=lambda one: one.index) == early


def test_what_is_known_is_not_scored_again(model: LoadedModel) -> None:
    every = detect(Engine(model, timestep=961), PROMPTS, range(5), 0.6, early=False)
    engine = Engine(model, timestep=961)
    known = {1: every[1], 4: every[4]}
    again = detect(engine, PROMPTS, range(5), 0.6, early=False, known=known)
    assert again == every
    assert engine.cost.samples == 5 * (len(PROMPTS) - len(known) + 1)


def test_paths_end_at_the_score(model: LoadedModel) -> None:
    paths, norms = score_paths(Engine(model, timestep=961), PROMPTS, range(5))
    every = detect(Engine(model, timestep=961), PROMPTS, range(5), 0.6, early=False)
    assert [path[-1] for path in paths] == pytest.approx([one.score for one in every], abs=1e-5)
    assert norms == pytest.approx([one.noise_norm for one in every], rel=1e-5)
    assert all(list(path) == sorted(path) and len(path) == 4 for path in paths)


def test_the_search_reuses_the_samples_of_screening(model: LoadedModel) -> None:
    engine = Engine(model, timestep=961)
    text = model.encode([PROMPTS[0]])[0]
    z = [9.0] + [0.0] * (CHANNELS - 1)
    ladder = Ladder(dict.fromkeys(("first", "second"), z), dict.fromkeys(("first", "second"), z))
    inner = lambda: literal_search(ladder, tuple(range(6)), 0.5)  # noqa: E731
    (outcome,) = run_searches(engine, [Job(Prompt(text), gated(inner, range(6), 0.5, 0.6))])
    assert outcome.status == "localized"
    assert engine.cost.samples == outcome.samples
