"""Help that people can read: groups, whole sentences, examples; narrow, piped and without colours."""

import contextlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner

from nemo_prune.cli.main import main

VERBS = list(main.commands)
ANSI = "\x1b["


def help_of(*words: str, width: int = 80) -> str:
    """As a terminal of this width shows it, but for what is bold there; click's runner has one width."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setenv("COLUMNS", str(width))
        main([*words, "--help"], prog_name="nemo-prune", standalone_mode=False)
    return out.getvalue()


def test_the_list_of_commands_has_whole_sentences_in_one_line_each() -> None:
    listed = help_of()
    assert listed.count("...") == 1, "in the usage"
    for name, command in main.commands.items():
        sentence = " ".join((command.help or "").partition("\n\n")[0].split())
        assert sentence.endswith((".", ").")), name
        assert re.search(rf"^  {name} +{re.escape(sentence)}$", listed, re.MULTILINE), name
    assert re.findall(r"^(\S.*):$", listed, re.MULTILINE)[1:] == [
        "Prune", "Find memorized prompts", "Look and undo"
    ]  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_has_an_example_that_is_understood(verb: str) -> None:
    found = re.findall(r"^    (nemo-prune (?:.*\\\n)*.*)$", help_of(verb), re.MULTILINE)
    assert found
    for example in found:
        words = shlex.split(example.replace("\\\n", ""))[1:]
        words = words if words[0] in VERBS else ["prune", *words]
        assert words[0] == verb
        main.commands[verb].make_context(verb, words[1:])  # raises for what does not exist


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("width", [40, 80, 200])
def test_help_fits_its_terminal(verb: str, width: int) -> None:
    for line in help_of(verb, width=width).splitlines():
        # Examples are to be copied, and names of options and of their choices are one word.
        whole = line.startswith(("    ", "  -")) and width == 40
        assert len(line) <= min(width, 100) or whole, line


@pytest.mark.parametrize("width", [1, 5, 12, 24])
@pytest.mark.parametrize("words", [[], ["apply"]])
def test_no_terminal_is_too_narrow(words: list[str], width: int) -> None:
    assert help_of(*words, width=width).startswith("Usage: ")


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_says_what_it_does_and_stands_in_a_group(verb: str) -> None:
    command = main.commands[verb]
    options = [one for one in command.params if isinstance(one, click.Option)]
    assert all(one.help for one in options)
    groups = {getattr(getattr(one, "group", None), "title", None) for one in options}
    if len(options) > 5:
        assert None not in groups
        assert len(groups) >= 2
        assert all(f"\n{group}:\n" in help_of(verb) for group in groups)
    assert "RANGE" not in help_of(verb)


def test_colours_are_for_terminals_that_want_them() -> None:
    def shown(**settings: str | None) -> str:
        return CliRunner(env=settings).invoke(main, ["check", "--help"], color=True).stdout

    assert ANSI in shown(NO_COLOR=None)
    assert ANSI in shown(NO_COLOR="")
    assert ANSI not in shown(NO_COLOR="1")
    assert ANSI not in help_of("check"), "a pipe"


def test_help_imports_no_torch_and_no_rich() -> None:
    code = (
        "import sys; sys.argv = ['nemo-prune', 'prune', '--help']\n"
        "from nemo_prune.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'numpy', 'rich', 'jinja2', 'PIL'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def completed(*words: str, incomplete: str) -> list[tuple[str, str]]:
    complete = BashComplete(main, {}, "nemo-prune", "_NEMO_PRUNE_COMPLETE")
    return [(one.type, one.value) for one in complete.get_completions(list(words), incomplete)]


def test_a_shell_completes_verbs_files_and_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Bash drops what comes before a file.
    assert completed(incomplete="ch") == [("file", "ch"), ("plain", "check")]
    assert ("file", "") in completed(incomplete="")
    assert ("plain", "--prompts-format") in completed("check", incomplete="--prompts-f")
    assert completed("check", "--confirm", incomplete="tr") == [("plain", "trajectory")]
    assert ("file", "mo") in completed("inspect", incomplete="mo")
    Path("m.safetensors").touch()
    assert ("plain", "--dry-run") in completed("m.safetensors", incomplete="--dry"), "the default verb"
