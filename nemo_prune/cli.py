"""The command line: parse, call the library, print. Nothing here knows how anything is done.

Exit codes: 0 all suppressed or not memorized; 1 something is still memorized; 2 bad usage or
input; 130 interrupted.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click_default_group import DefaultGroup

from nemo_prune import __version__
from nemo_prune.errors import Interrupted, NemoPruneError

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_FILE = click.Path(path_type=Path)
F = TypeVar("F", bound=Callable[..., Any])


class Group(DefaultGroup):  # type: ignore[misc]
    """Where every error of the library becomes one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except NemoPruneError as error:
            click.echo(f"nemo-prune: {error}", err=True)
            ctx.exit(130 if isinstance(error, Interrupted) else 2)
        except KeyboardInterrupt:
            click.echo("nemo-prune: interrupted, nothing was written", err=True)
            ctx.exit(130)


@click.group(cls=Group, default="prune", default_if_no_args=False, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="nemo-prune")
def main() -> None:
    """Find the value neurons that make a Stable Diffusion checkpoint replicate training pictures,
    and zero them in the safetensors file.

    \b
    nemo-prune model.safetensors --prompts mem.txt -o clean.safetensors
    nemo-prune demo
    """


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_model = click.argument("model", type=_FILE)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
_overwrite = click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
_quiet = click.option("-q", "--quiet", is_flag=True, help="No progress bar and no table.")
_out = click.option("-o", "--output", type=_FILE, help="The checkpoint to write.")

_searching = _options(
    click.option("--prompts", "prompt_file", type=_FILE, required=True,
                 help="Prompts to suppress: .txt (one a line), .csv (column caption, prompt or "
                      "text) or .jsonl."),
    click.option("--calibration-prompts", type=_FILE,
                 help="Ordinary prompts: activation statistics and tau come from them."),
    click.option("--tau", type=click.FloatRange(0, 1),
                 help="Memorization threshold. Default: calibrated, or .428 where published."),
    click.option("--criterion", type=click.Choice(["cross-seed", "same-seed"]),
                 default="cross-seed", show_default=True,
                 help="What a pruned noise difference is compared with; same-seed is the paper's."),
    click.option("--seeds", type=click.IntRange(2, 200), default=10, show_default=True,
                 help="Starting noises per prompt."),
    click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True,
                 help="Base of all randomness."),
    click.option("--steps", type=click.IntRange(2, 1000), default=50, show_default=True,
                 help="DDIM steps whose second timestep is scored (50: t = 961 for SD1)."),
    click.option("--timestep", type=int, help="Score at this training timestep instead."),
    click.option("--layers", default="down+mid", show_default=True,
                 help="down+mid, all, or name patterns, separated by commas."),
    click.option("--search", type=click.Choice(["fast", "literal"]), default="fast",
                 show_default=True, help="literal is the paper's procedure, step by step."),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto",
                 show_default=True),
    click.option("--precision", type=click.Choice(["auto", "fp32", "fp16", "bf16"]),
                 default="auto", show_default=True, help="auto: fp16 on CUDA, else fp32."),
    click.option("--batch-size", default="auto", show_default=True,
                 help="Samples a batch; auto grows to what the device holds."),
    click.option("--config", type=_FILE, help="A diffusers config folder, instead of inference."),
    click.option("--show-prompts", is_flag=True, help="Put prompt texts into JSON and manifest."),
)  # fmt: skip


def _read_options(given: dict[str, Any]) -> Any:
    from nemo_prune.pruning import Options

    size = given.pop("batch_size")
    if size == "auto":
        batch = None
    elif size.isdigit() and int(size) > 0:
        batch = int(size)
    else:
        raise click.BadParameter("is a positive number or auto", param_hint="--batch-size")
    return Options(batch_size=batch, **given)


def _localize(
    model: Path, given: dict[str, Any], progress: Any, manifest: Path | None, overwrite: bool
) -> tuple[Any, tuple[str, ...]]:
    """The shared front half of `prune` and `localize`: read everything, then search."""
    from nemo_prune.families import recognize
    from nemo_prune.prompts import read_prompts

    checkpoint = recognize(model)
    prompts = read_prompts(given.pop("prompt_file"))
    calibration = given.pop("calibration_prompts")
    ordinary = read_prompts(calibration).texts if calibration else None
    if prompts.merged:
        progress.note(f"{prompts.merged} repeated prompts merged")
    # Everything that can be refused cheaply was; torch takes seconds to import.
    from nemo_prune.manifest import write_manifest
    from nemo_prune.pruning import localize

    show = given.pop("show_prompts")
    try:
        found = localize(
            checkpoint, prompts.texts, _read_options(given), progress,
            calibration_prompts=ordinary, show_prompts=show,
        )  # fmt: skip
    except Interrupted as stop:
        if manifest:
            write_manifest(stop.manifest, manifest, overwrite)
        raise
    return found, prompts.texts


