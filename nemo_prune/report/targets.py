"""Training pictures to compare with: which belongs to which prompt."""

import csv
import io
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from nemo_prune.errors import OptionError, option
from nemo_prune.files.atomic import write_new
from nemo_prune.files.lists import FOREIGN, FORMATS
from nemo_prune.files.names import COLUMNS
from nemo_prune.files.text import STAND_IN_BYTES, absent, stand_in
from nemo_prune.files.trees import in_any_form, start_of
from nemo_prune.options import TargetsMatch
from nemo_prune.report.pictures import Picture

_SUFFIXES = {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff"}
_FOREIGN = {".heic", ".heif", ".jxl", ".svg", ".psd", ".dng", ".exr"}  # pictures that are not read
_SMALLEST = 8  # pixels of a picture that anything can be said of
_TELLING = 8  # letters of a name that are a part of a prompt and no accident
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # longer than the letter of a drive
_SHOWN = 3  # names in a message
_FILE_COLUMNS = ("file", "target", "image", "path", "file_name", "filename")


@dataclass(frozen=True)
class Targets:
    """Which training picture belongs to which prompt.

    match: how that was, or is to be, found. pictures: prompt number -> picture. left: pictures without
    a prompt; of "alike" all, until the unpruned model has drawn its own.
    """

    match: TargetsMatch = "name"
    pictures: Mapping[int, Path] = field(default_factory=dict)
    left: tuple[Path, ...] = ()


def find_targets(place: Path, prompts: Sequence[str], match: TargetsMatch = "name") -> Targets:
    """The training pictures in `place`, as far as they can be told before anything is drawn.

    match: "name", as `read_targets`; "order": the pictures of a folder in the order of their names,
        numbers by value, go to the prompts in theirs; "alike": to be told by `matching.match_alike`.

    Raises OptionError as `read_targets`; for no folder, or no pictures in it, where it takes one; and
    by order for another number of pictures than of prompts.
    """
    if match == "name":
        found = read_targets(place, prompts)
        used = set(found.values())
        left = [path for path in _pictures(place) if path not in used] if place.is_dir() else []
        return Targets(match, found, tuple(left))
    if not place.is_dir():
        raise OptionError(
            f"{option('targets')} {place}: {option('targets_match')} {match} takes a folder of pictures"
        )
    pictures = _pictures(place)
    if not pictures:
        within = _within(place, prompts)
        raise OptionError(f"{option('targets')} {place}: holds no pictures{within}; check the path")
    if match == "order" and len(pictures) != len(prompts):
        raise OptionError(
            f"{option('targets')} {place}: holds {len(pictures)} pictures for {len(prompts)} prompts; "
            f"by order there must be one for each"
        )
    for path in pictures:
        open_target(path, 64, 64)  # now rather than after hours of drawing
    if match == "order":
        return Targets(match, dict(enumerate(pictures)))
    return Targets(match, {}, tuple(pictures))


def write_template(
    path: Path, prompts: Sequence[str], pictures: Mapping[int, Path], overwrite: bool = False
) -> None:
    """Write a CSV of the prompts and their pictures, empty where there is none: for people to fill in.

    It holds the prompts' texts. Pictures are named from its own folder on. Raises OutputError where it
    cannot be written, or exists and `overwrite` is false.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("prompt", "file"))
    for index, prompt in enumerate(prompts):
        file = pictures.get(index)
        writer.writerow((prompt, "" if file is None else _seen_from(path.parent, file)))
    write_new(path, text.getvalue().encode("utf-8", "backslashreplace"), overwrite)


def shown_name(path: Path, prompts: Sequence[str]) -> str:
    """A picture's name, unless that says a prompt: those are shown only where that is asked for."""
    name = _letters(path.stem)
    for text in map(_letters, prompts):
        if (text and text in name) or (len(name) >= _TELLING and name in text):
            return f"(named by a prompt's text){path.suffix}"
    return path.name


def _seen_from(folder: Path, file: Path) -> str:
    try:
        return Path(os.path.relpath(file, folder)).as_posix()
    except ValueError:  # another drive
        return str(file.absolute())


def _pictures(folder: Path) -> list[Path]:
    """The pictures of a folder by their names, numbers by value."""

    def key(path: Path) -> list[tuple[int, str]]:
        parts = re.split(r"([0-9]+)", path.name.casefold())
        return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]

    found = [path for path in sorted(folder.iterdir()) if not path.name.startswith("._")]
    for path in found:
        if path.suffix.lower() in _FOREIGN:  # its prompt would go without
            raise OptionError(f"{option('targets')}: {path}: cannot be read; save it as PNG")
    found = [path for path in found if path.suffix.lower() in _SUFFIXES]
    return sorted(found, key=lambda path: (key(path), path.name))


