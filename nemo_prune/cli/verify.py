"""The verb verify."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from cloup import option_group

from nemo_prune.cli.failures import say
from nemo_prune.cli.options import (
    FILE,
    OUT,
    build,
    check_files,
    given_parameters,
    json_option,
    judging_options,
    model_options,
    overwrite_option,
    pair_arguments,
    plots_option,
    prompts_options,
    quiet_option,
    read_inputs,
    save_plots,
    verb,
    workers_options,
    written_as,
)
from nemo_prune.cli.reporting import check_reports, prepare, report_options
from nemo_prune.options import Reporting


@verb()
@pair_arguments
@prompts_options
@option_group(
    "Output",
    click.option(
        "--manifest",
        type=FILE,
        help="The manifest: also compare the union with each prompt's own neurons.",
    ),
    click.option(
        "--targets-template",
        type=OUT,
        callback=written_as("CSV"),
        metavar="FILE",
        help="Write a CSV of the prompts and the pictures of --targets that they are known to "
        "have, to be filled in, and stop; with --targets-match alike at the end. It holds "
        "the prompts' texts.",
    ),
    plots_option,
    overwrite_option,
    json_option,
    quiet_option,
)
@report_options
@judging_options
@model_options
@workers_options
def verify(
    original: Path, pruned: Path, manifest: Path | None, targets_template: Path | None,
    plots: Path | None, show_prompts: bool, as_json: bool, quiet: bool, **given: Any,
) -> None:  # fmt: skip
    """Judge a pruned model against its original: pictures, side effects.

    tau, the gate, the criterion and the timestep are the pruned file's own (its metadata), unless
    options say otherwise.

    \b
    Example:
      nemo-prune verify model.safetensors clean.safetensors --prompts mem.txt \\
        --report report.html
    """
    from nemo_prune.checkpoint.manifest import read_manifest
    from nemo_prune.checkpoint.open import open_checkpoint
    from nemo_prune.checkpoint.provenance import stated_settings
    from nemo_prune.cli.console import print_verification
    from nemo_prune.cli.progress import progress
    from nemo_prune.files.atomic import check_place
    from nemo_prune.report.plots import check_plots, of_report

    context = click.get_current_context()
    reporting = build(Reporting, given)
    check_files()
    check_reports(reporting)
    if plots:
        check_plots(plots)
    if targets_template:
        check_place(targets_template, reporting.overwrite)
    before, after = open_checkpoint(original), open_checkpoint(pruned)
    wanted = read_manifest(manifest) if manifest else None
    inputs = read_inputs(before, given)
    prompts = inputs.prompts.texts
    stated = stated_settings(after.metadata, after.path)
    from nemo_prune.report.inputs import VerifyInputs, as_pruned, check_inputs, verify_thresholds
    from nemo_prune.report.targets import Targets, find_targets

    if targets_template and reporting.targets_match != "alike":
        told = Targets()
        if reporting.targets:
            told = find_targets(reporting.targets, prompts, reporting.targets_match)
        _write_template(targets_template, prompts, told.pictures, reporting, told.left)
        context.exit(0)
    check_inputs(before, after, prompts, wanted)
    inputs.check()
    report = prepare(reporting, prompts)
    asked = as_pruned(inputs.options, stated, given_parameters())
    with progress(quiet) as bar:
        inputs.note_prompts(bar)
        for line in stated.ignored:
            bar.note(line)
        thresholds = verify_thresholds(before, asked, inputs.calibration_prompts, stated, bar)
        found = report.verify(
            VerifyInputs(
                before, after, prompts, report.ordinary, asked, *thresholds, wanted, show_prompts,
                report.ordinary_from, places=inputs.prompts.places,
            ),
            bar,
        )  # fmt: skip
    if not quiet:
        print_verification(found.data)
    if plots:
        save_plots(of_report(found.data), plots)
    if targets_template:
        _write_template(targets_template, prompts, found.targets, reporting)
    report.list_outputs(quiet)
    if as_json:
        click.echo(json.dumps(found.data))
    context.exit(0 if found.all_suppressed else 1)


def _write_template(
    path: Path, prompts: Sequence[str], pictures: Mapping[int, Path], reporting: Reporting,
    left: Sequence[Path] = (),
) -> None:  # fmt: skip
    """Write the prompts and their pictures, and say how many there are and what to do with it."""
    from nemo_prune.report.targets import write_template

    write_template(path, prompts, pictures, reporting.overwrite)
    spare = f" ({len(left)} pictures are named by no prompt's number or text)" if left else ""
    say(
        f"wrote {path}: {len(pictures)} of {len(prompts)} prompts have a picture{spare}; fill in the "
        f"column file and give it as --targets. It holds the prompts' texts."
    )
