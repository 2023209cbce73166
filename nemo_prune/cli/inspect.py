"""The verb inspect; it never imports torch."""

import json
from pathlib import Path
from typing import Any

import click

from nemo_prune.cli.failures import one_line
from nemo_prune.cli.options import json_option, model_argument, verb

_FACTS = ("path", "family", "layout", "prediction_type", "text_encoder", "vae", "ema", "in_channels",
          "dtypes", "bytes", "files", "unedited")  # fmt: skip


@verb()
@model_argument
@click.option("--hash", "hashed", is_flag=True, help="Also its hashes, for which it is read whole.")
@click.option(
    "--strict", is_flag=True, help="Exit with 1 if the metadata name neurons that are not all zero."
)
@json_option
def inspect(model: Path, hashed: bool, strict: bool, as_json: bool) -> None:
    """Say what a checkpoint is, and which rows are zero; no torch.

    Its family, value layers and their rows that are zero already, provenance and hashes.

    \b
    Example:
      nemo-prune inspect model.safetensors
    """
    from nemo_prune.checkpoint.inspect import inspection
    from nemo_prune.checkpoint.open import open_checkpoint

    found = inspection(open_checkpoint(model), hashed)
    if as_json:
        click.echo(json.dumps(found))
    else:
        _print(found)
    if strict and found["named_but_not_zero"] != []:
        click.get_current_context().exit(1)


def _print(found: dict[str, Any]) -> None:
    """What `inspection` found, for people, on standard output: it is what was asked for."""
    from rich.console import Console
    from rich.table import Table

    from nemo_prune.checkpoint.neurons import short_name

    shown = Console(highlight=False, emoji=False)

    def line(text: str) -> None:
        # A hash or a path is one word, to be copied as a whole.
        shown.print(one_line(text), markup=False, soft_wrap=" " not in text.partition(": ")[2])

    def fact(key: str, value: str) -> None:
        # What fits 80 columns only without its name has a line of its own.
        apart = 78 - len(key) < len(value) < 79
        line(f"{key}:" if apart else f"{key}: {value}")
        if apart:
            line(f"  {value}")

    for key in _FACTS:
        if key in found:
            value = found[key]
            if key in ("bytes", "dtypes") and (copies := found.get("copies")):
                several = [copy[key] for copy in copies]
                value = sum(several) if key == "bytes" else sorted({d for one in several for d in one})
            if key == "unedited" and not value:
                continue
            text = ", ".join(value) if isinstance(value, list) else value
            if key == "family" and found["kind"]:
                text = f"{value} ({found['kind']})"
            if key == "text_encoder" and (foreign := found["text_encoder_foreign"]):
                text = f"{value} (of the kind {foreign}, which is not read: no prompts are scored)"
            if key == "prediction_type" and (told_by := found["prediction_type_told_by"]):
                text = f"{value} ({told_by})"
            if key == "prediction_type" and (unclear := found["prediction_type_unclear"]):
                text = f"unclear: {unclear}"
            line(f"{key.replace('_', ' ')}: {'unknown' if text is None else text}")
    layers = found["value_layers"]
    line(f"text channels: {layers[0]['columns']}")
    table = Table(header_style="bold")
    for name in ("", "value layer", "neurons", "copies", "already zero"):
        # Numbers and names are never cut off; a long list of rows is folded, and all where it is narrow.
        table.add_column(name, overflow="fold", no_wrap=name != "already zero" and shown.width >= 80)
    numbered = list(enumerate(layers))
    for number, layer in sorted(numbered, key=lambda pair: not pair[1]["zeroed"]):
        table.add_row(
            str(number), short_name(layer["name"]), str(layer["rows"]), str(layer["copies"]),
            ", ".join(map(str, layer["zeroed"])) or "-",
        )  # fmt: skip
    shown.print(table)
    if empty := sum(len(layer["zeroed"]) == layer["rows"] for layer in layers):
        line(f"{empty} of {len(layers)} value layers are wholly zero: is the file complete?")
    if found["incomplete"]:
        line(f"incomplete: {found['incomplete']}")
    for layer in layers:
        if rows := ", ".join(map(str, layer["zeroed_in_some_copies"])):
            line(
                f"the copies of {short_name(layer['name'])} disagree: rows {rows} are zero in some, not "
                f"in all; prune again, or start from the source"
            )
    named = found["named_but_not_zero"]
    if named is None:
        line("damaged metadata: nemo_prune.neurons names no neurons by layer")
    for entry in named or ():
        name = short_name(entry["layer"])
        line(f"the metadata name row {entry['row']} of {name} as removed, and it is not zero")
    for key, value in found.get("hashes", {}).items():
        fact(key.replace("_", " "), "none" if value is None else value)
    for key, value in found["provenance"].items():
        fact(key, _brief(value))


def _brief(text: str) -> str:
    """A metadata entry; of one that is a JSON object no more than its size, as --json has it all."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(value, dict):
        return text
    if value and all(isinstance(rows, list) for rows in value.values()):
        return f"{sum(map(len, value.values()))} rows in {len(value)} layers (--json shows them)"
    return f"{len(value)} entries (--json shows them)"
