"""The verb apply; it never imports torch."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from cloup import option_group

from nemo_prune.cli.failures import (
    each,
    folder_for_several,
    going_on,
    own_name,
    refuse_one_name,
    refuse_twice,
    say,
)
from nemo_prune.cli.options import (
    FILE,
    OUT,
    Whole,
    folder_options,
    json_option,
    models_argument,
    overwrite_option,
    say_folder,
    say_sidecars,
    sidecars_option,
    undo_option,
    verb,
    wanted_sidecars,
)
from nemo_prune.cli.restore import say_undo
from nemo_prune.errors import OutputError

if TYPE_CHECKING:
    from nemo_prune.checkpoint.checkpoint import Checkpoint
    from nemo_prune.checkpoint.lora import LoraNames
    from nemo_prune.checkpoint.selection import Choice


@verb()
@models_argument
@option_group(
    "Neurons",
    click.option("--manifest", type=FILE, help="A manifest of localize or prune."),
    click.option(
        "--neurons",
        "by_hand",
        metavar="LAYER:ROW,...",
        help="Neurons by hand; a layer is a name or a number as inspect lists them.",
    ),
    click.option("--import-csv", type=FILE, help="A result table of the paper's own code."),
    click.option(
        "--top-k",
        type=Whole(min=1),
        help="Only the K neurons that most prompts share; equal ones in the order of the network.",
    ),
    click.option(
        "--top",
        type=Whole(min=1),
        help="Only the N neurons of the manifest that do most for what is memorized (attribution).",
    ),
)
@option_group(
    "Output",
    click.option("-o", "--output", type=OUT, help="The checkpoint to write."),
    click.option(
        "--lora",
        type=OUT,
        help="Write the edit as a LoRA too, or with no -o alone: loaded at weight 1 it zeroes "
        "the same rows. It holds the removed rows, so who has it can undo the edit.",
    ),
    click.option(
        "--lora-names",
        type=click.Choice(["kohya", "diffusers"]),
        default="kohya",
        show_default=True,
        help="Tensor names of the LoRA: kohya's (A1111, Forge, ComfyUI, diffusers) or diffusers' own.",
    ),
    undo_option,
    click.option("--hash", "hashed", is_flag=True, help="Also the output's SHA-256; takes longer."),
    sidecars_option,
    folder_options,
    overwrite_option,
    json_option,
)
def apply(
    models: tuple[Path, ...], manifest: Path | None, by_hand: str | None, import_csv: Path | None,
    top_k: int | None, top: int | None, output: Path | None, lora: Path | None,
    lora_names: "LoraNames", undo: Path | None, hashed: bool, sidecars: bool, overwrite: bool,
    as_json: bool, **how: bool,
) -> None:  # fmt: skip
    """Zero chosen neurons in checkpoints, byte-exact; no torch.

    Several models of one architecture, such as a model in two precisions, go into the folders that
    -o, --undo and --lora then name, under their own names. All are looked at before the first is
    written; one that fails stops no other, and the exit code is 2.

    \b
    Examples:
      nemo-prune apply model.safetensors --manifest neurons.json \\
        -o clean.safetensors
      nemo-prune apply model.safetensors --neurons 0:25,3:7 \\
        -o clean.safetensors --undo rows.safetensors
      nemo-prune apply model.safetensors --manifest neurons.json \\
        --lora patch.safetensors
      nemo-prune apply fp16.safetensors fp32.safetensors \\
        --manifest neurons.json -o clean

    --import-csv takes the table that the paper's code writes, separated by semicolons. Of its
    columns one is read: the rows of each value layer of the down and mid blocks, in their order.

    \b
      Caption;URL;Refined Neurons
      a caption;http://x/1.jpg;[[25, 262], [], [98], [105], [364], [], []]
    """
    from nemo_prune.checkpoint.apply import check_model_output
    from nemo_prune.checkpoint.lora import check_lora
    from nemo_prune.checkpoint.manifest import prompts_by_neuron, read_manifest
    from nemo_prune.checkpoint.open import open_checkpoint
    from nemo_prune.checkpoint.provenance import original_sha256
    from nemo_prune.checkpoint.selection import (
        Choice,
        check_alike,
        check_fits,
        from_manifest,
        from_results,
        odd_manifest,
        parse_neurons,
    )
    from nemo_prune.cli.console import flags
    from nemo_prune.files.atomic import refuse_inputs, refuse_same

    refuse_inputs([path for path in (output, undo, lora) if path], [manifest, import_csv])
    refuse_same([output, undo, lora])
    if output is None and lora is None:
        raise click.UsageError("give -o OUT, the checkpoint to write, or --lora OUT")
    if output is None and (undo or hashed or how["link"] or how["drop_pickles"]):
        raise click.UsageError("--undo, --hash, --link and --drop-pickles go with -o")
    if sum(given is not None for given in (manifest, by_hand, import_csv)) != 1:
        raise click.UsageError("give the neurons as one of --manifest, --neurons and --import-csv")
    if top is not None and (manifest is None or top_k is not None):
        raise click.UsageError("--top takes a manifest, and goes without --top-k")
    if top_k is not None and by_hand is not None:
        raise click.UsageError("--top-k needs prompts, which --neurons does not name")
    refuse_twice(models)
    alone = len(models) == 1
    if not alone:
        refuse_one_name(models)
    wanted = read_manifest(manifest) if manifest is not None else None

    def choose(checkpoint: "Checkpoint") -> "Choice":
        if wanted is not None and manifest is not None:
            check_fits(wanted, manifest, checkpoint)
            return from_manifest(wanted, top_k, top, manifest)
        if import_csv is not None:
            return from_results(import_csv, checkpoint, top_k)
        return Choice(parse_neurons(by_hand or "", checkpoint), {})

    def place(out: Path | None, name: str) -> Path | None:
        return out if alone or out is None else out / name

    def prepare(model: Path) -> _Job:
        checkpoint = open_checkpoint(model)
        choice = choose(checkpoint)
        name = own_name(model)
        job = _Job(
            checkpoint,
            choice,
            place(output, name),
            place(undo, name),
            place(lora, name.removesuffix(".safetensors") + ".safetensors"),
            wanted_sidecars(sidecars, model, place(output, name)),
        )
        if job.lora is not None:
            check_lora(checkpoint, choice.neurons, job.lora, overwrite=overwrite)
        if job.output is not None:
            check_model_output(
                checkpoint, job.output, choice.neurons, overwrite=overwrite, undo=job.undo,
                sidecars=job.sidecars, **how,
            )  # fmt: skip
        return job

    told: list[dict[str, Any]] = []
    with ExitStack() as stack:
        for folder in (output, undo, lora):
            stack.enter_context(folder_for_several(None if alone else folder))
        jobs = each(models, prepare)
        if wanted is not None and manifest is not None:
            for line in odd_manifest(wanted, manifest):
                say(f"warning: {flags(line)}")
            own = prompts_by_neuron(wanted)
            if wanted.prompts and (strays := sum(one not in own for one in wanted.neurons)):
                say(f"note: {strays} of the manifest's {len(wanted.neurons)} neurons are no prompt's")
            if (left := len(wanted.neurons) - len(jobs[0].choice.neurons)) > 0:
                say(
                    f"note: {left} of the manifest's {len(wanted.neurons)} neurons are left in; what it "
                    f"says of prompts holds for all together, so judge the file (nemo-prune verify)"
                )
        if import_csv is not None:
            say(f"note: {import_csv} does not say for which model it was made")
        if wanted is None:
            check_alike([job.checkpoint for job in jobs])
        _check_together(jobs, [manifest, import_csv], how["link"])
        for model, job in zip(models, jobs, strict=True):
            with going_on(model, alone, told):
                result = _write(job, lora_names, overwrite, hashed, how)
                if wanted is not None and job.choice.source_sha256 != result["source"]["sha256"]:
                    came = original_sha256(job.checkpoint.parts[0].header) == job.choice.source_sha256
                    but = "; the neurons may mean something else in it"
                    say(
                        f"warning: {model} is not the file that {manifest} was made for "
                        f"({wanted.source['path']})"
                        f"{', but by its metadata a pruned copy of it' if came else but}"
                    )
                told.append(result)
                _say(job, result, hashed, sidecars, how["drop_pickles"])
    code = 2 if any("error" in one for one in told) else 0
    if as_json:
        click.echo(json.dumps(told[0] if alone else {"exit_code": code, "models": told}))
    click.get_current_context().exit(code)


@dataclass(frozen=True)
class _Job:
    """What is to be written of one model, and where."""

    checkpoint: "Checkpoint"
    choice: "Choice"
    output: Path | None
    undo: Path | None
    lora: Path | None
    sidecars: Mapping[Path, Path]


def _check_together(jobs: Sequence[_Job], reads: Sequence[Path | None], link: bool) -> None:
    """Refuse outputs that are in each other's or a model's way, or too much for the disk.

    Raises OutputError.
    """
    from nemo_prune.checkpoint.apply import needed_room
    from nemo_prune.files.atomic import check_room, lies_in, refuse_inputs, refuse_same

    given = [(job.output, job.undo, job.lora, *job.sidecars.values()) for job in jobs]
    outs = [path for paths in given for path in paths if path is not None]
    models = [job.checkpoint.path for job in jobs]
    refuse_inputs(outs, [*reads, *models])
    for out, model in product(outs, models):
        if lies_in(out, model):
            raise OutputError(f"{out}: lies in the model {model}; choose another place")
    refuse_same(outs)
    room = [
        one
        for job in jobs
        if job.output is not None
        for one in needed_room(job.checkpoint, job.output, job.choice.neurons, undo=job.undo, link=link)
    ]
    if room:
        check_room(room[0][0], (), room)


def _write(
    job: _Job, names: "LoraNames", overwrite: bool, hashed: bool, how: Mapping[str, bool]
) -> dict[str, Any]:
    """Write what a job asks for; what was done as plain JSON."""
    from nemo_prune.checkpoint.apply import write_model
    from nemo_prune.checkpoint.lora import new_lora
    from nemo_prune.checkpoint.zeros import already_zero

    checkpoint, choice = job.checkpoint, job.choice
    zero = already_zero(checkpoint, choice.neurons)
    written, source_sha256 = None, ""
    with ExitStack() as stack:
        # First, so that a disk that is full for it leaves no model behind.
        if job.lora is not None:
            lora = new_lora(checkpoint, choice.neurons, job.lora, names, overwrite=overwrite)
            source_sha256 = stack.enter_context(lora)
        if job.output is not None:
            written = write_model(
                checkpoint, choice.neurons, job.output, choice.provenance, overwrite=overwrite,
                undo=job.undo, hashed=hashed, sidecars=job.sidecars, link=how["link"],
                drop_pickles=how["drop_pickles"],
            )  # fmt: skip
            source_sha256 = written.source_sha256
    if written is not None:
        say_folder(checkpoint, written)
    result = {
        "source": {"path": str(checkpoint.path), "sha256": source_sha256},
        "output": written and {"path": str(job.output), "sha256": written.sha256},
        "lora": job.lora and str(job.lora),
        "undo": job.undo and str(job.undo),
        "neurons": len(choice.neurons),
        "already_zero": zero,
        "rows_zeroed": written.rows_zeroed if written else 0,
        "bytes_changed": written.bytes_changed if written else 0,
    }
    return result | ({"sidecars": [*map(str, job.sidecars.values())]} if job.sidecars else {})


def _say(job: _Job, result: Mapping[str, Any], hashed: bool, sidecars: bool, dropped: bool) -> None:
    """Say what was written, on standard error."""
    if zero := result["already_zero"]:
        say(f"note: {zero} of {result['neurons']} neurons were zero in {job.checkpoint.path} already")
    for path in (job.lora, None if job.checkpoint.is_folder else job.output):
        if path is not None and path.suffix.lower() != ".safetensors":
            who = "A1111 and Forge" if path.suffix == ".sft" else "A1111, Forge and ComfyUI"
            say(f"note: {path}: {who} list only what ends in .safetensors; rename it to use it there")
    if job.output is not None:
        say(f"wrote {job.output}: {result['neurons']} neurons, {result['rows_zeroed']} rows zeroed")
        if hashed:
            of = ", of what sha256sum prints of its weights" if job.checkpoint.is_folder else ""
            click.echo(f"sha256 {result['output']['sha256']}{of}", err=True)
        say_sidecars(sidecars, job.checkpoint.path, job.sidecars, job.output)
    if job.lora is not None:
        say(
            f"wrote {job.lora}: a LoRA that zeroes {result['neurons']} neurons at weight 1; it holds "
            f"the removed rows, so who has it can undo the edit"
        )
    if job.undo is not None:
        say_undo(job.undo, dropped)
