"""What a person sees: tables, on standard error, so that standard output stays JSON."""

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nemo_prune.checkpoint.statuses import GONE, Status
from nemo_prune.cli.failures import one_line
from nemo_prune.errors import rendered

_STYLES = {Status.SUPPRESSED: "green", Status.NOT_MEMORIZED: "dim", Status.NOT_SEARCHED: "dim"}
_UNSOLVED = "bold red"
_ROWS = 40  # of a ranked table, unless more are memorized


def flags(text: str) -> str:
    """A message of the library with options as the command line spells them."""
    return rendered(text, lambda name: f"--{name.replace('_', '-')}")


def console() -> Console:
    return Console(stderr=True, highlight=False, emoji=False)


def interval_text(gate: Mapping[str, Any]) -> str:
    """A gate's confidence interval in words; `gate` as `dataclasses.asdict` gives it."""
    low, high = gate["low"], gate["high"]
    if low is None and high is None:
        return f"{gate['prompts']} ordinary prompts are too few for a 95 % interval"
    if high is None:
        return f"at least {low:.3f} by its 95 % interval, which so few prompts do not bound above"
    if low is None:
        return f"at most {high:.3f} by its 95 % interval, which so few prompts do not bound below"
    return f"95 % interval {low:.3f} to {high:.3f}"


def print_prompts(result: dict[str, Any]) -> None:
    """The table of prompts and the totals of a `summary`.

    "r": what trajectories say is left of the memorized picture, at the worst seed.
    """
    shown = console()
    more: dict[str, Callable[[dict[str, Any]], str]] = {
        "neurons": lambda entry: str(len(entry["neurons"])),
        "samples": lambda entry: str(entry["samples"] + entry["trajectory_samples"]),
    }
    _print_statuses(shown, result["prompts"], more)
    cost = result["cost"]
    memorized = [e for e in result["prompts"] if e["status"] != Status.NOT_MEMORIZED]
    suppressed = sum(e["status"] == Status.SUPPRESSED for e in memorized)
    drawn = [str(e["index"]) for e in memorized if (e["trajectory"] or 0) >= GONE]
    still = f" Still drawn: {', '.join(drawn)}." if drawn else ""
    confirmed = "the score alone" if result["confirm"] == "none" else f"score and {result['confirm']}"
    shown.print(
        f"gate {result['gate']['value']} ({result['gate_source']}), tau {result['tau']} "
        f"({result['tau_source']}), ordinary activations from {result['statistics_from']}, "
        f"criterion {result['criterion']}. "
        f"{suppressed} of {len(memorized)} memorized prompts suppressed by {confirmed}, "
        f"{len(result['prompts']) - len(memorized)} not memorized; "
        f"{len(result['neurons'])} neurons in all.{still}\n"
        f"Denoiser samples: {cost['samples']} to search, {cost['calibration_samples']} to "
        f"calibrate, {cost['check_samples']} to check, {cost['trajectory_samples']} to draw "
        f"trajectories; {cost['seconds']} s, {cost['peak_memory_mb']} MB at the peak."
    )


def print_comparison(data: dict[str, Any]) -> None:
    """The table of a `Comparison`, as its reports begin with it."""
    from nemo_prune.compare.render import near, spread
    from nemo_prune.compare.summary import COLUMNS
    from nemo_prune.compare.table import headline

    measure = headline(data)
    columns = [name for name in COLUMNS if any(row["columns"][name] for row in data["table"])]
    table = Table(header_style="bold", pad_edge=False)
    for name in ("method", "kind"):
        table.add_column(name, no_wrap=True)
    for name in ("near", *columns, "neurons", "seconds a prompt"):
        table.add_column(name, justify="right")
    for row in data["table"]:
        found = [
            row["columns"][name].get("clip" if name == "alignment" else measure) for name in columns
        ]
        table.add_row(
            row["method"],
            row["kind"],
            near(row["near"]),
            *("–" if one is None else f"{one['median']:.2f}" for one in found),
            spread(row["neurons"], 1),
            spread(row["seconds"], 1),
        )
    console().print(table)


def print_verification(data: dict[str, Any]) -> None:
    """The table of prompts, the verdict and the notes of a `Report`."""
    from nemo_prune.report.verdict import near_text, target_lines, verdict

    shown = console()
    _print_statuses(shown, data["prompts"], {"pictures near": lambda entry: near_text(entry, data)})
    lines = target_lines(data)
    for line in lines[:_ROWS]:
        shown.print(line, markup=False)
    if len(lines) > _ROWS:
        shown.print(f"... and {len(lines) - _ROWS} more training pictures (--report FILE)", markup=False)
    for line in (verdict(data), *data["notes"]):
        shown.print(line, markup=False)


