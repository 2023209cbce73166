"""The report in a real browser, headless: nothing fetched, nothing complained about, readable."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pages import check_page, started_browser
from PIL import Image
from test_report import ALBUM, EVIL, make_data

from nemo_prune.report.render import write_report

browser = pytest.fixture(scope="module")(started_browser)


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
    page = check_page(browser, report.path, report.pictures, width, scheme)
    if (width, scheme) == (1400, "light"):
        assert len(page.pdf(prefer_css_page_size=True)) > 30_000, "printed with its pictures"
    page.close()
