"""Published baselines against plain, slow statements of their definitions."""

import math

import numpy as np
import pytest
import torch
from benches import PROMPTS
from torch import Tensor

from nemo_prune.compare.bench import Bench
from nemo_prune.compare.methods import methods
from nemo_prune.compare.ren import rescaled
from nemo_prune.compare.tokens import RandomTokens
from nemo_prune.compare.wanda import packed, select, squares, unpacked, without_weights
from nemo_prune.compare.wen import adjusted, first_timestep, norm, predictions

# --- Wen et al. ---


def noise_norm(bench: Bench, embedding: Tensor, latents: Tensor) -> float:
    """||eps(embedding) - eps("")|| over all pictures, one at a time, in numpy."""
    empty = bench.texts(PROMPTS[0])["negative_prompt_embeds"]
    total = 0.0
    with torch.no_grad():
        for latent in latents:
            at = latent[None], first_timestep(bench)
            found = bench.loaded.predict_noise(*at, embedding[None])
            other = bench.loaded.predict_noise(*at, empty)
            total += float(np.square((found - other).double().numpy()).sum())
    return math.sqrt(total)


def test_the_norm_and_its_gradient_are_those_of_finite_differences(bench: Bench) -> None:
    latents, texts = bench.noise([0, 1]), bench.texts(PROMPTS[0])
    embedding = texts["prompt_embeds"][0].float()
    length, gradient = norm(bench, texts, latents, embedding, predictions(bench, texts, latents))
    assert length == pytest.approx(noise_norm(bench, embedding, latents), rel=1e-4)
    assert gradient is not None
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        way = torch.randn(embedding.shape, generator=generator) + 3 * gradient / gradient.norm()
        ends = [noise_norm(bench, embedding + h * way, latents) for h in (2e-3, -2e-3)]
        assert (ends[0] - ends[1]) / 4e-3 == pytest.approx(float((gradient * way).sum()), rel=0.02)


def test_the_embedding_is_adjusted_until_the_norm_is_at_most_the_target(bench: Bench) -> None:
    latents, prompt = bench.noise([0]), PROMPTS[0]
    own = bench.texts(prompt)["prompt_embeds"][0]
    spent = bench.samples
    embedding, losses = adjusted(bench, prompt, latents, None)
    # Without the prompt once, then with it 11 times, all but the last with a backward pass.
    assert bench.samples - spent == 1 + 11 + 10 * 2
    assert len(losses) == 11
    assert losses[-1] < losses[0]
    assert losses[-1] == pytest.approx(noise_norm(bench, embedding, latents), rel=1e-4)
    assert torch.equal(embedding[0], own[0])
    assert not torch.equal(embedding[1:], own[1:])

    target = (losses[1] + losses[2]) / 2
    stopped, fewer = adjusted(bench, prompt, latents, target)
    assert fewer == pytest.approx(losses[:3], rel=1e-5)
    untouched, one = adjusted(bench, prompt, latents, losses[0] + 1)
    assert torch.equal(untouched, own)
    assert len(one) == 1
    assert not torch.equal(stopped, own)


def test_the_updates_are_adamw_as_published(bench: Bench) -> None:
    latents, texts = bench.noise([0]), bench.texts(PROMPTS[0])
    own = texts["prompt_embeds"][0].float()
    found, _ = adjusted(bench, PROMPTS[0], latents, None, steps=1)
    _, gradient = norm(bench, texts, latents, own, predictions(bench, texts, latents))
    assert gradient is not None
    # The first step of Adam is the sign of the gradient times the rate; the decay is .01 of it.
    wanted = own * (1 - 0.05 * 0.01) - 0.05 * gradient / (gradient.abs() + 1e-8)
    assert torch.allclose(found[1:], wanted[1:], atol=1e-5)


