"""The report from made-up data: complete, self-contained, and no way in for a prompt's text."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from nemo_prune.errors import OptionError, OutputError
from nemo_prune.report.render import (
    histogram,
    to_html,
    to_json,
    to_markdown,
    write_card,
    write_report,
)
from nemo_prune.report.verdict import outlook, verdict

DOT = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
EVIL = '<script>alert("x")</script> | [link](http://example.com) <img src=http://example.com/x.png>'
VOID = {"meta", "link", "img", "br"}


def make_data(text: str | None = None, status: str = "suppressed") -> dict[str, Any]:
    scores = {"ms_ssim": 0.81, "edges": 0.7, "colour": 0.6}
    target = scores | {"region": 0.9}
    pictures = {
        "before_after": scores, "seeds_before": scores, "seeds_after": scores, "target_before": target,
        "target_after": target, "target_unrelated": target, "near_before": 2, "near_after": 1,
        "near_above": {"target": {"ms_ssim": 0.55}, "consensus": {"edges": 0.45}},
    }  # fmt: skip
    one = {"score_before": 0.9, "score_after": 0.1, "within_after": 0.2, "same_seed": 0.15}
    memorized = one | {
        "index": 0, "status": status, "score_own": 0.12, "pictures": pictures,
        "neurons": [{"layer": f"{LAYER}.to_v", "row": 3}],
    }  # fmt: skip
    if text is not None:
        memorized["text"] = text
    return {
        "format": "nemo-prune-report/1", "version": "0.1.0", "created": "2026-01-01T00:00:00+00:00",
        "seconds": 12.5,
        "original": {"path": "model.safetensors", "sha256": "a" * 64},
        "pruned": {"path": "clean.safetensors", "sha256": "b" * 64},
        "options": {"tau": 0.428, "tau_source": "published", "gate": 0.5, "gate_source": "given",
                    "seeds": 10,
                    "criterion": "cross-seed"},
        "prompts": [
            memorized,
            one | {"index": 1, "status": "not memorized", "score_before": 0.2, "score_own": None,
                   "neurons": [], "pictures": None},
        ],
        "ordinary": [one | {"index": 0, "score_own": None, "pictures": {"before_after": scores,
                     "seeds_before": scores | {"ms_ssim": 0.3, "edges": 0.321},
                     "seeds_after": scores | {"edges": 0.123}}}],
        "drift": {
            "layers": [{"layer": LAYER, "removed": 1, "pruned": 0.02, "random": 0.01}],
            "prompts": 20, "pruned": 0.02, "random": 0.016, "random_draws": [0.015, 0.017],
            "ratio": 1.25,
        },
        "pictures": {"images": 2, "ordinary_images": 2, "steps": 50, "guidance": 7.0},
        "measures": [{"name": name, "meaning": "x"} for name in target]
        + [{"name": "sscd", "meaning": "y", "file": "s.pt", "sha256": "c" * 64}],
        "layers": [{"layer": f"{LAYER}.to_v", "rows": 320, "removed": [3]}],
        "neurons": 1, "only_rows": True,
        "shared": [{"layer": f"{LAYER}.to_v", "row": 3, "prompts": [0, 1]}],
        "cost": {"samples": 400}, "limits": ["It is not erased."],
        "command": "nemo-prune verify 'a b' c",
    }  # fmt: skip


ALBUM: dict[str, Any] = {
    "prompts": {0: {"target": DOT, "before": [DOT, DOT], "after": [DOT, DOT], "noise_before": DOT,
                    "noise_after": DOT}},
    "ordinary": {0: {"before": [DOT, DOT], "after": [DOT, DOT]}},
}  # fmt: skip


class Page(HTMLParser):
    """Checks nesting, and keeps tags with attributes, and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_from_outside() -> None:
    html = to_html(make_data(), ALBUM)
    page = Page(html)
    assert not {"script", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, value)
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in html
    assert "@import" not in html
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 11
    assert all(image["alt"] for image in images)
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {a["href"] for tag, a in page.tags if tag == "a"} <= {f"#{name}" for name in ids}


def test_a_prompts_text_is_shown_only_if_it_is_there_and_never_acts() -> None:
    page = Page(to_html(make_data(EVIL), ALBUM))
    assert EVIL in page.text
    assert "script" not in {tag for tag, _ in page.tags}
    assert len([1 for tag, _ in page.tags if tag == "img"]) == 11
    text = to_markdown(make_data(EVIL), ALBUM)
    assert "<script" not in text
    assert "<img" not in text
    row = next(line for line in text.splitlines() if "alert" in line)
    plain = next(line for line in text.splitlines() if line.startswith("| 1 |"))
    assert row.count("|") == plain.count("|")
    assert "[link](" not in text


@pytest.mark.parametrize("write", [to_html, to_markdown])
def test_every_form_tells_the_same(write: Any) -> None:
    data = make_data()
    text = re.sub(r"\s+", " ", write(data, ALBUM)).replace("\\", "")
    assert verdict(data) in text
    for wanted in ("0.900", "suppressed", "not memorized", "2.00 %", "a" * 64, "b" * 64, "c" * 64,
                   "It is not erased.", "0.428", "12.5 s", "down_blocks.0.attentions.0",
                   "the original's nearest picture", "among seeds, before", "0.321",
                   "0.123"):  # fmt: skip
        assert wanted in text, wanted
    assert "verify" in text


