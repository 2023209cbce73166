"""Where texts lie in JSON that is no list of prompts by itself, and what to do about it."""

import re
from collections.abc import Mapping, Sequence

from nemo_prune.errors import option
from nemo_prune.files.names import COLUMNS, LISTS, is_name, is_text, shown_keys

AS_OBJECTS = "write each row as an object with a caption (ClickHouse: JSONEachRow)"
_DEEP = 3  # objects in objects
_FIRST = 5  # items of a list


def lists_in(whole: Mapping[str, object], column: str | None) -> list[str]:
    """The keys, in lower case, under which an object may hold the list."""
    lists = {key.lower() for key, value in whole.items() if isinstance(value, list)}
    for names in ((column,) if column else (), LISTS, COLUMNS):
        if named := [name for name in names if name in lists]:
            return named
    return []


def lists_with(whole: Mapping[str, object], names: Sequence[str]) -> list[str]:
    """The keys of lists that begin with an object in which a string stands under one of these names."""
    return [
        key
        for key, value in whole.items()
        if isinstance(value, list) and value and _has(value[0], names)
    ]


def _has(value: object, names: Sequence[str]) -> bool:
    return isinstance(value, dict) and any(
        isinstance(cell, str) and name.lower() in names for name, cell in value.items()
    )


def without_list(whole: Mapping[str, object]) -> str:
    """What an object without a usual key is, where its captions lie, and what to do."""
    as_lines = "write them as JSON lines (jq -c '.[]')"
    if whole and all(_has(value, COLUMNS) for value in whole.values()):
        return f"of objects that hold the captions, one for each picture or row; {as_lines}"
    if whole and all(isinstance(value, str) for value in whole.values()):
        return f"of texts, which are no list; if they are the prompts, {as_lines}"
    more = ""
    if shown := shown_keys(named := lists_with(whole, COLUMNS)):
        which = f"{shown} reads them" if len(named) == 1 else "names one of these"
        more = f"; captions stand in its {shown}: {option('prompt_column')} {which}"
    elif inside := next(filter(None, (_inside(*item) for item in whole.items())), ""):
        return inside
    elif deep := texts_at(whole):
        name, _, key = deep.partition("[]")
        if deep.count("[]") != 1 or "*" in deep or "." in name or key.count(".") > 1:
            return _below(deep)
        more = f"; texts stand in its {deep}: {option('prompt_column')} {key[1:] or name} reads them"
    elif shown := shown_keys(name for name, value in whole.items() if isinstance(value, list)):
        more = f"; its lists are {shown}: {option('prompt_column')} names the one of prompts"
    return f"without a list under {' or '.join(LISTS)}; give the prompts as a list{more}"


def workflow(whole: Mapping[str, object]) -> str:
    """That an object is a workflow of ComfyUI, as its interface or its API has it; "" for another."""
    nodes = whole.get("prompt", whole)  # as it is sent
    api = isinstance(nodes, dict) and any(
        isinstance(node, dict) and {"class_type", "inputs"} <= node.keys() for node in nodes.values()
    )
    if not api and not {"nodes", "links"} <= whole.keys():
        return ""
    way = ".prompt[]" if nodes is not whole else ".[]"
    how = f" (jq -r '{way}.inputs.text | strings')" if api else ""
    return f"is a workflow of ComfyUI, and no list; take the captions out of its nodes{how}"


def _below(place: str) -> str:
    way = "." + place.replace(".*", "[]").replace("*", "[]", 1)
    return (
        f"whose texts stand under {place}, where none is read; write them as JSON lines (jq -c '{way}')"
    )


def texts_at(value: object, above: str = "", short: bool = False) -> str:
    """The first place where a text stands, as in hits[]._source.caption; "" for none.

    A key that is no name is `*`. One under a usual name comes before others of its object. short: a
    string of a word or two is a text too.
    """
    if isinstance(value, str):
        return above if is_text(value) or (short and value.strip()) else ""
    if above.count(".") + above.count("[") > 2 * _DEEP:
        return ""
    if isinstance(value, list):
        return next(filter(None, (texts_at(one, f"{above}[]", short) for one in value[:_FIRST])), "")
    if not isinstance(value, Mapping):
        return ""
    names = sorted(value, key=lambda name: str(name).lower() not in COLUMNS)
    for name in names:
        place = f"{above}.{name if is_name(str(name)) else '*'}".lstrip(".")
        if found := texts_at(value[name], place, short):
            return found
    return ""


def _inside(name: str, value: object) -> str:
    """Where captions lie in a list whose rows are lists, or objects in objects; "" in any other."""
    if not is_name(name) or not isinstance(value, list) or not value:
        return ""
    if isinstance(value[0], list) and any(isinstance(cell, str) for cell in value[0]):
        return f"whose {name} holds a list for each row; {AS_OBJECTS}"
    if deeper := _deeper(value[0], f"{name}."):
        inner = deeper.removeprefix(f"{name}.").rpartition(".")[0]
        return (
            f"whose captions stand under {deeper}, where none is read; write them as JSON lines "
            f"(jq -c '.{name}[].{inner}')"
        )
    return ""


def lacking(record: Mapping[str, object]) -> str:
    """What a record without a prompt has instead, and what to do; "" where nothing can be said."""
    if deeper := _deeper(record, ""):
        return f"; it has one under {deeper}, where none is read: bring it to the top"
    keys = shown_keys(record)
    texts = [cell for cell in record.values() if isinstance(cell, str)]
    if not keys and any(map(is_text, texts)):
        return (
            "; its keys are no names of columns: write objects with a caption "
            "(jq -c 'to_entries[] | {file: .key, caption: .value}')"
        )
    if not any(map(is_text, texts)) and (deep := texts_at(record)):
        return f"; its texts stand under {deep}, where none is read: bring them to the top"
    if texts and keys:
        return f"; its keys are {keys}: {option('prompt_column')} names one that holds strings"
    return f"; its keys ({keys}) hold no strings: write the prompts as strings" if keys else "; mend it"


def within(name: str, value: object, table: bool) -> str:
    """Where a text stands in what a record has in place of one, and what to do; "" where nowhere."""
    place = texts_at({name: value}) or texts_at({name: value}, short=True)
    if not place or "*" in place:
        return ""
    if table:
        return f", whose text stands under {place}; write that as a column of its own"
    way = "".join(f"{part}?" for part in re.findall(r"\[\]|\.?[^.\[]+", place))
    return f", whose text stands under {place}; write it as JSON lines (jq -c '.. | .{way} | strings')"


def _deeper(value: object, above: str) -> str:
    """The first place below the top where a string stands under a usual name."""
    if not isinstance(value, Mapping) or above.count(".") > _DEEP:
        return ""
    for name, cell in value.items():
        if not isinstance(name, str) or not is_name(name):
            continue
        if above and name.lower() in COLUMNS and isinstance(cell, str):
            return above + name
        if found := _deeper(cell, f"{above}{name}."):
            return found
    return ""
