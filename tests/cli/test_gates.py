"""A gate is never green in silence: how verbs read lists, and what they say of them."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tiny import Told, run, write_small

from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.cli.main import main
from nemo_prune.options import Options
from nemo_prune.scoring.detect import Detection
from nemo_prune.scoring.notes import notes_on_scores, tokens_of
from nemo_prune.scoring.opening import open_engine

QUICK = ["--seeds", "2", "--device", "cpu", "--tau", "0", "--gate", "0"]
COUNTED = "3 prompts: 5 read, 2 repeated prompts merged, 1 blank left out"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("gates") / "tiny.safetensors", side=16)


@pytest.fixture
def lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a cat\na dog\na cat\n\n  a dog\n")
    (tmp_path / "b.json").write_text('[{"words": "a fox"}]')
    return tmp_path


def test_check_reads_them_all_and_says_so(
    model: Path, lists: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "1")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(lists))
    (lists / "b.json").rename(lists / "b.csv")
    (lists / "b.csv").write_text("prompt\na fox\n")
    result = run("check", model, "--prompts", "a.*", "--prompts", "b.csv", "--expect-prompts", "3",
                 "--json", "-q", *QUICK)  # fmt: skip
    assert result.exit_code == 1, result.stderr
    told = json.loads(result.stdout)
    assert (told["prompts_read"], told["merged"], told["blank"]) == (5, 2, 1)
    assert [(one["file"], one["line"]) for one in told["prompts"]] == [
        ("a.txt", 1), ("a.txt", 2), ("b.csv", 2)
    ]  # fmt: skip
    assert f"note: {COUNTED}\n" in result.stderr
    assert "::error file=b.csv,line=2,title=memorized prompt::prompt 2 is memorized" in result.stderr
    assert "::error" not in result.stdout


@pytest.mark.usefixtures("lists")
def test_check_names_the_line(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    result = run("check", model, "--prompts", "b.json", "--prompt-column", "words", *QUICK)
    assert result.exit_code == 1, result.stderr
    assert result.stdout.startswith("b.json:1: prompt 0 is memorized (score ")
    assert "::error" not in result.stderr


@pytest.mark.parametrize("verb", ["detect", "localize", "prune", "calibrate"])
def test_every_verb_says_how_many_it_read(model: Path, lists: Path, verb: str) -> None:
    more = {"localize": ["-o", "n.json"], "prune": ["--dry-run"]}.get(verb, [])
    given = ["--prompts", "a.txt", "--prompts", "c.txt", *more, "--json"]
    (lists / "c.txt").write_text("a fox\n")
    if verb == "calibrate":
        (lists / "c.txt").write_text("\n".join(f"a photo of {i} cats" for i in range(30)))
        result = run(verb, model, *given, "-o", "c.safetensors", "--seeds", "2", "--device", "cpu")
        assert "note: 32 prompts: 34 read, 2 repeated prompts merged, 1 blank" in result.stderr
        return
    quick = ["--seeds", "2", "--device", "cpu", "--tau", "1", "--gate", "1"]
    layers = [] if verb == "detect" else ["--layers", "*mid_block*"]
    result = run(verb, model, *given, *quick, *layers)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["prompts_read"], told["merged"], told["blank"]) == (5, 2, 1)
    assert COUNTED in result.stderr


@pytest.mark.parametrize(
    "verb", [["check"], ["detect"], ["prune", "--dry-run"], ["localize", "-o", "n"]]
)
def test_another_number_than_expected_is_refused_before_the_model_is_loaded(
    model: Path, lists: Path, verb: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_prune.model.loading.load_model", None)
    result = run(verb[0], model, *verb[1:], "--prompts", "a.txt", "--expect-prompts", "4")
    assert result.exit_code == 2
    assert result.stderr == (
        "nemo-prune: a.txt: --expect-prompts 4, and 2 distinct prompts were read (2 repetitions merged, "
        "1 blank)\n"
    )
    assert sorted(path.name for path in lists.iterdir()) == ["a.txt", "b.json"]


def test_a_list_by_another_name_is_refused_with_the_option_that_helps(model: Path, lists: Path) -> None:
    (lists / "m.txt").write_text('["a cat", "a dog"]')
    refused = run("check", model, "--prompts", "m.txt", *QUICK)
    assert refused.exit_code == 2
    assert "or give --prompts-format json" in refused.stderr
    taken = run("check", model, "--prompts", "m.txt", "--prompts-format", "json", "--json", *QUICK)
    assert json.loads(taken.stdout)["memorized"] == 2


def test_a_pattern_names_inputs_too(model: Path, lists: Path) -> None:
    result = run("check", model, "--prompts", "*.txt", "--junit", "a.txt", "--overwrite", *QUICK)
    assert result.exit_code == 2
    assert "a.txt: is read by this command" in result.stderr
    assert (lists / "a.txt").read_text().startswith("a cat")


# ------------------------------------------------------------------------------------------- JUnit


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["none.safetensors", "--prompts", "a.txt"], "none.safetensors: no such file"),
        (["MODEL", "--prompts", "none.txt"], "none.txt: no such file"),
        (["MODEL", "--prompts", "a.txt", "--expect-prompts", "7"], "--expect-prompts 7, and 2 distinct"),
        (["MODEL", "--prompts", "a.txt", "--tau", "0.5", "--gate", "0.4"], "lies below tau"),
    ],
)
def test_an_error_leaves_a_junit_file_and_a_summary(
    model: Path, lists: Path, given: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [str(model) if one == "MODEL" else one for one in given]
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(lists / "s.md"))
    result = run("check", *given, "--junit", "j.xml")
    assert result.exit_code == 2
    assert words in result.stderr
    suites = ElementTree.parse(lists / "j.xml").getroot()
    assert suites.get("errors") == "1"
    assert words in (suites.findtext(".//testcase/error") or "")
    assert words.replace("_", "\\_") in (lists / "s.md").read_text()
    (lists / "s.md").unlink()
    again = run("check", *given, "--junit", "j.xml")
    assert again.stderr == result.stderr, "the file is its own, and no reason for another error"
    assert words.replace("_", "\\_") in (lists / "s.md").read_text()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--junit", "none/j.xml"], "the folder none does not exist"),
        (["--gate", "high", "--junit", "j.xml"], "is not a valid number"),
        (["--junit=j.xml", "--colour"], "No such option"),
    ],
)
def test_an_error_before_any_file_is_read_leaves_a_summary(
    model: Path, lists: Path, given: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(lists / "s.md"))
    result = run("check", model, "--prompts", "a.txt", *given)
    assert result.exit_code == 2
    assert words in result.stderr
    assert words in (lists / "s.md").read_text().replace("\\", "")
    if "none/j.xml" not in given:
        error = ElementTree.parse(lists / "j.xml").getroot().findtext(".//testcase/error")
        assert words in (error or "")


@pytest.mark.parametrize("verb", sorted({*main.commands} - {"demo"}))
def test_a_verb_without_a_word_says_what_is_missing(verb: str) -> None:
    result = run(verb)
    assert result.exit_code == 2
    assert "Missing argument" in result.stderr


@pytest.mark.usefixtures("lists")
def test_a_pattern_in_a_models_place_is_told_as_one() -> None:
    result = run("check", "models/*.safetensors", "--prompts", "a.txt")
    assert result.exit_code == 2
    assert (
        "models/*.safetensors: no such file, and only lists of prompts are given as patterns; name each"
        in result.stderr
    )


def test_an_error_of_usage_replaces_no_file_of_others(model: Path, lists: Path) -> None:
    assert run("check", model, "--colour", "--junit", "a.txt").exit_code == 2
    assert (lists / "a.txt").read_text().startswith("a cat")


def test_an_error_of_the_program_leaves_one_too(
    model: Path, lists: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr("nemo_prune.scoring.detection_run.find_memorized", broken)
    result = run("check", model, "--prompts", "a.txt", "--junit", "j.xml", *QUICK)
    assert result.exit_code == 2
    assert "KeyError" in (lists / "j.xml").read_text()


def test_a_place_that_is_taken_stays_as_it_is(lists: Path) -> None:
    (lists / "j.xml").write_text("keep me")
    result = run("check", "none.safetensors", "--prompts", "a.txt", "--junit", "j.xml")
    assert result.exit_code == 2
    assert (lists / "j.xml").read_text() == "keep me"


# ------------------------------------------------------------------------------------------- notes


def test_prompts_that_are_one_to_the_model_are_said(model: Path, lists: Path) -> None:
    long = "very " * 80
    engine = open_engine(recognize(model), Options(device="cpu"), Told())

    def notes(*prompts: str) -> list[str]:
        counts, found = tokens_of(engine.model, prompts)
        assert counts == engine.model.token_counts(prompts)
        return list(found)

    assert notes("a cat", "a dog") == notes("a cat") == notes(long + "cat") == []
    (every,) = notes(long + "cat", long + "dog", long.upper())
    assert every.startswith("all 3 prompts are the same to the model, so they have one score")
    (some,) = notes("a cat", "A CAT", "a dog")
    assert some.startswith("1 prompts are the same to the model as one before them")
    (lists / "long.txt").write_text(f"{long} cat\n{long} dog\n")
    for verb in (["detect"], ["prune", "--dry-run"]):
        quick = ["--seeds", "2", "--device", "cpu", "--tau", "1", "--gate", "1"]
        result = run(*verb, model, "--prompts", "long.txt", *quick)
        assert "note: all 2 prompts are the same to the model" in result.stderr


def test_what_is_noted_stands_beside_the_verdict(
    model: Path, lists: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads a green summary sees what was odd about the list."""
    (lists / "dated.txt").write_text("2024-05-01T10:00 a cat\n2024-05-01T10:01 a dog\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    result = run("check", model, "--prompts", lists / "dated.txt", "--tau", "1", "--gate", "1",
                 "--seeds", "2", "--device", "cpu", "--json", "--junit", "j.xml")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    (note,) = (line for line in json.loads(result.stdout)["notes"] if "date and time" in line)
    assert f"note: {note}" in result.stderr
    assert "2 of its lines begin with a date and time" in Path("summary.md").read_text()
    properties = ElementTree.parse("j.xml").iter("property")
    assert note in [one.get("value") for one in properties if one.get("name") == "note"]


def test_scores_that_all_lie_below_the_ordinary_mean_are_said() -> None:
    ordinary = [(0.1, 0.3), (0.2, 0.5)]  # means: .15 on two seeds, .4 on three

    def notes(*scores: tuple[float, int]) -> list[str]:
        found = [Detection(i, score, 1.0, seeds, False) for i, (score, seeds) in enumerate(scores)]
        return list(notes_on_scores(found, ordinary))

    low, high = [(0.3, 3), (0.1, 2)] * 5, [(0.2, 2)]
    (note,) = notes(*low)
    assert note.startswith("all 10 prompts score below the mean of ordinary prompts")
    assert notes(*low[:9], *high) == notes(*low[:9]) == notes() == []
