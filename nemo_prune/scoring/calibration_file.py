"""Calibrations as safetensors files: what `calibrate` writes, and what the cache holds.

Tensors `mean.LAYER` and `std.LAYER` (float64 `[rows]`), `paths` (float64 `[prompts, seeds - 1]`)
and `norms` (float64 `[prompts]`); `rows.LAYER` (uint8 `[rows, 8]`), hashes by which the model is
known again with rows zeroed (see `lineage`). The metadata `nemo_prune.calibration` is JSON: format,
version of the tool, `about`, which says what all of it depends on, and `apart`, the hash that goes with
`rows`. No prompt is in it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from nemo_prune import __version__
from nemo_prune.errors import CalibrationError
from nemo_prune.files.atomic import write_new
from nemo_prune.files.text import STAND_IN_BYTES, ZIP, absent, stand_in
from nemo_prune.model.denoiser import LoadedModel
from nemo_prune.model.settings import Settings, differing, settings_of
from nemo_prune.scoring.activations import ActivationStatistics
from nemo_prune.scoring.lineage import ROW_BYTES, Lineage, weights_sha256
from nemo_prune.scoring.thresholds import FEWEST_PROMPTS

FORMAT = "nemo-prune-calibration/1"
_KEY = "nemo_prune.calibration"
OTHER_WEIGHTS = "other weights"
_SHOWN = 3  # settings that differ, in a message


@dataclass(frozen=True)
class OrdinaryScores:
    """Scores of ordinary prompts without pruning.

    paths: of each prompt the memorization score after 2, 3, ... seeds.
    norms: of each prompt the mean of Wen et al.'s noise norm over all seeds.
    """

    paths: tuple[tuple[float, ...], ...]
    norms: tuple[float, ...]


@dataclass(frozen=True)
class Calibration:
    """What ordinary is for one model.

    about: "fingerprint", "precision" and "settings" of the model (`settings_of`; none in files of
        earlier versions); under "activations" and "scores" what each part depends on besides (prompts,
        their hash; seeds, seed, timestep, guidance, latents).
    lineage: of the model, so that a pruned copy of it can be told from another model; None in files of
        earlier versions.
    """

    about: Mapping[str, Any]
    statistics: ActivationStatistics | None = None
    scores: OrdinaryScores | None = None
    lineage: Lineage | None = None


def fingerprint(model: LoadedModel) -> str:
    """sha256 of the weights that a calibration depends on: the denoiser and the text encoders.

    See `weights_sha256`.
    """
    return weights_sha256(model)


def write_calibration(
    calibration: Calibration,
    path: Path,
    overwrite: bool = False,
    thresholds: Mapping[str, Any] | None = None,
) -> None:
    """Write a calibration, at once and whole; `thresholds` is for readers, and never read back.

    Raises OutputError where the file cannot be written, or exists and `overwrite` is false.
    """
    tensors = {}
    if calibration.statistics:
        for name, mean in calibration.statistics.mean.items():
            tensors[f"mean.{name}"] = mean
            tensors[f"std.{name}"] = calibration.statistics.std[name]
    if calibration.scores:
        tensors["paths"] = torch.tensor(calibration.scores.paths, dtype=torch.float64)
        tensors["norms"] = torch.tensor(calibration.scores.norms, dtype=torch.float64)
    entry = {"format": FORMAT, "version": __version__, "about": dict(calibration.about)}
    if calibration.lineage:
        entry["apart"] = calibration.lineage.apart
        tensors |= {f"rows.{name}": rows for name, rows in calibration.lineage.rows.items()}
    if thresholds:
        entry["thresholds"] = dict(thresholds)
    write_new(path, save(tensors, {_KEY: json.dumps(entry)}), overwrite)


def read_calibration(path: Path) -> Calibration:
    """Return the calibration at `path`; CalibrationError, one line, if it is not a sound one."""
    try:
        if not path.is_file():
            reason = "is a folder; give the file" if path.is_dir() else absent(path)
            raise CalibrationError(f"{path}: {reason}")
        with path.open("rb") as begins:
            start = begins.read(STAND_IN_BYTES)
        reason = stand_in(start)
        if start.startswith(ZIP):
            reason = "is a zip archive; unpack it"
        if reason or not start:
            empty = "is damaged: it is empty; make it anew with nemo-prune calibrate"
            raise CalibrationError(f"{path}: {reason or empty}")
        with safe_open(path, "pt") as file:
            entry = json.loads((file.metadata() or {}).get(_KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RecursionError):
        raise CalibrationError(
            f"{path}: is damaged or no calibration; make it anew with nemo-prune calibrate"
        ) from None
    if not isinstance(entry, dict) or "format" not in entry:
        raise CalibrationError(f"{path}: is no calibration; give a file of nemo-prune calibrate")
    if entry["format"] != FORMAT:
        raise CalibrationError(
            f"{path}: is of the format {ascii(entry['format'])[:60]}, this tool reads {FORMAT}; make it "
            f"anew with nemo-prune calibrate"
        )
    try:
        return _calibration(entry["about"], entry.get("apart"), tensors)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
        raise CalibrationError(f"{path}: is damaged; make it anew with nemo-prune calibrate") from None


def misfits(
    found: Calibration,
    model: LoadedModel,
    scores_about: Mapping[str, Any],
    seeds: int,
    weights: Callable[[], str],
) -> list[str]:
    """What a calibration with both parts was made for that is not so here, in words.

    scores_about: what the scores of `seeds` seeds would depend on here. weights: the model's
    `fingerprint`, which takes long and is asked for only where the precision is the same.
    """
    about = found.about["scores"]
    found_otherwise = [
        f"{key} {about[key]} instead of {scores_about[key]}"
        for key in ("timestep", "latents")
        if about[key] != scores_about[key]
    ]
    if about["seeds"] < seeds:
        found_otherwise.append(f"{about['seeds']} seeds instead of {seeds}")
    if found.about["precision"] != model.precision:
        found_otherwise.append(f"precision {found.about['precision']} instead of {model.precision}")
    elif found.about["fingerprint"] != weights():
        found_otherwise.append(OTHER_WEIGHTS)
    settings = settings_before(found, model)
    if settings is not None:
        found_otherwise += differing(settings, settings_of(model), "instead of")[:_SHOWN]
    return found_otherwise


def settings_before(found: Calibration, model: LoadedModel) -> Settings | None:
    """The settings that a calibration was made with; None where nothing tells.

    Files of earlier versions do not say. They are taken to be for the model as it describes itself,
    which a config given beside it must not change unnoticed.
    """
    settings: Settings | None = found.about.get("settings", model.own_settings)
    return settings


def _calibration(
    about: Mapping[str, Any], apart: object, tensors: dict[str, torch.Tensor]
) -> Calibration:
    hashed = {name: tensors.pop(name) for name in [*tensors] if name.startswith("rows.")}
    rows = {name.removeprefix("rows."): one for name, one in hashed.items()}
    if any(one.dtype != torch.uint8 or one.shape[1:] != (ROW_BYTES,) for one in rows.values()):
        raise ValueError("hashes that are none")
    if not isinstance(apart, str | None) or bool(rows) != bool(apart):
        raise TypeError("hashes without what they go with")
    lineage = Lineage(apart, rows) if apart else None
    if not all(tensor.dtype == torch.float64 and tensor.isfinite().all() for tensor in tensors.values()):
        raise ValueError("a number that is none")
    if not isinstance(about["fingerprint"], str) or not isinstance(about["precision"], str):
        raise TypeError("what it is for")
    if not isinstance(about.get("settings", {}), dict):
        raise TypeError("what it is for")
    statistics = scores = None
    if "activations" in about:
        mean, std = (
            {k.removeprefix(kind): v for k, v in tensors.items() if k.startswith(kind)}
            for kind in ("mean.", "std.")
        )
        if not mean or {k: v.shape for k, v in mean.items()} != {k: v.shape for k, v in std.items()}:
            raise ValueError("means and deviations of different layers")
        statistics = ActivationStatistics(mean, std, int(about["activations"]["prompts"]))
    if "scores" in about:
        said = about["scores"]
        shape = (int(said["prompts"]), int(said["seeds"]) - 1)
        paths, norms = tensors["paths"], tensors["norms"]
        if paths.shape != shape or norms.shape != shape[:1] or shape[0] < FEWEST_PROMPTS or not shape[1]:
            raise ValueError("other shapes than it says")
        if not isinstance(said["timestep"], int) or not isinstance(said["latents"], list):
            raise TypeError("what it is for")
        scores = OrdinaryScores(tuple(map(tuple, paths.tolist())), tuple(norms.tolist()))
    return Calibration(about, statistics, scores, lineage)
