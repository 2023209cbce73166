"""What a run is asked to do, as frozen objects, and how it reports its progress. Imports no torch.

`Options` says how a model is loaded, scored and searched; `Writing` where a pruned model goes;
`Reporting` which reports are written of it. The command line has an option for each field.
"""

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from nemo_prune.errors import OptionError, option

Criterion = Literal["cross-seed", "same-seed", "trajectory"]
SearchKind = Literal["auto", "gradient-free", "literal"]
TargetsMatch = Literal["name", "order", "alike"]
Confirm = Literal["trajectory", "pictures", "none"]
DEFAULT_FPR = 0.01
"""Rate at which ordinary prompts may exceed the gate."""
BUNDLED_ORDINARY = 20
"""Bundled captions that `verify` looks for side effects with: each costs twice the seeds in samples."""
SMALLEST_FPR = 1e-9
"""No list of ordinary prompts shows a smaller rate, and 1 - fpr must stay below 1 in floating point."""


class Progress(Protocol):
    """How a long job reports where it is."""

    def stage(self, name: str, total: int | None, unit: str, done: int = 0) -> None:
        """Begin a stage of `total` units; None: nobody knows how many. `done`: by an earlier run."""

    def advance(self, count: int = 1) -> None:
        """So many more units of the stage are done."""

    def detail(self, text: str) -> None:
        """A few words beside the bar of the stage, such as what it has cost so far."""

    def pace(self, text: str) -> None:
        """How fast a stage of unknown length is, and what is left of it: also in the lines of a log."""

    def note(self, text: str) -> None:
        """A line that stays; a line that was noted before is not repeated."""


class Silent:
    """`Progress` that says nothing."""

    def stage(self, name: str, total: int | None, unit: str, done: int = 0) -> None: ...
    def advance(self, count: int = 1) -> None: ...
    def detail(self, text: str) -> None: ...
    def pace(self, text: str) -> None: ...
    def note(self, text: str) -> None: ...


class Recorded:
    """`Progress` that is told to another one later; `detail` and `pace` are of the moment."""

    def __init__(self) -> None:
        self._calls: list[tuple[str, tuple[Any, ...]]] = []

    def stage(self, name: str, total: int | None, unit: str, done: int = 0) -> None:
        self._calls.append(("stage", (name, total, unit, done)))

    def advance(self, count: int = 1) -> None:
        self._calls.append(("advance", (count,)))

    def detail(self, text: str) -> None: ...
    def pace(self, text: str) -> None: ...

    def note(self, text: str) -> None:
        self._calls.append(("note", (text,)))

    def replay(self, progress: Progress) -> None:
        """Tell it all, once."""
        for name, arguments in self._calls:
            getattr(progress, name)(*arguments)
        self._calls.clear()


_WHOLE = ("seeds", "seed", "steps", "timestep", "batch_size", "rounds", "workers",
          "confirm_trajectories")  # fmt: skip
_REAL = ("tau", "gate", "fpr")
_OPEN = ("timestep", "batch_size", "workers", "tau", "gate")  # may be None


