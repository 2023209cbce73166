"""What an audit looks at, and its two models, each opened when it is first needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nemo_prune.audit.codec import Codec
from nemo_prune.audit.pictures import draw_unrelated, draw_whole
from nemo_prune.audit.strength import EFFORTS, Effort, Strength
from nemo_prune.audit.triggers import SCORE_SEED, Judges
from nemo_prune.audit.words import Variation, variations
from nemo_prune.checkpoint.checkpoint import Checkpoint
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.errors import CheckpointError
from nemo_prune.files.prompts import apart_from, bundled_captions
from nemo_prune.localize.confirm import UNRELATED, unrelated_ends
from nemo_prune.options import Options, Progress, Silent
from nemo_prune.report.likeness import Described, Likeness, open_likeness
from nemo_prune.report.pictures import Picture
from nemo_prune.scoring.engine import Baseline, Engine, Prompt
from nemo_prune.scoring.opening import open_engines, trajectory_schedule
from nemo_prune.scoring.sharing import Workers
from nemo_prune.scoring.trajectory import Reference, Schedule, schedule_from
from nemo_prune.scoring.workers import sent, wants_workers


@dataclass(frozen=True)
class AuditInputs:
    """What an audit looks at.

    Attributes:
        prompts: captions whose pictures were pruned from `original`, giving `pruned`.
        options: how the models are loaded, and the seed of all that is drawn by lot.
        gate: score above which a prompt is memorized; tau: what suppressed prompts stay below.
        thresholds_from: where the two come from.
        targets: prompt number -> training picture.
        unseen: pictures that the model never saw, for controls; where there are too few, some are made.
        harden: how often what embeddings use is switched off, and they are optimized again.
        places: of each prompt, the file and the line where it stands, if that is known.
    """

    original: Checkpoint
    pruned: Checkpoint
    prompts: Sequence[str]
    options: Options
    tau: float
    gate: float
    thresholds_from: str
    strength: Strength = "standard"
    targets: Mapping[int, Path] = field(default_factory=dict)
    show_prompts: bool = False
    places: Sequence[tuple[str, int]] = ()
    unseen: Sequence[Path] = ()
    harden: int = 0

    @property
    def effort(self) -> Effort:
        return EFFORTS[self.strength]

    def variations(self, index: int) -> list[Variation]:
        """The words that are tried for one of the prompts."""
        caption, count = self.prompts[index], self.effort.variations
        return variations(caption, self.prompts, count, self.options.seed)

    def ordinary(self) -> list[str]:
        """The bundled captions that are none of the prompts."""
        return apart_from(bundled_captions(), self.prompts)


class Models:
    """Both engines, opened on first use, and what the stages of an audit share of them.

    removed: the neurons that the pruned model lacks. Sent to another process, it has that one's engines,
    and opens the autoencoder there.
    """

    def __init__(self, inputs: AuditInputs, removed: Sequence[Neuron], progress: Progress) -> None:
        self.inputs, self.progress = inputs, progress
        self.removed = frozenset(removed)
        self.no_codec: str | None = None
        self.drawn: dict[int, list[Picture]] = {}
        self._baselines: dict[int, Baseline] = {}

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name != "codec"}
        inputs = replace(self.inputs, options=sent(self.inputs.options))
        return {**state, "inputs": inputs, "progress": Silent()}

    @cached_property
    def _engines(self) -> list[Engine]:
        inputs, progress = self.inputs, self.progress
        progress.stage("loading the models", 2, "files")
        models = (inputs.original, inputs.pruned)
        return open_engines(models, inputs.options, progress, progress.advance)

    @property
    def _opened(self) -> Sequence[Engine]:
        return self._engines if "_engines" in self.__dict__ else ()

    @cached_property
    def original(self) -> Engine:
        return self._engines[0]

    @cached_property
    def pruned(self) -> Engine:
        return self._engines[1]

    @property
    def workers(self) -> Workers | None:
        """Who shares the work, if the options ask for some; they hold both models."""
        return self.original.workers if wants_workers(self.inputs.options) else None

    @property
    def samples(self) -> int:
        """Denoiser samples that both took so far."""
        return sum(engine.cost.samples for engine in self._opened)

    def release(self) -> None:
        """Give the memory back; neither can be used any more."""
        for engine in self._opened:
            engine.model.release()

    def close(self) -> None:
        """End the workers."""
        for engine in self._opened:
            engine.close()

    @cached_property
    def codec(self) -> Codec | None:
        """The autoencoder; None where the model has none, which is noted."""
        try:
            return Codec(self.inputs.original, self.inputs.options)
        except CheckpointError as error:
            self.no_codec = str(error).partition("\n")[0]
            self.progress.note(f"what embeddings draw is neither shown nor judged: {error}")
            return None

    @cached_property
    def schedule(self) -> Schedule:
        return trajectory_schedule(self.original.model, "trajectory")

    @cached_property
    def whole(self) -> Schedule:
        """Of whole pictures."""
        first, guidance = self.schedule.timesteps[0], self.schedule.guidance
        return schedule_from(first, self.inputs.effort.plain_steps, guidance)

    @cached_property
    def likeness(self) -> Likeness:
        return open_likeness()

    def pictures(self, index: int) -> list[Picture]:
        """Whole pictures of a prompt by the original; only where there is an autoencoder."""
        if index not in self.drawn:
            assert self.codec is not None
            caption = self.caption(index)
            self.drawn[index] = draw_whole(self.original, self.codec, caption, self.whole)
        return self.drawn[index]

    @cached_property
    def unrelated(self) -> list[Described]:
        """Ordinary prompts' pictures, by both models; only where there is an autoencoder."""
        assert self.codec is not None
        ordinary = self.inputs.ordinary()
        return [
            self.likeness.describe(picture)
            for engine in (self.original, self.pruned)
            for picture in draw_unrelated(engine, self.codec, ordinary, self.whole)
        ]

    @cached_property
    def judges(self) -> Judges:
        """What wordings and embeddings are judged by."""
        ends = unrelated_ends(
            self.original, self.inputs.ordinary()[:UNRELATED], self.schedule, self.progress
        )
        return Judges(self.inputs.tau, self.inputs.gate, self.schedule, ends)

    def caption(self, index: int) -> Prompt:
        """A prompt as the original encodes it."""
        return self.original.prompts([self.inputs.prompts[index]])[0]

    def reference(self, index: int) -> Reference:
        """What a prompt's trajectories are compared with: the original's own."""
        return self.judges.reference(self.original, self.caption(index))

    def baseline(self, index: int) -> Baseline:
        """The original's noise differences for a prompt, on the seeds of an audit's scores."""
        if index not in self._baselines:
            seeds = range(SCORE_SEED, SCORE_SEED + self.inputs.options.seeds)
            self._baselines[index] = self.original.baseline(self.caption(index), seeds)
        return self._baselines[index]
