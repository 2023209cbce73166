"""A report as a page people can judge: HTML, Markdown or JSON from the same data.

The HTML is one file: styles and pictures are inlined, there is no script and nothing is fetched.
Imports no torch.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from nemo_prune.checkpoint.neurons import short_name
from nemo_prune.errors import OptionError, option
from nemo_prune.files.atomic import write_new
from nemo_prune.files.lists import COMPRESSED
from nemo_prune.report import verdict as says
from nemo_prune.report.verdict import Data

Album = Mapping[str, Mapping[int, Mapping[str, Any]]]
_BINS = 20


def check_format(path: Path) -> None:
    """Raise OptionError for a report whose name does not end in .html, .md or .json."""
    if path.suffix.lower() not in _FORMATS:
        raise OptionError(f"{option('report')} {path}: is written as .html, .md or .json; name it so")


def check_card(path: Path) -> None:
    """Raise OptionError for a card whose name says another format than Markdown."""
    if path.suffix.lower() in (".docx", ".html", ".pdf", *COMPRESSED):
        raise OptionError(f"{option('card')} {path}: is written as Markdown, .md; name it so")


def write_report(data: Data, album: Album, path: Path, overwrite: bool = False) -> None:
    """Write the report as `path`'s suffix says, at once and whole.

    data, album: of a `Report`. Raises OptionError for another suffix, OutputError.
    """
    check_format(path)
    _write(_FORMATS[path.suffix.lower()](data, album), path, overwrite)


def write_card(data: Data, path: Path, overwrite: bool = False) -> None:
    """Write a section for the pruned model's card: Markdown, without pictures.

    Raises OptionError for a name of something else, OutputError.
    """
    check_card(path)
    _write(_render("card.md.j2", data, {}), path, overwrite)


def to_html(data: Data, album: Album) -> str:
    """The report as one self-contained HTML page."""
    return _render("report.html.j2", data, album)


def to_markdown(data: Data, _album: Album) -> str:
    """The report without pictures."""
    return _render("report.md.j2", data, {})


def to_json(data: Data, _album: Album) -> str:
    """The data itself, with the sentence that the other forms begin with."""
    return json.dumps({**data, "verdict": says.verdict(data)}, indent=1, ensure_ascii=False) + "\n"


_FORMATS: dict[str, Callable[[Data, Album], str]] = {
    ".html": to_html,
    ".htm": to_html,
    ".md": to_markdown,
    ".json": to_json,
}


# ------------------------------------------------------------------------------------ figures


def histogram(scores: Iterable[float]) -> list[int]:
    """How many scores lie in each of 20 bins of [0, 1]; what lies outside counts at the ends."""
    counts = [0] * _BINS
    for score in scores:
        counts[min(_BINS - 1, max(0, int(score * _BINS)))] += 1
    return counts


def averages(entries: Sequence[Data]) -> list[dict[str, Any]]:
    """Each comparison of pictures (and CLIP score) as its mean over the prompts that have it."""
    pictures = [entry["pictures"] for entry in entries if entry.get("pictures")]
    found = []
    for key, title in _COMPARISONS:
        there = [one[key] for one in pictures if one.get(key)]
        if not there:
            continue
        if not isinstance(there[0], Mapping):
            there = [{"clip": value} for value in there]
        row = {name: sum(one[name] for one in there) / len(there) for name in there[0]}
        found.append({"title": title, "scores": row})
    return found


_COMPARISONS = (
    ("target_before", "to the training picture, before"),
    ("target_after", "to the training picture, after"),
    ("target_unrelated", "unrelated pictures to the training picture"),
    ("before_after", "before to after, same seed"),
    ("seeds_before", "among seeds, before"),
    ("seeds_after", "among seeds, after (lower: more diverse)"),
    ("clip_before", "to the prompt, before"),
    ("clip_after", "to the prompt, after"),
)


# ---------------------------------------------------------------------------------- rendering


def from_template(template: str, filters: Mapping[str, Callable[..., str]], **values: object) -> str:
    """A template of `data/`, filled in; HTML is escaped."""
    environment = Environment(
        loader=PackageLoader("nemo_prune", "data"),
        autoescape=template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= filters
    return environment.get_template(template).render(**values)


def _render(template: str, data: Data, album: Album) -> str:
    filters: dict[str, Callable[..., str]] = {
        "score": lambda value: "–" if value is None else f"{value:.3f}",
        "percent": says.percent,
        "near": lambda entry: says.near_text(entry, data),
        "layer": short_name,
        "line": markdown_line,
    }
    memorized = says.memorized_prompts(data)
    charts = [
        ("ordinary prompts", "ordinary", [entry["score_before"] for entry in data["ordinary"]]),
        *(
            (f"memorized prompts, {when}", when, [entry[key] for entry in memorized])
            for when, key in (("before", "score_before"), ("after", "score_after"))
        ),
    ]  # fmt: skip
    return from_template(
        f"report/{template}",
        filters,
        data=data,
        album=album,
        verdict=says.verdict(data),
        summary=says.summary(data),
        notes=says.notes(data),
        outlook=says.outlook(data),
        target_lines=says.target_lines(data),
        near=says.pictures_near(data),
        histograms=[(title, kind, histogram(scores)) for title, kind, scores in charts if scores],
        memorized=averages(memorized),
        ordinary=averages(data["ordinary"]),
        own=any(entry["score_own"] is not None for entry in data["prompts"]),
        trajectory=any(entry.get("trajectory") is not None for entry in data["prompts"]),
        removed=[layer for layer in data["layers"] if layer["removed"]],
    )


def markdown_line(text: str) -> str:
    """Any text as one cell of a Markdown table that cannot leave it, nor bring in HTML or links."""

    def harmless(mark: re.Match[str]) -> str:
        return f"&#{ord(mark[0])};" if mark[0] in "<>&|" else f"\\{mark[0]}"

    return re.sub(r"[\\`*_{}\[\]<>|#!~&]", harmless, " ".join(str(text).split()))


def _write(text: str, path: Path, overwrite: bool) -> None:
    # Names that are not UTF-8 arrive as half surrogates, which no page can show.
    write_new(path, text.encode("utf-8", "replace"), overwrite)
