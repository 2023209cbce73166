"""What is done about what came back: where it lies, hardening against embeddings, a repaired model."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from nemo_prune.audit.chasing import Round, Rounds
from nemo_prune.audit.finished import Finished
from nemo_prune.audit.inputs import AuditInputs, Models
from nemo_prune.audit.neurons import Locator, Trigger, overlap
from nemo_prune.audit.triggers import try_words
from nemo_prune.checkpoint.apply import write_model
from nemo_prune.checkpoint.neurons import Neuron, union
from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.options import Progress, Writing

Words = Mapping[int, Mapping[str, Any]]


class Mending:
    """Searches the neurons under what came back.

    words: what `try_words` found of each prompt.
    """

    def __init__(self, models: Models, words: Words, rounds: Rounds, finished: Finished) -> None:
        self.models, self.words, self.rounds, self.finished = models, words, rounds, finished

    @cached_property
    def locator(self) -> Locator:
        return Locator(self.models)

    def _worded(self, most: int | None) -> list[Trigger]:
        """The wordings that brought a picture back, the highest first; at most so many of a prompt."""
        found = []
        for index, one in self.words.items():
            back = [(place, word) for place, word in enumerate(one["words"]) if word["back"]]
            back.sort(key=lambda pair: -pair[1]["alike"])
            if not back:
                continue
            tried = self.models.inputs.variations(index)
            chosen = back[:most]
            prompts = self.models.original.prompts([tried[word["place"]].text for _, word in chosen])
            found += [
                Trigger(index, word["how"], prompt, "score" in word["back"], place)
                for (place, word), prompt in zip(chosen, prompts, strict=True)
            ]
        return found

    def overlaps(self, first: Round) -> list[dict[str, Any]]:
        """`overlap` of the triggers that were found."""
        triggers = [*self._worded(self.rounds.effort.chase.traced), *self.rounds.triggers(first)]
        if not triggers:
            return []
        self.models.progress.stage("searching the neurons of what came back", len(triggers), "triggers")
        found = []
        for number, trigger in enumerate(triggers):
            search = partial(overlap, self.locator, trigger)
            found.append(self.finished.once(f"where {number}", search))
            self.models.progress.advance()
        return found

    def harden(self, first: Round, times: int) -> list[dict[str, Any]]:
        """Switch off what the embeddings of a round use, attack again, so many times.

        Returns:
            Of each round what `Rounds.run` gives, with "neurons" (off besides those removed), "added"
            by this round and "drift" of ordinary prompts from the original; the first is what was
            measured before any, without attacks. Fewer rounds where no picture came back or nothing
            more could be switched off.
        """
        if not times:
            return []
        off = frozenset[Neuron]()
        rounds: list[dict[str, Any]] = [self._round(0, off, off, first)]
        last = first
        for number in range(1, times + 1):
            triggers = self.rounds.triggers(last)
            if not triggers:
                break
            stage = f"hardening, round {number}"
            search = partial(self._further, stage, triggers, "embeddings", off)
            more = frozenset(self._neurons(f"hardening {number}", search))
            if more == off:
                self.models.progress.note(f"hardening ends: round {number} found nothing more to prune")
                break
            added, off = more - off, more
            last = self.rounds.run(number, off)
            rounds.append(self._round(number, off, added, last))
        return rounds

    def _further(
        self, stage: str, triggers: Sequence[Trigger], unit: str, off: frozenset[Neuron]
    ) -> frozenset[Neuron]:
        """`off`, and what must go besides so that none of the triggers does its work any more."""
        self.models.progress.stage(stage, len(triggers), unit)
        for trigger in triggers:
            off |= set(self.locator.further(trigger, self.models.removed | off))
            self.models.progress.advance()
        return off

    def _round(
        self, number: int, off: frozenset[Neuron], added: frozenset[Neuron], found: Round
    ) -> dict[str, Any]:
        return {
            **found,
            "round": number,
            "off": [neuron._asdict() for neuron in union(off)],
            "neurons": len(off),
            "added": len(added),
            "drift": self.finished.once(
                f"drift {number}", lambda: self.locator.drift(self.models.removed | off)
            ),
        }

    def repair(self, hardened: list[dict[str, Any]]) -> tuple[Neuron, ...]:
        """What must go besides what is removed, so that no wording that was found triggers any more."""

        def search() -> frozenset[Neuron]:
            off = frozenset(Neuron(**one) for one in hardened[-1]["off"]) if hardened else frozenset()
            return self._further("searching what to repair", self._worded(None), "wordings", off)

        return self._neurons("repair", search)

    def _neurons(self, name: str, search: Callable[[], Collection[Neuron]]) -> tuple[Neuron, ...]:
        """What a search found, once."""
        kept = self.finished.once(name, lambda: [list(neuron) for neuron in union(search())])
        return tuple(Neuron(*neuron) for neuron in kept)


def mend(
    inputs: AuditInputs, more: tuple[Neuron, ...], words: Words, writing: Writing, progress: Progress
) -> dict[str, Any]:
    """Write the repaired model, and try again the words of the prompts that came back.

    Returns:
        Plain JSON: the "path" and "sha256" of what was written, None where there was nothing to repair;
        "neurons" removed besides, "rows" which; "before", "after": how many wordings brought a picture
        back; "prompts": those that still do.
    """
    before = sum(bool(word["back"]) for one in words.values() for word in one["words"])
    found: dict[str, Any] = {
        "path": None, "sha256": None, "neurons": len(more), "rows": [one._asdict() for one in more],
        "before": before, "after": before, "prompts": [],
    }  # fmt: skip
    if not more:
        progress.note("nothing was found that could be pruned besides, so no repaired model is written")
        return found
    assert writing.output is not None
    provenance = {
        "tau": str(inputs.tau),
        "gate": str(inputs.gate),
        "criterion": inputs.options.criterion,
        "prompts": str(len(inputs.prompts)),
    }
    if inputs.options.timestep is not None:
        provenance["timestep"] = str(inputs.options.timestep)
    progress.stage("writing the repaired model", 1, "file")
    written = write_model(
        inputs.pruned, more, writing.output, provenance, overwrite=writing.overwrite, hashed=True
    )
    affected = [index for index, one in words.items() if any(word["back"] for word in one["words"])]
    after = _again(inputs, writing.output, affected, progress)
    still = {index: sum(bool(w["back"]) for w in one["words"]) for index, one in after.items()}
    return found | {
        "path": written.path.name, "sha256": written.sha256, "after": sum(still.values()),
        "prompts": [index for index, count in still.items() if count],
    }  # fmt: skip


def _again(
    inputs: AuditInputs, repaired: Any, indices: list[int], progress: Progress
) -> dict[int, dict[str, Any]]:
    """`try_words` of some prompts on the repaired model."""
    if not indices:
        return {}
    models = Models(replace(inputs, pruned=open_checkpoint(repaired)), (), progress)
    progress.stage("trying the repaired model", len(indices), "prompts")
    found = {}
    for index in indices:
        found[index] = try_words(
            models.original, models.pruned, inputs.variations(index), inputs.effort, models.judges
        )
        progress.advance()
    models.release()
    return found
