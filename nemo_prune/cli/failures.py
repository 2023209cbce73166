"""What went wrong, in one line; and several models in one run, of which one may fail."""

import contextlib
import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from nemo_prune.errors import NemoPruneError

DEBUG = "NEMO_PRUNE_DEBUG"  # set: the traceback of an internal error is shown
T = TypeVar("T")
# Surrogates stand for bytes of a file's name that are not UTF-8.
# What turns a line round or takes no room would have it read as another.
_CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_WITHOUT_LISTS = {"apply", "diff", "restore"}  # verbs to which nobody gives prompts
_CANNOT_SAY = frozenset({errno.EBADF, errno.EFBIG, errno.EIO, errno.ENOSPC})


class Refused(NemoPruneError):
    """Models that were refused before any work; `lines` says why, of each that was."""

    def __init__(self, refused: Mapping[Path, NemoPruneError]) -> None:
        said = (_naming(model, one_line(error.message)) for model, error in refused.items())
        super().__init__("\nnemo-prune: ".join(said))
        self.lines = {model: failure(error) for model, error in refused.items()}


def _naming(model: Path, line: str) -> str:
    """A line about one of several models, some of which speak of another file alone."""
    return line if one_line(str(model)) in line else f"{one_line(str(model))}: {line}"


def one_line(text: str) -> str:
    """Text with its control characters escaped: a file's name may hold line breaks."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def say(text: str) -> None:
    """Print one line on standard error, whatever the names in it hold."""
    click.echo(one_line(text), err=True)


def failure(error: Exception) -> str:
    """One line about an error, with options as the command line spells them."""
    if isinstance(error, NemoPruneError):
        from nemo_prune.cli.console import flags  # and with it rich, which few verbs need
        from nemo_prune.files.header import LIST_ADVICE

        text = error.message if isinstance(error, Refused) else one_line(error.message)
        context = click.get_current_context(silent=True)
        if context and context.find_root().invoked_subcommand in _WITHOUT_LISTS:
            text = text.replace(one_line(LIST_ADVICE), "")
        return flags(text)
    if isinstance(error, click.ClickException):
        return error.format_message()
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for its name
        return "the device is out of memory; give a smaller --batch-size, or --device cpu"
    if isinstance(error, OSError) and error.filename is None and error.errno in _CANNOT_SAY:
        return f"standard output cannot be written ({error.strerror}); redirect it elsewhere"
    if isinstance(error, OSError) and error.filename and error.errno == errno.ENAMETOOLONG:
        name = one_line(os.fsdecode(error.filename))
        return f"{name}: cannot be read or written (file name too long); check the path"
    if sys.flags.optimize > 1:  # diffusers and transformers read docstrings
        return (
            f"{type(error).__name__}: Python runs without docstrings (PYTHONOPTIMIZE=2, -OO), which "
            f"libraries need that are used here; unset PYTHONOPTIMIZE, or give it as 1"
        )
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return f"internal error: {text.removesuffix(':')}; please report it"


def say_failure(error: Exception, model: Path | None = None) -> str:
    """Print that line; return it. model: which of several it is about."""
    if not isinstance(error, NemoPruneError) and os.environ.get(DEBUG):
        with contextlib.suppress(OSError):
            click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    line = failure(error) if model is None else _naming(model, failure(error))
    # Where it cannot be said, the exit code still tells: left to the interpreter this would be 1.
    with contextlib.suppress(OSError):
        click.echo(f"nemo-prune: {line}", err=True)
    return line


def refuse_twice(models: Sequence[Path]) -> None:
    """Raise click.UsageError for a model that is given twice, by whatever path or link."""
    from nemo_prune.files.atomic import same_file

    for number, model in enumerate(models):
        for other in models[:number]:
            if model == other or same_file(model, other):
                raise click.UsageError(f"{model}: is given twice; give each model once")


def own_name(model: Path) -> str:
    """The name of a model's file or folder, also if it is given as `.`; of a link, the link's."""
    return model.name if model.name not in ("", "..") else model.resolve().name


def refuse_one_name(models: Sequence[Path]) -> None:
    """Raise click.UsageError for models of one name, which cannot go into one folder."""
    seen: dict[str, Path] = {}
    for model in models:
        name = own_name(model).casefold()  # as many file systems have it
        if other := seen.get(name):
            raise click.UsageError(
                f"{other} and {model} have one name, so they cannot go into one folder; run apart"
            )
        seen[name] = model


def each(models: Sequence[Path], prepare: Callable[[Path], T]) -> list[T]:
    """`prepare` for every model, before any work; if one is refused, all are, each with its line.

    Raises Refused, and where there is one model what `prepare` raises.
    """
    prepared, refused = [], {}
    for model in models:
        try:
            prepared.append(prepare(model))
        except NemoPruneError as error:
            if len(models) == 1:
                raise
            refused[model] = error
    if refused:
        raise Refused(refused)
    return prepared


@contextmanager
def going_on(model: Path, alone: bool, told: list[dict[str, Any]]) -> Iterator[None]:
    """Run the work on one model: its failure is printed and noted in `told`, and the others go on.

    alone: there are no others, so the failure is raised.
    """
    try:
        yield
    except (click.exceptions.Exit, click.Abort, click.ClickException, BrokenPipeError):
        raise
    except Exception as error:
        if alone:
            raise
        told.append({"source": {"path": str(model)}, "error": say_failure(error, model)})


@contextmanager
def folder_for_several(folder: Path | None) -> Iterator[None]:
    """Make the folder that outputs of several models go into; if nothing came into it, it goes again.

    Raises OutputError where it cannot be made.
    """
    if folder is None or folder.is_dir():
        yield
        return
    from nemo_prune.errors import OutputError
    from nemo_prune.files.atomic import check_models_folder

    if folder.exists():
        raise OutputError(f"{folder}: is a file; give a folder, since several models go into it")
    check_models_folder(folder, "several models go into a folder")
    try:
        folder.mkdir()
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror}); check the path") from None
    try:
        yield
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()
