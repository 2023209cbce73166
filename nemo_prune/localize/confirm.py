"""Whether a prompt's picture is really gone: trajectories with the union off, and more neurons if not.

The score at one early timestep is a screen. Here every prompt that it calls suppressed is drawn a little
way from fresh seeds (`trajectory`), in more steps where few leave it unclear; of one that is still drawn
the search goes on from what is off already, with an attribution taken through the trajectory, first in
the searched layers, then in all.
Prompts are taken one after the other, so that each profits from what is off for those before it.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from nemo_prune.checkpoint.neurons import Neuron, union
from nemo_prune.checkpoint.statuses import GONE
from nemo_prune.options import Progress, Recorded
from nemo_prune.scoring.engine import Engine, Job, Prompt, Sample
from nemo_prune.scoring.searching import run_searches
from nemo_prune.scoring.sharing import Kept
from nemo_prune.scoring.trajectory import Ends, Reference, Schedule, reference_from, schedule_from
from nemo_prune.search.auto import Candidates, trajectory_search
from nemo_prune.search.protocol import Outcome

FIRST_SEED = 20_000
"""Trajectories are drawn from seeds from here on: no score ever uses them."""
SEEDS = 8
"""Seeds that a verdict is about."""
UNRELATED = 16
"""Ordinary prompts whose trajectories say how alike unrelated pictures are; ten passes each."""
_UNRELATED_SEED = 30_000
_WIDTHS = (1, 2, 5)  # seeds asked at once: mostly the first tells that a picture is drawn
MOST_DRIFT = 0.5
"""Of ordinary prompts' cross-attention outputs: neurons for one picture that move them further with the
rest are not taken, since little of the model would be left."""
_UNCLEAR = 0.2
"""r from which on a few steps have not settled it: pictures fade by degrees. Of the noises between this
and GONE some draw the picture in the end; in twice as many steps r tells which (docs/method.md)."""
_LONGER, _UNCLEAR_SEEDS = 2, 3  # times as many steps, for so many seeds of the largest r
_GOAL = 0.25  # what a search must reach, so that other seeds stay below GONE


@dataclass
class Confirmed:
    """What became of the prompts, by number.

    remaining: the largest r over the seeds that were last asked, with the union off, in more steps
        where few left it unclear; below GONE the picture is gone. None where the unpruned model's own
        trajectories do not agree.
    neurons: what was added for a prompt. outcomes: of the searches that added it. passes: denoiser
        samples spent on a prompt, backward passes counted. widened: prompts that needed all layers.
    exhausted: prompts that are drawn though every neuron that may be searched is off. rough: prompts
        whose added neurons were not all shown to be needed, since that takes more passes. harmful:
        prompts whose picture would go with so many neurons that ordinary prompts drift this far, more
        than MOST_DRIFT; they were not taken.
    """

    remaining: dict[int, float | None] = field(default_factory=dict)
    neurons: dict[int, tuple[Neuron, ...]] = field(default_factory=dict)
    outcomes: dict[int, list[Outcome]] = field(default_factory=dict)
    passes: dict[int, int] = field(default_factory=dict)
    widened: set[int] = field(default_factory=set)
    exhausted: set[int] = field(default_factory=set)
    rough: set[int] = field(default_factory=set)
    harmful: dict[int, float] = field(default_factory=dict)
    ordinary: int = 0
    in_vain: int = 0

    def add(self, one: "Confirmed") -> None:
        """Take in what became of a prompt."""
        for name in ("remaining", "neurons", "outcomes", "harmful"):
            getattr(self, name).update(getattr(one, name))
        self.ordinary += one.ordinary
        for index, passes in one.passes.items():
            self.passes[index] = self.passes.get(index, 0) + passes
        for name in ("widened", "exhausted", "rough"):
            getattr(self, name).update(getattr(one, name))

    def drawn(self, index: int) -> bool:
        """Whether the prompt's picture is still drawn."""
        remaining = self.remaining.get(index)
        return remaining is not None and remaining >= GONE


