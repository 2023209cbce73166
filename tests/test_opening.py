"""Opening a model as the options say, for scoring and for drawing alike."""

from pathlib import Path
from typing import Any

import pytest
from tiny import write_small

from nemo_prune import opening
from nemo_prune.families import recognize


def test_pictures_are_drawn_with_the_model_that_was_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = recognize(write_small(tmp_path / "tiny.safetensors"))
    options = opening.Options(device="cpu", prediction_type="v")
    said: list[dict[str, Any]] = []
    for name in ("load_model", "load_pipeline"):
        load = getattr(opening, name)

        def listened(*given: Any, load: Any = load, **named: Any) -> Any:
            said.append(named)
            return load(*given, **named)

        monkeypatch.setattr(opening, name, listened)
    engine = opening.open_engine(checkpoint, options)
    pipeline = opening.open_pipeline(checkpoint, options)
    assert said[0] == said[1]
    assert engine.model.prediction_type == "v_prediction"
    assert pipeline.scheduler.config["prediction_type"] == "v_prediction"


def test_notes_of_the_engine_reach_who_opened_it(tmp_path: Path) -> None:
    class Told:
        def __init__(self) -> None:
            self.notes: list[str] = []

        def stage(self, name: str, total: int, unit: str) -> None: ...
        def advance(self, count: int = 1) -> None: ...
        def detail(self, text: str) -> None: ...
        def note(self, text: str) -> None:
            self.notes.append(text)

    told = Told()
    checkpoint = recognize(write_small(tmp_path / "tiny.safetensors"))
    opening.open_engine(checkpoint, opening.Options(device="cpu"), told).note("overflowed")
    assert told.notes == ["overflowed"]
