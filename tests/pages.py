"""A page in a real browser, headless: nothing fetched, nothing complained about, readable."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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
        const dot = element.previousElementSibling;  // a number in a dot of a plot
        if (dot?.tagName === 'circle' && element.matches('.in')) return getComputedStyle(dot).fill;
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


def started_browser() -> Iterator[Any]:
    """Chromium; skips where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = os.environ.get("NEMO_PRUNE_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("no Chromium here: install one, or name it in NEMO_PRUNE_CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox"], timeout=_PATIENCE
        )
        yield started
        started.close()


def check_page(
    browser: Any, path: Path, pictures: int, width: int, scheme: str, texts: int = 200
) -> Any:
    """Check that the page is whole and readable, with so many pictures and texts; the page, open."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(_PATIENCE)
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("dialog", lambda dialog: (messages.append("a dialog"), dialog.dismiss()))
    page.on("request", lambda request: messages.append(request.url))
    page.goto(path.as_uri())
    assert [one for one in messages if not one.startswith("data:")] == [path.as_uri()]
    counts = page.evaluate(_COUNTS)
    assert counts["width"] <= width, "the page itself must not scroll sideways"
    assert counts["cut"] == 0, "the table of prompts is whole at any width"
    assert counts["broken"] == 0
    assert counts["images"] == pictures
    found = page.evaluate(_TEXTS)
    assert len(found) > texts
    for text in found:
        assert text["contrast"] >= 4.5, text
        assert text["size"] >= 8, text
    background = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(252, 252, 250)") == (scheme == "light")
    return page
