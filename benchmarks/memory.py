"""Peak memory of `prune` on a full-size random Stable Diffusion 1: `python -m benchmarks.memory`.

Needs about 5 GB of disk and 6 GB of memory in fp32. Weights are random, so nothing is memorized:
tau 0 makes the search go all the way for its one prompt. Prints the size of the weights in the
precision chosen, the peak of the process's own memory, looked at every twentieth of a second, and
their ratio; the aim is 1.3 plus activations. With the pages of the mapped file, which the kernel
takes back when it needs them, the peak is higher.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import click

PROGRAM = """
import re, sys, threading
from pathlib import Path
from nemo_prune.cli.main import main
status, ended, own = Path("/proc/self/status"), threading.Event(), [0]
def watch():
    while not ended.wait(0.05):
        own.append(int(re.search(r"RssAnon:\\s+(\\d+)", status.read_text())[1]))
watching = threading.Thread(target=watch)
watching.start()
try:
    main(sys.argv[2:])
finally:
    ended.set()
    watching.join()
    Path(sys.argv[1]).write_text(f"{status.read_text()}Own: {max(own)} kB\\n")
"""
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


def random_checkpoint(path: Path) -> int:
    """Write a full-size fp16 checkpoint of random weights; returns the weights' number."""
    sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "tools")]
    import ldm
    import torch

    from nemo_prune.model.configs import data_folder, read_config
    from nemo_prune.model.hub import AutoencoderKL, CLIPTextConfig, CLIPTextModel, UNet2DConditionModel

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    bundled = data_folder("configs", "sd1")
    tensors = ldm.unet_to_ldm(
        UNet2DConditionModel.from_config(read_config(bundled, "unet")).state_dict()
    )
    tensors |= ldm.vae_to_ldm(AutoencoderKL.from_config(read_config(bundled, "vae")).state_dict())
    text = CLIPTextModel(CLIPTextConfig.from_dict(read_config(bundled, "text_encoder")))
    tensors |= ldm.text_encoder_to_ldm(text.state_dict())
    ldm.save_tensors(path, tensors, {})
    return sum(tensor.numel() for tensor in tensors.values())


@click.command()
@click.option("--precision", type=click.Choice(list(BYTES)), default="fp32", show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Where 5 GB fit; default: temporary.")
def main(precision: str, folder: Path | None) -> None:
    """Make the checkpoint, prune it in a process of its own, tell its peak."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        model, prompts, told = (Path(name) / part for part in ("m.safetensors", "p.txt", "status"))
        # In a process of its own too, so that the kernel has its pages back.
        code = (
            "import sys; from pathlib import Path; from benchmarks.memory import random_checkpoint; "
            "print(random_checkpoint(Path(sys.argv[1])))"
        )
        made = subprocess.run(
            [sys.executable, "-c", code, str(model)], check=True, capture_output=True, text=True
        )
        weights = int(made.stdout) * BYTES[precision]
        prompts.write_text("a red fox\n")
        command = [sys.executable, "-c", PROGRAM, str(told), "prune", str(model), "--prompts",
                   str(prompts), "-o", f"{name}/out.safetensors", "--seeds", "2",
                   "--tau", "0", "--gate", "0", "--layers", "mid", "--batch-size", "1",
                   "--device", "cpu", "--precision", precision, "-q"]  # fmt: skip
        done = subprocess.run(command)
        if done.returncode not in (0, 1):
            sys.exit(done.returncode)
        found = dict(re.findall(r"(VmHWM|Own):\s+(\d+) kB", told.read_text()))
        if len(found) < 2:
            raise click.ClickException("this system does not tell a process's peak memory")
    peak, own = (int(found[name]) * 1024 for name in ("VmHWM", "Own"))
    result = {"precision": precision, "weights": weights, "own": own, "ratio": round(own / weights, 3)}
    click.echo(json.dumps(result | {"with_mapped_file": peak}))


if __name__ == "__main__":
    main()
