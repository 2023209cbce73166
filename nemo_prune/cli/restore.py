"""The verb restore; it never imports torch."""

import json
from pathlib import Path

import click

from nemo_prune.cli.failures import say
from nemo_prune.cli.options import FILE, OUT, json_option, model_argument, overwrite_option, verb


def say_undo(undo: Path, dropped: bool) -> None:
    """Say what was written and is to be kept private; `dropped`: whether pickles were left out."""
    but = ", but for what --drop-pickles left out" if dropped else ""
    say(f"wrote {undo}: with it, restore brings the source back{but}")
    say(f"do not publish {undo}: it holds the removed rows")


@verb()
@model_argument
@click.option("--undo", type=FILE, required=True, help="What --undo wrote when MODEL was pruned.")
@click.option("-o", "--output", type=OUT, required=True, help="The source to write again.")
@overwrite_option
@json_option
def restore(model: Path, undo: Path, output: Path, overwrite: bool, as_json: bool) -> None:
    """Bring back what MODEL was made from, bit for bit; no torch.

    Of a folder, what --drop-pickles left out is not brought back.

    \b
    Example:
      nemo-prune restore clean.safetensors --undo rows.safetensors \\
        -o model.safetensors
    """
    from nemo_prune.checkpoint.restore import restore_model
    from nemo_prune.files.trees import shown

    restored = restore_model(model, undo, output, overwrite=overwrite)
    result = {
        "output": {"path": str(output), "sha256": restored.sha256},
        "rows_restored": restored.rows,
        **({} if restored.left_out is None else {"left_out": restored.left_out}),
    }
    if restored.changed:
        result["changed"] = restored.changed
    if as_json:
        click.echo(json.dumps(result))
    for place in restored.left_out or ():
        say(f"note: {shown(place)} was left out by --drop-pickles and is not brought back")
    for place in restored.changed:
        say(
            f"note: {shown(place)} was changed since the model was pruned, or is gone; no undo folder "
            f"brings it back"
        )
    say(f"wrote {output}: {restored.rows} rows restored, sha256 {restored.sha256}")
