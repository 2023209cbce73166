"""What is suppressed is never called more than that, in no text that anybody reads."""

import re
from pathlib import Path

import nemo_prune

ROOT = Path(nemo_prune.__file__).parent.parent
_TEXTS = {".md", ".py", ".j2", ".toml", ".yml", ".yaml"}


def test_the_word_erased_stands_only_after_not() -> None:
    places = [ROOT / "docs", ROOT / "nemo_prune", ROOT / "benchmarks", *ROOT.glob("*.md")]
    files = [
        file
        for place in places
        for file in ([place] if place.is_file() else sorted(place.rglob("*")))
        if file.suffix in _TEXTS
    ]
    assert len(files) > 100
    alone = []
    for file in files:
        text = " ".join(file.read_text(encoding="utf-8").split())
        alone += [
            f"{file.relative_to(ROOT)}: {text[max(0, found.start() - 30) : found.end()]}"
            for found in re.finditer(r"\berased\b", text, re.IGNORECASE)
            if not text[: found.start()].lower().endswith("not ")
        ]
    assert not alone
