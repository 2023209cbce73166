"""The job of `detect` and `check`: load, take the thresholds, score, and sum up."""

import csv
import io
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nemo_prune import __version__
from nemo_prune.checkpoint.checkpoint import Checkpoint, model_sha256
from nemo_prune.files.atomic import write_new
from nemo_prune.files.prompts import apart_from
from nemo_prune.model.denoiser import LoadedModel
from nemo_prune.model.prediction import Prediction
from nemo_prune.options import Options, Progress
from nemo_prune.scoring.consistency import ORDINARY, consistencies, consistency_gate
from nemo_prune.scoring.detect import Detection, detect
from nemo_prune.scoring.engine import Engine
from nemo_prune.scoring.journal import Journal, fingerprint_of_run
from nemo_prune.scoring.notes import notes_on_scores, tokens_of
from nemo_prune.scoring.opening import open_engine, trajectory_schedule
from nemo_prune.scoring.ordinary import Ordinary, check_apart
from nemo_prune.scoring.rates import accuracy, separation
from nemo_prune.scoring.thresholds import Thresholds


@dataclass(frozen=True)
class Findings:
    """What was found; `detections` are in the order of the prompts.

    norm_gate: what ordinary prompts' noise norms exceed at the same rate, where that is known; it
        decides nothing.
    samples: denoiser samples to score the prompts; `calibration_samples` those for thresholds.
    prediction: what the denoiser was taken to predict, and why.
    """

    checkpoint: Path
    prompts: tuple[str, ...]
    thresholds: Thresholds
    norm_gate: float | None
    seeds: int
    timestep: int
    detections: tuple[Detection, ...]
    truncated: tuple[bool, ...]
    labels: tuple[bool, ...] | None
    samples: int
    calibration_samples: int
    seconds: float
    consistency_gate: float | None = None
    prediction: Prediction | None = None

    @property
    def memorized(self) -> tuple[Detection, ...]:
        """The prompts above the gate, highest score first."""
        return tuple(found for found in self.ranked if found.memorized)

    @property
    def ranked(self) -> list[Detection]:
        return sorted(self.detections, key=lambda found: (-found.score, found.index))


def find_memorized(
    checkpoint: Checkpoint,
    prompts: Sequence[str],
    options: Options,
    progress: Progress,
    *,
    calibration_prompts: Sequence[str] | None = None,
    labels: tuple[bool, ...] | None = None,
    early: bool = True,
    keep: Path | None = None,
    resume: bool = False,
    loaded: LoadedModel | None = None,
    trajectories: bool = False,
) -> Findings:
    """Score every prompt and decide by the gate; no search.

    trajectories: also draw a few guided steps of every prompt that the score leaves alone; one that
        draws the same picture from every seed is memorized too. See `consistency`.

    early: False uses all seeds of every prompt. Labelled prompts always get all of them: the rates
    compare scores with each other, so all must be taken alike.
    keep: a journal of scored prompts, for the caller to remove; `resume` takes up the one that an
        earlier run left there.
    loaded: the model, where it is in memory already; it has no journal.

    Raises OptionError, CheckpointError, CalibrationError; OutputError for a journal of another run.
    """
    started = time.monotonic()
    if overlap := check_apart(prompts, calibration_prompts, options):
        progress.note(overlap)
    progress.stage("loading the model", 1, "file")
    engine = open_engine(checkpoint, options, progress, loaded, workers=True)
    with closing(engine):
        return _found(
            engine, checkpoint, prompts, options, progress, calibration_prompts, labels, early, keep,
            resume, trajectories, started,
        )  # fmt: skip


def _found(
    engine: Engine, checkpoint: Checkpoint, prompts: Sequence[str], options: Options, progress: Progress,
    calibration_prompts: Sequence[str] | None, labels: tuple[bool, ...] | None, early: bool,
    keep: Path | None, resume: bool, trajectories: bool, started: float,
) -> Findings:  # fmt: skip
    progress.advance()
    counts, notes = tokens_of(engine.model, prompts)
    for line in notes:
        progress.note(line)
    most = engine.model.max_tokens
    truncated = tuple(count > most for count in counts)
    if any(truncated):
        progress.note(
            f"{sum(truncated)} prompts are longer than {most} tokens and were truncated: the model "
            f"sees, and the score is of, what they begin with"
        )
    ordinary = Ordinary(engine, checkpoint, options, calibration_prompts, progress)
    thresholds = ordinary.thresholds
    norm_gate = ordinary.norm_gate(options.fpr)
    early = early and labels is None
    if early and not thresholds.margins and thresholds.scores_from is None:
        progress.note(
            "no ordinary scores are known, so prompts that are not memorized take all seeds "
            "(nemo-prune calibrate mends that)"
        )
    calibration_samples = engine.cost.samples
    journal = None
    known: dict[int, Detection] = {}
    if keep is not None:
        settings = {
            **thresholds.as_json(),
            "margins": thresholds.margins,
            "early": early,
            "seeds": options.seeds,
            "seed": options.seed,
            "timestep": engine.timestep,
            "precision": engine.model.precision,
            "scored by": ordinary.scored_by,
        }
        run = fingerprint_of_run(model_sha256(checkpoint), prompts, calibration_prompts, settings)
        journal = Journal.open(keep, run, resume=resume)
        known = {int(key): _detection(value) for key, value in journal.entries.items()}
    progress.stage("scoring", len(prompts), "prompts", done=len(known))

    def on_found(one: Detection) -> None:
        if journal:
            journal.add(str(one.index), asdict(one))
        progress.advance()

    try:
        detections = detect(
            engine, prompts, range(options.seeds), thresholds.gate.value, thresholds.margins,
            early=early, known=known, on_found=on_found,
        )  # fmt: skip
    finally:
        if journal:
            journal.close()
    if thresholds.scores_from is not None:
        for line in notes_on_scores(detections, ordinary.scores[0].paths):
            progress.note(line)
    gate = None
    if trajectories:
        captions = apart_from(ordinary.captions, prompts)[:ORDINARY]
        schedule = trajectory_schedule(engine.model, "trajectory")
        progress.stage("drawing ordinary trajectories", len(captions), "prompts")
        before = engine.cost.samples
        gate = consistency_gate(consistencies(engine, captions, schedule, progress.advance), options.fpr)
        calibration_samples += engine.cost.samples - before
        left = [one.index for one in detections if not one.memorized]
        progress.stage("drawing trajectories", len(left), "prompts")
        alike = consistencies(engine, [prompts[i] for i in left], schedule, progress.advance)
        for index, value in zip(left, alike, strict=True):
            detections[index] = replace(
                detections[index], consistency=round(value, 5), memorized=value > gate
            )
    return Findings(
        checkpoint=checkpoint.path,
        prompts=tuple(prompts),
        thresholds=thresholds,
        norm_gate=norm_gate,
        seeds=options.seeds,
        timestep=engine.timestep,
        detections=tuple(detections),
        truncated=truncated,
        labels=labels,
        samples=engine.cost.samples - calibration_samples,
        calibration_samples=calibration_samples,
        seconds=round(time.monotonic() - started, 1),
        consistency_gate=gate,
        prediction=engine.model.prediction,
    )


