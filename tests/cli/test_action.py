"""The GitHub Action and the hook: their own shell, as GitHub runs it, in a clean environment."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from tiny import run, write_small

from nemo_prune.cli.main import main

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS = ACTION["runs"]["steps"]
HOOKS = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
BASH = shutil.which("bash")
# Options of check that a job has no use for: what it prints is for the outputs, its files are new.
NO_INPUTS = {"overwrite", "json", "quiet", "no-cache", "workers", "ray"}

pytestmark = pytest.mark.skipif(BASH is None, reason="GitHub's runners have bash")


@dataclass(frozen=True)
class Job:
    """What came of the action in its workspace."""

    code: int
    outputs: dict[str, str]
    stderr: str
    folder: Path


def program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def act(folder: Path, inputs: dict[str, str], **environment: str) -> Job:
    """Run the steps as GitHub does: expressions filled in, `run` in bash, outputs by a file."""
    known = {name: one.get("default", "") for name, one in ACTION["inputs"].items()} | inputs
    assert known.keys() == ACTION["inputs"].keys()
    for name in ("work", "temp"):
        (folder / name).mkdir(exist_ok=True)
    output = folder / "output"
    output.touch()
    clean = {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.defpath}", "HOME": str(folder),
        "RUNNER_TEMP": str(folder / "temp"), "GITHUB_WORKSPACE": str(folder / "work"),
        "GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        "GITHUB_ACTIONS": "true", "NEMO_PRUNE_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    contexts = {f"inputs.{name}": value for name, value in known.items()}
    contexts["github.action_path"] = str(ROOT)
    code, stderr = 0, ""
    for number, step in enumerate(STEPS):
        if "if" in step:
            name, literal = re.fullmatch(r"(inputs\.[\w-]+) == '(.*)'", step["if"]).groups()
            if contexts[name] != literal:
                continue
        env = {
            name: re.sub(r"\$\{\{ ([\w.-]+) \}\}", lambda found: contexts[found[1]], value)
            for name, value in step["env"].items()
        }
        script = folder / f"{number}.sh"
        script.write_text(step["run"])
        done = subprocess.run(
            [str(BASH), "--noprofile", "--norc", "-e", "-o", "pipefail", str(script)],
            cwd=folder / "work", env=clean | env | environment, capture_output=True, text=True,
        )  # fmt: skip
        code, stderr = done.returncode, stderr + done.stderr
        if code:
            break
    outputs = dict(line.split("=", 1) for line in output.read_text().splitlines())
    return Job(code, outputs, stderr, folder)


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """A nemo-prune that only notes what it is called with."""
    return program(
        tmp_path / "fake",
        f"#!{sys.executable}\nimport json, os, sys\n"
        f"json.dump(sys.argv[1:], open({str(tmp_path / 'argv')!r}, 'w'))\n"
        f"open(next(one[8:] for one in sys.argv if one[:8] == '--junit='), 'w').close()\n"
        f"print(json.dumps({{'memorized': 3}}))\nsys.exit(int(os.environ.get('FAKE_CODE', 0)))\n",
    )


def argv(job: Job) -> list[str]:
    return json.loads((job.folder / "argv").read_text())


def test_the_action_installs_and_checks(tmp_path: Path) -> None:
    """From nothing to a verdict; what stands in for pip installs what is there."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "work").mkdir()
    package = (
        f"#!/bin/sh\nPYTHONPATH='{ROOT}' exec '{sys.executable}' -c "
        '"from nemo_prune.cli.main import main; main(prog_name=\'nemo-prune\')" "$@"\n'
    )
    program(tmp_path / "nemo-prune", package)
    pip = f'echo "$@" >> \'{tmp_path}/pip\'\ncp \'{tmp_path}/nemo-prune\' "$(dirname "$0")"\n'
    program(tmp_path / "pip-python", f"#!/bin/sh\n{pip}")
    program(
        tmp_path / "bin" / "python3",
        '#!/bin/sh\nif [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin"; '
        f"cp '{tmp_path}/pip-python' \"$3/bin/python\"; else exec '{sys.executable}' \"$@\"; fi\n",
    )
    write_small(tmp_path / "work" / "a model.safetensors", side=16)
    shutil.copy(tmp_path / "work" / "a model.safetensors", tmp_path / "work" / "b.safetensors")
    (tmp_path / "work" / "p.txt").write_text("a cat\na dog\n")
    given = {
        "model": "a model.safetensors\n\nb.safetensors\n", "prompts": "p.txt\n", "seeds": "2",
        "tau": "0", "gate": "0", "device": "cpu", "expect-prompts": "2",
    }  # fmt: skip
    job = act(tmp_path, given)
    assert job.code == 1, job.stderr
    (installed,) = (tmp_path / "pip").read_text().splitlines()
    assert installed.startswith("-m pip install ")
    assert installed.endswith(f"-c {ROOT}/constraints.txt {ROOT}[parquet]")
    found = json.loads(Path(job.outputs.pop("json")).read_text())
    assert [one["memorized"] for one in found["models"]] == [2, 2]
    assert job.outputs == {
        "verdict": "memorized", "exit-code": "1", "memorized": "4", "junit": "memorization.xml"
    }  # fmt: skip
    suites = ElementTree.parse(tmp_path / "work" / "memorization.xml").getroot()
    assert suites.get("failures") == "4"
    assert "2 of 2 prompts are memorized" in (tmp_path / "summary.md").read_text()
    assert "::error file=p.txt,line=1" in job.stderr


