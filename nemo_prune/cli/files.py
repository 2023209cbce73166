"""The verbs of the bytes world: apply, diff, restore, inspect. They never import torch."""

import json
from pathlib import Path

import click

from nemo_prune.cli.options import (
    FILE,
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
@click.option("-o", "--output", type=FILE, required=True, help="The checkpoint to write.")
@undo_option
@click.option("--hash", "hashed", is_flag=True, help="Also the output's SHA-256; takes longer.")
@folder_options
@overwrite_option
@json_option
def apply(
    model: Path,
    manifest: Path | None,
    by_hand: str | None,
    import_csv: Path | None,
    top_k: int | None,
    output: Path,
    undo: Path | None,
    hashed: bool,
    link: bool,
    drop_pickles: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
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
    if top_k is not None and by_hand is not None:
        raise click.UsageError("--top-k needs prompts, which --neurons does not name")
    if manifest is not None:
        wanted = read_manifest(manifest)
        checkpoint = open_checkpoint(model)
        check_fits(wanted, manifest, checkpoint)
        choice = from_manifest(wanted, top_k)
    else:
        checkpoint = open_checkpoint(model)
        if by_hand is not None:
            choice = Choice(parse_neurons(by_hand, checkpoint), {})
        elif import_csv is not None:
            choice = from_results(import_csv, checkpoint, top_k)
            click.echo(f"note: {import_csv} does not say for which model it was made", err=True)
    written = write_model(
        checkpoint,
        choice.neurons,
        output,
        choice.provenance,
        overwrite=overwrite,
        undo=undo,
        link=link,
        drop_pickles=drop_pickles,
        hashed=hashed,
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
        but = ", but for what --drop-pickles left out" if drop_pickles else ""
        click.echo(f"wrote {undo}: with it, restore brings the source back{but}", err=True)


@click.command()
@click.argument("a", type=FILE)
@click.argument("b", type=FILE)
@click.option("--expect", "manifest", type=FILE, help="Check that B is A with this manifest applied.")
@json_option
def diff(a: Path, b: Path, manifest: Path | None, as_json: bool) -> None:
    """Say in which tensors, rows and bytes two files or folders differ, and in what else; no torch.

    Exit code 0 if they are the same bytes, 1 if they differ. With --expect, 0 if B is A with
    exactly the rows of the manifest zeroed in every copy, 1 if anything else differs. Hidden
    folders (.git, .cache) are named and not compared.

    \b
    nemo-prune diff model.safetensors clean.safetensors --expect neurons.json
    """
    from nemo_prune.checkpoint.diff import compare_models
    from nemo_prune.checkpoint.manifest import read_manifest

    wanted = read_manifest(manifest) if manifest is not None else None
    found = compare_models(a, b, wanted.neurons if wanted is not None else None)
    promise = found.promise
    if wanted is not None and promise is not None and promise.a_sha256 != wanted.source["sha256"]:
        click.echo(f"warning: {manifest} was made for another model than {a}", err=True)
    if as_json:
        result = {"a": str(a), "b": str(b), **found.difference.to_json()}
        click.echo(json.dumps(result | ({"expected": promise.to_json()} if promise else {})))
    else:
        for line in [*found.difference.describe(), *(promise.describe() if promise else ())]:
            click.echo(line)
    holds = not found.difference if promise is None else not promise.unexpected
    click.get_current_context().exit(0 if holds else 1)


@click.command()
@model_argument
@click.option("--undo", type=FILE, required=True, help="What --undo wrote when MODEL was pruned.")
@click.option("-o", "--output", type=FILE, required=True, help="The source to write again.")
@overwrite_option
@json_option
def restore(model: Path, undo: Path, output: Path, overwrite: bool, as_json: bool) -> None:
    """Bring back the file or folder that MODEL was made from, bit for bit; no torch.

    Of a folder, what --drop-pickles left out is not brought back.

    \b
    nemo-prune restore clean.safetensors --undo rows.safetensors -o model.safetensors
    """
    from nemo_prune.checkpoint.restore import restore_model
    from nemo_prune.files.trees import shown

    restored = restore_model(model, undo, output, overwrite=overwrite)
    result = {
        "output": {"path": str(output), "sha256": restored.sha256},
        "rows_restored": restored.rows,
        **({} if restored.left_out is None else {"left_out": restored.left_out}),
    }
    if as_json:
        click.echo(json.dumps(result))
    for place in restored.left_out or ():
        click.echo(
            f"note: {shown(place)} was left out by --drop-pickles and is not brought back", err=True
        )
    click.echo(f"wrote {output}: {restored.rows} rows restored, sha256 {restored.sha256}", err=True)


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
