"""The verb audit."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from cloup import option_group

from nemo_prune.audit.strength import Strength
from nemo_prune.cli.failures import say
from nemo_prune.cli.options import (
    FILE,
    OUT,
    Inputs,
    Whole,
    check_files,
    check_junit,
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
    workers_options,
)

if TYPE_CHECKING:
    from nemo_prune.localize.localize import Localization


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
    click.option(
        "--unseen",
        type=FILE,
        multiple=True,
        help="A picture that the model never saw, as a control of optimized embeddings, or a folder of "
        "some; default: made-up ones.",
    ),
    click.option(
        "--harden",
        type=Whole(0, 20),
        default=0,
        metavar="N",
        help="Switch off what the embeddings use that brought pictures back, and optimize again, so "
        "many times.",
    ),
)
@option_group(
    "Output",
    click.option("--report", "reports", type=OUT, multiple=True, required=True,
                 help="Write the report: .html or .json; may be given several times. The journal of "
                      "--resume lies beside the first."),
    click.option("--repair", type=OUT, metavar="OUT",
                 help="Also write a model without the neurons of whatever wording still triggers, and "
                      "without what --harden found: a new file or folder."),
    click.option("--junit", type=OUT, help="Also write JUnit XML: a test case for each prompt."),
    click.option("--plots", type=OUT, metavar="DIR",
                 help="Also plot the curves of embeddings and their controls: a new folder of SVG and "
                      "PNG files (the extra plots)."),
    resume_option,
    overwrite_option,
    json_option,
    quiet_option,
)  # fmt: skip
@threshold_options
@model_options
@workers_options
def audit(
    original: Path, pruned: Path, strength: Strength, targets: Path | None, unseen: tuple[Path, ...],
    harden: int, reports: tuple[Path, ...], repair: Path | None, junit: Path | None, plots: Path | None,
    resume: bool, overwrite: bool, show_prompts: bool, as_json: bool, quiet: bool, **given: Any,
) -> None:  # fmt: skip
    """Try to bring pruned pictures back, and say what came of it.

    Exit code 0: no attempt brought a picture back; 1: at least one did, whatever --repair then mended.

    tau, the gate and the timestep are the pruned file's own (its metadata), unless options say
    otherwise.

    \b
    Example:
      nemo-prune audit model.safetensors clean.safetensors --prompts mem.txt \\
        --strength quick --report audit.html
    """
    from nemo_prune.checkpoint.apply import check_model_output
    from nemo_prune.checkpoint.open import open_checkpoint
    from nemo_prune.checkpoint.provenance import stated_settings
    from nemo_prune.cli.progress import progress
    from nemo_prune.files.atomic import check_place
    from nemo_prune.options import Writing
    from nemo_prune.report.plots import check_plots
    from nemo_prune.scoring.journal import check_resumable, journal_path, refuse_existing

    context = click.get_current_context()
    journal = journal_path(reports[0])
    check_files(journal)
    check_junit(junit)
    check_audit_reports(reports, overwrite)
    if junit:
        check_place(junit, overwrite)
    if plots:
        check_plots(plots)
    before, after = open_checkpoint(original), open_checkpoint(pruned)
    if repair:
        check_model_output(after, repair, overwrite=overwrite)
    inputs = read_inputs(before, given)
    texts = inputs.prompts.texts
    if resume:
        check_resumable(journal, texts, None)
    else:
        refuse_existing(journal)
    stated = stated_settings(after.metadata, after.path)
    from nemo_prune.audit.audit import audit as run_audit
    from nemo_prune.audit.curves import write_curves
    from nemo_prune.audit.inputs import AuditInputs
    from nemo_prune.audit.junit import audit_suite
    from nemo_prune.report.inputs import as_pruned, check_inputs, verify_thresholds
    from nemo_prune.report.junit import write_junit
    from nemo_prune.report.targets import read_pictures, read_targets

    check_inputs(before, after, texts, None)
    known = read_targets(targets, texts) if targets else {}
    strange = read_pictures(unseen)
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
                known, show_prompts, inputs.prompts.places, strange, harden,
            ),
            bar, journal, resume, Writing(repair, overwrite) if repair else None,
        )  # fmt: skip
    for path in reports:
        found.save(path, overwrite)
    written = [*reports]
    if repair and found.data["repaired"]["path"]:
        written.insert(0, repair)
    if junit:
        write_junit([audit_suite(found.data, texts)], junit, overwrite, "nemo-prune audit")
        written.append(junit)
    if plots:
        write_curves(found.data, plots)
        written.append(plots)
    tell(found.data, written, as_json, quiet)
    if as_json:
        click.echo(json.dumps(as_told(found.data)))
    context.exit(int(found.came_back))


def tell(data: dict[str, Any], written: Sequence[Path], as_json: bool, quiet: bool) -> None:
    """Say what an audit found, on stdout unless JSON goes there, and what was written."""
    from nemo_prune.audit.outcome import findings, notes, verdict

    if not as_json:
        for line in (verdict(data), *findings(data)):
            click.echo(line)
    if not quiet:
        for line in notes(data):
            say(line)
        for path in written:
            say(f"wrote {path}")


def as_told(data: dict[str, Any]) -> dict[str, Any]:
    """An audit as `--json` prints it: with its verdict."""
    from nemo_prune.audit.outcome import verdict

    return {**data, "verdict": verdict(data)}


def check_audit_reports(reports: Sequence[Path], overwrite: bool) -> None:
    """Refuse early what could not be written late; imports no torch."""
    from nemo_prune.audit.render import check_audit_format
    from nemo_prune.files.atomic import check_place

    for path in reports:
        check_audit_format(path)
        check_place(path, overwrite)


def audit_of_run(
    found: "Localization", pruned: Path, given: Inputs, strength: Strength, targets: Path | None,
    reports: Sequence[Path], overwrite: bool, as_json: bool, quiet: bool,
) -> tuple[dict[str, Any] | None, bool]:  # fmt: skip
    """Audit what was just pruned: what was found, for `--json`, and whether anything came back.

    None, with a note, where nothing was memorized, so that there is nothing to bring back.
    """
    from nemo_prune.audit.audit import NothingMemorized
    from nemo_prune.audit.audit import audit as run_audit
    from nemo_prune.audit.inputs import AuditInputs
    from nemo_prune.checkpoint.open import open_checkpoint
    from nemo_prune.cli.progress import progress
    from nemo_prune.report.targets import read_targets

    records, texts = found.manifest.prompts, given.prompts.texts
    inputs = AuditInputs(
        found.checkpoint, open_checkpoint(pruned), texts,
        replace(found.options, timestep=found.engine.timestep), found.tau, found.thresholds.gate.value,
        "this run", strength, read_targets(targets, texts) if targets else {},
        any(record.text is not None for record in records), given.prompts.places,
    )  # fmt: skip
    try:
        with progress(quiet) as bar:
            result = run_audit(inputs, bar)
    except NothingMemorized:
        say("note: nothing was memorized, so there is nothing to audit")
        return None, False
    except KeyboardInterrupt:
        say(f"nemo-prune: interrupted, no audit; {pruned} is written and checked")
        click.get_current_context().exit(130)
    for path in reports:
        result.save(path, overwrite)
    tell(result.data, reports, as_json, quiet)
    return as_told(result.data), result.came_back
