"""Attributions: the gradients of the criterion, taken without a trace on the model."""

import copy
import dataclasses
import gc
import math
from typing import Any

import pytest
import torch
from test_engine import CHANNELS, DRIVES, TAU, TIMESTEP, Toy, hooks, loaded
from tiny import write_small
from torch import Tensor

from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.errors import CheckpointError
from nemo_prune.model.denoiser import LoadedModel
from nemo_prune.model.loading import load_model
from nemo_prune.scoring import engine as engine_module
from nemo_prune.scoring.attribution import Masking, attribute
from nemo_prune.scoring.engine import Cost, Engine, Job, Prompt, Sample
from nemo_prune.scoring.masks import masked_layers
from nemo_prune.scoring.searching import run_searches
from nemo_prune.scoring.similarity import _blur, ms_ssim, noise_difference
from nemo_prune.scoring.trajectory import Reference, denoise, reference_from, schedule_from
from nemo_prune.search.auto import Candidates, auto_search
from nemo_prune.search.ladder import Ladder
from nemo_prune.search.protocol import POINTS, Attribute, Outcome

LAYERS = ("first", "second")
SEEDS = range(4)
EVERY = tuple(Neuron(layer, row) for layer in LAYERS for row in range(CHANNELS))
STEPS = schedule_from(961, 2)


@pytest.fixture
def toy() -> LoadedModel:
    model = loaded()
    with torch.no_grad():  # neurons that do different things, some of them against the memory
        for layer, name in enumerate(LAYERS):
            noise = torch.randn(CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(layer))
            model.value_layers[name].weight += 0.3 * noise
    # Trajectories: a schedule along which signal and noise both stay in sight.
    return dataclasses.replace(model, alphas_cumprod=torch.linspace(0.99, 0.2, 1000))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    path = write_small(tmp_path_factory.mktemp("attribution") / "tiny.safetensors", side=16)
    model = load_model(recognize(path), device=torch.device("cpu"), dtype=torch.float32)
    return dataclasses.replace(model, latent_shape=(4, 16, 16))


def prompt(drives: dict[int, float]) -> Prompt:
    text = torch.zeros(77, CHANNELS)
    for channel, strength in drives.items():
        text[:, channel] = strength
    return Prompt(text)


def make(model: LoadedModel, **options: Any) -> Engine:
    one = Engine(model, timestep=TIMESTEP, **options)
    one.prompts = lambda texts: [prompt({}) for _ in texts]  # type: ignore[method-assign]
    return one


def job_of(one: Engine, text: Prompt, **parts: Any) -> Job:
    return Job(text, iter(()), baseline=one.baseline(text, SEEDS), layers=LAYERS, **parts)  # type: ignore[arg-type]