@dataclass(frozen=True)
class Options:
    """How a model is loaded, scored and searched; the defaults are the paper's, except for the
    criterion and the gate.

    seeds: starting noises per prompt. seed: the base of all randomness.
    tau: memorization threshold of a seed, and what a suppressed prompt must stay below; None:
        from the calibration, else the published 0.428 where it applies.
    gate: a prompt above it is memorized; None: what ordinary prompts exceed at the rate `fpr`.
    calibration: a file of `nemo-prune calibrate`; `force` uses it though made for another model.
    cache: keep statistics and scores of ordinary prompts between runs.
    prediction_type, text_encoder, config: what the model does not say of itself, or lacks.
    criterion: what a pruned noise difference is compared with: those of all other seeds, or of the same
        seed, the paper's; "trajectory" searches by trajectories from the start.
    layers: "auto" is down + mid, the paper's, and all where trajectories ask for more; of a transformer
        it is all.
    search: "auto", "gradient-free" or "literal", which is the paper's procedure; `as_published`: as the
        authors' code does it where that differs.
    confirm: what decides that a picture is gone: short guided trajectories, as many steps as a picture
        takes ("pictures"), or "none": the score alone.
    steps, timestep: scores are taken at `timestep`, or at the second of `steps` DDIM steps.
    batch_size: denoiser samples at once; None: as many as the device holds.
    device: "auto" (the fastest there is), "cpu", "cuda" or "mps".
    precision: "auto" (fp16 on CUDA, else fp32), "fp32", "fp16" or "bf16".
    rounds: how often prompts that stay memorized are searched again.
    workers: how many processes share the prompts, each with the model. ray: the cluster they are on.
    confirm_trajectories: how many a prompt is worth that is still drawn; after as many its further
        neurons are not shown one by one to be needed. 0: no end.

    Raises OptionError for what is no number where one is due, a gate below tau, a rate that no prompts
    can show, fewer than 2 seeds, or a criterion, search or confirmation that there is not.
    """

    seeds: int = 10
    seed: int = 0
    tau: float | None = None
    gate: float | None = None
    fpr: float = DEFAULT_FPR
    calibration: Path | None = None
    cache: bool = True
    force: bool = False
    steps: int = 50
    timestep: int | None = None
    device: str = "auto"
    precision: str = "auto"
    layers: str = "auto"
    criterion: Criterion = "cross-seed"
    search: SearchKind = "auto"
    as_published: bool = False
    confirm: Confirm = "trajectory"
    batch_size: int | None = None
    rounds: int = 3
    confirm_trajectories: int = 80
    workers: int | None = None
    ray: str | None = None
    config: Path | None = None
    prediction_type: Literal["epsilon", "v"] | None = None
    text_encoder: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        for name in _WHOLE + _REAL:
            value = getattr(self, name)
            if value is None and name in _OPEN:
                continue
            try:
                (operator.index if name in _WHOLE else math.isfinite)(value)
            except TypeError:
                kind = "a whole number" if name in _WHOLE else "a number"
                raise OptionError(
                    f"{option(name)} {value!r:.40}: is a {type(value).__name__}; give {kind}"
                ) from None
        if self.seeds < 2:
            raise OptionError(f"{option('seeds')}: the score compares seeds, so it needs at least 2")
        for name, known in (("criterion", Criterion), ("search", SearchKind), ("confirm", Confirm)):
            if getattr(self, name) not in get_args(known):
                raise OptionError(
                    f"{option(name)} {getattr(self, name)}: unknown; use {', '.join(get_args(known))}"
                )
        if self.batch_size is not None and self.batch_size < 1:
            raise OptionError(f"{option('batch_size')} {self.batch_size}: give at least 1")
        if self.workers is not None and self.workers < 1:
            raise OptionError(f"{option('workers')} {self.workers}: give at least 1")
        if not 0 < self.fpr < 1:
            raise OptionError(f"{option('fpr')} {self.fpr}: is a rate between 0 and 1, such as 0.01")
        if self.fpr < SMALLEST_FPR:
            raise OptionError(
                f"{option('fpr')} {self.fpr}: no list of prompts shows so small a rate; give at least "
                f"{SMALLEST_FPR:g}, or {option('gate')}"
            )
        for name, value in (("tau", self.tau), ("gate", self.gate)):
            # NaN passes every comparison that a range is checked by, and no score exceeds it.
            if value is not None and not math.isfinite(value):
                raise OptionError(f"{option(name)} {value}: is no number; give one between 0 and 1")
        if self.tau is not None:
            self.check_gate(self.tau)

    def check_gate(self, tau: float) -> None:
        """Raise OptionError for a gate below tau: no seed of such a prompt need be memorized."""
        if self.gate is not None and self.gate < tau:
            raise OptionError(
                f"{option('gate')} {self.gate}: lies below tau ({tau}), which no memorized seed does; "
                f"raise it, or lower {option('tau')} too"
            )


@dataclass(frozen=True)
class Writing:
    """Where a pruned model and what belongs to it are written.

    output: the checkpoint, a file or a folder like its source; None: it is not written.
    overwrite: replace outputs that exist; folders and undo files are never replaced.
    undo: keeps the removed rows, in a new file or folder.
    link, drop_pickles: of a folder, hard-link the files that stay as they are; leave out pickles.
    sidecars: of a file, what lies beside it under its name and is copied along, with its new places.
    manifest: which neurons were found, and why. Its journal lies beside it.
    neurons_csv: the same neurons as a table, a line for each prompt and neuron.
    plots: a new folder of plots.
    resume: go on from the journal of an interrupted run.
    """

    output: Path | None = None
    overwrite: bool = False
    undo: Path | None = None
    link: bool = False
    drop_pickles: bool = False
    sidecars: Mapping[Path, Path] = field(default_factory=dict)
    manifest: Path | None = None
    neurons_csv: Path | None = None
    plots: Path | None = None
    resume: bool = False


@dataclass(frozen=True)
class Reporting:
    """Which reports are written of a pruned model, and how its pictures are drawn and compared.

    reports: .html, .md or .json; card: a Markdown section for a model card.
    ordinary: a file of ordinary prompts to look for side effects with; None: bundled ones.
    targets: training pictures, a folder or a CSV. targets_match: how it is told which prompt's each is:
        by its name, by order, or by which prompt's pictures it is most like.
    images, ordinary_images: pictures per memorized and per ordinary prompt and model; 0: none.
    picture_steps: DDIM steps of a picture. guidance: the scale of classifier-free guidance.
    sscd, clip: local files of models that compare pictures with each other and with prompts.
    """

    reports: tuple[Path, ...] = ()
    card: Path | None = None
    overwrite: bool = False
    ordinary: Path | None = None
    targets: Path | None = None
    targets_match: TargetsMatch = "name"
    images: int = 4
    ordinary_images: int = 2
    picture_steps: int = 50
    guidance: float = 7.0
    sscd: Path | None = None
    clip: Path | None = None

    def __post_init__(self) -> None:
        if self.targets_match not in get_args(TargetsMatch):
            raise OptionError(
                f"{option('targets_match')} {self.targets_match}: unknown; use "
                f"{', '.join(get_args(TargetsMatch))}"
            )
        if self.targets_match != "name" and self.targets is None:
            raise OptionError(f"{option('targets_match')}: goes with {option('targets')}, a folder")
        if self.targets_match == "alike" and not self.images:
            raise OptionError(
                f"{option('targets_match')} alike: compares with drawn pictures; give {option('images')}"
            )

    @property
    def outputs(self) -> tuple[Path, ...]:
        """Everything that is to be written."""
        return (*self.reports, self.card) if self.card else self.reports
