"""The verb verify."""

import json
from pathlib import Path
from typing import Any

import click
import cloup
from click.core import ParameterSource
from cloup import option_group

from nemo_prune.cli.options import (
    FILE,
    build,
    check_files,
    json_option,
    judging_options,
    model_options,
    overwrite_option,
    prompts_options,
    quiet_option,
    read_inputs,
    verb,
)
from nemo_prune.cli.reporting import check_reports, prepare, report_options
from nemo_prune.options import Reporting


@verb()
@cloup.argument("original", type=FILE, help="The model that was pruned, a file or a folder.")
@cloup.argument("pruned", type=FILE, help="What came of it.")
@prompts_options
@option_group(
    "Output",
    click.option(
        "--manifest",
        type=FILE,
        help="The manifest: also compare the union with each prompt's own neurons.",
    ),
    overwrite_option,
    json_option,
    quiet_option,
)
@report_options
@judging_options
@model_options
def verify(
    original: Path, pruned: Path, manifest: Path | None, show_prompts: bool, as_json: bool, quiet: bool,
    **given: Any,
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

    context = click.get_current_context()
    reporting = build(Reporting, given)
    check_files()
    check_reports(reporting)
    before, after = open_checkpoint(original), open_checkpoint(pruned)
    wanted = read_manifest(manifest) if manifest else None
    inputs = read_inputs(before, given)
    prompts = inputs.prompts.texts
    stated = stated_settings(after.metadata, after.path)
    from nemo_prune.report.inputs import VerifyInputs, as_pruned, check_inputs, verify_thresholds

    check_inputs(before, after, prompts, wanted)
    inputs.check()
    report = prepare(reporting, prompts)
    said = {
        name
        for name in context.params
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    asked = as_pruned(inputs.options, stated, said)
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
    report.list_outputs(quiet)
    if as_json:
        click.echo(json.dumps(found.data))
    context.exit(0 if found.all_suppressed else 1)
