"""The verbs that run the model: prune, localize, demo."""

import json
from pathlib import Path
from typing import Any

import click

from nemo_prune.cli.options import (
    FILE,
    folder_options,
    json_option,
    model_argument,
    output_option,
    overwrite_option,
    quiet_option,
    read_files,
    read_options,
    read_ordinary,
    resume_option,
    searching_options,
    undo_option,
)
from nemo_prune.cli.reporting import check_report_places, read_reporting, report_options
from nemo_prune.errors import Interrupted


def _localize(
    checkpoint: Any,
    given: dict[str, Any],
    progress: Any,
    manifest: Path | None,
    overwrite: bool,
    resume: bool,
    reporting: bool = False,
) -> tuple[Any, tuple[str, ...], Any]:
    """The shared front half of `prune` and `localize`: read everything, then search."""
    from nemo_prune.files.prompts import read_prompts

    prompts = read_prompts(given.pop("prompt_file"))
    ordinary = read_ordinary(given)
    if prompts.merged:
        progress.note(f"{prompts.merged} repeated prompts merged")
    # Everything that can be refused cheaply was; torch takes seconds to import.
    from nemo_prune.checkpoint.manifest import write_manifest
    from nemo_prune.localize.localize import localize
    from nemo_prune.scoring.journal import journal_path

    show = given.pop("show_prompts")
    report = read_reporting(given, prompts.texts, overwrite) if reporting else None
    try:
        found = localize(
            checkpoint, prompts.texts, read_options(given), progress,
            calibration_prompts=ordinary, show_prompts=show,
            keep=journal_path(manifest) if manifest else None, resume=resume,
        )  # fmt: skip
    except Interrupted as stop:
        if manifest:
            write_manifest(stop.manifest, manifest, overwrite)
        raise
    return found, prompts.texts, report


def _check_manifest(manifest: Path, overwrite: bool, resume: bool) -> bool:
    """Refuse early what could not be written late; return whether the manifest may be replaced.

    What an interrupted run left is replaced by the run that goes on with it.
    """
    from nemo_prune.files.atomic import check_place
    from nemo_prune.scoring.journal import journal_path, refuse_existing

    journal = journal_path(manifest)
    if resume:
        overwrite = overwrite or journal.exists()
    else:
        refuse_existing(journal)
    check_place(manifest, overwrite)
    return overwrite


@click.command()
@model_argument
@searching_options
@output_option
@click.option("--manifest", type=FILE, help="Also keep the manifest: which neurons, and why.")
@resume_option
@undo_option
@click.option("--dry-run", is_flag=True, help="Stop before writing the checkpoint.")
@click.option(
    "--max-drift",
    type=click.FloatRange(0),
    help="Write nothing, exit 1, if cross-attention outputs of ordinary prompts change by "
    "more than this part on average (0.05: 5 %).",
)
@report_options
@folder_options
@overwrite_option
@json_option
@quiet_option
def prune(
    model: Path, output: Path | None, manifest: Path | None, undo: Path | None, dry_run: bool,
    max_drift: float | None, link: bool, drop_pickles: bool, overwrite: bool, as_json: bool,
    quiet: bool, resume: bool, **given: Any,
) -> None:  # fmt: skip
    """Localize, rewrite and check in one go (the default command).

    \b
    nemo-prune model.safetensors --prompts mem.txt -o clean.safetensors
    nemo-prune diffusers-folder --prompts mem.txt -o clean-folder --link
    """
    from nemo_prune.checkpoint.apply import check_model_output
    from nemo_prune.checkpoint.open import open_checkpoint
    from nemo_prune.cli.progress import progress
    from nemo_prune.files.atomic import refuse_inputs
    from nemo_prune.scoring.journal import journal_path

    if output is None and not dry_run:
        raise click.UsageError("give -o OUT, the checkpoint to write, or --dry-run")
    checkpoint = open_checkpoint(model)
    folder = {"link": link, "drop_pickles": drop_pickles}
    if output is not None:
        check_model_output(checkpoint, output, overwrite=overwrite, undo=undo, **folder)
    if resume and not manifest:
        raise click.UsageError("--resume: the journal lies beside the manifest; give --manifest")
    replace = _check_manifest(manifest, overwrite, resume) if manifest else False
    inputs = read_files(model, given["prompt_file"], given)
    refuse_inputs([path for path in (output, manifest) if path], inputs)
    check_report_places(given, overwrite, [path for path in (output, manifest, undo) if path], inputs)
    if dry_run and (given["reports"] or given["card"]):
        raise click.UsageError("--report and --card look at the written file; leave out --dry-run")
    with progress(quiet) as bar:
        found, prompts, reporting = _localize(
            checkpoint, given, bar, manifest, replace, resume, reporting=True
        )
        from nemo_prune.localize import prune as pruning

        if max_drift is not None:
            drift = pruning.expected_drift(found, reporting.some_ordinary(), bar)
            if not drift <= max_drift:
                if manifest:
                    journal_path(manifest).unlink(missing_ok=True)
                click.echo(
                    f"nemo-prune: ordinary prompts would drift by {drift:.4f}, more than --max-drift "
                    f"{max_drift}; nothing was written",
                    err=True,
                )
                if as_json:
                    click.echo(json.dumps({**pruning.summary(found, None), "drift": drift}))
                click.get_current_context().exit(1)
        written = None
        if output is not None and not dry_run:
            bar.stage("writing the checkpoint", 1, "file")
            written = pruning.write(found, output, overwrite, undo, **folder)
            found = pruning.check(found, output, prompts, bar)
    # Told, and the manifest kept, before pictures that may take hours.
    _tell(found, written, manifest, replace, as_json, quiet)
    if written is not None and reporting.wanted:
        from nemo_prune.report.inputs import inputs_of_run

        written_file = inputs_of_run(
            found, written.path, prompts, reporting.some_ordinary(), reporting.ordinary_from
        )
        try:
            with progress(quiet) as bar:
                reporting.verify(written_file, bar)
        except KeyboardInterrupt:
            click.echo(f"nemo-prune: interrupted, no report; {output} is written and checked", err=True)
            click.get_current_context().exit(130)
        if not quiet:
            for path in reporting.written():
                click.echo(f"wrote {path}", err=True)
    click.get_current_context().exit(_exit_code(found))


