"""The options of the verbs that write reports, and what is read for a report before any work."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import click
from click.core import ParameterSource
from cloup import option_group

from nemo_prune.cli.failures import say
from nemo_prune.cli.options import FILE, OUT, Number, Whole
from nemo_prune.options import BUNDLED_ORDINARY, Progress, Reporting, TargetsMatch

if TYPE_CHECKING:
    from nemo_prune.report.gallery import PictureSettings
    from nemo_prune.report.inputs import VerifyInputs
    from nemo_prune.report.likeness import Likeness
    from nemo_prune.report.verify import Report

report_options = option_group(
    "Report",
    click.option("--report", "reports", type=OUT, multiple=True,
                 help="Write a report: .html, .md or .json; may be given several times."),
    click.option("--card", type=OUT, help="Write a section for the pruned model's card (Markdown)."),
    click.option("--ordinary", type=FILE,
                 help="Ordinary prompts to look for side effects with; default: "
                      f"{BUNDLED_ORDINARY} bundled."),
    click.option("--targets", type=FILE,
                 help="Training pictures: a folder (named by prompt number or text) or a CSV "
                      "(columns prompt, file)."),
    click.option("--targets-match", type=click.Choice(get_args(TargetsMatch)), default="name",
                 show_default=True,
                 help="How a folder's pictures are told: by name; by order, one a prompt; or by which "
                      "prompt's pictures, as the unpruned model draws them, each is most like. "
                      "Doubtful ones are named and not used."),
    click.option("--images", type=Whole(0, 100), default=4, show_default=True,
                 help="Pictures per memorized prompt and model; 0 skips pictures."),
    click.option("--ordinary-images", type=Whole(0, 100), default=2, show_default=True,
                 help="Pictures per ordinary prompt and model, for the first 6 of them."),
    click.option("--picture-steps", type=Whole(1, 1000), default=50, show_default=True,
                 help="DDIM steps of a picture."),
    click.option("--guidance", type=Number(0, 100), default=7.0, show_default=True,
                 help="Guidance scale of pictures."),
    click.option("--sscd", type=FILE, help="A local SSCD model (TorchScript) to compare pictures with."),
    click.option("--clip", type=FILE, help="A local CLIP (folder) to measure prompt alignment with."),
)  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """A report that was asked for, and all that was read for it."""

    asked: Reporting
    ordinary: Sequence[str]
    ordinary_from: str
    settings: "PictureSettings"
    likeness: "Likeness"
    command: str

    def verify(self, inputs: "VerifyInputs", progress: Progress) -> "Report":
        """Verify, and write what was asked for."""
        from nemo_prune.report.verify import verify

        found = verify(inputs, self.likeness, self.settings, progress)
        found.data["command"] = self.command
        for path in self.asked.reports:
            found.save(path, self.asked.overwrite)
        if self.asked.card:
            found.save_card(self.asked.card, self.asked.overwrite)
        return found

    def list_outputs(self, quiet: bool) -> None:
        """Say what was written."""
        if not quiet:
            for path in self.asked.outputs:
                say(f"wrote {path}")


def check_reports(reporting: Reporting) -> None:
    """Refuse early what could not be written late; imports no torch.

    Raises OptionError, OutputError.
    """
    from nemo_prune.files.atomic import check_place
    from nemo_prune.report.render import check_card, check_format

    for path in reporting.reports:
        check_format(path)
    if reporting.card is not None:
        check_card(reporting.card)
    for path in reporting.outputs:
        check_place(path, reporting.overwrite)


def prepare(reporting: Reporting, prompts: Sequence[str]) -> Prepared:
    """Read all that a report needs besides the models; imports torch.

    Raises OptionError, PromptFileError.
    """
    from nemo_prune.files.prompts import read_prompts
    from nemo_prune.report.gallery import PictureSettings
    from nemo_prune.report.inputs import bundled_ordinary
    from nemo_prune.report.likeness import open_likeness
    from nemo_prune.report.targets import Targets, find_targets

    targets = Targets()
    if reporting.targets:
        targets = find_targets(reporting.targets, prompts, reporting.targets_match)
    texts, whence = bundled_ordinary()
    if reporting.ordinary:
        texts, whence = read_prompts(reporting.ordinary).texts, reporting.ordinary.name
    return Prepared(
        asked=reporting,
        ordinary=texts,
        ordinary_from=whence,
        settings=PictureSettings(
            images=reporting.images,
            ordinary_images=reporting.ordinary_images,
            steps=reporting.picture_steps,
            guidance=reporting.guidance,
            targets=targets.pictures,
            targets_match=targets.match,
            targets_left=targets.left,
        ),
        likeness=open_likeness(reporting.sscd, reporting.clip),
        command=command_line(click.get_current_context()),
    )


def command_line(context: click.Context) -> str:
    """The command that gives the same again: everything given on the command line, in full."""
    words = ["nemo-prune", str(context.info_name)]
    for parameter in context.command.params:
        name = str(parameter.name)
        if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        value = context.params[name]
        if value is None:  # given as the default's own word, such as auto
            continue
        if isinstance(parameter, click.Argument):
            words.append(str(value))
        elif isinstance(parameter, click.Option):
            option = max(parameter.opts, key=len)
            if parameter.is_flag:
                words.append(option)
            else:
                values = value if parameter.multiple else (value,)
                words += [word for one in values for word in (option, str(one))]
    return shlex.join(words)
