"""The command line: parse, call the library, print. Nothing here knows how anything is done.

Exit codes: 0 all suppressed or not memorized; 1 something is still memorized (check: is memorized,
diff: the files differ); 2 bad usage or input, or an error of the program itself; 130 interrupted;
143 terminated.
"""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from click_default_group import DefaultGroup

from nemo_prune import __version__
from nemo_prune.cli import detecting as cli_detect
from nemo_prune.cli import files as cli_files
from nemo_prune.cli import reporting as cli_report
from nemo_prune.cli import searching as cli_search
from nemo_prune.errors import Interrupted, NemoPruneError

DEBUG = "NEMO_PRUNE_DEBUG"  # set: the traceback of an internal error is shown
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@contextmanager
def _termination() -> Iterator[list[int]]:
    """SIGTERM ends a run as Ctrl-C does: what was half written is removed. Yields what came."""
    came: list[int] = []

    def stop(number: int, _frame: object) -> None:
        came.append(number)
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread, which alone hears of signals
        yield came
        return
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, before)


class Group(DefaultGroup):  # type: ignore[misc]
    """Where every error of the library becomes one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        with _termination() as came:
            try:
                return super().invoke(ctx)
            except NemoPruneError as error:
                from nemo_prune.cli.console import flags  # and with it rich, which few verbs need

                click.echo(f"nemo-prune: {flags(error.message)}", err=True)
                stopped = isinstance(error, Interrupted)
            except KeyboardInterrupt:
                click.echo("nemo-prune: interrupted", err=True)
                stopped = True
            except (click.exceptions.Exit, click.Abort, click.ClickException):
                raise
            except (BrokenPipeError, SystemExit):  # the latter is how rich answers the former
                _leave_the_pipe()
                stopped = False
            except Exception as error:
                # Left to the interpreter it would exit with 1, which says "memorized" or "they differ".
                if os.environ.get(DEBUG):
                    click.echo(traceback.format_exc(), err=True, nl=False)
                click.echo(f"nemo-prune: {_unexpected(error)}", err=True)
                stopped = False
        return ctx.exit(128 + (came or [signal.SIGINT])[0] if stopped else 2)


def _unexpected(error: Exception) -> str:
    """One line about an error that nobody raised on purpose."""
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for its name
        return "the device is out of memory; give a smaller --batch-size, or --device cpu"
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return f"internal error: {text.removesuffix(':')}; please report it"


def _leave_the_pipe() -> None:
    """Whoever read standard output is gone: what is still to be flushed must not fail once more."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(cls=Group, default="prune", default_if_no_args=False, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="nemo-prune")
def main() -> None:
    """Find the value neurons that make a Stable Diffusion checkpoint replicate training pictures,
    and zero them in the safetensors file.

    \b
    nemo-prune model.safetensors --prompts mem.txt -o clean.safetensors
    nemo-prune demo
    """


for command in (
    cli_search.prune,
    cli_search.localize,
    cli_detect.detect,
    cli_detect.check,
    cli_detect.calibrate,
    cli_files.apply,
    cli_files.diff,
    cli_files.restore,
    cli_files.inspect,
    cli_report.verify,
    cli_search.demo,
):
    main.add_command(command)
