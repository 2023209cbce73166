"""The columns of a list, or the keys of its records: which are not read though they may be prompts.

Some are known by usual names, any by what is in it: texts of several words that differ from row to row.
"""

import re
from collections.abc import Mapping, Sequence

from nemo_prune.errors import option
from nemo_prune.files.lists import LOOKED_THROUGH, Listing, Record
from nemo_prune.files.names import COLUMNS, is_name, is_text

VISIBLE = re.compile(r"[^\s\x00-\x1f\xad\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")
# Names of columns that hold captions too; and names that may, as what is in them says.
_CAPTIONS = re.compile(r"(?!.*neg).*(caption|prompt|description|(?<![^\W_])text)s?[\W_]*\d*$")
_PERHAPS = re.compile(r"(?!.*neg).*(caption|prompt|completion|(?<![^\W_])text(?![^\W_]))")
_NEGATIVE = re.compile(r"(?<![^\W_])neg")
_FEW = 0.05  # of the records; what fewer have (errors, remarks) is nobody's column of prompts
_ALIKE = 0.1  # of the texts of a column that is read; fewer that differ are said
_MANY = 5  # texts


def unread_columns(listing: Listing, wanted: str | None, key: str | None) -> list[str]:
    """A note if other columns might hold the prompts too, and none was asked for by name.

    Of one that was asked for, a note if records have nothing there and a text under another usual name.
    """
    if wanted is not None and key is not None:
        left = [line for line, record in listing.records if instead(record, key)]
        if not left:
            return []
        what = "of its records have nothing in the column that was asked for, and a text in another"
        return [f"{listing.path}: {len(left)} {what}, the first at line {left[0]}: they are left out"]
    columns = columns_of(listing)
    if key is not None:
        beside = {*COLUMNS} - {key}
    else:  # records have one or another; of those in one record the first is read
        held = [
            [name for name in COLUMNS if name in cells]
            for cells in (cells_of(record) for _, record in listing.records)
        ]
        beside = {name for names in held for name in names[1:]}
        read = {names[0] for names in held if names[1:]} or {names[0] for names in held if names}
        key = next((name for name in COLUMNS if name in read), None)
    others = [name for name in COLUMNS if name in columns and name in beside and name != key]
    more = [name for name in columns if name not in (*COLUMNS, key)]
    others += [name for name in more if _holds_captions(listing, name)]
    by_content = [name for name in more if name not in others and _holds_texts(listing, name)]
    others += filter(is_name, by_content)
    if not all(map(is_name, by_content)):
        others.append("another with texts")
    if not others or key is None:
        return []
    return [
        f"{listing.path}: the column {key}{_alike(_values(listing, key))} is read, "
        f"{' and '.join(others)} not; {option('prompt_column')} names another"
    ]


def _values(listing: Listing, name: str) -> Sequence[object]:
    """What the first records have under a name."""
    if name in listing.beside:
        return listing.beside[name]
    cells = (cells_of(record) for _, record in listing.records[:LOOKED_THROUGH])
    return [cell[name] for cell in cells if cell.get(name) is not None]


def _holds_captions(listing: Listing, name: str) -> bool:
    """Whether a column that is not read looks like captions, by its name and what is known of it."""
    cells = _values(listing, name)
    several = any(isinstance(cell, str) and " " in cell.strip() for cell in cells)
    return bool(_CAPTIONS.match(name) or (several and _PERHAPS.match(name)))


def _holds_texts(listing: Listing, name: str) -> bool:
    """Whether a column holds texts, mostly different ones, whatever its name."""
    cells = [cell for cell in _values(listing, name) if cell != ""]
    texts = [cell for cell in cells if is_text(cell)]
    return (
        len(texts) > max(1, _FEW * len(listing.records[:LOOKED_THROUGH]))
        and 2 * len(texts) > len(cells)
        and 2 * len({*texts}) > len(texts)
        and not _NEGATIVE.match(name)
    )


def _alike(cells: Sequence[object]) -> str:
    """That a column has the same text in all or nearly all of many records, in words."""
    texts = [cell.strip() for cell in cells if isinstance(cell, str) and cell.strip()]
    distinct = len({*texts})
    if len(texts) < _MANY or distinct > max(1, _ALIKE * len(texts)):
        return ""
    what = "the same text in all of" if distinct == 1 else f"{distinct} different texts in"
    return f", with {what} {len(texts)} records,"


def columns_of(listing: Listing) -> tuple[str, ...]:
    """The columns of a table, or the keys of its records."""
    if listing.columns is not None:
        return listing.columns
    return tuple(dict.fromkeys(name for _, record in listing.records for name in cells_of(record)))


def instead(record: Record, key: str) -> str:
    """The usual name under which a record has a text in place of one under `key`; "" if it has that."""
    cells = cells_of(record)
    if key not in cells or says(cells[key]) or not (cells[key] is None or isinstance(cells[key], str)):
        return ""
    return next((name for name in COLUMNS if name != key and says(cells.get(name))), "")


def says(cell: object) -> bool:
    """Whether a cell holds a text, or several."""
    return bool(
        VISIBLE.search(cell) if isinstance(cell, str) else isinstance(cell, list | dict) and cell
    )


def cells_of(record: Record) -> Mapping[str, object]:
    return {} if isinstance(record, str) else record
