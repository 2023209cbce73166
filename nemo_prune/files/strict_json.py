"""JSON files: those that users may edit are read strictly, so that no mistake passes unnoticed."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nemo_prune.errors import CheckpointError


class Fault(Exception):
    """What is wrong with a document, without the file's name."""


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a model's file, such as a config or an index; CheckpointError if none."""
    try:
        parsed = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as JSON ({error}); download it again, or mend it"
        ) from None
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path}: holds no JSON object; download the folder again")
    return parsed


def parse(text: str) -> object:
    """What the JSON text holds; Fault for what is not JSON, and for a key twice in one object."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise Fault(f"is not JSON ({error})") from None


def check_keys(
    entry: object, where: str, needed: set[str], allowed: Iterable[str] = ()
) -> dict[str, Any]:
    """`entry` if it is an object with all keys that are needed and none but those allowed too."""
    if not isinstance(entry, dict):
        raise Fault(f"has {where} that is not an object")
    for key in sorted(needed - entry.keys()):
        raise Fault(f'lacks "{key}" in {where}')
    for key in sorted(entry.keys() - needed - set(allowed)):
        raise Fault(f"has the unknown key {ascii(key)[:60]} in {where}")
    return entry


def typed(entry: dict[str, Any], key: str, kind: type, where: str) -> Any:
    """The entry's value under `key` if it is of just this kind."""
    # type() and not isinstance(): true is not a row.
    if type(entry.get(key)) is not kind:
        words = {dict: "an object", list: "a list", str: "a string", int: "a whole number"}
        raise Fault(f'has "{key}" in {where} that is not {words.get(kind, "true or false")}')
    return entry[key]


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Fault("has a key twice in one object")
    return found


def _constant(word: str) -> object:
    raise Fault(f"has {word}, which is not JSON")
