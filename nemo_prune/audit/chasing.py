"""One round of optimized embeddings: every memorized picture, and the controls, as plain JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from statistics import median
from typing import Any

from nemo_prune.audit.codec import unseen_pictures
from nemo_prune.audit.embeddings import ORIGINAL, PRUNED, Aim, Chaser, unpacked
from nemo_prune.audit.finished import Finished
from nemo_prune.audit.inputs import Models
from nemo_prune.audit.nearness import Near, near_control, near_to
from nemo_prune.audit.neurons import Trigger
from nemo_prune.audit.pictures import passes_compared
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.localize.confirm import UNRELATED
from nemo_prune.report.gallery import inlined
from nemo_prune.report.likeness import CONSENSUS_PART, TARGET_PART
from nemo_prune.report.targets import open_target

Round = dict[str, Any]
"""{"prompts": number -> {"judged", "target", "picture", "chance", "replica", "nearness", "attacks"},
"controls": [{"kind", "number", "picture", "attacks"}]}; an attack as `Chaser.chase` gives it, with
"controls_back", the fewest steps after which a control of its start was there, and "came_back": whether
the memorized picture was there before any. "nearness": "levels" and "replica" of its `Near`."""


class Rounds:
    """Rounds of attacks on the same pictures, with more and more neurons off."""

    def __init__(self, models: Models, memorized: Sequence[int], finished: Finished) -> None:
        self.models, self.memorized, self.finished = models, memorized, finished
        self.effort = models.inputs.effort
        self._aims: dict[int, Aim] = {}

    @cached_property
    def chaser(self) -> Chaser:
        models = self.models
        return Chaser(
            models.original, models.pruned, self.effort, models.schedule, models.judges.unrelated,
            models.codec, models.progress.advance,
        )  # fmt: skip

    def run(self, number: int, off: frozenset[Neuron] = frozenset()) -> Round:
        """The attacks of a round with these neurons off in the pruned model; what is kept is not done
        again."""
        names = [f"embeddings {number} {index}" for index in self.memorized]
        controls = self._controls()
        names += [f"control {number} {kind} {place}" for kind, place in controls]
        left = [name for name in names if self.finished.get(name) is None]
        if left:
            # The original is attacked once, since nothing is switched off in it.
            memorized = sum(name.startswith("embeddings") for name in left)
            pictures = (1 if number else 2) * memorized + len(left) - memorized
            attacks = pictures * len(self.chaser.starts)
            total = attacks * self.chaser.samples_of_attack + len(left) * self.chaser.samples_of_aim
            if self.models.codec is not None:
                total += passes_compared(memorized, self.models.whole)
            self.models.progress.note(
                f"{attacks} embeddings of up to {self.effort.chase.budgets[-1]} steps, at most "
                f"{total:,} denoiser samples"
            )
            self.models.progress.stage("optimizing embeddings", total, "samples")
            if self.models.codec is not None:
                _ = self.models.unrelated
                self.models.progress.advance(passes_compared(0, self.models.whole))
        once = self.finished.once
        prompts = {
            index: once(f"embeddings {number} {index}", partial(self._memorized, index, number, off))
            for index in self.memorized
        }
        replicas = [one["replica"] for one in prompts.values() if one["judged"]]
        nearness = [one["nearness"] for one in prompts.values() if one["judged"] and one["nearness"]]
        rows = []
        for place, (kind, nth) in enumerate(controls if replicas else ()):
            # The yardstick of pictures that nothing replicates is the memorized ones' median.
            attack = partial(self._control, kind, nth, place, median(replicas), nearness, off)
            rows.append(once(f"control {number} {kind} {nth}", attack))
        return judged(prompts, rows)

    def _controls(self) -> list[tuple[str, int]]:
        kinds = ["ordinary"] + (["unseen"] if self.models.codec is not None else [])
        return [(kind, nth) for kind in kinds for nth in range(self.effort.chase.controls)]

    def _aim(self, index: int) -> Aim:
        """At the training picture, or at what the original draws."""
        if index not in self._aims:
            path = self.models.inputs.targets.get(index)
            target = None
            if path is not None and self.models.codec is not None:
                target = open_target(path, *self._size())
            aim = self.chaser.memorized(self.models.caption(index), target)
            if self.models.codec is not None:
                aim = replace(aim, near=self._near(index, aim))
            self._aims[index] = aim
        return self._aims[index]

    def _near(self, index: int, aim: Aim) -> Near:
        models, describe = self.models, self.models.likeness.describe
        assert aim.picture is not None, "there is an autoencoder"
        before = models.samples
        own = [describe(picture) for picture in models.pictures(index)]
        models.progress.advance(models.samples - before)
        part = TARGET_PART if index in models.inputs.targets else CONSENSUS_PART
        return near_to(models.likeness, [describe(aim.picture)], own, models.unrelated, part)

    def _size(self) -> tuple[int, int]:
        """Width and height of a picture."""
        assert self.models.codec is not None
        _, height, width = self.models.original.model.latent_shape
        return width * self.models.codec.factor, height * self.models.codec.factor

    def _memorized(self, index: int, number: int, off: frozenset[Neuron]) -> dict[str, Any]:
        aim, models = self._aim(index), self.models
        attacks = []
        if aim.judged:
            text = models.inputs.prompts[index]
            captions = [(PRUNED, models.pruned, models.pruned.prompts([text])[0])]
            if not number:
                captions.append((ORIGINAL, models.original, models.caption(index)))
            attacks = self.chaser.chase(aim, captions, off, first=10 * index)
        by_target = index in models.inputs.targets and models.codec is not None
        return {
            "judged": aim.judged,
            "target": "training picture" if by_target else "what the original draws",
            "picture": None if aim.picture is None else inlined(aim.picture),
            "chance": round(aim.chance, 5),
            "replica": round(aim.replica, 5),
            "nearness": aim.near and {"levels": aim.near.levels, "replica": aim.near.replica},
            "attacks": attacks,
        }

    def _control(
        self, kind: str, nth: int, place: int, replica: float, nearness: Sequence[dict[str, Any]],
        off: frozenset[Neuron],
    ) -> dict[str, Any]:  # fmt: skip
        """Attacks on a picture that nobody memorized, from an ordinary caption's embedding."""
        ordinary = self.models.inputs.ordinary()[UNRELATED:]
        text = ordinary[place % len(ordinary)]
        (prompt,) = self.models.original.prompts([text])
        if kind == "ordinary":
            aim = self.chaser.ordinary(prompt, replica, place)
        else:
            codec = self.models.codec
            assert codec is not None
            picture = unseen_pictures(self.models.inputs.unseen, nth + 1, *self._size())[nth]
            aim = self.chaser.aim(codec.encode(picture), replica, picture)
        if aim.picture is not None:
            # Where the memorized ones are compared with pictures of both kinds, what is kinder to it.
            every = all(index in self.models.inputs.targets for index in self.memorized)
            near = near_control(
                self.models.likeness, self.models.likeness.describe(aim.picture), nearness,
                self.models.unrelated, TARGET_PART if every else CONSENSUS_PART,
            )  # fmt: skip
            aim = replace(aim, near=near)
        pruned = self.models.pruned
        captions = [(PRUNED, pruned, pruned.prompts([text])[0])]
        given = kind == "unseen" and nth < len(self.models.inputs.unseen)
        return {
            "kind": kind,
            "number": nth,
            "given": given,
            "picture": None if aim.picture is None else inlined(aim.picture),
            "attacks": self.chaser.chase(aim, captions, off, first=5_000 + 10 * place),
        }

    def triggers(self, found: Round) -> list[Trigger]:
        """The embeddings that brought their pictures back, the earliest of each prompt first."""
        triggers = []
        for index, one in found["prompts"].items():
            back = [attack for attack in one["attacks"] if attack["came_back"]]
            back.sort(key=lambda attack: int(attack["back"]))
            for attack in back[: self.effort.chase.traced]:
                like = self.models.caption(index)
                how = f"an embedding of {attack['back']} steps from {attack['start']}"
                trigger = Trigger(index, how, unpacked(attack["embedding"], like), by_score=False)
                triggers.append(trigger)
        return triggers


