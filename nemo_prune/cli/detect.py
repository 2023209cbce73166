"""The verb detect."""

import json
from pathlib import Path
from typing import Any

import click
from cloup import option_group

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
)


@verb()
@model_argument
@prompts_options
@option_group(
    "Output",
    click.option("--csv", "table", type=OUT, help="Also write the ranked table as CSV."),
    plots_option,
    resume_option,
    overwrite_option,
    json_option,
    quiet_option,
)
@threshold_options
@option_group("Scoring", all_seeds_option)
@model_options
def detect(
    model: Path, table: Path | None, plots: Path | None, resume: bool, all_seeds: bool,
    show_prompts: bool, overwrite: bool, as_json: bool, quiet: bool, **given: Any,
) -> None:  # fmt: skip
    """Score prompts and say which are memorized; nothing is searched.

    Prompts that are clear after few seeds stop early. A list with a column memorized, label, type
    or kind also gets AUROC, TPR at 1 % FPR and accuracy; then every prompt takes all seeds. The
    exit code is 0 whatever was found: `check` is the verb that fails.

    \b
    Example:
      nemo-prune detect model.safetensors --prompts captions.csv
    """
    from nemo_prune.checkpoint.open import open_checkpoint
    from nemo_prune.cli.console import print_findings
    from nemo_prune.cli.progress import progress
    from nemo_prune.files.atomic import check_place
    from nemo_prune.report.plots import check_plots, of_findings
    from nemo_prune.scoring.journal import check_resumable, journal_path, refuse_existing

    if resume and not table:
        raise click.UsageError("--resume: the journal lies beside the table; give --csv")
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
        click.echo(f"wrote {table}", err=True)
    if plots:
        save_plots(of_findings(found), plots)
