"""What the README says can be typed, and the tests that it names, are there."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from tiny import run

from nemo_prune.cli.main import main

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    """The `check` commands of the two CI jobs."""
    actions, gitlab = (
        yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    )
    assert actions[True] == ["push"], "YAML 1.1 reads the key on as true"
    steps = actions["jobs"]["memorization"]["steps"]
    script = gitlab["memorization"]["script"]
    return [steps[-1]["run"], script[-1]]


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
    listed = re.findall(r"^\| `(\w+)`", README, re.MULTILINE)
    assert sorted(listed) == sorted(main.commands)


def test_every_option_named_exists() -> None:
    known = {
        option
        for command in main.commands.values()
        for parameter in command.params
        for option in parameter.opts
    }
    text = re.sub(r"^.*(pip install|python -m).*$", "", README, flags=re.MULTILINE)
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) <= known


def test_every_test_named_exists() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", README))
    assert len(named) > 10
    assert {name for name in named if f"def {name}(" not in code} == set()
