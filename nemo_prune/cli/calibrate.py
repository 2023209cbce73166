"""The verb calibrate."""

import json
from pathlib import Path
from typing import Any

import click
from cloup import option_group

from nemo_prune.cli.options import (
    OUT,
    build,
    check_files,
    counted,
    json_option,
    model_argument,
    model_options,
    ordinary_options,
    overwrite_option,
    quiet_option,
    read_given,
    verb,
    workers_options,
)
from nemo_prune.options import Options


@verb()
@model_argument
@ordinary_options
@option_group(
    "Output",
    click.option("-o", "--output", type=OUT, required=True, help="The calibration to write."),
    overwrite_option,
    json_option,
    quiet_option,
)
@model_options
@workers_options
def calibrate(
    model: Path, output: Path, overwrite: bool, as_json: bool, quiet: bool, **given: Any
) -> None:
    """Measure what is ordinary for a model, for tau and the gate.

    \b
    Example:
      nemo-prune calibrate model.safetensors --prompts ordinary.txt \\
        -o calibration.safetensors
    """
    from nemo_prune.checkpoint.open import open_checkpoint
    from nemo_prune.cli.console import interval_text
    from nemo_prune.cli.progress import progress
    from nemo_prune.files.atomic import check_place

    asked = build(Options, given)
    check_files()
    check_place(output, overwrite)
    checkpoint = open_checkpoint(model)
    read = read_given(given) if given["prompt_files"] else None
    captions = read.texts if read else None
    from nemo_prune.scoring import calibrate as measuring
    from nemo_prune.scoring.ordinary import check_calibration
    from nemo_prune.scoring.workers import check_workers

    check_workers(asked)
    check_calibration(checkpoint, asked, captions)
    with progress(quiet) as bar:
        for line in (counted(read), *read.notes) if read else ():
            bar.note(line)
        result = measuring.calibrate(checkpoint, captions, asked, bar, output, overwrite)
    if as_json:
        click.echo(json.dumps(result))
    gate = result["gates"][0]
    click.echo(
        f"wrote {output}: {result['prompts']} prompts, {result['scored']} of them scored; tau "
        f"{result['tau']:.3f}, gate {gate['value']:.3f} ({interval_text(gate)})",
        err=True,
    )
