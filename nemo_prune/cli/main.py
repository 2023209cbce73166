"""The command line: parse, call the library, print. Nothing here knows how anything is done.

Exit codes: 0 all suppressed or not memorized; 1 something is still memorized (check: is memorized,
diff: the files differ); 2 bad usage or input, or an error of the program itself; 130 interrupted;
143 terminated; 129 its terminal was closed.
"""

import contextlib
import difflib
import errno
import io
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import cloup
from click.shell_completion import CompletionItem
from click_default_group import DefaultGroup

from nemo_prune import __version__
from nemo_prune.cli import (
    apply,
    audit,
    calibrate,
    check,
    compare,
    demo,
    detect,
    diff,
    inspect,
    localize,
    prune,
    restore,
    verify,
)
from nemo_prune.cli.failures import say, say_failure
from nemo_prune.errors import Interrupted

# Read by the libraries while they are imported, which no verb does before `Group.main`.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # Standard error belongs to the command line's own progress bar.
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    # Lists are tokenized in one thread ahead; more of them cost a fifth of all that is not the model.
    "TOKENIZERS_PARALLELISM": "false",
}
CONTEXT = cloup.Context.settings(
    help_option_names=["-h", "--help"],
    max_content_width=100,
    formatter_settings=cloup.HelpFormatter.settings(
        # No colours: they would have to be seen on any background.
        theme=cloup.HelpTheme(
            heading=cloup.Style(bold=True, underline=True), col1=cloup.Style(bold=True)
        )
    ),
)
_NARROWEST = 24  # columns; a terminal of fewer has lines that it breaks itself
_BARE = re.compile(r"\w[\w-]*")  # no path to a file, for which nobody would look long
_PATH = re.compile(r"(?!\w+://)[\w.~/\\]")  # no option, no address
_OTHER_WORDS = {
    "detect": {"scan", "find", "score", "search", "rank", "screen"},
    "inspect": {"list", "ls", "info", "show", "stat", "view", "describe"},
    "check": {"test", "gate", "lint", "validate"},
    "verify": {"evaluate", "eval", "report", "judge"},
    "apply": {"edit", "zero", "patch", "write", "mask"},
    "prune": {"run", "remove", "fix", "clean", "erase", "forget", "unlearn"},
    "restore": {"undo", "revert", "unprune", "recover"},
    "audit": {"attack", "recall"},
    "compare": {"benchmark", "bench"},
    "diff": {"cmp"},
    "calibrate": {"measure"},
}
"""What programs of other people call such verbs."""
_MEANT = {
    **dict.fromkeys(
        ("--model", "-m", "--checkpoint", "--ckpt", "--model-path", "--input", "-i"),
        "A model is named without one, as in the example of --help.",
    ),
    **dict.fromkeys(("--force", "-f", "--yes", "-y"), "Did you mean '--overwrite'?"),
}
"""Options of other people's programs."""
_ROWS_KEPT = "A manifest holds no rows; give --undo, the file that was kept when the model was pruned."
_MANY = 5  # verbs that have an option, of which no list is of use
_HELP = ("/?", "/h", "/help")  # as Windows' own programs have it
_ALIKE = 0.7  # similarity from which on a word is taken for a mistyped verb (difflib's ratio)


