"""The verb inspect; it never imports torch."""

import json
from pathlib import Path

import click

from nemo_prune.cli.options import json_option, model_argument


@click.command()
@model_argument
@click.option("--hash", "hashed", is_flag=True, help="Also its hashes, for which it is read whole.")
@click.option(
    "--strict", is_flag=True, help="Exit with 1 if the metadata name neurons that are not all zero."
)
@json_option
def inspect(model: Path, hashed: bool, strict: bool, as_json: bool) -> None:
    """Say what a checkpoint is: family, value layers, rows already zero, provenance; no torch.

    \b
    nemo-prune inspect model.safetensors
    """
    from nemo_prune.checkpoint.inspect import inspection
    from nemo_prune.checkpoint.open import open_checkpoint

    found = inspection(open_checkpoint(model), hashed)
    if as_json:
        click.echo(json.dumps(found))
    else:
        from nemo_prune.cli.console import print_inspection

        print_inspection(found)
    if strict and found["named_but_not_zero"] != []:
        click.get_current_context().exit(1)