class Confirmation:
    """Confirms prompts by trajectories, with some neurons off.

    Args:
        engine: of the unpruned model.
        schedule: of the trajectories.
        unrelated: ends of ordinary prompts' trajectories, from `unrelated_ends`.
        progress: is told of every sample.
        trajectories: how many a prompt is worth; after as many its further neurons are not shown one by
            one to be needed. 0: no end.
        drift: how far ordinary prompts move with some neurons off.
        ordinary: captions whose longer trajectories are drawn, once, if any prompt is unclear; none: the
            schedule's own steps decide.
        known: ends of ordinary trajectories, as `unrelated_ends` takes them; shared, so that they are
            drawn once.
    """

    def __init__(
        self,
        engine: Engine,
        schedule: Schedule,
        unrelated: Sequence[Tensor],
        progress: Progress,
        trajectories: int = 0,
        drift: Callable[[frozenset[Neuron]], float] = lambda _off: 0.0,
        ordinary: Sequence[str] = (),
        known: Ends | None = None,
    ) -> None:
        self.engine, self.schedule, self.progress = engine, schedule, progress
        self.trajectories, self.drift = trajectories, drift
        self.unrelated = unrelated
        self.result = Confirmed()
        self.references: dict[int, Reference] = {}
        self.ordinary, self.known = ordinary, {} if known is None else known
        steps = _LONGER * len(schedule.timesteps)
        self._longer_schedule = schedule_from(schedule.timesteps[0], steps, schedule.guidance)
        self._longer: dict[int, Reference] = {}

    def refer_all(
        self, indices: Sequence[int], prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]]
    ) -> None:
        """`refer` for many prompts."""
        items = list(zip(indices, prompts, seeds, strict=True))
        self.engine.each(Referring(self), items, lambda _place, part: self._take(part), numbers=indices)

    def remove_all(
        self,
        indices: Sequence[int],
        prompts: Sequence[Prompt],
        off: Collection[Neuron],
        scopes: Sequence[tuple[Sequence[str], Candidates]],
        rounds: int,
    ) -> Iterator[int]:
        """`remove` for one prompt after the other; gives each as it is done.

        Workers look at several with the same neurons off. That counts up to the first for which more
        went off; the others are looked at again, so that it ends as if there were no workers.
        """
        off = frozenset(off)
        left = list(zip(indices, prompts, strict=True))
        kept = self.engine.keep((self, scopes, rounds))
        while left:
            some = left[: self.engine.width]
            items = [
                (index, prompt, self.references[index], self.result.passes[index])
                for index, prompt in some
            ]
            numbers = [index for index, _ in some]
            parts: list[_Part] = self.engine.each(Removing(kept, off), items, numbers=numbers)
            for place, part in enumerate(parts):
                if part.off != off or place == len(parts) - 1:
                    break
            done = place + 1
            self.result.in_vain += sum(sum(part.result.passes.values()) for part in parts[done:])
            for (index, _), part in zip(some, parts[:done], strict=False):
                self._take(part)
                yield index
            off, left = parts[place].off, left[done:]

    def apart(self) -> "Confirmation":
        """The same without what was found."""
        return Confirmation(
            self.engine, self.schedule, self.unrelated, self.progress, self.trajectories, self.drift,
            self.ordinary, self.known,
        )  # fmt: skip

    def part(self, off: frozenset[Neuron] = frozenset()) -> "_Part":
        """What was found."""
        told = self.progress if isinstance(self.progress, Recorded) else None
        return _Part(self.result, self.references, off, told)

    def _take(self, part: "_Part") -> None:
        self.result.add(part.result)
        self.references |= part.references
        if part.told:
            part.told.replay(self.progress)

    def __getstate__(self) -> dict[str, Any]:
        # Elsewhere nobody sees the progress.
        return {**self.__dict__, "progress": Recorded(), "result": Confirmed(), "references": {}}

    def refer(self, index: int, prompt: Prompt, seeds: Sequence[int]) -> Reference:
        """Draw the unpruned model's trajectories of a prompt from the seeds; two are enough."""
        reference = self._refer(index, prompt, seeds, self.schedule, self.unrelated)
        self.references[index] = reference
        return reference

    def _refer(
        self, index: int, prompt: Prompt, seeds: Sequence[int], schedule: Schedule,
        unrelated: Sequence[Tensor],
    ) -> Reference:  # fmt: skip
        before = self.engine.cost.samples
        samples = [Sample(prompt, frozenset(), seed) for seed in seeds]
        ends = self.engine.trajectories(samples, schedule, self.progress.advance)
        self._spent(index, before)
        return reference_from(schedule, dict(zip(seeds, ends, strict=True)), unrelated)

    def look(
        self, index: int, prompt: Prompt, off: frozenset[Neuron], seeds: Sequence[int]
    ) -> dict[int, float]:
        """r of the seeds, a few at a time, until one is drawn or all are gone; notes what remains.

        Where that is unclear, the seeds of the largest r are drawn in more steps, which decide.
        """
        before, found = self.engine.cost.samples, dict[int, float]()
        reference = self.references[index]
        if not reference.judged:
            self.result.remaining[index] = None
            return found
        left = list(seeds)
        for width in _WIDTHS:
            some, left = left[:width], left[width:]
            samples = [Sample(prompt, off, seed) for seed in some]
            ends = self.engine.trajectories(samples, self.schedule, self.progress.advance)
            found |= reference.remaining(dict(zip(some, ends, strict=True)))
            if max(found.values()) >= GONE:
                break
        self._spent(index, before)
        largest = max(found.values())
        if self.ordinary and _UNCLEAR <= largest < GONE:
            largest = self._look_longer(index, prompt, off, found)
        self.result.remaining[index] = largest
        return found

    def _look_longer(
        self, index: int, prompt: Prompt, off: frozenset[Neuron], found: Mapping[int, float]
    ) -> float:
        """The largest r of the unclear seeds in more steps, one at a time, until one is drawn."""
        before = self.engine.cost.samples
        unrelated = unrelated_ends(
            self.engine, self.ordinary, self._longer_schedule, self.progress, self.known
        )
        if self.engine.cost.samples > before:
            self.result.ordinary += self.engine.cost.samples - before
            self.progress.stage("confirming by trajectories", None, "samples")
        if index not in self._longer:
            seeds = list(self.references[index].by_seed)
            self._longer[index] = self._refer(index, prompt, seeds, self._longer_schedule, unrelated)
        before, largest = self.engine.cost.samples, -math.inf
        unclear = [seed for seed in found if found[seed] >= _UNCLEAR]
        for seed in sorted(unclear, key=lambda seed: -found[seed])[:_UNCLEAR_SEEDS]:
            (end,) = self.engine.trajectories(
                [Sample(prompt, off, seed)], self._longer_schedule, self.progress.advance
            )
            largest = max(largest, self._longer[index].remaining({seed: end})[seed])
            if largest >= GONE:
                break
        self._spent(index, before)
        return largest

    def remove(
        self,
        index: int,
        prompt: Prompt,
        off: Collection[Neuron],
        scopes: Sequence[tuple[Sequence[str], Candidates]],
        rounds: int,
    ) -> frozenset[Neuron]:
        """Look with `off` off; where the picture is drawn, search further neurons. What is off then.

        scopes: layers to search and what they hold, the narrowest first; the next is tried where one
            is not enough. rounds: how often seeds that no search saw may send it back.
        """
        everything = frozenset(off)
        scope = 0
        known: list[dict[Neuron, float]] = [{} for _ in scopes]
        for round_ in range(rounds + 1):
            first = FIRST_SEED + round_ * SEEDS
            seeds = range(first, first + SEEDS)
            seen = self.look(index, prompt, everything, seeds)
            if not self.result.drawn(index) or round_ == rounds:
                break
            largest = max(seen.values())
            asked = [*seen, *(seed for seed in seeds if seed not in seen)]
            remaining = {seed: seen.get(seed, largest) for seed in asked}
            # What only more steps show to be drawn must go further down in a few.
            goal = _GOAL if largest >= GONE else _UNCLEAR
            while scope < len(scopes):
                layers, candidates = scopes[scope]
                found = self._search(
                    index, prompt, everything, remaining, goal, layers, candidates, known[scope]
                )
                if found.status == "localized":
                    break
                scope += 1
                if scope < len(scopes):
                    self.progress.note(f"prompt {index}: still drawn, so all layers are searched")
            if scope == len(scopes):
                if scopes:
                    self.result.exhausted.add(index)
                break
            self.result.outcomes.setdefault(index, []).append(found)
            more = everything | set(found.neurons)
            before = self.engine.cost.samples
            drift = self.drift(more)
            self._spent(index, before)
            if drift > MOST_DRIFT:
                self.result.harmful[index] = drift
                self.progress.note(
                    f"prompt {index}: its picture would go with {len(found.neurons)} further neurons, "
                    f"which move ordinary prompts by {drift:.0%}; more than {MOST_DRIFT:.0%} is not done"
                )
                break
            if scope:
                self.result.widened.add(index)
            self.result.neurons[index] = union(self.result.neurons.get(index, ()), found.neurons)
            everything = more
        return everything

    def _search(
        self,
        index: int,
        prompt: Prompt,
        off: frozenset[Neuron],
        remaining: Mapping[int, float],
        goal: float,
        layers: Sequence[str],
        candidates: Candidates,
        known: dict[Neuron, float],
    ) -> Outcome:
        before = self.engine.cost.samples
        left = Candidates(tuple(n for n in candidates.order if n not in off), candidates.harm)
        enough = math.inf
        if self.trajectories:
            spent = self.result.passes[index] // self.schedule.passes + SEEDS  # the last look
            enough = max(0, self.trajectories - spent)
        search = trajectory_search(left, remaining, goal, known, enough)
        job = Job(prompt, search, base=off, reference=self.references[index], layers=layers)
        found: list[Outcome] = run_searches(self.engine, [job], on_samples=self.progress.advance)
        self._spent(index, before)
        if not found[0].minimal:
            self.result.rough.add(index)
        return found[0]

    def _spent(self, index: int, before: int) -> None:
        self.result.passes[index] = self.result.passes.get(index, 0) + self.engine.cost.samples - before