def test_the_target_grows_with_the_root_of_the_pictures(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_prune.compare.wen._ORDINARY", 3)
    (wen,) = methods(["wen"])
    state = wen.prepare(bench, PROMPTS[0])
    assert "ordinary captions" in state["notes"][0]
    seen = []
    monkeypatch.setattr(
        "nemo_prune.compare.wen.adjusted",
        lambda b, prompt, _latents, target: (
            seen.append(target),
            (b.texts(prompt)["prompt_embeds"][0], []),
        )[1],
    )
    wen.draw(bench, PROMPTS[0], state, [0])
    wen.draw(bench, PROMPTS[0], state, [0, 1, 2, 3])
    assert seen == pytest.approx([state["target"], 2 * state["target"]])


# --- Somepalli et al. ---


@pytest.mark.parametrize("count", [1, 4, 10])
def test_so_many_random_words_stand_between_the_words_of_the_caption(bench: Bench, count: int) -> None:
    (method,) = methods([f"somepalli-{count}"])
    assert isinstance(method, RandomTokens)
    found = method.caption(bench, PROMPTS[0])
    assert found == method.caption(bench, PROMPTS[0])
    rest = found.split(" ")
    assert len(rest) == len(PROMPTS[0].split()) + count
    left = iter(rest)
    assert all(word in left for word in PROMPTS[0].split()), "the caption's words, in their order"
    assert found != method.caption(bench, PROMPTS[0] + " ").removesuffix(" ")


def test_a_caption_that_becomes_too_long_is_noted(bench: Bench) -> None:
    (method,) = methods(["somepalli-10"])
    state = method.prepare(bench, "cat " * 74)
    assert "cut off at 77" in state["notes"][0]


# --- Ren et al. ---


@pytest.mark.parametrize("guided", [True, False])
def test_rescaled_logits_are_those_of_a_softmax_written_by_hand(bench: Bench, guided: bool) -> None:
    unet, c1, length = bench.loaded.unet, 1.25, 9
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
    attention = unet.get_submodule(name)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 6, attention.to_q.in_features, generator=generator)
    text = torch.randn(4, 77, attention.to_k.in_features, generator=generator)
    with torch.no_grad(), rescaled(unet, length, c1, guided=guided):
        found = attention(hidden, encoder_hidden_states=text, attention_mask=None)

    heads = attention.heads
    wanted = []
    for row in range(4):
        q, k, v = (m(x[row]) for m, x in ((attention.to_q, hidden), (attention.to_k, text),
                                          (attention.to_v, text)))  # fmt: skip
        size = q.shape[1] // heads
        parts = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            rows = []
            for query in q[:, part]:
                logits = [float(query @ key) / math.sqrt(size) for key in k[:, part]]
                if row >= 2 or not guided:
                    logits[0] *= c1
                logits = [logit if i < length else -math.inf for i, logit in enumerate(logits)]
                powers = [math.exp(logit - max(logits)) for logit in logits]
                rows.append(sum(p / sum(powers) * v[i, part] for i, p in enumerate(powers)))
            parts.append(torch.stack(rows))
        wanted.append(attention.to_out[0](torch.cat(parts, dim=1)))
    assert torch.allclose(found, torch.stack(wanted), atol=1e-4)
    with torch.no_grad():
        assert not torch.allclose(attention(hidden, encoder_hidden_states=text), found, atol=1e-3)


# --- ConceptPrune ---


def test_wandas_weights_are_those_of_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 30, generator=generator)
    used, base = (torch.rand(30, generator=generator) for _ in range(2))
    found = select(weight, used, base, 0.2)
    for row in range(5):
        scores = [abs(float(weight[row, j])) * float(used[j]) for j in range(30)]
        others = [abs(float(weight[row, j])) * float(base[j]) for j in range(30)]
        most = sorted(range(30), key=lambda j: -scores[j])[:6]
        wanted = {j for j in most if scores[j] > others[j]}
        assert {j for j in range(30) if found[row, j]} == wanted
    assert 0 < int(found.sum()) < 30
    assert torch.equal(unpacked(packed(found), found.shape), found)


def test_norms_are_of_normalized_rows_at_each_of_the_first_steps(bench: Bench) -> None:
    layer = "mid_block.attentions.0.transformer_blocks.0.ff.net.2"
    seen: list[Tensor] = []
    module = bench.loaded.unet.get_submodule(layer)
    handle = module.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    spent = bench.samples
    found = squares(bench, PROMPTS, 2)
    handle.remove()
    assert bench.samples - spent == 2 * 2 * 2
    assert [len(one) for one in seen] == [2] * 4, "both halves of guidance"
    for step in range(2):
        wanted = [0.0] * module.in_features
        for inputs in seen[step::2]:
            for row in inputs.flatten(0, 1).double().tolist():
                length = math.sqrt(sum(x * x for x in row))
                wanted = [total + (x / length) ** 2 for total, x in zip(wanted, row, strict=True)]
        assert torch.allclose(found[step, layer], torch.tensor(wanted, dtype=torch.float64), rtol=1e-6)


def test_the_first_steps_are_those_of_the_pipeline(bench: Bench) -> None:
    unet, seen = bench.loaded.unet, []
    handle = unet.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[:2]))
    for _ in bench.steps_of(PROMPTS[0], bench.noise([0]), 2):
        pass
    bench.draw(PROMPTS[0], [0])
    handle.remove()
    assert len(seen) == 4
    for ours, theirs in zip(seen[:2], seen[2:], strict=True):
        assert int(ours[1]) == int(theirs[1])
        assert torch.allclose(ours[0], theirs[0], atol=1e-4)


def test_single_weights_are_zero_inside_alone(bench: Bench) -> None:
    layer = "mid_block.attentions.0.transformer_blocks.0.ff.net.2"
    module = bench.loaded.unet.get_submodule(layer)
    before, pointer = module.weight.clone(), module.weight.data_ptr()
    mask = torch.zeros_like(before, dtype=torch.bool)
    mask[3, 7] = True
    with without_weights(bench.loaded.unet, {layer: mask}):
        assert float(module.weight[3, 7]) == 0
        assert int((module.weight == 0).sum()) == 1
    with (
        pytest.raises(AttributeError),
        without_weights(bench.loaded.unet, {layer: mask, "nowhere": mask}),
    ):
        pass
    assert torch.equal(module.weight, before)
    assert module.weight.data_ptr() == pointer
