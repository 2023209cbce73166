"""What programs hand in where paths and texts are due."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from os import PathLike, fspath
from pathlib import Path

from nemo_prune.errors import OptionError
from nemo_prune.files.lists import named_format


def texts_of(given: Iterable[str] | None, name: str) -> tuple[str, ...]:
    """Raises OptionError for one text, a path, a table, and what else is no list of texts."""
    what = "one text" if isinstance(given, str) else "a path" if isinstance(given, PathLike) else ""
    file = getattr(given, "name", None) if hasattr(given, "read") else None
    if isinstance(file, str) and named_format(Path(file)) not in (None, "txt"):
        raise OptionError(f"{name}: give the path to nemo_prune.read_prompts, not the open file {file}")
    # Tables give the names of their columns one by one, so these would be the prompts.
    of_columns = hasattr(given, "columns") or hasattr(given, "column_names")
    if not what and (of_columns or getattr(given, "ndim", 1) != 1):
        raise OptionError(
            f"{name}: give a list of texts, not a {type(given).__name__} of columns; of a table give "
            f"one column, such as list(table['caption'])"
        )
    listed = not what and isinstance(given, Iterable) and not isinstance(given, Mapping)
    texts = tuple(given) if listed and given is not None else ()
    keys = getattr(given, "keys", None)
    if texts and callable(keys) and texts == tuple(keys()):
        what = "a mapping of them"
    odd = [(n, one) for n, one in enumerate(texts) if not isinstance(one, str)]
    if odd and not what:
        place, one = odd[0]
        missing = one is None or str(one) in ("nan", "<NA>")
        is_ = "missing; leave such out, as dropna() does" if missing else f"a {type(one).__name__}"
        what = f"one whose entry {place} (from 0) is {is_}"
    if what or not listed:
        what = what or "something else"
        raise OptionError(
            f"{name}: give a list of texts, not {what}; nemo_prune.read_prompts reads a file's"
        )
    return texts


def path_of(given: object, name: str) -> Path:
    """Raises OptionError for what is no path, bytes too, and for several."""
    if isinstance(given, str | PathLike) and isinstance(path := fspath(given), str):
        with suppress(RuntimeError):  # of a user whom nobody knows
            return Path(path).expanduser()
        return Path(path)
    several = isinstance(given, list | tuple | set | dict)
    cure = "one path; call it for each" if several else "a path, as text or a pathlib.Path"
    raise OptionError(f"{name}: is a {type(given).__name__}; give {cure}")
