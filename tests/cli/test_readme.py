"""What the README and the documentation say can be typed, and the tests that they name, are there."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from tiny import run

from nemo_prune.cli.main import main

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md")))
}
EVERYTHING = "\n".join(PAGES.values())


def commands() -> list[str]:
    """The `check` commands of the two CI jobs."""
    actions, gitlab, _, _ = (
        yaml.safe_load(block)
        for block in re.findall(r"```yaml\n(.*?)```", PAGES["docs/ci.md"], re.DOTALL)
    )
    assert actions[True] == ["push"], "YAML 1.1 reads the key on as true"
    steps = actions["jobs"]["memorization"]["steps"]
    script = gitlab["memorization"]["script"]
    return [steps[-1]["run"], script[-1]]


def test_the_ci_jobs_make_the_calibration_that_they_use() -> None:
    made = re.findall(r"test -e (\S+) \|\|\n\s+nemo-prune calibrate (.+)", PAGES["docs/ci.md"])
    assert len(made) == 2
    for place, arguments in made:
        assert f"-o {place}" in arguments
        assert all(f"--calibration {place}" in command for command in commands())


@pytest.mark.parametrize("service", [0, 1])
def test_the_ci_jobs_run_check(service: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(commands()[service])
    assert program == "nemo-prune"
    result = run(*arguments)
    assert result.exit_code == 2
    assert "model.safetensors: " in result.stderr, "understood, up to the model that is not here"
    assert "Usage" not in result.stderr


def test_every_verb_is_in_the_table() -> None:
    listed = re.findall(r"^\| `(\w+)`(?: \(the default\))? \|", PAGES["docs/guide.md"], re.MULTILINE)
    assert sorted(listed) == sorted(main.commands)


def test_the_readme_has_a_command_for_every_task() -> None:
    used = set(re.findall(r"^    nemo-prune (\w+) ", README, re.MULTILINE))
    assert {"detect", "verify", "check", "diff", "apply", "restore", "inspect"} <= used
    assert "    nemo-prune model.safetensors --prompts" in README, "the default verb"
    assert len(README.split()) < 1000, "three minutes"


def test_every_option_named_exists() -> None:
    known = {
        option
        for command in main.commands.values()
        for parameter in command.params
        for option in parameter.opts
    } | {"--help"}
    text = re.sub(r"^.*(pip install|python -m).*$", "", EVERYTHING, flags=re.MULTILINE)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert len(named) > 40
    assert named - known - {"--net", "--ar"} == set(), "the latter is Midjourney's"


def test_every_test_named_exists() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    # SECURITY.md also names them behind a file, and several by one pattern.
    named = set(re.findall(r"(?:`|::)(test_\w+\*?(?:_\w+)?)`", EVERYTHING))
    assert len(named) > 50
    patterns = {name: name.replace("*", r"\w*") for name in named}
    assert {name for name, found in patterns.items() if not re.search(rf"def {found}\(", code)} == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_file_named_exists(page: str) -> None:
    """Links, and the paths of the code that are named in backticks."""
    folder = (ROOT / page).parent
    links = re.findall(r"\]\((?!http)([^)#]+)", PAGES[page])
    assert {link for link in links if not (folder / link).exists()} == set()
    code = re.findall(r"`((?:tests|nemo_prune)/[\w/.]+|test_\w+\.py)(?=[:`])", PAGES[page])
    tests = {path.name for path in (ROOT / "tests").rglob("*.py")}
    assert {path for path in code if not (ROOT / path).exists() and path not in tests} == set()


def test_where_to_change_what_names_what_is_there() -> None:
    """The picture of the rooms and the table of places, in the architecture."""
    page = PAGES["docs/architecture.md"]
    rooms = {path.parent.name for path in (ROOT / "nemo_prune").glob("*/__init__.py")}
    assert rooms == set(re.findall(r"^\| `(\w+)/` \|", page, re.MULTILINE))
    places = re.findall(rf"`((?:{'|'.join(rooms)})/\w+\.py)`", page)
    assert len(set(places)) > 20
    assert {place for place in places if not (ROOT / "nemo_prune" / place).exists()} == set()
