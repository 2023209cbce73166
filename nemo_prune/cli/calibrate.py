"""The verb calibrate."""

import json
from pathlib import Path
from typing import Any

import click

from nemo_prune.cli.options import (
    FILE,
    OUT,
    build,
    check_files,
    json_option,
    model_argument,
    model_options,
    overwrite_option,
    quiet_option,
)
from nemo_prune.options import Options


@click.command()
@model_argument
@click.option("--prompts", "prompt_file", type=FILE,
              help="Ordinary prompts, several hundred; default: bundled captions.")  # fmt: skip
@click.option("-o", "--output", type=OUT, required=True, help="The calibration to write.")
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
    from nemo_prune.files.atomic import check_place
    from nemo_prune.files.prompts import read_prompts

    asked = build(Options, given)
    check_files()
    check_place(output, overwrite)
    checkpoint = open_checkpoint(model)
    captions = read_prompts(prompt_file).texts if prompt_file else None
    from nemo_prune.scoring import calibrate as measuring
    from nemo_prune.scoring.ordinary import check_calibration

    check_calibration(checkpoint, asked, captions)
    with progress(quiet) as bar:
        result = measuring.calibrate(checkpoint, captions, asked, bar, output, overwrite)
    if as_json:
        click.echo(json.dumps(result))
    gate = result["gates"][0]
    click.echo(
        f"wrote {output}: {result['prompts']} prompts, {result['scored']} of them scored; tau "
        f"{result['tau']:.3f}, gate {gate['value']:.3f} ({interval_text(gate)})",
        err=True,
    )
