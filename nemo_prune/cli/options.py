"""Arguments and options that several verbs share."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    pass

FILE = click.Path(path_type=Path)
F = TypeVar("F", bound=Callable[..., Any])


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
output_option = click.option("-o", "--output", type=FILE, help="The checkpoint to write.")
folder_options = options(
    click.option("--link", is_flag=True,
                 help="Of a diffusers folder, hard-link the files that stay as they are."),
    click.option("--drop-pickles", is_flag=True,
                 help="Of a diffusers folder, leave out copies of the denoiser that are not "
                      "named .safetensors (.bin, .ckpt, .sft, ONNX, ...), which would stay unpruned."),
)  # fmt: skip

undo_option = click.option(
    "--undo",
    type=FILE,
    help="Keep the removed rows in this new file (of a folder: new folder), for restore.",
)

resume_option = click.option(
    "--resume", is_flag=True,
    help="Go on where an interrupted run with the same output stopped.",
)  # fmt: skip

prompts_option = click.option(
    "--prompts", "prompt_file", type=FILE, required=True,
    help="Prompts: .txt (one a line), .csv (column caption, prompt or text) or .jsonl.",
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
    click.option("--batch-size", default="auto", show_default=True,
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
    "--criterion", type=click.Choice(["cross-seed", "same-seed"]), default="cross-seed",
    show_default=True,
    help="What a pruned noise difference is compared with; same-seed is the paper's.",
)  # fmt: skip

searching_options = options(
    prompts_option,
    threshold_options,
    criterion_option,
    click.option("--layers", default="auto", show_default=True,
                 help="auto (down+mid, the paper's, and all where that is not enough), down+mid, "
                      "all, or name patterns, separated by commas."),
    click.option("--search", type=click.Choice(["auto", "gradient-free", "literal"]), default="auto",
                 show_default=True, help="literal is the paper's procedure, step by step."),
    click.option("--as-published", is_flag=True,
                 help="With --search literal: as the authors' code where it differs from the paper."),
    click.option("--confirm", type=click.Choice(["trajectory", "pictures", "none"]),
                 default="trajectory", show_default=True,
                 help="What says that a picture is gone: short guided trajectories, trajectories as "
                      "long as a picture takes, or the score alone."),
    click.option("--rounds", type=click.IntRange(0, 10), default=3, show_default=True,
                 help="How often prompts that stay memorized are searched again."),
    model_options,
    show_prompts_option,
)  # fmt: skip


def read_files(model: Path, prompt_file: Path | None, given: dict[str, Any]) -> list[Path | None]:
    """All that a verb reads, for `refuse_inputs`; `given` as click parsed it."""
    options = ("calibration", "calibration_prompts", "config", "ordinary", "targets", "sscd", "clip")
    return [model, prompt_file, *map(given.get, options), *given["text_encoder"]]


def read_ordinary(given: dict[str, Any]) -> tuple[str, ...] | None:
    """The prompts of --calibration-prompts, which is taken out of `given`; None without."""
    from nemo_prune.files.prompts import read_prompts

    file = given.pop("calibration_prompts")
    return read_prompts(file).texts if file else None


def read_options(given: dict[str, Any]) -> Any:
    """`Options` from what click parsed; imports torch."""
    from nemo_prune.options import Options

    size = given.pop("batch_size")
    if size == "auto":
        batch = None
    elif size.isdigit() and int(size) > 0:
        batch = int(size)
    else:
        raise click.BadParameter("is a positive number or auto", param_hint="--batch-size")
    return Options(batch_size=batch, **given)