def test_every_option_has_its_input(tmp_path: Path, fake: Path) -> None:
    options = {
        option.opts[-1].lstrip("-"): option for option in main.commands["check"].params
        if option.param_type_name == "option"
    }  # fmt: skip
    inputs = ACTION["inputs"].keys() - {"model", "fail", "python", "command"}
    assert options.keys() - inputs == NO_INPUTS
    assert inputs <= options.keys()
    values = {name: "true" if options[name].is_flag else "1" for name in inputs} | {"junit": "j.xml"}
    job = act(tmp_path, values | {"model": "m", "command": str(fake), "python": sys.executable})
    assert job.code == 0, job.stderr
    assert job.outputs["verdict"] == "clean"
    assert job.outputs["memorized"] == "3"
    words = argv(job)
    assert words[0] == "check"
    assert words[-3:] == ["--json", "--", "m"]
    wanted = {f"--{n}" if options[n].is_flag else f"--{n}={values[n]}" for n in inputs}
    assert set(words[1:-3]) == wanted


def test_blanks_around_lines_are_left_out(tmp_path: Path, fake: Path) -> None:
    given = {"model": "m n \r\n\t o\n \n", "prompts": "a.txt\n  b c.txt \n", "command": str(fake)}
    job = act(tmp_path, given)
    words = argv(job)
    assert words[-2:] == ["m n", "o"]
    assert [word for word in words if "prompts" in word] == ["--prompts=a.txt", "--prompts=b c.txt"]


@pytest.mark.parametrize("name", ["model", "prompts"])
@pytest.mark.parametrize("given", ["'a b.txt'", '"a b.txt"', "'a*.txt'"])
def test_quotes_in_a_block_are_said(tmp_path: Path, fake: Path, name: str, given: str) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "a b.txt").touch()
    inputs = {"model": "m", "prompts": "p", "command": str(fake)} | {name: f"{given}\n"}
    job = act(tmp_path, inputs)
    assert (job.code, job.outputs["verdict"]) == (2, "error")
    assert f"{given}: leave out the quotes" in job.stderr
    assert not (tmp_path / "argv").exists()
    assert act(tmp_path, inputs | {name: given.strip("'\"")}).code == 0


def test_what_cannot_be_written_to_is_no_verdict(tmp_path: Path, fake: Path) -> None:
    inputs = {"model": "m", "prompts": "p", "command": str(fake)}
    job = act(tmp_path, inputs, RUNNER_TEMP=str(tmp_path / "none"))
    assert (job.code, job.outputs) == (2, {"verdict": "error", "exit-code": "2"})
    assert "cannot be written to: it is missing, full or read-only" in job.stderr
    assert "no verdict" in (tmp_path / "summary.md").read_text()


def test_carriage_returns_behind_flags(tmp_path: Path, fake: Path) -> None:
    inputs = {"model": "m", "prompts": "p", "command": str(fake), "fail": "false\r", "force": "true\r"}
    job = act(tmp_path, inputs, FAKE_CODE="1")
    assert (job.code, job.outputs["verdict"]) == (0, "memorized")
    assert "--force" in argv(job)


NASTY = [
    "$(touch pwned)", "`touch pwned`", '"; touch pwned; "', "'; touch pwned; '", "&& touch pwned",
    "*", "~", "$HOME", "--tau=1", "-", "a b", "${{ github.token }}", "é 日本", "\\n", "!!", "x=y",
]  # fmt: skip


@pytest.mark.parametrize("name", ["model", "prompts", "calibration"])
def test_no_text_of_an_input_is_a_command(tmp_path: Path, fake: Path, name: str) -> None:
    given = {"model": "m", "prompts": "p", "command": str(fake), "python": sys.executable}
    job = act(tmp_path, given | {name: "\r\n".join(["", *NASTY, " "])})
    assert job.code == 0, job.stderr
    words = argv(job)
    models = words[words.index("--") + 1 :]
    assert (models if name == "model" else [
        word.removeprefix(f"--{name}=") for word in words if word.startswith(f"--{name}=")
    ]) == NASTY  # fmt: skip
    assert list(tmp_path.rglob("pwned")) == []
    for step in STEPS:
        assert "${{" not in step["run"], "inputs reach the shell by its environment alone"


