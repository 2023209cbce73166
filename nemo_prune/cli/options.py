"""Arguments and options that several verbs share, and the option objects that they become."""

import math
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click
import cloup
from click.core import ParameterSource
from cloup import option_group

from nemo_prune.cli.failures import say
from nemo_prune.errors import OptionError
from nemo_prune.options import Confirm, Criterion, Options, Progress, SearchKind

if TYPE_CHECKING:
    from nemo_prune.checkpoint.apply import Written
    from nemo_prune.checkpoint.checkpoint import Checkpoint
    from nemo_prune.files.prompts import PromptList
    from nemo_prune.report.plots import Plotted


class _Named(click.Path):
    """A path; not an empty text, as of a variable that is not set, which would be the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("is empty; give a path", param, ctx)
        # As it was typed: a path has no double slash.
        if _ADDRESS.match(str(value)) and not os.path.lexists(value):
            what = "neither read nor written; download it first"
            if self is OUT:
                what = "not written to; give a path, and upload what is written there"
            raise OptionError(f"{value}: URLs are {what}")
        # Not Path.exists, which fails for what is no possible name.
        there = os.path.exists(value)  # noqa: PTH110
        if self is FILE and there and not os.access(value, os.R_OK):
            raise OptionError(f"{value}: cannot be read (permission denied); change who may read it")
        return super().convert(value, param, ctx)


_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
FILE = _Named(path_type=Path, readable=False)
"""A file or folder that is read."""
OUT = _Named(path_type=Path, readable=False)
"""A file or folder that is written; see `check_files`."""
FILE.name, OUT.name = "file", "out"  # as the help shows them
_KINDS = {
    "CSV": (".csv", ".txt", ".text", ""),
    "JSON": (".json", ".txt", ".text", ""),
    "safetensors": (".safetensors", ""),
    "XML": (".xml", ".txt", ".text", ""),
}
"""What outputs are written as, and the suffixes among those of known formats that go with it."""
F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def misnamed(path: Path, kind: str) -> bool:
    """Whether an output's name says another format than it is written in."""
    from nemo_prune.files.lists import COMPRESSED, FOREIGN, FORMATS

    others = {*COMPRESSED, *FOREIGN, *FORMATS, ".safetensors"}.difference(_KINDS[kind])
    return path.suffix.lower() in others


