"""The verb verify, and the options of every verb that writes a report."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from nemo_prune.cli.options import (
    FILE,
    criterion_option,
    json_option,
    model_options,
    options,
    overwrite_option,
    prompts_option,
    quiet_option,
    read_files,
    read_options,
    read_ordinary,
    show_prompts_option,
    threshold_options,
)

if TYPE_CHECKING:
    from nemo_prune.options import Progress
    from nemo_prune.report.gallery import PictureSettings
    from nemo_prune.report.inputs import VerifyInputs
    from nemo_prune.report.likeness import Likeness
    from nemo_prune.report.verify import Report

_BUNDLED = 20  # ordinary captions: each costs twice as many samples as seeds

report_options = options(
    click.option("--report", "reports", type=FILE, multiple=True,
                 help="Write a report: .html, .md or .json; may be given several times."),
    click.option("--card", type=FILE, help="Write a section for the pruned model's card (Markdown)."),
    click.option("--ordinary", type=FILE,
                 help=f"Ordinary prompts to look for side effects with; default: {_BUNDLED} bundled."),
    click.option("--targets", type=FILE,
                 help="Training pictures: a folder (named by prompt number or text) or a CSV "
                      "(columns prompt, file)."),
    click.option("--images", type=click.IntRange(0, 100), default=4, show_default=True,
                 help="Pictures per memorized prompt and model; 0 skips pictures."),
    click.option("--ordinary-images", type=click.IntRange(0, 100), default=2, show_default=True,
                 help="Pictures per ordinary prompt and model, for the first 6 of them."),
    click.option("--picture-steps", type=click.IntRange(1, 1000), default=50, show_default=True,
                 help="DDIM steps of a picture."),
    click.option("--guidance", type=click.FloatRange(0, 100), default=7.0, show_default=True,
                 help="Guidance scale of pictures."),
    click.option("--sscd", type=FILE, help="A local SSCD model (TorchScript) to compare pictures with."),
    click.option("--clip", type=FILE, help="A local CLIP (folder) to measure prompt alignment with."),
)  # fmt: skip


@dataclass(frozen=True)
class Reporting:
    """Everything about reports that a command line says, read before any long work."""

    reports: tuple[Path, ...]
    card: Path | None
    overwrite: bool
    ordinary: Sequence[str] | None
    ordinary_from: str
    settings: "PictureSettings"
    likeness: "Likeness"
    command: str

    @property
    def wanted(self) -> bool:
        return bool(self.reports or self.card)

    def verify(self, inputs: "VerifyInputs", progress: "Progress") -> "Report":
        """Verify, and write what was asked for."""
        from nemo_prune.report.verify import verify

        found = verify(inputs, self.likeness, self.settings, progress)
        found.data["command"] = self.command
        for path in self.reports:
            found.save(path, self.overwrite)
        if self.card:
            found.save_card(self.card, self.overwrite)
        return found

    def some_ordinary(self) -> Sequence[str]:
        from nemo_prune.files.prompts import bundled_captions

        return self.ordinary or bundled_captions()[:_BUNDLED]

    def written(self) -> list[Path]:
        return [*self.reports, *([self.card] if self.card else [])]


def check_report_places(
    given: dict[str, Any], overwrite: bool, taken: Sequence[Path], inputs: Sequence[Path | None]
) -> None:
    """Refuse early what could not be written late; imports no torch.

    `taken`: other outputs of the same command. `inputs`: what it reads, which no report replaces.
    """
    from nemo_prune.files.atomic import check_place, refuse_inputs
    from nemo_prune.report.render import check_format

    for path in given["reports"]:
        check_format(path)
    places = [*given["reports"], *([given["card"]] if given["card"] else [])]
    named: set[Path] = {path.absolute() for path in taken}
    refuse_inputs(places, inputs)
    for path in places:
        check_place(path, overwrite)
        if path.absolute() in named:
            raise click.UsageError(f"{path}: is to be written twice; give each output its own name")
        named.add(path.absolute())


def read_reporting(given: dict[str, Any], prompts: Sequence[str], overwrite: bool) -> Reporting:
    """Take the report options out of `given`; the places were checked already.

    Raises OptionError, PromptFileError.
    """
    from nemo_prune.files.prompts import read_prompts

    ordinary, targets = given.pop("ordinary"), given.pop("targets")
    texts = read_prompts(ordinary).texts if ordinary else None
    from nemo_prune.report.gallery import PictureSettings
    from nemo_prune.report.likeness import open_likeness
    from nemo_prune.report.targets import read_targets

    return Reporting(
        reports=given.pop("reports"),
        card=given.pop("card"),
        overwrite=overwrite,
        ordinary=texts,
        ordinary_from=ordinary.name if ordinary else f"the first {_BUNDLED} of the bundled list",
        settings=PictureSettings(
            images=given.pop("images"),
            ordinary_images=given.pop("ordinary_images"),
            steps=given.pop("picture_steps"),
            guidance=given.pop("guidance"),
            targets=read_targets(targets, prompts) if targets else {},
        ),
        likeness=open_likeness(given.pop("sscd"), given.pop("clip")),
        command=command_line(click.get_current_context()),
    )


def command_line(context: click.Context) -> str:
    """The command that gives the same again: what was said on the command line, in full."""
    words = ["nemo-prune", str(context.info_name)]
    for parameter in context.command.params:
        name = str(parameter.name)
        if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        value = context.params[name]
        if isinstance(parameter, click.Argument):
            words.append(str(value))
        elif isinstance(parameter, click.Option):
            option = max(parameter.opts, key=len)
            if parameter.is_flag:
                words.append(option)
            else:
                values = value if parameter.multiple else (value,)
                words += [word for one in values for word in (option, str(one))]
    if "overwrite" in context.params and "--overwrite" not in words:
        words.append("--overwrite")  # what the first run wrote is there
    return shlex.join(words)


@click.command()
@click.argument("original", type=FILE)
@click.argument("pruned", type=FILE)
@prompts_option
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
    original: Path, pruned: Path, manifest: Path | None, overwrite: bool, as_json: bool, quiet: bool,
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
    from nemo_prune.files.prompts import read_prompts

    reads = read_files(original, given["prompt_file"], given)
    check_report_places(given, overwrite, [], [pruned, manifest, *reads])
    before, after = open_checkpoint(original), open_checkpoint(pruned)
    prompts = read_prompts(given.pop("prompt_file"))
    wanted = read_manifest(manifest) if manifest else None
    ordinary = read_ordinary(given)
    show = given.pop("show_prompts")
    stated = stated_settings(after.metadata, after.path)
    from nemo_prune.report.inputs import VerifyInputs, check_inputs
    from nemo_prune.scoring.opening import open_engine
    from nemo_prune.scoring.ordinary import Ordinary

    check_inputs(before, after, prompts.texts, wanted)
    reporting = read_reporting(given, prompts.texts, overwrite)
    source = click.get_current_context().get_parameter_source
    if source("criterion") is ParameterSource.DEFAULT:
        given["criterion"] = stated.criterion or given["criterion"]
    if source("steps") is ParameterSource.DEFAULT and given["timestep"] is None:
        given["timestep"] = stated.timestep
    settings = read_options(given)
    with progress(quiet) as bar:
        for line in stated.ignored:
            bar.note(line)
        if stated.tau is not None and settings.tau is None and not settings.calibration and not ordinary:
            settings.check_gate(stated.tau)
            tau, tau_source, gate, gate_source = stated.tau, "the pruned file's", settings.gate, "given"
            if gate is None:
                gate, gate_source = stated.gate, "tau" if stated.gate is None else tau_source
        else:
            engine = open_engine(before, settings, bar)
            thresholds = Ordinary(engine, before, settings, ordinary, bar).thresholds
            tau, tau_source = thresholds.tau, thresholds.tau_source
            gate, gate_source = thresholds.gate.value, thresholds.gate_source
            engine.model.release()
        inputs = VerifyInputs(
            before, after, prompts.texts, reporting.some_ordinary(), settings, tau, tau_source,
            gate, gate_source, wanted, show, reporting.ordinary_from,
        )  # fmt: skip
        found = reporting.verify(inputs, bar)
    if not quiet:
        print_verification(found.data)
        for path in reporting.written():
            click.echo(f"wrote {path}", err=True)
    if as_json:
        click.echo(json.dumps(found.data))
    click.get_current_context().exit(0 if found.all_suppressed else 1)
