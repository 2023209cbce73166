"""The verb prune."""

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import click
from cloup import option_group

from nemo_prune.audit.strength import Strength
from nemo_prune.cli.audit import audit_of_run, check_audit_reports
from nemo_prune.cli.localize import (
    check_manifest,
    check_search,
    conclude,
    exit_code,
    journal_of,
    keep_manifest,
    search,
)
from nemo_prune.cli.options import (
    OUT,
    Number,
    build,
    check_files,
    folder_options,
    json_option,
    model_argument,
    model_options,
    neurons_csv_option,
    overwrite_option,
    plots_option,
    prompts_options,
    quiet_option,
    read_inputs,
    resume_option,
    say_folder,
    say_sidecars,
    search_options,
    sidecars_option,
    threshold_options,
    undo_option,
    verb,
    wanted_sidecars,
    workers_options,
    written_as,
)
from nemo_prune.cli.reporting import check_reports, prepare, report_options
from nemo_prune.cli.restore import say_undo
from nemo_prune.options import Reporting, Writing


@verb()
@model_argument
@prompts_options
@option_group(
    "Output",
    click.option("-o", "--output", type=OUT, help="The checkpoint to write."),
    click.option(
        "--manifest",
        type=OUT,
        callback=written_as("JSON"),
        help="Also keep the manifest: which neurons, and why.",
    ),
    neurons_csv_option,
    undo_option,
    click.option("--dry-run", is_flag=True, help="Stop before writing the checkpoint."),
    click.option(
        "--audit",
        type=click.Choice(get_args(Strength)),
        help="Then try to bring the pictures back, as the verb audit does; exit 1 if one comes.",
    ),
    click.option(
        "--audit-report",
        "audit_reports",
        type=OUT,
        multiple=True,
        help="Write what --audit found: .html or .json; may be given several times.",
    ),
    click.option(
        "--max-drift",
        type=Number(0),
        help="Write no checkpoint, exit 1, if cross-attention outputs of ordinary prompts "
        "change by more than this part on average (0.05: 5 %). The manifest and its "
        "journal are kept.",
    ),
    plots_option,
    resume_option,
    sidecars_option,
    folder_options,
    overwrite_option,
    json_option,
    quiet_option,
)
@threshold_options
@search_options
@model_options
@workers_options
@report_options
def prune(
    model: Path, dry_run: bool, audit: Strength | None, audit_reports: tuple[Path, ...],
    max_drift: float | None, show_prompts: bool, as_json: bool, quiet: bool, **given: Any,
) -> None:  # fmt: skip
    """Localize, rewrite and check in one go (the default command).

    Exit code 0: all is suppressed or not memorized; 1: something is still memorized or drawn, or came
    back in --audit.

    \b
    Examples:
      nemo-prune model.safetensors --prompts mem.txt -o clean.safetensors
      nemo-prune diffusers-folder --prompts mem.txt -o clean-folder --link
    """
    from nemo_prune.checkpoint.apply import check_model_output
    from nemo_prune.checkpoint.open import open_checkpoint
    from nemo_prune.cli.console import print_verification
    from nemo_prune.cli.progress import progress

    context = click.get_current_context()
    writing, reporting = build(Writing, given, sidecars={}), build(Reporting, given)
    if writing.output is None and not dry_run:
        raise click.UsageError("give -o OUT, the checkpoint to write, or --dry-run")
    if writing.resume and not writing.manifest:
        raise click.UsageError("--resume: the journal lies beside the manifest; give --manifest")
    if dry_run and reporting.outputs:
        raise click.UsageError("--report and --card look at the written file; leave out --dry-run")
    if dry_run and audit:
        raise click.UsageError("--audit looks at the written file; leave out --dry-run")
    if audit_reports and not audit:
        raise click.UsageError("--audit-report: say how hard to try: --audit quick")
    check_audit_reports(audit_reports, writing.overwrite)
    checkpoint = open_checkpoint(model)
    sidecars = wanted_sidecars(given["sidecars"], model, writing.output)
    writing = replace(writing, sidecars=sidecars)
    if writing.output is not None:
        check_model_output(
            checkpoint,
            writing.output,
            overwrite=writing.overwrite,
            undo=writing.undo,
            link=writing.link,
            drop_pickles=writing.drop_pickles,
            sidecars=sidecars,
        )
    check_files(journal_of(writing), *sidecars.values())
    check_manifest(writing)
    check_reports(reporting)
    inputs = read_inputs(checkpoint, given)
    check_search(inputs, writing)
    report = prepare(reporting, inputs.prompts.texts)
    from nemo_prune.localize import prune as pruning

    with progress(quiet) as bar, ExitStack() as stack:
        found = search(inputs, writing, show_prompts, bar)
        stack.callback(found.engine.close)
        if max_drift is not None:
            drift = pruning.expected_drift(found, report.ordinary, bar)
            if not drift <= max_drift:
                keep_manifest(found.manifest, writing)
                kept = f" but {writing.manifest} and its journal" if writing.manifest else ""
                click.echo(
                    f"nemo-prune: ordinary prompts would drift by {drift:.4f}, more than --max-drift "
                    f"{max_drift}; nothing was written{kept}",
                    err=True,
                )
                if as_json:
                    told = inputs.prompts.locate(pruning.summary(found, None))
                    click.echo(json.dumps({**told, "drift": drift}))
                context.exit(1)
        written = None
        if writing.output is not None and not dry_run:
            bar.stage("writing the checkpoint", 1, "file")
            written = pruning.write(found, writing)
            found = pruning.check(found, written.path, inputs.prompts.texts, bar)
    # The manifest and the table come before pictures, which may take hours.
    conclude(found, written, writing, inputs, as_json and not audit, quiet)
    if written is not None and writing.undo is not None and not quiet:
        say_undo(writing.undo, writing.drop_pickles)
    if written is not None and not quiet:
        say_folder(checkpoint, written)
        say_sidecars(given["sidecars"], model, sidecars, written.path)
    code = exit_code(record.status for record in found.manifest.prompts)
    if written is not None and reporting.outputs:
        from nemo_prune.report.inputs import inputs_of_run

        of_run = inputs_of_run(
            found, written.path, inputs.prompts.texts, report.ordinary, report.ordinary_from,
            inputs.prompts.places,
        )  # fmt: skip
        try:
            with progress(quiet) as bar:
                verified = report.verify(of_run, bar)
        except KeyboardInterrupt:
            click.echo(
                f"nemo-prune: interrupted, no report; {written.path} is written and checked", err=True
            )
            context.exit(130)
        if not quiet:
            print_verification(verified.data)
        report.list_outputs(quiet)
        # Pictures may show what scores and short trajectories do not.
        code = code or int(not verified.all_suppressed)
    if written is not None and audit:
        whole = inputs.prompts.locate(pruning.summary(found, written))
        audited, back = audit_of_run(
            found, written.path, inputs, audit, reporting.targets, audit_reports, writing.overwrite,
            as_json, quiet,
        )  # fmt: skip
        if as_json:
            click.echo(json.dumps({**whole, "audit": audited}))
        code = code or int(back)
    context.exit(code)