@pytest.mark.parametrize(
    ("code", "fail", "exits", "verdict"),
    [
        ("0", "true", 0, "clean"),
        ("1", "true", 1, "memorized"),
        ("1", "false", 0, "memorized"),
        ("2", "false", 2, "error"),
        ("130", "false", 130, "error"),
    ],
)
def test_what_fails_the_step(
    tmp_path: Path, fake: Path, code: str, fail: str, exits: int, verdict: str
) -> None:
    given = {"model": "m", "prompts": "p", "command": str(fake), "python": "no python", "fail": fail}
    job = act(tmp_path, given, FAKE_CODE=code)
    assert job.outputs.get("memorized", "3") == "3"
    assert (job.code, job.outputs["verdict"], job.outputs["exit-code"]) == (exits, verdict, code)
    assert ("memorized" in job.outputs) == (int(code) < 2)
    assert job.outputs["junit"] == ("memorization.xml" if int(code) <= 2 else "")
    assert ("not run to its end" in job.stderr) == (tmp_path / "summary.md").exists() == (int(code) > 2)


def test_a_junit_file_that_was_not_written_is_not_named(tmp_path: Path) -> None:
    command = program(tmp_path / "refuses", "#!/bin/sh\nexit 2\n")
    given = {"model": "m", "prompts": "p", "command": str(command), "junit": "no/such/folder/m.xml"}
    job = act(tmp_path, given)
    assert (job.code, job.outputs["verdict"], job.outputs["junit"]) == (2, "error", "")


@pytest.mark.parametrize("command", ["nemo-prun", "python -m nemo_prune"])
def test_a_program_that_is_none_is_no_verdict(tmp_path: Path, command: str) -> None:
    job = act(tmp_path, {"model": "m", "prompts": "p", "command": command, "python": sys.executable})
    assert job.code == 127
    assert job.outputs["verdict"] == "error"
    assert (job.outputs["exit-code"], job.outputs["junit"]) == ("127", "")
    assert "one program, without arguments" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"junit": "j.xml\nverdict=clean"}, "junit is one path"),
        ({"junit": ""}, "junit is one path"),
        ({"force": "yes"}, "force is true or false"),
        ({"fail": "no"}, "fail is true or false"),
    ],
)
def test_inputs_that_are_refused(tmp_path: Path, fake: Path, given: dict[str, str], words: str) -> None:
    job = act(tmp_path, {"model": "m", "prompts": "p", "command": str(fake), **given})
    assert job.code == 2
    assert words in job.stderr
    assert job.outputs == {"verdict": "error", "exit-code": "2"}
    assert words in (tmp_path / "summary.md").read_text()
    assert not (tmp_path / "argv").exists()


def test_outputs_are_those_of_the_steps() -> None:
    (check,) = (step for step in STEPS if step.get("id") == "check")
    for name, one in ACTION["outputs"].items():
        assert one["value"] == f"${{{{ steps.check.outputs.{name} }}}}"
        assert f"{name}=" in check["run"]
    assert all(step["shell"] == "bash" for step in STEPS), "as composite actions must say"
    assert all(one["description"] for one in [*ACTION["inputs"].values(), *ACTION["outputs"].values()])


def test_the_documented_uses_are_understood() -> None:
    text = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    *_, job, config = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", text, re.DOTALL))
    (used,) = (step for step in job["steps"] if step.get("uses") == "./nemo-prune")
    assert used["with"].keys() <= ACTION["inputs"].keys()
    assert {name for name, one in ACTION["inputs"].items() if one.get("required")} <= used["with"].keys()
    named = re.findall(r"steps\.memorization\.outputs\.([\w-]+)", str(job))
    assert len(named) == 2
    assert set(named) <= ACTION["outputs"].keys()
    ((hook,),) = (repository["hooks"] for repository in config["repos"])
    assert hook["id"] == HOOKS[0]["id"]
    # With its parent, whose names of --help click keeps for good.
    parent = main.make_context("nemo-prune", [], resilient_parsing=True)
    main.commands["check"].make_context("check", [*hook["args"], "m"], parent=parent)


def test_the_hook_takes_the_files_that_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (hook,) = HOOKS
    files = ["a.safetensors", "b.safetensors"]
    assert all(re.search(hook["files"], name) for name in files)
    assert not re.search(hook["files"], "a.safetensors.md")
    write_small(tmp_path / files[0], side=16)
    shutil.copy(files[0], files[1])
    (tmp_path / "captions.txt").write_text("a cat\n")
    program_name, *words = hook["entry"].split()
    assert program_name == "nemo-prune"
    assert hook["require_serial"], "or a list of files would be split over processes"

    def hooked(*args: Any) -> int:
        quick = ["--seeds", "2", "--device", "cpu", "--tau", "0"]
        return run(*words, *hook["args"], *quick, *args).exit_code

    assert hooked("--gate", "1", *files) == 0
    assert hooked("--gate", "0", *files) == 1
    assert hooked("--gate", "1", *files, "no.safetensors") == 2
