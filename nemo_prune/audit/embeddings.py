"""Embeddings optimized towards each memorized picture, with controls beside every one.

Given steps enough, an embedding makes a model draw pictures that it never saw. So what counts is not
whether the memorized picture comes back but whether it comes back *earlier* than others do in the same
model, by the same recipe and from the same kind of start: ordinary pictures that the original made, and
pictures that it never saw. The original's own embeddings are the third control: how early the picture
comes where nothing was pruned.

A picture is looked for by short guided trajectories, as everywhere, and r says how much of it is there:
0 as alike as unrelated pictures are, 1 as alike as what the original draws for the caption. Five steps
say too often that it is there: where they do, whole pictures are drawn, and only if one is near what was
aimed at (`nearness`) has the picture come back. A control is judged in the same way, on the same
yardstick, the median of the memorized pictures'.
"""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nemo_prune.audit.codec import Codec
from nemo_prune.audit.nearness import Near
from nemo_prune.audit.strength import THERE, Effort
from nemo_prune.audit.triggers import DRAW_SEED, REFERENCES, Judges
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.report.gallery import inlined
from nemo_prune.report.pictures import Picture
from nemo_prune.scoring.embedding import Recipe, pursue, random_start
from nemo_prune.scoring.engine import Engine, Prompt, Sample
from nemo_prune.scoring.similarity import ms_ssim
from nemo_prune.scoring.trajectory import LEAST_SCALE, scaled, schedule_from

CHASE_SEED, PICTURE_SEED = 64_000, 65_000
"""Where the seeds begin that optimizing and its pictures take: nothing else uses them."""
CAPTION = "the caption's own embedding"
PRUNED, ORIGINAL = "pruned", "original"
_MILD = 2.0
"""Guidance of the pictures that are aimed at. What guidance of 7 draws is no picture a model was trained
on: its contrast is half as large again, and embeddings come near it far later than near a photo."""
_SHOWN = 2  # pictures of an embedding that brought a picture back
_DIGITS = 5


@dataclass(frozen=True, eq=False)
class Aim:
    """A picture that embeddings are optimized towards, and the yardstick of what is drawn.

    clean: its latents, float32 `[c, h, w]`. chance: how alike to it unrelated pictures are. replica: how
    alike what the original draws for the caption is. picture: to be shown. near: says which whole
    pictures are near it; None, or without levels: nothing does, and trajectories decide.
    """

    clean: Tensor
    chance: float
    replica: float
    picture: Picture | None = None
    near: Near | None = None

    @property
    def judged(self) -> bool:
        """Whether the original's own pictures are clearly more like it than unrelated ones."""
        return self.replica - self.chance >= LEAST_SCALE

    def remaining(self, ends: Sequence[Tensor]) -> list[float]:
        """r of each end of a trajectory."""
        scale = max(self.replica - self.chance, 1e-6)
        found = _likeness(ends, scaled(self.clean[None])[0])
        return [round((one - self.chance) / scale, _DIGITS) for one in found.tolist()]


@dataclass(frozen=True, eq=False)
class Attack:
    """What came of optimizing one embedding.

    curve: after each budget "steps", "remaining" (the largest r over the noises) and "mean"; where whole
    pictures were drawn, how many in "drawn", and in "near" how many of them are near. back: after how
    many steps the picture was there, None if it never was; nothing was optimized after that.
    embedding: the last one. drawn: the last whole pictures, those that are near first, of the embedding
    after `steps` steps.
    """

    curve: list[dict[str, float]]
    back: int | None
    embedding: Prompt
    drawn: list[Picture] = field(default_factory=list)
    steps: int = 0


def _likeness(ends: Sequence[Tensor], wanted: Tensor) -> Tensor:
    stacked = torch.stack(list(ends))
    return ms_ssim(stacked, wanted.to(stacked.device)[None].expand(len(stacked), -1, -1, -1)).cpu()


