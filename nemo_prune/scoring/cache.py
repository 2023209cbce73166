"""Where calibrations are kept between runs: one file each, in the user's cache directory.

A cache never stops a run. An entry that is damaged, of another version or about something else is
as good as none, and a folder that cannot be written to means that nothing is kept. Two processes
that write the same entry at once both succeed: each puts a whole file in place.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import platformdirs

from nemo_prune.errors import CalibrationError, OutputError
from nemo_prune.scoring.calibration_file import Calibration, read_calibration, write_calibration

ENVIRONMENT = "NEMO_PRUNE_CACHE"
SCORING = 1
"""The way in which scores, norms and activations are taken. Raise it with every change after which the
same model, prompts and settings give other numbers (the similarity, the noise of a seed, the
scaling of differences, the tokens that are averaged): entries of another way are not used."""


def cache_folder() -> Path:
    """The folder in `NEMO_PRUNE_CACHE` if that is set, else the platform's for this user."""
    chosen = os.environ.get(ENVIRONMENT)
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("nemo-prune", appauthor=False))


def entry(kind: str, about: Mapping[str, Any]) -> Path:
    """The file that holds the calibration `about` these settings, whether it exists or not."""
    key = hashlib.sha256(json.dumps(_stamped(about), sort_keys=True).encode()).hexdigest()
    return cache_folder() / f"{kind}-{key[:32]}.safetensors"


def load(kind: str, about: Mapping[str, Any]) -> Calibration | None:
    """The calibration kept for exactly these settings; None if there is none that can be used."""
    with contextlib.suppress(CalibrationError):  # none there, damaged, or not to be looked into
        found = read_calibration(entry(kind, about))
        if found.about == _stamped(about):
            return replace(found, about=about)
    return None


def of_others(kind: str, about: Mapping[str, Any]) -> Iterator[Calibration]:
    """What is kept of the same settings for other weights that could be this model's original's."""
    wanted = {**_stamped(about), "fingerprint": None}
    with contextlib.suppress(OSError):
        for path in sorted(cache_folder().glob(f"{kind}-*.safetensors")):
            with contextlib.suppress(CalibrationError):
                found = read_calibration(path)
                if found.lineage and {**found.about, "fingerprint": None} == wanted:
                    yield found


def store(kind: str, calibration: Calibration) -> str | None:
    """Keep a calibration; what went wrong, as one line, if it could not be kept."""
    path = entry(kind, calibration.about)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_calibration(replace(calibration, about=_stamped(calibration.about)), path, overwrite=True)
    except (OSError, OutputError) as error:
        return f"the calibration could not be kept for the next run ({error})"
    return None


def _stamped(about: Mapping[str, Any]) -> dict[str, Any]:
    return {**about, "scoring": SCORING}
