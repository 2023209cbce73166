"""The verb verify."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from nemo_prune.cli.options import (
    FILE,
    Inputs,
    build,
    check_files,
    criterion_option,
    json_option,
    model_options,
    overwrite_option,
    prompts_options,
    quiet_option,
    read_inputs,
    show_prompts_option,
    threshold_options,
)
from nemo_prune.cli.reporting import check_reports, prepare, report_options
from nemo_prune.options import Options, Progress, Reporting

if TYPE_CHECKING:
    from nemo_prune.checkpoint.provenance import StatedSettings


@click.command()
@click.argument("original", type=FILE)
@click.argument("pruned", type=FILE)
@prompts_options
@threshold_options
@criterion_option
@model_options
@show_prompts_option
@click.option("--manifest", type=FILE,
              help="The manifest: also compare the union with each prompt's own neurons.")  # fmt: skip
@report_options
@overwrite_option
@json_option
@quiet_option
def verify(
    original: Path, pruned: Path, manifest: Path | None, show_prompts: bool, as_json: bool, quiet: bool,
    **given: Any,
) -> None:  # fmt: skip
    """Compare a pruned checkpoint with its original: suppression, pictures, side effects.

    tau, the gate, the criterion and the timestep are the pruned file's own (its metadata), unless
    options say otherwise.

    \b
    nemo-prune verify model.safetensors clean.safetensors --prompts mem.txt --report report.html
    """
    from nemo_prune.checkpoint.manifest import read_manifest
    from nemo_prune.checkpoint.open import open_checkpoint
    from nemo_prune.checkpoint.provenance import stated_settings
    from nemo_prune.cli.console import print_verification
    from nemo_prune.cli.progress import progress

    context = click.get_current_context()
    reporting = build(Reporting, given)
    check_files()
    check_reports(reporting)
    before, after = open_checkpoint(original), open_checkpoint(pruned)
    wanted = read_manifest(manifest) if manifest else None
    inputs = read_inputs(before, given)
    prompts = inputs.prompts.texts
    stated = stated_settings(after.metadata, after.path)
    from nemo_prune.report.inputs import VerifyInputs, check_inputs

    check_inputs(before, after, prompts, wanted)
    inputs.check()
    report = prepare(reporting, prompts)
    asked = _as_pruned(inputs.options, stated, context)
    with progress(quiet) as bar:
        inputs.note_prompts(bar)
        for line in stated.ignored:
            bar.note(line)
        tau, tau_source, gate, gate_source = _thresholds(replace(inputs, options=asked), stated, bar)
        found = report.verify(
            VerifyInputs(
                before, after, prompts, report.ordinary, asked, tau, tau_source, gate, gate_source,
                wanted, show_prompts, report.ordinary_from,
            ),
            bar,
        )  # fmt: skip
    if not quiet:
        print_verification(found.data)
    report.list_outputs(quiet)
    if as_json:
        click.echo(json.dumps(found.data))
    context.exit(0 if found.all_suppressed else 1)


def _as_pruned(asked: Options, stated: "StatedSettings", context: click.Context) -> Options:
    """The options, with what the pruned file states where the command line says nothing."""

    def unsaid(name: str) -> bool:
        return context.get_parameter_source(name) is ParameterSource.DEFAULT

    if unsaid("criterion") and stated.criterion is not None:
        asked = replace(asked, criterion=stated.criterion)
    if unsaid("steps") and unsaid("timestep"):
        asked = replace(asked, timestep=stated.timestep)
    return asked


def _thresholds(
    inputs: Inputs, stated: "StatedSettings", progress: Progress
) -> tuple[float, str, float | None, str]:
    """tau, the gate, and the source of each: the pruned file, unless options ask for others."""
    asked, ordinary = inputs.options, inputs.calibration_prompts
    if stated.tau is not None and asked.tau is None and not asked.calibration and not ordinary:
        asked.check_gate(stated.tau)
        if asked.gate is not None:
            return stated.tau, "the pruned file's", asked.gate, "given"
        gate_source = "tau" if stated.gate is None else "the pruned file's"
        return stated.tau, "the pruned file's", stated.gate, gate_source
    from nemo_prune.scoring.opening import open_engine
    from nemo_prune.scoring.ordinary import Ordinary

    engine = open_engine(inputs.checkpoint, asked, progress)
    found = Ordinary(engine, inputs.checkpoint, asked, ordinary, progress).thresholds
    engine.model.release()
    return found.tau, found.tau_source, found.gate.value, found.gate_source
