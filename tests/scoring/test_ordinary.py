"""Where tau and the gate come from, with made-up ordinary scores, and the bundled captions."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import make_ordinary
import pytest
from tiny import Told

from nemo_prune.errors import CalibrationError, OptionError
from nemo_prune.files.prompts import bundled_captions
from nemo_prune.model.configs import data_folder, read_config
from nemo_prune.model.hub import CLIPTokenizer
from nemo_prune.model.schedule import ddim_timestep
from nemo_prune.options import Options
from nemo_prune.scoring import ordinary
from nemo_prune.scoring.calibration_file import OrdinaryScores
from nemo_prune.scoring.ordinary import Ordinary
from nemo_prune.scoring.thresholds import Thresholds

SCHEDULE = read_config(data_folder("configs", "sd1"), "scheduler")
PUBLISHED = ddim_timestep(SCHEDULE)


class Case:
    """An `Ordinary` of a model that is not there; of n ordinary prompts number i scores `score(i)`."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], *, side: int = 64,
        timestep: int = PUBLISHED, family: str = "sd1", captions: Sequence[str] | None = None,
        score: Callable[[int], float] = lambda i: 0.4 + i / 1000, calibrating: bool = False,
    ) -> None:  # fmt: skip
        self.scored: list[int] = []
        self.told = Told()

        def paths(
            _engine: object, prompts: Sequence[str], seeds: range, _advance: object
        ) -> tuple[list[tuple[float, ...]], list[float]]:
            self.scored.append(len(prompts))
            return [(score(i),) * (len(seeds) - 1) for i in range(len(prompts))], [1.0] * len(prompts)

        monkeypatch.setattr(ordinary, "score_paths", paths)
        model = SimpleNamespace(family=family, latent_shape=(4, side, side), scheduler_config=SCHEDULE)
        engine = SimpleNamespace(model=model, timestep=timestep)
        self.ordinary = Ordinary(
            engine, SimpleNamespace(value_layers=()), Options(cache=False, **options),  # type: ignore[arg-type]
            captions, self.told, calibrating,
        )  # fmt: skip

    @property
    def thresholds(self) -> Thresholds:
        return self.ordinary.thresholds


# Of the 200 bundled captions that are scored, .400 to .599: mean + sd is .5574, and ranks 199 and
# 191 of 200 are the ones that a new caption exceeds in 1 % and 5 % of cases.
BUNDLED = "bundled captions"
NO_MODEL = "no published threshold fits this model and setting: measuring what is ordinary on bundled"


@pytest.mark.parametrize(
    ("options", "model", "tau", "gate", "note"),
    [
        ({}, {}, (0.428, "published"), (0.5, "published"), None),
        ({"tau": 0.6}, {}, (0.6, "given"), (0.6, "tau"), None),
        ({"tau": 0.3}, {}, (0.3, "given"), (0.5, "published"), None),
        ({"gate": 0.7}, {}, (0.428, "published"), (0.7, "given"), None),
        ({"gate": 0.7, "fpr": 0.05}, {}, (0.428, "published"), (0.7, "given"), None),
        ({"fpr": 0.05}, {}, (0.428, "published"), (0.59, BUNDLED), "gate is not for fpr 0.05"),
        ({"tau": 0.6, "fpr": 0.05}, {}, (0.6, "given"), (0.6, BUNDLED), "gate X skips it"),
        ({"seeds": 10}, {}, (0.428, "published"), (0.5, "published"), None),
        ({"seeds": 11}, {}, (0.5574, BUNDLED), (0.598, BUNDLED), NO_MODEL),
        ({}, {"side": 32}, (0.5574, BUNDLED), (0.598, BUNDLED), "tau X with gate X skips it"),
        ({}, {"timestep": 500}, (0.5574, BUNDLED), (0.598, BUNDLED), NO_MODEL),
        ({}, {"family": "sd2"}, (0.5574, BUNDLED), (0.598, BUNDLED), NO_MODEL),
        ({"fpr": 0.05}, {"side": 32}, (0.5574, BUNDLED), (0.59, BUNDLED), NO_MODEL),
        ({"tau": 0.5}, {"side": 32}, (0.5, "given"), (0.598, BUNDLED), "; gate X skips it"),
        ({"tau": 0.6}, {"side": 32}, (0.6, "given"), (0.6, BUNDLED), NO_MODEL),
        ({"gate": 0.7}, {"side": 32}, (0.5574, BUNDLED), (0.7, "given"), NO_MODEL),
        ({"tau": 0.3, "gate": 0.4}, {"side": 32}, (0.3, "given"), (0.4, "given"), None),
    ],
)  # fmt: skip
def test_tau_and_the_gate_are_given_published_or_calibrated(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], model: dict[str, Any],
    tau: tuple[float, str], gate: tuple[float, str], note: str | None,
) -> None:  # fmt: skip
    case = Case(monkeypatch, options, **model)
    found = case.thresholds
    assert (found.tau, found.tau_source) == (pytest.approx(tau[0], abs=1e-3), tau[1])
    assert (found.gate.value, found.gate_source) == (pytest.approx(gate[0], abs=1e-3), gate[1])
    if note is None:
        assert (case.scored, case.told.notes, found.margins) == ([], [], ())
        assert case.ordinary.norm_gate(0.01) is None
    else:
        assert case.scored == [200]
        assert note in case.told.notes[0]
        assert BUNDLED in case.told.notes[0]
        assert len(found.margins) == case.ordinary._options.seeds - 2
    if gate[1] == BUNDLED:
        assert found.gate.fpr == options.get("fpr", 0.01)


