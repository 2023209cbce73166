"""A comparison as a page, as Markdown, CSV or JSON. Imports no torch.

The HTML is one file: styles, plots and pictures are inlined, there is no script and nothing is fetched.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_prune.compare import table
from nemo_prune.compare.summary import COLUMNS, MEANINGS
from nemo_prune.compare.table import Data
from nemo_prune.errors import OptionError, option
from nemo_prune.files.atomic import write_new
from nemo_prune.report.render import from_template, histogram, markdown_line
from nemo_prune.report.verdict import percent

Album = Mapping[int, Mapping[str, Sequence[str]]]
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 600.0, 12.0, 300.0  # of a plot, in its own units


def check_compare_format(path: Path) -> None:
    """Raise OptionError for a report whose name does not end in .html, .md or .json."""
    if path.suffix.lower() not in _FORMATS:
        raise OptionError(f"{option('report')} {path}: is written as .html, .md or .json; name it so")


def write_compare(data: Data, album: Album, path: Path, overwrite: bool = False) -> None:
    """Write the comparison as `path`'s suffix says; raises OptionError for another, OutputError."""
    check_compare_format(path)
    _write(_FORMATS[path.suffix.lower()](data, album), path, overwrite)


def write_table(data: Data, path: Path, overwrite: bool = False) -> None:
    """Write the tables as CSV, a line for each method and kind of prompt. Raises OutputError."""
    _write(table.to_csv(data), path, overwrite)


def to_html(data: Data, album: Album) -> str:
    """The comparison as one self-contained HTML page."""
    return _render("compare.html.j2", data, album)


def to_markdown(data: Data, _album: Album) -> str:
    """The tables alone."""
    return _render("compare.md.j2", data, {})


def to_json(data: Data, _album: Album) -> str:
    """The data, with the sentence that the other forms begin with."""
    return json.dumps({**data, "verdict": table.verdict(data)}, indent=1, ensure_ascii=False) + "\n"


_FORMATS: dict[str, Callable[[Data, Album], str]] = {
    ".html": to_html, ".htm": to_html, ".md": to_markdown, ".json": to_json,
}  # fmt: skip


def _render(template: str, data: Data, album: Album) -> str:
    filters: dict[str, Callable[..., str]] = {
        "score": score, "spread": spread, "line": markdown_line, "percent": percent, "near": near,
        "number": _number,
    }  # fmt: skip
    headline = table.headline(data)
    return from_template(
        f"compare/{template}",
        filters,
        data=data,
        album=album,
        headline=headline,
        numbers={one["name"]: place for place, one in enumerate(data["methods"])},
        titles={one["name"]: one["title"] for one in data["methods"]},
        verdict=table.verdict(data),
        notes=table.notes(data),
        columns=[column for column in COLUMNS if any(row["columns"][column] for row in data["table"])],
        meanings=MEANINGS,
        measures=[one["name"] for one in data["measures"] if one["name"] not in ("clip", headline)],
        distances=[name for name in table.QUALITY if any(name in row for row in data["quality"])],
        stages=list(dict.fromkeys(name for row in data["table"] for name in row["stages"])),
        drift_plot=drift_plot(data),
        neurons_plot=neurons_plot(data),
        histograms=histograms(data),
        score_histograms=score_histograms(data),
    )


def score(found: Mapping[str, Any] | None) -> str:
    """The paper's way: median ± median absolute deviation."""
    return "–" if found is None else f"{found['median']:.2f} ± {found['mad']:.2f}"


def spread(found: Mapping[str, Any] | None, most: int = 2) -> str:
    """Mean ± standard deviation, with at most so many digits behind the point."""
    if found is None:
        return "–"
    digits = min(most, 2 if abs(found["mean"]) < 10 else 1 if abs(found["mean"]) < 100 else 0)
    sd = "" if found["sd"] is None else f" ± {found['sd']:.{digits}f}"
    return f"{found['mean']:,.{digits}f}{sd}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def near(found: Sequence[int] | None) -> str:
    return "not judged" if found is None else f"{found[0]} of {found[1]}"


# -------------------------------------------------------------------------------------- plots


