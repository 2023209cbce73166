"""The job of `calibrate`: load a model, measure what is ordinary for it, write that down."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemo_prune.checkpoint.checkpoint import Checkpoint
from nemo_prune.options import DEFAULT_FPR, Options, Progress
from nemo_prune.scoring.calibration_file import write_calibration
from nemo_prune.scoring.opening import open_engine
from nemo_prune.scoring.ordinary import Ordinary
from nemo_prune.scoring.thresholds import gate_from

_RATES = (DEFAULT_FPR, 0.001, 0.02, 0.05, 0.1)


def calibrate(
    checkpoint: Checkpoint,
    captions: Sequence[str] | None,
    options: Options,
    progress: Progress,
    out: Path,
    overwrite: bool,
) -> dict[str, Any]:
    """Write a model's calibration to `out`; return what it says as plain JSON.

    captions: ordinary prompts; None: the bundled ones. "gates" holds one for each of some rates,
    the default rate first.

    Raises OptionError, CheckpointError, CalibrationError (too few prompts), OutputError.
    """
    progress.stage("loading the model", 1, "file")
    engine = open_engine(checkpoint, options, progress, workers=True)
    with closing(engine):
        progress.advance()
        ordinary = Ordinary(engine, checkpoint, options, captions, progress, calibrating=True)
        calibration = ordinary.calibration()
        thresholds = ordinary.from_scores()
        scores = [path[-1] for path in ordinary.scores[0].paths]
        gates = [asdict(gate_from(scores, rate, thresholds.tau)) for rate in _RATES]
        told = {"tau": thresholds.tau, "gates": gates}
        write_calibration(calibration, out, overwrite, told)
        return {
            "output": {"path": str(out)},
            "fingerprint": calibration.about["fingerprint"],
            "precision": calibration.about["precision"],
            "prompts": calibration.about["activations"]["prompts"],
            "scored": calibration.about["scores"]["prompts"],
            "seeds": options.seeds,
            "timestep": engine.timestep,
            "prediction": engine.model.prediction.as_json() if engine.model.prediction else None,
            **told,
            "samples": engine.cost.samples,
        }
