"""The verb audit."""

import json
from pathlib import Path
from typing import Any, get_args

import click
from cloup import option_group

from nemo_prune.audit.strength import Strength
from nemo_prune.cli.failures import say
from nemo_prune.cli.options import (
    FILE,
    OUT,
    check_files,
    given_parameters,
    json_option,
    model_options,
    overwrite_option,
    pair_arguments,
    prompts_options,
    quiet_option,
    read_inputs,
    resume_option,
    threshold_options,
    verb,
)


@verb()
@pair_arguments
@prompts_options
@option_group(
    "Attempts",
    click.option(
        "--strength",
        type=click.Choice(get_args(Strength)),
        default="standard",
        show_default=True,
        help="How many attempts are made; their number is said before they begin.",
    ),
    click.option(
        "--targets",
        type=FILE,
        help="Training pictures to compare with: a folder (named by prompt number or text) or "
        "a CSV (columns prompt, file).",
    ),
)
@option_group(
    "Output",
    click.option("--report", "reports", type=OUT, multiple=True, required=True,
                 help="Write the report: .html or .json; may be given several times. The journal of "
                      "--resume lies beside the first."),
    click.option("--junit", type=OUT, help="Also write JUnit XML: a test case for each prompt."),
    resume_option,
    overwrite_option,
    json_option,
    quiet_option,
)  # fmt: skip
@threshold_options
@model_options
def audit(
    original: Path, pruned: Path, strength: Strength, targets: Path | None, reports: tuple[Path, ...],
    junit: Path | None, resume: bool, overwrite: bool, show_prompts: bool, as_json: bool, quiet: bool,
    **given: Any,
) -> None:  # fmt: skip
    """Try to bring pruned pictures back, and say what came of it.

    Exit code 0: no attempt brought a picture back; 1: at least one did.

    tau, the gate and the timestep are the pruned file's own (its metadata), unless options say
    otherwise.

    \b
    Example:
      nemo-prune audit model.safetensors clean.safetensors --prompts mem.txt \\
        --strength quick --report audit.html
    """
    from nemo_prune.audit.render import check_audit_format
    from nemo_prune.checkpoint.open import open_checkpoint
    from nemo_prune.checkpoint.provenance import stated_settings
    from nemo_prune.cli.progress import progress
    from nemo_prune.files.atomic import check_place
    from nemo_prune.scoring.journal import check_resumable, journal_path, refuse_existing

    context = click.get_current_context()
    journal = journal_path(reports[0])
    check_files(journal)
    for path in reports:
        check_audit_format(path)
    for path in (*reports, *([junit] if junit else [])):
        check_place(path, overwrite)
    before, after = open_checkpoint(original), open_checkpoint(pruned)
    inputs = read_inputs(before, given)
    texts = inputs.prompts.texts
    if resume:
        check_resumable(journal, texts, None)
    else:
        refuse_existing(journal)
    stated = stated_settings(after.metadata, after.path)
    from nemo_prune.audit.audit import AuditInputs
    from nemo_prune.audit.audit import audit as run_audit
    from nemo_prune.audit.junit import audit_suite
    from nemo_prune.audit.outcome import findings, notes, verdict
    from nemo_prune.report.inputs import as_pruned, check_inputs, verify_thresholds
    from nemo_prune.report.junit import write_junit
    from nemo_prune.report.targets import read_targets

    check_inputs(before, after, texts, None)
    known = read_targets(targets, texts) if targets else {}
    inputs.check()
    asked = as_pruned(inputs.options, stated, given_parameters())
    with progress(quiet) as bar:
        inputs.note_prompts(bar)
        for line in stated.ignored:
            bar.note(line)
        tau, whence, gate, _ = verify_thresholds(before, asked, inputs.calibration_prompts, stated, bar)
        found = run_audit(
            AuditInputs(
                before, after, texts, asked, tau, tau if gate is None else gate, whence, strength,
                known, show_prompts, inputs.prompts.places,
            ),
            bar, journal, resume,
        )  # fmt: skip
    for path in reports:
        found.save(path, overwrite)
    if junit:
        write_junit([audit_suite(found.data, texts)], junit, overwrite, "nemo-prune audit")
    if not as_json:
        for line in (verdict(found.data), *findings(found.data)):
            click.echo(line)
    if not quiet:
        for line in notes(found.data):
            click.echo(line, err=True)
        for path in (*reports, *([junit] if junit else [])):
            say(f"wrote {path}")
    if as_json:
        click.echo(json.dumps({**found.data, "verdict": verdict(found.data)}))
    context.exit(int(found.came_back))
