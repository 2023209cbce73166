"""The verb demo."""

import json
from pathlib import Path

import click

from nemo_prune.cli.localize import exit_code
from nemo_prune.cli.options import OUT, json_option, quiet_option, verb


@verb()
@click.option(
    "--folder",
    type=OUT,
    default=Path("nemo-prune-demo"),
    show_default=True,
    help="Where everything goes; must not exist.",
)
@json_option
@quiet_option
def demo(folder: Path, as_json: bool, quiet: bool) -> None:
    """Prune the small Stable Diffusion that comes with the package.

    Its folder gets the pruned model, the manifest, and a report with pictures before and after.

    \b
    Example:
      nemo-prune demo
    """
    from nemo_prune.cli.console import print_prompts
    from nemo_prune.cli.progress import progress
    from nemo_prune.report.demo import demo_lines, run_demo

    with progress(quiet) as bar:
        result = run_demo(folder, bar)
    if not quiet:
        print_prompts(result)
        for line in demo_lines(folder, result["demo"]):
            click.echo(line, err=True)
    if as_json:
        click.echo(json.dumps(result))
    click.get_current_context().exit(exit_code(entry["status"] for entry in result["prompts"]))
