"""The verb check."""

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from cloup import option_group

from nemo_prune.cli.failures import Refused, each, failure, going_on, refuse_twice, say
from nemo_prune.cli.options import (
    OUT,
    Inputs,
    Verb,
    all_seeds_option,
    check_files,
    check_junit,
    json_option,
    misnamed,
    model_options,
    models_argument,
    overwrite_option,
    prompts_options,
    quiet_option,
    read_for_several,
    several_threshold_options,
    verb,
    workers_options,
)
from nemo_prune.errors import NemoPruneError, OutputError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element


class _Check(Verb):
    """A command whose errors of usage leave a JUnit file and a step summary, like all other errors."""

    def make_context(self, *given: Any, **more: Any) -> click.Context:
        words = list(more["args"] if "args" in more else given[1])  # click takes what it has parsed
        try:
            return super().make_context(*given, **more)
        except (click.UsageError, NemoPruneError) as error:
            from nemo_prune.report.junit import (
                append_step_summary,
                error_suite,
                is_own,
                no_verdict,
                write_junit,
            )  # fmt: skip

            message = failure(error)
            if step_summary := _step_summary():
                append_step_summary(no_verdict("", message), step_summary)
            if (junit := _junit_of(words)) and not misnamed(junit, "XML"):
                with contextlib.suppress(OutputError):
                    write_junit([error_suite(Path("usage"), message)], junit, is_own(junit))
            raise


def _junit_of(words: Sequence[str]) -> Path | None:
    """The file that `--junit` names on a command line that could not be parsed."""
    for word, following in zip(words, [*words, ""][1:], strict=True):
        if word == "--":
            break
        name, _, value = word.partition("=")
        if name == "--junit" and (value or following):
            return Path(value or following)
    return None


@verb(_Check)
@models_argument
@prompts_options
@option_group(
    "Output",
    click.option("--junit", type=OUT, help="Also write a JUnit file: a test case a prompt."),
    overwrite_option,
    json_option,
    quiet_option,
)
@several_threshold_options
@option_group(
    "Scoring",
    click.option(
        "--confirm",
        type=click.Choice(["none", "trajectory"]),
        default="none",
        show_default=True,
        help="trajectory: also ask whether a caption draws the same picture from every seed.",
    ),
    all_seeds_option,
)
@model_options
@workers_options
def check(
    models: tuple[Path, ...], calibrations: tuple[Path, ...], junit: Path | None, confirm: str,
    all_seeds: bool, show_prompts: bool, overwrite: bool, as_json: bool, quiet: bool, **given: Any,
) -> None:  # fmt: skip
    """Fail if a prompt is memorized: the gate of a release, for CI.

    Exit code 0: no prompt is memorized; 1: at least one is; 2: bad usage or input. A line for each
    memorized prompt; Markdown is appended to the file in GITHUB_STEP_SUMMARY if that is set. Both
    it and --junit also tell an error. --junit replaces what an earlier check wrote there.

    Several models are checked one after the other, all inputs before the first is loaded. One that
    fails stops no other. The exit code is the worst of all.

    A list of more than 16 MiB is scored as it is read; JUnit and --json then name the 1,000 highest
    scores.

    \b
    Examples:
      nemo-prune check clean.safetensors --prompts captions.txt --junit j.xml
      nemo-prune check a.safetensors b.safetensors --prompts captions.txt
    """
    from nemo_prune.checkpoint.open import open_checkpoint
    from nemo_prune.cli.streamed import inputs_beside, lists_of
    from nemo_prune.files.atomic import check_place
    from nemo_prune.files.streams import is_long
    from nemo_prune.report.junit import annotation, finding_line, is_own

    step_summary = _step_summary()
    check_files(step_summary)
    check_junit(junit)
    alone = len(models) == 1
    verdicts = _Verdicts(models, junit, overwrite, step_summary)
    try:
        refuse_twice(models)
        if junit:
            check_place(junit, overwrite or is_own(junit))
        if len(calibrations) not in (0, 1, len(models)):
            raise click.UsageError("--calibration: give one for each model, in their order, or only one")
        of_each = calibrations if len(calibrations) > 1 else (calibrations or (None,)) * len(models)
        checkpoints = each(models, open_checkpoint)
        lists = None
        if is_long(given["prompt_files"]):
            if confirm != "none":
                raise click.UsageError(
                    "--confirm trajectory: takes lists of up to 16 MiB; check a long list by its "
                    "scores, and confirm those that are found"
                )
            inputs_of = [inputs_beside(*one, given) for one in zip(checkpoints, of_each, strict=True)]
            lists = lists_of(given)
        else:
            inputs_of = read_for_several(checkpoints, of_each, given)
        read = dict(zip(models, inputs_of, strict=True))
        each(models, lambda model: read[model].check())
        from nemo_prune.cli.progress import progress
        from nemo_prune.scoring.detection_run import find_memorized, summary
        from nemo_prune.scoring.streaming import screen_lists, streamed_summary

        on_github = os.environ.get("GITHUB_ACTIONS", "").lower() not in ("", "0", "false")
        for model, inputs in read.items():
            texts: Sequence[str] = inputs.prompts.texts
            with going_on(model, alone, verdicts.told), progress(quiet) as bar:
                if lists is None:
                    inputs.note_prompts(bar)
                    found = find_memorized(
                        inputs.checkpoint, inputs.prompts.texts, inputs.options, bar,
                        calibration_prompts=inputs.calibration_prompts, early=not all_seeds,
                        trajectories=confirm == "trajectory",
                    )  # fmt: skip
                    verdicts.told.append(inputs.prompts.locate(summary(found, show_prompts)))
                else:
                    screen = screen_lists(
                        inputs.checkpoint, lists, inputs.options, bar,
                        calibration_prompts=inputs.calibration_prompts, early=not all_seeds,
                        show_prompts=show_prompts, expected=given["expect_prompts"],
                    )  # fmt: skip
                    texts = screen.found.texts
                    verdicts.told.append(streamed_summary(screen))
                verdicts.told[-1]["notes"] = bar.noted
            result = verdicts.tell(inputs, texts)
            for entry in result.get("prompts", ()):
                if entry["memorized"] and not as_json:
                    click.echo(finding_line(entry, result, not alone))
                if entry["memorized"] and on_github:
                    click.echo(annotation(entry, result, not alone), err=True)  # it reads both streams
            if not quiet and "error" not in result:
                _say(inputs, result, confirm, alone)
    except KeyboardInterrupt:
        verdicts.give_up("interrupted before there was a verdict")
        raise
    except Exception as error:
        verdicts.give_up(failure(error), error.lines if isinstance(error, Refused) else {})
        raise
    verdicts.write()
    if as_json:
        told = verdicts.told
        click.echo(json.dumps(told[0] if alone else {"exit_code": verdicts.code, "models": told}))
    click.get_current_context().exit(verdicts.code)


