"""Arguments and options that several verbs share, and the option objects that they become."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from nemo_prune.options import Confirm, Criterion, Options, Progress, SearchKind

if TYPE_CHECKING:
    from nemo_prune.checkpoint.checkpoint import Checkpoint
    from nemo_prune.files.prompts import PromptList

FILE = click.Path(path_type=Path)
"""A file or folder that is read."""
OUT = click.Path(path_type=Path)
"""A file or folder that is written; see `check_files`."""
F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def batch_size(_context: click.Context, _parameter: click.Parameter, value: str) -> int | None:
    """A positive number; None for auto."""
    if value == "auto":
        return None
    if not (value.isascii() and value.isdigit() and int(value) > 0):
        raise click.BadParameter("is a positive number or auto")
    return int(value)


def options(*given: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, in the order of the help text."""

    def decorate(function: F) -> F:
        for option in reversed(given):
            function = option(function)
        return function

    return decorate


model_argument = click.argument("model", type=FILE)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="No progress and no table.")
folder_options = options(
    click.option("--link", is_flag=True,
                 help="Of a diffusers folder, hard-link the files that stay as they are."),
    click.option("--drop-pickles", is_flag=True,
                 help="Of a diffusers folder, leave out copies of the denoiser that are not "
                      "named .safetensors (.bin, .ckpt, .sft, ONNX, ...), which would stay unpruned."),
)  # fmt: skip

undo_option = click.option(
    "--undo",
    type=OUT,
    help="Keep the removed rows in this new file (of a folder: new folder), for restore.",
)

resume_option = click.option(
    "--resume", is_flag=True,
    help="Go on where an interrupted run with the same output stopped.",
)  # fmt: skip


def _expanded(
    _context: click.Context, _parameter: click.Parameter, value: tuple[Path, ...]
) -> tuple[Path, ...]:
    """Patterns as the files they match: where no shell did that, and for `check_files`."""
    from nemo_prune.files.lists import expand

    return expand(value)


def _prompts(required: bool, help: str) -> Callable[[F], F]:
    return click.option(
        "--prompts", "prompt_files", type=FILE, required=required, multiple=True, callback=_expanded,
        metavar="FILE", help=help,
    )  # fmt: skip


_reading_options = options(
    click.option("--prompts-format", "prompts_format",
                 type=click.Choice(["txt", "csv", "tsv", "jsonl", "json", "parquet"]),
                 help="What --prompts are, whatever their names and content look like."),
    click.option("--prompt-column", metavar="NAME",
                 help="The prompts' column or key, if it is not caption, prompt or text."),
    click.option("--expect-prompts", type=click.IntRange(0), metavar="N",
                 help="Exit 2, before the model is loaded, unless N distinct prompts are read."),
)  # fmt: skip

prompts_options = options(
    _prompts(True, "Prompts, one a line or in a column: .txt, .csv, .tsv, .json, .jsonl, .parquet or "
                   "- (stdin). May be repeated, or a pattern."),
    _reading_options,
)  # fmt: skip
ordinary_options = options(
    _prompts(False, "Ordinary prompts, several hundred; default: bundled captions."),
    _reading_options,
)  # fmt: skip
show_prompts_option = click.option("--show-prompts", is_flag=True,
                                   help="Show prompts by their text, not only by number.")  # fmt: skip

# What all verbs that run the model take.
model_options = options(
    click.option("--seeds", type=click.IntRange(2, 200), default=10, show_default=True,
                 help="Starting noises per prompt."),
    click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True,
                 help="Base of all randomness."),
    click.option("--steps", type=click.IntRange(2, 1000), default=50, show_default=True,
                 help="DDIM steps whose second timestep is scored (50: t = 961 for SD1)."),
    click.option("--timestep", type=int, help="Score at this training timestep instead."),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto",
                 show_default=True),
    click.option("--precision", type=click.Choice(["auto", "fp32", "fp16", "bf16"]),
                 default="auto", show_default=True, help="auto: fp16 on CUDA, else fp32."),
    click.option("--batch-size", default="auto", show_default=True, callback=batch_size,
                 help="Samples a batch; auto grows to what the device holds."),
    click.option("--config", type=FILE, help="A diffusers config folder, instead of inference."),
    click.option("--no-cache", "cache", is_flag=True, flag_value=False, default=True,
                 help="Neither read nor keep statistics and scores of ordinary prompts."),
    click.option("--prediction-type", type=click.Choice(["epsilon", "v"]),
                 help="What the denoiser predicts, instead of what the model says of itself."),
    click.option("--text-encoder", type=FILE, multiple=True,
                 help="For a model without: a checkpoint or diffusers folder to take it from, or "
                      "the text encoder's file or folder (SDXL: give the option twice)."),
)  # fmt: skip

