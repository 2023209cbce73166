"""Training pictures to compare with: which belongs to which prompt."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from nemo_prune.errors import OptionError, option
from nemo_prune.files.lists import COLUMNS
from nemo_prune.report.pictures import Picture

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
_FILE_COLUMNS = ("file", "target", "image", "path")


def read_targets(place: Path, prompts: Sequence[str]) -> dict[int, Path]:
    """Prompt number -> training picture.

    place: a CSV (separated by `,` or `;`) with a column of prompts (caption, prompt or text) and one
        of picture files (file, target, image or path; relative to the CSV), or a folder. In a folder
        a CSV is read if it holds just one; else a picture belongs to the prompt whose number
        (`3.png`, `003.png`) or text is its name; of the text only letters and digits count, in any
        case.

    Raises OptionError, one line, if nothing there belongs to any prompt, or a file is missing or no
    readable picture.
    """
    if place.is_dir():
        tables = sorted(place.glob("*.csv"))
        if len(tables) > 1:
            raise OptionError(
                f"{option('targets')} {place}: holds several CSV files; name the one to use"
            )
        found = _from_csv(tables[0], prompts) if tables else _by_name(place, prompts)
    elif place.is_file():
        found = _from_csv(place, prompts)
    else:
        raise OptionError(f"{option('targets')} {place}: no such file or folder; check the path")
    if not found:
        raise OptionError(
            f"{option('targets')} {place}: no picture belongs to a prompt; name the "
            f"pictures by the prompts' "
            f"numbers from 0, or give a CSV with columns prompt and file"
        )
    for path in found.values():
        open_target(path, 64, 64)  # now rather than after hours of drawing
    return found


def open_target(path: Path, width: int, height: int) -> Picture:
    """The picture cropped and scaled to `width` x `height`, uint8 `[height, width, 3]`.

    Raises OptionError if it cannot be read.
    """
    try:
        with Image.open(path) as image:
            whole = ImageOps.exif_transpose(image).convert("RGB")
            return np.asarray(ImageOps.fit(whole, (width, height), Image.Resampling.LANCZOS))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "is not a readable picture"
        raise OptionError(f"{option('targets')}: {path}: {reason}; mend or remove it") from None


def _by_name(folder: Path, prompts: Sequence[str]) -> dict[int, Path]:
    names = {_letters(prompt): index for index, prompt in enumerate(prompts)}
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in _SUFFIXES:
            continue
        stem = path.stem
        number = stem.isascii() and stem.isdigit() and len(stem) < 10
        index = int(stem) if number else names.get(_letters(stem))
        if index is not None and index < len(prompts):
            found.setdefault(index, path)
    return found


def _from_csv(path: Path, prompts: Sequence[str]) -> dict[int, Path]:
    known = {prompt: index for index, prompt in enumerate(prompts)}
    try:
        text = path.read_bytes().decode("utf-8-sig")
        head = text.partition("\n")[0]
        # By what the header uses, as in prompt files: captions hold commas.
        separator = ";" if head.count(";") > head.count(",") else ","
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=separator))
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "is not a readable CSV; save it as UTF-8"
        raise OptionError(f"{option('targets')} {path}: {reason}") from None
    found = {}
    for row in rows:
        cells = {str(key).strip().lower(): value for key, value in row.items()}
        prompt, name = _cell(cells, COLUMNS), _cell(cells, _FILE_COLUMNS)
        if prompt is None or name is None:
            raise OptionError(f"{option('targets')} {path}: needs a column prompt and a column file")
        if prompt.strip() in known:
            target = path.parent / name.strip()
            if not target.is_file():
                raise OptionError(
                    f"{option('targets')} {path}: names {name.strip()}, which is not there"
                )
            found[known[prompt.strip()]] = target
    return found


def _cell(cells: Mapping[str, str | None], names: Sequence[str]) -> str | None:
    return next((cells[name] for name in names if cells.get(name) is not None), None)


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).lower()