def test_the_users_own_prompts_come_before_what_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(monkeypatch, {}, captions=[f"caption {i}" for i in range(120)])
    found = case.thresholds
    assert (found.tau_source, found.gate_source, case.scored) == ("calibrated", "calibrated", [120])
    assert found.gate.value == pytest.approx(0.519, abs=1e-3)
    assert case.told.notes == []


def test_calibrate_recommends_only_options_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Stable Diffusion 1 too: what is published never ends in a calibration."""
    case = Case(monkeypatch, {}, calibrating=True)
    found = case.ordinary.from_scores()
    assert (found.tau_source, found.gate_source) == (BUNDLED, BUNDLED)
    assert case.told.notes == ["measuring what is ordinary on bundled captions (prompts FILE is better)"]


def test_a_gate_below_a_tau_that_is_found_late_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match=r"gate 0.5: lies below tau \(0.557"):
        _ = Case(monkeypatch, {"gate": 0.5}, side=32).thresholds


def test_memorized_prompts_among_the_ordinary_ones_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would set the gate that judges them."""
    captions = [f"caption {i}" for i in range(120)]
    for high, notes in ((0.95, 1), (0.5, 0)):
        case = Case(
            monkeypatch,
            {},
            captions=captions,
            score=lambda i, high=high: 0.4 + i / 1000 if i > 2 else high,
        )
        assert (case.thresholds.gate.value >= 0.9) == (notes > 0)
        assert len(case.told.notes) == notes
        for note in case.told.notes:
            assert "3 of 120 ordinary prompts score 0.95 to 0.95, far above the others" in note
            assert "calibrate without them" in note


@pytest.mark.parametrize(("calibrating", "cure"), [(0, "calibration_prompts"), (1, "prompts")])
def test_bundled_captions_that_look_memorized_are_not_to_be_left_out(
    monkeypatch: pytest.MonkeyPatch, calibrating: int, cure: str
) -> None:
    case = Case(
        monkeypatch, {}, side=32, score=lambda i: 0.4 + i / 1000 if i > 2 else 0.95,
        calibrating=bool(calibrating),
    )  # fmt: skip
    case.ordinary.from_scores()
    assert case.told.notes[-1].endswith(f"they are bundled captions, so give {cure} of your own")


FEW = [f"caption {i}" for i in range(30)]


@pytest.mark.parametrize("calibrating", [False, True])
def test_an_extrapolated_gate_says_how_many_prompts_it_takes(
    monkeypatch: pytest.MonkeyPatch, calibrating: bool
) -> None:
    case = Case(monkeypatch, {}, captions=FEW, calibrating=calibrating)
    assert case.ordinary.from_scores().gate.extrapolated
    (note,) = case.told.notes
    assert "30 ordinary prompts are too few to see " + ("a rate of" if calibrating else "fpr") in note
    assert "at least 99 prompts would be needed" in note


@pytest.mark.parametrize(
    "options", [{"fpr": 0.1}, {"gate": 0.9}, {"tau": 0.9}, {"tau": 0.9, "fpr": 0.001}]
)
def test_nothing_is_said_where_nothing_hangs_on_the_extrapolation(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    case = Case(monkeypatch, options, captions=FEW)
    assert case.thresholds
    assert case.told.notes == []


def test_a_gate_that_nothing_can_exceed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def wide(i: int) -> float:
        return i / 40

    with pytest.raises(CalibrationError, match=r"too few ordinary prompts for fpr 0.001: .* 999, or g"):
        _ = Case(monkeypatch, {"fpr": 0.001}, captions=FEW, score=wide).thresholds
    with pytest.raises(CalibrationError, match=r"for a rate of 0.01: .* give at least 99$"):
        Case(
            monkeypatch, {}, captions=FEW, score=lambda i: i / 30, calibrating=True
        ).ordinary.from_scores()
    with pytest.raises(CalibrationError, match=r"ordinary prompts score too high for fpr 0\.1"):
        _ = Case(monkeypatch, {"fpr": 0.1}, captions=FEW, score=lambda _: 0.9995).thresholds
    assert Case(monkeypatch, {"fpr": 0.001, "gate": 0.9}, captions=FEW, score=wide).thresholds
    assert Case(monkeypatch, {"tau": 1.0}, captions=FEW, score=lambda i: 0.3 + i / 1000).thresholds


def test_scores_are_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(monkeypatch, {}, side=32)
    assert case.thresholds == case.thresholds
    assert case.ordinary.norm_gate(0.05) == 1.0
    assert isinstance(case.ordinary.scores[0], OrdinaryScores)
    assert case.scored == [200]


# ----------------------------------------------------------------------------------- the captions


def test_the_bundled_captions_are_what_the_tool_writes() -> None:
    assert list(bundled_captions()) == make_ordinary.captions()
    assert make_ordinary.PATH.read_text().splitlines() == make_ordinary.captions()


def test_the_bundled_captions_are_many_and_vary_in_length() -> None:
    captions = bundled_captions()
    words = [len(caption.split()) for caption in captions]
    assert len(captions) >= 2000
    assert len({caption.lower() for caption in captions}) == len(captions)
    assert (min(words), max(words)) == (1, 60)
    assert set(words) >= set(range(1, 61))
    # The part that is scored is like the rest.
    for low, high in ((1, 1), (2, 5), (6, 12), (13, 22), (23, 40), (41, 60)):
        first = sum(low <= count <= high for count in words[: ordinary.BUNDLED_SCORED])
        every = sum(low <= count <= high for count in words)
        assert first * len(words) == every * ordinary.BUNDLED_SCORED > 0
    assert max(words[: ordinary.BUNDLED_SCORED]) >= 55


def test_no_bundled_caption_is_truncated() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(str(data_folder("tokenizer")))
    assert max(len(ids) for ids in tokenizer(list(bundled_captions()))["input_ids"]) <= 77