class Chaser:
    """Optimizes embeddings in both models and draws from them.

    Args:
        original, pruned: the two models.
        judges: the trajectories' schedule, and what is ordinary in the original.
        codec: makes pictures of latents and back; None: the model has no autoencoder, so nothing is
            shown and only pictures that the original draws can be aimed at.
        advance: is told of every denoiser sample.
    """

    def __init__(
        self,
        original: Engine,
        pruned: Engine,
        effort: Effort,
        judges: Judges,
        codec: Codec | None = None,
        advance: Callable[[int], None] = lambda _count: None,
    ) -> None:
        self.original, self.pruned, self.effort = original, pruned, effort
        self.judges, self.codec, self.advance = judges, codec, advance
        self.schedule = schedule = judges.schedule
        self.recipe = Recipe(effort.chase.budgets, effort.chase.batch, effort.chase.rate)
        first, steps = schedule.timesteps[0], effort.plain_steps
        self.whole = schedule_from(first, steps, schedule.guidance)
        self.mild = schedule_from(first, steps, min(_MILD, schedule.guidance))

    @property
    def starts(self) -> list[str]:
        """The kinds of starts of every picture."""
        return [CAPTION, *(f"random embedding {n + 1}" for n in range(self.effort.chase.random))]

    @property
    def samples_of_attack(self) -> int:
        """Denoiser samples that an attack takes at most, without what is drawn only to be shown."""
        budgets = self.recipe.budgets
        of_one = self.effort.draw_seeds * self.schedule.passes
        if self.codec is not None:
            of_one += self.effort.chase.pictures * self.whole.passes
        return self.recipe.samples(budgets[-1]) + len(budgets) * of_one

    @property
    def samples_of_aim(self) -> int:
        """Denoiser samples that aiming at a memorized picture takes at most."""
        return REFERENCES * self.schedule.passes + self.mild.passes

    # ------------------------------------------------------------------------------------- pictures

    def aim(self, clean: Tensor, replica: float, picture: Picture | None = None) -> Aim:
        """Aim at a picture by its latents."""
        chance = float(_likeness(self.judges.unrelated, scaled(clean[None])[0]).mean())
        if picture is None and self.codec:
            picture = self.codec.decode(clean)
        return Aim(clean, chance, replica, picture)

    def memorized(self, prompt: Prompt, target: Picture | None) -> Aim:
        """The training picture, or what the original draws for the caption: of some noises the picture
        that is most like those of the others."""
        known = self.judges.reference(self.original, prompt, self.advance).by_seed
        ends = list(known.values())
        if target is not None:
            assert self.codec, "targets are read only where there is an autoencoder"
            clean, others = self.codec.encode(target), ends
        else:
            mutual = [float(_likeness([b for b in ends if b is not a], a).mean()) for a in ends]
            best = mutual.index(max(mutual))
            sample = Sample(prompt, frozenset(), list(known)[best])
            (clean,) = self.original.drawn([sample], self.mild, self.advance)
            others = [end for place, end in enumerate(ends) if place != best]
        replica = float(_likeness(others, scaled(clean[None])[0]).max())
        return self.aim(clean, replica, target)

    def ordinary(self, prompt: Prompt, replica: float, number: int) -> Aim:
        """A picture that the original draws for an ordinary prompt."""
        sample = Sample(prompt, frozenset(), PICTURE_SEED + number)
        (clean,) = self.original.drawn([sample], self.mild, self.advance)
        return self.aim(clean, replica)

    # -------------------------------------------------------------------------------------- attacks

    def attack(
        self, engine: Engine, aim: Aim, start: Prompt, seed: int, off: frozenset[Neuron] = frozenset(),
        known: Sequence[Picture] = (),
    ) -> Attack:  # fmt: skip
        """Optimize one embedding until the picture is there or the steps are spent.

        known: whole pictures of the start, which need not be drawn again.
        """
        before = engine.cost.samples
        seeds = range(DRAW_SEED, DRAW_SEED + self.effort.draw_seeds)
        curve: list[dict[str, float]] = []
        back, prompt, drawn, after = None, start, list[Picture](), 0
        for steps, prompt in pursue(engine, start, aim.clean, self.recipe, seed, off, self.advance):
            samples = [Sample(prompt, off, one) for one in seeds]
            found = aim.remaining(engine.trajectories(samples, self.schedule, self.advance))
            mean = round(sum(found) / len(found), _DIGITS)
            curve.append({"steps": steps, "remaining": max(found), "mean": mean})
            if max(found) < THERE:
                continue
            near = 1
            if self.codec is not None and aim.near is not None and aim.near.levels:
                # From the noises whose trajectories came nearest.
                nearest = sorted(seeds, key=lambda one: -found[one - DRAW_SEED])
                count = self.effort.chase.pictures
                drawn = list(known[:count]) if not steps else []
                drawn = drawn or self.pictures(engine, prompt, nearest[:count], off, self.advance)
                which = [bool(aim.near.seen(picture)) for picture in drawn]
                near, after = sum(which), steps
                curve[-1] |= {"drawn": len(drawn), "near": near}
                order = sorted(range(len(drawn)), key=lambda place: not which[place])
                drawn = [drawn[place] for place in order]
            if near:
                back = steps
                break
        # What was not needed is done too, so that the time left stays true.
        self.advance(max(0, self.samples_of_attack - (engine.cost.samples - before)))
        if self.codec is not None and not drawn and engine is self.pruned:
            count = 1 if back is None else _SHOWN
            drawn = self.pictures(engine, prompt, seeds[:count], off)
            after = int(curve[-1]["steps"])
        return Attack(curve, back, prompt, drawn, after)

    def start(self, caption: Prompt, engine: Engine, kind: int) -> Prompt:
        """Where an attack begins: the caption's embedding, or a random one."""
        return caption if kind == 0 else random_start(caption, engine, CHASE_SEED + kind)

    def chase(
        self, aim: Aim, captions: Sequence[tuple[str, Engine, Prompt]],
        off: frozenset[Neuron] = frozenset(), first: int = 0, own: Sequence[Picture] = (),
    ) -> list[dict[str, Any]]:  # fmt: skip
        """All attacks on one picture, as plain JSON.

        Args:
            captions: (a model's name, its engine, the embedding to begin with as it encodes it).
            off: neurons that are off in every model but the original.
            first: seed of the first attack; each kind of start takes the next.
            own: whole pictures of the caption by the original.

        Returns:
            Of each attack "model", "start", "curve", "back", "by", what decides, "embedding" (base64 of
            float32, where the picture came back in the pruned model), "pictures" (data URIs) and
            "pictures_after", of how many steps they are.
        """
        by_pictures = self.codec is not None and aim.near is not None and bool(aim.near.levels)
        found = []
        for kind, start in enumerate(self.starts):
            for model, engine, caption in captions:
                without = frozenset[Neuron]() if model == ORIGINAL else off
                seed = CHASE_SEED + 100 + first + kind
                known = own if model == ORIGINAL and start == CAPTION else ()
                one = self.attack(engine, aim, self.start(caption, engine, kind), seed, without, known)
                kept = one.back is not None and model == PRUNED
                shown = one.drawn[:_SHOWN] if model == PRUNED else []
                found.append(
                    {
                        "model": model, "start": start, "curve": one.curve, "back": one.back,
                        "by": "pictures" if by_pictures else "trajectories",
                        "embedding": packed(one.embedding) if kept else None,
                        "pictures": [inlined(picture) for picture in shown],
                        "pictures_after": one.steps,
                    }
                )  # fmt: skip
        return found

    def pictures(
        self, engine: Engine, prompt: Prompt, seeds: Sequence[int], off: frozenset[Neuron],
        advance: Callable[[int], None] = lambda _count: None,
    ) -> list[Picture]:  # fmt: skip
        """Whole pictures from an embedding."""
        assert self.codec is not None
        samples = [Sample(prompt, off, seed) for seed in seeds]
        return [self.codec.decode(one) for one in engine.drawn(samples, self.whole, advance)]


# ---------------------------------------------------------------------------------------- as JSON


def packed(prompt: Prompt) -> str:
    """An embedding for a journal: what a run resumes with must be what it was, to the bit."""
    return base64.b64encode(prompt.text.float().cpu().numpy().tobytes()).decode("ascii")


def unpacked(text: str, like: Prompt) -> Prompt:
    """The embedding that was `packed`, with what stands beside it in `like`."""
    flat = np.frombuffer(base64.b64decode(text), dtype=np.float32).copy()
    return replace(like, text=torch.from_numpy(flat).reshape(like.text.shape).to(like.text.device))
