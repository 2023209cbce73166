"""The verb check."""

import contextlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from nemo_prune.cli.options import (
    OUT,
    check_files,
    detecting_options,
    model_argument,
    prompts_options,
    read_inputs,
)
from nemo_prune.errors import NemoPruneError, OutputError


class _Check(click.Command):
    """A command whose errors of usage leave a step summary, like all other errors."""

    def make_context(self, *given: Any, **more: Any) -> click.Context:
        try:
            return super().make_context(*given, **more)
        except click.UsageError as error:
            if step_summary := _step_summary():
                from nemo_prune.report.junit import append_step_summary, no_verdict

                append_step_summary(no_verdict("", error.format_message()), step_summary)
            raise


@click.command(cls=_Check)
@model_argument
@prompts_options
@click.option("--junit", type=OUT, help="Also write a JUnit file: a test case a prompt.")
@click.option(
    "--confirm",
    type=click.Choice(["none", "trajectory"]),
    default="none",
    show_default=True,
    help="trajectory: also ask whether a caption draws the same picture from every seed.",
)
@detecting_options
def check(
    model: Path, junit: Path | None, confirm: str, all_seeds: bool, show_prompts: bool, overwrite: bool,
    as_json: bool, quiet: bool, **given: Any,
) -> None:  # fmt: skip
    """Fail if a prompt is memorized: the gate of a release, made for CI.

    Exit code 0: no prompt is memorized; 1: at least one is; 2: bad usage or input. A line for each
    memorized prompt; Markdown is appended to the file in GITHUB_STEP_SUMMARY if that is set. Both
    it and --junit also tell an error. --junit replaces what an earlier check wrote there.

    \b
    nemo-prune check clean.safetensors --prompts captions.txt --junit memorization.xml
    """
    from nemo_prune.checkpoint.open import open_checkpoint
    from nemo_prune.checkpoint.provenance import provenance_of
    from nemo_prune.cli.progress import progress
    from nemo_prune.files.atomic import check_place
    from nemo_prune.report.junit import is_own

    step_summary = _step_summary()
    check_files(step_summary)
    with _no_verdict_kept(model, junit, overwrite, step_summary):
        if junit:
            check_place(junit, overwrite or is_own(junit))
        inputs = read_inputs(open_checkpoint(model), given)
        inputs.check()
        from nemo_prune.report.junit import (
            annotation,
            append_step_summary,
            finding_line,
            markdown,
            write_junit,
        )
        from nemo_prune.scoring.detection_run import find_memorized, summary

        with progress(quiet) as bar:
            inputs.note_prompts(bar)
            found = find_memorized(
                inputs.checkpoint, inputs.prompts.texts, inputs.options, bar,
                calibration_prompts=inputs.calibration_prompts, early=not all_seeds,
                trajectories=confirm == "trajectory",
            )  # fmt: skip
        result = inputs.prompts.locate(summary(found, show_prompts))
    if step_summary and (trouble := append_step_summary(markdown(result), step_summary)):
        click.echo(f"warning: {trouble}", err=True)
    if junit:
        write_junit(result, inputs.prompts.texts, junit, overwrite or is_own(junit))
    findings = [entry for entry in result["prompts"] if entry["memorized"]]
    if as_json:
        click.echo(json.dumps(result))
    for entry in findings:
        if not as_json:
            click.echo(finding_line(entry, result))
        if os.environ.get("GITHUB_ACTIONS") == "true":
            click.echo(annotation(entry, result), err=True)  # GitHub reads both streams
    if not quiet and confirm == "none" and provenance_of(inputs.checkpoint.metadata):
        click.echo(
            "note: the score is a screen, taken at one early timestep: a pruned model can pass and "
            "still draw the picture (--confirm trajectory asks)",
            err=True,
        )
    if not quiet:
        click.echo(
            f"{result['memorized']} of {len(result['prompts'])} prompts are memorized: gate "
            f"{result['gate']['value']:.3f} ({result['gate_source']}), tau {result['tau']:.3f} "
            f"({result['tau_source']})",
            err=True,
        )
    click.get_current_context().exit(1 if result["memorized"] else 0)


def _step_summary() -> Path | None:
    """GitHub's file for Markdown, if there is one."""
    named = os.environ.get("GITHUB_STEP_SUMMARY")
    return Path(named) if named else None


@contextmanager
def _no_verdict_kept(
    model: Path, junit: Path | None, overwrite: bool, step_summary: Path | None
) -> Iterator[None]:
    """An error leaves a JUnit file and a summary too: where there is none, a job looks skipped."""
    try:
        yield
    except Exception as error:
        from nemo_prune.cli.console import flags
        from nemo_prune.report.junit import append_step_summary, is_own, no_verdict, write_error

        what = f"{type(error).__name__}: {error}"
        if isinstance(error, NemoPruneError):
            what = flags(error.message)
        if junit:
            with contextlib.suppress(OutputError):  # the error itself is worth more
                write_error(model, what, junit, overwrite or is_own(junit))
        if step_summary:
            append_step_summary(no_verdict(str(model), what), step_summary)
        raise
