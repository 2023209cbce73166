"""The verbs that score without searching: detect, check, calibrate."""

import json
import os
from pathlib import Path
from typing import Any

import click

from nemo_prune.cli.options import (
    FILE,
    json_option,
    model_argument,
    model_options,
    options,
    overwrite_option,
    prompts_option,
    quiet_option,
    read_files,
    read_options,
    read_ordinary,
    resume_option,
    show_prompts_option,
    threshold_options,
)

_finding_options = options(
    threshold_options,
    model_options,
    click.option("--all-seeds", is_flag=True,
                 help="Take all seeds of every prompt, also of those that are clear after a few."),
    show_prompts_option,
    overwrite_option,
    json_option,
    quiet_option,
)  # fmt: skip


def _find(
    model: Path, prompt_file: Path, given: dict[str, Any], quiet: bool, *, labelled: bool,
    keep: Path | None = None, resume: bool = False,
) -> Any:  # fmt: skip
    """The shared half of `detect` and `check`: read everything, then score."""
    from nemo_prune.checkpoint.open import open_checkpoint
    from nemo_prune.cli.progress import progress
    from nemo_prune.files.prompts import read_labels, read_prompts

    checkpoint = open_checkpoint(model)
    prompts = read_prompts(prompt_file)
    labels = read_labels(prompt_file, prompts.texts) if labelled else None
    ordinary = read_ordinary(given)
    early = not given.pop("all_seeds")
    with progress(quiet) as bar:
        if prompts.merged:
            bar.note(f"{prompts.merged} repeated prompts merged")
        # Everything that can be refused cheaply was; torch takes seconds to import.
        from nemo_prune.scoring.detection_run import find_memorized

        return find_memorized(
            checkpoint, prompts.texts, read_options(given), bar,
            calibration_prompts=ordinary, labels=labels, early=early, keep=keep, resume=resume,
        )  # fmt: skip


@click.command()
@model_argument
@prompts_option
@click.option("--csv", "table", type=FILE, help="Also write the ranked table as CSV.")
@resume_option
@_finding_options
def detect(
    model: Path, prompt_file: Path, table: Path | None, resume: bool, show_prompts: bool,
    overwrite: bool, as_json: bool, quiet: bool, **given: Any,
) -> None:  # fmt: skip
    """Score prompts and say which are memorized; nothing is searched or written.

    Prompts that are clear after few seeds stop early. A CSV with a column memorized or label also
    gets AUROC, TPR at 1 % FPR and accuracy; then every prompt takes all seeds. The exit code is 0
    whatever was found: `check` is the verb that fails.

    \b
    nemo-prune detect model.safetensors --prompts captions.csv
    """
    from nemo_prune.cli.console import print_findings
    from nemo_prune.files.atomic import check_place, refuse_inputs
    from nemo_prune.scoring.journal import journal_path, refuse_existing

    if resume and not table:
        raise click.UsageError("--resume: the journal lies beside the table; give --csv")
    journal = journal_path(table) if table else None
    if table and journal:
        refuse_inputs([table], read_files(model, prompt_file, given))
        check_place(table, overwrite)
        if not resume:
            refuse_existing(journal)
    found = _find(model, prompt_file, given, quiet, labelled=True, keep=journal, resume=resume)
    from nemo_prune.scoring.detection_run import summary, write_csv

    result = summary(found, show_prompts)
    if table:
        write_csv(found, table, overwrite, show_prompts)
    if journal:
        journal.unlink(missing_ok=True)  # it has served
    if as_json:
        click.echo(json.dumps(result))
    elif not quiet:
        print_findings(result)
    if table:
        click.echo(f"wrote {table}", err=True)


@click.command()
@model_argument
@prompts_option
@click.option("--junit", type=FILE, help="Also write a JUnit file: a test case a prompt.")
@_finding_options
def check(
    model: Path, prompt_file: Path, junit: Path | None, show_prompts: bool, overwrite: bool,
    as_json: bool, quiet: bool, **given: Any,
) -> None:  # fmt: skip
    """Fail if a prompt is memorized: the gate of a release, made for CI.

    Exit code 0: no prompt is memorized; 1: at least one is; 2: bad usage or input. A line for each
    memorized prompt; Markdown is appended to the file in GITHUB_STEP_SUMMARY if that is set.

    \b
    nemo-prune check clean.safetensors --prompts captions.txt --junit memorization.xml
    """
    from nemo_prune.files.atomic import check_place, refuse_inputs

    if junit:
        refuse_inputs([junit], read_files(model, prompt_file, given))
        check_place(junit, overwrite)
    found = _find(model, prompt_file, given, quiet, labelled=False)
    from nemo_prune.report.junit import append_step_summary, finding_line, write_junit
    from nemo_prune.scoring.detection_run import summary

    result = summary(found, show_prompts)
    if junit:
        write_junit(result, prompt_file, junit, overwrite)
    step_summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if step_summary and (trouble := append_step_summary(result, Path(step_summary))):
        click.echo(f"warning: {trouble}", err=True)
    if as_json:
        click.echo(json.dumps(result))
    else:
        for entry in result["prompts"]:
            if entry["memorized"]:
                click.echo(finding_line(entry, result, prompt_file))
    if not quiet:
        click.echo(
            f"{result['memorized']} of {len(result['prompts'])} prompts are memorized: gate "
            f"{result['gate']['value']:.3f} ({result['gate_source']}), tau {result['tau']:.3f} "
            f"({result['tau_source']})",
            err=True,
        )
    click.get_current_context().exit(1 if result["memorized"] else 0)


@click.command()
@model_argument
@click.option("--prompts", "prompt_file", type=FILE,
              help="Ordinary prompts, several hundred; default: bundled captions.")  # fmt: skip
@click.option("-o", "--output", type=FILE, required=True, help="The calibration to write.")
@model_options
@overwrite_option
@json_option
@quiet_option
def calibrate(
    model: Path, prompt_file: Path | None, output: Path, overwrite: bool, as_json: bool, quiet: bool,
    **given: Any,
) -> None:  # fmt: skip
    """Measure what is ordinary for a model: activation statistics, tau and the gate.

    \b
    nemo-prune calibrate model.safetensors --prompts ordinary.txt -o calibration.safetensors
    """
    from nemo_prune.checkpoint.open import open_checkpoint
    from nemo_prune.cli.console import interval_text
    from nemo_prune.cli.progress import progress
    from nemo_prune.files.atomic import check_place, refuse_inputs
    from nemo_prune.files.prompts import read_prompts

    refuse_inputs([output], read_files(model, prompt_file, given))
    check_place(output, overwrite)
    checkpoint = open_checkpoint(model)
    captions = read_prompts(prompt_file).texts if prompt_file else None
    with progress(quiet) as bar:
        from nemo_prune.scoring.calibrate import calibrate as measure

        result = measure(checkpoint, captions, read_options(given), bar, output, overwrite)
    if as_json:
        click.echo(json.dumps(result))
    gate = result["gates"][0]
    click.echo(
        f"wrote {output}: {result['prompts']} prompts, {result['scored']} of them scored; tau "
        f"{result['tau']:.3f}, gate {gate['value']:.3f} ({interval_text(gate)})",
        err=True,
    )
