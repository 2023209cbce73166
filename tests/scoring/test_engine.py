"""The engine: packed, masked batches give what a plain, slow computation gives."""

import copy
import dataclasses
from collections.abc import Generator, Sequence
from typing import Any

import pytest
import torch
from tiny import write_small
from torch import Tensor

from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.errors import CheckpointError
from nemo_prune.model.denoiser import LoadedModel
from nemo_prune.model.loading import load_model
from nemo_prune.options import Criterion
from nemo_prune.scoring.engine import Engine, Job, Prompt, Sample
from nemo_prune.scoring.masks import masked_layers
from nemo_prune.scoring.searching import run_searches
from nemo_prune.scoring.similarity import ms_ssim, noise_difference
from nemo_prune.search.group_testing import gradient_free_search
from nemo_prune.search.ladder import Ladder
from nemo_prune.search.protocol import Answer, Outcome, Question

TEXTS = ["a cat", "a dog on a lawn", "", "the sea at night"]
SEEDS = range(4)
TIMESTEP = 961
TAU = 0.6
CHANNELS = 6  # of the toy's text
# What drives each prompt; the third is not memorized, and the last cannot be helped.
DRIVES = [{0: 2.0}, {1: 1.5, 2: 2.0}, {3: 0.0}, {4: 2.0, 0: 0.02}, {5: 2.0}]
STATUSES = ["localized", "localized", "not memorized", "localized", "not removable"]
LOUD = 4  # rows of each value layer that are amplified, so that switching them off matters


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    path = write_small(
        tmp_path_factory.mktemp("engine") / "tiny.safetensors", side=16, layers=2, fewer=False
    )
    loaded = load_model(recognize(path), device=torch.device("cpu"), dtype=torch.float32)
    with torch.no_grad():
        for layer in loaded.value_layers.values():
            layer.weight[:LOUD] *= 30
    return dataclasses.replace(loaded, latent_shape=(4, 16, 16))


def engine(model: LoadedModel, **options: Any) -> Engine:
    return Engine(model, timestep=TIMESTEP, **options)


def names(model: LoadedModel) -> list[str]:
    return [name for name in model.value_layers if not name.startswith("up")]


def rows(model: LoadedModel, layer: int, *numbers: int) -> frozenset[Neuron]:
    return frozenset(Neuron(names(model)[layer], row) for row in numbers)


def hooks(model: LoadedModel) -> int:
    return sum(len(layer._forward_hooks) for layer in model.value_layers.values())


def zeroed(model: LoadedModel, off: frozenset[Neuron]) -> LoadedModel:
    """A copy whose weight rows are zero."""
    unet = copy.deepcopy(model.unet)
    with torch.no_grad():
        for neuron in off:
            unet.get_submodule(neuron.layer).weight[neuron.row] = 0
    layers = {name: unet.get_submodule(name) for name in model.value_layers}
    return dataclasses.replace(model, unet=unet, value_layers=layers)


def plain(
    model: LoadedModel, text: str, off: frozenset[Neuron], latents: Tensor, timestep: int = TIMESTEP
) -> Tensor:
    """One noise difference, alone, of a copy whose weight rows are zero."""
    noise = zeroed(model, off).predict_noise(latents[None], timestep, model.encode([text]))
    return noise_difference(noise, latents[None])[0]


def sets(model: LoadedModel) -> list[frozenset[Neuron]]:
    return [
        frozenset(),
        rows(model, 0, 0, 3, 31),
        rows(model, 0, 1) | rows(model, 6, *range(40)),
        rows(model, 3, 0, 1, 2, 3) | rows(model, 5, 2),
        frozenset(Neuron(name, row) for name in names(model) for row in range(32)),
    ]


