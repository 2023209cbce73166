"""The tables of a comparison, from its plain data, and what they say in sentences. Imports no torch.

A row of the first table is a method and a kind of prompts, of the second a method on ordinary prompts.
"""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_prune.compare.methods import UNPRUNED
from nemo_prune.compare.summary import COLUMNS, OURS, PAPERS, measures_of, summarize

Data = Mapping[str, Any]
ALL = "all"
SUPPRESSED = 0.5
QUALITY = ("fid", "kid", "clip_fid", "cmmd")


def table_rows(methods: Sequence[Data], prompts: Sequence[Data]) -> list[dict[str, Any]]:
    """A row for each method and kind of prompt.

    Args:
        methods: "name", "whole_list", "failed".
        prompts: "kind" where it is known, and "methods": by name what `compare` found, or "error".

    Returns:
        "method", "kind", "prompts", "errors"; "neurons" (mean, sd, median, largest; None for methods
        without) and "score", the same of the memorization score; by column and measure what
        `summarize` gives, under "columns"; "near": pictures near what was memorized and pictures
        judged; "samples" and "seconds" for a prompt's search,
        "stages", seconds of its parts; "picture_seconds" and "picture_samples" for one picture.
    """
    kinds = list(dict.fromkeys(entry.get("kind") for entry in prompts))
    named = sorted((kind for kind in kinds if kind), key=lambda kind: kind != "verbatim")
    groups: list[tuple[str, list[Data]]] = [
        (kind, [entry for entry in prompts if entry.get("kind") == kind]) for kind in named
    ]
    if len(groups) != 1 or None in kinds:
        groups.append((ALL, list(prompts)))
    return [
        _row(method, kind, [entry["methods"][method["name"]] for entry in entries])
        for method in methods
        for kind, entries in groups
    ]


def _row(method: Data, kind: str, cells: Sequence[Data]) -> dict[str, Any]:
    found = [cell for cell in cells if "error" not in cell]
    row: dict[str, Any] = {
        "method": method["name"],
        "kind": kind,
        "prompts": len(found),
        "errors": len(cells) - len(found),
        "neurons": _spread([cell["neurons"] for cell in found if "neurons" in cell]),
        "columns": {
            column: {name: summarize(found, column, name) for name in measures_of(found, column)}
            for column in COLUMNS
        },
        "near": None,
        "score": _spread([cell["score"] for cell in found if cell.get("score") is not None]),
    }
    judged = [cell for cell in found if "near" in cell]
    if judged:
        pictures = sum(len(cell["generated"]) for cell in judged)
        row["near"] = [sum(len(cell["near"]) for cell in judged), pictures]
    # One search serves the whole list: each prompt takes its part of it.
    share = len(found) if method["whole_list"] else 1
    row["samples"] = _spread([cell["samples"] / share for cell in found])
    row["seconds"] = _spread([cell["seconds"] / share for cell in found])
    stages = list(dict.fromkeys(name for cell in found for name in cell["stages"]))
    row["stages"] = {
        name: _spread([cell["stages"].get(name, 0) / share for cell in found]) for name in stages
    }
    pictures = sum(len(cell.get("generated", ())) for cell in found)
    for name in ("seconds", "samples"):
        taken = sum(cell[f"draw_{name}"] for cell in found)
        row[f"picture_{name}"] = round(taken / pictures, 4) if pictures else None
    return row


def quality_rows(methods: Sequence[Data], effects: Sequence[Data]) -> list[dict[str, Any]]:
    """A row for each method on ordinary prompts: "same" and "alignment" by measure, drift, distances."""
    return [
        {
            "method": method["name"],
            "same": {
                name: summarize(effect["same"], "generated", name)
                for name in measures_of(effect["same"], "generated")
            },
            "alignment": summarize(effect["same"], "alignment", "clip"),
            "drift": effect["drift"],
            **effect["quality"],
        }
        for method, effect in zip(methods, effects, strict=True)
    ]


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {
        "mean": round(statistics.fmean(values), 3),
        "sd": round(statistics.stdev(values), 3) if len(values) > 1 else 0.0,
        "median": round(statistics.median(values), 3),
        "largest": round(max(values), 3),
    }


# ---------------------------------------------------------------------------------- in words


def headline(data: Data) -> str:
    """The measure that the first table shows: SSCD, else MS-SSIM."""
    names = {one["name"] for one in data["measures"]}
    return "sscd" if "sscd" in names else "ms_ssim"


