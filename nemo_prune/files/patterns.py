"""What lines hold beside captions: the patterns by which it is known, and how each is said."""

import re

from nemo_prune.files.programs import SQL

PICTURE = re.compile(r"^\s*\S+\.(jpe?g|png|webp|gif|bmp|txt|caption)(\W|$)", re.I)
KEPT = "taken as part of the prompt"
# What programs write where there is nothing: no value, an error of a spreadsheet, an object's name.
NOTHING = re.compile(
    r"^\s*([\"'(<\[]?(?i:null|none|nan|nat|n/a|nil|undefined)[\"')>\]]?|<?NA>?|pd\.NA|\\N|\"\"|''"
    r"|#(N/?[AV]|NAME\?|REF!|VALUE!|DIV/0!|NUM!|NULL!|SPILL!|CALC!|FIELD!|BLOCKED!|CONNECT!|BUSY!"
    r"|UNKNOWN!|ERROR!|GETTING_DATA|EXTERNAL!|PYTHON!|WERT!|BEZUG!|ZAHL!|NOM\?|VALEUR!|NOMBRE!|\u00a1\w+!"
    r"|\u00bf\w+\?|NOME\?|VALOR!|NOMBRE\?|RIF!|VALORE!|N/D)|Err:\d{3}"
    r"|\[object \w+\]|System\.[\w.]+(\[\])?|<[\w.]+ object at 0x[\da-fA-F]+>|<class '[\w.]+'>)\s*$"
)
# What the later bytes of a letter in UTF-8 are in Windows-1252.
_BEHIND = f"[\x80-\xbf{bytes({*range(128, 160)} - {129, 141, 143, 144, 157}).decode('cp1252')}]"
_IN_PROGRAM = r"""\s*[ru]?("[^"].*"|'[^'].*')\s*,\s*$"""
_LEVEL = r"(TRACE|DEBUG|INFO|NOTICE|WARN(ING)?|ERROR|CRITICAL|FATAL)\b"
_DATE = r"([A-Z][a-z]{2},? )?(\d{4}[-/]\d\d[-/]\d\d[T ]|[A-Z][a-z]{2,3} [ \d]?\d )"
_TIME = r"\d\d:\d\d(:\d\d)?([.,]\d+)?(Z| UTC| ?[+-]\d\d:?\d\d)?( \d{4})?\]?"
_STAMP = rf"[\[(]?({_DATE})?{_TIME}|\[ *\d+\.\d+\]"
# A line of a program's log, in part of all at least: a time, and host and program or a level behind;
# the priority or the level in front of it; or what containers, servers and the kernel have in front.
LOG = (
    f"begin as a program's log does (INFO:, host gen[12]:, worker-1 |), which is {KEPT}",
    0.5,
    re.compile(
        rf"^(<\d+>)?({_STAMP})\s+([\w.-]+ )?[\w./@-]+\[[\w.]+\]:\s"
        rf"|^(<\d+>)?{_DATE}{_TIME}\s+[\w.-]+ [\w./@-]+:\s"
        rf"|^({_STAMP})\W+([\w./-]+\W+){{0,2}}?{_LEVEL}|^({_STAMP}) std(out|err) [FP] |^<\d+>\d \S+ "
        rf"|^\W?{_LEVEL}\]?\s*[:|-]|^[DIWEF]\d{{4}} \d\d:\d\d:\d\d|^\[ *\d+\.\d{{3,}}\] "
        r"|^\S+ \S+ \S+ \[\d\d/[A-Z][a-z]{2}/\d{4}:|^[A-Za-z][\w./-]*\[\d+\]: "
        r"|^\[[\w.-]+(/[\w.-]+)+\]\s|^[\w.-]*-\d+\s+\|\s"
    ),
)
# Lines that are said: how, in which part of all at least, and how they are known.
ODD = tuple(
    (how, part, re.compile(pattern))
    for how, part, pattern in (
        ("hold {prompt} or the like: they are templates, as styles are, not captions", 0,
         r"\{(\d?|prompt|caption|text|subject|style|artist|name|class)\}|\[(name|filewords)\]|%s\b"),
        ("look like UTF-8 read as Windows-1252 (\u00c3\u00a9, \u00e2\u20ac); save the list anew", 0,
         f"[\u00c2\u00c3]{_BEHIND}|\u00e2\u20ac|\u00f0\u0178|([\u00d0\u00d1]{_BEHIND}){{2}}"
         f"|([\u00e3-\u00e9]{_BEHIND}{{2}}){{2}}"),
        (f"begin as items of a list, with a mark (-, *, a)) that is {KEPT}", 0.5,
         r"^\s*([-*+>\u2013\u2014\u2022\u2023\u25aa\u25cf\u2192\u2705\u2713\u274c]"
         r"|#\d+|\(?([a-zA-Z]|[ivx]+)[.)])\s+\S"),
        ("begin as statements of SQL do, and are taken as prompts", 0, SQL),
        ("begin with #, as comments do, and are taken as prompts", 0, r"^\s*#+\s"),
        ("hold a picture's parameters (Negative prompt:, Steps:): taken as prompts", 0,
         # As A1111 writes them into pictures; exiftool prints their line breaks as full stops.
         r"(^|\n|\.)(Negative prompt: |Steps: \d+, )"),
        ("begin as subtitles do (00:00 --> 00:01): every line is taken as a prompt", 0,
         r"^\d\d:\d\d[:.,]\d.* --> \d\d:"),
        (f"begin with the name of a picture or a text, which is {KEPT}", 0, PICTURE.pattern),
        ("are rules (===, ---), as of a title or a conflict: taken as prompts", 0,
         r"^\s*(={4,}|-{4,})\s*$"),
        (f"begin with a number or an identifier, which is {KEPT}", 1,
         r"^\s*(\w+ )?[\[(#]?[\w.-]{0,40}\d[\w-]{0,40}[\])]?(\s*[:|](?!\d)|,(?=\S)(?!\d)|\s{2,}|\t)\s*\S"
         r"|^\s{2,}\d+ \S"),  # the last: as uniq -c counts
        (f"begin or end with a decimal number, which is {KEPT}", 1,
         r"^\s*\d*\.\d+\s+\S|\s\d*\.\d+\s*$"),
        (f"begin or end with what may be a label (VM, memorized, 1), which is {KEPT}", 1,
         r"^\W*(([VTMR][MV]|(not )?memori[sz]ed|verbatim|ordinary)\W*\s|[01]\s+\w)|[\s,;|:/]\W*"
         r"([VTMR][MV]|N|[01]|(?i:(not )?memori[sz]ed|verbatim|template|ordinary|true|false))\W*$"),
        ("stand in quotes with a comma behind, as in a program's list: taken as prompts, with them", 0.5,
         rf"^{_IN_PROGRAM}"),
        ("end with a comma or with ..., as where a text goes on: taken as prompts", 0.5,
         rf"^(?!{_IN_PROGRAM})[\s\S]*(,|\.\.\.|\u2026)[\"']?\s*$"),
        ("are, or begin with, identifiers or hashes, and are taken as prompts", 0.5,
         r"^\s*((?=\S*\d)[\da-f-]{6,}\s*$|[\da-f]{32,}\b)"),
        ("are NULL, None, an error of a spreadsheet or the like, and are taken as prompts", 0, NOTHING),
        (f"begin with a date and time, which is {KEPT}", 0.5,
         rf"^\W?{_DATE}\d\d:\d\d"),
        ("hold + for blanks, as addresses do: decode them; taken as prompts as they are", 0.5,
         r"^\s*[^\s+]+(\+[^\s+]+){2,}\s*$"),
        ("hold - or _ for blanks, as names of files and addresses do; taken as prompts as they are", 0.5,
         r"^(?=(\S*?[-_][^\W\d_]{2,}(?![^\W_])){2})[^\s_-]+([_-]+[^\s_-]+){2,}\s*$"),
        (f"begin with an address, which is {KEPT}", 0, r"^\s*(https?|s3|gs)://"),
        # As A1111, ComfyUI, NovelAI and their extensions read them.
        ("hold weights, LoRAs or choices of a program ((x:1.2), <lora:x:1>, {a|b}): scored as text, as "
         "they stand", 0,
         r"\([^()]*[^()\d]:-?\d*\.?\d+\)|<(lora|lyco|lycoris|hypernet|embedding|ti):|\{[^{}]*\|[^{}]*\}"
         r"|\(\(|\{\{|\[[^\[\]]*[^\[\]\d]:\d*\.?\d+\]|\bembedding:\w|(?<![\w:])__[\w/-]+__\b"),
        ("hold BREAK or AND, at which programs part prompts: several captions may stand in one line", 0,
         r"\bBREAK\b|\sAND\s(?![A-Z]{2})"),
        ("hold \\n, \\r or \\t in letters, as programs write line breaks and tabs: several captions may "
         "stand in one line", 0, r"[^\s\\][^\w\s\\]?(\\[nrt])+(?=[^\W\d_][\w'-]*(\W|$))(?!\S*\{)"),
        ("hold options (--ar 16:9), as Midjourney's prompts do: scored as text, as they stand", 0,
         r"(^|\s)(--|\u2014|\u2013)(ar|aspect|v|version|s|stylize|style|c|chaos|q|quality|niji|no|seed|iw|tile"
         r"|weird|raw|sref|cref|stop|hd|fast|relax|turbo|video|steps|cfg|sampler)[\d.]*( |$)"),
    )
)  # fmt: skip


