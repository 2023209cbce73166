"""Which neurons a trigger uses: the search's own under other words and under optimized embeddings.

If what brings a picture back hangs on the neurons that the caption hung on, the memory is local and was
not removed whole; if on others, it lies in several places, and more pruning may find yet another.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from nemo_prune.audit.inputs import Models
from nemo_prune.checkpoint.neurons import Neuron, union
from nemo_prune.localize.confirm import UNRELATED, Confirmation
from nemo_prune.localize.localize import Moved, scope_of
from nemo_prune.options import Progress, Silent
from nemo_prune.scoring.engine import Job, Prompt
from nemo_prune.scoring.ordinary import Ordinary
from nemo_prune.scoring.searching import run_searches
from nemo_prune.search.protocol import Outcome

_ORDINARY = 20  # prompts that drift is measured on


@dataclass(frozen=True, eq=False)
class Trigger:
    """Something that brought a prompt's picture back.

    how: in words. word: its place among the prompt's wordings; None: an embedding. by_score: whether
    the score called it memorized.
    """

    index: int
    how: str
    prompt: Prompt
    by_score: bool
    word: int | None = None


class _Notes(Silent):
    """The notes of a progress whose bar counts something else."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def note(self, text: str) -> None:
        self._progress.note(text)


class Locator:
    """Searches the neurons under triggers in the original model, with some of them off."""

    def __init__(self, models: Models) -> None:
        self.models, self.engine = models, models.original
        inputs = models.inputs
        ordinary = Ordinary(self.engine, inputs.original, inputs.options, None, models.progress)
        statistics, _ = ordinary.statistics
        narrow = [layer.name for layer in inputs.original.select(inputs.options.layers)]
        every = [layer.name for layer in inputs.original.value_layers]
        # The default search, whatever found the neurons that are removed.
        options = replace(inputs.options, search="auto", as_published=False)
        self._scopes = [
            scope_of(self.engine, inputs.original, names, statistics, options, inputs.tau)
            for names in ([narrow] if every == narrow else [narrow, every])
        ]
        self._own: dict[int, tuple[Neuron, ...]] = {}

    def own(self, index: int) -> tuple[Neuron, ...]:
        """The neurons that a prompt's caption itself hangs on."""
        if index not in self._own:
            trigger = Trigger(index, "", self.models.caption(index), by_score=True)
            self._own[index] = self.under(trigger)[0]
        return self._own[index]

    def under(self, trigger: Trigger) -> tuple[tuple[Neuron, ...], str | None]:
        """The search's own neurons in the unpruned model, and by what they were found.

        By the score where it calls the trigger memorized, else by trajectories if the effort is deep.
        """
        scope, seeds = self._scopes[0], tuple(range(self.models.inputs.options.seeds))
        job = Job(trigger.prompt, scope.begin(trigger.prompt, seeds), layers=scope.layers)
        found: list[Outcome] = run_searches(self.engine, [job])
        if found[0].status != "not memorized":
            return found[0].neurons, "score"
        if not self.models.inputs.effort.chase.deep:
            return (), None
        return self._by_trajectory(trigger, frozenset()), "trajectory"

    def further(self, trigger: Trigger, off: frozenset[Neuron]) -> tuple[Neuron, ...]:
        """The neurons that must go besides those that are off, so that the picture does too.

        () where nothing more has to, or where it cannot be had at a drift that is worth it.
        """
        found: tuple[Neuron, ...] = ()
        if trigger.by_score:
            baseline = self.models.baseline(trigger.index)
            for scope in self._scopes:
                search = scope.begin(trigger.prompt, tuple(baseline))
                job = Job(trigger.prompt, search, dict(baseline), off, layers=scope.layers)
                outcomes: list[Outcome] = run_searches(self.engine, [job])
                (outcome,) = outcomes
                if outcome.status != "not removable":
                    found = outcome.neurons
                    break
        more = self._by_trajectory(trigger, off | set(found))
        return union(neuron for neuron in (*found, *more) if neuron not in off)

    def _by_trajectory(self, trigger: Trigger, off: frozenset[Neuron]) -> tuple[Neuron, ...]:
        confirmation = self._confirmation.apart()
        confirmation.references[0] = self.models.reference(trigger.index)
        confirmation.result.passes[0] = 0
        scopes = [(scope.layers, scope.candidates) for scope in self._scopes]
        confirmation.remove(0, trigger.prompt, off, scopes, self.models.inputs.options.rounds)
        return confirmation.result.neurons.get(0, ())

    @cached_property
    def _confirmation(self) -> Confirmation:
        """Without references; what it draws of ordinary prompts serves all triggers."""
        models, inputs = self.models, self.models.inputs
        return Confirmation(
            self.engine, models.schedule, models.judges.unrelated, _Notes(models.progress),
            inputs.options.confirm_trajectories, self.drift, inputs.ordinary()[:UNRELATED],
        )  # fmt: skip

    def drift(self, off: frozenset[Neuron]) -> float:
        """How far ordinary prompts move from the original with these neurons off."""
        return round(self._moved(off), 5)

    @cached_property
    def _moved(self) -> Moved:
        return Moved(self.engine, self.engine.prompts(self.models.inputs.ordinary()[:_ORDINARY]))


def overlap(locator: Locator, trigger: Trigger) -> dict[str, Any]:
    """How much a trigger's own neurons are the caption's, as plain JSON.

    "neurons", "caption": how many either has; "shared" by both; "removed": how many of the trigger's
    the pruned model lacks; "by": what they were found by, None where they were not searched; "rows":
    which they are.
    """
    neurons, by = locator.under(trigger)
    own = set(locator.own(trigger.index))
    return {
        "index": trigger.index,
        "word": trigger.word,
        "how": trigger.how,
        "neurons": len(neurons),
        "caption": len(own),
        "shared": len(own.intersection(neurons)),
        "removed": len(locator.models.removed.intersection(neurons)),
        "by": by,
        "rows": [neuron._asdict() for neuron in neurons],
    }