@click.command()
@model_argument
@searching_options
@click.option("-o", "--output", "manifest", type=FILE, required=True, help="The manifest.")
@resume_option
@overwrite_option
@json_option
@quiet_option
def localize(
    model: Path, manifest: Path, resume: bool, overwrite: bool, as_json: bool, quiet: bool,
    **given: Any,
) -> None:  # fmt: skip
    """Find the neurons and write the manifest; the checkpoint stays as it is.

    \b
    nemo-prune localize model.safetensors --prompts mem.txt -o neurons.json
    """
    from nemo_prune.checkpoint.open import open_checkpoint
    from nemo_prune.cli.progress import progress
    from nemo_prune.files.atomic import refuse_inputs

    refuse_inputs([manifest], read_files(model, given["prompt_file"], given))
    replace = _check_manifest(manifest, overwrite, resume)
    checkpoint = open_checkpoint(model)
    with progress(quiet) as bar:
        found, _, _ = _localize(checkpoint, given, bar, manifest, replace, resume)
    _tell(found, None, manifest, replace, as_json, quiet)
    click.get_current_context().exit(_exit_code(found))


def _tell(
    found: Any, written: Any, manifest: Path | None, overwrite: bool, as_json: bool, quiet: bool
) -> None:
    """Keep the manifest, and say what came out."""
    from nemo_prune.checkpoint.manifest import write_manifest
    from nemo_prune.cli.console import print_prompts
    from nemo_prune.localize.prune import summary
    from nemo_prune.scoring.journal import journal_path

    if manifest:
        write_manifest(found.manifest, manifest, overwrite)
        journal_path(manifest).unlink(missing_ok=True)  # it has served
    result = summary(found, written)
    if not quiet:
        print_prompts(result)
        for path in filter(None, (written and written.path, manifest)):
            click.echo(f"wrote {path}", err=True)
    if as_json:
        click.echo(json.dumps(result))


def _exit_code(found: Any) -> int:
    from nemo_prune.checkpoint.statuses import Status

    return int(
        any(
            record.status not in (Status.SUPPRESSED, Status.NOT_MEMORIZED)
            for record in found.manifest.prompts
        )
    )


@click.command()
@click.option(
    "--folder",
    type=FILE,
    default=Path("nemo-prune-demo"),
    show_default=True,
    help="Where everything goes; must not exist.",
)
@json_option
@quiet_option
def demo(folder: Path, as_json: bool, quiet: bool) -> None:  # fmt: skip
    """Prune the small Stable Diffusion that comes with the package, with pictures before and after.

    \b
    nemo-prune demo
    """
    from nemo_prune.cli.console import print_prompts
    from nemo_prune.cli.demo import demo_lines, run_demo
    from nemo_prune.cli.progress import progress

    with progress(quiet) as bar:
        result = run_demo(folder, bar)
    if not quiet:
        print_prompts(result)
        for line in demo_lines(folder, result["demo"]):
            click.echo(line, err=True)
    if as_json:
        click.echo(json.dumps(result))
    still = any(entry["status"] in ("still memorized", "not removable") for entry in result["prompts"])
    click.get_current_context().exit(1 if still else 0)