def _print_statuses(
    shown: Console, entries: list[dict[str, Any]], more: Mapping[str, Callable[[dict[str, Any]], str]]
) -> None:
    """A table of prompts with their status and scores; `more`: title of a column -> its text."""
    scores = {"score_before": "score before", "score_after": "score after"}
    if any(entry.get("trajectory") is not None for entry in entries):
        scores["trajectory"] = "r"
    place = _place_title(entries)
    table = _table("prompt", *place, "status", *scores.values(), *more)
    for entry in entries:
        style = _STYLES.get(entry["status"], _UNSOLVED)
        cells = [str(entry["index"]), *_place(entry, place), f"[{style}]{entry['status']}[/]"]
        cells += [_score(entry.get(key)) for key in scores] + [text(entry) for text in more.values()]
        table.add_row(*cells)
    shown.print(table)


def print_findings(result: dict[str, Any]) -> None:
    """The ranked table of `detect` and its verdict, on standard output: it is what was asked for."""
    shown = Console(highlight=False, emoji=False)
    ranked = sorted(result["prompts"], key=lambda entry: (-entry["score"], entry["index"]))
    with_text = "text" in ranked[0]
    place = _place_title(ranked)
    cut = any(entry.get("truncated") for entry in ranked)
    table = _table("prompt", *place, "memorized", "score", "noise norm", "seeds",
                   *["truncated"] * cut, *["text"] * with_text)  # fmt: skip
    scored = result.get("scored", len(ranked))  # of a stream, `prompts` are the highest scores alone
    rows = min(max(_ROWS, result["memorized"]), len(ranked))
    for entry in ranked[:rows]:
        table.add_row(
            str(entry["index"]), *_place(entry, place),
            "[bold red]yes[/]" if entry["memorized"] else "[dim]no[/]",
            _score(entry["score"]), _score(entry["noise_norm"]), str(entry["seeds"]),
            *([("yes" if entry["truncated"] else "")] if cut else []),
            *([escape(one_line(entry["text"]))] if with_text else []),
        )  # fmt: skip
    shown.print(table)
    if scored > rows:
        if "scored" in result:
            more = f"... and {scored - rows} more with lower scores (-o FILE has all)"
        else:
            more = f"... and {scored - rows} more that are not (--json, --csv FILE)"
        shown.print(more, markup=False)
    gate = result["gate"]
    measured = ""
    if gate["fpr"] is not None:
        measured = f" for a false positive rate of {gate['fpr']:g}, {interval_text(gate)}"
    if gate["extrapolated"]:
        measured += f"; {gate['prompts']} ordinary prompts are too few to see that rate"
    lines = [
        f"{result['memorized']} of {scored} prompts are memorized. Gate {gate['value']:.3f} "
        f"({result['gate_source']}{measured}), tau {result['tau']:.3f} "
        f"({result['tau_source']}). Denoiser samples: {result['cost']['samples']} to score, "
        f"{result['cost']['calibration_samples']} to calibrate."
    ]
    if early := result.get("clear_early", sum(entry.get("lower_bound", False) for entry in ranked)):
        lines.append(
            f"{early} of {scored} prompts were clear after fewer than {result['seeds']} seeds: "
            f"their scores are lower bounds, and ranks among different numbers of seeds mean little "
            f"(--all-seeds takes all)."
        )
    if cut:
        lines.append("truncated: the model sees, and the score is of, what the prompt begins with.")
    if rates := result["evaluation"]:
        lines += [
            f"{name}: AUROC {rates[key]['auroc']:.3f}, TPR at 1 % FPR {rates[key]['tpr_at_fpr_1']:.3f}"
            for key, name in (("score", "score"), ("noise_norm", "noise norm"))
        ]
        lines.append(
            f"accuracy at tau {rates['accuracy_at_tau']:.3f}, at the gate "
            f"{rates['accuracy_at_gate']:.3f}; false findings at the gate "
            f"{rates['false_findings_at_gate']:.3f}"
        )
    for line in lines:
        shown.print(line, markup=False)


def _table(*columns: str) -> Table:
    """An empty table; words to the left, numbers to the right."""
    table = Table(header_style="bold", pad_edge=False)
    for name in columns:
        left = name in ("status", "memorized", "text")
        # Folded where a terminal is narrow: a score that is cut to 0... says nothing. Titles give way
        # first, so that no status is broken within a word.
        table.add_column(
            name, justify="left" if left else "right", overflow="fold", no_wrap=name == "status"
        )
    return table


def _place_title(entries: list[dict[str, Any]]) -> list[str]:
    """The column of where each prompt stands: its line, with the file if there are several."""
    files = {entry.get("file") for entry in entries}
    return [] if None in files else ["line" if len(files) == 1 else "file:line"]


def _place(entry: dict[str, Any], title: list[str]) -> list[str]:
    return [
        escape(f"{entry['file']}:{entry['line']}" if ":" in one else str(entry["line"])) for one in title
    ]


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
