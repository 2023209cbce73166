"""One round of optimized embeddings: every memorized picture, and the controls, as plain JSON."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
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
from nemo_prune.report.pictures import Picture
from nemo_prune.report.targets import open_target
from nemo_prune.scoring.sharing import Kept, kept, share

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
            models.original, models.pruned, self.effort, models.judges, models.codec,
            models.progress.advance,
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
        waiting = [i for i in self.memorized if f"embeddings {number} {i}" in left]
        asked = [(index, self._aims.get(index), self._target(index)) for index in waiting]

        def chased(place: int, found: tuple[Aim, list[Picture], dict[str, Any]]) -> None:
            index = waiting[place]
            self._aims[index], drawn, told = found
            if drawn:
                self.models.drawn[index] = drawn
            self.finished.add(f"embeddings {number} {index}", told)
            self._advance(1 if number else 2, 1, len(drawn))

        workers = self.models.workers
        if asked:
            share(workers, Chasing(self._kept, number, off), asked, chased, waiting)
        names = [f"embeddings {number} {index}" for index in self.memorized]
        prompts = dict(zip(self.memorized, map(self.finished.get, names), strict=True))
        replicas = [one["replica"] for one in prompts.values() if one["judged"]]
        if not replicas:
            return judged(prompts, [])
        # The yardstick of pictures that nothing replicates is the memorized ones' median; where those
        # are compared with pictures of both kinds, the part that is kinder to a control.
        every = all(index in self.models.inputs.targets for index in self.memorized)
        nearness = [one["nearness"] for one in prompts.values() if one["judged"] and one["nearness"]]
        part = TARGET_PART if every else CONSENSUS_PART
        chasing = Controlling(self._kept, Memorized(median(replicas), nearness, part), off)
        names = [f"control {number} {kind} {nth}" for kind, nth in controls]
        places = [place for place, name in enumerate(names) if name in left]

        def controlled(place: int, found: dict[str, Any]) -> None:
            self.finished.add(names[places[place]], found)
            self._advance(1, 1)

        given = [(place, *controls[place], self._unseen(*controls[place])) for place in places]
        if given:
            share(workers, chasing, given, controlled, [f"{place} of the controls" for place in places])
        return judged(prompts, [self.finished.get(name) for name in names])

    def _advance(self, models: int, aims: int, drawn: int = 0) -> None:
        """Tell of a picture that workers attacked, who would not see the progress."""
        if self.models.workers:
            chaser = self.chaser
            attacks = models * len(chaser.starts) * chaser.samples_of_attack
            pictures = drawn * self.models.whole.passes
            self.models.progress.advance(attacks + aims * chaser.samples_of_aim + pictures)

    @cached_property
    def _kept(self) -> Kept["Rounds"]:
        _ = self.chaser  # draws what is ordinary, once for all
        if self.models.codec is not None:
            _ = self.models.unrelated
        return kept(self.models.workers, self)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "models": self.models, "memorized": (), "finished": Finished(None), "effort": self.effort,
            "_aims": {},
        }  # fmt: skip

    def _controls(self) -> list[tuple[str, int]]:
        kinds = ["ordinary"] + (["unseen"] if self.models.codec is not None else [])
        return [(kind, nth) for kind in kinds for nth in range(self.effort.chase.controls)]

    def _target(self, index: int) -> Picture | None:
        """The training picture, where there is one that can be aimed at."""
        path = self.models.inputs.targets.get(index)
        if path is None or self.models.codec is None:
            return None
        return open_target(path, *self._size())

    def _unseen(self, kind: str, nth: int) -> Picture | None:
        """A control's picture that the model never saw."""
        if kind == "ordinary":
            return None
        return unseen_pictures(self.models.inputs.unseen, nth + 1, *self._size())[nth]

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

    def attacked(
        self, index: int, aim: Aim | None, target: Picture | None, number: int, off: frozenset[Neuron]
    ) -> tuple[Aim, list[Picture], dict[str, Any]]:
        """Attacks on a memorized picture; with the original's pictures, if those were drawn for its aim.

        aim: at the training picture, or at what the original draws; None: not drawn before.
        """
        models, drawn = self.models, list[Picture]()
        if aim is None:
            aim = self.chaser.memorized(models.caption(index), target)
            if models.codec is not None:
                aim, drawn = replace(aim, near=self._near(index, aim)), models.pictures(index)
        attacks = []
        if aim.judged:
            text = models.inputs.prompts[index]
            captions = [(PRUNED, models.pruned, models.pruned.prompts([text])[0])]
            if not number:
                captions.append((ORIGINAL, models.original, models.caption(index)))
            own = [] if number or models.codec is None else models.pictures(index)
            attacks = self.chaser.chase(aim, captions, off, first=10 * index, own=own)
        return (
            aim,
            drawn,
            {
                "judged": aim.judged,
                "target": "what the original draws" if target is None else "training picture",
                "picture": None if aim.picture is None else inlined(aim.picture),
                "chance": round(aim.chance, 5),
                "replica": round(aim.replica, 5),
                "nearness": aim.near and {"levels": aim.near.levels, "replica": aim.near.replica},
                "attacks": attacks,
            },
        )

    def control(
        self, kind: str, nth: int, place: int, picture: Picture | None, memorized: "Memorized",
        off: frozenset[Neuron],
    ) -> dict[str, Any]:  # fmt: skip
        """Attacks on a picture that nobody memorized, from an ordinary caption's embedding."""
        ordinary = self.models.inputs.ordinary()[UNRELATED:]
        text = ordinary[place % len(ordinary)]
        (prompt,) = self.models.original.prompts([text])
        if picture is None:
            aim = self.chaser.ordinary(prompt, memorized.replica, place)
        else:
            assert self.models.codec is not None
            aim = self.chaser.aim(self.models.codec.encode(picture), memorized.replica, picture)
        if aim.picture is not None:
            near = near_control(
                self.models.likeness, self.models.likeness.describe(aim.picture), memorized.nearness,
                self.models.unrelated, memorized.part,
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


@dataclass(frozen=True)
class Chasing:
    """Work: attacks of a round on memorized pictures; the aim of each too, for the next round."""

    rounds: Kept[Rounds]
    number: int
    off: frozenset[Neuron]

    def __call__(
        self, items: Sequence[tuple[int, Aim | None, Picture | None]]
    ) -> Iterator[tuple[int, tuple[Aim, list[Picture], dict[str, Any]]]]:
        for place, one in enumerate(items):
            yield place, self.rounds.get().attacked(*one, self.number, self.off)


@dataclass(frozen=True)
class Memorized:
    """The yardstick of controls: the memorized pictures' r of 1 and nearness, see `near_control`."""

    replica: float
    nearness: Sequence[Mapping[str, Mapping[str, float]]]
    part: float


@dataclass(frozen=True)
class Controlling:
    """Work: attacks of a round on controls, by what the memorized pictures are measured with."""

    rounds: Kept[Rounds]
    memorized: "Memorized"
    off: frozenset[Neuron]

    def __call__(
        self, items: Sequence[tuple[int, str, int, Picture | None]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for place, (number, kind, nth, picture) in enumerate(items):
            rounds = self.rounds.get()
            yield place, rounds.control(kind, nth, number, picture, self.memorized, self.off)


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
