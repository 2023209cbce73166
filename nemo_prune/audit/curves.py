"""Dose-response curves of optimized embeddings, for a page and for files. Imports no torch.

A page holds them as SVG of its own, since matplotlib is an extra; files are drawn by matplotlib.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from nemo_prune.audit.outcome import Data, attacks_of, audited
from nemo_prune.audit.strength import THERE
from nemo_prune.report.plots import COLOURS, new_figure, write_figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 300, 44, 34, 10  # of the SVG, in its own units
_LOW, _HIGH = -0.2, 1.2  # r outside is drawn at the edge


@dataclass(frozen=True)
class Line:
    """One attack: its kind, the name of the kind, and (steps, r) at every budget."""

    kind: str
    points: tuple[tuple[int, float], ...]


KINDS = {
    "pruned": ("memorized, pruned model", "before", ""),
    "original": ("memorized, the original", "ink", "2 3"),
    "ordinary": ("ordinary picture, pruned model", "plain", "6 3"),
    "unseen": ("never seen, pruned model", "after", "6 3"),
}
"""Kind of attack -> what it is called, the name of its colour, its dashes."""


def lines(data: Data, only: int | None = None) -> list[Line]:
    """The attacks on one prompt's picture, or on all, with the controls."""
    found = []
    for entry in audited(data):
        if only is None or entry["index"] == only:
            found += [_line(one["model"], one) for one in attacks_of(entry)]
    found += [_line(one["kind"], attack) for one in data["controls"] for attack in one["attacks"]]
    return found


def _line(kind: str, attack: Data) -> Line:
    return Line(kind, tuple((row["steps"], row["remaining"]) for row in attack["curve"]))


def svg(shown: Sequence[Line]) -> Markup:
    """The curves as an SVG element; nothing for none."""
    if not shown:
        return Markup("")
    most = max(steps for line in shown for steps, _ in line.points) or 1
    wide, high = _WIDTH - _LEFT - 10, _HEIGHT - _BOTTOM - _TOP

    def place(steps: float, r: float) -> tuple[float, float]:
        inside = min(_HIGH, max(_LOW, r))
        return _LEFT + wide * steps / most, _TOP + high * (_HIGH - inside) / (_HIGH - _LOW)

    parts = []
    for r in (0.0, THERE, 1.0):
        x, y = place(0, r)
        dash = ' stroke-dasharray="3 3"' if r == THERE else ""
        parts.append(
            f'<line x1="{x:.0f}" y1="{y:.1f}" x2="{_WIDTH - 10}" y2="{y:.1f}" class="grid"{dash}/>'
        )
        parts.append(f'<text x="{x - 6:.0f}" y="{y + 4:.1f}" text-anchor="end">{r:g}</text>')
    for steps in sorted({steps for line in shown for steps, _ in line.points}):
        x, y = place(steps, _LOW)
        parts.append(f'<text x="{x:.1f}" y="{y + 15:.1f}" text-anchor="middle">{steps}</text>')
    parts.append(f'<text x="{_WIDTH - 10}" y="{_HEIGHT - 3}" text-anchor="end">steps of Adam</text>')
    # What was memorized is drawn last, over its controls.
    for kind in reversed(KINDS):
        _, colour, dash = KINDS[kind]
        stroke = _stroke(colour, dash)
        for line in shown:
            if line.kind == kind:
                at = [place(*point) for point in line.points]
                path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
                x, y = at[-1]
                parts.append(f'<polyline points="{path}" fill="none" {stroke} stroke-width="2"/>')
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" style="fill:var(--{colour})"/>')
    legend = "; ".join(
        f'<svg class="key" viewBox="0 0 24 8" aria-hidden="true"><line x1="0" y1="5" x2="24" y2="5" '
        f'{_stroke(colour, dash)} stroke-width="2"/></svg> {escape(name)}'
        for kind, (name, colour, dash) in KINDS.items()
        if any(line.kind == kind for line in shown)
    )
    return Markup(
        f'<figure class="curve"><div class="wide"><svg class="large" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'role="img" aria-label="r by steps of optimization">{"".join(parts)}</svg></div>'
        f"<figcaption>{legend}. r: 0 as alike as unrelated pictures, 1 as the original's own; from "
        f"{THERE:g} on whole pictures decide.</figcaption></figure>"
    )


def _stroke(colour: str, dash: str) -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'style="stroke:var(--{colour})"{dashes}'


def write_curves(data: Data, folder: Path) -> list[Path]:
    """Write the curves of all prompts together, and of each, as SVG and PNG into a new folder.

    Raises OptionError where matplotlib is missing, OutputError.
    """
    known = [entry["index"] for entry in audited(data) if attacks_of(entry)]
    shown = {"embeddings": lines(data)} | {
        f"embeddings-prompt-{index}": lines(data, index) for index in known
    }
    return write_figures({name: _figure(some) for name, some in shown.items()}, folder)


def _figure(shown: Sequence[Line]) -> "Figure":
    figure, axes = new_figure(3.6)
    named = set()
    for kind, (name, colour, dash) in KINDS.items():
        for line in shown:
            if line.kind == kind:
                steps, remaining = zip(*line.points, strict=True)
                axes.plot(
                    steps, remaining, color=COLOURS[colour], marker="o", markersize=3, linewidth=1.3,
                    linestyle="--" if dash else "-", label=None if kind in named else name,
                )  # fmt: skip
                named.add(kind)
    axes.axhline(THERE, color=COLOURS["ink"], linewidth=0.8, linestyle=":")
    axes.set_ylim(_LOW, _HIGH)
    axes.set_xlabel("steps of Adam on the embedding")
    axes.set_ylabel(f"r (whole pictures decide from {THERE:g} on)")
    if named:
        figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize="small")
    return figure
