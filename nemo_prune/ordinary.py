"""What is ordinary for a loaded model: from a calibration file, the cache, or computed now.

`prune`, `detect`, `check` and `calibrate` all ask here, so that they agree on every threshold.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from nemo_prune import cache
from nemo_prune.calibration import ActivationStatistics, activation_statistics
from nemo_prune.calibration_file import (
    Calibration,
    OrdinaryScores,
    fingerprint,
    read_calibration,
)
from nemo_prune.detect import score_paths
from nemo_prune.engine import Engine
from nemo_prune.errors import CalibrationError, OptionError
from nemo_prune.families import Checkpoint
from nemo_prune.gate import (
    FEWEST_PROMPTS,
    PUBLISHED_GATE,
    PUBLISHED_TAU,
    Gate,
    gate_from,
    margins_from,
    tau_from,
)
from nemo_prune.loading import ddim_timestep
from nemo_prune.opening import Options, Progress, bundled_captions
from nemo_prune.prompts import prompts_hash

BUNDLED_SCORED = 200  # of the bundled captions: each costs as many samples as seeds
FILE, CACHE, NOW = "file", "cache", "this run"


@dataclass(frozen=True)
class Thresholds:
    """The two thresholds, where they come from, and when a prompt is clear early.

    tau_source: "given", "published", or what ordinary prompts the scores are of: "calibrated" (the
        user's), "calibration file" or "bundled captions". gate_source: the same, or "tau".
    margins: of `screening`; empty where no ordinary scores are known.
    scores_from: "file", "cache", "this run", or None where none were needed.
    """

    tau: float
    tau_source: str
    gate: Gate
    gate_source: str
    margins: tuple[float, ...] = ()
    scores_from: str | None = None

    def told(self) -> dict[str, Any]:
        """Both thresholds and their sources as plain JSON."""
        return {
            "tau": self.tau,
            "tau_source": self.tau_source,
            "gate": asdict(self.gate),
            "gate_source": self.gate_source,
        }


class Ordinary:
    """What is ordinary for one model, each part found once and only if asked for.

    Args:
        engine: the model, at the timestep at which it is scored.
        checkpoint: names its value layers.
        options: calibration, force, cache, tau, gate, fpr, seeds.
        captions: the user's ordinary prompts; None: the bundled ones.
        progress: is told what takes long.

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
    ) -> None:
        if options.calibration and captions is not None:
            raise OptionError("--calibration and --calibration-prompts: give one of them")
        if captions is not None and len(captions) < FEWEST_PROMPTS:
            raise CalibrationError(
                f"{len(captions)} calibration prompts say too little about what is ordinary; "
                f"give at least {FEWEST_PROMPTS}, better several hundred"
            )
        self._engine = engine
        self._layers = checkpoint.value_layers
        self._options = options
        self._bundled = captions is None
        self._captions = bundled_captions() if captions is None else tuple(captions)
        self._progress = progress
        self._file = self._checked(options) if options.calibration else None

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self._engine.model)

    @cached_property
    def statistics(self) -> tuple[ActivationStatistics, str]:
        """Activation statistics of every value layer, and whence: "file", "cache" or "this run"."""
        if self._file and self._file.statistics:
            return self._file.statistics, FILE
        about = self._about("activations", self.activations_about) if self._options.cache else {}
        if about and (kept := cache.load("activations", about)) and kept.statistics:
            return kept.statistics, CACHE
        self._progress.stage("measuring ordinary activations", len(self._captions), "prompts")
        found = activation_statistics(
            self._engine.model, self._layers, self._captions, advance=self._progress.advance
        )
        if about:
            self._keep("activations", Calibration(about, statistics=found))
        return found, NOW

    @cached_property
    def scores(self) -> tuple[OrdinaryScores, str]:
        """Scores of ordinary prompts, and whence: "file", "cache" or "this run"."""
        if self._file and self._file.scores:
            return self._file.scores, FILE
        about = self._about("scores", self.scores_about) if self._options.cache else {}
        if about and (kept := cache.load("scores", about)) and kept.scores:
            return kept.scores, CACHE
        if self._bundled:
            self._progress.note(
                "no published threshold fits this model: measuring what is ordinary on bundled "
                "captions (--calibration-prompts FILE is better; --tau X skips it)"
            )
        self._progress.stage("scoring ordinary prompts", len(self._scored), "prompts")
        paths, norms = score_paths(
            self._engine, self._scored, range(self._options.seeds), self._progress.advance
        )
        found = OrdinaryScores(tuple(paths), tuple(norms))
        if about:
            self._keep("scores", Calibration(about, scores=found))
        return found, NOW

    @cached_property
    def thresholds(self) -> Thresholds:
        """tau and the gate: as given, from ordinary scores, or published.

        Without a calibration file or the user's prompts, a Stable Diffusion 1 model at its
        published setting has tau .428 and the gate .5 (or tau, if --tau is higher). Another model
        with --tau has its gate at tau. Whatever else is missing comes from bundled captions.

        Raises OptionError for a given gate below tau.
        """
        options = self._options
        given = options.tau is not None
        if not (self._file or not self._bundled) and (given or self._published):
            tau = PUBLISHED_TAU if options.tau is None else options.tau
            gate = Gate(max(tau, PUBLISHED_GATE) if self._published else tau)
            source = "published" if gate.value > tau or not given else "tau"
            return self._told(tau, "given" if given else "published", gate, source)
        if options.tau is not None and options.gate is not None and not self._file:
            return self._told(options.tau, "given", Gate(options.gate), "given")
        return self.from_scores()

    def from_scores(self) -> Thresholds:
        """`thresholds` from ordinary prompts' scores, even where published ones hold."""
        options = self._options
        given = options.tau is not None
        source = (
            "calibration file" if self._file else "bundled captions" if self._bundled else "calibrated"
        )
        scores, whence = self.scores
        paths = [path[: options.seeds - 1] for path in scores.paths]
        last = [path[-1] for path in paths]
        tau = tau_from(last) if options.tau is None else options.tau
        found = gate_from(last, options.fpr, tau)
        return self._told(tau, "given" if given else source, found, source, margins_from(paths), whence)

    def calibration(self) -> Calibration:
        """Both parts at once, as `calibrate` writes them."""
        statistics, scores = self.statistics[0], self.scores[0]
        about = self._about("activations", self.activations_about)
        return Calibration(about | {"scores": self.scores_about}, statistics, scores)

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

    @property
    def _published(self) -> bool:
        """Whether the paper's thresholds hold: its family, size of latents and timestep."""
        model = self._engine.model
        return (
            model.family == "sd1"
            and model.latent_shape[1:] == (64, 64)
            and self._engine.timestep == ddim_timestep(model.scheduler_config)
        )

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
            "latents": list(self._engine.model.latent_shape),
        }

    def _about(self, kind: str, part: dict[str, Any]) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint, "precision": self._engine.model.precision, kind: part}

    def _keep(self, kind: str, calibration: Calibration) -> None:
        if trouble := cache.store(kind, calibration):
            self._progress.note(trouble)

    def _checked(self, options: Options) -> Calibration:
        """The calibration file, if it is for this model and these settings."""
        assert options.calibration is not None
        path = options.calibration
        found = read_calibration(path)
        if not found.statistics or not found.scores:
            raise CalibrationError(f"{path}: is incomplete; make it anew with nemo-prune calibrate")
        rows = {layer.name: layer.rows for layer in self._layers}
        if {name: len(mean) for name, mean in found.statistics.mean.items()} != rows:
            raise CalibrationError(
                f"{path}: is for a model with other value layers; make one for this model with "
                f"nemo-prune calibrate"
            )
        about, here = found.about["scores"], self.scores_about
        differing = [
            f"{key} {about[key]} instead of {here[key]}"
            for key in ("timestep", "latents")
            if about[key] != here[key]
        ]
        if about["seeds"] < options.seeds:
            differing.append(f"{about['seeds']} seeds instead of {options.seeds}")
        precision = self._engine.model.precision
        if found.about["precision"] != precision:
            differing.append(f"precision {found.about['precision']} instead of {precision}")
        elif found.about["fingerprint"] != self.fingerprint:
            differing.append("other weights")
        if differing and not options.force:
            raise CalibrationError(
                f"{path}: was made for another model or setting ({', '.join(differing)}); make one "
                f"for this model with nemo-prune calibrate, or pass --force"
            )
        if differing:
            self._progress.note(f"{path}: used all the same ({', '.join(differing)})")
        return found
