"""What programs print that is no list of captions: SQL, complaints, scripts, base64, lists in a text.

Known by how it is built, in any dialect and of any program; captions hold the same words, not so put.
"""

import base64
import binascii
import re
from collections import Counter
from collections.abc import Collection, Sequence

_NAME = r"""("[^"]+"|`[^`]+`|\[[^\]]+\]|[\w$@]+)"""
_TABLE = rf"{_NAME}(\.{_NAME})*"
# A statement of SQL by its structure, in any case; or in capitals by its first word and its end.
SQL = re.compile(
    rf"""^\s*(
    (?i:(insert|replace|upsert|merge)\s+((or|ignore|delayed|low_priority|high_priority|overwrite|into
        |table|rollback|abort|fail|replace)\s+)*{_TABLE}\s*(\([^()]*\)\s*)?
        ((overriding|output|format)\s[^(]*)?values?\s*([("']|$))
    |INSERT\s+([A-Z]+\s+)*INTO\s+{_TABLE}\s*(\([^()]*\)\s*)?(SELECT\b.*|\(|$)
    |(?i:create\s+([a-z]+\s+)*table\s+(if\s+not\s+exists\s+)?{_TABLE}\s*\()
    |(?i:update\s+{_TABLE}\s+set\s+{_NAME}\s*=)
    |(?i:copy\s+{_TABLE}\s*(\([^()]*\)\s*)?(from|to)\s+(stdin|stdout|'))
    |SELECT\s.+\sFROM\s+{_TABLE}.*;\s*$
    |(PRAGMA|BEGIN|START\ TRANSACTION|COMMIT|ROLLBACK|USE|DROP|ALTER|LOCK|UNLOCK|CREATE|GRANT|COMMENT\ ON
        |DELETE\ FROM|TRUNCATE|DECLARE|SET\s+(NAMES|DEFINE|SESSION|\S+\s*=|\S+\s+(TO|ON|OFF)))\b.*;\s*$
    |--\s(MySQL|MariaDB|PostgreSQL|phpMyAdmin|HeidiSQL|Dump(ed|ing)?|Table\ structure|Adminer|SQL)\b
    |/\*!\d{{5}}|/\*{{6}}\s|REM\ INSERTING\ |SET\s+(IDENTITY_INSERT|ANSI_NULLS|QUOTED_IDENTIFIER)\s
    |\\(restrict|connect)\s
    )""",
    re.X,
)
# A program's complaint: what is wrong, a colon, and more; or the program's name, a colon, and that.
_WRONG = (
    r"((parse|parser|runtime|syntax|fatal|catalog|binder|conversion|internal|unexpected|unknown|server"
    r"|connection|database|disk|system|uncaught|unhandled|general|import|query|compile|compilation|input"
    r"|output|network|io|http|ssl|tls) )?([a-z]\w*\.)*\w*(error|exception|fatal|panic)"
)
_CANNOT = (
    r"(no such (file|table|column|database|host|bucket|key|option|command|container|image|object|user"
    r"|module|service)\b|does not exist|not found\b|(permission|access) (is )?denied|is a directory"
    r"|connection (refused|reset|timed out)|timed out|core dumped|not a git repository|not in \S+ format"
    r"|(could not|cannot|can't|unable to|failed to|couldn't) [a-z]+\b|is not recognized as"
    r"|(unknown|unrecognized|invalid|illegal) (command|option|flag|argument|json|syntax|character)"
    r"|is not a (database|directory|valid)|syntax error|unexpected end of)"
)
COMPLAINT = re.compile(
    rf"\W*([\w./-]+: )?{_WRONG}s?(\[[^\]]*\]|\([^)]*\)|[ ]?\d+)?"
    r"( (in|at|near|from|response|while|on|reading|opening|executing|downloading)\b[^:]{0,60}"
    r"| ?\([^)]*\))?:(\s|$)"
    rf"|\S{{1,40}}: ([^:]{{1,80}}: ){{0,3}}[^:]{{0,80}}{_CANNOT}"
    r"|usage: \S+ [\[<-]|exception in thread |thread '[^']*' panicked|can't locate \S+ in @INC"
    r"|(\S+ : the term )?'[^']+' is not recognized as |the system cannot find |no module named \S+$"
    r"|(killed|terminated|aborted|segmentation fault|bus error|access is denied|permission denied"
    r"|host key verification failed|unable to locate credentials|syntax error)(\s*\(.*\))?[.!]?"
    r"( you can configure .*)?$",
    re.I,
)
_LOOKED_AT = 1000  # characters of a line
_NEARLY = 0.9  # of the lines
_SHORT = 5  # lines of a complaint at most; a list that holds one among many is told line by line
# JSON in a call of a function, or behind a guard against being read as a script.
SCRIPT = re.compile(r"/\*|[A-Za-z_$][\w$.]*\(\s*[\[{]\s*[\"'\[{\]}]|\)\]\}',?\s|(while|for)\s*\([;\w]")
# A list, array, set or object as Python, JSON, numpy, R or PostgreSQL write one into a text, by its
# first item and what follows: ["a", "b"], array(['a' 'b'], dtype=object), {"en": "a"}, ('a',), [1, 2].
_QUOTED = r"""(?:[bur]{0,2}(?:"(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+')|\u201c[^\u201d]*+\u201d)"""
_PLAIN = r"(?:-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|None|null|NULL|nan|NaN|[Tt]rue|[Ff]alse)"
_CONTAINER = re.compile(
    rf"""(?:\w[\w.]*+)?(?:[\[({{]\s*)*?(?:
    [\[{{]\s*{_QUOTED}\s*(?:,|[\])}}]+\s*(?:,\s*dtype=\S+|,\s*[\[{{(].*)?$|(?<=\s)(?=["'])|\.\.\.)
    |\{{\s*{_QUOTED}\s*:\s*(?:{_QUOTED}|{_PLAIN}|[\[{{])
    |\(\s*{_QUOTED}\s*,
    |[\[({{]\s*{_PLAIN}\s*[,:]\s*(?:{_QUOTED}|[\[{{]|{_PLAIN}\s*[,\]}}])
    )""",
    re.X | re.S,
)
_CONTAINER_ENDS = re.compile(r"([\])}]|\.{3}|\u2026)\W{0,2}$")
_QUOTED_ITEMS = re.compile(rf"{_QUOTED}(?:\s*([,;|\t])\s*{_QUOTED})+[,;]?", re.S)
# As ls -l, dir and tree print folders.
_LISTED = re.compile(
    r"\s*[-bcdlpsD][-r][-w][-xsS][-r][-w][-xsS][-r][-w][-xtT][.+@]?\s+\d+\s+\S+\s"
    r"|\s*\d\d?[/.-]\d\d?[/.-]\d{4}\s+\d\d?:\d\d(\s?[AP]M)?\s+(<\w+>|[\d.,]+)\s"
    r"|([\s\u00a0]*[\u2502|])*[\s\u00a0]*([\u251c\u2514]\u2500|[|`+\\]--)"
)
_RECORD = re.compile(r"""(?:^|[,;\s])([A-Za-z_]\w*)=(?=[^\s=])""")
# The opening of a record in brackets, with its name: @{, Row(, #<Caption, {:
_OPENING = re.compile(r"\s*([#@&]?[\w.]*\s?[(\[{<])")
_CLOSING = {"(": ")", "[": "]", "{": "}", "<": ">"}
_FIELD = re.compile(r"\s*([A-Za-z_]\w{0,39})\s*[:=]\s")
_ALIGNED = re.compile(r"([a-z_]\w{0,39})\s+\S")
_COUNTED = ("id", "n", "no", "number", "index", "score", "seed")
_SHELL = re.compile(r"(?:[^\s\\]|\\.)+")
_COMMAND = re.compile(r"""\s*(\w+)\s+(?:"[^"]*"|'[^']*');?\s*""")
_PERCENT = re.compile(
    r"\S*\w(%(2[0-9A-Fa-f]|[C-Fc-f][0-9A-Fa-f]%[89ABab])|=(20|[C-F][0-9A-F]=[89AB][0-9A-F]))\S*"
)
_BASE64 = re.compile(r"[A-Za-z0-9+/]{12,}={0,2}|[A-Za-z0-9_-]{12,}={0,2}")


