"""The verb apply; it never imports torch."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

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
from nemo_prune.cli.restore import say_undo

if TYPE_CHECKING:
    from nemo_prune.checkpoint.lora import LoraNames


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
@click.option("-o", "--output", type=OUT, help="The checkpoint to write.")
@click.option(
    "--lora",
    type=OUT,
    help="Write the edit as a LoRA too, or with no -o alone: loaded at weight 1 it zeroes the same "
    "rows. It holds the removed rows, so who has it can undo the edit.",
)
@click.option(
    "--lora-names",
    type=click.Choice(["kohya", "diffusers"]),
    default="kohya",
    show_default=True,
    help="Tensor names of the LoRA: kohya's (A1111, Forge, ComfyUI, diffusers) or diffusers' own.",
)
@undo_option
@click.option("--hash", "hashed", is_flag=True, help="Also the output's SHA-256; takes longer.")
@folder_options
@overwrite_option
@json_option
def apply(
    model: Path, manifest: Path | None, by_hand: str | None, import_csv: Path | None,
    top_k: int | None, top: int | None, output: Path | None, lora: Path | None,
    lora_names: "LoraNames", undo: Path | None, hashed: bool, as_json: bool, **how: bool,
) -> None:  # fmt: skip
    """Zero chosen neurons in a checkpoint, byte-exact; needs no GPU and no torch.

    \b
    nemo-prune apply model.safetensors --manifest neurons.json -o clean.safetensors
    nemo-prune apply model.safetensors --neurons 0:25,mid_block.attentions.0.0:7
        -o clean.safetensors --undo rows.safetensors
    nemo-prune apply model.safetensors --manifest neurons.json --lora patch.safetensors

    \b
    --import-csv takes the table that the paper's code writes, separated by semicolons. Of its
    columns one is read: the rows of each value layer of the down and mid blocks, in their order.
        Caption;URL;Refined Neurons
        a caption;http://x/1.jpg;[[25, 262], [], [98], [105], [364], [], []]
    """
    from nemo_prune.checkpoint.apply import write_model
    from nemo_prune.checkpoint.checkpoint import model_sha256
    from nemo_prune.checkpoint.lora import check_lora, write_lora
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

    refuse_inputs([path for path in (output, undo, lora) if path], [manifest, import_csv])
    refuse_same([output, undo, lora])
    if output is None and lora is None:
        raise click.UsageError("give -o OUT, the checkpoint to write, or --lora OUT")
    if output is None and (undo or hashed or how["link"] or how["drop_pickles"]):
        raise click.UsageError("--undo, --hash, --link and --drop-pickles go with -o")
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
    written = None
    if lora is not None:
        check_lora(checkpoint, choice.neurons, lora, overwrite=how["overwrite"])
    if output is not None:
        written = write_model(
            checkpoint, choice.neurons, output, choice.provenance, undo=undo, hashed=hashed, **how
        )
    source_sha256 = written.source_sha256 if written else model_sha256(checkpoint)
    if lora is not None:
        write_lora(
            checkpoint, choice.neurons, lora, lora_names, overwrite=how["overwrite"],
            source_sha256=source_sha256,
        )  # fmt: skip
    if choice.source_sha256 not in (None, source_sha256):
        click.echo(
            f"warning: {model} is not the file that {manifest} was made for "
            f"({wanted.source['path']}); the neurons may mean something else in it",
            err=True,
        )
    result = {
        "source": {"path": str(model), "sha256": source_sha256},
        "output": written and {"path": str(output), "sha256": written.sha256},
        "lora": lora and str(lora),
        "undo": undo and str(undo),
        "neurons": len(choice.neurons),
        "rows_zeroed": written.rows_zeroed if written else 0,
        "bytes_changed": written.bytes_changed if written else 0,
    }
    if as_json:
        click.echo(json.dumps(result))
    if written is not None:
        click.echo(
            f"wrote {output}: {written.neurons} neurons, {written.rows_zeroed} rows zeroed", err=True
        )
        if hashed:
            click.echo(f"sha256 {written.sha256}", err=True)
    if lora is not None:
        click.echo(
            f"wrote {lora}: a LoRA that zeroes {len(choice.neurons)} neurons at weight 1; it holds the "
            f"removed rows, so who has it can undo the edit",
            err=True,
        )
    if undo is not None:
        say_undo(undo, how["drop_pickles"])