@main.command()
@_model
@_searching
@_out
@click.option("--manifest", type=_FILE, help="Also keep the manifest: which neurons, and why.")
@click.option("--dry-run", is_flag=True, help="Stop before writing the checkpoint.")
@_overwrite
@_json
@_quiet
def prune(
    model: Path, output: Path | None, manifest: Path | None, dry_run: bool, overwrite: bool,
    as_json: bool, quiet: bool, **given: Any,
) -> None:  # fmt: skip
    """Localize, rewrite and check in one go (the default command).

    \b
    nemo-prune model.safetensors --prompts mem.txt -o clean.safetensors
    """
    from nemo_prune.console import progress
    from nemo_prune.placing import check_output, check_place

    if output is None and not dry_run:
        raise click.UsageError("give -o OUT, the checkpoint to write, or --dry-run")
    if output is not None:
        check_output(model, output, overwrite)
    if manifest:
        check_place(manifest, overwrite)
    with progress(quiet) as bar:
        found, prompts = _localize(model, given, bar, manifest, overwrite)
        from nemo_prune import pruning

        written = None
        if output is not None and not dry_run:
            written = pruning.write(found, output, overwrite)
            found = pruning.check(found, output, prompts, bar)
    _finish(found, written, manifest, overwrite, as_json, quiet)


@main.command()
@_model
@_searching
@click.option("-o", "--output", "manifest", type=_FILE, required=True, help="The manifest.")
@_overwrite
@_json
@_quiet
def localize(
    model: Path, manifest: Path, overwrite: bool, as_json: bool, quiet: bool, **given: Any
) -> None:
    """Find the neurons and write the manifest; the checkpoint stays as it is.

    \b
    nemo-prune localize model.safetensors --prompts mem.txt -o neurons.json
    """
    from nemo_prune.console import progress
    from nemo_prune.placing import check_place

    check_place(manifest, overwrite)
    with progress(quiet) as bar:
        found, _ = _localize(model, given, bar, manifest, overwrite)
    _finish(found, None, manifest, overwrite, as_json, quiet)


def _finish(
    found: Any, written: Any, manifest: Path | None, overwrite: bool, as_json: bool, quiet: bool
) -> None:
    from nemo_prune.console import print_prompts
    from nemo_prune.manifest import write_manifest
    from nemo_prune.pruning import STILL, summary

    if manifest:
        write_manifest(found.manifest, manifest, overwrite)
    result = summary(found, written)
    if not quiet:
        print_prompts(result)
        for path in filter(None, (written and written.path, manifest)):
            click.echo(f"wrote {path}", err=True)
    if as_json:
        click.echo(json.dumps(result))
    still = any(record.status == STILL for record in found.manifest.prompts)
    click.get_current_context().exit(1 if still else 0)


@main.command()
@_model
@click.option("--manifest", type=_FILE, required=True, help="A manifest of localize or prune.")
@click.option("-o", "--output", type=_FILE, required=True, help="The checkpoint to write.")
@_overwrite
@_json
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
    click.echo(
        f"wrote {output}: {written.neurons} neurons, {written.rows_zeroed} rows zeroed", err=True
    )


@main.command()
@_model
@_json
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


@main.command()
@click.option(
    "--folder",
    type=_FILE,
    default=Path("nemo-prune-demo"),
    show_default=True,
    help="Where everything goes; must not exist.",
)
@_json
@_quiet
def demo(folder: Path, as_json: bool, quiet: bool) -> None:  # fmt: skip
    """Prune the small Stable Diffusion that comes with the package, with pictures before and after.

    \b
    nemo-prune demo
    """
    from nemo_prune.console import print_prompts, progress
    from nemo_prune.demo import run_demo

    with progress(quiet) as bar:
        result = run_demo(folder, bar)
    if not quiet:
        print_prompts(result)
        for line in result["demo"]["lines"]:
            click.echo(line, err=True)
    if as_json:
        click.echo(json.dumps(result))
    still = any(entry["status"] == "still memorized" for entry in result["prompts"])
    click.get_current_context().exit(1 if still else 0)
