"""Opening a model as the options say, for scoring and for drawing alike."""

from pathlib import Path
from typing import Any

import pytest
from tiny import Told, config_folder, run, write_small, write_tiny

from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.cli.progress import progress
from nemo_prune.errors import OptionError
from nemo_prune.options import Options
from nemo_prune.scoring import opening


def test_pictures_are_drawn_with_the_model_that_was_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = recognize(write_small(tmp_path / "tiny.safetensors"))
    options = Options(device="cpu", prediction_type="v")
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
    told = Told()
    checkpoint = recognize(write_small(tmp_path / "tiny.safetensors"))
    opening.open_engine(checkpoint, Options(device="cpu"), told).note("overflowed")
    assert told.notes[1:] == ["overflowed"]


def test_who_opens_an_sd2_hears_that_nothing_says_what_it_predicts(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.safetensors", "sd2", layers=1)
    stated = write_tiny(
        tmp_path / "stated.safetensors",
        "sd2",
        layers=1,
        metadata={"modelspec.prediction_type": "epsilon"},
    )
    config = config_folder(tmp_path / "config", "sd2", layers=1)
    for given, options, notes in (
        (path, {}, 1),
        (path, {"prediction_type": "epsilon"}, 0),
        (path, {"config": config}, 0),
        (stated, {}, 0),
    ):
        told = Told()
        opening.open_engine(recognize(given), Options(device="cpu", **options), told)
        about = [note for note in told.notes if "nothing says whether the model predicts" in note]
        assert len(about) == notes, options
        # Of random weights nothing can be measured, and that is said too.
        assert ["its output shows neither" in note for note in told.notes] == [True]


def test_detect_says_that_nothing_says_what_it_predicts(tmp_path: Path) -> None:
    path = write_small(tmp_path / "tiny.safetensors", family="sd2")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n")
    result = run("detect", path, "--prompts", prompts, "--tau", "0.1", "--gate", "0.2", "--seeds", "2")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("predicts epsilon or v") == 1


def test_a_note_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(quiet=True) as bar:
        for text in ("one", "two", "one"):
            bar.note(text)
    assert capsys.readouterr().err == "note: one\nnote: two\n"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["tau", "gate"])
def test_a_threshold_that_is_no_number_is_refused(name: str, value: float) -> None:
    with pytest.raises(OptionError, match=f"{name} .*: is no number"):
        Options(**{name: value})  # type: ignore[arg-type]
