"""What a command writes: every output a file of its own, refused early, printable everywhere."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rawfiles
from test_calibration_file import calibration
from tiny import run, write_small

from nemo_prune.scoring.calibration_file import write_calibration
from nemo_prune.scoring.journal import Journal, fingerprint_of_run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, where no model may be loaded or read through."""
    monkeypatch.chdir(tmp_path)
    for place in ("scoring.opening.load_model", "localize.localize.model_sha256"):
        monkeypatch.setattr(f"nemo_prune.{place}", lambda *_, **__: pytest.fail("worked on the model"))
    rawfiles.sd1(tmp_path / "m.safetensors")
    rawfiles.sd1(tmp_path / "pruned.safetensors")
    (tmp_path / "p.txt").write_text("a cat\n")
    (tmp_path / "old").write_text("keep me")
    (tmp_path / "link").symlink_to("old")
    os.link(tmp_path / "old", tmp_path / "twin")
    (tmp_path / "dir").mkdir()
    (tmp_path / "same").symlink_to("dir")
    return tmp_path


def refused(folder: Path, *arguments: object) -> str:
    """The one line about a command that is refused and leaves everything as it was."""
    before = {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")} == before
    return result.stderr.splitlines()[-1]


PRUNE = ("prune", "m.safetensors", "--prompts", "p.txt")


@pytest.mark.parametrize(
    "outputs",
    [
        ["-o", "x", "--manifest", "x"],
        ["-o", "x", "--manifest", "./x"],
        ["-o", "x", "--manifest", "X"],
        ["-o", "x", "--manifest", "dir/../x"],
        ["-o", "dir/x", "--manifest", "same/x"],
        ["-o", "old", "--manifest", "link"],
        ["-o", "old", "--manifest", "twin"],
        ["-o", "caf\u00e9", "--manifest", "cafe\u0301"],
        ["-o", "x", "--undo", "u", "--manifest", "u"],
        ["-o", "x", "--report", "x.json", "--manifest", "x.json"],
        ["-o", "x", "--card", "x.md", "--report", "X.md"],
        ["-o", "x", "--manifest", "n", "--card", "n.journal"],
        ["-o", "x", "--report", "r.html", "--report", "./r.html"],
    ],
    ids=" ".join,
)
def test_two_outputs_are_never_one_file(here: Path, outputs: list[str]) -> None:
    assert "is to be written twice" in refused(here, *PRUNE, *outputs, "--overwrite")


def test_undo_rows_are_never_the_checkpoint(here: Path) -> None:
    refused(here, *PRUNE, "-o", "x", "--undo", "x", "--overwrite")


def test_verify_writes_two_reports_to_two_files(here: Path) -> None:
    verify = ("verify", "m.safetensors", "pruned.safetensors", "--prompts", "p.txt", "--overwrite")
    assert "is to be written twice" in refused(here, *verify, "--report", "r.md", "--card", "R.md")


def test_the_step_summary_is_an_output_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = ("check", "m.safetensors", "--prompts", "p.txt", "--overwrite")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "j.xml")
    assert "is to be written twice" in refused(here, *check, "--junit", "./j.xml")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "p.txt")
    assert "is read by this command" in refused(here, *check)


@pytest.mark.parametrize("verb", ["detect", "localize"])
def test_a_journal_is_an_output_too(here: Path, verb: str) -> None:
    """It is appended to, so it must not be what the command reads."""
    (here / "p.txt").rename(here / "n.journal")
    output = "--csv" if verb == "detect" else "-o"
    assert "is read by this command" in refused(
        here, verb, "m.safetensors", "--prompts", "n.journal", output, "n", "--resume"
    )


SEARCHING = [["prune", "--dry-run"], ["localize", "-o", "n"], ["detect"], ["check"]]