@dataclass(frozen=True)
class _Part:
    """What was found of some prompts, what is off then, and what was told of it elsewhere."""

    result: Confirmed
    references: dict[int, Reference]
    off: frozenset[Neuron]
    told: Recorded | None


@dataclass(frozen=True)
class Referring:
    """Work: draw the unpruned model's trajectories of prompts from their seeds."""

    confirmation: Confirmation

    def __call__(
        self, items: Sequence[tuple[int, Prompt, Sequence[int]]]
    ) -> Iterator[tuple[int, _Part]]:
        for place, item in enumerate(items):
            one = self.confirmation.apart()
            one.refer(*item)
            yield place, one.part()


@dataclass(frozen=True)
class Removing:
    """Work: look at prompts with neurons off, and search further for each that is drawn."""

    kept: Kept[tuple[Confirmation, Sequence[tuple[Sequence[str], Candidates]], int]]
    off: frozenset[Neuron]

    def __call__(
        self, items: Sequence[tuple[int, Prompt, Reference, int]]
    ) -> Iterator[tuple[int, _Part]]:
        confirmation, scopes, rounds = self.kept.get()
        for place, (index, prompt, reference, passes) in enumerate(items):
            one = confirmation.apart()
            one.references[index] = reference
            one.result.passes[index] = passes  # as many were spent on it before
            off = one.remove(index, prompt, self.off, scopes, rounds)
            one.result.passes[index] -= passes
            yield place, one.part(off)


def unrelated_ends(
    engine: Engine, ordinary: Sequence[str], schedule: Schedule, progress: Progress,
    known: Ends | None = None,
) -> list[Tensor]:  # fmt: skip
    """Where ordinary prompts' trajectories end, one seed each; those in `known` are not drawn again, and
    the others are added to it."""
    texts = ordinary[:UNRELATED]
    known, key = {} if known is None else known, (schedule, tuple(texts))
    if key in known:
        return known[key]
    progress.stage("drawing ordinary trajectories", len(texts) * schedule.passes, "samples")
    samples = [
        Sample(prompt, frozenset(), _UNRELATED_SEED + place)
        for place, prompt in enumerate(engine.prompts(texts))
    ]
    known[key] = engine.trajectories(samples, schedule, progress.advance)
    return known[key]
