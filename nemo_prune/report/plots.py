"""Plots of what was found, as SVG and PNG files: for papers and slides, where a report is too much.

    check_plots(folder)                        # before any work
    write_plots(of_localization(found), folder)

Drawn by matplotlib, an optional extra, through its figures alone: no window, no pyplot, no setting of
anybody's stays changed. The same figures give the same bytes. Prompts appear by number.
"""

import importlib.util
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_prune.checkpoint.neurons import short_name
from nemo_prune.checkpoint.statuses import Status
from nemo_prune.errors import OptionError, OutputError, option
from nemo_prune.files.atomic import check_new_folder, new_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nemo_prune.localize.localize import Localization
    from nemo_prune.scoring.detection_run import Findings

EXTRA = "plots"
_FORMATS = ("svg", "png")
_BINS = 20
_WIDTH, _LINE, _TALLEST = 7.0, 0.22, 30.0  # inches: of a figure, of a bar, and at most
_NAMED = 80  # prompts from which on their numbers would overlap
COLOURS = {"before": "#b4541a", "after": "#1f6fb2", "plain": "#7c8794", "ink": "#1d2126"}
_DPI = 150


@dataclass(frozen=True)
class Plotted:
    """What is plotted.

    Attributes:
        scores: (what they are of, its colour, scores in [0, 1]), a histogram each.
        tau, gate: the thresholds.
        lower_bounds: how many of the scores are of fewer seeds than the others.
        layers: (value layer, neurons removed, neurons), in the order of the network.
        pairs: (prompt number, score before, score after) of the memorized prompts.
    """

    scores: Sequence[tuple[str, str, Sequence[float]]]
    tau: float
    gate: float
    lower_bounds: int = 0
    layers: Sequence[tuple[str, int, int]] = ()
    pairs: Sequence[tuple[int, float, float]] = field(default=())