@pytest.mark.parametrize("verb", SEARCHING, ids=lambda verb: verb[0])
@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--calibration", "other.safetensors"], "is for a model with other value layers"),
        (["--calibration", "old"], "is damaged or no calibration"),
        (["--calibration", "none"], "no such file"),
        (["--calibration-prompts", "p.txt"], "give at least 30"),
        (["--calibration", "other.safetensors", "--calibration-prompts", "p.txt"], "give one of them"),
        (["--timestep", "5000"], "the model knows 0 to 999"),
        (["--config", "dir"], "scheduler/scheduler_config.json"),
        (["--tau", "0.5", "--gate", "0.4"], "lies below tau"),
        (["--fpr", "1e-17"], "--fpr 1e-17: no list of prompts shows so small a rate"),
        (["--batch-size", "0"], "is a positive number or auto"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_model_is_loaded(
    here: Path, verb: list[str], more: list[str], words: str
) -> None:
    write_calibration(calibration(), here / "other.safetensors")
    assert words in refused(here, verb[0], "m.safetensors", "--prompts", "p.txt", *verb[1:], *more)


def test_too_few_prompts_to_calibrate_are_refused_before_the_model_is_loaded(here: Path) -> None:
    line = refused(here, "calibrate", "m.safetensors", "--prompts", "p.txt", "-o", "c.safetensors")
    assert "give at least 30" in line


@pytest.mark.parametrize("verb", ["localize", "detect"])
def test_a_journal_of_other_prompts_is_refused_before_the_model_is_loaded(here: Path, verb: str) -> None:
    other: dict[str, Any] = fingerprint_of_run("0" * 64, ["a dog"], None, {"tau": 0.5})
    Journal.open(here / "n.journal", other, resume=False).close()
    output = "--csv" if verb == "detect" else "-o"
    line = refused(here, verb, "m.safetensors", "--prompts", "p.txt", output, "n", "--resume")
    assert "belongs to a run with other prompts;" in line


def test_what_a_terminal_cannot_show_decides_nothing(tmp_path: Path) -> None:
    """Emoji in a prompt and a Japanese file name, on terminals of other encodings."""
    model = write_small(tmp_path / "モデル.safetensors", side=16)
    prompts = tmp_path / "字幕.txt"
    prompts.write_text("a cat 🐈\n", encoding="utf-8")
    given = ["--prompts", str(prompts), "--seeds", "2", "--device", "cpu", "--show-prompts",
             "--tau", "0", "--gate", "0"]  # fmt: skip
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    tables = {encoding: tmp_path / f"表-{encoding}.csv" for encoding in ("ascii", "cp1252")}
    commands = {
        encoding: [
            ["check", str(model), *given],
            ["detect", str(model), *given, "--csv", str(table)],
            ["inspect", str(model)],
            ["inspect", str(tmp_path / "無.safetensors")],
        ]
        for encoding, table in tables.items()
    }
    # One process, since each that scores takes seconds to load torch. Its streams become what they are
    # in one that is started with the encoding.
    code = (
        "import json, sys\nfrom nemo_prune.cli.main import main\n"
        "for encoding, commands in json.loads(sys.argv[1]).items():\n"
        "    sys.stdout.reconfigure(encoding=encoding, errors='strict')\n"
        "    sys.stderr.reconfigure(encoding=encoding, errors='backslashreplace')\n"
        "    for arguments in commands:\n"
        "        try: main(arguments)\n"
        "        except SystemExit as left: print(encoding, 'left with', left.code, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)], capture_output=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    for encoding, table in tables.items():
        left = re.findall(rf"^{encoding} left with (\d)\r?$".encode(), done.stderr, re.MULTILINE)
        assert left == [b"1", b"0", b"0", b"2"], encoding
        assert table.exists()
    assert b"internal error" not in done.stderr
    assert b"Traceback" not in done.stderr


def test_json_is_the_same_on_every_terminal(tmp_path: Path) -> None:
    model = rawfiles.sd1(tmp_path / "モデル.safetensors")
    command = [sys.executable, "-c", "from nemo_prune.cli.main import main; main()"]
    told = [
        json.loads(
            subprocess.run(
                [*command, "inspect", str(model), "--json"], capture_output=True, check=True,
                env={**os.environ, "PYTHONIOENCODING": encoding},
            ).stdout
        )
        for encoding in ("utf-8", "cp1252")
    ]  # fmt: skip
    assert told[0] == told[1]
    assert told[0]["path"] == str(model)


@pytest.mark.parametrize(
    "command",
    [
        "localize m.safetensors --prompts p.txt -o {}.json",
        "prune m.safetensors --prompts p.txt -o o.safetensors --manifest {}.json",
        "detect m.safetensors --prompts p.txt --csv {}.csv",
        "detect m.safetensors --prompts p.txt -o {}.csv",
        "audit m.safetensors pruned.safetensors --prompts p.txt --report {}.json",
        "compare m.safetensors --prompts p.txt --report {}.json",
    ],
)
def test_a_name_to_which_nothing_can_be_added(here: Path, command: str) -> None:
    """Of 255 bytes, the most that there are; beside it a journal or the like is written."""
    before = sorted(here.iterdir())
    end = command.rpartition(".")[2]
    for name in ("n" * (254 - len(end)), "n" * 300):
        result = run(*(part.format(name) for part in command.split()))
        assert result.exit_code == 2, result.output
        assert "file name too long" in result.stderr
        assert "internal error" not in result.stderr
    assert sorted(here.iterdir()) == before


def test_inputs_of_names_that_there_cannot_be(here: Path) -> None:
    assert here
    name = "n" * 300
    for command in (
        f"inspect {name}.safetensors", f"apply {name}.safetensors --neurons 0:1 -o o",
        f"check m.safetensors --prompts {name}.txt", f"diff m.safetensors {name}",
        f"apply m.safetensors --manifest {name}.json -o o", f"restore m.safetensors --undo {name} -o o",
        f"check m.safetensors --prompts p.txt --calibration {name}.safetensors",
    ):  # fmt: skip
        result = run(*command.split())
        assert result.exit_code == 2, result.output
        assert "internal error" not in result.stderr, command