def _detection(entry: dict[str, Any]) -> Detection:
    """What a journal holds of one prompt; earlier versions kept no scores of single seeds."""
    return Detection(**{**entry, "seed_scores": tuple(entry.get("seed_scores", ()))})


def evaluation(found: Findings) -> dict[str, Any] | None:
    """How both measures tell the labelled prompts apart; None without labels of both kinds."""
    labels = found.labels
    if labels is None or len(set(labels)) < 2:
        return None
    scores = [one.score for one in found.detections]
    norms = [one.noise_norm for one in found.detections]
    ordinary = [one for one, label in zip(found.detections, labels, strict=True) if not label]
    return {
        "memorized": sum(labels),
        "ordinary": len(ordinary),
        "score": asdict(separation(scores, labels)),
        "noise_norm": asdict(separation(norms, labels)),
        "accuracy_at_tau": accuracy(scores, labels, found.thresholds.tau),
        "accuracy_at_gate": accuracy(scores, labels, found.thresholds.gate.value),
        "false_findings_at_gate": sum(one.memorized for one in ordinary) / len(ordinary),
    }


def summary(found: Findings, show_prompts: bool = False) -> dict[str, Any]:
    """The findings as plain JSON: the object that `detect --json` and `check --json` print.

    "lower_bound": a prompt that was clear after fewer seeds than the others might have scored higher
    on all of them, so such scores have no ranks among each other. "truncated": the score is of what the
    prompt begins with, as the model sees no more.
    """
    return {
        "version": __version__,
        "source": {"path": str(found.checkpoint)},
        **found.thresholds.as_json(),
        "scores_from": found.thresholds.scores_from,
        "noise_norm_gate": found.norm_gate,
        "consistency_gate": found.consistency_gate,
        "seeds": found.seeds,
        "timestep": found.timestep,
        "prediction": found.prediction.as_json() if found.prediction else None,
        "memorized": len(found.memorized),
        "prompts": [_row(found, one, show_prompts) for one in found.detections],
        "evaluation": evaluation(found),
        "cost": {
            "samples": found.samples,
            "calibration_samples": found.calibration_samples,
            "seconds": found.seconds,
        },
    }


def write_csv(
    found: Findings,
    path: Path,
    overwrite: bool,
    show_prompts: bool = False,
    places: Sequence[tuple[str, int]] = (),
) -> None:
    """The ranked table as CSV: a header line, then a line a prompt, highest score first.

    Its columns are the keys of `summary`'s prompts; `seed_0`, `seed_1`, ... are the seeds' own scores,
    empty where a prompt was clear without them.

    places: of each prompt, the file and the line where it stands, if that is known.
    """
    rows = [_row(found, one, show_prompts) for one in found.ranked]
    for row in rows:
        of_seeds = row.pop("seed_scores")
        missing = [""] * (found.seeds - len(of_seeds))
        row |= {f"seed_{seed}": score for seed, score in enumerate([*of_seeds, *missing])}
    if places:
        rows = [row | dict(zip(("file", "line"), places[row["index"]], strict=True)) for row in rows]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_new(path, text.getvalue().encode("utf-8", "backslashreplace"), overwrite)


def _row(found: Findings, one: Detection, show_prompts: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "index": one.index,
        "memorized": one.memorized,
        "score": one.score,
        "noise_norm": round(one.noise_norm, 5),
        "seeds": one.seeds,
        "lower_bound": one.seeds < found.seeds,
        "seed_scores": list(one.seed_scores),
        "truncated": found.truncated[one.index],
    }
    if found.consistency_gate is not None:
        row["consistency"] = one.consistency
    if found.labels is not None:
        row["label"] = found.labels[one.index]
    if show_prompts:
        row["text"] = found.prompts[one.index]
    return row
