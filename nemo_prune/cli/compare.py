"""The verb compare."""

import json
from pathlib import Path
from typing import Any

import click
from cloup import option_group

from nemo_prune.cli.failures import say
from nemo_prune.cli.options import (
    FILE,
    OUT,
    Number,
    Whole,
    check_files,
    json_option,
    model_argument,
    model_options,
    overwrite_option,
    prompts_options,
    quiet_option,
    read_inputs,
    resume_option,
    threshold_options,
    verb,
    workers_options,
    written_as,
)
from nemo_prune.options import BUNDLED_ORDINARY


@verb()
@model_argument
@prompts_options
@option_group(
    "Comparison",
    click.option(
        "--methods",
        "names",
        metavar="LIST",
        default="all",
        show_default=True,
        help="Methods or groups of them, separated by commas; an unknown name lists all there "
        "are. The unpruned model is always among them.",
    ),
    click.option(
        "--targets",
        type=FILE,
        help="Training pictures: a folder (named by prompt number or text) or a CSV "
        "(columns prompt, file).",
    ),
    click.option(
        "--ordinary",
        type=FILE,
        help=f"Ordinary prompts to look for side effects with; default: {BUNDLED_ORDINARY} bundled.",
    ),
    click.option(
        "--images",
        type=Whole(2, 100),
        default=10,
        show_default=True,
        help="Pictures of a prompt and method; the paper's: 10.",
    ),
    click.option(
        "--ordinary-images",
        type=Whole(0, 100),
        default=2,
        show_default=True,
        help="Pictures of an ordinary prompt and method.",
    ),
    click.option(
        "--picture-steps",
        type=Whole(1, 1000),
        default=50,
        show_default=True,
        help="DDIM steps of a picture.",
    ),
    click.option(
        "--guidance",
        type=Number(0, 100),
        default=7.0,
        show_default=True,
        help="Guidance scale of pictures.",
    ),
)
@option_group(
    "Measures",
    click.option("--sscd", type=FILE, help="A local SSCD model (TorchScript) to compare pictures with."),
    click.option(
        "--clip", type=FILE, help="A local CLIP (folder): alignment with the prompt, CLIP-FID and CMMD."
    ),
    click.option(
        "--inception",
        type=FILE,
        help="A local Inception (TorchScript): FID and KID of ordinary pictures.",
    ),
    click.option(
        "--reference",
        type=FILE,
        metavar="DIR",
        help="Real pictures that those distances are taken to; default: the unpruned model's "
        "from other noises.",
    ),
)
@option_group(
    "Output",
    click.option("--report", "reports", type=OUT, multiple=True, required=True,
                 help="Write the report: .html, .md or .json; may be given several times."),
    click.option("--csv", "table", type=OUT, callback=written_as("CSV"),
                 help="Also write the table: a line for each method and kind of prompt."),
    click.option("--keep", type=OUT, metavar="DIR",
                 help="Keep all pictures and what was found in this folder; a later run with --resume "
                      "adds methods or prompts to it."),
    resume_option,
    click.option("--redo", metavar="LIST",
                 help="With --resume: run these methods again, whatever is finished of them."),
    overwrite_option,
    json_option,
    quiet_option,
)  # fmt: skip
@threshold_options
@model_options
@workers_options
def compare(
    model: Path, names: str, targets: Path | None, ordinary: Path | None, images: int,
    ordinary_images: int, picture_steps: int, guidance: float, sscd: Path | None, clip: Path | None,
    inception: Path | None, reference: Path | None, reports: tuple[Path, ...], table: Path | None,
    keep: Path | None, resume: bool, redo: str | None, overwrite: bool, show_prompts: bool,
    as_json: bool, quiet: bool, **given: Any,
) -> None:  # fmt: skip
    """Compare methods on the same model, prompts and noises.

    Exit code 0: compared, whatever came out; a method that fails is named in the table.

    \b
    Example:
      nemo-prune compare model.safetensors --prompts mem.txt \\
        --methods none,nemo,random --report compare.html
    """
    from nemo_prune.checkpoint.open import open_checkpoint
    from nemo_prune.cli.console import print_comparison
    from nemo_prune.cli.progress import progress
    from nemo_prune.cli.reporting import command_line
    from nemo_prune.compare.methods import UNPRUNED, chosen
    from nemo_prune.compare.render import check_compare_format, write_compare, write_table
    from nemo_prune.compare.table import verdict
    from nemo_prune.files.atomic import check_place

    folder = _folder(reports[0], keep)
    check_files(*([] if keep else [folder]))
    for path in reports:
        check_compare_format(path)
    for path in (*reports, *([table] if table else [])):
        check_place(path, overwrite)
    wanted = chosen([*chosen(_listed(names)), UNPRUNED])
    again = chosen(_listed(redo), "redo") if redo else []
    if again and not resume:
        raise click.UsageError("--redo goes with --resume")
    checkpoint = open_checkpoint(model)
    inputs = read_inputs(checkpoint, given)
    texts = inputs.prompts.texts
    from nemo_prune.compare.methods import methods
    from nemo_prune.compare.run import CompareInputs
    from nemo_prune.compare.run import compare as run_comparison
    from nemo_prune.compare.work import check_work
    from nemo_prune.files.prompts import apart_from, read_prompts
    from nemo_prune.model.devices import pick_device
    from nemo_prune.report.inputs import bundled_ordinary
    from nemo_prune.report.likeness import open_likeness
    from nemo_prune.report.targets import read_targets

    check_work(folder, resume)
    known = read_targets(targets, texts) if targets else {}
    others, whence = bundled_ordinary()
    if ordinary:
        others, whence = read_prompts(ordinary).texts, ordinary.name
    inputs.check()
    likeness = open_likeness(sscd, clip, as_published=True)
    likeness.try_out()
    from nemo_prune.compare.quality import open_extractors, real_pictures

    asked = CompareInputs(
        checkpoint=checkpoint,
        prompts=texts,
        ordinary=apart_from(others, texts),
        ordinary_from=whence,
        options=inputs.options,
        methods=methods(wanted),
        likeness=likeness,
        kinds=inputs.prompts.kinds,
        targets=known,
        extractors=open_extractors(inception, clip, pick_device(inputs.options.device)),
        real=real_pictures(reference) if reference else (),
        images=images,
        ordinary_images=ordinary_images,
        steps=picture_steps,
        guidance=guidance,
        show_prompts=show_prompts,
        places=inputs.prompts.places,
        calibration_prompts=inputs.calibration_prompts,
    )
    with progress(quiet) as bar:
        inputs.note_prompts(bar)
        found = run_comparison(asked, bar, folder, keep=keep is not None, resume=resume, redo=again)
    found.data["command"] = command_line(click.get_current_context())
    for path in reports:
        write_compare(found.data, found.album, path, overwrite)
    if table:
        write_table(found.data, table, overwrite)
    if as_json:
        click.echo(json.dumps({**found.data, "verdict": verdict(found.data)}))
    else:
        click.echo(verdict(found.data))
    if not (quiet or as_json):
        print_comparison(found.data)
    if not quiet:
        for path in (*reports, *filter(None, (table, keep))):
            say(f"wrote {path}")


def _listed(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _folder(report: Path, keep: Path | None) -> Path:
    """Where the run works: where it keeps everything, else beside its first report."""
    from nemo_prune.files.atomic import beside

    return keep or beside(report, ".work")