class Toy(torch.nn.Module):
    """A denoiser that draws a picture for each value neuron a prompt drives, in two layers.

    A driven neuron's picture is the same for every seed; what else it draws depends on the seed.
    The last channel of the text draws its picture past the value layers.
    """

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.pictures = torch.randn(CHANNELS, 4, 16, 16, generator=generator)
        self.layers = torch.nn.ModuleList(
            torch.nn.Linear(CHANNELS, CHANNELS, bias=False) for _ in range(2)
        )
        for layer in self.layers:
            torch.nn.init.eye_(layer.weight)
        self.first, self.second = self.layers

    def forward(self, inputs: Tensor, _timestep: int, text: Tensor, **_options: Any) -> Any:
        drive = sum(layer(text) for layer in self.layers).mean(dim=1)
        drive = drive + text.mean(dim=1) * torch.eye(CHANNELS)[-1]
        picture = (drive[:, :, None, None, None] * self.pictures).sum(dim=1)
        return (inputs + picture + 0.5 * inputs.flip(-1),)


def loaded(kind: type[LoadedModel] = LoadedModel) -> LoadedModel:
    """The toy as a loaded model."""
    unet = Toy().eval().requires_grad_(False)
    return kind(
        family="sd1",
        unet=unet,
        text_encoders=(),
        scheduler_config={},
        alphas_cumprod=torch.linspace(1, 0, 1000),
        prediction_type="epsilon",
        latent_shape=(4, 16, 16),
        value_layers={"first": unet.layers[0], "second": unet.layers[1]},
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


@pytest.fixture
def toy() -> LoadedModel:
    return loaded()


def outcomes(engine: Engine, tau: float = TAU, **options: Any) -> list[Outcome]:
    searches = []
    for drives in DRIVES:
        text = torch.zeros(77, CHANNELS)
        for channel, strength in drives.items():
            text[:, channel] = strength
        activation = text[0].tolist()
        # Two more candidates that do nothing, from the first rung on.
        z = [10.0 if value or row in (1, 3) else 0.0 for row, value in enumerate(activation)]
        path = Ladder(dict.fromkeys(("first", "second"), z),
                      dict.fromkeys(("first", "second"), activation))  # fmt: skip
        searches.append(Job(Prompt(text), gradient_free_search(path, tuple(SEEDS), tau)))
    return run_searches(engine, searches, **options)


def assert_same(found: Sequence[Outcome], expected: Sequence[Outcome]) -> None:
    """Equal in all but the last digits of scores."""
    for one, other in zip(found, expected, strict=True):
        assert (one.status, one.neurons, one.memorized_seeds, one.theta, one.candidates) == (
            other.status, other.neurons, other.memorized_seeds, other.theta, other.candidates
        )  # fmt: skip
        assert (one.samples, one.questions) == (other.samples, other.questions)
        assert one.scores_before == pytest.approx(other.scores_before, abs=1e-4)
        assert one.scores_after == pytest.approx(other.scores_after, abs=1e-4)
        assert one.threshold == pytest.approx(other.threshold, abs=1e-4)


def test_masked_batch_equals_rows_zeroed_by_hand(model: LoadedModel) -> None:
    found = engine(model, batch_size=8)
    cases = [(i % 3, off, i % 2) for i, off in enumerate(sets(model))]
    prompts = found.prompts(TEXTS)
    differences = found.evaluate([Sample(prompts[t], off, seed) for t, off, seed in cases])
    assert found.cost.batches == 1
    for (text, off, seed), difference in zip(cases, differences, strict=True):
        expected = plain(model, TEXTS[text], off, found.noise(seed))
        torch.testing.assert_close(difference, expected, atol=1e-5, rtol=0)
        if off:
            unpruned = plain(model, TEXTS[text], frozenset(), found.noise(seed))
            assert (difference - unpruned).abs().max() > 1e-3


def test_hooks_are_gone_after_a_pass(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    found = engine(model)
    (prompt,) = found.prompts(TEXTS[:1])
    seen = []
    true = LoadedModel.predict_noise

    def spy(self: LoadedModel, *args: Any) -> Tensor:
        seen.append(hooks(self))
        return true(self, *args)

    monkeypatch.setattr(LoadedModel, "predict_noise", spy)
    found.evaluate([Sample(prompt, sets(model)[2], 0)])
    assert seen == [2]
    assert hooks(model) == 0


def test_hooks_are_gone_after_an_error(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    found = engine(model)
    (prompt,) = found.prompts(TEXTS[:1])

    def broken(*_args: object, **_options: object) -> None:
        assert hooks(model) == 2
        raise KeyboardInterrupt

    monkeypatch.setattr(model.unet, "forward", broken)
    with pytest.raises(KeyboardInterrupt):
        found.evaluate([Sample(prompt, sets(model)[2], 0)])
    assert hooks(model) == 0
    mask = {names(model)[0]: torch.zeros(1, 1, 32)}
    with pytest.raises(ZeroDivisionError), masked_layers(model.value_layers, mask):
        raise ZeroDivisionError
    assert hooks(model) == 0


def test_batch_size_does_not_matter_for_scores(model: LoadedModel) -> None:
    scores = []
    for size in (None, 1, 7):
        one = engine(model, batch_size=size)
        scores.append(one.score_prompts(one.prompts(TEXTS), SEEDS, lambda _count: None))
    for other in scores[1:]:
        for found, expected in zip(other, scores[0], strict=True):
            assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("criterion", ["same-seed", "cross-seed"])
def test_batch_size_does_not_matter_for_searches(toy: LoadedModel, criterion: Criterion) -> None:
    expected = outcomes(engine(toy, criterion=criterion))
    for size in (1, 7):
        assert_same(outcomes(engine(toy, criterion=criterion, batch_size=size)), expected)


def test_the_number_of_threads_does_not_matter(toy: LoadedModel, model: LoadedModel) -> None:
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            one = engine(model)
            scores = one.score_prompts(one.prompts(TEXTS), SEEDS, lambda _count: None)
            found.append((scores, outcomes(engine(toy))))
    finally:
        torch.set_num_threads(before)
    for scores, searched in found[1:]:
        for one, expected in zip(scores, found[0][0], strict=True):
            assert one == pytest.approx(expected, abs=1e-4)
        assert_same(searched, found[0][1])


@pytest.mark.parametrize("criterion", ["same-seed", "cross-seed"])
def test_searches_find_what_drives_each_prompt(toy: LoadedModel, criterion: Criterion) -> None:
    found = outcomes(engine(toy, criterion=criterion))
    assert [outcome.status for outcome in found] == STATUSES
    for outcome, drives in zip(found, DRIVES, strict=True):
        driven = {(layer, row) for layer in ("first", "second") for row in drives}
        neurons = {(neuron.layer, neuron.row) for neuron in outcome.neurons}
        if outcome.status == "localized":
            assert neurons
            assert neurons <= driven
            assert max(outcome.scores_after.values()) <= TAU < max(outcome.scores_before.values())
    assert {outcome.status for outcome in outcomes(engine(toy), tau=1)} == {"not memorized"}


def test_batches_grow_to_the_limit_only_when_free_to(model: LoadedModel) -> None:
    free, fixed = engine(model), engine(model, batch_size=3)
    for one in (free, fixed):
        (prompt,) = one.prompts(TEXTS[:1])
        one.score_prompts([prompt], range(9), lambda _count: None)
    assert free.batch_size == 16
    assert fixed.batch_size == 3


@pytest.mark.parametrize("size", [None, 7])
def test_out_of_memory_halves_the_batch(
    toy: LoadedModel, monkeypatch: pytest.MonkeyPatch, size: int | None
) -> None:
    expected = outcomes(engine(toy))
    true, passed, refused = LoadedModel.predict_noise, [], []

    def small(self: LoadedModel, latents: Tensor, *args: Any) -> Tensor:
        (passed if len(latents) <= 2 else refused).append(len(latents))
        if len(latents) > 2:
            raise torch.OutOfMemoryError("no room")
        return true(self, latents, *args)

    monkeypatch.setattr(LoadedModel, "predict_noise", small)
    found = engine(toy, batch_size=size)
    counted: list[int] = []
    assert_same(outcomes(found, on_samples=counted.append), expected)
    assert len(refused) <= 2  # and it does not grow back into the wall
    assert found.batch_size in (1, 2)
    assert found.cost.samples == sum(passed) == sum(counted)
    assert found.cost.batches == len(passed) == len(counted)
    assert hooks(toy) == 0


def test_out_of_memory_for_one_sample_is_an_error(
    toy: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def never(_self: LoadedModel, latents: Tensor, *_args: object) -> Tensor:
        sizes.append(len(latents))
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(LoadedModel, "predict_noise", never)
    with pytest.raises(torch.OutOfMemoryError):
        outcomes(engine(toy))
    assert sizes == [8, 4, 2, 1]


def test_other_runtime_errors_pass(toy: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: object) -> Tensor:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(LoadedModel, "predict_noise", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        outcomes(engine(toy))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_names_the_way_out(toy: LoadedModel, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    true = LoadedModel.predict_noise

    def spoiled(self: LoadedModel, *args: Any) -> Tensor:
        noise = true(self, *args).clone()
        noise[-1, 0, 3, 3] = value
        return noise

    monkeypatch.setattr(LoadedModel, "predict_noise", spoiled)
    with pytest.raises(CheckpointError, match="fp32"):
        outcomes(engine(toy))
    assert hooks(toy) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_overflows_is_evaluated_again_in_fp32(
    toy: LoadedModel, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """Not taken for "not memorized": the outcomes are those of a run in fp32 from the start."""
    expected = outcomes(engine(toy))
    true = LoadedModel.predict_noise
    dtypes: list[torch.dtype] = []

    def overflowing(self: LoadedModel, *args: Any) -> Tensor:
        noise = true(self, *args).clone()
        dtypes.append(self.dtype)
        if self.dtype != torch.float32:
            noise[-1, 0, 3, 3] = value
        return noise

    unet = copy.deepcopy(toy.unet).bfloat16()
    unet.pictures = unet.pictures.bfloat16()
    unet.float = lambda: copy.deepcopy(toy.unet)
    half = dataclasses.replace(
        toy,
        unet=unet,
        value_layers={"first": unet.layers[0], "second": unet.layers[1]},
        dtype=torch.bfloat16,
    )
    monkeypatch.setattr(LoadedModel, "predict_noise", overflowing)
    notes: list[str] = []
    one = engine(half, batch_size=8)
    one.note = notes.append
    found = outcomes(one)
    assert [outcome.status for outcome in found] == [outcome.status for outcome in expected]
    assert [outcome.neurons for outcome in found] == [outcome.neurons for outcome in expected]
    assert dtypes.count(torch.float32) == dtypes.count(torch.bfloat16) > 1
    (note,) = notes
    assert "bfloat16 overflowed" in note
    assert hooks(half) == 0
    with pytest.warns(RuntimeWarning, match="fp32"):
        outcomes(engine(half))


def test_the_order_of_prompts_does_not_matter(model: LoadedModel) -> None:
    """Batches mix prompts, so each prompt's scores and neurons could depend on its neighbours."""
    seeds = tuple(SEEDS)
    ladder = {name: [9.0] * LOUD for name in names(model)[:2]}

    def found(texts: list[str], size: int | None) -> dict[str, Outcome]:
        one = engine(model, batch_size=size)
        jobs = [
            Job(prompt, gradient_free_search(Ladder(ladder, ladder), seeds, 0.0))
            for prompt in one.prompts(texts)
        ]
        return dict(zip(texts, run_searches(one, jobs), strict=True))

    expected = found(TEXTS, None)
    assert any(outcome.neurons for outcome in expected.values())
    for texts, size in ((TEXTS[::-1], None), (TEXTS[2:] + TEXTS[:2], 3), (TEXTS[::-1], 1)):
        again = found(texts, size)
        assert_same([again[text] for text in TEXTS], [expected[text] for text in TEXTS])


@pytest.mark.parametrize("criterion", ["same-seed", "cross-seed"])
def test_many_in_flight_equal_one_at_a_time(toy: LoadedModel, criterion: Criterion) -> None:
    many, single = (engine(toy, criterion=criterion) for _ in range(2))
    ended: list[int] = []
    found = outcomes(many, on_finished=lambda index, _outcome: ended.append(index))
    expected = outcomes(single, in_flight=1)
    assert_same(found, expected)
    assert sorted(ended) == list(range(len(DRIVES)))
    assert many.cost.samples == sum(outcome.samples for outcome in found)
    assert single.cost.samples == many.cost.samples
    assert many.cost.batches < single.cost.batches


@pytest.mark.parametrize(("size", "full"), [(8, 64), (100, 100)])
def test_enough_searches_are_open_to_fill_a_batch(model: LoadedModel, size: int, full: int) -> None:
    one = engine(model, batch_size=size)
    open_: set[int] = set()
    most = 0

    def asking(index: int) -> Generator[Question, Answer, int]:
        nonlocal most
        open_.add(index)
        most = max(most, len(open_))
        yield Question(frozenset(), (0, 1))
        open_.remove(index)
        return index

    prompts = one.prompts(TEXTS[:1] * 120)
    run_searches(one, [Job(prompt, asking(index)) for index, prompt in enumerate(prompts)])
    assert (most, open_) == (full, set())


def test_noise_depends_on_the_seed_only(model: LoadedModel) -> None:
    one, other, based = engine(model), engine(model, batch_size=1), engine(model, seed=1)
    torch.manual_seed(5)
    first = [one.noise(seed) for seed in (0, 1, 2)]
    torch.manual_seed(6)
    again = [other.noise(seed) for seed in (2, 1, 0)]
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(again), strict=True))
    assert first[0].shape == model.latent_shape
    drawn = [*first, *(based.noise(seed) for seed in (0, 1, 2))]
    assert not any(torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


@pytest.mark.parametrize("criterion", ["same-seed", "cross-seed"])
def test_scores_equal_direct_similarity(model: LoadedModel, criterion: Criterion) -> None:
    found = engine(model, criterion=criterion)
    (prompt,) = found.prompts(TEXTS[1:2])
    (before,) = found.score_prompts([prompt], SEEDS, lambda _count: None)
    clean = {s: plain(model, TEXTS[1], frozenset(), found.noise(s)) for s in SEEDS}

    def similarity(a: Tensor, b: Tensor) -> float:
        return ms_ssim(a[None], b[None]).item()

    def nearest(seed: int, difference: Tensor) -> float:
        return max(similarity(difference, clean[i]) for i in SEEDS if i != seed)

    assert before == pytest.approx({s: nearest(s, clean[s]) for s in SEEDS}, abs=1e-4)

    off, asked = sets(model)[3], [3, 1]
    pruned = {s: plain(model, TEXTS[1], off, found.noise(s)) for s in asked}
    expected = {
        s: similarity(pruned[s], clean[s]) if criterion == "same-seed" else nearest(s, pruned[s])
        for s in asked
    }
    differences = found.evaluate([Sample(prompt, off, seed) for seed in asked])
    baseline = found.baseline(prompt, SEEDS)
    after = found.scores(dict(zip(asked, differences, strict=True)), baseline)
    assert after == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("criterion", ["same-seed", "cross-seed"])
def test_a_pruned_model_scores_as_masks_do(model: LoadedModel, criterion: Criterion) -> None:
    off = sets(model)[3]
    original = engine(model, criterion=criterion)
    pruned = engine(zeroed(model, off), criterion=criterion)
    (prompt,), (twin,) = original.prompts(TEXTS[:1]), pruned.prompts(TEXTS[:1])
    baseline = original.baseline(prompt, SEEDS)
    found = original.compare(baseline, pruned, twin, SEEDS)
    differences = original.evaluate([Sample(prompt, off, seed) for seed in SEEDS])
    expected = original.scores(dict(zip(SEEDS, differences, strict=True)), baseline)
    assert found == pytest.approx(expected, abs=1e-4)


def test_prompts_are_those_of_the_model(model: LoadedModel) -> None:
    prompts: list[Prompt] = engine(model).prompts(TEXTS)
    assert torch.equal(torch.stack([prompt.text for prompt in prompts]), model.encode(TEXTS))
    assert all(prompt.pooled is None for prompt in prompts)
