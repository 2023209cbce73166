"""Read prompt files: one prompt per line, a CSV column, or JSON lines."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from nemo_prune.errors import PromptFileError
from nemo_prune.files.text import read_text

COLUMNS = ("caption", "prompt", "text")
LABELS = ("memorized", "label")
_MEMORIZED = frozenset({"1", "true", "yes", "memorized", "verbatim", "vm", "template", "tm"})
_ORDINARY = frozenset({"0", "false", "no", "ordinary", "not memorized", "none", "n"})


@dataclass(frozen=True)
class PromptList:
    """The distinct prompts of a file, in its order; `merged` counts the repetitions left out."""

    texts: tuple[str, ...]
    merged: int


def read_prompts(path: Path) -> PromptList:
    """Prompts of a `.csv`, `.jsonl` or text file, UTF-8 with or without a byte order mark.

    A CSV needs a column named caption, prompt or text, in any case, separated by `,` or `;`. A
    JSON line is a string, or an object with such a key. Lines end at `\\n` or `\\r\\n` and nowhere
    else. White space around a prompt is dropped, as are blank ones.

    Raises PromptFileError, one line, for a file without usable prompts.
    """
    text = _read(path)
    kind = path.suffix.lower()
    if kind == ".csv":
        found = _from_csv(text, path)
    elif kind == ".jsonl":
        found = _from_json_lines(text, path)
    else:
        found = _lines(text)
    prompts = [prompt for line in found if (prompt := line.strip())]
    if not prompts:
        raise PromptFileError(f"{path}: holds no prompts; write one per line")
    distinct = tuple(dict.fromkeys(prompts))
    return PromptList(distinct, len(prompts) - len(distinct))


def bundled_captions() -> tuple[str, ...]:
    """The 2,000 ordinary captions that come with the package, varied from the first on."""
    return read_prompts(Path(str(files("nemo_prune") / "data" / "ordinary.txt"))).texts


def prompts_hash(prompts: Sequence[str]) -> str:
    """SHA-256 of the prompts, in order, as a JSON list; 64 hexadecimal digits.

    A short list of guessable prompts can be guessed from it, as from any hash.
    """
    return hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()


def read_labels(path: Path, prompts: Sequence[str]) -> tuple[bool, ...] | None:
    """Whether each prompt is memorized, by the column memorized or label of a CSV.

    1, true, yes, memorized, verbatim (VM) and template (TM) mean that it is; 0, false, no, ordinary
    and none (N) that it is not. None for other files and without such a column. Raises
    PromptFileError for another word, a missing one, or a prompt that is labelled both ways.
    """
    if path.suffix.lower() != ".csv":
        return None
    rows = _rows(_read(path), path)
    names = [name.strip().lower() for name in rows[0]] if rows else []
    column = next((names.index(name) for name in LABELS if name in names), None)
    if column is None:
        return None
    place = _prompt_column(names, path)
    found: dict[str, bool] = {}
    for number, row in enumerate(rows[1:], start=2):
        if len(row) <= place or not (prompt := row[place].strip()):
            continue
        word = row[column].strip().lower() if len(row) > column else ""
        if word not in _MEMORIZED | _ORDINARY:
            # Not quoted: of a row whose columns slipped, it may be a prompt.
            what = "another word" if word else "nothing"
            raise PromptFileError(
                f"{path}: row {number} has {what} under {names[column]}; write 1 (memorized) or 0"
            )
        if found.setdefault(prompt, word in _MEMORIZED) != (word in _MEMORIZED):
            raise PromptFileError(f"{path}: row {number} labels a prompt otherwise than a row before")
    return tuple(found[prompt] for prompt in prompts)


def _read(path: Path) -> str:
    text = read_text(path, PromptFileError, "prompts", "a UTF-8 text file")
    if "\0" in text:
        raise PromptFileError(f"{path}: is not a text file; give one prompt per line")
    return text


def _lines(text: str) -> list[str]:
    # Not str.splitlines: it also splits at a form feed or U+2028, which a prompt may hold.
    return re.split("\r?\n", text)


def _from_csv(text: str, path: Path) -> list[str]:
    rows = _rows(text, path)
    if not rows:
        return []
    place = _prompt_column([name.strip().lower() for name in rows[0]], path)
    return [row[place] for row in rows[1:] if len(row) > place]


def _rows(text: str, path: Path) -> list[list[str]]:
    head = text.lstrip().partition("\n")[0]
    # By what the header uses: sniffing the captions would find commas everywhere.
    separator = ";" if head.count(";") > head.count(",") else ","
    try:
        return list(csv.reader(io.StringIO(text.lstrip(), newline=""), delimiter=separator))
    except csv.Error as error:
        raise PromptFileError(f"{path}: is not a readable CSV ({error})") from None


def _prompt_column(names: Sequence[str], path: Path) -> int:
    for column in COLUMNS:
        if column in names:
            return names.index(column)
    raise PromptFileError(
        f"{path}: has no column named {', '.join(COLUMNS)}; name the prompts' column so"
    )


def _from_json_lines(text: str, path: Path) -> list[str]:
    found = []
    for number, line in enumerate(_lines(text), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            raise PromptFileError(f"{path}: line {number} is not JSON; mend it") from None
        if isinstance(entry, dict):
            keys = {str(key).lower(): value for key, value in entry.items()}
            entry = next((keys[column] for column in COLUMNS if column in keys), None)
        if not isinstance(entry, str):
            raise PromptFileError(
                f"{path}: line {number} has no string under {', '.join(COLUMNS)}; mend it"
            )
        try:
            entry.encode()
        except UnicodeEncodeError:
            raise PromptFileError(f"{path}: line {number} is not Unicode; mend it") from None
        found.append(entry)
    return found