def referred(one: Engine, text: Prompt) -> Reference:
    """Of two seeds; ordinary prompts draw noise."""
    ends = one.trajectories([Sample(text, frozenset(), seed) for seed in (0, 1)], STEPS)
    noise = torch.rand(3, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    return reference_from(STEPS, dict(enumerate(ends)), list(noise))


def slow_maximum(one: Tensor, others: list[Tensor]) -> float:
    scores = [ms_ssim(one[None], other[None]).double().item() for other in others]
    return math.log(sum(math.exp(30 * score) for score in scores)) / 30


def memory_with(
    one: Engine, job: Job, seeds: tuple[int, ...], values: dict[Neuron, float], trajectory: bool
) -> float:
    """The criterion with each neuron's mask at a value of its own, seed by seed, without batches."""
    model, total = one.model, 0.0
    texts = [torch.zeros(1, 77, CHANNELS), job.prompt.text[None]]
    masks = {
        name: torch.tensor([[[values[Neuron(name, i)] for i in range(CHANNELS)]]]) for name in LAYERS
    }
    for seed in seeds:
        latents = one.noise(seed)[None]
        with torch.no_grad(), masked_layers(model.value_layers, masks):
            if trajectory:
                assert job.reference is not None
                found = denoise(
                    latents, STEPS, model.alphas_cumprod,
                    lambda x, t: torch.cat([model.predict_noise(x, t, text) for text in texts]),
                )  # fmt: skip
                total += slow_maximum(found[0], list(job.reference.latents))
            else:
                noise = model.predict_noise(latents, TIMESTEP, job.prompt.text[None])
                difference = noise_difference(noise, latents)[0]
                kept = [seed] if one.criterion == "same-seed" else [s for s in SEEDS if s != seed]
                total += slow_maximum(difference, [job.baseline[other] for other in kept])
    return total


@pytest.mark.parametrize(
    ("criterion", "trajectory"), [("cross-seed", False), ("same-seed", False), ("cross-seed", True)]
)
@pytest.mark.parametrize(
    "off", [frozenset[Neuron](), frozenset({Neuron("first", 1), Neuron("second", 2)})]
)
def test_equals_finite_differences(
    toy: LoadedModel, criterion: Any, trajectory: bool, off: frozenset[Neuron]
) -> None:
    one = make(toy, criterion=criterion)
    text, seeds, step = prompt({1: 1.0, 2: 0.6, 5: 0.2}), (0, 2), 0.02
    job = job_of(one, text, reference=referred(one, text) if trajectory else None)
    found = one.attribution(job, Attribute(seeds, off, trajectory))
    assert set(found) == set(EVERY) - off
    expected = {}
    for neuron in found:
        slopes = []
        for point in POINTS:
            values = {other: 0.0 if other in off else point for other in EVERY}
            higher, lower = (
                memory_with(one, job, seeds, values | {neuron: point + sign * step}, trajectory)
                for sign in (1, -1)
            )
            slopes.append((higher - lower) / (2 * step))
        expected[neuron] = sum(slopes) / len(slopes)
    largest = max(map(abs, expected.values()))
    assert largest > 0.02
    assert found == pytest.approx(expected, abs=0.03 * largest)


def test_what_is_off_for_the_job_is_left_out_too(toy: LoadedModel) -> None:
    one = make(toy)
    base, off = frozenset({Neuron("first", 0)}), frozenset({Neuron("second", 0)})
    text = prompt({0: 2.0, 1: 1.0})
    found = one.attribution(job_of(one, text, base=base), Attribute((0,), off))
    assert set(found) == set(EVERY) - base - off
    assert found == one.attribution(job_of(one, text), Attribute((0,), base | off))


def test_layers_that_are_not_searched_are_left_alone(toy: LoadedModel) -> None:
    """Neither in the answer nor masked, except for what is off in them."""
    one = make(toy)
    text = prompt({0: 2.0, 1: 1.0})
    job = job_of(one, text)
    job.layers = ("second",)
    found = one.attribution(job, Attribute((0,), frozenset({Neuron("first", 1)})))
    assert {neuron.layer for neuron in found} == {"second"}
    masks = Masking(toy.value_layers, ("second",), [frozenset({Neuron("first", 1)})] * 2,
                    toy.device, toy.dtype).at(0.5)  # fmt: skip
    assert masks["first"].tolist() == [[[1, 0, 1, 1, 1, 1]]] * 2
    assert masks["second"].tolist() == [[[0.5] * CHANNELS]] * 2
    assert not masks["first"].requires_grad
    assert masks["second"].requires_grad


# --- batches ---


def test_batch_size_does_not_matter(toy: LoadedModel) -> None:
    found, costs = [], []
    for size in (None, 1, 7):
        one = make(toy, batch_size=size)
        text = prompt({1: 1.5, 2: 2.0})
        job = job_of(one, text, reference=referred(one, text))
        one.cost = Cost()
        for trajectory in (False, True):
            found.append(one.attribution(job, Attribute((0, 1, 2), trajectory=trajectory)))
        costs.append(one.cost.samples)
    assert len(set(costs)) == 1
    for again in (found[2:4], found[4:]):
        for one_, other in zip(again, found[:2], strict=True):
            assert list(one_) == list(other)
            assert one_ == pytest.approx(other, abs=1e-5)
            assert sorted(one_, key=one_.__getitem__) == sorted(other, key=other.__getitem__)


def searched(one: Engine) -> list[Outcome]:
    """A whole default search of each of the drives; |z| tells nothing, so attributions are taken."""
    ladder = Ladder(
        {layer: [3.5] * CHANNELS for layer in LAYERS},
        {layer: list(range(CHANNELS)) for layer in LAYERS},
    )
    candidates = Candidates(EVERY, dict.fromkeys(EVERY, 1.0))
    jobs = [
        Job(prompt(drives), auto_search(ladder, candidates, tuple(SEEDS), TAU), layers=LAYERS)
        for drives in DRIVES
    ]
    return run_searches(one, jobs)


def test_batch_size_does_not_matter_for_a_search(
    toy: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_prune.search.auto.SETTLED", 1)
    found = {size: searched(make(toy, batch_size=size)) for size in (None, 1, 7)}
    assert "attribution" in {outcome.order for outcome in found[None]}
    assert "localized" in {outcome.status for outcome in found[None] if outcome.attribution}
    for size in (1, 7):
        for one, other in zip(found[size], found[None], strict=True):
            assert (one.status, one.neurons, one.order) == (other.status, other.neurons, other.order)
            assert one.samples == other.samples
            assert one.attribution == pytest.approx(other.attribution, abs=1e-5)


def test_out_of_memory_halves_the_batch_and_changes_nothing(
    toy: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make(toy, batch_size=12)
    job = job_of(one, prompt({0: 2.0}))
    expected = one.attribution(job, Attribute((0, 1, 2, 3)))
    true = LoadedModel.predict_noise

    def small(self: LoadedModel, latents: Tensor, *args: Any) -> Tensor:
        if len(latents) > 1:
            raise torch.OutOfMemoryError("no room")
        return true(self, latents, *args)

    monkeypatch.setattr(LoadedModel, "predict_noise", small)
    found = one.attribution(job, Attribute((0, 1, 2, 3)))
    assert found == pytest.approx(expected, abs=1e-5)
    assert hooks(toy) == 0


def test_jobs_attributed_together_are_as_alone(toy: LoadedModel) -> None:
    """Whatever is off for each, and however many seeds it asks for."""
    one = make(toy)
    asked = [
        (job_of(one, prompt({0: 2.0, 1: 1.0})), Attribute((0, 1))),
        (job_of(one, prompt({1: 1.5, 2: 2.0}), base=frozenset({Neuron("first", 0)})), Attribute((3,))),
        (job_of(one, prompt({5: 1.0})), Attribute((1, 2), frozenset({Neuron("second", 4)}))),
    ]
    together = one.attributions(asked)
    for (job, wanted), found in zip(asked, together, strict=True):
        alone = one.attribution(job, wanted)
        assert list(found) == list(alone)
        assert found == pytest.approx(alone, abs=1e-5)


def test_a_search_on_a_gpu_takes_attributions_together(
    toy: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_prune.search.auto.SETTLED", 1)
    alone, together, counts = searched(make(toy)), make(toy), list[int]()
    taken = together.attributions
    together.together = True  # as on a GPU

    def counted(asked: Any) -> Any:
        counts.append(len(asked))
        return taken(asked)

    monkeypatch.setattr(together, "attributions", counted)
    found = searched(together)
    assert max(counts) > 1
    for one, other in zip(found, alone, strict=True):
        assert (one.status, one.neurons, one.order) == (other.status, other.neurons, other.order)
        assert one.attribution == pytest.approx(other.attribution, abs=1e-5)


# --- what it leaves behind: nothing ---


def graphs() -> int:
    gc.collect()
    return sum(issubclass(type(one), Tensor) and one.grad_fn is not None for one in gc.get_objects())


@pytest.mark.parametrize("trajectory", [False, True])
@pytest.mark.parametrize("large", [False, True])
def test_the_model_is_as_it_was_and_no_graph_is_kept(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch, trajectory: bool, large: bool
) -> None:
    monkeypatch.setattr(engine_module, "_LARGE", 0 if large else 10**8)
    one = Engine(tiny, timestep=TIMESTEP)
    (text,) = one.prompts(["a cat"])
    layers = list(tiny.value_layers)
    reference = Reference(STEPS, {5: one.noise(5).sigmoid(), 6: one.noise(6).sigmoid()}, 0.9, 0.1)
    job = Job(text, iter(()), one.baseline(text, SEEDS), reference=reference, layers=layers)  # type: ignore[arg-type]
    wanted = [parameter.requires_grad for parameter in tiny.unet.parameters()]
    before = graphs()
    found = one.attribution(job, Attribute((0, 1), trajectory=trajectory))
    assert len(found) == sum(layer.out_features for layer in tiny.value_layers.values())
    assert any(found.values())
    assert graphs() == before
    assert hooks(tiny) == 0
    assert [parameter.requires_grad for parameter in tiny.unet.parameters()] == wanted
    assert all(parameter.grad is None for parameter in tiny.unet.parameters())
    assert not tiny.unet.is_gradient_checkpointing


def test_checkpointing_is_off_again_after_an_error(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "_LARGE", 0)
    one = Engine(tiny, timestep=TIMESTEP)
    (text,) = one.prompts(["a cat"])
    layers = list(tiny.value_layers)
    job = Job(text, iter(()), one.baseline(text, SEEDS), layers=layers)  # type: ignore[arg-type]
    seen = []

    def broken(*_args: object, **_options: object) -> None:
        seen.append((tiny.unet.is_gradient_checkpointing, hooks(tiny)))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tiny.unet, "forward", broken)
        with pytest.raises(KeyboardInterrupt):
            one.attribution(job, Attribute((0,)))
    assert seen == [(True, len(layers))]
    assert not tiny.unet.is_gradient_checkpointing
    assert hooks(tiny) == 0
    one.cost = Cost()
    monkeypatch.setattr(engine_module, "_LARGE", 10**8)
    one.attribution(job, Attribute((0,)))
    assert one.cost.forward == len(POINTS)


@pytest.mark.parametrize("trajectory", [False, True])
def test_checkpointing_changes_no_attribution(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch, trajectory: bool
) -> None:
    """Parts of the model run a second time in the backward pass: with the masks, then too."""
    found, samples = [], []
    for large in (False, True):
        monkeypatch.setattr(engine_module, "_LARGE", 0 if large else 10**8)
        one = Engine(tiny, timestep=TIMESTEP)
        (text,) = one.prompts(["a cat"])
        reference = Reference(STEPS, {5: one.noise(5).sigmoid(), 6: one.noise(6).sigmoid()}, 0.9, 0.1)
        job = Job(text, iter(()), one.baseline(text, SEEDS), reference=reference,
                  layers=list(tiny.value_layers))  # type: ignore[arg-type]  # fmt: skip
        one.cost = Cost()
        found.append(one.attribution(job, Attribute((0, 1), trajectory=trajectory)))
        samples.append((one.cost.forward, one.cost.backward))
    largest = max(map(abs, found[0].values()))
    assert largest > 0
    assert found[1] == pytest.approx(found[0], abs=1e-4 * largest)
    passes = 2 * len(POINTS) * (STEPS.passes if trajectory else 1)
    assert samples == [(passes, passes), (2 * passes, passes)]


def test_a_gpu_takes_checkpointing_only_where_its_memory_is_full(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "_LARGE", 0)
    expected, full = None, False
    for full in (False, True):
        one = Engine(tiny, timestep=TIMESTEP)
        one._tight.clear()  # as on a GPU
        (text,) = one.prompts(["a cat"])
        layers = list(tiny.value_layers)
        job = Job(text, iter(()), one.baseline(text, SEEDS), layers=layers)  # type: ignore[arg-type]
        size, true, seen = one.batch_size, torch.autograd.grad, list[bool]()

        def graded(
            loss: Tensor, masks: Any, full: bool = full, seen: list[bool] = seen, true: Any = true
        ) -> Any:
            seen.append(tiny.unet.is_gradient_checkpointing)
            if full and not seen[-1]:
                raise torch.OutOfMemoryError("no room")
            return true(loss, masks)

        with monkeypatch.context() as patch:
            patch.setattr(torch.autograd, "grad", graded)
            found = one.attribution(job, Attribute((0, 1)))
            again = one.attribution(job, Attribute((0, 1)))
        passes = len(POINTS)
        assert seen == ([False, *[True] * 2 * passes] if full else [False] * 2 * passes)
        assert one.batch_size == size
        expected = expected or found
        for values in (found, again):
            assert values == pytest.approx(expected, abs=1e-4 * max(map(abs, expected.values())))


def test_what_was_prepared_without_gradients_may_be_used_with_them(toy: LoadedModel) -> None:
    """A window that was first needed in inference mode must not make a later backward pass fail."""
    one = make(toy)
    job = job_of(one, prompt({0: 2.0}))
    _blur.cache_clear()
    with torch.inference_mode():
        ms_ssim(one.noise(0)[None].sigmoid(), one.noise(1)[None].sigmoid())
    assert one.attribution(job, Attribute((0,)))


# --- what it costs ---


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 3)])
@pytest.mark.parametrize("size", [None, 1, 7])
def test_cost_is_exact(toy: LoadedModel, seeds: tuple[int, ...], size: int | None) -> None:
    one = make(toy, batch_size=size)
    text = prompt({0: 2.0})
    job = job_of(one, text, reference=referred(one, text))
    one.cost = Cost()
    one.attribution(job, Attribute(seeds))
    passes = len(POINTS) * len(seeds)
    assert (one.cost.forward, one.cost.backward, one.cost.samples) == (passes, passes, 3 * passes)
    one.cost = Cost()
    one.attribution(job, Attribute(seeds, trajectory=True))
    passes *= STEPS.passes
    assert (one.cost.forward, one.cost.backward, one.cost.samples) == (passes, passes, 3 * passes)