def verdict(data: Data) -> str:
    """Who suppressed what, in one sentence: methods whose pictures are no longer near."""
    rows = {row["method"]: row for row in data["table"] if row["kind"] in (ALL, _only_kind(data))}
    judged = {name: row["near"] for name, row in rows.items() if row["near"]}
    if UNPRUNED not in judged or not judged[UNPRUNED][0]:
        return "Pictures tell no method from another: the unpruned model's own are not told from chance."
    near, count = judged.pop(UNPRUNED)
    fewer: list[str] = []
    others: list[str] = []
    for name, (left, of) in judged.items():
        (fewer if left / of < SUPPRESSED * near / count else others).append(f"{name} {left} of {of}")
    return (
        f"Unpruned, {near} of {count} pictures are near what was memorized. "
        f"Fewer than half as many: {', '.join(fewer) or 'with no method'}."
        + (f" Not so: {', '.join(others)}." if others else "")
    )


def _only_kind(data: Data) -> str:
    kinds = {row["kind"] for row in data["table"]}
    return next(iter(kinds)) if len(kinds) == 1 else ALL


def notes(data: Data) -> list[str]:
    """What a reader of the tables must know."""
    options, found = data["options"], []
    measures = {one["name"]: one for one in data["measures"]}
    which = (
        "MS-SSIM, which needs no weights; no SSCD file was given, so no figure compares with the paper's"
    )
    if "sscd" in measures:
        which = f"SSCD by {measures['sscd']['file']}, pictures squashed to 320 x 320, as in the paper"
    found.append(f"Similarity is {which}.")
    if "clip" not in measures:
        found.append("Alignment with the caption was not measured: no CLIP folder was given.")
    else:
        found.append(f"Alignment is by {measures['clip']['file']} (the paper's: OpenAI's ViT-B/32).")
    found.append(f"Paper's way: {PAPERS}. Other way: {OURS}.")
    found.append(
        f"{options['images']} pictures of a prompt and method, {options['picture_steps']} DDIM steps, "
        f"guidance {options['guidance']:g}; the paper's: 10, 50, 7."
    )
    if not data["extractors"]:
        found.append(
            "FID, KID, CLIP-FID and CMMD were not measured: no Inception file and no CLIP folder was "
            "given. Side effects are by the same-seed change of ordinary pictures and by drift."
        )
    else:
        names = {one["name"]: one["file"] for one in data["extractors"]}
        count = options["ordinary_images"] * options["ordinary_prompts"]
        by = ", ".join(f"{name} {file}" for name, file in names.items())
        found.append(
            f"Distances are by {by}, of {count} ordinary pictures to {options['compared_with']}; of so "
            f"many they compare methods with each other, not with published figures, of 10,000."
        )
    for method in data["methods"]:
        if method["failed"]:
            found.append(f"{method['name']} did not run: {method['failed']}.")
    for row in data["table"]:
        if row["errors"] and row["prompts"] and row["kind"] in (ALL, _only_kind(data)):
            found.append(f"{row['method']} failed on {row['errors']} prompts, which its row leaves out.")
    return found


# ------------------------------------------------------------------------------------- forms


def to_csv(data: Data) -> str:
    """The first table with every figure, and the second's of the same method at the end of each row."""
    effects = {row["method"]: row for row in data["quality"]}
    rows = [_flat(row, effects[row["method"]]) for row in data["table"]]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(row: Data, effect: Data) -> dict[str, Any]:
    flat: dict[str, Any] = {name: row[name] for name in ("method", "kind", "prompts", "errors")}

    def spread(name: str, values: Data | None) -> None:
        for how, value in (values or {}).items():
            if how != "prompts":
                flat[f"{name}_{how}"] = value

    spread("neurons", row["neurons"])
    spread("score", row["score"])
    for column, measures in row["columns"].items():
        for measure, values in measures.items():
            spread(f"{column}_{measure}", values)
    if row["near"]:
        flat["near"], flat["judged"] = row["near"]
    spread("samples", row["samples"])
    spread("seconds", row["seconds"])
    for stage, values in row["stages"].items():
        spread(f"seconds_{stage}", values)
    flat |= {name: row[name] for name in ("picture_seconds", "picture_samples")}
    for measure, values in effect["same"].items():
        spread(f"ordinary_{measure}", values)
    spread("ordinary_alignment", effect["alignment"])
    flat |= {f"ordinary_{name}": effect[name] for name in ("drift", *QUALITY) if name in effect}
    return flat
