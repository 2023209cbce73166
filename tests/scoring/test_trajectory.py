"""Short guided trajectories, and what they say remains of a picture."""

import dataclasses
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from test_engine import LOUD, TEXTS, TIMESTEP, hooks, rows, zeroed
from tiny import write_small
from torch import Tensor

from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.model.denoiser import LoadedModel
from nemo_prune.model.loading import load_model
from nemo_prune.scoring.engine import Cost, Engine, Sample
from nemo_prune.scoring.similarity import ms_ssim, noise_difference
from nemo_prune.scoring.trajectory import Reference, Schedule, denoise, reference_from, schedule_from

STEPS = Schedule((901, 701, 501, 301, 101), guidance=7.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    path = write_small(
        tmp_path_factory.mktemp("trajectory") / "tiny.safetensors", side=16, layers=2, fewer=False
    )
    loaded = load_model(recognize(path), device=torch.device("cpu"), dtype=torch.float32)
    with torch.no_grad():
        for layer in loaded.value_layers.values():
            layer.weight[:LOUD] *= 30
    return dataclasses.replace(loaded, latent_shape=(4, 16, 16))


def drawn(*seeds: int) -> Tensor:
    """Made-up latents in [0, 1], `[n, 4, 16, 16]`, one of each seed."""
    found = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        found.append(torch.rand(4, 16, 16, generator=generator))
    return torch.stack(found)


# --- the steps ---


@pytest.mark.parametrize("guidance", [1.0, 7.0])
def test_denoising_is_ddim_with_guidance(guidance: float) -> None:
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False
    )
    scheduler.set_timesteps(5)
    schedule = dataclasses.replace(STEPS, guidance=guidance)
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))

    def predict(x: Tensor, timestep: int) -> Tensor:
        """Without the prompt, then with it: two functions of what is there."""
        return torch.cat([torch.tanh(x) + timestep / 1000, torch.sin(2 * x).flip(-1)])

    seen: list[int] = []

    def spied(x: Tensor, timestep: int) -> Tensor:
        seen.append(timestep)
        return predict(x, timestep)

    found = denoise(latents, schedule, scheduler.alphas_cumprod, spied)
    x = latents
    for timestep in schedule.timesteps:
        without, with_prompt = predict(x, timestep).chunk(2)
        noise = without + guidance * (with_prompt - without)
        step = scheduler.step(noise, timestep, x, eta=0.0)
        x = step.prev_sample
    expected = noise_difference(step.pred_original_sample, torch.zeros_like(x))
    assert seen == list(schedule.timesteps)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert torch.equal(found.amin(dim=(2, 3)), torch.zeros(2, 4))
    assert torch.equal(found.amax(dim=(2, 3)), torch.ones(2, 4))


def test_guidance_of_one_is_the_prompt_alone() -> None:
    alphas = torch.linspace(0.99, 0.1, 1000)

    def predict(x: Tensor, _timestep: int) -> Tensor:
        return torch.cat([torch.full_like(x, 99.0), 0.5 * x])

    def alone(x: Tensor, _timestep: int) -> Tensor:
        return torch.cat([0.5 * x, 0.5 * x])

    schedule = dataclasses.replace(STEPS, guidance=1.0)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    first, second = (denoise(latents, schedule, alphas, one) for one in (predict, alone))
    torch.testing.assert_close(first, second, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("first", "steps"), [(981, 5), (981, 50), (7, 3)])
def test_timesteps_fall_evenly_from_the_first(first: int, steps: int) -> None:
    schedule = schedule_from(first, steps)
    assert schedule.timesteps[0] == first
    assert len(schedule.timesteps) == steps
    assert schedule.passes == 2 * steps
    gaps = [a - b for a, b in zip(schedule.timesteps, [*schedule.timesteps[1:], 0], strict=True)]
    assert max(gaps) - min(gaps) <= 1
    assert min(gaps) > 0


# --- what remains ---


def reference(seeds: dict[int, Tensor], unpruned: float = 0.8, unrelated: float = 0.2) -> Reference:
    return Reference(STEPS, seeds, unpruned, unrelated)


def similarity(a: Tensor, b: Tensor) -> float:
    return ms_ssim(a[None], b[None]).item()


def test_one_for_the_consensus_and_nothing_for_what_is_unrelated() -> None:
    """By its own measure: the prompt's own trajectories have 1, ordinary ones 0 in the mean."""
    picture, *noise = drawn(0, 1, 2, 3)
    ends = {seed: (picture + 0.4 * one) / 1.4 for seed, one in enumerate(noise)}
    unrelated = list(drawn(*range(10, 26)))
    found = reference_from(STEPS, ends, unrelated)
    assert found.judged
    assert max(found.remaining(ends).values()) == pytest.approx(1.0, abs=1e-3)
    far = found.remaining(dict(enumerate(unrelated, start=100)))
    assert sum(far.values()) / len(far) == pytest.approx(0.0, abs=1e-3)
    again = (picture + 0.4 * drawn(4)[0]) / 1.4
    assert found.remaining({9: again})[9] > 0.8


