"""Lists of any length on the command line: read as they are scored, never held in memory."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nemo_prune.cli.options import Inputs, build
from nemo_prune.options import Options

if TYPE_CHECKING:
    from nemo_prune.checkpoint.checkpoint import Checkpoint
    from nemo_prune.files.streams import Lists
    from nemo_prune.scoring.streaming import Screen


def lists_of(given: Mapping[str, Any], labels: bool = False) -> "Lists":
    """The lists of `--prompts`, of which the beginnings are sound. Raises PromptFileError."""
    from nemo_prune.files.streams import Lists

    lists = Lists(given["prompt_files"], given["prompts_format"], given["prompt_column"], labels)
    return replace(lists, labels=lists.stream().check())


def inputs_beside(
    checkpoint: "Checkpoint", calibration: Path | None, given: Mapping[str, Any]
) -> Inputs:
    """What else is read before a model is loaded; it holds no prompts.

    Raises OptionError, PromptFileError.
    """
    from nemo_prune.files.prompts import PromptList, read_prompts

    files = given["calibration_prompts"]
    ordinary = read_prompts(files).texts if files else None
    return Inputs(
        checkpoint, PromptList((), 0), build(Options, given, calibration=calibration), ordinary
    )


def print_streamed(screen: "Screen", complete: bool = True) -> None:
    """The table of the highest scores, and the verdict, on standard output."""
    from nemo_prune.cli.console import print_findings
    from nemo_prune.scoring.streaming import streamed_summary

    result = streamed_summary(screen, complete)
    if not complete:
        click.echo(f"INCOMPLETE: the lists were scored up to prompt {result['scored'] - 1} only")
    print_findings(result)