@contextmanager
def _termination() -> Iterator[list[int]]:
    """SIGTERM and SIGHUP end a run as Ctrl-C does: what is half written goes. Yields what came."""
    came: list[int] = []
    hang_up = getattr(signal, "SIGHUP", None)  # which Windows has not

    def stop(number: int, _frame: object) -> None:
        if number == hang_up and number in came:  # of the terminal and of its shell
            return
        came.append(number)
        raise KeyboardInterrupt

    before = {}
    with contextlib.suppress(ValueError):  # not the main thread, the only one that receives signals
        before[signal.SIGTERM] = signal.signal(signal.SIGTERM, stop)
        if hang_up is not None and signal.getsignal(hang_up) != signal.SIG_IGN:  # as nohup has it
            before[hang_up] = signal.signal(hang_up, stop)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Group(DefaultGroup, cloup.Group):  # type: ignore[misc]
    """Where every error of the library becomes one line and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        # The process is the command's own; the library changes no setting of anybody's.
        os.environ.update(ENVIRONMENT)
        _stand_for_a_closed_stdout()
        _escape_what_cannot_be_shown()
        if not os.environ.get("COLUMNS", "1").strip(" 0"):  # rich would show nothing, in no columns
            del os.environ["COLUMNS"]
        if os.environ.get("NO_COLOR"):  # which click does not look at
            kwargs.setdefault("color", False)
        if shutil.get_terminal_size().columns < _NARROWEST:
            kwargs.setdefault("terminal_width", _NARROWEST)
        try:
            return super().main(*args, **kwargs)
        except OSError as error:  # left to the interpreter this would be exit code 1
            say_failure(error)
            sys.exit(2)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Where --help and --version are answered."""
        try:
            return super().make_context(*args, **kwargs)
        except BrokenPipeError:  # which click answers with 1: "memorized"
            _discard_stdout()
            sys.exit(2)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """In sections; DefaultGroup's own would mark the default command in a plain list."""
        cloup.Group.format_commands(self, ctx, formatter)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Verbs, and files, since the first word may be the model."""
        # Bash drops what comes before a file, and takes files where no verb matches.
        return [CompletionItem(incomplete, type="file"), *super().shell_complete(ctx, incomplete)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """`-h VERB` is the verb's help; further options before a verb are refused."""
        if args[1:] and args[0] in ctx.help_option_names and args[1] in self.commands:
            args = [args[1], args[0]]
        for word in args[:2]:
            if word.lower() in _HELP and not os.path.lexists(word) and not ctx.resilient_parsing:
                raise click.UsageError(f"'{word}' shows no help here; --help does", ctx)
        asked = {*args} & {*ctx.help_option_names, "--version"} or ctx.resilient_parsing
        if args and args[0][:1] == "-" and not asked:
            self._refuse_options_first(ctx, args)
        return super().parse_args(ctx, args)

    def _refuse_options_first(self, ctx: click.Context, args: list[str]) -> None:
        prune = self.commands["prune"]
        try:
            model = prune.make_parser(click.Context(prune)).parse_args(list(args))[0].get("model")
        except click.UsageError:  # an option that prune does not have: then what is no option
            model = next((word for word in args if word[:1] != "-"), None)
        if isinstance(model, str) and model in self.commands and not os.path.lexists(model):
            rest = args[: args.index(model)] + args[args.index(model) + 1 :]
            raise click.UsageError(
                f"options go behind the verb: nemo-prune {shlex.join([model, *rest])}", ctx
            )

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """The first word is a verb, else the model that `prune` is to prune."""
        word, verb = args[0], "".join(args[1:2])
        if word not in self.commands and verb in self.commands and not os.path.lexists(verb):
            right = shlex.join([verb, word, *args[2:]])
            raise click.UsageError(f"the verb comes first: nemo-prune {right}", ctx)
        if word not in self.commands and not os.path.lexists(word):
            known = {name for one in self.commands["prune"].params for name in one.opts}
            words = [*self.commands, "--help", "--version"]
            alike = difflib.get_close_matches(word.lower(), words, n=1, cutoff=_ALIKE)
            alike += [verb for verb, others in _OTHER_WORDS.items() if word.lower() in others]
            if alike and word.partition("=")[0] not in known:
                raise click.UsageError(
                    f"No such command or file '{word}'. Did you mean '{alike[0]}'?", ctx
                )
            if _BARE.fullmatch(word):
                raise click.UsageError(f"No such command or file '{word}'; --help lists commands", ctx)
            asked = {"-h", "--help"} & {*args} or ctx.resilient_parsing
            if _PATH.match(word) and not asked:
                from nemo_prune.checkpoint.open import open_checkpoint

                open_checkpoint(Path(word))  # says why it cannot, before options are looked at
        return super().resolve_command(ctx, args)

    def _whose(self, error: click.NoSuchOption) -> str | None:
        """Which verbs have an option that the running one has not, where they are few."""
        name, ctx = error.option_name, error.ctx
        if ctx is not None and ctx.command is self.commands["restore"] and name == "--manifest":
            return _ROWS_KEPT
        verbs = [
            verb
            for verb, one in self.commands.items()
            if any(name in parameter.opts for parameter in one.params)
        ]
        if not 0 < len(verbs) < _MANY:
            return None
        return f"{' and '.join(verbs)} {'has' if len(verbs) == 1 else 'have'} it."

    def invoke(self, ctx: click.Context) -> Any:
        with _termination() as came:
            try:
                return super().invoke(ctx)
            except click.NoSuchOption as error:
                meant = _MEANT.get(error.option_name) or self._whose(error)
                if meant is None:
                    raise
                told = f"No such option '{error.option_name}'. {meant}"
                raise click.UsageError(told, error.ctx) from None
            except Interrupted as error:
                say_failure(error)
                stopped = True
            except KeyboardInterrupt:
                with contextlib.suppress(OSError):  # a terminal that hung up
                    click.echo("nemo-prune: interrupted", err=True)
                stopped = True
            except (click.exceptions.Exit, click.Abort, click.ClickException):
                raise
            except (BrokenPipeError, SystemExit):  # the latter is how rich answers the former
                _discard_stdout()
                with contextlib.suppress(OSError):
                    say("nemo-prune: standard output was closed before all was written")
                stopped = False
            except Exception as error:
                # Left to the interpreter it would exit with 1, which says "memorized" or "they differ".
                say_failure(error)
                stopped = False
        return ctx.exit(128 + (came or [signal.SIGINT])[0] if stopped else 2)


class _Closed(io.TextIOBase):
    """A standard output that is closed: what is written to it is an error, as where a disk is full."""

    def write(self, _text: str) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def _stand_for_a_closed_stdout() -> None:
    """Python has None for a closed standard output (`>&-`), by which what is printed is lost unsaid."""
    if sys.stdout is not None:
        return
    sys.stdout = _Closed()
    # Else the next file that is opened would be what other libraries take for standard output.
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _escape_what_cannot_be_shown() -> None:
    """Prompts and file names may hold what a terminal's encoding lacks: no reason to fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")


def _discard_stdout() -> None:
    """The reader of standard output is gone: what is still to be flushed must not fail once more."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(cls=Group, default="prune", default_if_no_args=False, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="nemo-prune")
def main() -> None:
    """Find the value neurons that make a Stable Diffusion checkpoint replicate training pictures,
    and zero them in the safetensors file.

    \b
    Examples:
      nemo-prune model.safetensors --prompts mem.txt -o clean.safetensors
      nemo-prune demo
    """


main.section("Prune", prune.prune, localize.localize, apply.apply, demo.demo)
main.section("Find memorized prompts", detect.detect, check.check, calibrate.calibrate)
main.section(
    "Look and undo", verify.verify, audit.audit, compare.compare, diff.diff, inspect.inspect,
    restore.restore,
)  # fmt: skip
