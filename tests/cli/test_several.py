"""Several models in one run: one after the other, one exit code, and none in another's way."""

import json
import signal
from pathlib import Path
from xml.etree import ElementTree

import pytest
import rawfiles
from folders import pipeline
from rawfiles import SD1
from test_cli_files import manifest, zeroed
from test_surgery import DOWN
from tiny import run, write_small

from nemo_prune.errors import CheckpointError


def listed(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two files in two precisions and a folder of one architecture, and a manifest for them."""
    monkeypatch.chdir(tmp_path)
    rawfiles.sd1(Path("a.safetensors"))
    rawfiles.sd1(Path("b.safetensors"), dtype="F32")
    pipeline(Path("c"), SD1)
    Path("a.yaml").write_text("of a")
    manifest(Path("n.json"), [(DOWN, 1)])
    return tmp_path


MODELS = ["a.safetensors", "b.safetensors", "c"]


# ---------------------------------------------------------------------------------------- apply


@pytest.mark.usefixtures("here")
def test_apply_writes_each_under_its_name() -> None:
    given = ["--manifest", "n.json", "-o", "out", "--undo", "rows", "--lora", "loras", "--json"]
    result = run("apply", *MODELS, *given)
    assert result.exit_code == 0, result.output
    assert listed("out") == listed("rows") == MODELS
    assert listed("loras") == ["a.safetensors", "b.safetensors", "c.safetensors"]
    told = json.loads(result.stdout)
    assert told["exit_code"] == 0
    assert [one["source"]["path"] for one in told["models"]] == MODELS
    for name, one in zip(MODELS, told["models"], strict=True):
        assert zeroed(Path("out") / name) == {DOWN: [1]}
        assert one["output"]["path"] == str(Path("out") / name)
        back = run("restore", one["output"]["path"], "--undo", one["undo"], "-o", f"back-{name}")
        assert back.exit_code == 0
    assert Path("back-b.safetensors").read_bytes() == Path("b.safetensors").read_bytes()
    assert result.stderr.count("wrote out") == 3
    assert result.stderr.count("warning:") == 3, "the manifest is of none of them"


@pytest.mark.usefixtures("here")
def test_a_files_name_for_several_is_refused() -> None:
    result = run("apply", "a.safetensors", "b.safetensors", "--neurons", "0:1", "-o", "both.safetensors")
    assert result.exit_code == 2
    assert "both.safetensors: has a file's name, and several models go into a folder" in result.stderr
    assert not Path("both.safetensors").exists()


@pytest.mark.usefixtures("here")
def test_a_folder_that_exists_is_filled_and_nothing_in_it_replaced() -> None:
    Path("out").mkdir()
    Path("out/kept").touch()
    command = ["apply", "a.safetensors", "b.safetensors", "--neurons", "0:1", "-o", "out"]
    assert run(*command, "--sidecars", "--hash").exit_code == 0
    assert run("apply", "a.safetensors", "b.safetensors", "--neurons", "0:1", "-o", "out").exit_code == 2
    assert run(*command, "--overwrite").exit_code == 0
    assert {"kept", "a.safetensors", "b.safetensors", "a.yaml"} == set(listed("out"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["a.safetensors", "none.safetensors", "-o", "out"], "none.safetensors: no such file"),
        (["a.safetensors", "./a.safetensors", "-o", "out"], "a.safetensors: is given twice"),
        (["a.safetensors", "link.safetensors", "-o", "out"], "link.safetensors: is given twice"),
        (["a.safetensors", "d/A.safetensors", "-o", "out"], "have one name"),
        (["a.safetensors", "b.safetensors", "-o", "n.json"], "n.json: is read by this command"),
        (["a.safetensors", "b.safetensors", "-o", "text"], "text: is a file; give a folder"),
        (["a.safetensors", "b.safetensors", "-o", "no/out"], "the folder no does not exist"),
        (["a.safetensors", "b.safetensors", "-o", "."], "is the model itself"),
        (["a.safetensors", "b.safetensors", "-o", "full"], "b.safetensors: exists already"),
        (["a.safetensors", "b.safetensors", "-o", "o", "--undo", "o"], "give two names"),
        (["a.safetensors", "b.safetensors", "-o", "o", "--undo", "o/rows"], "give two places"),
        (["a.safetensors", "b.safetensors", "-o", "o", "--lora", "o"], "give two names"),
        (["a.safetensors", "c", "-o", "c/unet"], "lies in"),
        (["a.safetensors", "c", "-o", "o", "--link"], "--link: goes with a diffusers folder"),
        (["a.safetensors", "xl.safetensors", "-o", "o"], "another model than"),
    ],
)
def test_what_is_refused_is_refused_before_the_first_is_written(
    here: Path, given: list[str], words: str
) -> None:
    Path("link.safetensors").symlink_to("a.safetensors")
    Path("d").mkdir()
    Path("full").mkdir()
    rawfiles.sd1(Path("d/A.safetensors"))
    rawfiles.write(Path("xl.safetensors"), rawfiles.unet(rawfiles.SDXL))
    Path("full/b.safetensors").write_text("mine")
    Path("text").touch()
    before = sorted(here.rglob("*"))
    result = run("apply", *given, "--manifest", "n.json")
    assert result.exit_code == 2
    assert words in result.stderr
    assert sorted(here.rglob("*")) == before


@pytest.mark.usefixtures("here")
def test_every_refusal_has_its_line() -> None:
    result = run("apply", "no1", "a.safetensors", "no2", "--neurons", "0:1", "-o", "out")
    assert result.exit_code == 2
    assert result.stderr.startswith("nemo-prune: no1: no such file")
    assert "\nnemo-prune: no2: no such file" in result.stderr
    assert not Path("out").exists()


@pytest.mark.usefixtures("here")
def test_room_is_for_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = Path("b.safetensors").stat().st_size + 100

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    for model in ("a.safetensors", "b.safetensors"):
        assert run("apply", model, "--neurons", "0:1", "-o", f"o-{model}").exit_code == 0
    result = run("apply", "a.safetensors", "b.safetensors", "--neurons", "0:1", "-o", "out")
    assert result.exit_code == 2
    assert "but the disk has" in result.stderr
    assert not Path("out").exists()


@pytest.mark.usefixtures("here")
def test_one_that_fails_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    from nemo_prune.checkpoint import apply

    whole = apply._write_part

    def failing(part, *given):
        if part.path.name == "a.safetensors":
            raise CheckpointError("a.safetensors: changed while it was read; try again")
        if part.path.name == "b.safetensors":
            raise RuntimeError("surprise")
        return whole(part, *given)

    monkeypatch.setattr(apply, "_write_part", failing)
    result = run("apply", *MODELS, "--neurons", "0:1", "-o", "out", "--json")
    assert result.exit_code == 2
    assert listed("out") == ["c"]
    told = json.loads(result.stdout)
    assert told["exit_code"] == 2
    assert "changed while it was read" in told["models"][0]["error"]
    assert "internal error: RuntimeError: surprise" in told["models"][1]["error"]
    assert told["models"][2]["neurons"] == 1
    assert "nemo-prune: a.safetensors: changed" in result.stderr


# ---------------------------------------------------------------------------------------- check

# A gate of 0 finds every prompt memorized, one of 1 none.
QUICK = ["--seeds", "2", "--device", "cpu", "--prompts", "p.txt", "--tau", "0", "--gate"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("several") / "tiny.safetensors", side=16)


@pytest.fixture
def two(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models, A and B, and two prompts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "s.md")
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    for name in ("A", "B"):
        Path(name).write_bytes(tiny.read_bytes())
    Path("p.txt").write_text("a cat\na dog\n")
    return tmp_path


def suites(path: str = "j.xml") -> dict[str, tuple[str | None, str | None]]:
    """Name of each suite -> its failures and errors."""
    root = ElementTree.parse(path).getroot()
    return {str(one.get("name")): (one.get("failures"), one.get("errors")) for one in root}


@pytest.mark.usefixtures("two")
def test_check_tells_of_each_and_exits_with_the_worst(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("check", "A", "B", *QUICK, "0", "--junit", "j.xml")
    assert result.exit_code == 1, result.output
    assert [line.partition(" (")[0] for line in result.stdout.splitlines()] == [
        f"p.txt:{i + 1}: prompt {i} is memorized in {model}" for model in "AB" for i in (0, 1)
    ]
    assert "A: 2 of 2 prompts are memorized: gate" in result.stderr
    assert suites() == {"nemo-prune check A": ("2", "0"), "nemo-prune check B": ("2", "0")}
    assert ElementTree.parse("j.xml").getroot().get("failures") == "4"
    assert Path("s.md").read_text().count("2 of 2 prompts are memorized") == 2
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    result = run("check", "A", "B", *QUICK, "1", "--json", "-q", "--junit", "j.xml")
    assert result.exit_code == 0, "and the JUnit file is its own"
    told = json.loads(result.stdout)
    assert told["exit_code"] == 0
    assert [(one["source"]["path"], one["memorized"]) for one in told["models"]] == [("A", 0), ("B", 0)]


@pytest.mark.usefixtures("two")
def test_a_model_that_fails_stops_no_other_and_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    from nemo_prune.scoring import detection_run

    whole = detection_run.find_memorized

    def failing(checkpoint, *given, **more):
        if checkpoint.path.name == "A":
            raise CheckpointError("A: the weights are not numbers; download it again")
        return whole(checkpoint, *given, **more)

    monkeypatch.setattr(detection_run, "find_memorized", failing)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    result = run("check", "A", "B", *QUICK, "0", "--junit", "j.xml", "--json", "-q")
    assert result.exit_code == 2
    assert "nemo-prune: A: the weights are not numbers" in result.stderr
    assert result.stderr.count("::error file=p.txt") == 2
    assert "prompt 0 is memorized in B (" in result.stderr
    told = json.loads(result.stdout)
    assert told["exit_code"] == 2
    assert told["models"][0] == {
        "source": {"path": "A"}, "error": "A: the weights are not numbers; download it again"
    }  # fmt: skip
    assert told["models"][1]["memorized"] == 2
    assert suites() == {"nemo-prune check A": ("0", "1"), "nemo-prune check B": ("2", "0")}
    summary = Path("s.md").read_text()
    assert "no verdict" in summary
    assert "2 of 2 prompts are memorized" in summary


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["A", "C", *QUICK, "0"], "C: no such file"),
        (["A", "A", *QUICK, "0"], "A: is given twice"),
        (["A", "B", *QUICK, "0", "--expect-prompts", "9"], "--expect-prompts 9"),
        (["A", "B", *QUICK, "0", "--calibration", "none"], "none: no such file"),
        (["A", "B", *QUICK, "0", *["--calibration", "none"] * 3], "--calibration: give one for each"),
        (["A", "B", *QUICK, "0", "--timestep", "5000"], "--timestep 5000"),
        (["A", "p.txt", *QUICK, "0"], "p.txt: "),
    ],
)
def test_what_check_refuses_it_refuses_before_it_loads_one(
    two: Path, given: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_prune.scoring.detection_run.find_memorized", None)
    result = run("check", *given, "--junit", "j.xml")
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""
    root = ElementTree.parse(two / "j.xml").getroot()
    assert root.get("errors") == str(len(root)) == "2"
    assert words in "".join(root.itertext())


@pytest.mark.usefixtures("two")
def test_each_refused_model_has_its_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_prune.scoring.detection_run.find_memorized", None)
    result = run("check", "C", "A", "D", *QUICK, "0", "--junit", "j.xml")
    assert result.stderr.startswith("nemo-prune: C: no such file")
    assert "\nnemo-prune: D: no such file" in result.stderr
    first, second, third = ElementTree.parse("j.xml").getroot().iter("error")
    assert str(first.text).startswith("C: no such file")
    assert str(third.text).startswith("D: no such file")
    assert str(second.text).startswith("C: no such file"), "A was not checked, because of this"


@pytest.mark.usefixtures("two", "_hang_up_is_heard")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_what_is_interrupted_keeps_what_is_done(
    monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    from nemo_prune.scoring import detection_run

    whole = detection_run.find_memorized

    def stopped(checkpoint, *given, **more):
        if checkpoint.path.name == "B":
            signal.raise_signal(number)
        return whole(checkpoint, *given, **more)

    monkeypatch.setattr(detection_run, "find_memorized", stopped)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job
    try:
        result = run("check", "A", "B", *QUICK, "0", "--junit", "j.xml")
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.exit_code == code
    assert suites() == {"nemo-prune check A": ("2", "0"), "nemo-prune check B": ("0", "1")}


@pytest.mark.usefixtures("two")
def test_under_nohup_a_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from nemo_prune.scoring import detection_run

    whole = detection_run.find_memorized

    def hung_up(*given, **more):
        signal.raise_signal(signal.SIGHUP)
        return whole(*given, **more)

    monkeypatch.setattr(detection_run, "find_memorized", hung_up)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run("check", "A", *QUICK, "1").exit_code == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("two")
def test_each_model_has_its_own_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def listening(checkpoint, _prompts, options, *_given, **_more):
        asked.append((checkpoint.path.name, options.calibration))
        raise CheckpointError("enough")

    monkeypatch.setattr("nemo_prune.cli.check.Inputs.check", lambda _: None)
    monkeypatch.setattr("nemo_prune.scoring.detection_run.find_memorized", listening)
    for name in ("a", "b"):
        Path(name).touch()
    run("check", "A", "B", *QUICK, "0", "--calibration", "a", "--calibration", "b")
    run("check", "A", "B", *QUICK, "0", "--calibration", "a")
    run("check", "A", "B", *QUICK, "0")
    assert asked == [
        ("A", Path("a")), ("B", Path("b")), ("A", Path("a")), ("B", Path("a")), ("A", None), ("B", None)
    ]  # fmt: skip