def test_the_scale_is_the_prompts_own() -> None:
    a, b = drawn(0, 1)
    end = 0.5 * a + 0.5 * drawn(2)[0]
    nearest = max(similarity(end, a), similarity(end, b))
    found = reference({0: a, 1: b}, unpruned=0.9, unrelated=0.1).remaining({7: end})
    assert found == {7: pytest.approx((nearest - 0.1) / 0.8, abs=1e-4)}


def test_the_nearest_of_the_consensus_counts() -> None:
    """A picture that comes back from one seed of several came back."""
    a, b = drawn(0, 1)
    both = reference({0: a, 1: b})
    for copied in (a, b):
        assert both.remaining({7: copied})[7] == pytest.approx((1 - 0.2) / 0.6, abs=1e-4)


def test_a_seed_is_never_compared_with_itself() -> None:
    """It holds the same noise, so it would stay alike whatever is off."""
    a, b = drawn(0, 1)
    found = reference({0: a, 1: b}).remaining({0: a, 1: b, 2: a})
    apart = (similarity(a, b) - 0.2) / 0.6
    assert found[0] == found[1] == pytest.approx(apart, abs=1e-4)
    assert found[2] == pytest.approx((1 - 0.2) / 0.6, abs=1e-4)


def test_what_does_not_agree_without_pruning_is_not_judged() -> None:
    unrelated = list(drawn(*range(10, 26)))
    assert not reference_from(STEPS, dict(enumerate(drawn(0, 1))), unrelated).judged
    assert reference({}, 0.31, 0.2).judged
    assert not reference({}, 0.29, 0.2).judged


def test_the_reference_takes_the_most_alike_pair_and_the_mean_of_the_unrelated() -> None:
    a, b, c = drawn(0, 1, 2)
    near = 0.7 * a + 0.3 * c
    ends, unrelated = {3: a, 4: b, 5: near}, list(drawn(10, 11))
    found = reference_from(STEPS, ends, unrelated)
    assert found.unpruned == pytest.approx(similarity(a, near), abs=1e-5)
    own = [max(similarity(one, end) for end in ends.values()) for one in unrelated]
    assert found.unrelated == pytest.approx(sum(own) / 2, abs=1e-5)
    assert found.schedule is STEPS
    assert [torch.equal(x, y) for x, y in zip(found.latents, ends.values(), strict=True)] == [True] * 3


# --- of a model ---


def engine(model: LoadedModel, **options: Any) -> Engine:
    return Engine(model, timestep=TIMESTEP, **options)


def test_masked_trajectories_are_those_of_rows_zeroed_by_hand(model: LoadedModel) -> None:
    """With the neurons off in both halves of the guidance, as in a file."""
    off = rows(model, 0, 0, 3, 31) | rows(model, 6, *range(20))
    one = engine(model)
    prompts = one.prompts(TEXTS[:2])
    samples = [
        Sample(prompts[0], off, 0),
        Sample(prompts[1], frozenset(), 0),
        Sample(prompts[1], off, 2),
    ]
    found = one.trajectories(samples, STEPS)
    assert one.cost == Cost(forward=3 * STEPS.passes, backward=0, batches=5)
    assert hooks(model) == 0
    empty = model.encode([""])
    for sample, end in zip(samples, found, strict=True):
        twin = zeroed(model, sample.off)
        texts = [empty, sample.prompt.text[None]]

        def predict(x: Tensor, t: int, twin: LoadedModel = twin, texts: list[Tensor] = texts) -> Tensor:
            return torch.cat([twin.predict_noise(x, t, text) for text in texts])

        with torch.no_grad():
            (expected,) = denoise(one.noise(sample.seed)[None], STEPS, model.alphas_cumprod, predict)
        torch.testing.assert_close(end, expected, atol=1e-3, rtol=0)
    (unpruned,) = one.trajectories([Sample(prompts[0], frozenset(), 0)], STEPS)
    assert (unpruned - found[0]).abs().max() > 0.01


def test_batch_size_does_not_matter_for_trajectories(model: LoadedModel) -> None:
    found = []
    for size in (None, 1, 7):
        one = engine(model, batch_size=size)
        prompts = one.prompts(TEXTS)
        samples = [
            Sample(prompt, rows(model, 0, seed), seed) for prompt in prompts for seed in (0, 1, 2)
        ]
        counted: list[int] = []
        found.append(torch.stack(one.trajectories(samples, STEPS, counted.append)))
        assert sum(counted) == one.cost.samples == len(samples) * STEPS.passes
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-3, rtol=0)


def test_out_of_memory_halves_the_batch_and_changes_nothing(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = engine(model), engine(model)
    (prompt,) = one.prompts(TEXTS[:1])
    samples = [Sample(prompt, frozenset(), seed) for seed in range(5)]
    expected = torch.stack(one.trajectories(samples, STEPS))
    true = LoadedModel.predict_noise

    def small(self: LoadedModel, latents: Tensor, *args: Any) -> Tensor:
        if len(latents) > 2:
            raise torch.OutOfMemoryError("no room")
        return true(self, latents, *args)

    monkeypatch.setattr(LoadedModel, "predict_noise", small)
    found = torch.stack(other.trajectories(samples, STEPS))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