def _within(place: Path, prompts: Sequence[str]) -> str:
    """That pictures lie in folders of a folder; "" if none do."""
    inside = (path for path in sorted(place.glob("*/*")) if path.suffix.lower() in _SUFFIXES)
    names = [*dict.fromkeys(shown_name(path.parent, prompts) for path in inside)]
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f", and what lies in its folders ({shown}) is not looked into" if names else ""


def read_targets(place: Path, prompts: Sequence[str]) -> dict[int, Path]:
    """Prompt number -> training picture.

    place: a CSV (separated by `,`, `;` or tabs) with a column of prompts (caption, prompt or text) and
        one of picture files (file, target, image or path; relative to the CSV), or a folder. In a folder
        a CSV is read if it holds just one; else a picture belongs to the prompt whose number
        (`3.png`, `003.png`) or text is its name; of the text only letters and digits count, in any
        case. A row of a CSV that names no file says that its prompt has no picture.

    Raises OptionError, one line, if nothing there belongs to any prompt, two pictures to one, or a file
    is missing or no readable picture.
    """
    if place.is_dir():
        tables = sorted(path for path in place.iterdir() if path.suffix.lower() in (".csv", ".tsv"))
        if len(tables) > 1:
            raise OptionError(
                f"{option('targets')} {place}: holds several tables (CSV, TSV); name the one to use"
            )
        found = _from_csv(tables[0], prompts) if tables else _by_name(place, prompts)
    elif place.is_file():
        found = _from_csv(place, prompts)
    else:
        raise OptionError(f"{option('targets')} {place}: no such file or folder; check the path")
    if not found:
        raise OptionError(
            f"{option('targets')} {place}: no picture belongs to a prompt"
            f"{_within(place, prompts)}; name the pictures by the prompts' "
            f"numbers from 0, or give a CSV with columns prompt and file, or {option('targets_match')}"
        )
    for path in found.values():
        open_target(path, 64, 64)  # now rather than after hours of drawing
    return found


def read_pictures(places: Sequence[Path]) -> tuple[Path, ...]:
    """The pictures that files are, and that folders hold; by `unseen`, which names no prompt.

    Raises OptionError for a place that is not there, holds none, or holds one that cannot be read.
    """
    found: list[Path] = []
    for place in places:
        if not place.exists():
            raise OptionError(f"{option('unseen')} {place}: no such file or folder; check the path")
        some = _pictures(place) if place.is_dir() else [place]
        if not some:
            what = f"holds no picture (.png, .jpg, .webp, ...){_within(place, ())}"
            raise OptionError(f"{option('unseen')} {place}: {what}")
        found += some
    for path in found:
        open_target(path, 64, 64, "unseen")
    return tuple(found)


def open_target(path: Path, width: int, height: int, given_by: str = "targets") -> Picture:
    """The picture cropped and scaled to `width` x `height`, uint8 `[height, width, 3]`.

    Raises OptionError, of the option that it was `given_by`, if it cannot be read.
    """
    try:
        if not path.is_file() and path.exists():  # a pipe would be waited for
            raise OptionError(f"{option(given_by)}: {path}: is not a regular file; give a picture")
        with Image.open(path) as image:
            whole = _rgb(ImageOps.exif_transpose(image))
            if min(whole.size) < _SMALLEST:
                raise OptionError(
                    f"{option(given_by)}: {path}: is {whole.width}x{whole.height} pixels; give it whole"
                )
            return np.asarray(ImageOps.fit(whole, (width, height), Image.Resampling.LANCZOS))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None)  # None: it was read, and is no picture
        why = "" if reason else stand_in(start_of(path, STAND_IN_BYTES))
        if isinstance(error, FileNotFoundError):
            why = absent(path, "")
        why = why or f"{reason or 'is not a readable picture'}; mend or remove it"
        raise OptionError(f"{option(given_by)}: {path}: {why}") from None


def _rgb(image: Image.Image) -> Image.Image:
    """The picture in colours of eight bits; ValueError for one whose numbers have no known range."""
    if image.mode.startswith("I;16"):  # which `convert` would cut off at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError
    return image.convert("RGB")


