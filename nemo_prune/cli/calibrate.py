"""The verb calibrate."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from cloup import option_group

from nemo_prune.cli.failures import say
from nemo_prune.cli.options import (
    OUT,
    Whole,
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
    written_as,
)
from nemo_prune.errors import CalibrationError, OptionError, PromptFileError, option
from nemo_prune.options import Options

_OF_LONG = 10_000  # prompts of a list that may be too long for memory, and is for scoring


@verb()
@model_argument
@ordinary_options
@option_group(
    "Sample",
    click.option(
        "--sample",
        type=Whole(30),
        help="Take so many of the prompts, drawn by --seed; "
        "default: all, but 10000 of a list of more than 16 MiB.",
    ),
)
@option_group(
    "Output",
    click.option(
        "-o",
        "--output",
        type=OUT,
        required=True,
        callback=written_as("safetensors"),
        help="The calibration to write.",
    ),
    overwrite_option,
    json_option,
    quiet_option,
)
@model_options
@workers_options
def calibrate(
    model: Path,
    sample: int | None,
    output: Path,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    **given: Any,
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
    captions, told = _captions(sample, asked.seed, given)
    from nemo_prune.scoring import calibrate as measuring
    from nemo_prune.scoring.ordinary import check_calibration
    from nemo_prune.scoring.workers import check_workers

    check_workers(asked)
    try:
        check_calibration(checkpoint, asked, captions)
    except CalibrationError as error:
        raise CalibrationError(
            f"{', '.join(map(str, given['prompt_files']))}: {error.message}"
        ) from None
    with progress(quiet) as bar:
        for line in told:
            bar.note(line)
        result = measuring.calibrate(checkpoint, captions, asked, bar, output, overwrite)
    if as_json:
        click.echo(json.dumps(result))
    gate = result["gates"][0]
    say(
        f"wrote {output}: {result['prompts']} prompts, {result['scored']} of them scored; tau "
        f"{result['tau']:.3f}, gate {gate['value']:.3f} ({interval_text(gate)})"
    )


def _captions(
    sample: int | None, seed: int, given: Mapping[str, Any]
) -> tuple[Sequence[str] | None, list[str]]:
    """The ordinary prompts, None for the bundled ones, and what is said of their lists."""
    from nemo_prune.cli.streamed import lists_of
    from nemo_prune.files.streams import drawn, is_long

    if not given["prompt_files"]:
        if sample is not None:
            raise OptionError(
                f"{option('sample')}: needs the lists to draw from; give {option('prompts')}"
            )
        return None, []
    if sample is None and not is_long(given["prompt_files"]):
        read = read_given(given)
        return read.texts, [counted(read), *read.notes]
    stream = lists_of(given).stream()
    captions, count = drawn(stream, sample or _OF_LONG, seed)
    if given["expect_prompts"] not in (None, count):
        raise PromptFileError(
            f"{given['prompt_files'][0]}: {option('expect_prompts')} {given['expect_prompts']}, and "
            f"{count} distinct prompts were read"
        )
    return captions, [
        *stream.notes,
        f"{len(captions)} of {count} distinct prompts, drawn by seed {seed}",
    ]
