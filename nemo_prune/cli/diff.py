"""The verb diff; it never imports torch."""

import json
from pathlib import Path

import click
import cloup

from nemo_prune.cli.failures import say
from nemo_prune.cli.options import FILE, json_option, verb
from nemo_prune.errors import ManifestError


@verb()
@cloup.argument("a", type=FILE, help="A .safetensors file or a diffusers folder.")
@cloup.argument("b", type=FILE, help="Another, such as the same pruned.")
@click.option("--expect", "manifest", type=FILE, help="Check that B is A with this manifest applied.")
@json_option
def diff(a: Path, b: Path, manifest: Path | None, as_json: bool) -> None:
    """Say in which tensors, rows and bytes two models differ; no torch.

    Exit code 0 if they are the same bytes, 1 if they differ. With --expect, 0 if B is A with
    exactly the rows of the manifest zeroed in every copy, 1 if anything else differs. Hidden
    folders (.git, .cache) are named and not compared.

    \b
    Example:
      nemo-prune diff model.safetensors clean.safetensors --expect neurons.json
    """
    from nemo_prune.checkpoint.diff import compare_models
    from nemo_prune.checkpoint.manifest import read_manifest
    from nemo_prune.checkpoint.selection import no_neurons

    wanted = read_manifest(manifest) if manifest is not None else None
    try:
        found = compare_models(a, b, wanted.neurons if wanted is not None else None)
    except ManifestError as error:
        raise ManifestError(f"{manifest}: {error.message}") from None
    promise = found.promise
    if wanted is not None and promise is not None and promise.a_sha256 != wanted.source["sha256"]:
        say(f"warning: {manifest} was made for another model than {a}")
    if wanted is not None and manifest is not None:
        for line in no_neurons(wanted, manifest):
            say(f"warning: {line}")
    if as_json:
        result = {"a": str(a), "b": str(b), **found.difference.to_json()}
        click.echo(json.dumps(result | ({"expected": promise.to_json()} if promise else {})))
    else:
        for line in [*found.difference.describe(), *(promise.describe() if promise else ())]:
            click.echo(line)
    holds = not found.difference if promise is None else not promise.unexpected
    click.get_current_context().exit(0 if holds else 1)