def _say(inputs: Inputs, result: dict[str, Any], confirm: str, alone: bool) -> None:
    """The totals of one model, on standard error."""
    from nemo_prune.checkpoint.provenance import provenance_of

    if confirm == "none" and provenance_of(inputs.checkpoint.metadata):
        click.echo(
            "note: the score is a screen, taken at one early timestep: a pruned model can pass and "
            "still draw the picture (--confirm trajectory asks)",
            err=True,
        )
    of = "" if alone else f"{inputs.checkpoint.path}: "
    say(
        f"{of}{result['memorized']} of {result.get('scored', len(result['prompts']))} prompts are "
        f"memorized: gate "
        f"{result['gate']['value']:.3f} ({result['gate_source']}), tau {result['tau']:.3f} "
        f"({result['tau_source']})"
    )


def _step_summary() -> Path | None:
    """GitHub's file for Markdown, if there is one."""
    named = os.environ.get("GITHUB_STEP_SUMMARY")
    return Path(named) if named else None


class _Verdicts:
    """What came of each model, for JUnit and the step summary, whatever happens.

    Where there is neither, a server takes a job for skipped. `told` holds a result or an error for
    each model that is done with, in their order.
    """

    def __init__(
        self, models: Sequence[Path], junit: Path | None, overwrite: bool, step_summary: Path | None
    ) -> None:
        self.told: list[dict[str, Any]] = []
        self._models, self._junit, self._overwrite = models, junit, overwrite
        self._step_summary = step_summary
        self._suites: list[Element] = []

    @property
    def code(self) -> int:
        """The worst exit code of all models."""
        return max(2 if "error" in one else int(one["memorized"] > 0) for one in self.told)

    def tell(self, inputs: Inputs, texts: Sequence[str]) -> dict[str, Any]:
        """Tell the step summary what came of the last model, and keep it for JUnit; return it."""
        from nemo_prune.report.junit import error_suite, markdown, no_verdict, verdict_suite

        result = self.told[-1]
        if "error" in result:
            self._suites.append(error_suite(inputs.checkpoint.path, result["error"]))
            self._append(no_verdict(str(inputs.checkpoint.path), result["error"]))
        else:
            self._suites.append(verdict_suite(result, texts))
            self._append(markdown(result, len(self._models) > 1))
        return result

    def give_up(self, why: str, of_each: dict[Path, str] | None = None) -> None:
        """Tell that there is no verdict on the models that are left; the error itself is worth more."""
        from nemo_prune.report.junit import error_suite, no_verdict

        for model in self._models[len(self._suites) :]:
            line = (of_each or {}).get(model, why.partition("\n")[0])
            self._suites.append(error_suite(model, line))
            self._append(no_verdict(str(model), line))
        with contextlib.suppress(OutputError):
            self.write()

    def write(self) -> None:
        """Write the JUnit file; it replaces what an earlier check wrote there. Raises OutputError."""
        from nemo_prune.report.junit import is_own, write_junit

        if self._junit:
            write_junit(self._suites, self._junit, self._overwrite or is_own(self._junit))

    def _append(self, text: str) -> None:
        from nemo_prune.report.junit import append_step_summary

        if self._step_summary and (trouble := append_step_summary(text, self._step_summary)):
            say(f"warning: {trouble}")