def test_markdown_tables_are_whole() -> None:
    blocks = re.findall(r"(?:^\|.*\n)+", to_markdown(make_data(), ALBUM), re.MULTILINE)
    assert len(blocks) == 6
    for block in blocks:
        assert len({line.replace("&#124;", "").count("|") for line in block.splitlines()}) == 1, block
        assert set(block.splitlines()[1]) <= set("|-:")


def test_json_is_the_data_with_the_verdict() -> None:
    data = make_data()
    assert json.loads(to_json(data, ALBUM)) == data | {"verdict": verdict(data)}


def test_the_verdict_counts() -> None:
    assert verdict(make_data()) == (
        "1 of 1 memorized prompt suppressed; 1 of 2 pictures still near the memorized picture; "
        "ordinary prompts drift 2.00 %, 1.25 times what random neurons do; 1 neuron removed."
    )
    assert verdict(make_data(status="still memorized")).startswith("0 of 1 memorized prompt suppressed")
    assert verdict(make_data(status="not memorized")).startswith("None of 2 prompts is memorized")


def test_settled_needs_scores_and_pictures() -> None:
    data = make_data()
    assert outlook(data) == "unsettled"
    data["prompts"][0]["pictures"]["near_after"] = 0
    assert outlook(data) == "settled"
    assert outlook(data | {"prompts": [data["prompts"][0] | {"status": "not removable"}]}) == "unsettled"
    data["prompts"][0]["pictures"] = None
    assert outlook(data) == "open", "nobody looked at its pictures"


def test_without_pictures_drift_or_ordinary_prompts_it_still_is_a_report() -> None:
    data = make_data() | {"drift": None, "ordinary": [], "measures": [], "layers": [], "shared": [],
                          "neurons": 0,
                          "pictures": {"images": 0, "ordinary_images": 0, "steps": 50,
                                       "guidance": 7.0}}  # fmt: skip
    del data["command"]
    for entry in data["prompts"]:
        entry["pictures"] = None
        entry["score_own"] = None
    noise = {"prompts": {0: {"noise_before": DOT, "noise_after": DOT}}, "ordinary": {}}
    page = Page(to_html(data, noise))
    assert len([1 for tag, _ in page.tags if tag == "img"]) == 2
    assert "No pictures were asked for" in page.text
    data["pictures"]["skipped"] = "x: holds no VAE"
    assert "holds no VAE" in to_html(data, noise)
    assert "| similarity" not in to_markdown(data, {})


def test_histogram_keeps_what_lies_on_or_over_the_edges() -> None:
    counts = histogram([-1, 0, 0.049, 0.05, 0.999, 1.0, 1.5])
    assert counts[0] == 3
    assert counts[1] == 1
    assert counts[-1] == 3
    assert sum(counts) == 7


def test_files_are_new_and_of_a_known_kind(tmp_path: Path) -> None:
    for name in ("r.html", "r.md", "r.json"):
        write_report(make_data(), ALBUM, tmp_path / name)
    write_card(make_data(), tmp_path / "card.md")
    card = (tmp_path / "card.md").read_text()
    assert card.startswith("## ")
    assert verdict(make_data()) in card
    with pytest.raises(OutputError, match="exists already"):
        write_report(make_data(), ALBUM, tmp_path / "r.html")
    with pytest.raises(OptionError, match=r"\.html, \.md or \.json"):
        write_report(make_data(), ALBUM, tmp_path / "r.pdf")


def test_names_that_are_no_text_do_not_break_it(tmp_path: Path) -> None:
    data = make_data()
    data["pruned"] = {"path": "clean\udcff<b>.safetensors", "sha256": "b" * 64}
    for name in ("r.html", "r.md", "r.json"):
        write_report(data, ALBUM, tmp_path / name)
        assert "<b>" not in (tmp_path / name).read_bytes().decode() or name == "r.json"


@pytest.mark.parametrize("text", [None, "a red fox"])
def test_the_page_shows_where_each_prompt_stands(text: str | None) -> None:
    data = make_data(text)
    for entry, line in zip(data["prompts"], (7, 12), strict=True):
        entry |= {"file": "lists/mem.txt", "line": line}
    html = to_html(data, ALBUM)
    table = html[html.index('<h2 id="prompts">') :]
    rows = re.findall("<tr>.*?</tr>", table[: table.index("</table>")], re.S)[1:]
    places = [re.findall(r"lists/mem\.txt:\d+", row) for row in rows]
    assert places == [["lists/mem.txt:7"], ["lists/mem.txt:12"]]


def test_no_table_is_cut_off_at_a_height() -> None:
    html = to_html(make_data(), ALBUM)
    style = html[html.index("<style>") : html.index("</style>")]
    assert ".wide { overflow-x: auto; }" in style  # the only frame around a table
    assert not re.search(r"max-height|overflow-y|overflow: (hidden|auto|scroll|clip)", html)
    assert not re.search(r"(?<![-\w])height: (?!auto|\.65rem)", style)  # but for pictures and bars
