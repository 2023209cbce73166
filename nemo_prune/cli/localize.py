"""The verb localize, and what `prune` shares with it: the search, and its manifest."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from cloup import option_group

from nemo_prune.checkpoint.statuses import Status
from nemo_prune.cli.failures import say
from nemo_prune.cli.options import (
    OUT,
    Inputs,
    build,
    check_files,
    json_option,
    model_argument,
    model_options,
    neurons_csv_option,
    overwrite_option,
    plots_option,
    prompts_options,
    quiet_option,
    read_inputs,
    resume_option,
    save_plots,
    search_options,
    threshold_options,
    verb,
    workers_options,
    written_as,
)
from nemo_prune.errors import Interrupted
from nemo_prune.options import Progress, Writing

if TYPE_CHECKING:
    from nemo_prune.checkpoint.apply import Written
    from nemo_prune.checkpoint.manifest import Manifest
    from nemo_prune.localize.localize import Localization


@verb()
@model_argument
@prompts_options
@option_group(
    "Output",
    click.option(
        "-o",
        "--output",
        "manifest",
        type=OUT,
        required=True,
        callback=written_as("JSON"),
        help="The manifest.",
    ),
    neurons_csv_option,
    plots_option,
    resume_option,
    overwrite_option,
    json_option,
    quiet_option,
)
@threshold_options
@search_options
@model_options
@workers_options
def localize(model: Path, show_prompts: bool, as_json: bool, quiet: bool, **given: Any) -> None:
    """Find the neurons and write the manifest; the model stays as it is.

    \b
    Example:
      nemo-prune localize model.safetensors --prompts mem.txt -o neurons.json
    """
    from nemo_prune.checkpoint.open import open_checkpoint
    from nemo_prune.cli.progress import progress

    writing = build(Writing, given)
    check_files(journal_of(writing))
    check_manifest(writing)
    inputs = read_inputs(open_checkpoint(model), given)
    check_search(inputs, writing)
    with progress(quiet) as bar:
        found = search(inputs, writing, show_prompts, bar)
        found.engine.close()
    conclude(found, None, writing, inputs, as_json, quiet)
    click.get_current_context().exit(exit_code(record.status for record in found.manifest.prompts))


def journal_of(writing: Writing) -> Path | None:
    """Where the journal of the search lies, if a manifest is kept."""
    from nemo_prune.scoring.journal import journal_path

    return journal_path(writing.manifest) if writing.manifest else None


def check_manifest(writing: Writing) -> None:
    """Refuse early a manifest that could not be written late, and another unfinished run."""
    from nemo_prune.files.atomic import check_place
    from nemo_prune.report.plots import check_plots
    from nemo_prune.scoring.journal import refuse_existing

    if writing.neurons_csv:
        check_place(writing.neurons_csv, writing.overwrite)
    if writing.plots:
        check_plots(writing.plots)
    if writing.manifest and (journal := journal_of(writing)):
        if not writing.resume:
            refuse_existing(journal)
        check_place(writing.manifest, _replaces(writing, journal))


def check_search(inputs: Inputs, writing: Writing) -> None:
    """Refuse what the search could not begin with; no model is loaded."""
    from nemo_prune.scoring.journal import check_resumable

    if writing.resume and (journal := journal_of(writing)):
        check_resumable(journal, inputs.prompts.texts, inputs.calibration_prompts)
    inputs.check()


def search(inputs: Inputs, writing: Writing, show_prompts: bool, progress: Progress) -> "Localization":
    """Search; of an interrupted search the manifest keeps what was finished.

    Raises what `nemo_prune.localize.localize.localize` raises.
    """
    from nemo_prune.localize.localize import localize

    inputs.note_prompts(progress)
    try:
        return localize(
            inputs.checkpoint, inputs.prompts.texts, inputs.options, progress,
            calibration_prompts=inputs.calibration_prompts, show_prompts=show_prompts,
            keep=journal_of(writing), resume=writing.resume,
        )  # fmt: skip
    except Interrupted as stop:
        keep_manifest(stop.manifest, writing)
        raise


def keep_manifest(manifest: "Manifest", writing: Writing) -> None:
    """Write the manifest, if one is wanted; the journal stays."""
    from nemo_prune.checkpoint.manifest import write_manifest

    if writing.manifest and (journal := journal_of(writing)):
        write_manifest(manifest, writing.manifest, _replaces(writing, journal))


def conclude(
    found: "Localization", written: "Written | None", writing: Writing, inputs: Inputs, as_json: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Keep the manifest, remove the journal, say what was found."""
    from nemo_prune.checkpoint.neuron_table import write_neuron_table
    from nemo_prune.cli.console import print_prompts
    from nemo_prune.localize.prune import summary
    from nemo_prune.report.plots import of_localization

    keep_manifest(found.manifest, writing)
    if writing.neurons_csv:
        write_neuron_table(found.manifest, writing.neurons_csv, writing.overwrite)
    if journal := journal_of(writing):
        journal.unlink(missing_ok=True)
    result = inputs.prompts.locate(summary(found, written))
    if not quiet:
        print_prompts(result)
        for path in filter(None, (written and written.path, writing.manifest, writing.neurons_csv)):
            say(f"wrote {path}")
    if as_json:
        click.echo(json.dumps(result))
    if writing.plots:
        save_plots(of_localization(found), writing.plots)


def exit_code(statuses: Iterable[str]) -> int:
    """1 if a prompt of one of these statuses is still memorized, or still drawn."""
    return int(any(status not in (Status.SUPPRESSED, Status.NOT_MEMORIZED) for status in statuses))


def _replaces(writing: Writing, journal: Path) -> bool:
    """Whether the manifest may be replaced: what an interrupted run left, by its continuation."""
    return writing.overwrite or (writing.resume and journal.exists())
