"""What is ordinary for a loaded model: from a calibration file, the cache, or computed now.

`prune`, `detect`, `check` and `calibrate` all ask here, so that they agree on every threshold.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nemo_prune.checkpoint.checkpoint import Checkpoint
from nemo_prune.checkpoint.families import FAMILIES, Published
from nemo_prune.errors import CalibrationError, OptionError, option
from nemo_prune.files.prompts import bundled_captions, prompts_hash
from nemo_prune.model.schedule import ddim_timestep
from nemo_prune.model.settings import settings_of
from nemo_prune.options import DEFAULT_FPR, Options, Progress, Silent
from nemo_prune.scoring import cache
from nemo_prune.scoring.activations import ActivationStatistics, activation_statistics
from nemo_prune.scoring.calibration_file import (
    OTHER_WEIGHTS,
    Calibration,
    OrdinaryScores,
    fingerprint,
    misfits,
    read_calibration,
    settings_before,
)
from nemo_prune.scoring.detect import score_paths
from nemo_prune.scoring.engine import Engine
from nemo_prune.scoring.lineage import Lineage, lineage, zero_rows, zeroed_since
from nemo_prune.scoring.thresholds import (
    FEWEST_PROMPTS,
    HIGHEST_GATE,
    Gate,
    Thresholds,
    gate_from,
    margins_from,
    prompts_for,
    standing_apart,
    tau_from,
)
from nemo_prune.scoring.trajectory import Ends

BUNDLED_SCORED = 200  # of the bundled captions: each costs as many samples as seeds
FILE, CACHE, NOW = "file", "cache", "this run"
_OF_ORIGINAL = {
    "calibration file": "calibration file of the original",
    "bundled captions": "bundled captions on the original",
    "calibrated": "calibrated on the original",
}


def check_calibration(
    checkpoint: Checkpoint, options: Options, captions: Sequence[str] | None
) -> Calibration | None:
    """Refuse ordinary prompts or a calibration file that cannot be for `checkpoint`; no model is loaded.

    Returns the calibration of `options.calibration`, if there is one.

    Raises OptionError for both a file and prompts, CalibrationError for fewer than 30 prompts and
    for a file that is unreadable, incomplete or of other value layers.
    """
    path = options.calibration
    if path and captions is not None:
        raise OptionError(
            f"{option('calibration')} and {option('calibration_prompts')}: give one of them"
        )
    if captions is not None and len(captions) < FEWEST_PROMPTS:
        raise CalibrationError(
            f"{len(captions)} calibration prompts say too little about what is ordinary; "
            f"give at least {FEWEST_PROMPTS}, better several hundred"
        )
    if path is None:
        return None
    found = read_calibration(path)
    if not found.statistics or not found.scores:
        raise CalibrationError(f"{path}: is incomplete; make it anew with nemo-prune calibrate")
    rows = {layer.name: layer.rows for layer in checkpoint.value_layers}
    if {name: len(mean) for name, mean in found.statistics.mean.items()} != rows:
        raise CalibrationError(
            f"{path}: is for a model with other value layers; make one for this model with "
            f"nemo-prune calibrate"
        )
    return found


def check_apart(prompts: Iterable[str], captions: Sequence[str] | None, options: Options) -> str | None:
    """A note on prompts that are also among the ordinary ones, whose scores set the gate.

    Raises CalibrationError if all are: a memorized one would raise the gate that judges it.
    """
    if captions is None or options.gate is not None:
        return None
    distinct = set(prompts)
    shared = len(distinct.intersection(captions))
    if shared and shared == len(distinct):
        raise CalibrationError(
            f"{option('calibration_prompts')}: every prompt is also one of them, so what is memorized "
            f"would set the gate that judges it; calibrate with captions that are surely not memorized"
        )
    if shared:
        return (
            f"{shared} of {len(distinct)} prompts are also among the calibration prompts: what is "
            f"memorized of them raises the gate"
        )
    return None


class Ordinary:
    """What is ordinary for one model, each part found once and only if asked for.

    Args:
        engine: the model, at the timestep at which it is scored.
        checkpoint: names its value layers.
        options: calibration, force, cache, tau, gate, fpr, seeds.
        captions: the user's ordinary prompts; None: the bundled ones.
        progress: is told what takes long.
        calibrating: for `calibrate`, which has other options to recommend.

    A pruned model may take what was measured on its original, from the file or the cache, if hashes
    prove that nothing but zeroed value rows tells the two apart (`lineage`); then `of_original` has what
    was taken ("activations", "scores"), and the sources say so. `ends` keeps where trajectories of
    ordinary prompts end, by schedule and prompts.

    Raises CalibrationError for a calibration file that was made for something else, unless
    `options.force`, and for fewer than 30 prompts; OptionError for both a file and prompts.
    """

    def __init__(
        self,
        engine: Engine,
        checkpoint: Checkpoint,
        options: Options,
        captions: Sequence[str] | None,
        progress: Progress,
        calibrating: bool = False,
    ) -> None:
        found = check_calibration(checkpoint, options, captions)
        self._engine = engine
        self._layers = checkpoint.value_layers
        self._options = options
        self._bundled = captions is None
        self._captions = bundled_captions() if captions is None else tuple(captions)
        self._progress = progress
        self._calibrating = calibrating
        self.of_original: set[str] = set()
        self.ends: Ends = {}
        self._file = self._fitting(found) if found else None

    def __getstate__(self) -> dict[str, Any]:
        # Elsewhere nobody sees the progress.
        return {**self.__dict__, "_progress": Silent()}

    @property
    def engine(self) -> Engine:
        return self._engine

    @property
    def captions(self) -> tuple[str, ...]:
        """The ordinary prompts: the user's, else the bundled ones."""
        return self._captions

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self._engine.model)

    @cached_property
    def lineage(self) -> Lineage:
        return lineage(self._engine.model)

    @property
    def scored_by(self) -> dict[str, Any]:
        """The model as loaded, as plain JSON: the checkpoint's own hash knows of no option."""
        model = self._engine.model
        schedule = dict(model.scheduler_config)
        shape = list(model.latent_shape)
        return {
            "fingerprint": self.fingerprint,
            "settings": settings_of(model),
            "latents": shape,
            "scheduler": schedule,
        }

    @cached_property
    def statistics(self) -> tuple[ActivationStatistics, str]:
        """Activation statistics of every value layer, and whence: "file", "cache" or "this run"."""
        if self._file and self._file.statistics:
            return self._file.statistics, FILE
        about = self._about("activations", self.activations_about) if self._options.cache else {}
        if about and (kept := self._kept("activations", about)) and kept.statistics:
            return kept.statistics, CACHE
        self._progress.stage("measuring ordinary activations", len(self._captions), "prompts")
        found = activation_statistics(
            self._engine.model, self._layers, self._captions, advance=self._progress.advance
        )
        if about:
            self._keep("activations", Calibration(about, statistics=found, lineage=self.lineage))
        return found, NOW

    @cached_property
    def scores(self) -> tuple[OrdinaryScores, str]:
        """Scores of ordinary prompts, and whence: "file", "cache" or "this run"."""
        if self._file and self._file.scores:
            return self._file.scores, FILE
        about = self._about("scores", self.scores_about) if self._options.cache else {}
        if about and (kept := self._kept("scores", about)) and kept.scores:
            return kept.scores, CACHE
        if self._bundled:
            self._progress.note(self._why_bundled())
        self._progress.stage("scoring ordinary prompts", len(self._scored), "prompts")
        paths, norms = score_paths(
            self._engine, self._scored, range(self._options.seeds), self._progress.advance
        )
        found = OrdinaryScores(tuple(paths), tuple(norms))
        if about:
            self._keep("scores", Calibration(about, scores=found, lineage=self.lineage))
        return found, NOW

    @cached_property
    def thresholds(self) -> Thresholds:
        """tau and the gate: as given, from ordinary scores, or published.

        Without a calibration file or the user's prompts, a Stable Diffusion 1 model at its
        published setting has tau .428 and, for the default rate, the gate .5 (or tau, if --tau is
        higher). Whatever else is not given comes from bundled captions: also the gate where only
        --tau is given, and where --fpr asks for another rate than the published gate is for.

        Raises OptionError for a given gate below tau; CalibrationError as `from_scores`.
        """
        options = self._options
        if options.tau is not None and options.gate is not None and not self._file:
            return self._told(options.tau, "given", Gate(options.gate), "given")
        published = self._published
        if self._file or not self._bundled or published is None:
            return self.from_scores()
        tau, source = (published.tau, "published") if options.tau is None else (options.tau, "given")
        if options.gate is None and options.fpr != DEFAULT_FPR:
            return self.from_scores((tau, source))
        gate = Gate(max(tau, published.gate))
        return self._told(tau, source, gate, "tau" if gate.value == options.tau else "published")

    def from_scores(self, known: tuple[float, str] | None = None) -> Thresholds:
        """`thresholds` from ordinary prompts' scores, even where published ones hold.

        known: a tau that does not come from them, and its source; default: --tau, if given.

        Raises CalibrationError for a gate that hardly any score could exceed.
        """
        options = self._options
        if options.tau is not None:
            known = options.tau, "given"
        source = (
            "calibration file" if self._file else "bundled captions" if self._bundled else "calibrated"
        )
        scores, whence = self.scores
        source = _OF_ORIGINAL[source] if "scores" in self.of_original else source
        paths = [path[: options.seeds - 1] for path in scores.paths]
        last = [path[-1] for path in paths]
        tau, tau_source = known or (tau_from(last), source)
        found = gate_from(last, options.fpr, tau)
        if options.gate is None:
            self._judge(found, tau_source, last)
        return self._told(tau, tau_source, found, source, margins_from(paths), whence)

    def calibration(self) -> Calibration:
        """Both parts at once, as `calibrate` writes them."""
        statistics, scores = self.statistics[0], self.scores[0]
        about = self._about("activations", self.activations_about)
        return Calibration(about | {"scores": self.scores_about}, statistics, scores, self.lineage)

    def norm_gate(self, fpr: float) -> float | None:
        """What ordinary prompts' noise norms exceed at the rate `fpr`; None where none are known.

        In units of the latents; like the gate, without tau below it and without the bound of 1.
        """
        if self.thresholds.scores_from is None:
            return None
        return gate_from(self.scores[0].norms, fpr, 0.0, most=None).value

    def _told(
        self, tau: float, tau_source: str, gate: Gate, gate_source: str,
        margins: tuple[float, ...] = (), scores_from: str | None = None,
    ) -> Thresholds:  # fmt: skip
        self._options.check_gate(tau)
        if self._options.gate is not None:
            gate, gate_source = Gate(self._options.gate), "given"
        return Thresholds(tau, tau_source, gate, gate_source, margins, scores_from)

    def _judge(self, gate: Gate, tau_source: str, scores: Sequence[float]) -> None:
        """Say that a gate is extrapolated, or set by what looks memorized; refuse one that would let
        everything pass."""
        rate = f"a rate of {gate.fpr:g}" if self._calibrating else f"{option('fpr')} {gate.fpr:g}"
        needed = prompts_for(self._options.fpr)
        # A --tau that high is what the user asked for.
        if gate.value >= HIGHEST_GATE and not (gate.raised and tau_source == "given"):
            few = gate.extrapolated and not gate.raised
            what = "too few ordinary prompts" if few else "ordinary prompts score too high"
            cure = f"give at least {needed}" if few else "give other ones"
            skip = "" if self._calibrating else f", or {option('gate')}"
            raise CalibrationError(
                f"{what} for {rate}: from {gate.prompts} of them the gate is {gate.value:.3f}, and "
                f"hardly any score exceeds that; {cure}{skip}"
            )
        if gate.extrapolated and not gate.raised:
            self._progress.note(
                f"{gate.prompts} ordinary prompts are too few to see {rate}: the gate "
                f"{gate.value:.3f} is extrapolated; at least {needed} prompts would be needed"
            )
        apart = standing_apart(scores)
        if apart and gate.value >= apart[0]:
            cure = "calibrate without them"
            if self._bundled and not self._file:  # which nobody can leave out
                mine = "prompts" if self._calibrating else "calibration_prompts"
                cure = f"they are bundled captions, so give {option(mine)} of your own"
            self._progress.note(
                f"{len(apart)} of {len(scores)} ordinary prompts score {apart[0]:.2f} to "
                f"{apart[-1]:.2f}, far above the others, as memorized ones do, and set the gate "
                f"{gate.value:.3f}: what is memorized may pass; {cure}"
            )

    def _why_bundled(self) -> str:
        """The note of a first run: why the bundled captions are scored, and what to do instead."""
        doing = "measuring what is ordinary on bundled captions"
        if self._calibrating:
            return f"{doing} ({option('prompts')} FILE is better)"
        why, instead = "no published threshold fits this model and setting", f"{option('gate')} X"
        if self._published:
            why = f"the published gate is not for {option('fpr')} {self._options.fpr:g}"
        elif self._options.tau is None:
            instead = f"{option('tau')} X with {option('gate')} X"
        return f"{why}: {doing} ({option('calibration_prompts')} FILE is better; {instead} skips it)"

    @property
    def _published(self) -> Published | None:
        """The paper's thresholds where they hold: family, size of latents, timestep and seeds."""
        model = self._engine.model
        found = FAMILIES[model.family].published
        holds = (
            found is not None
            and self._options.seeds <= found.seeds
            and model.latent_shape[1:] == (found.side, found.side)
            and self._engine.timestep == ddim_timestep(model.scheduler_config)
        )
        return found if holds else None

    @property
    def _scored(self) -> tuple[str, ...]:
        return self._captions[:BUNDLED_SCORED] if self._bundled else self._captions

    @cached_property
    def activations_about(self) -> dict[str, Any]:
        return {"prompts": len(self._captions), "sha256": prompts_hash(self._captions)}

    @cached_property
    def scores_about(self) -> dict[str, Any]:
        return {
            "prompts": len(self._scored),
            "sha256": prompts_hash(self._scored),
            "seeds": self._options.seeds,
            "seed": self._options.seed,
            "timestep": self._engine.timestep,
            "guidance": 0,
            "similarity": "published" if self._engine.published else "current",
            "latents": list(self._engine.model.latent_shape),
        }

    def _about(self, kind: str, part: dict[str, Any]) -> dict[str, Any]:
        model = self._engine.model
        return {
            "fingerprint": self.fingerprint,
            "precision": model.precision,
            "settings": settings_of(model),
            kind: part,
        }

    def _kept(self, kind: str, about: dict[str, Any]) -> Calibration | None:
        """What the cache has of this model, or of its original if this is a pruned one."""
        if found := cache.load(kind, about):
            return found
        layers = self._engine.model.value_layers.values()
        # `calibrate` measures the model that it is given.
        if self._calibrating or not any(zero_rows(layer).any() for layer in layers):
            return None
        for found in cache.of_others(kind, about):
            if taken := self._taken_over(found, "the cache"):
                return taken
        return None

    def _taken_over(self, found: Calibration, whence: Path | str) -> Calibration | None:
        """The original's calibration as it is for this model; None if this is no pruned copy of it.

        The neurons that were zeroed do nothing for any prompt: their statistics are 0.
        """
        if found.lineage is None:
            return None
        zeroed = zeroed_since(found.lineage, self._engine.model, self.lineage)
        if zeroed is None:
            return None
        statistics = found.statistics
        if statistics:
            mean, std = (
                {name: values.masked_fill(zeroed[name], 0.0) for name, values in of.items()}
                for of in (statistics.mean, statistics.std)
            )
            statistics = ActivationStatistics(mean, std, statistics.prompts)
        count = sum(int(mask.sum()) for mask in zeroed.values())
        self._progress.note(
            f"{whence}: what is ordinary is taken from the original, from which this model differs in "
            f"{count} zeroed value rows and nothing else, by the hashes of all weights"
        )
        parts = {"activations": found.statistics, "scores": found.scores}
        self.of_original |= {name for name, part in parts.items() if part}
        return replace(found, statistics=statistics)

    def _keep(self, kind: str, calibration: Calibration) -> None:
        if trouble := cache.store(kind, calibration):
            self._progress.note(trouble)

    def _fitting(self, found: Calibration) -> Calibration:
        """The calibration file, if it is for this model and these settings."""
        path, options = self._options.calibration, self._options
        if settings_before(found, self._engine.model) is None:
            self._progress.note(
                f"{path}: is of an earlier version and does not say with which settings of its config "
                f"the model was run (norm_num_groups, act_fn, ...): taken to be those of now; make it "
                f"anew with nemo-prune calibrate to be sure"
            )
        differing = misfits(
            found, self._engine.model, self.scores_about, options.seeds, lambda: self.fingerprint
        )
        if differing == [OTHER_WEIGHTS] and path and (taken := self._taken_over(found, path)):
            return taken
        if differing and not options.force:
            raise CalibrationError(
                f"{path}: was made for another model or setting ({', '.join(differing)}); make one "
                f"for this model with nemo-prune calibrate, or pass {option('force')}"
            )
        if differing:
            self._progress.note(f"{path}: used all the same ({', '.join(differing)})")
        return found