def written_as(kind: str) -> Callable[[click.Context, click.Parameter, Path | None], Path | None]:
    """A callback that refuses an output whose name says another format; programs go by the name."""

    def check(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
        if path is not None and misnamed(path, kind):
            raise click.BadParameter(_renamed(path, kind), context, parameter)
        return path

    return check


def _renamed(path: Path, kind: str) -> str:
    end, bare = _KINDS[kind][0], path.with_suffix("").name
    name = bare if bare.lower().endswith(end) else bare + end  # name.csv.gz has it already
    return f"{path} is written as {kind}; name it {name}"


def check_junit(junit: Path | None) -> None:
    """The same of a JUnit file, behind `check_files`, which says it if an input was given as one."""
    if junit and misnamed(junit, "XML"):
        raise click.UsageError(f"--junit: {_renamed(junit, 'XML')}")


class Whole(click.IntRange):
    """A whole number in a range."""

    name = "integer"


class Number(click.FloatRange):
    """A number in a range, which nan is in none of."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail("nan is no number", param, ctx)
        return number


_SLASHES = (os.sep, os.altsep or os.sep)
_LINE_END = re.compile(r"[\^`\\]|[^^]+\^")  # a word that was to break the line
_DASHES = "-\u2010\u2011\u2012\u2013\u2014\u2015\u2212"  # what word processors make of --


class Verb(cloup.Command):
    """A command that the list of commands shows with its whole first sentence."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse -output, which would be -o of a file `utput`, --output with dashes of a text, and a
        second file where one is taken: the first would be left out without a word.
        """
        known = self._long_options()
        for word in args[: args.index("--")] if "--" in args else args:
            name = word.partition("=")[0]
            meant = f"--{name.lstrip(_DASHES)}"
            if name[:1] in (*_DASHES,) and name != meant and meant in known:
                raise click.UsageError(f"No such option '{name}'. Did you mean '{meant}'?", ctx)
            if _LINE_END.fullmatch(word) and not os.path.lexists(word):
                raise click.UsageError(
                    f"'{word}': a mark by which another shell goes on in the next line (^ of cmd, ` of "
                    f"PowerShell) is a word here; remove it",
                    ctx,
                )
        typed: Mapping[str, Any] = {}
        if not ctx.resilient_parsing:
            typed, unknown, order = self.make_parser(ctx).parse_args(list(args))
            for parameter, times in Counter(order).items():
                single = isinstance(parameter, click.Option) and not parameter.multiple
                if times > 1 and single and isinstance(parameter.type, _Named):
                    raise click.UsageError(
                        f"{max(parameter.opts, key=len)}: given twice; give it once", ctx
                    )
            self._refuse_lists(ctx, args, typed, unknown)
        left = super().parse_args(ctx, args)
        self._refuse_slashes(ctx, typed)
        return left

    def _refuse_lists(
        self, ctx: click.Context, args: list[str], typed: Mapping[str, Any], unknown: Sequence[str]
    ) -> None:
        """Refuse lists of prompts among the models, before an option is said to be missing.

        typed, unknown: what is given for each parameter, and the words that none takes.
        """
        if "--prompts" not in self._long_options() or {*args} & {*ctx.help_option_names}:
            return
        from nemo_prune.files.lists import named_format

        words = list(unknown)
        for one in self.params:
            if isinstance(one, click.Argument):
                value = typed.get(str(one.name))
                one_or_more = [value] if isinstance(value, str) else value
                words += one_or_more if isinstance(one_or_more, list | tuple) else []  # else none
        lists = [word for word in words if named_format(Path(word)) and not Path(word).is_dir()]
        # Beside lists that were named, the word is opened, which says what it is.
        if lists and not typed.get("prompt_files"):
            models = [word for word in words if word not in lists]
            raise click.UsageError(
                f"{lists[0]} is a list by its name, not a model; a list of prompts, and each further "
                f"one, needs --prompts before it: nemo-prune {self.name} "
                f"{shlex.join(models) if models else 'MODEL'} "
                f"{' '.join(f'--prompts {shlex.quote(one)}' for one in lists)}",
                ctx,
            )

    def _long_options(self) -> set[str]:
        return {name for parameter in self.params for name in parameter.opts if name[:2] == "--"}

    def _refuse_slashes(self, ctx: click.Context, typed: Mapping[str, Any]) -> None:
        """Refuse `-o folder/` where a file is written: it would be a file called `folder`."""
        read: list[Path] = []
        for one in self.params:
            value = ctx.params.get(str(one.name)) if isinstance(one, click.Argument) else None
            read += value if isinstance(value, tuple) else [value] if isinstance(value, Path) else []
        if ("models" in ctx.params and len(read) > 1) or any(map(os.path.isdir, read)):
            return  # then a folder is written
        for one in self.params:
            value = typed.get(str(one.name))
            for text in value if isinstance(value, list) else [value]:
                if one.type is OUT and one.metavar != "DIR" and str(text).endswith(_SLASHES):
                    raise click.BadParameter(f"{text} names a folder; name the file", ctx, one)

    def get_short_help_str(self, limit: int = 0) -> str:
        del limit  # where click would cut it off; what is too long is wrapped
        return " ".join((self.help or "").partition("\n\n")[0].split())


def verb(kind: type[Verb] = Verb) -> Callable[[Callable[..., Any]], Verb]:
    """The decorator that makes a function a command of its name."""
    return cloup.command(cls=kind)


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


model_argument = cloup.argument("model", type=FILE, help="A .safetensors file or a diffusers folder.")
models_argument = cloup.argument(
    "models", type=FILE, nargs=-1, required=True, metavar="MODEL...",
    help="A .safetensors file or a diffusers folder, or several.",
)  # fmt: skip
pair_arguments = options(
    cloup.argument("original", type=FILE, help="The model that was pruned, a file or a folder."),
    cloup.argument("pruned", type=FILE, help="What came of it."),
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="No progress and no table.")
folder_options = options(
    click.option("--link", is_flag=True,
                 help="Of a diffusers folder, hard-link the files that stay as they are."),
    click.option("--drop-pickles", is_flag=True,
                 help="Of a diffusers folder, leave out archives, and copies of the denoiser that are "
                      "not named .safetensors (.bin, .ckpt, .sft, ONNX), which would stay unpruned."),
)  # fmt: skip

sidecars_option = click.option(
    "--sidecars", is_flag=True,
    help="Of a file, also copy what lies beside it under its name (.yaml, .json, .civitai.info, "
         "previews), to the output's name; never replaces another.",
)  # fmt: skip

undo_option = click.option(
    "--undo",
    type=OUT,
    help="Keep the removed rows in this new file (of a folder: new folder), for restore.",
)

neurons_csv_option = click.option(
    "--neurons-csv", type=OUT, callback=written_as("CSV"),
    help="Also write a table: prompt, layer, row, attribution, harm, shared by which prompts.",
)  # fmt: skip

plots_option = click.option(
    "--plots", type=OUT, metavar="DIR",
    help="Also plot scores with tau and the gate, and, where neurons are known, where they lie and "
         "scores before and after: a new folder of SVG and PNG files (the extra plots).",
)  # fmt: skip

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


def _filled(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """A text with something in it; an empty one is likely of a variable that is not set."""
    if value is not None and not value.strip():
        raise click.BadParameter("is empty; give a name, or leave the option out", context, parameter)
    return value


def _prompts(required: bool, help: str) -> Callable[[F], F]:
    return click.option(
        "--prompts", "prompt_files", type=FILE, required=required, multiple=True, callback=_expanded,
        metavar="FILE", help=help,
    )  # fmt: skip


_reading_options = options(
    click.option("--prompts-format", "prompts_format",
                 type=click.Choice(["txt", "csv", "tsv", "jsonl", "json", "parquet"]),
                 help="What --prompts are, whatever their names and content look like."),
    click.option("--prompt-column", metavar="NAME", callback=_filled,
                 help="The prompts' column or key, if it is not caption, prompt or text."),
    click.option("--expect-prompts", type=Whole(0), metavar="N",
                 help="Exit 2, before the model is loaded, unless N distinct prompts are read."),
)  # fmt: skip

prompts_options = option_group(
    "Prompts",
    _prompts(True, "Prompts, one a line or in a column: .txt, .csv, .tsv, .json, .jsonl, .parquet or "
                   "- (stdin). May be repeated, or a pattern."),
    _reading_options,
    click.option("--show-prompts", is_flag=True,
                 help="Show prompts by their text, not only by number."),
)  # fmt: skip
ordinary_options = option_group(
    "Prompts",
    _prompts(False, "Ordinary prompts, several hundred; default: bundled captions."),
    _reading_options,
)  # fmt: skip

# What all verbs that run the model take.
model_options = option_group(
    "Model",
    click.option("--seeds", type=Whole(2, 200), default=10, show_default=True,
                 help="Starting noises per prompt."),
    click.option("--seed", type=Whole(0, 2**31), default=0, show_default=True,
                 help="Base of all randomness."),
    click.option("--steps", type=Whole(2, 1000), default=50, show_default=True,
                 help="DDIM steps whose second timestep is scored (50: t = 961 for SD1)."),
    click.option("--timestep", type=int, help="Score at this training timestep instead."),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto",
                 show_default=True, help="Where the model runs; auto: the fastest there is."),
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

workers_options = option_group(
    "Workers",
    click.option("--workers", type=Whole(1, 4096), metavar="N",
                 help="Share the prompts among N processes, each with the model (on its own GPU if the "
                      "device is cuda); needs Ray (the extra ray)."),
    click.option("--ray", metavar="ADDRESS",
                 help="The workers are on this Ray cluster (HOST:PORT, or auto), one a GPU or machine "
                      "unless --workers says how many; the model lies at the same path everywhere."),
)  # fmt: skip

# Where the verbs that decide by thresholds take them from.
_calibration_option = click.option("--calibration", type=FILE, help="A file of nemo-prune calibrate.")
_thresholds = options(
    click.option("--calibration-prompts", type=FILE, multiple=True, callback=_expanded,
                 help="Ordinary prompts: activation statistics, tau and the gate come from them."),
    click.option("--force", is_flag=True,
                 help="Use the calibration though it was made for another model or setting."),
    click.option("--tau", type=Number(0, 1),
                 help="Which seeds count as memorized, and what a suppressed prompt stays below. "
                      "Default: calibrated, or .428 where published."),
    click.option("--gate", type=Number(0, 1),
                 help="A prompt above it is memorized. Default: calibrated to --fpr, also if only "
                      "--tau is given; .5 where published, at the default --fpr. At least tau."),
    click.option("--fpr", type=Number(0, 1, min_open=True, max_open=True), default=0.01,
                 show_default=True, help="Rate at which ordinary prompts may exceed the gate."),
)  # fmt: skip

threshold_options = option_group("Thresholds", _calibration_option, _thresholds)
several_threshold_options = option_group(
    "Thresholds",
    click.option("--calibration", "calibrations", type=FILE, multiple=True,
                 help="A file of nemo-prune calibrate; for several models one for each, in their "
                      "order, or one that goes with all."),
    _thresholds,
)  # fmt: skip

criterion_option = click.option(
    "--criterion", type=click.Choice(get_args(Criterion)), default="cross-seed",
    show_default=True,
    help="What a pruned noise difference is compared with; same-seed is the paper's.",
)  # fmt: skip

judging_options = option_group("Thresholds", _calibration_option, _thresholds, criterion_option)

search_options = option_group(
    "Search",
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
    click.option("--rounds", type=Whole(0, 10), default=3, show_default=True,
                 help="How often prompts that stay memorized are searched again."),
    click.option("--confirm-trajectories", type=Whole(0, 100_000), default=80, show_default=True,
                 help="How many a prompt is worth that is still drawn; more may spare neurons. 0: no "
                      "end."),
)  # fmt: skip

all_seeds_option = click.option(
    "--all-seeds", is_flag=True,
    help="Take all seeds of every prompt, also of those that are clear after a few.",
)  # fmt: skip


def save_plots(plotted: "Plotted", folder: Path) -> None:
    """Write plots, and say which."""
    from nemo_prune.report.plots import write_plots

    written = write_plots(plotted, folder)
    say(f"wrote {folder}: {', '.join(path.name for path in written)}")


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

    writes = [path for path in more if path is not None] + _given_paths(OUT)
    refuse_inputs(writes, _given_paths(FILE))
    refuse_same(writes)


def _given_paths(kind: click.Path) -> list[Path]:
    """All paths of this kind, FILE or OUT, that the running command was given."""
    context = click.get_current_context()
    paths: list[Path] = []
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if parameter.type is kind and value is not None:
            paths.extend(value if isinstance(value, tuple) else (value,))
    return paths


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
        from nemo_prune.scoring.ordinary import check_apart, check_calibration
        from nemo_prune.scoring.workers import check_workers

        for name in ("tau", "gate"):
            if getattr(self.options, name) == 1 and self.options.criterion != "trajectory":
                say(f"warning: --{name} 1: no score lies above 1, so nothing can be called memorized")
                break
        check_workers(self.options)
        pick_device(self.options.device)
        scored_timestep(self.checkpoint, self.options)
        check_calibration(self.checkpoint, self.options, self.calibration_prompts)
        check_apart(self.prompts.texts, self.calibration_prompts, self.options)


def wanted_sidecars(asked: bool, model: Path, output: Path | None) -> dict[Path, Path]:
    """The sidecars of `model` and their places, if they are asked for; see `find_sidecars`.

    What the running command reads or writes is none, whatever its name.

    Raises OptionError, CheckpointError, click.UsageError.
    """
    from nemo_prune.files.sidecars import find_sidecars

    if not asked:
        return {}
    if output is None:
        raise click.UsageError("--sidecars goes with -o")
    return find_sidecars(model, output, [*_given_paths(FILE), *_given_paths(OUT)])


def say_sidecars(
    asked: bool, model: Path, sidecars: Mapping[Path, Path], output: Path | None = None
) -> None:
    """Say what was copied along, or what stays behind that the output's readers need."""
    from nemo_prune.checkpoint.sidecar import read_sidecar

    if not asked and output is not None and not model.is_dir() and (kept := read_sidecar(model)):
        path, told = kept
        needed = told.prediction_type == "v_prediction" or told.zero_snr
        if needed and not output.with_suffix(".yaml").exists():
            say(
                f"note: {path} stays behind, by which programs know what the model predicts; {output} "
                f"needs it beside it too (--sidecars copies it)"
            )
    for place in sidecars.values():
        say(f"wrote {place}")
    if asked and not sidecars:
        say(f"note: no sidecars lie beside {model}")


def say_folder(checkpoint: "Checkpoint", written: "Written") -> None:
    """Say what of a folder was left out, and what was copied that was to be linked."""
    from nemo_prune.files.trees import shown

    if checkpoint.twins:  # without the option they are refused
        left = ", ".join(shown(checkpoint.place(path)) for path in checkpoint.twins)
        say(f"note: --drop-pickles left out {left}")
    if written.unlinked:
        say(
            f"note: --link: {written.unlinked} files lie on another disk or are of another owner, so "
            f"they are copied"
        )


def counted(prompts: "PromptList") -> str:
    """How many prompts were read, in words."""
    from nemo_prune.files import prompts as lists

    return lists.counted(len(prompts.texts), prompts.merged, prompts.blank)


def given_parameters() -> set[str]:
    """The names of the running command's parameters that are not at their default."""
    context = click.get_current_context()
    default = ParameterSource.DEFAULT
    return {name for name in context.params if context.get_parameter_source(name) is not default}


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
    (inputs,) = read_for_several([checkpoint], [given["calibration"]], given, labels)
    return inputs


def read_for_several(
    checkpoints: Sequence["Checkpoint"], calibrations: Sequence[Path | None], given: Mapping[str, Any],
    labels: bool = False,
) -> list[Inputs]:  # fmt: skip
    """As `read_inputs` for several models; lists are read once, since they may be pipes."""
    from nemo_prune.files.prompts import read_prompts

    asked = [build(Options, given, calibration=calibration) for calibration in calibrations]
    prompts = read_given(given, labels)
    if "layers" in given:
        for checkpoint, one in zip(checkpoints, asked, strict=True):
            checkpoint.select(one.layers)
    lists = given["calibration_prompts"]
    ordinary = read_prompts(lists).texts if lists else None
    return [
        Inputs(checkpoint, prompts, one, ordinary)
        for checkpoint, one in zip(checkpoints, asked, strict=True)
    ]
