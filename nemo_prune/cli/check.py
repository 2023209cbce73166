"""The verb check."""

import json
import os
from pathlib import Path
from typing import Any

import click

from nemo_prune.cli.options import (
    OUT,
    check_files,
    detecting_options,
    model_argument,
    prompts_option,
    read_inputs,
)


@click.command()
@model_argument
@prompts_option
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
    model: Path, prompt_file: Path, junit: Path | None, confirm: str, all_seeds: bool,
    show_prompts: bool, overwrite: bool, as_json: bool, quiet: bool, **given: Any,
) -> None:  # fmt: skip
    """Fail if a prompt is memorized: the gate of a release, made for CI.

    Exit code 0: no prompt is memorized; 1: at least one is; 2: bad usage or input. A line for each
    memorized prompt; Markdown is appended to the file in GITHUB_STEP_SUMMARY if that is set.

    \b
    nemo-prune check clean.safetensors --prompts captions.txt --junit memorization.xml
    """
    from nemo_prune.checkpoint.open import open_checkpoint
    from nemo_prune.checkpoint.provenance import provenance_of
    from nemo_prune.cli.progress import progress
    from nemo_prune.files.atomic import check_place

    named = os.environ.get("GITHUB_STEP_SUMMARY")
    step_summary = Path(named) if named else None
    check_files(step_summary)
    if junit:
        check_place(junit, overwrite)
    inputs = read_inputs(open_checkpoint(model), {"prompt_file": prompt_file, **given})
    inputs.check()
    from nemo_prune.report.junit import append_step_summary, finding_line, write_junit
    from nemo_prune.scoring.detection_run import find_memorized, summary

    with progress(quiet) as bar:
        inputs.note_repetitions(bar)
        found = find_memorized(
            inputs.checkpoint, inputs.prompts.texts, inputs.options, bar,
            calibration_prompts=inputs.calibration_prompts, early=not all_seeds,
            trajectories=confirm == "trajectory",
        )  # fmt: skip
    result = summary(found, show_prompts)
    if junit:
        write_junit(result, prompt_file, junit, overwrite)
    if step_summary and (trouble := append_step_summary(result, step_summary)):
        click.echo(f"warning: {trouble}", err=True)
    if as_json:
        click.echo(json.dumps(result))
    else:
        for entry in result["prompts"]:
            if entry["memorized"]:
                click.echo(finding_line(entry, result, prompt_file))
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
