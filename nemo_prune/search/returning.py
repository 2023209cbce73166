"""The search after an attribution: what is not needed comes back at once, the rest is proved.

An attribution says, to first order, what each neuron does while all of them are on; the shortest prefix
of that order which is enough holds many neurons that are not needed beside the others. Which ones, a
second gradient says: with the whole prefix off it tells what each neuron's return would bring back, and
there first order is near the truth, since returns are small. So neurons come back many at once, least
memory for most harm first, as many as the seeds accept; the few that are left are tried one by one,
which is their proof at the same time.

Seeds are asked as group testing asks them: a few decide, all of them judge the result, and one that
objects joins in. It takes back what was returned last, as little as it needs. Where the order is of no
use to it, it gets one of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.search.answer_cache import AnswerCache, Mask
from nemo_prune.search.group_testing import GroupTesting, Schedule, prefix_schedule
from nemo_prune.search.protocol import Attribute, Attribution, Steps

_HALFWAY = (0.5,)  # of a seed's own attribution: what it is for is a better order than others'
_OFF = (0.0,)  # the point at which a gradient says what a return brings back
_GRADIENT_SEEDS = 2
_FEW = 4  # neurons that must have come back together for another gradient to be worth its cost
_SINGLY = 40  # neurons, of which so few are returned one by one: that is their proof at the same time
_FARTHER = 1.3  # times as many candidates: how far an objecting seed is followed along the order


class Returning(GroupTesting):
    """Group testing of a long prefix by gradients; gives up (`exhausted`) where answers contradict it.

    Args:
        harm: what each neuron does for ordinary prompts, above 0.
    """

    def __init__(
        self,
        cache: AnswerCache,
        before: dict[int, float],
        seeds: Sequence[int],
        schedule: Schedule,
        harm: Mapping[Neuron, float],
    ) -> None:
        super().__init__(cache, before, seeds, schedule)
        self.harm = harm
        self.returned: list[int] = []  # bits, the first returned first
        self.returns: dict[int, float] = {}  # bit -> what its return would bring back, over its harm

    def run(self) -> Steps[tuple[float | None, Mask]]:
        """The prefix used; `kept` is left valid and 1-minimal, unless it is `exhausted`."""
        rung = yield from self.find_rung(0)
        if not self.exhausted:
            rung = yield from self.agree(rung)
        gradient = True
        while not self.exhausted:
            if gradient:
                yield from self.shrink()
            yield from self.sift()
            objector = yield from self.objecting()
            if objector is None:
                for bit in self.schedule.weakest_first:
                    self.needed_by.setdefault(bit, self.active[0])
                yield from self.prove()
                break
            before = len(self.returned)
            rung = yield from self.take_back(rung)
            gradient = before - len(self.returned) > _FEW
        return self.rungs[rung]

    def objecting(self) -> Steps[int | None]:
        """A seed that refuses `kept`, which joins the active ones; None if all accept it."""
        objector = yield from self.objector(self.kept, self.hardest(self.memorized))
        if objector is not None:
            # Inferred to accept the set, and does not: the answers are not monotone.
            self.exhausted |= objector in self.active
            self.active.insert(0, objector)
        return objector

    def agree(self, rung: int) -> Steps[int]:
        """The first rung from `rung` on that all seeds accept, which `kept` then is."""
        self.kept = self.rungs[rung][1]
        while not self.exhausted and (objector := (yield from self.objecting())) is not None:
            if self.exhausted or rung == len(self.rungs) - 1:
                self.exhausted = True
                break
            rung = yield from self.follow(objector, rung)
            self.kept = self.rungs[rung][1]
        self.returned.clear()
        return rung

    def follow(self, objector: int, rung: int) -> Steps[int]:
        """A further rung that the objector accepts; in an order of its own if this one is of no help."""
        far = next(
            (
                place
                for place in range(rung + 1, len(self.rungs))
                if self.rungs[place][1].bit_count() >= _FARTHER * self.kept.bit_count()
            ),
            len(self.rungs) - 1,
        )
        if not (yield from self.accepted(self.rungs[far][1])):
            off = frozenset(self.cache.neurons(self.kept))
            wanted = Attribute((objector,), off, points=_HALFWAY)
            found = yield from self.cache.tally.attribute(wanted)
            self.reorder(found)
        return (yield from self.find_rung(rung + 1))

    def reorder(self, attribution: Attribution) -> None:
        """Order what lies beyond `kept` anew; rungs keep their sizes."""
        order = [self.cache.order[bit] for bit in reversed(self.schedule.weakest_first)]
        inside = [neuron for neuron in order if self.kept >> self.cache.bit(neuron) & 1]
        beyond = [neuron for neuron in order if not self.kept >> self.cache.bit(neuron) & 1]
        beyond.sort(key=lambda neuron: -attribution.get(neuron, 0.0) / self.harm[neuron])
        self.schedule = prefix_schedule([*inside, *beyond], self.cache)
        self.rungs = self.schedule.rungs

    def shrink(self) -> Steps[None]:
        """Return as many at once as the active seeds accept, while that is worth a gradient."""
        while self.kept.bit_count() > 1:
            order, guess = yield from self.by_return()
            if len(order) <= _SINGLY:
                return
            count = yield from self.most(order, guess)
            self.give_back(order[:count])
            if count < max(_FEW, len(order) // 8):
                return

    def by_return(self) -> Steps[tuple[list[int], int]]:
        """`kept`, least memory brought back for most harm first, and how many that may be."""
        # The one that objected last, and the one that holds on longest.
        hardest = dict.fromkeys([self.active[0], *self.hardest(self.memorized)])
        seeds = tuple(hardest)[:_GRADIENT_SEEDS]
        self.active += [seed for seed in seeds if seed not in self.active]
        off = frozenset(self.cache.neurons(self.kept))
        wanted = Attribute(seeds, among=off, points=_OFF)
        found = yield from self.cache.tally.attribute(wanted)
        memory = {self.cache.bit(n): value / len(seeds) for n, value in found.items()}
        self.returns = {bit: v / self.harm[self.cache.order[bit]] for bit, v in memory.items()}
        order = self.ascending()
        left = self.cache.threshold - max(self.last[seed] for seed in seeds)
        for guess, bit in enumerate(order):
            left -= memory[bit]
            if left < 0:
                return order, guess
        return order, len(order)

    def ascending(self) -> list[int]:
        """The bits of `kept` by what their return would bring back, the least first."""
        bits = [bit for bit in self.schedule.weakest_first if self.kept >> bit & 1]
        return sorted(bits, key=lambda bit: self.returns.get(bit, math.inf))

    def most(self, order: Sequence[int], guess: int) -> Steps[int]:
        """How many of the first of the order may come back: about as many as the active seeds accept."""
        low, high = 0, len(order)  # nothing off is never accepted
        at = min(max(1, guess), high - 1)
        while high - low > 1 + low // 4:
            if (yield from self.accepted(self.kept & ~_mask(order[:at]))):
                low, at = at, min(high - 1, at + max(2, at // 2))
            else:
                high, at = at, (low + at) // 2
            at = min(max(at, low + 1), high - 1)
        return low

    def sift(self) -> Steps[None]:
        """Return what the active seeds do not miss, one by one; more at once where several may go."""
        order, start, size, run = self.ascending(), 0, 1, 0
        while start < len(order):
            some = order[start : start + size]
            if (yield from self.accepted(self.kept & ~_mask(some))):
                self.give_back(some)
                start, run = start + len(some), run + 1
                size = 2 * size if run > 1 else 1
            elif len(some) > 1:
                size, run = len(some) // 2, 0
            else:
                self.needed_by[some[0]] = self.active[0]
                start, run = start + 1, 0

    def give_back(self, bits: Sequence[int]) -> None:
        """Return neurons; `kept` is without them."""
        self.kept &= ~_mask(bits)
        self.returned += bits

    def take_back(self, rung: int) -> Steps[int]:
        """Take back what was returned last, as little as all active seeds need; the rung used."""
        whole = self.kept | _mask(self.returned)
        if not (yield from self.accepted(whole)):
            return (yield from self.agree(rung))
        low, high = 0, len(self.returned)
        while high - low > 1:
            middle = (low + high) // 2
            if (yield from self.accepted(whole & ~_mask(self.returned[:middle]))):
                low = middle
            else:
                high = middle
        self.kept = whole & ~_mask(self.returned[:low])
        del self.returned[low:]
        return rung


def _mask(bits: Sequence[int]) -> Mask:
    mask = 0
    for bit in bits:
        mask |= 1 << bit
    return mask
