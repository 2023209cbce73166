"""Plots as files: what they show, that they change nothing else, and what is said without matplotlib."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest
from PIL import Image
from tiny import run, write_small

from nemo_prune.checkpoint.statuses import Status
from nemo_prune.errors import OptionError, OutputError
from nemo_prune.report.plots import Plotted, check_plots, of_findings, of_report, write_plots
from nemo_prune.scoring.detect import Detection

LAYERS = [
    ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v", 2, 320),
    ("mid_block.attentions.0.transformer_blocks.0.attn2.to_v", 0, 1280),
]
PLOTTED = Plotted(
    scores=[("ordinary prompts", "plain", [0.1, 0.2, 0.21]), ("memorized, before", "before", [0.9, 1.1]),
            ("memorized, after", "after", [])],
    tau=0.428, gate=0.512, lower_bounds=2, layers=LAYERS, pairs=[(3, 0.7, 0.2), (8, 0.9, 0.3)],
)  # fmt: skip


def texts(path: Path) -> str:
    """All text of an SVG."""
    found = ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")
    return " | ".join("".join(element.itertext()) for element in found)


def test_every_plot_is_written_in_both_forms(tmp_path: Path) -> None:
    settings, backend = dict(matplotlib.rcParams), sys.modules.get("matplotlib.pyplot")
    written = write_plots(PLOTTED, tmp_path / "plots")
    assert dict(matplotlib.rcParams) == settings
    assert sys.modules.get("matplotlib.pyplot") is backend, "pyplot would choose a window"
    stems = ("scores", "neurons", "before-after")
    names = {f"{stem}.{kind}" for stem in stems for kind in ("svg", "png")}
    assert {path.name for path in written} == names == {p.name for p in (tmp_path / "plots").iterdir()}
    for path in written:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert picture.format == "PNG"
                low, high = picture.convert("L").getextrema()
                assert (low < 100, high) == (True, 255), "not blank"
    shown = texts(tmp_path / "plots" / "scores.svg")
    for text in ("tau 0.428", "gate 0.512", "ordinary prompts (3)", "memorized, before (2)",
                 "2 are lower bounds, of fewer seeds"):  # fmt: skip
        assert text in shown
    assert "memorized, after" not in shown
    shown = texts(tmp_path / "plots" / "neurons.svg")
    assert "down_blocks.0.attentions.0.0" in shown
    assert "2 of 320" in shown
    shown = texts(tmp_path / "plots" / "before-after.svg")
    assert "gate 0.512" in shown
    assert "3" in shown.split(" | ")
    assert "8" in shown.split(" | ")


def test_the_same_figures_give_the_same_bytes_and_a_folder_is_not_replaced(tmp_path: Path) -> None:
    one, two = (write_plots(PLOTTED, tmp_path / name) for name in "ab")
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    with pytest.raises(OutputError, match="a folder is never replaced"):
        write_plots(PLOTTED, tmp_path / "a")


def test_without_neurons_there_are_scores_alone(tmp_path: Path) -> None:
    bare = Plotted([("all", "plain", [0.5])], 0.4, 0.5)
    assert {path.stem for path in write_plots(bare, tmp_path / "plots")} == {"scores"}


def test_many_prompts_are_drawn_without_numbers(tmp_path: Path) -> None:
    many = Plotted([], 0.4, 0.5, pairs=[(index, 0.9, 0.1) for index in range(700)])
    write_plots(many, tmp_path / "plots")
    assert "| 650 |" not in texts(tmp_path / "plots" / "before-after.svg")
    with Image.open(tmp_path / "plots" / "before-after.png") as picture:
        assert picture.height <= 30 * 150


def test_without_matplotlib_it_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(OptionError, match=r"plots: needs matplotlib.*pip install 'nemo-prune\[plots\]'"):
        check_plots(tmp_path / "plots")
    model = write_small(tmp_path / "m.safetensors", side=16)
    (tmp_path / "p.txt").write_text("a fox\n")
    monkeypatch.setattr(
        "nemo_prune.scoring.opening.open_engine", lambda *_: pytest.fail("loaded the model")
    )
    for verb in (["detect", model], ["localize", model, "-o", tmp_path / "n"],
                 ["prune", model, "--dry-run"], ["verify", model, model]):  # fmt: skip
        result = run(*verb, "--prompts", tmp_path / "p.txt", "--plots", tmp_path / "plots")
        assert result.exit_code == 2
        assert "--plots: needs matplotlib" in result.stderr
        assert not (tmp_path / "plots").exists()


def test_labels_say_what_the_scores_of_detect_are_of() -> None:
    found = SimpleNamespace(
        labels=(True, False, True), seeds=4,
        detections=[
            Detection(i, score, 1.0, 4 - i, score > 0.5) for i, score in enumerate((0.9, 0.2, 0.3))
        ],
        thresholds=SimpleNamespace(tau=0.4, gate=SimpleNamespace(value=0.5)),
    )  # fmt: skip
    plotted = of_findings(found)  # type: ignore[arg-type]
    assert [(name, scores) for name, _, scores in plotted.scores] == [
        ("memorized (label)", [0.9, 0.3]),
        ("not memorized (label)", [0.2]),
    ]
    assert plotted.lower_bounds == 2
    found.labels = None
    assert [scores for _, _, scores in of_findings(found).scores] == [[0.9], [0.2, 0.3]]  # type: ignore[arg-type]


def test_a_reports_figures_are_plotted() -> None:
    data: dict[str, Any] = {
        "prompts": [
            {"index": 0, "status": Status.SUPPRESSED, "score_before": 0.9, "score_after": 0.1},
            {"index": 1, "status": Status.NOT_MEMORIZED, "score_before": 0.2, "score_after": 0.2},
        ],
        "ordinary": [{"index": 0, "score_before": 0.3}],
        "options": {"tau": 0.4, "gate": 0.5},
        "layers": [{"layer": "a", "rows": 9, "removed": [1, 2]}],
    }
    plotted = of_report(data)
    assert plotted.pairs == [(0, 0.9, 0.1)]
    assert [scores for _, _, scores in plotted.scores] == [[0.3], [0.9], [0.1]]
    assert plotted.layers == [("a", 2, 9)]


def test_what_draws_in_a_notebook_does_not_matter() -> None:
    """The backend that is named there need not be installed."""
    code = "import os; from nemo_prune.report.plots import new_figure; new_figure(2); "
    code += "print(os.environ['MPLBACKEND'])"
    environment = os.environ | {"MPLBACKEND": "module://no_such.backend"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "module://no_such.backend\n", done.stderr