# What captions seldom hold, so that a model was trained on none that does; known of no program.
SELDOM = tuple(
    (what, re.compile(pattern))
    for what, pattern in (
        ("numbers, letters or times in front",
         r"^\W*\w*\d\w*([-:]\w+){2}|^\W*\d{3,}-\S|^\W*\d+\s?\||^\W*([A-Za-z]|[ivx]+)\)\s"
         r"|^\W*[A-Za-z].{0,18}\d[\])*]*:\s"),
        ("options (--w 512, -s50)", r"(^|\s)--?[A-Za-z]\w*[ =]?-?[\d.]+\b|(^|\s)--\w"),
        ("a command in front (/imagine, !dream)", r"^\s*[!/]\w"),
        ("addresses", r"https?:|www\.|\]\("),
        ("names of pictures", r"\.(jpe?g|png|webp)\W*$"),
        ("decimal numbers and settings (seed: 1)", r"\d\.\d|\b[a-z]\w*: ?\d"),
        ("comments (#)", r"\s#\s"),
        ("a label (VM)", r"^\W*(VM|TM|memori[sz]ed)\b|(VM|TM|memori[sz]ed)\W*$"),
        ("a tab, or a mark in front or at the end", r"\t|^\s*[!#$%&*+/:;<=>@\\^`|~]{1,3}\s+\S"
         r"|\w\s*[;|/]\s*$"),
        ("quotes around all of it, or a number",
         r"^\s*[\"'\u2018\u201c\u201e\u00ab](.*[\"'\u2019\u201c\u201d\u00bb]\s*$|\d+[\"'])"),
        ("a word and a colon in front, or a colon at the end", r"^\W*[A-Za-z]\w*:(\s|$)|:\s*$"),
        ("no blank between words", r"^\S{30,}$"),
        ("numbers alone", r"^\W*\d[\d.,]*\W*$"),
    )
)  # fmt: skip
