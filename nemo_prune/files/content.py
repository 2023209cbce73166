"""What a list's content says: whether it agrees with the name, and what lines hold beside prompts.

Whatever is no list of prompts is refused before anything is scored: a model was trained on none of its
lines, so none would be found memorized. What prompts may be written with stays in them, and is said.
Messages never quote the content.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

from nemo_prune.errors import PromptFileError, option
from nemo_prune.files.letters import folded, odd_letters, parted
from nemo_prune.files.lists import (
    COMPRESSED,
    LOOKED_THROUGH,
    SEPARATOR_LINE,
    SEPARATORS,
    Format,
    Listing,
    nameless,
    packing_of,
)  # fmt: skip
from nemo_prune.files.marks import joints, odd_marks, shared_words, spaced_letters
from nemo_prune.files.names import BESIDE, COLUMNS, LABELS, names_of
from nemo_prune.files.nested import lists_in
from nemo_prune.files.patterns import KEPT, LOG, NOTHING, ODD, PICTURE, SELDOM
from nemo_prune.files.programs import (
    SCRIPT,
    are_records,
    commanded,
    is_base64,
    is_complaint,
    is_container,
    is_listing,
    is_percent_encoded,
    is_shell_quoted,
    quoted_items,
    sql_line,
)  # fmt: skip
from nemo_prune.files.text import ENCRYPTED, LFS_POINTER, PACKED, ZIP, stand_in

_MAGIC = {
    b"PAR1": "Parquet",
    ZIP: "a zip archive or a spreadsheet",
    b"SQLite format 3": "a database",
    b"%PDF": "a PDF",
    b"{\\rtf": "rich text (RTF)",
    **{magic: f"encrypted by {name}" for magic, name in ENCRYPTED.items()},
    **{magic: f"compressed with {name}" for magic, name in PACKED.items()},
    b"-----BEGIN ": "a key or a certificate (PEM)",
    LFS_POINTER: "a Git LFS pointer, without its content (git lfs pull)",
}
_JSON_BEGINS = re.compile(r"""(\{|\[)(\s*(\{\s*)?["']|[ \t]*(\r?\n|$))""")
# A web page (such as an error), YAML, or a program's list: no captions begin so.
_FOREIGN_BEGINS = re.compile(
    r"<!--|!\[.*\]\(|diff --git |--- \S+\r?\n\+\+\+ "
    r"|<(!doctype|html|\?xml|head|title|body|center|h\d|pre|p|div|ul|ol|li|table|tr|error|svg|rss)\b"
    r"|<https?://[^\s<>]+>\s|@(relation|prefix|base)\s"  # Turtle, ARFF
    r"|---\r?\n|\\\w+\{|(\w+ ){0,2}\w+ ?= ?[\[({]|\w+: *\r?\n *- ",
    re.I,
)
_QUOTED_CELLS = re.compile(r'"[^"]*"([,;\t|]("[^"]*"|[^",;]*))+$')
# Cells separated by blanks, some in quotes, as R's write.table writes them: "1" "a cat" 812 VM.
_CELL = r"""("([^"\\]|\\.|"")*"|'([^'\\]|\\.|'')*'|(?=\S*\d)(?!-[-A-Za-z])[^\s"']+|[A-Z]{2,5})"""
_BLANK_CELLS = re.compile(rf"""(?=.*["'])\s*{_CELL}(\s+{_CELL})+\s*""")
# A line of a script for A1111's "prompts from file": --prompt "..." --steps 20.
_OPTIONS_BEGIN = re.compile(r"--(negative_)?prompt[ =]")
# ComfyUI's (Inspire's) prompt files, with ---- between two.
_SIGNED = re.compile(r"positive ?:(?=.*\n(.*\n)*?[ \t]*negative ?:)", re.I)
_CONFLICT = re.compile(r"^(<{7}|>{7}|\|{7})( |\r?$)", re.MULTILINE)
_FILE_LINE = re.compile(r"^==> .+ <==\r?$", re.MULTILINE)
# What stands between the header and the rows of a table as psql, MySQL, SQLite, DuckDB or Markdown have
# it, or above a record where they stand one by one.
_RULE = re.compile(
    r"(?=[\s|+:=\u2500-\u257f-]+$).*?[=\u2500\u2501\u2550-]{3}"
    r"|\s*\|.*\|\s*$|-\[ RECORD 1 \]|\*{9,} 1\. row \*"
)
# What a server sends instead of a file, as all that it sends; and what it, or a program, begins with.
_ANSWER = re.compile(
    r"(http\S* |error:? |[345]\d\d\W+)*(((page|file|entry|object|repository|resource) )?not found"
    r"|moved permanently|bad (request|gateway)|unauthori[sz]ed|forbidden|(access|permission) ?denied"
    r"|method not allowed|too many requests|rate limit exceeded|internal server error|no ?such ?key"
    r"|service unavailable|gateway time-?out|invalid username or password)\W*(nginx\S*)?",
    re.I,
)
_SAID = re.compile(
    r"HTTP/\d[\d.]* \d{3}\b|curl: \(\d|(wget|fatal): |\w+: error: |ERROR \d+\b|An error occurred \("
    r"|Access to (model|dataset) \S+ is restricted|Found\. Redirecting to "
    r"|Traceback \(most recent call|.*: (No such file or directory|command not found)\r?(\n|$)"
)
# The last line of a column or a table as pandas prints it, with a number before each caption.
_PRINTED = re.compile(
    r"((Name: .*, )?(Length: \d+, )?dtype: \w+(\[\w+\])?|\[\d+ rows x \d+ columns\])\s*$"
)
_ANSWER_KEYS = {"message", "error", "errors", "detail"}
_ADDRESS = re.compile(
    r"^\s*(?=[^\s-]\S*\s*$)((https?|s3|gs)://\S+|[^\\/]*[\\/]\S*\.\w{2,7}|\S+\.json)\s*$"
)
_NUMBERED = re.compile(
    r"\s*[\[(#]?(\d{1,9})([.):\]]+\s+|[\u3001\u3002\uff0e\uff1a\uff09]\s*|\s{2,}|\t)\S"
)
_WORD = re.compile(r"[^\W_].*[^\W_]|[^\W_]")  # without the marks around it
_DIGIT = re.compile(r"[\d\u2460-\u24ff\u2776-\u2793]")
# Words with digits as captions have them: small numbers and years, 3d, 1980s, 35-year-old, 16:9.
_USUAL = re.compile(
    r"\d{1,4}('?s|st|nd|rd|th|d|k|x|px?|[cmk]?m|ft|kg|\+?(girl|boy)s?|(st|nd|rd|th)?-[a-z]+(-[a-z]+)?)?"
    r"|\d{1,3}(,\d{3})+|\d{1,4}[.,:/x-]\d{1,4}", re.I
)  # fmt: skip
_LABELLED = re.compile(r"\s*([/!]?\w[\w ]{0,29}):\s")
_FIRST = re.compile(r"^\W*\w\S*\s*(\W*(?=\w)|\W+$)")
_LAST = re.compile(r"((?<=\w)\W*|^\W+)(?<!\S)\S*\w\W*$")
_LOOKED_AT = 500  # characters of a line
_NAMED = 8  # lines by their numbers
_BARS = re.compile(r"[^\W\d_]\s?\|\s?[^\W\d_]")  # as A1111's prompt matrix has them
_JOINTS = re.compile(
    r"\s*(?:[;\uff1b]|<br ?/?>|\[SEP\]|\|{2,3}|<\|\w{1,20}\|>|</?s>)\s*|\s+(?:/{1,2}|[\u2022\u00b7])\s+",
    re.I,
)
# A word that ends where another begins with a capital, with a blank before and words behind: not iPhone,
# McDonald, nor a name among tags (ArtStation, DeviantArt).
_GLUED = re.compile(
    r"(?<!\S)(?!Mac|Mc|De[A-Z]|Van[A-Z]|Von[A-Z]|Fitz)[^\W_][\w'&-]{0,40}?"
    r"(?:[^\W\d_A-Z]{2}[.,!?)\"\u201d]?|\d[.!?)])(?:[A-Z]|[a-z][A-Z])\w{0,40}(?= \w)"
)
_FEW = 3  # lines
_LONG = 40  # words: more than almost any caption has
_ENTITY = re.compile(r"&#?\w+;")  # of HTML, which joins nothing
_ESCAPES = "\x1b"  # with which programs colour what they print
_ISO_2022 = re.compile(r"\x1b(\$[@AB(]|\([BJI])")


def check_magic(path: Path, content: bytes, format: Format) -> None:
    if suffix := packing_of(content):
        what = f"is {_MAGIC[COMPRESSED[suffix]]}, and its name does not say so"
        raise PromptFileError(f"{path}: {what}; name it {path.name}{suffix}, or decompress it")
    if content[257:262] == b"ustar":
        raise PromptFileError(f"{path}: is a tar archive; unpack it (tar xf), and give the lists in it")
    if content[8:10] == b'{"' and b"\0" in content[:8]:
        raise refused(path, "is not a list but a safetensors file", None)
    for magic, what in _MAGIC.items():
        if content.startswith(magic) and not (what == "Parquet" and format == "parquet"):
            raise refused(path, f"is {what}", "parquet" if what == "Parquet" else None)
    if b"ENC[AES256_GCM," in content:
        raise PromptFileError(f"{path}: is encrypted by SOPS; decrypt it (sops decrypt)")
    if stands_in := stand_in(content):
        raise PromptFileError(f"{path}: {stands_in}")


def agreed(path: Path, text: str, format: Format) -> tuple[Format, list[str]]:
    """The format that name and content agree on, and notes; PromptFileError where they do not."""
    if conflict := _CONFLICT.search(text):
        line = text.count("\n", 0, conflict.start()) + 1
        raise PromptFileError(f"{path}: line {line} is the mark of a merge conflict; resolve it first")
    if len(text) < 10_000 and isinstance(whole := _parsed(text), dict) and "doc_id" in whole:
        raise PromptFileError(
            f"{path}: points to a Google document and holds none of it; download that as CSV"
        )
    if format == "txt" and _is_answer(text.strip()):
        what = "is what a server or a program says where it has no list"
        raise PromptFileError(f"{path}: {what}; get the list again ({_as_text()})")
    looks: Format | None = _looks_like(text)
    if format in ("json", "jsonl"):
        # The two are told apart without doubt, and many tools name one as the other.
        if format == "json" and _parsed(text) is not None:
            looks = "json"
        if looks is not None and looks != format:
            words = {"json": "holds one JSON document", "jsonl": "holds JSON lines"}
            return looks, [f"{path}: {words[looks]}, and was read so whatever its name"]
        return format, []
    # Rows of one cell in quotes may be either, so the name decides.
    if format in ("csv", "tsv") and looks == "jsonl" and text.lstrip().startswith('"'):
        looks = None
    if looks in ("json", "jsonl"):
        words = {"json": "JSON", "jsonl": "JSON lines"}
        raise refused(path, f"holds {words[looks]}, not {_NAMES[format]}", looks)
    if format == "txt":
        if begins := _JSON_BEGINS.match(text.lstrip()):
            raise refused(path, f"begins as JSON ({begins[1]}) that is cut or broken, not as text", None)
        if SCRIPT.match(text.lstrip()):
            raise refused(path, "begins as a script, perhaps with JSON in it (JSONP), not as text", None)
        if _FOREIGN_BEGINS.match(text.lstrip()):
            raise refused(path, "begins as a web page, YAML or a program, not as text", None)
        if _OPTIONS_BEGIN.match(text.lstrip()):
            raise refused(path, "begins with options (--prompt ...), not with a prompt", None)
        if _SIGNED.match(text.lstrip()):
            raise refused(path, "names positive and negative prompts, and is no list of captions", None)
        if rule := next(filter(_RULE.match, _lines(text)[:3]), None):
            line = text[: text.index(rule)].count("\n") + 1
            what = f"line {line} is of a table as databases and Markdown print it"
            raise PromptFileError(
                f"{path}: {what}; export it as CSV, or leave out what is no caption ({_as_text()})"
            )
        if named := _FILE_LINE.search(text):
            line = text.count("\n", 0, named.start()) + 1
            what = (
                f"line {line} names a file (==> ... <==), as head and tail do where they print several"
            )
            raise PromptFileError(
                f"{path}: {what}; join the files without (awk 1 *.txt), or give a pattern ({_as_text()})"
            )
        if SEPARATOR_LINE.match(text.lstrip()):
            raise refused(path, "begins with sep=, as a table does", "csv")
        if separator := _table_separator(text):
            what = f"is a table separated by {SEPARATORS[separator]}, not text"
            raise refused(path, what, "tsv" if separator == "\t" else "csv")
        places, lines = _numbered(text)
        if len(lines) == 1 and (tabs := lines[0].strip().count("\t")) > 1:
            what = f"is one line of {tabs + 1} cells between tabs, not text"
            cure = "write each caption on a line of its own (tr '\\t' '\\n')"
            raise PromptFileError(f"{path}: {what}; {cure} ({_as_text()})")
        if is_listing(lines):
            what = "is a listing of a folder (ls -l, dir, tree), not of captions"
            raise PromptFileError(f"{path}: {what}; leave only the names (ls -1) ({_as_text()})")
        if are_records(lines, COLUMNS, (*LABELS, *BESIDE)):
            what = "holds records with names in them (name=value, {name: value}), not captions alone"
            raise PromptFileError(f"{path}: {what}; write it as CSV or JSON lines ({_as_text()})")
        if is_base64(lines):
            what = "is in base64, which no model was trained on"
            raise PromptFileError(f"{path}: {what}; decode it (base64 -d) ({_as_text()})")
        if (statement := sql_line(lines)) is not None:
            raise PromptFileError(
                f"{path}: line {places[statement]} is a statement of SQL, so it is a dump or a query "
                f"and no list; export the captions as CSV ({_as_text()})"
            )
        # Captions may hold a quotation, even be one, but hardly most of them are several.
        if 2 * sum(_BLANK_CELLS.fullmatch(line) is not None for line in lines) > len(lines):
            what = "is a table separated by blanks, with cells in quotes, not text"
            raise PromptFileError(f"{path}: {what}; write it as CSV (R: write.csv) ({_as_text()})")
        if _PRINTED.match(lines[-1]):
            what = f"line {places[-1]} ends a column or table as pandas prints it, numbered and cut"
            raise PromptFileError(f"{path}: {what}; write it with to_csv ({_as_text()})")
        _refuse_containers(path, lines, places, "lines", f" ({_as_text()})")
    return format, []


def odd_lines(path: Path, text: str) -> list[str]:
    """Notes on lines of text that hold more, or something else, than prompts.

    Raises PromptFileError where most of them would be no prompt that a model was trained on.
    """
    places, lines = _numbered(text)
    paragraphs = re.split(r"\n\s*\n", text.strip().replace("\r\n", "\n"))
    what = ""
    if len(paragraphs) > 1 and 2 <= len(lines) / len(paragraphs) <= 6:  # captions that were wrapped
        what = f"its {len(lines)} lines stand in paragraphs"
    elif len(lines) == 1 and (len(re.findall(r";\s|\s\|\s", text)) > 1 or _parts(text) > 2):
        what = "it is one line of several parts"
    elif (glued := sum(map(_is_glued, lines))) and (len(lines) <= _FEW or 2 * glued > len(lines)):
        what = (
            f"{glued} of its lines hold words joined without a blank (such as NightPortrait), as where "
            f"files without an end of line were put together, so several captions may stand in one"
        )
    elif 0 < len(lines) <= _FEW and (shortest := min(len(line.split()) for line in lines)) > _LONG:
        many = f"{len(lines)} lines of {shortest} words or more" if len(lines) > 1 else ""
        what = f"it is {many or f'one line of {shortest} words'}, which may be several captions"
    elif width := folded(lines):
        what = f"its lines seem broken at about {width} characters, so that captions go on in the next"
    elif count := parted(lines):
        what = (
            f"{count} of its lines go on in the next within a phrase (of, with, and), as where captions "
            f"are broken at a width or after so many words"
        )
    notes = [f"{path}: {what}: each line is taken as one prompt"] if what else []
    return notes + odd_prompts(path, lines, places, "lines", "joined" in what)


def _refuse_containers(
    path: Path, texts: Sequence[str], places: Sequence[int], unit: str, otherwise: str = ""
) -> None:
    """PromptFileError where several texts, or most, are whole lists or objects as programs write them.

    Each would be scored as one caption, which no model was trained on. One alone among many is said.
    """
    held = [place for place, text in zip(places, texts, strict=True) if is_container(text)]
    if len(held) > 1 or 0 < len(texts) <= 2 * len(held):
        raise PromptFileError(
            f"{path}: {len(held)} of its {unit}, the first at line {held[0]}, are lists or objects "
            f"(['...', '...']), each of which would be one prompt; write every caption alone, in a row "
            f"or line of its own (pandas: ast.literal_eval, explode){otherwise}"
        )


def _is_glued(line: str) -> bool:
    return len({*_GLUED.findall(line)}) > 1  # one alone may be a name


def _parts(text: str) -> int:
    """How many phrases of several words, with semicolons or the like between, a text is; or 0."""
    parts = _JOINTS.split(_ENTITY.sub("x", text).strip(" ;/"))
    return len(parts) if len(parts) > 1 and all(" " in part.strip() for part in parts) else 0


def odd_prompts(
    path: Path,
    prompts: Sequence[str],
    places: Sequence[int],
    unit: str = "prompts",
    glued: bool = False,
) -> list[str]:
    """The same of prompts of any list.

    places: the line of each. glued: whether it is said already that several may stand in one.
    """
    lines = [line[:_LOOKED_AT] for line in prompts]
    if lines and all(map(NOTHING.match, lines)):
        raise PromptFileError(
            f"{path}: all {len(lines)} of its {unit} are NULL, None, an error of a spreadsheet (#NAME?) "
            f"or the like, and none is a caption; write the list again"
        )
    if control := next((n for n, line in zip(places, lines, strict=True) if _ESCAPES in line), 0):
        what = "colours of a terminal; write the list anew without them"
        if any(map(_ISO_2022.search, lines)):
            what = "letters of another encoding (ISO-2022, of Japanese mail); save the list as UTF-8"
        raise PromptFileError(f"{path}: line {control} holds {what}")
    encoded = sum(map(is_percent_encoded, lines))
    if encoded and 2 * encoded >= len(lines):
        raise PromptFileError(
            f"{path}: {encoded} of its {unit} are percent-encoded, as addresses are (%20 for a blank), "
            f"or quoted-printable, as mail is (=20); decode them (Python: urllib.parse.unquote, "
            f"quopri.decodestring)"
        )
    quoted = sum(map(is_shell_quoted, lines))
    if quoted and 2 * quoted >= len(lines):
        raise PromptFileError(
            f"{path}: {quoted} of its {unit} have a backslash before each blank, as a shell quotes "
            f"them; take these out (Python: shlex.split)"
        )
    found = []
    told: set[int] = set()
    apart: dict[str, set[int]] = {"begin": set(), "end": set()}  # of which only that is said
    numbers = [int(match[1]) if (match := _NUMBERED.match(line)) else None for line in lines]
    counting = zip(numbers, numbers[1:], numbers[2:], strict=False)
    # Captions may begin with a number, but not with one after the other.
    counted = any(a is not None and b == a + 1 and c == a + 2 for a, b, c in counting)
    if counted:
        told.update(n for n, number in enumerate(numbers) if number is not None)
        apart["begin"] |= told
        found.append((len(told), f"begin with a number that counts up, which is {KEPT}"))

    def those(pattern: re.Pattern[str]) -> set[int]:
        return {number for number, line in enumerate(lines) if pattern.search(line)}

    for pattern, what in (
        (PICTURE, "begin with the name of a picture or a text"),
        (_ADDRESS, "are addresses or paths"),
    ):
        if (count := len(those(pattern))) and count >= len(lines) / 2:
            raise PromptFileError(
                f"{path}: {count} of its {unit} {what}; give captions alone, or a table with a header"
            )
    logged: set[int] = set()  # which begin with dates and numbers too
    for how, part, pattern in (LOG, *ODD):
        count = len(have := those(pattern) - logged)
        if count > (part > 0) and count >= part * len(lines) and not (counted and part == 1):
            found.append((count, how))
            logged |= have if pattern is LOG[-1] else set()
            for verb in apart:
                if part < 1:
                    apart[verb] -= have
                elif verb in how:
                    apart[verb] |= have - (told - apart["begin"] - apart["end"])
            told |= have
    for have, how in (
        (
            {n for n, line in enumerate(lines) if " " not in line and is_base64([line])} - told,
            "are in base64, as which no model was trained on them: taken as prompts",
        ),
        (
            {n for n, text in enumerate(prompts) if is_container(text)} - told,
            "are lists or objects (['...', '...']), each of which is taken as one prompt",
        ),
        (
            commanded(lines) - told,
            "are a text in quotes behind the same word, as a script's commands: taken as they stand",
        ),
    ):
        if have:
            found.append((len(have), how))
            told |= have
    if 2 * len(have := those(_BARS) - told) > len(lines):
        found.append((len(have), "hold bars (|) between words: several captions may stand in one line"))
        told |= have
    parts = [count for n, text in enumerate(prompts) if n not in told and (count := _parts(text))]
    # Of one caption two halves are usual; a line of text alone was looked at above.
    if 2 * len(parts) > len(lines) and (len(lines) > 1 or (unit != "lines" and max(parts) > 2)):
        how = "hold marks such as ; / \u2022 or <br> between phrases: several captions may stand in each"
        found.append((len(parts), how))
    for verb, have in _apart(lines):
        if 2 * len(new := have - told) > len(lines):
            found.append((len(new), f"{verb} with a number or an identifier, which is {KEPT}"))
            apart[verb] |= new
            told |= new
    labels = [match[1] if (match := _LABELLED.match(line)) else "" for line in lines]
    label, most = Counter(filter(None, labels)).most_common(1)[0] if any(labels) else ("", 0)
    if most > 1 and (most == len(lines) or (most > 2 and 2 * most > len(lines))):
        found.append((most, f"begin with the same words and a colon, which are {KEPT}"))
        have = {n for n, one in enumerate(labels) if one == label}
        told |= have
        apart = {verb: some - have for verb, some in apart.items()}
    if have := spaced_letters(lines):
        found.append((len(have), "are single letters between blanks (P o r t r a i t), taken as words"))
        told |= have
    # What stands beside a number or a label is a caption, with its own marks.
    numbered = apart["begin"] | apart["end"]
    told -= numbered
    rest = [
        "" if n in told else _without_apart(line, *(n in apart[verb] for verb in apart))
        for n, line in enumerate(lines)
    ]
    names, have = joints([] if glued else rest)
    if have:
        found.append((len(have), f"hold {names} between words: several captions may stand in each"))
    for how, same in shared_words(rest):
        found.append((len(same), f"{how}, which are {KEPT}"))
    told |= have
    seldom = {what: have for what, pattern in SELDOM if (have := those(pattern) - told - numbered)}
    marks, have = odd_marks(rest, told)
    if marks:
        seldom[f"marks ({marks})"] = have
    if seldom:
        count = len(set[int]().union(*seldom.values()))
        kinds = ", ".join(seldom)
        found.append(
            (count, f"hold what captions seldom do, read by the tokenizer as it stands: {kinds}")
        )
    notes = [f"{path}: {count} of its {unit} {how}" for count, how in found]
    for how, have in odd_letters(prompts):
        at = ", ".join(str(places[number]) for number in sorted(have)[:_NAMED])
        at = f"line{'s' * (len(have) > 1)} {at}" + ", ..." * (len(have) > _NAMED)
        notes.append(f"{path}: {len(have)} of its {unit} ({at}) {how}")
    return notes


def _without_apart(line: str, front: bool, back: bool) -> str:
    """A line without the first word, or the last, and the marks that part it from the others."""
    if front:
        line = _FIRST.sub("", line)
    return _LAST.sub("", line) if back else line


def _apart(lines: Sequence[str]) -> Iterator[tuple[str, set[int]]]:
    """Lines that begin, or end, with a number or an identifier, whatever mark or blank follows."""
    split = [line.split() for line in lines]
    for verb, step in (("begin", 1), ("end", -1)):
        rows = [words[::step] for words in split]
        first = {" ".join(row[:1]) for row in rows}
        shared = len(first) == 1 < len(rows)  # as in: Prompt 1 ..., Prompt 2 ...
        for place in range(1 + shared):
            words = [
                match[0] if row[place + 1 :] and (match := _WORD.search(row[place])) else ""
                for row in rows
            ]
            numbers = {
                at: int(digits)  # of a time too
                for at, word in enumerate(words)
                if (digits := word.replace(":", "")).isdecimal()
            }
            rising = len(numbers) == len(lines) > 1 and all(a < b for a, b in pairwise(numbers.values()))
            have = {
                at for at, word in enumerate(words) if _DIGIT.search(word) and not _USUAL.fullmatch(word)
            }
            if rising or 4 < len(lines) < 1.2 * len(numbers):
                have |= numbers.keys()
            yield verb, have


def odd_cells(listing: Listing, key: str | None) -> list[str]:
    """`odd_prompts` of the first prompts of a table or of JSON; lines of text are looked at before."""
    if listing.format == "txt":
        return []
    names = COLUMNS if key is None else (key,)
    texts: list[tuple[int, object]] = [
        (
            line,
            record if isinstance(record, str) else next((record[n] for n in names if n in record), None),
        )
        for line, record in listing.records[:LOOKED_THROUGH]
    ]
    held = [(line, one.strip()) for line, one in texts if isinstance(one, str) and one.strip()]
    places, prompts = [line for line, _ in held], [one for _, one in held]
    _refuse_containers(listing.path, prompts, places, "prompts")
    return odd_prompts(listing.path, prompts, places)


def _is_answer(text: str) -> bool:
    """Whether a text is what came in a list's place: a server's error, a program's complaint."""
    whole = _parsed(text) if text[:1] == "{" and len(text) < 10_000 else None
    if isinstance(whole, dict):
        return bool(whole.keys() & _ANSWER_KEYS) and not whole.keys() & {*COLUMNS, "prompts", "captions"}
    return bool(_ANSWER.fullmatch(text) or _SAID.match(text)) or is_complaint(_lines(text))


_NAMES = {"txt": "text", "csv": "CSV", "tsv": "TSV"}


def _looks_like(text: str) -> Literal["json", "jsonl"] | None:
    """What a text is if it is JSON as a whole, or JSON objects (or strings) line by line."""
    begin = text.lstrip()[:1]
    if begin not in ("[", "{", '"'):
        return None
    text = text.replace("\x1e", "")  # before each record (RFC 7464)
    lines = _lines(text)
    whole = None
    if begin != '"':
        # One line with an object may be both; it is a list of one.
        whole = _parsed(text)
    if isinstance(whole, list) or (isinstance(whole, dict) and lists_in(whole, None)):
        return "json"
    first = _parsed(lines[0])
    if isinstance(first, dict):
        return "jsonl"
    if isinstance(whole, dict):
        return "json"
    if isinstance(first, str) and len(lines) > 1 and all(isinstance(_parsed(x), str) for x in lines):
        return "jsonl"
    return None


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _table_separator(text: str) -> str | None:
    """What separates the cells of a text that looks like a table: each line has it."""
    lines = _lines(text)
    for separator in SEPARATORS:
        if separator not in lines[0] or 0 in (counts := {line.count(separator) for line in lines}):
            continue
        names = names_of(lines[0].split(separator))
        # Of a list of tags, with "text" among them, other lines would have fewer.
        known = any(name in COLUMNS + LABELS for name in names)
        known = known and lines[0].count(separator) == min(counts)
        # Captions have commas, hardly ever tabs.
        items = all(re.match(r"[^\w\s]+\t", line) for line in lines)  # of a list, as Word writes them
        if known or (separator == "\t" and len(counts) == 1 and len(lines) > 1 and not items):
            return separator
    if len(lines) > 1 and all(_QUOTED_CELLS.match(line) for line in lines):
        return ","
    # As of cells between blanks, most lines: a caption is seldom several quotations and nothing else.
    quoted = [found for line in lines if (found := quoted_items(line))]
    return quoted[0] if 2 * len(quoted) > len(lines) else None


def refused(path: Path, what: str, looks: Format | None) -> PromptFileError:
    """What a list is instead, and the remedy."""
    if looks is None:
        cure = f"give text, CSV, TSV, JSON, JSON lines or Parquet, or {option('prompts_format')}"
    else:
        named = "" if nameless(path) else f"name it .{looks}, or "
        cure = f"{named}give {option('prompts_format')} {looks}"
        if looks != "parquet":
            cure += f" ({_as_text()})"
    return PromptFileError(f"{path}: {what}; {cure}")


def _as_text() -> str:
    return f"{option('prompts_format')} txt takes each line as a prompt"


def _lines(text: str) -> list[str]:
    """The lines that are not blank."""
    return _numbered(text)[1]


def _numbered(text: str) -> tuple[list[int], list[str]]:
    """The numbers, from 1, of the lines that are not blank, and these lines."""
    # Not str.splitlines: it also splits at a form feed or U+2028, which a prompt may hold.
    every = re.split("\r?\n", text)
    places = [number for number, line in enumerate(every, 1) if line.strip()]
    return places, [every[number - 1] for number in places]
