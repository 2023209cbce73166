"""The report in a real browser, headless: nothing fetched, nothing complained about, readable."""

import base64
import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_report import ALBUM, EVIL, make_data

from nemo_prune.report.render import write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
_NAMES = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome")
_PATIENCE = 170_000  # milliseconds: a busy machine is no fault of the page
_COUNTS = """() => ({
    width: document.documentElement.scrollWidth,
    broken: [...document.images].filter(image => !image.naturalWidth).length,
    images: document.images.length,
    cut: [...document.querySelectorAll('.stack')].filter(
        table => table.scrollWidth > table.parentElement.clientWidth).length,
})"""
# Contrast of every text with what is behind it, by WCAG 2, and the size of its letters.
_TEXTS = """() => {
    const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
    const light = colour => {
        const [r, g, b] = numbers(colour).map(v => v / 255)
            .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = element => {
        for (let at = element; at; at = at.parentElement) {
            const colour = getComputedStyle(at).backgroundColor;
            if (numbers(colour)[3] !== 0) return colour;
        }
        return 'rgb(255, 255, 255)';
    };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const found = [];
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || element.closest('title, style')) continue;
        const style = getComputedStyle(element);
        const drawn = element.closest('svg');
        const [a, b] = [light(drawn ? style.fill : style.color), light(behind(element))];
        found.push({
            text: walker.currentNode.data.trim(),
            contrast: (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05),
            size: drawn ? element.getBoundingClientRect().height : parseFloat(style.fontSize),
        });
    }
    return found;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = os.environ.get("NEMO_PRUNE_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("no Chromium here: install one, or name it in NEMO_PRUNE_CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox"], timeout=_PATIENCE
        )
        yield started
        started.close()


@dataclass(frozen=True)
class Page:
    """A report, and how many pictures it must show."""

    path: Path
    pictures: int


@pytest.fixture(scope="module", params=["made up", pytest.param("demo", marks=pytest.mark.slow)])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The demo's own report, and one with all that a user may put into one."""
    if request.param == "demo":
        # Eight captions: target, two seeds before and after, noise differences; six ordinary ones.
        folder: Path = request.getfixturevalue("demo").folder
        return Page(folder / "report.html", 8 * (1 + 2 + 2 + 2) + 6 * 2 * 2)
    return Page(_made_up(tmp_path_factory), 12 * 11 + 4)


def _made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve prompts with pictures of 256 pixels, and long words wherever a user may put them."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(buffer, "PNG")
    uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    data = make_data(EVIL + " " + "word" * 60)
    data["pruned"]["path"] = "a_rather_long_name_of_a_checkpoint_" * 4 + ".safetensors"
    first = data["prompts"][0]
    statuses = ("suppressed", "still memorized", "not removable", "replicated")
    data["prompts"] = [first | {"index": i, "status": statuses[i % 4]} for i in range(12)]
    album = {
        "prompts": {
            i: ALBUM["prompts"][0] | {"before": [uri] * 4, "after": [uri] * 4} for i in range(12)
        },
        "ordinary": ALBUM["ordinary"],
    }
    path = tmp_path_factory.mktemp("browser") / "report.html"
    write_report(data, album, path)
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_is_whole_and_readable(browser: Any, report: Page, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(_PATIENCE)
    heard: list[str] = []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("dialog", lambda dialog: (heard.append("a dialog"), dialog.dismiss()))
    page.on("request", lambda request: heard.append(request.url))
    page.goto(report.path.as_uri())
    assert [one for one in heard if not one.startswith("data:")] == [report.path.as_uri()]
    counts = page.evaluate(_COUNTS)
    assert counts["width"] <= width, "the page itself must not scroll sideways"
    assert counts["cut"] == 0, "the table of prompts is whole at any width"
    assert counts["broken"] == 0
    assert counts["images"] == report.pictures
    texts = page.evaluate(_TEXTS)
    assert len(texts) > 200
    for text in texts:
        assert text["contrast"] >= 4.5, text
        assert text["size"] >= 8, text
    background = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(252, 252, 250)") == (scheme == "light")
    if (width, scheme) == (1400, "light"):
        assert len(page.pdf(prefer_css_page_size=True)) > 30_000, "printed with its pictures"
    page.close()
