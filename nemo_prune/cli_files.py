"""The verbs of the bytes world: apply, inspect. They never import torch."""

import json
from pathlib import Path

import click

from nemo_prune.cli_options import FILE, json_option, model_argument, overwrite_option


@click.command()
@model_argument
@click.option("--manifest", type=FILE, required=True, help="A manifest of localize or prune.")
@click.option("-o", "--output", type=FILE, required=True, help="The checkpoint to write.")
@overwrite_option
@json_option
def apply(model: Path, manifest: Path, output: Path, overwrite: bool, as_json: bool) -> None:
    """Zero a manifest's neurons in a checkpoint, byte-exact; needs no GPU and no torch.

    \b
    nemo-prune apply model.safetensors --manifest neurons.json -o clean.safetensors
    """
    from nemo_prune.families import recognize
    from nemo_prune.manifest import read_manifest
    from nemo_prune.placing import check_output
    from nemo_prune.surgery import zero_neurons

    check_output(model, output, overwrite)
    wanted = read_manifest(manifest)
    checkpoint = recognize(model)
    known = {k: str(wanted.options[k]) for k in ("tau", "criterion") if k in wanted.options}
    provenance = {**known, "prompts": str(len(wanted.prompts))}
    written = zero_neurons(checkpoint, wanted.neurons, output, provenance, overwrite=overwrite)
    if written.source_sha256 != wanted.source["sha256"]:
        click.echo(
            f"warning: {model} is not the file that {manifest} was made for "
            f"({wanted.source['path']}); the neurons may mean something else in it",
            err=True,
        )
    result = {
        "source": {"path": str(model), "sha256": written.source_sha256},
        "output": {"path": str(output), "sha256": written.sha256},
        "neurons": written.neurons,
        "rows_zeroed": written.rows_zeroed,
        "bytes_changed": written.bytes_changed,
    }
    if as_json:
        click.echo(json.dumps(result))
    click.echo(f"wrote {output}: {written.neurons} neurons, {written.rows_zeroed} rows zeroed", err=True)


@click.command()
@model_argument
@json_option
def inspect(model: Path, as_json: bool) -> None:
    """Say what a checkpoint is: family, value layers, rows already zero, provenance; no torch.

    \b
    nemo-prune inspect model.safetensors
    """
    from nemo_prune.console import print_inspection
    from nemo_prune.families import recognize
    from nemo_prune.inspection import inspection

    found = inspection(recognize(model))
    if as_json:
        click.echo(json.dumps(found))
    else:
        print_inspection(found)
