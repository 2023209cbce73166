"""The verb detect."""

import json
from pathlib import Path
from typing import Any

import click
from cloup import option_group

from nemo_prune.cli.failures import say
from nemo_prune.cli.options import (
    OUT,
    all_seeds_option,
    check_files,
    json_option,
    model_argument,
    model_options,
    overwrite_option,
    plots_option,
    prompts_options,
    quiet_option,
    read_inputs,
    resume_option,
    save_plots,
    threshold_options,
    verb,
    workers_options,
    written_as,
)


@verb()
@model_argument
@prompts_options
@option_group(
    "Output",
    click.option(
        "--csv",
        "table",
        type=OUT,
        callback=written_as("CSV"),
        help="Also write the ranked table as CSV.",
    ),
    click.option(
        "-o",
        "--output",
        type=OUT,
        help="Write rows as prompts are scored, in the lists' order, to a new .csv or .parquet; lists "
        "may have any length.",
    ),
    plots_option,
    resume_option,
    overwrite_option,
    json_option,
    quiet_option,
)
@threshold_options
@option_group("Scoring", all_seeds_option)
@model_options
@workers_options
def detect(
    model: Path, table: Path | None, output: Path | None, plots: Path | None, resume: bool,
    all_seeds: bool, show_prompts: bool, overwrite: bool, as_json: bool, quiet: bool, **given: Any,
) -> None:  # fmt: skip
    """Score prompts and say which are memorized; nothing is searched.

    Prompts that are clear after few seeds stop early. A list with a column memorized, label, type
    or kind also gets AUROC, TPR at 1 % FPR and accuracy; then every prompt takes all seeds. The
    exit code is 0 whatever was found: `check` is the verb that fails.

    Long lists, of more than 16 MiB, and all lists with -o, are scored as they are read, in constant
    memory: the output then names the 1,000 highest scores, and -o has all.

    \b
    Examples:
      nemo-prune detect model.safetensors --prompts captions.csv
      nemo-prune detect model.safetensors --prompts all.csv.gz -o all.parquet
    """
    from nemo_prune.checkpoint.open import open_checkpoint
    from nemo_prune.cli.console import print_findings
    from nemo_prune.cli.progress import progress
    from nemo_prune.files.atomic import check_place
    from nemo_prune.files.streams import is_long
    from nemo_prune.report.plots import check_plots, of_findings
    from nemo_prune.scoring.journal import check_resumable, journal_path, refuse_existing

    if resume and not (table or output):
        raise click.UsageError("--resume: the journal lies beside the table; give --csv or -o")
    if output and (table or plots):
        raise click.UsageError("-o: is a table in the lists' order; give it without --csv and --plots")
    if output or (is_long(given["prompt_files"]) and not (table or plots)):
        _streamed(model, output, resume, all_seeds, show_prompts, overwrite, as_json, quiet, given)
        return
    journal = journal_path(table) if table else None
    check_files(journal)
    if table and journal:
        check_place(table, overwrite)
        if not resume:
            refuse_existing(journal)
    if plots:
        check_plots(plots)
    inputs = read_inputs(open_checkpoint(model), given, labels=True)
    if journal and resume:
        check_resumable(journal, inputs.prompts.texts, inputs.calibration_prompts)
    inputs.check()
    from nemo_prune.scoring.detection_run import find_memorized, summary, write_csv

    with progress(quiet) as bar:
        inputs.note_prompts(bar)
        found = find_memorized(
            inputs.checkpoint, inputs.prompts.texts, inputs.options, bar,
            calibration_prompts=inputs.calibration_prompts, labels=inputs.prompts.labels,
            early=not all_seeds, keep=journal, resume=resume,
        )  # fmt: skip
    result = inputs.prompts.locate(summary(found, show_prompts))
    if table and journal:
        write_csv(found, table, overwrite, show_prompts, inputs.prompts.places)
        journal.unlink(missing_ok=True)
    if as_json:
        click.echo(json.dumps(result))
    elif not quiet:
        print_findings(result)
    if table:
        say(f"wrote {table}")
    if plots:
        save_plots(of_findings(found), plots)


def _streamed(
    model: Path, output: Path | None, resume: bool, all_seeds: bool, show_prompts: bool,
    overwrite: bool, as_json: bool, quiet: bool, given: dict[str, Any],
) -> None:  # fmt: skip
    """The same of lists of any length, in constant memory."""
    from nemo_prune.checkpoint.open import open_checkpoint
    from nemo_prune.cli.progress import progress
    from nemo_prune.cli.streamed import inputs_beside, lists_of, print_streamed
    from nemo_prune.scoring.journal import journal_path
    from nemo_prune.scoring.table import Table

    table = Table(output, overwrite, resume) if output else None
    check_files(*((table.partial, journal_path(table.path)) if table else ()))
    if table:
        table.check()
    inputs = inputs_beside(open_checkpoint(model), given["calibration"], given)
    lists = lists_of(given, labels=True)
    inputs.check()
    from nemo_prune.scoring.streaming import Incomplete, screen_lists, streamed_summary

    try:
        with progress(quiet) as bar:
            screen = screen_lists(
                inputs.checkpoint, lists, inputs.options, bar,
                calibration_prompts=inputs.calibration_prompts, early=not all_seeds, table=table,
                show_prompts=show_prompts, expected=given["expect_prompts"],
            )  # fmt: skip
    except Incomplete as error:
        if as_json:
            click.echo(json.dumps(streamed_summary(error.screen, complete=False)))
        elif not quiet:
            print_streamed(error.screen, complete=False)
        raise
    if as_json:
        click.echo(json.dumps(streamed_summary(screen)))
    elif not quiet:
        print_streamed(screen)
    if output:
        say(f"wrote {output}")