def check_plots(folder: Path) -> None:
    """Refuse early what could not be plotted late; imports no torch.

    Raises OptionError where matplotlib is missing, OutputError where no new folder could be made.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise OptionError(
            f"{option('plots')}: needs matplotlib, which is not installed; pip install "
            f"'nemo-prune[{EXTRA}]'"
        )
    if folder.suffix.lower() in (".png", ".svg", ".pdf", ".jpg"):
        raise OutputError(f"{folder}: becomes a folder of SVG and PNG files; name it {folder.stem}")
    check_new_folder(folder)


def write_plots(plotted: Plotted, folder: Path) -> list[Path]:
    """Write the new folder with every plot that there are figures for, each as SVG and PNG.

    scores: histograms with tau and the gate. neurons: how many by value layer. before-after: of each
    memorized prompt. Raises as `check_plots`, and OutputError.
    """
    check_plots(folder)
    drawn: dict[str, Callable[[Plotted], Figure]] = {"scores": _scores}
    if any(removed for _, removed, _ in plotted.layers):
        drawn["neurons"] = _neurons
    if plotted.pairs:
        drawn["before-after"] = _before_after
    return write_figures({name: draw(plotted) for name, draw in drawn.items()}, folder)


def write_figures(figures: "Mapping[str, Figure]", folder: Path) -> list[Path]:
    """Write a new folder with figures, each as SVG and PNG; raises OutputError."""
    names = [f"{name}.{kind}" for name in figures for kind in _FORMATS]
    with new_folder(folder) as place:
        for name, figure in figures.items():
            for kind in _FORMATS:
                (place / f"{name}.{kind}").write_bytes(_rendered(figure, kind))
    return [folder / name for name in names]


# --------------------------------------------------------------------------------- what of it


def of_findings(found: "Findings") -> Plotted:
    """The scores of `detect`: by their labels where there are some, else by the gate."""
    groups = [("memorized", "before", True), ("not memorized", "plain", False)]
    kinds = found.labels or [one.memorized for one in found.detections]
    said = " (label)" if found.labels else ""
    pairs = list(zip(found.detections, kinds, strict=True))
    scores = [
        (name + said, colour, [one.score for one, its in pairs if its is kind])
        for name, colour, kind in groups
    ]
    fewer = sum(one.seeds < found.seeds for one in found.detections)
    return Plotted(scores, found.thresholds.tau, found.thresholds.gate.value, fewer)


def of_localization(found: "Localization") -> Plotted:
    """The prompts of a manifest, as its check or, without one, its search left them."""
    records = found.manifest.prompts
    memorized = [r for r in records if r.status not in (Status.NOT_MEMORIZED, Status.NOT_SEARCHED)]
    pairs = [
        (record.index, record.score_before, record.score_after)
        for record in memorized
        if record.score_before is not None and record.score_after is not None
    ]
    others = [r.score_before for r in records if r.status == Status.NOT_MEMORIZED]
    neurons = found.manifest.neurons
    return Plotted(
        scores=_groups(pairs, [score for score in others if score is not None], "not memorized"),
        tau=found.tau,
        gate=found.thresholds.gate.value,
        layers=[
            (layer.name, sum(n.layer == layer.name for n in neurons), layer.rows)
            for layer in found.checkpoint.value_layers
        ],
        pairs=pairs,
    )


def of_report(data: Mapping[str, Any]) -> Plotted:
    """The figures of a `Report`'s data, the ordinary prompts' among them."""
    pairs = [
        (entry["index"], entry["score_before"], entry["score_after"])
        for entry in data["prompts"]
        if entry["status"] != Status.NOT_MEMORIZED
    ]
    return Plotted(
        scores=_groups(pairs, [entry["score_before"] for entry in data["ordinary"]], "ordinary prompts"),
        tau=data["options"]["tau"],
        gate=data["options"]["gate"],
        layers=[(one["layer"], len(one["removed"]), one["rows"]) for one in data["layers"]],
        pairs=pairs,
    )


def _groups(
    pairs: Sequence[tuple[int, float, float]], others: Sequence[float], name: str
) -> list[tuple[str, str, Sequence[float]]]:
    return [
        (name, "plain", others),
        ("memorized, before", "before", [before for _, before, _ in pairs]),
        ("memorized, after", "after", [after for _, _, after in pairs]),
    ]


# ---------------------------------------------------------------------------------- drawing


def new_figure(height: float) -> "tuple[Figure, Axes]":
    """An empty figure of the usual width."""
    # What draws in a notebook may be named there and not be installed; nothing is shown here.
    named = os.environ.pop("MPLBACKEND", None)
    try:
        from matplotlib.figure import Figure
    finally:
        if named is not None:
            os.environ["MPLBACKEND"] = named

    figure = Figure(figsize=(_WIDTH, min(_TALLEST, height)), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _thresholds(axes: "Axes", plotted: Plotted) -> None:
    for name, value, style in (("tau", plotted.tau, "--"), ("gate", plotted.gate, "-")):
        label = f"{name} {value:.3f}"
        axes.axvline(value, color=COLOURS["ink"], linestyle=style, linewidth=1, label=label)


def _scores(plotted: Plotted) -> "Figure":
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_figure(3.6)
    for name, colour, scores in plotted.scores:
        if scores:
            # What lies outside [0, 1] counts at its ends, as in the report.
            inside = [min(1.0, max(0.0, score)) for score in scores]
            axes.hist(inside, bins=_BINS, range=(0, 1), alpha=0.6, color=COLOURS[colour],
                      label=f"{name} ({len(scores)})")  # fmt: skip
    _thresholds(axes, plotted)
    axes.set_xlim(0, 1)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    fewer = f"; {plotted.lower_bounds} are lower bounds, of fewer seeds" if plotted.lower_bounds else ""
    axes.set_xlabel(f"memorization score{fewer}")
    axes.set_ylabel("prompts")
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize="small")
    return figure


def _neurons(plotted: Plotted) -> "Figure":
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_figure(1.2 + _LINE * len(plotted.layers))
    names = [short_name(layer) for layer, _, _ in plotted.layers]
    bars = axes.barh(names, [removed for _, removed, _ in plotted.layers], color=COLOURS["after"])
    texts = [f"{removed} of {rows}" if removed else "" for _, removed, rows in plotted.layers]
    axes.bar_label(bars, texts, padding=3, fontsize="small")
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("neurons removed")
    return figure


def _before_after(plotted: Plotted) -> "Figure":
    pairs = sorted(plotted.pairs, key=lambda pair: (-pair[1], pair[0]))
    figure, axes = new_figure(1.4 + _LINE * len(pairs))
    places = range(len(pairs))
    before, after = [pair[1] for pair in pairs], [pair[2] for pair in pairs]
    axes.hlines(places, before, after, color=COLOURS["plain"], linewidth=1)
    axes.scatter(before, places, color=COLOURS["before"], s=20, label="before", zorder=3)
    axes.scatter(after, places, color=COLOURS["after"], s=20, label="after", zorder=3)
    _thresholds(axes, plotted)
    shown = list(places) if len(pairs) <= _NAMED else []
    axes.set_yticks(shown, [str(pairs[place][0]) for place in shown])
    axes.set_ylabel("prompt")
    axes.set_xlim(0, 1.02)
    axes.invert_yaxis()
    axes.set_xlabel("memorization score")
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize="small")
    return figure


def _rendered(figure: "Figure", kind: str) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    # Ids that are always the same, text as text; the settings are as before when this is left.
    with matplotlib.rc_context({"svg.hashsalt": "nemo-prune", "svg.fonttype": "none"}):
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, dpi=_DPI, metadata=metadata)
    return buffer.getvalue()
