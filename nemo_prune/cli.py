"""The command line: parse, call the library, print. Nothing here knows how anything is done.

Exit codes: 0 all suppressed or not memorized; 1 something is still memorized (check: is memorized,
diff: the files differ); 2 bad usage or input; 130 interrupted.
"""

from typing import Any

import click
from click_default_group import DefaultGroup

from nemo_prune import __version__, cli_detect, cli_files, cli_report, cli_search
from nemo_prune.errors import Interrupted, NemoPruneError

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Group(DefaultGroup):  # type: ignore[misc]
    """Where every error of the library becomes one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except NemoPruneError as error:
            click.echo(f"nemo-prune: {error}", err=True)
            ctx.exit(130 if isinstance(error, Interrupted) else 2)
        except KeyboardInterrupt:
            click.echo("nemo-prune: interrupted, nothing was written", err=True)
            ctx.exit(130)


@click.group(cls=Group, default="prune", default_if_no_args=False, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="nemo-prune")
def main() -> None:
    """Find the value neurons that make a Stable Diffusion checkpoint replicate training pictures,
    and zero them in the safetensors file.

    \b
    nemo-prune model.safetensors --prompts mem.txt -o clean.safetensors
    nemo-prune demo
    """


for command in (
    cli_search.prune,
    cli_search.localize,
    cli_detect.detect,
    cli_detect.check,
    cli_detect.calibrate,
    cli_files.apply,
    cli_files.diff,
    cli_files.restore,
    cli_files.inspect,
    cli_report.verify,
    cli_search.demo,
):
    main.add_command(command)