def test_a_jobs_samples_are_what_it_cost(toy: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_prune.search.auto.SETTLED", 1)
    one, counted = make(toy), list[int]()
    ladder = Ladder(
        {layer: [3.5] * CHANNELS for layer in LAYERS}, {layer: [1.0] * CHANNELS for layer in LAYERS}
    )
    candidates = Candidates(EVERY, dict.fromkeys(EVERY, 1.0))
    search = auto_search(ladder, candidates, tuple(SEEDS), TAU)
    job = Job(prompt({1: 1.5, 2: 2.0}), search, layers=LAYERS)
    (outcome,) = run_searches(one, [job], on_samples=counted.append)
    assert one.cost.backward >= len(POINTS)
    assert job.samples == one.cost.samples == sum(counted)
    assert job.samples == outcome.samples + 3 * one.cost.backward


# --- half precision ---


def test_an_overflow_on_the_way_back_is_computed_again_in_fp32(
    toy: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make(toy)
    text = prompt({1: 1.5, 2: 2.0})
    expected = one.attribution(job_of(one, text), Attribute((0, 1)))
    exact = copy.deepcopy(toy.unet)
    unet = copy.deepcopy(toy.unet).bfloat16()
    unet.pictures = unet.pictures.bfloat16()
    unet.float = lambda: copy.deepcopy(exact)
    layers = {"first": unet.layers[0], "second": unet.layers[1]}
    half = dataclasses.replace(toy, unet=unet, value_layers=layers, dtype=torch.bfloat16)
    true = torch.autograd.grad
    dtypes = []

    def overflowing(loss: Tensor, masks: list[Tensor]) -> tuple[Tensor, ...]:
        found = true(loss, masks)
        dtypes.append(masks[0].dtype)
        return found if masks[0].dtype == torch.float32 else (found[0] * math.inf, *found[1:])

    notes: list[str] = []
    other = make(half)
    other.note = notes.append
    job = job_of(other, text)
    job.baseline = one.baseline(text, SEEDS)
    kept = other.attribution(job, Attribute((0, 1)))  # coarse, but of the same kind
    assert kept == pytest.approx(expected, abs=0.1 * max(map(abs, expected.values())))
    monkeypatch.setattr(torch.autograd, "grad", overflowing)
    found = other.attribution(job, Attribute((0, 1)))
    assert found == pytest.approx(expected, abs=1e-5)
    assert dtypes == [torch.bfloat16] * len(POINTS) + [torch.float32] * len(POINTS)
    assert ["bfloat16 overflowed" in note for note in notes] == [True]
    other.attribution(job, Attribute((0, 1)))
    assert len(notes) == 1
    assert hooks(half) == 0


def test_the_note_of_an_overflow_is_given_once(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where checkpointing was on in between."""
    monkeypatch.setattr(engine_module, "_LARGE", 0)
    one = Engine(tiny, timestep=TIMESTEP)
    one._overflowed = True
    (text,) = one.prompts(["a cat"])
    job = Job(text, iter(()), one.baseline(text, SEEDS), layers=list(tiny.value_layers))  # type: ignore[arg-type]
    one.attribution(job, Attribute((0,)))
    assert one._overflowed


def test_gradients_that_are_no_numbers_in_fp32_name_the_way_out(
    toy: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make(toy)
    job = job_of(one, prompt({0: 2.0}))
    true = torch.autograd.grad
    monkeypatch.setattr(
        torch.autograd, "grad", lambda loss, masks: tuple(g * math.nan for g in true(loss, masks))
    )
    with pytest.raises(CheckpointError, match="fp32"):
        one.attribution(job, Attribute((0,)))
    assert hooks(toy) == 0


@pytest.mark.parametrize("trajectory", [False, True])
def test_what_a_return_brings_back_equals_finite_differences(toy: LoadedModel, trajectory: bool) -> None:
    """Some neurons are off, of some of them it is asked, and all others are on."""
    one, seeds, step = make(toy), (0, 2), 0.02
    text = prompt({1: 1.0, 2: 0.6, 5: 0.2})
    job = job_of(one, text, reference=referred(one, text) if trajectory else None)
    off = frozenset({Neuron("second", 2)})
    among = frozenset({Neuron("first", 1), Neuron("first", 2), Neuron("second", 1), *off})
    found = one.attribution(job, Attribute(seeds, off, trajectory, among, (0.0,)))
    assert set(found) == among - off
    for neuron, value in found.items():
        values = {other: 0.0 if other in among else 1.0 for other in EVERY}
        higher, lower = (
            memory_with(one, job, seeds, values | {neuron: sign * step}, trajectory) for sign in (1, -1)
        )
        assert value == pytest.approx((higher - lower) / (2 * step), rel=0.05, abs=2e-3)
    assert hooks(toy) == 0


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    unet = Toy()
    layers = dict(zip(LAYERS, unet.layers, strict=True))
    masking = Masking(layers, LAYERS, [frozenset()], torch.device("cpu"), torch.float32)
    kept: list[dict[str, Tensor]] = []

    def memory() -> Tensor:
        return sum(mask.sum() * math.inf for mask in kept[-1].values())[None]  # type: ignore[return-value]

    def masked(masks: Any) -> Any:
        kept.append(masks)
        return masked_layers({}, {})

    with pytest.raises(FloatingPointError):
        attribute(masking, memory, masked, POINTS)


def test_points_are_averaged_sample_by_sample() -> None:
    """By hand: memory = sum of m squared, whose slope at m is 2 m."""
    unet = Toy()
    layers = dict(zip(LAYERS, unet.layers, strict=True))
    off = [frozenset({Neuron("first", 2)})] * 3
    masking = Masking(layers, ("first",), off, torch.device("cpu"), torch.float32)
    kept: list[Any] = []

    def masked(masks: Any) -> Any:
        kept.append(masks)
        return masked_layers({}, {})

    found = attribute(
        masking, lambda: (kept[-1]["first"] ** 2).sum(dim=(1, 2)), masked, (0.5, 0.1)
    ).tolist()
    assert masking.neurons == tuple(Neuron("first", row) for row in range(CHANNELS))
    assert found == [pytest.approx([0.6, 0.6, 0, 0.6, 0.6, 0.6])] * 3
