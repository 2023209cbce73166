"""How fast a checkpoint is rewritten, against what the system's own tools take for it.

    python -m benchmarks.rewrite [--size GB]... [--repeats N] [--folder DIR] [--json]

For each size (2 and 7 GB unless told otherwise) a checkpoint with Stable Diffusion 1's value layers
is written, of real blocks with random bytes, and removed at the end. It is read once, so that all
start with it in memory if it fits. Then, in turn, in one process, each from a flushed disk:

    copy    the step that copies and zeroes                           against  cp
    whole   all of it: copied, on the disk, compared, source hashed   against  cp && sync FILE && cmp
    library the whole again                                           against  load_file + save_file

The best of each are compared, since what else the machine does only ever adds; processor time is
shown beside, as waiting does not count there. The peak memory is that of a process that does nothing
but `apply`.
Needs twice the size in free space, and for the library about the size in free memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from nemo_prune.checkpoint.apply import write_model
from nemo_prune.checkpoint.checkpoint import Checkpoint
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.files.rewrite import Ranges, Source, copy

COLUMNS = 768
WIDTHS = {1: 320, 2: 320, 4: 640, 5: 640, 7: 1280, 8: 1280}  # input blocks of SD1 with attention
FILLER = 2**26  # elements of the tensors that fill the file
BLOCK = 2**22  # bytes at random, written again and again
ROWS = 40  # how many neurons are zeroed in all, six of them in each of the first layers
BOUNDS = {"copy": 1.2, "whole": 1.2, "library": 1.0, "memory": 150e6}


def make_checkpoint(path: Path, size: int) -> Checkpoint:
    """Write an F16 checkpoint of about `size` bytes, without holes, to `path`."""
    prefix, end = "model.diffusion_model.", "1.transformer_blocks.0.attn2.to_v.weight"
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}input_blocks.0.0.weight": (320, 4, 3, 3)}
    shapes |= {f"{prefix}input_blocks.{n}.{end}": (w, COLUMNS) for n, w in WIDTHS.items()}
    for number in (3, 6, 9):
        shapes[f"{prefix}input_blocks.{number}.0.op.weight"] = (320, 320, 3, 3)
    shapes[f"{prefix}middle_block.{end}"] = (1280, COLUMNS)
    shapes["cond_stage_model.transformer.text_model.final_layer_norm.weight"] = (COLUMNS,)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = number = 0
    while position < size:
        if shapes:
            name = next(iter(shapes))
            shape = shapes.pop(name)
        else:
            name, shape = (
                f"first_stage_model.filler.{number}",
                (min(FILLER, (size - position + 1) // 2),),
            )
            number += 1
        bytes_here = 2
        for length in shape:
            bytes_here *= length
        offsets = [position, position + bytes_here]
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": offsets}
        position += bytes_here
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    block = os.urandom(BLOCK)
    with path.open("xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        while position > 0:
            position -= file.write(block[: min(position, BLOCK)])
    return recognize(path)


def seconds(action: Callable[[], object], out: Path) -> tuple[float, float]:
    """Time and processor time of `action`, which writes `out`; that is removed, the disk idle first."""
    os.sync()
    started, spent = time.perf_counter(), sum(os.times()[:4])
    action()
    taken = time.perf_counter() - started, sum(os.times()[:4]) - spent
    out.unlink()
    return taken


def contestants(
    checkpoint: Checkpoint, neurons: list[Neuron], out: Path
) -> dict[str, Callable[[], object]]:
    """By name, what writes `out` from the checkpoint."""
    source_path, header = checkpoint.path, checkpoint.parts[0].header
    layers = {layer.name: layer for layer in checkpoint.value_layers}
    ranges = Ranges([header.tensors[layers[n.layer].tensors[0]].row(n.row) for n in neurons])

    def copied() -> None:
        with Source(header) as source, out.open("x+b", buffering=0) as target:
            copy(source, target, header.data_start + 4096, ranges)

    def shell(line: str) -> Callable[[], object]:
        return lambda: subprocess.run(["sh", "-c", line, "sh", source_path, out], check=True)

    def by_library() -> None:
        from safetensors.numpy import load_file, save_file

        tensors = load_file(source_path)
        for neuron in neurons:
            tensors[layers[neuron.layer].tensors[0]][neuron.row] = 0
        save_file(tensors, out, metadata=dict(header.metadata))

    return {
        "copy": copied,
        "cp": shell('cp "$1" "$2"'),
        "whole": lambda: write_model(checkpoint, neurons, out, {}),
        "cp, sync, cmp": shell('cp "$1" "$2" && sync "$2" && cmp "$1" "$2"'),
        "load_file, save_file": by_library,
    }


def peak_memory(path: Path, neurons: list[Neuron], out: Path) -> int:
    """Bytes that a process needs at most for `apply`, the interpreter included.

    Asked for before this process grows, since on Linux a child's peak is at least its parent's.
    """
    import resource

    code = (
        "import resource, sys\nfrom nemo_prune.cli.main import main\n"
        "main(sys.argv[1:], standalone_mode=False)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    chosen = ",".join(f"{neuron.layer}:{neuron.row}" for neuron in neurons)
    command = [sys.executable, "-c", code, "apply", str(path), "--neurons", chosen, "-o", str(out)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    out.unlink()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss <= int(done.stdout)
    return int(done.stdout) * (1 if sys.platform == "darwin" else 1024)


def measure(size: int, folder: Path, repeats: int) -> dict[str, Any]:
    """The best times in seconds, their ratios, and the peak memory in bytes, for one size."""
    path, out = folder / "source.safetensors", folder / "out.safetensors"
    checkpoint = make_checkpoint(path, size)
    layers = checkpoint.value_layers
    neurons = [Neuron(layers[i % len(layers)].name, i) for i in range(ROWS)]
    memory = peak_memory(path, neurons, out)
    taken: dict[str, list[tuple[float, float]]] = {}
    for _ in range(repeats):
        for name, action in contestants(checkpoint, neurons, out).items():
            taken.setdefault(name, []).append(seconds(action, out))
    path.unlink()
    best = {name: min(wall for wall, _ in times) for name, times in taken.items()}
    processor = {name: min(cpu for _, cpu in times) for name, times in taken.items()}
    return {
        "bytes": checkpoint.parts[0].header.size,
        "seconds": {name: [round(wall, 2) for wall, _ in times] for name, times in taken.items()},
        "best": {name: round(t, 2) for name, t in best.items()},
        "processor": {name: round(t, 2) for name, t in processor.items()},
        "ratios": {
            "copy": round(best["copy"] / best["cp"], 2),
            "whole": round(best["whole"] / best["cp, sync, cmp"], 2),
            "library": round(best["whole"] / best["load_file, save_file"], 2),
        },
        "memory": memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast a checkpoint is rewritten.")
    parser.add_argument("--size", type=float, action="append", help="in GB; may be repeated")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the temporary one")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for gigabytes in options.size or (2, 7):
            size = int(gigabytes * 1e9)
            if shutil.disk_usage(folder).free < 2 * size + 2**30:
                sys.exit(f"{folder}: has no room for twice {gigabytes:g} GB; choose another --folder")
            # In a new process: the peak of the next size must not be that of this one's library.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                result = pool.submit(measure, size, Path(folder), options.repeats).result()
            results.append(result)
            if options.json:
                continue
            print(f"{result['bytes'] / 1e9:.2f} GB")
            for name, times in result["seconds"].items():
                print(
                    f"  {name:22} {result['best'][name]:7.2f} s of {times}, "
                    f"{result['processor'][name]:.2f} s of processor"
                )
            for name, ratio in result["ratios"].items():
                print(f"  {name:22} {ratio:7.2f}     bound {BOUNDS[name]:g}")
            bound = BOUNDS["memory"] / 1e6
            print(f"  {'peak memory':22} {result['memory'] / 1e6:7.0f} MB  bound {bound:g}")
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