def drift_plot(data: Data) -> dict[str, Any] | None:
    """Similarity to what was memorized against drift, a point for each method; None for fewer than 2."""
    headline = table.headline(data)
    effects = {row["method"]: row["drift"] for row in data["quality"]}
    points = []
    for place, method in enumerate(data["methods"]):
        rows = [row for row in data["table"] if row["method"] == method["name"]]
        columns = rows[-1]["columns"]
        found = columns["original"].get(headline) or columns["generated"].get(headline)
        drift = effects[method["name"]]
        if found is not None and drift is not None:
            points.append((place, method["name"], drift, found["median"]))
    if len(points) < 2:
        return None
    ticks = _round_ticks(max(drift for _, _, drift, _ in points))
    most = ticks[-1]
    low = min(0.0, *(value for _, _, _, value in points))
    against = "original" if any(row["columns"]["original"] for row in data["table"]) else "generated"
    return {
        "points": [
            {"number": place, "name": name, "drift": drift, "similarity": value,
             "x": round(_LEFT + (_RIGHT - _LEFT) * drift / most, 1),
             "y": round(_BOTTOM - (_BOTTOM - _TOP) * (value - low) / (1 - low), 1)}
            for place, name, drift, value in points
        ],
        "x_ticks": [
            (round(_LEFT + (_RIGHT - _LEFT) * tick / most, 1), f"{100 * tick:g} %") for tick in ticks
        ],
        "y_ticks": [
            (round(_BOTTOM - (_BOTTOM - _TOP) * (tick - low) / (1 - low), 1), f"{tick:.1f}")
            for tick in (0, 0.2, 0.4, 0.6, 0.8, 1.0)
        ],
        "against": MEANINGS[against],
        "left": _LEFT, "right": _RIGHT, "top": _TOP, "bottom": _BOTTOM,
    }  # fmt: skip


def _round_ticks(most: float) -> list[float]:
    """0 and up to five round numbers above it, the last at least `most`."""
    power = 10.0 ** math.floor(math.log10(max(most, 1e-6)))
    step = next(part * power for part in (0.2, 0.5, 1, 2) if most <= 5 * part * power)
    return [round(step * count, 9) for count in range(math.ceil(max(most / step, 1)) + 1)]


def neurons_plot(data: Data) -> dict[str, Any] | None:
    """Neurons of each prompt, a row for each method that searches by prompt; None where none does.

    Methods that switch as many off elsewhere or in other amounts add nothing to the picture of a
    search, but all that have counts are shown: the picture is theirs.
    """
    rows = []
    whole = {one["name"] for one in data["methods"] if one["whole_list"]}
    for place, method in enumerate(data["methods"]):
        counts = [
            (entry["methods"][method["name"]]["neurons"], entry.get("kind"))
            for entry in data["prompts"]
            if "neurons" in entry["methods"][method["name"]]
        ]
        if method["name"] not in whole and any(count for count, _ in counts):
            rows.append((place, method["name"], counts))
    if not rows:
        return None
    top = math.log10(max(max(count for count, _ in counts) for _, _, counts in rows) + 1)
    left, right, tall = 190.0, 600.0, 20.0

    def across(count: float) -> float:
        return round(left + (right - left) * math.log10(count + 1) / top, 1)

    ticks = [10**power for power in range(math.ceil(top) + 1) if 10**power <= 10**top]
    return {
        "rows": [
            {"name": f"{place} {name}", "y": 14 + tall * number,
             "dots": [(across(count), kind or "", count) for count, kind in counts]}
            for number, (place, name, counts) in enumerate(rows)
        ],
        "ticks": [(across(0), "0"), *((across(tick), f"{tick:,}") for tick in ticks)],
        "height": 14 + tall * len(rows) + 16, "left": left, "right": right,
    }  # fmt: skip


def histograms(data: Data) -> list[tuple[str, list[int]]]:
    """For each method how alike its pictures are to the training pictures, else the unpruned model's."""
    headline = table.headline(data)
    column = "original" if any(row["columns"]["original"] for row in data["table"]) else "generated"
    found = []
    for place, method in enumerate(data["methods"]):
        values = [
            one[headline]
            for entry in data["prompts"]
            for one in entry["methods"][method["name"]].get(column, ())
        ]
        if values:
            found.append((f"{place} {method['name']}", histogram(values)))
    return found


def score_histograms(data: Data) -> list[tuple[str, list[int]]]:
    """For each method that switches outputs off the memorization scores of all prompts."""
    found = []
    for place, method in enumerate(data["methods"]):
        cells = [entry["methods"][method["name"]] for entry in data["prompts"]]
        scores = [cell["score"] for cell in cells if cell.get("score") is not None]
        if scores:
            found.append((f"{place} {method['name']}", histogram(scores)))
    return found


def _write(text: str, path: Path, overwrite: bool) -> None:
    # Names that are not UTF-8 arrive as half surrogates, which no page can show.
    write_new(path, text.encode("utf-8", "replace"), overwrite)
