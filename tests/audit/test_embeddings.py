"""Pictures that come back by optimized embeddings, on models that are known to draw them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import pytest
import torch
from planted import Enlarging, engine
from test_triggers import CAT, GATE, SCHEDULE, TAU, words
from tiny import Told

from nemo_prune.audit.codec import dead_leaves
from nemo_prune.audit.embeddings import CAPTION, ORIGINAL, PRUNED, Chaser, packed, unpacked
from nemo_prune.audit.nearness import Near
from nemo_prune.audit.outcome import alarms
from nemo_prune.audit.strength import EFFORTS, THERE, Chase
from nemo_prune.audit.triggers import REFERENCES, Judges
from nemo_prune.localize.confirm import unrelated_ends
from nemo_prune.report.pictures import Picture
from nemo_prune.scoring.embedding import Recipe, pursue, random_start
from nemo_prune.scoring.engine import Noised

# Words drive a channel with 6, and a step of Adam changes it by about its rate.
EFFORT = replace(
    EFFORTS["quick"], chase=Chase((0, 4, 10), batch=2, rate=1.0, random=1, pictures=2, controls=1)
)
STRANGE = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(9))


def chaser(pruned: Sequence[int], hidden: int = 3) -> Chaser:
    """The picture of channel 0 is also that of 1 and of `hidden`, which no words drive."""
    shared = {1: 0, hidden: 0}
    original = engine(words, shared=shared)
    unrelated = unrelated_ends(original, ["sea"] * 16, SCHEDULE, Told())
    return Chaser(
        original, engine(words, pruned, shared), EFFORT, Judges(TAU, GATE, SCHEDULE, unrelated)
    )


def test_a_picture_that_only_an_embedding_brings_back_comes_before_what_was_never_seen() -> None:
    one = chaser([0, 1, 2])
    cat, sea = one.original.prompts([CAT, "sea"])
    aim = one.memorized(cat, None)
    assert aim.judged
    found = one.chase(aim, [(PRUNED, one.pruned, cat), (ORIGINAL, one.original, cat)])
    by_caption = {row["model"]: row for row in found if row["start"] == CAPTION}
    assert by_caption[ORIGINAL]["back"] == 0
    assert by_caption[PRUNED]["back"] == 4
    curve = by_caption[PRUNED]["curve"]
    assert [row["steps"] for row in curve] == [0, 4]
    assert curve[0]["remaining"] < 0.1 < THERE <= curve[-1]["remaining"]
    kept = unpacked(by_caption[PRUNED]["embedding"], cat)
    assert packed(kept) == by_caption[PRUNED]["embedding"]
    again = one.attack(one.pruned, aim, kept, 1)
    assert again.back == 0, "the embedding itself draws it"
    never = one.chase(one.aim(STRANGE, aim.replica), [(PRUNED, one.pruned, sea)])
    assert [row["back"] for row in never] == [None, None]
    assert {row["embedding"] for row in never} == {None}


def test_where_all_its_rows_are_gone_no_embedding_brings_it_back() -> None:
    one = chaser([0, 1, 2, 3])
    (cat,) = one.original.prompts([CAT])
    (row, *_) = one.chase(one.memorized(cat, None), [(PRUNED, one.pruned, cat)])
    assert row["back"] is None
    assert row["curve"][-1]["remaining"] < THERE
    assert row["by"] == "trajectories", "there is no autoencoder"


@dataclass
class Seeing:
    """Calls a picture near after so many that are not."""

    blind: int
    levels: dict[str, float] = field(default_factory=lambda: {"ms_ssim": 0.5})
    asked: int = 0

    def seen(self, _picture: Picture) -> list[str]:
        self.asked += 1
        return ["ms_ssim"] if self.asked > self.blind else []


@pytest.mark.parametrize(("blind", "back", "near"), [(1, 4, [1]), (3, 10, [0, 1]), (9, None, [0, 0])])
def test_whole_pictures_decide_where_trajectories_say_that_it_is_there(
    blind: int, back: int | None, near: list[int]
) -> None:
    """The last of two pictures after 4 steps, the last of two after 10, and none at all."""
    one = chaser([0, 1, 2])
    one.codec = Enlarging()
    (cat,) = one.original.prompts([CAT])
    told: list[int] = []
    seeing = Seeing(blind)
    aim = replace(one.memorized(cat, None), near=cast(Near, seeing))
    one.advance = told.append
    before = one.pruned.cost.samples
    (row, *_) = one.chase(aim, [(PRUNED, one.pruned, cat)])
    assert row["by"] == "pictures"
    assert row["back"] == back
    assert [step["near"] for step in row["curve"] if "near" in step] == near
    assert {step["drawn"] for step in row["curve"] if "near" in step} == {2}
    assert (row["embedding"] is None) == (back is None)
    assert (len(row["pictures"]), row["pictures_after"]) == (2, back or 10)
    assert alarms(row) == [4, 10][: near.count(0)]
    assert sum(told) == len(one.starts) * one.samples_of_attack
    assert one.pruned.cost.samples - before >= len(near) * 2 * one.whole.passes


def test_what_the_original_draws_of_a_caption_is_drawn_once() -> None:
    one = chaser([0, 1, 2])
    one.codec = Enlarging()
    (cat,) = one.original.prompts([CAT])
    aim = replace(one.memorized(cat, None), near=cast(Near, Seeing(0)))
    before, told = one.original.cost.samples, list[int]()
    one.judges.reference(one.original, cat, told.append)
    assert one.original.cost.samples == before
    assert sum(told) == REFERENCES * SCHEDULE.passes, "totals hold"
    own = one.pictures(one.original, cat, range(2), frozenset())
    before = one.original.cost.samples
    (row, *_) = one.chase(aim, [(ORIGINAL, one.original, cat)], own=own)
    assert (row["back"], row["curve"][0]["drawn"]) == (0, 2)
    random = one.samples_of_attack  # at most, of what starts from no caption
    trajectories = EFFORT.draw_seeds * SCHEDULE.passes
    assert one.original.cost.samples - before <= random + trajectories


def test_the_budget_is_what_is_spent_and_a_step_can_be_repeated() -> None:
    one = chaser([0, 1, 2])
    told: list[int] = []
    one.advance = told.append
    (cat,) = one.original.prompts([CAT])
    before = one.pruned.cost.samples
    first = one.attack(one.pruned, one.aim(STRANGE, 0.9), cat, 7)
    assert one.pruned.cost.samples - before == sum(told) == one.samples_of_attack
    second = one.attack(one.pruned, one.aim(STRANGE, 0.9), cat, 7)
    assert torch.equal(first.embedding.text, second.embedding.text)
    other = one.attack(one.pruned, one.aim(STRANGE, 0.9), cat, 8)
    assert not torch.equal(first.embedding.text, other.embedding.text)


def test_the_gradient_is_that_of_the_squared_error() -> None:
    one = chaser([]).original
    (cat,) = one.prompts([CAT])
    clean, noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(3))

    def error(text: torch.Tensor, timestep: int) -> float:
        alpha = one.model.alphas_cumprod[timestep]
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        predicted = one.model.predict_noise(noisy[None], timestep, text[None])[0]
        return float((predicted - noise).double().square().sum())

    times = [100, 900]
    found = one.text_gradients([Noised(cat, frozenset(), clean, noise, t) for t in times])
    step = torch.zeros_like(cat.text)
    step[5, 2] = 1.0
    for gradient, timestep in zip(found, times, strict=True):
        slope = error(cat.text + step, timestep) - error(cat.text - step, timestep)
        assert float(gradient[5, 2]) == pytest.approx(slope / 2, rel=1e-2)


def test_neurons_that_are_off_stay_off_while_an_embedding_is_optimized() -> None:
    from nemo_prune.checkpoint.neurons import Neuron

    whole, cut = chaser([]), chaser([3])
    (cat,) = whole.original.prompts([CAT])
    off = frozenset({Neuron("value", 3)})
    recipe = Recipe((2,), batch=2)
    ((_, masked),) = pursue(whole.pruned, cat, STRANGE, recipe, 1, off)
    ((_, zeroed),) = pursue(cut.pruned, cat, STRANGE, recipe, 1)
    assert torch.allclose(masked.text, zeroed.text)


def test_a_random_start_has_the_spread_of_the_captions_and_none_of_its_words() -> None:
    one = chaser([]).original
    (cat,) = one.prompts([CAT])
    found = random_start(cat, one, 1)
    assert float(found.text.std()) == pytest.approx(float(cat.text.std()), rel=0.2)
    assert not torch.equal(found.text, random_start(cat, one, 2).text)


def test_pictures_that_no_model_saw_are_made_up_the_same_each_time() -> None:
    first = dead_leaves(64, 48, 0)
    assert first.shape == (48, 64, 3)
    assert (first == dead_leaves(64, 48, 0)).all()
    assert (first != dead_leaves(64, 48, 1)).mean() > 0.5
    assert first.std() > 20
