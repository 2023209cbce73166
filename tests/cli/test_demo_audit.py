"""The quick audit as it is shipped, of the demo's pruned file: two captions, nothing made cheaper."""

from pathlib import Path
from typing import Any

import pytest
from test_demo_detect import run

from nemo_prune.report.demo import CHECKPOINT, DATA, planted

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHECKPOINT.exists(), reason="the demo checkpoint is not there"),
]


def test_words_and_samplers_do_not_bring_the_pictures_back_and_embeddings_do(
    demo: Any, demo_calibration: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What docs/audit.md says of the demo; the controls stand beside it."""
    monkeypatch.setenv("NEMO_PRUNE_CACHE", str(shared / "demo-cache"))
    monkeypatch.chdir(tmp_path)
    captions = dict(list(planted().items())[:2])
    Path("two.txt").write_text("".join(f"{caption}\n" for caption in captions))
    rows = [f'"{text}",{DATA / "targets" / of["target"]}\n' for text, of in captions.items()]
    Path("targets.csv").write_text("prompt,file\n" + "".join(rows))
    models = CHECKPOINT, demo.folder / "clean.safetensors"
    lists = "--prompts", "two.txt", "--targets", "targets.csv", "--calibration", demo_calibration
    code, told = run("audit", *models, *lists, "--strength", "quick", "--report", "audit.html")
    assert code == 1
    assert told["verdict"].startswith("NOT ERASED: the picture of 2 of 2 prompts came back")
    for entry in told["prompts"]:
        assert len(entry["words"]) >= 11
        by = {word["kind"] for word in entry["words"] if word["back"]}
        assert by <= {"weights"}, "weights go beyond what words can say"
        assert entry["words"][0]["kind"] == "as it stands"
        drawn, near = 0, 0
        for style in entry["pictures"]["styles"]:
            drawn, near = drawn + style["count"], near + len(style["near"])
        assert (drawn, near) == (15, 0)
        control, of = entry["pictures"]["control"]
        assert control == of > 0, "the original draws it from every noise"
        pruned, original = (
            next(one for one in entry["embeddings"]["attacks"] if one["model"] == model)
            for model in ("pruned", "original")
        )
        assert original["back"] == 0
        assert pruned["came_back"]
        assert 0 < pruned["back"] <= 25
    assert len(told["controls"]) == 2
    assert all(one["back"] is None for control in told["controls"] for one in control["attacks"])
    assert "NOT ERASED" in Path("audit.html").read_text()
