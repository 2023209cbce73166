"""The paper's Table 1 and its ablations (Table 4) on a model of yours, beside the paper's figures.

    python -m tools.reproduce --model sd-v1-4.safetensors --prompts sdv1_500_memorized.jsonl \\
        --originals DIR --sscd sscd_disc_mixup.torchscript.pt --clip clip-vit-base-patch32 --limit 10

It calls `nemo-prune compare` with the paper's settings and reads what that wrote. Everything is kept in
the output folder, so a run that was interrupted goes on, and one of ten prompts is continued by one of
all. Nothing is downloaded. See docs/reproduce.md.
"""

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_prune.cli.console import flags
from nemo_prune.cli.main import main as nemo_prune
from nemo_prune.errors import NemoPruneError, OptionError
from nemo_prune.files.prompts import read_prompts
from nemo_prune.files.source import read_list

COLUMNS = ("original", "generated", "diversity", "alignment")
# SD 1.4, SSCD (and CLIP) of the columns above; arXiv 2406.02366, Table 1.
TABLE_1 = {
    "verbatim": {
        "none": (0.83, 1.0, 0.99, 0.32),
        "literal": (0.09, 0.10, 0.16, 0.31),
        "nemo": (0.09, 0.10, 0.16, 0.31),
        "random": (0.80, 0.999, 0.99, 0.32),
        "wen": (0.04, 0.08, 0.08, 0.30),
        "ren": (0.08, 0.14, 0.15, 0.31),
        "somepalli-1": (0.59, 0.68, 0.67, 0.31),
        "somepalli-4": (0.09, 0.12, 0.15, 0.30),
        "somepalli-10": (0.03, 0.07, 0.11, 0.28),
    },
    "template": {
        "none": (0.04, 1.0, 0.17, 0.31),
        "literal": (0.05, 0.05, 0.12, 0.31),
        "nemo": (0.05, 0.05, 0.12, 0.31),
        "random": (0.05, 0.997, 0.16, 0.31),
        "wen": (0.03, 0.08, 0.09, 0.31),
        "ren": (0.05, 0.19, 0.12, 0.31),
    },
}
# Neurons (verbatim, template), then similarity to original and generated (verbatim); None: not given.
ABLATIONS: dict[str, tuple[float | None, float | None, float | None, float | None]] = {
    "literal": (4, 21, 0.09, 0.10),
    "threshold-low": (10.5, 32, None, None),
    "threshold-mean": (6, 30, None, None),
    "threshold-high": (3, 7, None, None),
    "no-refinement": (26.5, 674.5, None, None),
    "no-top-k": (11, 30, None, None),
    "scale-0.75": (None, None, 0.79, 0.995),
    "scale-0.5": (None, None, 0.62, 0.97),
    "scale-0.25": (None, None, 0.20, 0.32),
    "scale-minus-1": (None, None, 0.08, 0.11),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; the exit code is that of `nemo-prune compare`, 2 for bad input."""
    asked, more = _parser().parse_known_args(arguments)
    try:
        prompts, targets = _lists(asked)
    except (NemoPruneError, OSError) as error:
        said = flags(error.message) if isinstance(error, NemoPruneError) else str(error)
        print(f"reproduce: {said}", file=sys.stderr)
        return 2
    kept = asked.out / "kept"
    reports = [asked.out / f"compare.{kind}" for kind in ("html", "md", "json")]
    words = [
        "compare", asked.model, "--prompts", prompts, "--targets", targets, "--sscd", asked.sscd,
        "--clip", asked.clip, "--methods", asked.methods, "--images", asked.images,
        "--picture-steps", 50, "--guidance", 7, "--keep", kept, "--overwrite",
        *(["--resume"] if kept.exists() else []),
        *(word for one in reports for word in ("--report", one)),
        "--csv", asked.out / "compare.csv", *more,
    ]  # fmt: skip
    try:
        nemo_prune([str(word) for word in words], prog_name="nemo-prune")
    except SystemExit as end:
        if end.code:
            return int(end.code)
    found = json.loads((asked.out / "compare.json").read_text(encoding="utf-8"))
    print(side_by_side(found))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.reproduce", description=__doc__.partition("\n")[0],
        epilog="Further options go to nemo-prune compare as they are, such as --device or --inception.",
    )  # fmt: skip
    wanted = sorted({*TABLE_1["verbatim"], *ABLATIONS})
    for name, what in (
        ("--model", "the checkpoint, a file or a folder"),
        ("--prompts", "the paper's list: caption, index, url; or with a column type (VM, TM)"),
        (
            "--originals",
            "training pictures, named by index, position or caption; or a CSV: prompt, file",
        ),
        ("--sscd", "sscd_disc_mixup as TorchScript"),
        ("--clip", "CLIP ViT-B/32, a folder"),
    ):
        parser.add_argument(name, type=Path, required=True, help=what)
    parser.add_argument("--kinds", type=Path, help="a list with a column type, where --prompts has none")
    parser.add_argument("--limit", type=int, help="only so many prompts, the first of the list")
    parser.add_argument("--images", type=int, default=10, help="pictures of a prompt (the paper's: 10)")
    parser.add_argument("--methods", default=",".join(wanted), help="default: those that the paper has")
    parser.add_argument(
        "--out", type=Path, default=Path("reproduced"), help="folder; default: reproduced"
    )
    return parser


def _lists(asked: argparse.Namespace) -> tuple[Path, Path]:
    """The prompts and the pictures as `compare` takes them, written into the output folder."""
    listed = read_prompts(asked.prompts)
    texts = listed.texts[: asked.limit]
    kinds = dict(zip(listed.texts, listed.kinds, strict=True)) if listed.kinds else {}
    if asked.kinds:
        told = read_prompts(asked.kinds)
        kinds |= {text: kind for text, kind in zip(told.texts, told.kinds, strict=False) if kind}
        if not any(kinds.get(text) for text in texts):
            raise OptionError(f"{asked.kinds}: says of none of the prompts whether it is VM or TM")
    asked.out.mkdir(parents=True, exist_ok=True)
    prompts = asked.out / "prompts.csv"
    _write(prompts, ("caption", "type"), [(text, kinds.get(text) or "memorized") for text in texts])
    by_index = _by_index(asked.prompts, asked.originals, texts)
    if not by_index:
        return prompts, asked.originals
    targets = asked.out / "targets.csv"
    _write(targets, ("prompt", "file"), [(text, str(path)) for text, path in by_index.items()])
    return prompts, targets


def _by_index(prompts: Path, originals: Path, texts: Sequence[str]) -> dict[str, Path]:
    """Caption -> picture, where pictures are named by the list's own numbers and not by position."""
    if not originals.is_dir():
        return {}
    files = {path.stem: path.absolute() for path in sorted(originals.iterdir()) if path.is_file()}
    found: dict[str, Path] = {}
    at_place = 0
    for _, record in read_list(prompts).records:
        if isinstance(record, str):
            return {}
        text = str(next((record[name] for name in ("caption", "prompt", "text") if name in record), ""))
        if text.strip() not in texts:
            continue
        number = str(record.get("index", "")).strip()
        at_place += str(texts.index(text.strip())) in files
        if number in files:
            found.setdefault(text.strip(), files[number])
    return found if len(found) >= at_place else {}


def _write(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def side_by_side(data: Mapping[str, Any]) -> str:
    """The paper's figures and those of a comparison, a line for each."""
    rows = {(row["method"], row["kind"]): row for row in data["table"]}
    lines = [f"Table 1: paper | measured ({data['model']['path']})"]
    for kind, table in TABLE_1.items():
        shown = kind if any(key[1] == kind for key in rows) else "all"
        count = max((row["prompts"] for (_, its), row in rows.items() if its == shown), default=0)
        lines += [
            "",
            f"{kind} ({count} prompts{'; kinds are not told apart' if shown == 'all' else ''})",
        ]
        lines.append(f"  {'':14}" + "".join(f"{name:>20}" for name in COLUMNS))
        for method, figures in table.items():
            row = rows.get((method, shown))
            cells = [f"{paper:.3g} | {_measured(row, name)}" for name, paper in
                     zip(COLUMNS, figures, strict=True)]  # fmt: skip
            lines.append(f"  {method:14}" + "".join(f"{cell:>20}" for cell in cells))
    lines += ["", "Ablations: paper | measured"]
    heads = ("neurons, VM", "neurons, TM", "original, VM", "generated, VM")
    lines.append(f"  {'':14}" + "".join(f"{name:>20}" for name in heads))
    for method, known in ABLATIONS.items():
        verbatim, template = (rows.get((method, kind)) for kind in TABLE_1)
        measured = [_neurons(verbatim), _neurons(template),
                    *(_measured(verbatim, name) for name in COLUMNS[:2])]  # fmt: skip
        cells = [
            f"{'–' if paper is None else f'{paper:g}'} | {one}"
            for paper, one in zip(known, measured, strict=True)
        ]
        lines.append(f"  {method:14}" + "".join(f"{cell:>20}" for cell in cells))
    lines += [
        "",
        "Measured: median over the pictures of a prompt, then over prompts; neurons: median. SD 1.4 and "
        "all 500 prompts are the paper's; of others, or of fewer, the two columns are not comparable.",
    ]
    return "\n".join(lines)


def _measured(row: Mapping[str, Any] | None, column: str) -> str:
    measures = row["columns"][column] if row else {}
    found = measures.get("clip" if column == "alignment" else "sscd")
    return "–" if found is None else f"{found['median']:.3g}"


def _neurons(row: Mapping[str, Any] | None) -> str:
    return "–" if not row or row["neurons"] is None else f"{row['neurons']['median']:g}"


if __name__ == "__main__":
    sys.exit(main())