def _by_name(folder: Path, prompts: Sequence[str]) -> dict[int, Path]:
    names = {_letters(prompt): index for index, prompt in enumerate(prompts)}
    found: dict[int, Path] = {}
    numbers = set()
    for path in _pictures(folder):
        stem = path.stem
        number = stem.isascii() and stem.isdigit() and len(stem) < 10
        index = int(stem) if number else names.get(_letters(stem))
        if number:
            numbers.add(int(stem))
        if index is not None and index < len(prompts) and found.setdefault(index, path) != path:
            both = " and ".join(shown_name(one, prompts) for one in (found[index], path))
            raise OptionError(
                f"{option('targets')} {folder}: names two pictures for one prompt, {both}; keep one of "
                f"them"
            )
    if 0 not in numbers and max(numbers, default=0) == len(prompts):
        raise OptionError(
            f"{option('targets')} {folder}: its pictures are numbered from 1 to {len(prompts)}, prompts "
            f"from 0 to {len(prompts) - 1}, so each would be the next prompt's; rename them, or, with "
            f"one for each, give {option('targets_match')} order"
        )
    return found


def _from_csv(path: Path, prompts: Sequence[str]) -> dict[int, Path]:
    known = {prompt: index for index, prompt in enumerate(prompts)}
    tables = {"", ".txt", ".text", ".csv", ".tsv", ".tab"}
    if path.suffix.lower() in (FOREIGN | FORMATS.keys()) - tables:
        raise OptionError(
            f"{option('targets')} {path}: is no table that is read; give a folder, or a CSV with the "
            f"columns prompt and file"
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
        head = text.partition("\n")[0]
        # By what the header uses, as in prompt files: captions hold commas.
        separator = max(",;\t", key=head.count)
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=separator))
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or (
            "is no folder and no readable CSV (UTF-8); of a spreadsheet save it as CSV UTF-8"
        )
        raise OptionError(f"{option('targets')} {path}: {reason}") from None
    found: dict[int, Path] = {}
    gone: list[str] = []
    named = {(_cell(_cells(row), COLUMNS) or "").strip() for row in rows}
    # By letters and digits, as names in a folder, where no row has the very text; None: of several.
    alike: dict[str, int | None] = {}
    for one, index in known.items():
        if one not in named:
            alike[_letters(one)] = None if _letters(one) in alike else index
    for row in rows:
        cells = _cells(row)
        prompt, name = _cell(cells, COLUMNS), _cell(cells, _FILE_COLUMNS)
        if prompt is None or name is None:
            raise OptionError(f"{option('targets')} {path}: needs a column prompt and a column file")
        if not name.strip():
            continue
        place = known.get(prompt.strip(), alike.get(_letters(prompt)))
        if place is not None:
            target = in_any_form(path.parent / name.strip())
            if not target.is_file():  # written on Windows, by its separators
                target = in_any_form(path.parent / name.strip().replace("\\", "/"))
            if not target.is_file():
                gone.append(name.strip())
            elif found.setdefault(place, target) != target:
                raise OptionError(
                    f"{option('targets')} {path}: names two pictures for one prompt, "
                    f"{found[place].name} and {target.name}; keep one of them"
                )
    if gone:
        addresses = [name for name in gone if _ADDRESS.match(name)]
        wrong = addresses or gone
        what = f"{', '.join(wrong[:_SHOWN])}{', ...' if len(wrong) > _SHOWN else ''}"
        if addresses:
            raise OptionError(
                f"{option('targets')} {path}: names {what}: addresses are not read, a picture's path is "
                f"wanted, as it stands on this disk or from the folder of the CSV on"
            )
        verb = "which is" if len(wrong) == 1 else "which are"
        raise OptionError(f"{option('targets')} {path}: names {what}, {verb} not there")
    if rows and not found:
        raise OptionError(
            f"{option('targets')} {path}: no picture belongs to a prompt: none of its {len(rows)} rows "
            f"has the text of one under prompt (not its number) and a picture under file; mend it, or "
            f"give a folder and {option('targets_match')}"
        )
    return found


def _cells(row: Mapping[str, str | None]) -> dict[str, str | None]:
    return {str(key).strip().lower(): value for key, value in row.items()}


def _cell(cells: Mapping[str, str | None], names: Sequence[str]) -> str | None:
    return next((cells[name] for name in names if cells.get(name) is not None), None)


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFC", text)).lower()
