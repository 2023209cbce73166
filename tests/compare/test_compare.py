"""The comparison with made-up methods: what is kept, what is measured, what the table says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
from fakes import DRAWN, FakeBench, FakeLikeness, FakeMethod, fake_methods
from pages import check_page, started_browser
from PIL import Image
from tiny import Told, write_small

from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.compare import run as job
from nemo_prune.compare import tasks
from nemo_prune.compare.quality import real_pictures
from nemo_prune.compare.render import to_html, to_json, to_markdown, write_compare
from nemo_prune.compare.run import CompareInputs, Comparison, compare
from nemo_prune.compare.table import to_csv, verdict
from nemo_prune.errors import CheckpointError, OutputError
from nemo_prune.options import Options

PROMPTS = ("the red house", "a lamp by someone", "my <b>third</b> one")
USED = [{"name": "ms_ssim", "meaning": "correlation"}]
ORDINARY = ("a cat", "a dog", "a boat", "the sea", "a tree", "two cups")


browser = pytest.fixture(scope="module")(started_browser)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("compare") / "model.safetensors", side=16)


@pytest.fixture
def inputs(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CompareInputs:
    monkeypatch.setattr(job, "Bench", FakeBench)
    monkeypatch.setattr(tasks, "memorization_score", lambda _bench, method, *_more: method.score)
    DRAWN.clear()
    FakeBench.opened = 0
    target = tmp_path / "target.png"
    memorized = FakeBench(None, PROMPTS).picture(PROMPTS[0], 99, True)
    Image.fromarray(memorized).save(target)
    FakeBench.opened = 0
    return CompareInputs(
        checkpoint=recognize(model), prompts=PROMPTS, ordinary=ORDINARY, ordinary_from="made up",
        options=Options(device="cpu"), methods=fake_methods(), likeness=FakeLikeness(used=USED),
        kinds=("verbatim", "template", "template"), targets={0: target}, images=3, ordinary_images=1,
        steps=3, guidance=1.0,
    )  # fmt: skip


def done(inputs: CompareInputs, folder: Path, **how: Any) -> tuple[Comparison, Told]:
    told = Told()
    return compare(inputs, told, folder, **how), told


def rows(found: Comparison, kind: str = "all") -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in found.data["table"] if row["kind"] == kind}


def test_who_suppresses_is_told_from_who_does_not(inputs: CompareInputs, tmp_path: Path) -> None:
    found, told = done(inputs, tmp_path / "work")
    table = rows(found)
    assert table["none"]["near"] == table["useless"]["near"] == [9, 9]
    assert table["good"]["near"][0] < 3
    assert table["none"]["columns"]["generated"]["ms_ssim"]["median"] == 1
    assert table["none"]["columns"]["original"]["ms_ssim"]["median"] > 0.9
    assert table["good"]["columns"]["original"]["ms_ssim"]["median"] < 0.5
    assert table["good"]["columns"]["original"]["ms_ssim"]["prompts"] == 1, "one has a target"
    assert table["good"]["columns"]["diversity"]["ms_ssim"]["median"] < 0.5
    assert table["broken"]["prompts"] == 0
    assert table["broken"]["errors"] == 3
    assert "broken did not run: does not apply here" in told.notes
    assert rows(found, "verbatim")["good"]["prompts"] == 1
    assert table["good"]["neurons"]["mean"] == 2
    assert table["union"]["samples"]["mean"] == 4, "a third of what the whole list took"
    assert table["good"]["picture_samples"] == 3
    assert (table["none"]["score"]["mean"], table["good"]["score"]["mean"]) == (0.9, 0.45)
    assert table["useless"]["score"] is None
    said = verdict(found.data)
    assert said.startswith("Unpruned, 9 of 9 pictures are near what was memorized.")
    assert "good" in said.partition("Not so")[0]
    assert "useless" in said.partition("Not so: ")[2]
    effects = {row["method"]: row for row in found.data["quality"]}
    assert [effects[name]["drift"] for name in ("none", "good", "useless", "union", "broken")] == [
        0, 0.5, 0, 0.75, None
    ]  # fmt: skip
    assert effects["useless"]["same"]["ms_ssim"]["mean"] == 1
    assert not (tmp_path / "work").exists()


def test_nothing_is_drawn_or_searched_twice(
    inputs: CompareInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, whole = tmp_path / "work", replace(inputs, methods=inputs.methods[:4])
    expected, _ = done(whole, tmp_path / "other")
    DRAWN.clear()
    draw = FakeMethod.draw

    def interrupted(self: FakeMethod, bench: Any, prompt: str, state: Any, seeds: Any) -> Any:
        if (self.name, prompt) == ("good", PROMPTS[1]):
            raise KeyboardInterrupt
        return draw(self, bench, prompt, state, seeds)

    monkeypatch.setattr(FakeMethod, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        done(whole, work)
    assert "lamp" not in (work / "journal").read_text(), "no prompts in a journal"
    monkeypatch.setattr(FakeMethod, "draw", draw)
    before = list(DRAWN)
    with pytest.raises(OutputError, match="work"):
        done(whole, work)
    searched = whole.methods[1].prepared  # type: ignore[attr-defined]
    searched.clear()
    found, _ = done(whole, work, resume=True)
    assert DRAWN[len(before)] == ("good", PROMPTS[1])
    assert searched == [PROMPTS[2]], "what was found before is known"
    for name in ("table", "quality", "prompts"):
        assert _timeless(found.data[name]) == _timeless(expected.data[name])


def _timeless(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: _timeless(value) for key, value in found.items() if "seconds" not in key}
    return [_timeless(one) for one in found] if isinstance(found, list) else found


def test_a_kept_folder_takes_more_methods_and_prompts(inputs: CompareInputs, tmp_path: Path) -> None:
    keep = tmp_path / "kept"
    few = replace(inputs, methods=inputs.methods[:2], prompts=PROMPTS[:2], kinds=())
    done(few, keep, keep=True)
    assert len(list(keep.glob("good/*.png"))) == 6
    assert "the red house" not in (keep / "prompts.csv").read_text()
    DRAWN.clear()
    done(replace(inputs, methods=inputs.methods[:3], kinds=()), keep, keep=True, resume=True)
    again = {name for name, prompt in DRAWN if prompt in PROMPTS[:2]}
    assert again == {"useless"}
    assert {name for name, prompt in DRAWN if prompt == PROMPTS[2]} == {"none", "good", "useless"}
    DRAWN.clear()
    opened = FakeBench.opened
    again_found, _ = done(replace(inputs, methods=inputs.methods[:3]), keep, keep=True, resume=True)
    assert (DRAWN, FakeBench.opened) == ([], opened), "no model is loaded"
    assert rows(again_found, "verbatim")["good"]["prompts"] == 1
    done(replace(inputs, methods=inputs.methods[:3]), keep, keep=True, resume=True, redo=["good"])
    assert {name for name, prompt in DRAWN if prompt in PROMPTS} == {"good"}
    DRAWN.clear()
    done(replace(inputs, methods=inputs.methods[:2]), keep, keep=True, resume=True, redo=["none"])
    assert "good" not in {name for name, prompt in DRAWN if prompt in PROMPTS}
    assert "none" in {name for name, _ in DRAWN}
    with pytest.raises(OutputError, match="other options"):
        done(replace(inputs, images=2), keep, keep=True, resume=True)
    (keep / "good" / next(keep.glob("good/*.png")).name).unlink()
    with pytest.raises(OutputError, match="begin anew"):
        done(replace(inputs, targets={}), keep, keep=True, resume=True)


def test_a_model_that_draws_nothing_is_an_error(inputs: CompareInputs, tmp_path: Path) -> None:
    methods = [FakeMethod("none", fails=True)]
    with pytest.raises(CheckpointError, match="does not apply here"):
        done(replace(inputs, methods=methods), tmp_path / "work")


def test_distances_are_to_the_unpruned_models_other_pictures_or_to_real_ones(
    inputs: CompareInputs, tmp_path: Path
) -> None:
    import torch

    from nemo_prune.compare.quality import Extractor

    def describe(pictures: Any) -> torch.Tensor:
        return torch.tensor(np.stack([one.mean((0, 1)) for one in pictures]))

    extractor = Extractor("inception", describe, {"name": "inception", "file": "i.pt", "sha256": ""})
    asked = replace(inputs, methods=inputs.methods[:2], extractors=[extractor])
    found, _ = done(asked, tmp_path / "kept", keep=True)
    assert {"fid", "kid"} <= found.data["quality"][0].keys()
    assert found.data["quality"][0]["fid"] > 0, "other noises are the floor"
    assert len(list((tmp_path / "kept" / "reference").rglob("*.png"))) == len(ORDINARY)
    real = tmp_path / "real"
    real.mkdir()
    for number in range(3):
        Image.fromarray(np.full((8, 8, 3), 80 * number, np.uint8)).save(real / f"{number}.png")
    other = replace(asked, real=real_pictures(real))
    again, _ = done(other, tmp_path / "kept", keep=True, resume=True)
    assert again.data["quality"][0]["fid"] > found.data["quality"][0]["fid"]
    assert "real pictures" in to_markdown(again.data, {})


def test_every_form(inputs: CompareInputs, tmp_path: Path) -> None:
    found, _ = done(replace(inputs, show_prompts=True), tmp_path / "work")
    page = to_html(found.data, found.album)
    assert "my &lt;b&gt;third&lt;/b&gt; one" in page
    assert "<b>third" not in page
    assert page.count("<img") == 3 * 4 * 2 + 1, "two of each method that ran, and a target"
    assert page.count('class="near"') == 3 * 2 * 2
    assert page.count("<circle") == 4 + 2 * 3, "drift of four; neurons of three prompts by two"
    assert "http" not in page.replace("https://", "").replace("arXiv", "") or 'src="http' not in page
    markdown = to_markdown(found.data, {})
    assert "| good | verbatim | 1 |" in markdown
    assert "no SSCD file was given" in markdown
    assert '"verdict"' in to_json(found.data, {})
    table = to_csv(found.data).splitlines()
    assert len(table) == 1 + 5 * 3
    assert "original_ms_ssim_median" in table[0]
    assert "seconds_D3_mean" in table[0]
    hidden, _ = done(inputs, tmp_path / "other")
    for text in (to_html(hidden.data, {}), to_markdown(hidden.data, {}), to_json(hidden.data, {})):
        assert "red house" not in text


def test_at_most_some_prompts_are_shown_of_each_kind(inputs: CompareInputs, tmp_path: Path) -> None:
    found, _ = done(replace(inputs, shown=2), tmp_path / "work")
    assert sorted(found.album) == [0, 1], "one of each kind"
    assert fakes.SIDE < 256


def test_the_page_is_whole_and_readable(browser: Any, inputs: CompareInputs, tmp_path: Path) -> None:
    found, _ = done(replace(inputs, show_prompts=True), tmp_path / "work")
    path = tmp_path / "compare.html"
    write_compare(found.data, found.album, path)
    for width, scheme in ((400, "dark"), (1400, "light")):
        check_page(browser, path, path.read_text().count("<img"), width, scheme).close()