def sql_line(lines: Sequence[str]) -> int | None:
    """The place of the line by which lines are SQL: of the first three, or where most are; or None."""
    found = [number for number, line in enumerate(lines) if SQL.match(line[:_LOOKED_AT])]
    if found and (found[0] < 3 or 2 * len(found) >= len(lines)):
        return found[0]
    return None


def is_complaint(lines: Sequence[str]) -> bool:
    """Whether a few lines are, or hold, what a program complained of."""
    return len(lines) <= _SHORT and any(COMPLAINT.match(line[:_LOOKED_AT]) for line in lines)


def is_container(text: str) -> bool:
    """Whether a text is a whole list or object as a program writes it, with quotes around or cut off."""
    text = text.strip()
    # A cell or a string that was not read as one.
    if text[:1] == text[-1:] == '"' and text[1:2] in "[({":
        text = text[1:-1].replace('""', '"').replace('\\"', '"')
    if _CONTAINER.match(text) and _CONTAINER_ENDS.search(text[-5:]):
        return True
    return quoted_items(text) is not None


def quoted_items(text: str) -> str | None:
    """By what the parts of a text are separated that is nothing but texts in quotes; or None."""
    match = _QUOTED_ITEMS.fullmatch(text.strip())
    return match[1] if match else None


def is_listing(lines: Sequence[str]) -> bool:
    """Whether most lines are of a folder as `ls -l`, `dir` or `tree` print it."""
    return 2 * sum(_LISTED.match(line) is not None for line in lines) > len(lines)


