"""The verb apply; it never imports torch."""

import json
from pathlib import Path

import click

from nemo_prune.cli.options import (
    FILE,
    OUT,
    folder_options,
    json_option,
    model_argument,
    overwrite_option,
    undo_option,
)


@click.command()
@model_argument
@click.option("--manifest", type=FILE, help="A manifest of localize or prune.")
@click.option(
    "--neurons",
    "by_hand",
    metavar="LAYER:ROW,...",
    help="Neurons by hand; a layer is a name or a number as inspect lists them.",
)
@click.option("--import-csv", type=FILE, help="A result table of the paper's own code.")
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    help="Only the K neurons that most prompts share; equal ones in the order of the network.",
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    help="Only the N neurons of the manifest that do most for what is memorized (attribution).",
)
@click.option("-o", "--output", type=OUT, required=True, help="The checkpoint to write.")
@undo_option
@click.option("--hash", "hashed", is_flag=True, help="Also the output's SHA-256; takes longer.")
@folder_options
@overwrite_option
@json_option
def apply(
    model: Path, manifest: Path | None, by_hand: str | None, import_csv: Path | None,
    top_k: int | None, top: int | None, output: Path, undo: Path | None, hashed: bool,
    as_json: bool, **how: bool,
) -> None:  # fmt: skip
    """Zero chosen neurons in a checkpoint, byte-exact; needs no GPU and no torch.

    \b
    nemo-prune apply model.safetensors --manifest neurons.json -o clean.safetensors
    nemo-prune apply model.safetensors --neurons 0:25,mid_block.attentions.0.transformer_blocks.0:7
        -o clean.safetensors --undo rows.safetensors
    """
    from nemo_prune.checkpoint.apply import write_model
    from nemo_prune.checkpoint.manifest import read_manifest
    from nemo_prune.checkpoint.open import open_checkpoint
    from nemo_prune.checkpoint.selection import (
        Choice,
        check_fits,
        from_manifest,
        from_results,
        parse_neurons,
    )
    from nemo_prune.files.atomic import refuse_inputs, refuse_same

    refuse_inputs([output, *([undo] if undo else [])], [manifest, import_csv])
    refuse_same([output, undo])
    if sum(given is not None for given in (manifest, by_hand, import_csv)) != 1:
        raise click.UsageError("give the neurons as one of --manifest, --neurons and --import-csv")
    if top is not None and (manifest is None or top_k is not None):
        raise click.UsageError("--top takes a manifest, and goes without --top-k")
    if top_k is not None and by_hand is not None:
        raise click.UsageError("--top-k needs prompts, which --neurons does not name")
    if manifest is not None:
        wanted = read_manifest(manifest)
        checkpoint = open_checkpoint(model)
        check_fits(wanted, manifest, checkpoint)
        choice = from_manifest(wanted, top_k, top)
    else:
        checkpoint = open_checkpoint(model)
        if by_hand is not None:
            choice = Choice(parse_neurons(by_hand, checkpoint), {})
        elif import_csv is not None:
            choice = from_results(import_csv, checkpoint, top_k)
            click.echo(f"note: {import_csv} does not say for which model it was made", err=True)
    written = write_model(
        checkpoint, choice.neurons, output, choice.provenance, undo=undo, hashed=hashed, **how
    )
    if choice.source_sha256 not in (None, written.source_sha256):
        click.echo(
            f"warning: {model} is not the file that {manifest} was made for "
            f"({wanted.source['path']}); the neurons may mean something else in it",
            err=True,
        )
    result = {
        "source": {"path": str(model), "sha256": written.source_sha256},
        "output": {"path": str(output), "sha256": written.sha256},
        "undo": undo and str(undo),
        "neurons": written.neurons,
        "rows_zeroed": written.rows_zeroed,
        "bytes_changed": written.bytes_changed,
    }
    if as_json:
        click.echo(json.dumps(result))
    click.echo(f"wrote {output}: {written.neurons} neurons, {written.rows_zeroed} rows zeroed", err=True)
    if hashed:
        click.echo(f"sha256 {written.sha256}", err=True)
    if undo is not None:
        but = ", but for what --drop-pickles left out" if how["drop_pickles"] else ""
        click.echo(f"wrote {undo}: with it, restore brings the source back{but}", err=True)
