"""What a run may be told, and how it tells of its progress. Imports no torch."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from nemo_prune.errors import OptionError, option

Criterion = Literal["same-seed", "cross-seed"]
SearchKind = Literal["auto", "gradient-free", "literal"]
Confirm = Literal["trajectory", "pictures", "none"]
DEFAULT_FPR = 0.01
"""Rate at which ordinary prompts may exceed the gate."""


class Progress(Protocol):
    """What a long job tells its caller about where it is; `done`: what an earlier run has done."""

    def stage(self, name: str, total: int | None, unit: str, done: int = 0) -> None: ...
    def advance(self, count: int = 1) -> None: ...
    def detail(self, text: str) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass(frozen=True)
class Options:
    """What a run may be told; the defaults are the paper's, but for the criterion and the gate.

    tau: memorization threshold of a seed, and what a suppressed prompt must stay below; None:
        from the calibration, else the published 0.428 where it applies.
    gate: a prompt above it is memorized; None: what ordinary prompts exceed at the rate `fpr`.
    calibration: a file of `nemo-prune calibrate`; `force` uses it though made for another model.
    cache: keep statistics and scores of ordinary prompts between runs.
    prediction_type, text_encoder, config: what the model does not say of itself, or lacks.
    layers: "auto" is down + mid, the paper's, and all where trajectories ask for more.
    search: "auto", "gradient-free" or "literal", which is the paper's procedure; `as_published`: as the
        authors' code does it where that differs.
    confirm: what decides that a picture is gone: short guided trajectories, as many steps as a picture
        takes ("pictures"), or "none": the score alone.
    steps, timestep: scores are taken at `timestep`, or at the second of `steps` DDIM steps.

    Raises OptionError for a gate below tau, one of them that is no number, or fewer than 2 seeds.
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
    config: Path | None = None
    prediction_type: Literal["epsilon", "v"] | None = None
    text_encoder: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if self.seeds < 2:
            raise OptionError(f"{option('seeds')}: the score compares seeds, so it needs at least 2")
        if not 0 < self.fpr < 1:
            raise OptionError(f"{option('fpr')} {self.fpr}: is a rate between 0 and 1, such as 0.01")
        for name, value in (("tau", self.tau), ("gate", self.gate)):
            # NaN passes every comparison that a range is checked by, and no score exceeds it.
            if value is not None and not math.isfinite(value):
                raise OptionError(f"--{name} {value}: is no number; give one between 0 and 1")
        if self.tau is not None:
            self.check_gate(self.tau)

    @property
    def searched_layers(self) -> str:
        """The layers that a search begins with."""
        return "down+mid" if self.layers == "auto" else self.layers

    def check_gate(self, tau: float) -> None:
        """Raise OptionError for a gate below tau: no seed of such a prompt need be memorized."""
        if self.gate is not None and self.gate < tau:
            raise OptionError(
                f"{option('gate')} {self.gate}: lies below tau ({tau}), which no memorized seed does; "
                f"raise it, or lower {option('tau')} too"
            )