def are_records(lines: Sequence[str], usual: Collection[str], beside: Collection[str]) -> bool:
    """Whether lines are records with the names of their cells: name=value side by side, in brackets
    (`Row(id=1, caption='a')`, `{:id 1 :caption "a"}`), or one below another.

    usual: names under which captions stand; beside: names of other cells.
    """
    rows = Counter(
        names for line in lines if len(names := tuple(_RECORD.findall(line[:_LOOKED_AT]))) > 1
    )
    names, count = rows.most_common(1)[0] if rows else ((), 0)
    if 2 * count > len(lines) and (count > 1 or {*map(str.lower, names)} & {*usual}):
        return True
    forms = Counter(_record_form(line, usual) for line in lines)
    if any(form and count >= _NEARLY * len(lines) for form, count in forms.items()):
        return True
    for pattern, part, names_beside in ((_FIELD, 0.5, beside), (_ALIGNED, 0.9, _COUNTED)):
        fields = Counter(match[1] if (match := pattern.match(line)) else "" for line in lines)
        most = max(fields[name] for name in usual)
        covered = sum(count for name, count in fields.items() if name and count == most)
        # Each record has each name once.
        if most > 1 and covered >= part * len(lines) and any(fields[n] == most for n in names_beside):
            return True
    return False


def _record_form(line: str, usual: Collection[str]) -> str:
    """How a line opens that is a record in brackets with a caption under a usual name; "" for others."""
    opening = _OPENING.match(line)
    if opening is None or line.rstrip(" \t\r,;")[-1:] != _CLOSING[opening[1][-1]]:
        return ""
    names = "|".join(map(re.escape, usual))
    # `text=...`, `"text": ...` or `:text ...`, but not the weight of a word, as in (text:1.2).
    key = re.search(
        rf"(?<![^\s,;])(['\"]?({names})['\"]?\s?[:=](?!\s*-?[\d.]+\W*$)|:({names})\b).*\w",
        " " + line[opening.end() : _LOOKED_AT],
        re.I,
    )
    held = key is not None and _CLOSING[opening[1][-1]] not in key.string[: key.start()].replace(
        "=>", ""
    )
    return opening[1] if held else ""


def is_shell_quoted(text: str) -> bool:
    """Whether each of a text's blanks has a backslash in front, as a shell wants them."""
    return text.count("\\ ") > 1 and _SHELL.fullmatch(text.strip()) is not None


def commanded(lines: Sequence[str]) -> set[int]:
    """The lines that are a text in quotes behind a word that they share, as commands of a script are."""
    words = {n: match[1] for n, line in enumerate(lines) if (match := _COMMAND.fullmatch(line))}
    word, count = Counter(words.values()).most_common(1)[0] if words else ("", 0)
    return (
        {n for n, one in words.items() if one == word} if count > 2 and 2 * count > len(lines) else set()
    )


def is_percent_encoded(text: str) -> bool:
    """Whether a text without blanks is written as addresses are, with %20, or as mail is, with =20."""
    return _PERCENT.fullmatch(text.strip()) is not None


def is_base64(lines: Sequence[str]) -> bool:
    """Whether lines are texts in base64, each for itself or broken at a width."""
    pieces = [line.strip() for line in lines]
    if not pieces or not _BASE64.fullmatch(pieces[0]):
        return False
    return _is_text("".join(pieces)) or all(map(_is_text, pieces))


def _is_text(piece: str) -> bool:
    if not _BASE64.fullmatch(piece):
        return False
    padded = piece + "=" * (-len(piece) % 4)
    try:
        text = base64.b64decode(padded, b"-_" if {*"-_"} & {*piece} else None, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return False
    return all(letter.isprintable() or letter in "\t\r\n" for letter in text)