# Where the verbs that decide by thresholds take them from.
threshold_options = options(
    click.option("--calibration", type=FILE, help="A file of nemo-prune calibrate."),
    click.option("--calibration-prompts", type=FILE,
                 help="Ordinary prompts: activation statistics, tau and the gate come from them."),
    click.option("--force", is_flag=True,
                 help="Use the calibration though it was made for another model or setting."),
    click.option("--tau", type=click.FloatRange(0, 1),
                 help="Which seeds count as memorized, and what a suppressed prompt stays below. "
                      "Default: calibrated, or .428 where published."),
    click.option("--gate", type=click.FloatRange(0, 1),
                 help="A prompt above it is memorized. Default: calibrated to --fpr, also if only "
                      "--tau is given; .5 where published, at the default --fpr. At least tau."),
    click.option("--fpr", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.01,
                 show_default=True, help="Rate at which ordinary prompts may exceed the gate."),
)  # fmt: skip

criterion_option = click.option(
    "--criterion", type=click.Choice(get_args(Criterion)), default="cross-seed",
    show_default=True,
    help="What a pruned noise difference is compared with; same-seed is the paper's.",
)  # fmt: skip

searching_options = options(
    prompts_options,
    threshold_options,
    criterion_option,
    click.option("--layers", default="auto", show_default=True,
                 help="down+mid, all, or name patterns, separated by commas; auto: down+mid, and all "
                      "for a prompt that needs them."),
    click.option("--search", type=click.Choice(get_args(SearchKind)), default="auto", show_default=True,
                 help="literal is the paper's procedure, step by step; gradient-free takes no backward "
                      "pass."),
    click.option("--as-published", is_flag=True,
                 help="With --search literal: as the authors' code does it where the paper differs."),
    click.option("--confirm", type=click.Choice(get_args(Confirm)), default="trajectory",
                 show_default=True,
                 help="What decides that a picture is gone: short guided trajectories, ones as long as "
                      "a picture takes, or the score alone."),
    click.option("--rounds", type=click.IntRange(0, 10), default=3, show_default=True,
                 help="How often prompts that stay memorized are searched again."),
    model_options,
    show_prompts_option,
)  # fmt: skip

detecting_options = options(
    threshold_options,
    model_options,
    click.option("--all-seeds", is_flag=True,
                 help="Take all seeds of every prompt, also of those that are clear after a few."),
    show_prompts_option,
    overwrite_option,
    json_option,
    quiet_option,
)  # fmt: skip


def build(kind: type[T], given: Mapping[str, Any], **more: Any) -> T:
    """An option object from what click parsed: each field is the parameter of the same name.

    more: fields that are said otherwise. Fields for which the verb has no option keep their default.
    """
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{**{name: given[name] for name in names & given.keys()}, **more})


def check_files(*more: Path | None) -> None:
    """Refuse outputs of the running command that are one file, or that it reads; imports no torch.

    more: outputs that no option names, such as a journal.

    Raises OutputError.
    """
    from nemo_prune.files.atomic import refuse_inputs, refuse_same

    context = click.get_current_context()
    reads: list[Path] = []
    writes = [path for path in more if path is not None]
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        for kind, paths in ((FILE, reads), (OUT, writes)):
            if parameter.type is kind and value is not None:
                paths.extend(value if isinstance(value, tuple) else (value,))
    refuse_inputs(writes, reads)
    refuse_same(writes)


@dataclass(frozen=True)
class Inputs:
    """What the verbs that score a model read before they load it."""

    checkpoint: "Checkpoint"
    prompts: "PromptList"
    options: Options
    calibration_prompts: tuple[str, ...] | None

    def note_prompts(self, progress: Progress) -> None:
        """Note how many prompts were read, and what is odd about their lists."""
        for line in (counted(self.prompts), *self.prompts.notes):
            progress.note(line)

    def check(self) -> None:
        """Refuse options that do not go with this model or machine. Imports torch, so it comes last.

        Raises OptionError, CheckpointError, CalibrationError.
        """
        from nemo_prune.model.devices import pick_device
        from nemo_prune.scoring.opening import scored_timestep
        from nemo_prune.scoring.ordinary import check_calibration

        pick_device(self.options.device)
        scored_timestep(self.checkpoint, self.options)
        check_calibration(self.checkpoint, self.options, self.calibration_prompts)


def counted(prompts: "PromptList") -> str:
    """How many prompts were read, in words."""
    return (
        f"{len(prompts.texts)} prompts: {prompts.counts['prompts_read']} read, "
        f"{prompts.merged} repeated prompts merged, {prompts.blank} blank left out"
    )


def read_given(given: Mapping[str, Any], labels: bool = False) -> "PromptList":
    """The prompts of the options about `--prompts`; `labels`: and whether they are memorized.

    Raises PromptFileError.
    """
    from nemo_prune.files.prompts import check_count, read_prompts

    prompts = read_prompts(
        given["prompt_files"], given["prompts_format"], given["prompt_column"], labels
    )
    check_count(prompts, given["expect_prompts"])
    return prompts


def read_inputs(checkpoint: "Checkpoint", given: Mapping[str, Any], labels: bool = False) -> Inputs:
    """Read all prompts; `given` is what click parsed. labels: also what their lists say of them.

    Raises OptionError, PromptFileError.
    """
    from nemo_prune.files.prompts import read_prompts

    asked = build(Options, given)
    prompts = read_given(given, labels)
    if "layers" in given:
        checkpoint.select(asked.layers)
    ordinary = given["calibration_prompts"]
    return Inputs(checkpoint, prompts, asked, read_prompts(ordinary).texts if ordinary else None)
