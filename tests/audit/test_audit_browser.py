"""The audit's page in a real browser."""

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from pages import check_page, started_browser
from PIL import Image
from test_outcome import attack, data, entry, word

from nemo_prune.audit.render import write_audit

browser = pytest.fixture(scope="module")(started_browser)


def _picture() -> str:
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audit in which everything came back, with long words wherever a user may put them."""
    uri = _picture()
    near = {"seed": 1, "by": ["region"], "picture": uri}
    styles = [{"drawn": "ddim, 20 steps, guidance 7", "count": 8, "near": [near]}]
    drawn = {"judged": True, "levels": {}, "control": [4, 4], "reference": uri, "worded": {},
             "silent": {}, "styles": styles}  # fmt: skip
    attacks = [{**one, "pictures": [uri]} for one in (attack("pruned", 10), attack("original", 0))]
    entries = [
        {**entry(index, word("a"), word("word" * 60, back=("score",))), "pictures": drawn,
         "text": "word" * 60, "embeddings": {"judged": True, "target": "training picture",
         "picture": uri, "chance": 0.1, "replica": 0.9, "attacks": attacks}}
        for index in range(8)
    ]  # fmt: skip
    control = {"kind": "ordinary", "number": 0, "given": False, "picture": uri,
               "attacks": [{**attack("pruned", None), "pictures": [uri]}]}  # fmt: skip
    unseen = {**control, "kind": "unseen", "given": True}
    found = {**data(*entries), "controls": [control, unseen]}
    found["pruned"]["path"] = "a_rather_long_name_of_a_checkpoint_" * 4 + ".safetensors"
    made = tmp_path_factory.mktemp("audit-browser") / "audit.html"
    write_audit(found, made)
    return made


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1400, "light")])
def test_the_page_is_whole_and_readable(browser: Any, path: Path, width: int, scheme: str) -> None:
    page = check_page(browser, path, path.read_text().count("<img"), width, scheme)
    assert page.locator("polyline").count() > 8
    page.close()