def judged(prompts: Mapping[int, dict[str, Any]], controls: Sequence[dict[str, Any]]) -> Round:
    """Say of each attack whether its picture came back before any control did.

    Compared are attacks on the pruned model from the same kind of start: a caption's embedding, or a
    random one. A control that is there as early says that an embedding of so many steps draws anything.
    """

    def kind(attack: Mapping[str, Any]) -> bool:
        return bool(attack["start"].startswith("random"))

    def control(random: bool) -> int | None:
        backs = [
            attack["back"]
            for one in controls
            for attack in one["attacks"]
            if attack["model"] == PRUNED and kind(attack) is random and attack["back"] is not None
        ]
        return min(backs, default=None)

    first = {random: control(random) for random in (False, True)}

    def said(attack: Mapping[str, Any]) -> dict[str, Any]:
        limit = first[kind(attack)]
        there = attack["model"] == PRUNED and attack["back"] is not None
        earlier = there and (limit is None or attack["back"] < limit)
        return {**attack, "controls_back": limit, "came_back": earlier}

    found = {
        index: {**one, "attacks": [said(attack) for attack in one["attacks"]]}
        for index, one in prompts.items()
    }
    return {"prompts": found, "controls": list(controls)}


def published(found: Round) -> Round:
    """A round as a report holds it: without the embeddings, which draw what was memorized."""

    def without(attacks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in one.items() if k != "embedding"} for one in attacks]

    return {
        "prompts": {
            index: {**one, "attacks": without(one["attacks"])} for index, one in found["prompts"].items()
        },
        "controls": [{**one, "attacks": without(one["attacks"])} for one in found["controls"]],
    }
