"""Hostile and broken inputs, each made anew by a function: nothing is stored, nothing is large.

`MODELS`, `MANIFESTS` and `PROMPTS` map a name to a `Fault`: how to make the input in an
empty folder, and what the one line about it must say. Imports no torch.
"""

import json
import os
import pickle
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rawfiles
from rawfiles import assemble, sd1, unet, write
from test_header import FAULTS as HEADERS

VALUE = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_v"
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"


@dataclass(frozen=True)
class Fault:
    """`make` writes the input into a folder and returns its path; `words` are in the message."""

    make: Callable[[Path], Path]
    words: str


class Boom:
    """Unpickling one leaves a file behind, which proves that somebody did."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


# ---------------------------------------------------------------------------------------- models


def _bytes(content: bytes, name: str = "model.safetensors") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content)
        return path

    return make


def _entries(change: Callable[[list[rawfiles.Entry]], list[rawfiles.Entry]]) -> Callable[[Path], Path]:
    """A whole toy checkpoint of Stable Diffusion 1, its entries changed."""
    whole = [rawfiles.VAE, *unet(rawfiles.SD1), rawfiles.CLIP]
    return lambda folder: write(folder / "model.safetensors", change(whole))


def _value(dtype: str, shape: tuple[int, ...]) -> Callable[[Path], Path]:
    """One value layer stored otherwise."""
    return _entries(
        lambda whole: [(n, dtype, shape) if n == f"{VALUE}.weight" else (n, d, s) for n, d, s in whole]
    )


def _plus(name: str, *shape: int) -> Callable[[Path], Path]:
    return _entries(lambda whole: [*whole, (name, "F32", shape)])


def _only(*names: str) -> Callable[[Path], Path]:
    return lambda folder: write(folder / "model.safetensors", [(n, "F32", (2, 2)) for n in names])


def _pickled(folder: Path) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(pickle.dumps(Boom(folder / "code-was-run"), protocol=2))
    return path


def _torch_zip(folder: Path) -> Path:
    path = folder / "model.safetensors"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Boom(folder / "code-was-run")))
    return path


def _zip_bomb(folder: Path) -> Path:
    """A gigabyte of zeros in a megabyte."""
    path = folder / "model.safetensors"
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    million = packer.compress(bytes(10**6)) + packer.flush(zlib.Z_FULL_FLUSH)
    body = million * 1000 + packer.flush()
    head = struct.pack("<4sHHHHHIIIHH", b"PK\x03\x04", 20, 0, 8, 0, 0, 0, len(body), 10**9, 4, 0)
    path.write_bytes(head + b"bomb" + body)
    return path


def _sparse(folder: Path) -> Path:
    """A value layer of 13 GB that takes no room on the disk."""
    path, wide = folder / "model.safetensors", 10**7
    entries = [("input_blocks.0.0.weight", (4, 4, 3, 3)), (f"{VALUE}.weight", (320, wide))]
    header, position = {}, 0
    for name, shape in entries:
        size = rawfiles.nbytes("F32", shape)
        span = [position, position + size]
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": span}
        position += size
    start = assemble(json.dumps(header))
    with path.open("wb") as file:
        file.write(start)
        file.truncate(len(start) + position)
    return path


def _large_header(filling: bytes, size: int) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path, opening = folder / "model.safetensors", b'{"t":['
        with path.open("wb") as file:
            file.write(struct.pack("<Q", size) + opening)
            file.write(filling * ((size - len(opening) - 4) // len(filling)))
            file.write(b"0]}".ljust(size + 8 - file.tell()))
        return path

    return make


def _announced(folder: Path) -> Path:
    """Announces a header of the size that the library allows, in a file that has the room."""
    path = folder / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_000) + b'{"')
        file.truncate(100_000_008)
    return path


def _fifo(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        os.mkfifo(folder / name)
        return folder / name

    return make


def _socket(folder: Path) -> Path:
    here = Path.cwd()
    with socket.socket(socket.AF_UNIX) as one:
        os.chdir(folder)  # the address of a socket may have about a hundred bytes
        try:
            one.bind("model.safetensors")
        finally:
            os.chdir(here)
    return folder / "model.safetensors"


def _loop(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).symlink_to(folder / f"other-{name}")
        (folder / f"other-{name}").symlink_to(folder / name)
        return folder / name

    return make


def _dangling(folder: Path) -> Path:
    (folder / "model.safetensors").symlink_to(folder / "gone")
    return folder / "model.safetensors"


def _linked(target: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "model.safetensors").symlink_to(target)
        return folder / "model.safetensors"

    return make


def _subfolder(folder: Path) -> Path:
    (folder / "model.safetensors").mkdir()
    return folder / "model.safetensors"


MODELS: dict[str, Fault] = {
    **{f"header: {name}": Fault(_bytes(content), words) for name, (content, words) in HEADERS.items()},
    "large header, full of numbers": Fault(_large_header(b"1,", 16_000_000), "entries"),
    "large header, full of lists": Fault(_large_header(b"[],", 16_000_000), "entries"),
    "large header, full of objects": Fault(_large_header(b"{},", 16_000_000), "entries"),
    "large header of one string": Fault(_large_header(b'"', 16_000_000), "not JSON"),
    "large header of emoji": Fault(
        _large_header(b'"' + "\N{ZIPPER-MOUTH FACE}".encode() * 3 * 10**6 + b'",', 16_000_000),
        "without exactly",
    ),
    "announces 100 MB": Fault(_announced, "at most"),
    "value layer of 13 GB": Fault(_sparse, "320, 10000000"),
    "pickle renamed": Fault(_pickled, "pickle"),
    "torch zip renamed": Fault(_torch_zip, "pickle"),
    "zip bomb renamed": Fault(_zip_bomb, "pickle"),
    "zip bomb as .ckpt": Fault(
        lambda folder: _zip_bomb(folder).rename(folder / "model.ckpt"), "pickle"
    ),
    "fifo": Fault(_fifo("model.safetensors"), "not a regular file"),
    "socket": Fault(_socket, "not a regular file"),
    "link to /dev/zero": Fault(_linked("/dev/zero"), "not a regular file"),
    "link to /dev/full": Fault(_linked("/dev/full"), "not a regular file"),
    "/dev/zero": Fault(lambda _: Path("/dev/zero"), "not a regular file"),
    "links in a loop": Fault(_loop("model.safetensors"), "cannot be read"),
    "link to nothing": Fault(_dangling, "no such file"),
    "folder": Fault(_subfolder, "folder"),
    "nothing there": Fault(lambda folder: folder / "model.safetensors", "no such file"),
    "below a file": Fault(lambda folder: _bytes(b"x")(folder) / "model.safetensors", "no such file"),
    "name too long": Fault(lambda folder: folder / ("x" * 300), "cannot be read"),
    "value layer of one dimension": Fault(_value("F32", (20,)), "shape [20]"),
    "value layer of no dimension": Fault(_value("F32", ()), "shape []"),
    "value layer of three dimensions": Fault(_value("F32", (4, 5, 1)), "shape [4, 5, 1]"),
    "value layer as a convolution": Fault(_value("F16", (4, 5, 1, 1)), "shape [4, 5, 1, 1]"),
    "value layer without rows": Fault(_value("F32", (0, 5)), "shape [0, 5]"),
    "value layer without columns": Fault(_value("F32", (4, 0)), "shape [4, 0]"),
    "value layer of another width": Fault(_value("F32", (4, 7)), "widths [5, 7]"),
    "value layer that is lost": Fault(
        _entries(lambda whole: [entry for entry in whole if entry[0] != f"{VALUE}.weight"]),
        "lacks the value tensor",
    ),
    "value layer in integers": Fault(_value("I8", (4, 5)), "in I8"),
    "value layer in exponents": Fault(_value("F8_E8M0", (4, 5)), "in F8_E8M0"),
    "moving average of another shape": Fault(
        _plus("model_ema." + VALUE.removeprefix("model.").replace(".", "") + "weight", 3, 5),
        "two shapes",
    ),
    "bias of another shape": Fault(_plus(f"{VALUE}.bias", 9), "shape [9]"),
    "value layer in a place of its own": Fault(_plus("extra.attn2.to_v.weight", 4, 5), "unknown"),
    "line break in a name": Fault(_plus("a\nattn2.to_v\x1b[31m", 4, 5), "unknown"),
    "block number too large": Fault(
        _plus(VALUE.replace("input_blocks.1.", "input_blocks.99999.") + ".weight", 4, 5), "unknown"
    ),
    "no first convolution": Fault(
        _entries(lambda whole: [e for e in whole if "input_blocks.0.0" not in e[0]]),
        "first convolution",
    ),
    "first convolution without dimensions": Fault(
        _entries(lambda whole: [(n, d, (2,) if "blocks.0.0" in n else s) for n, d, s in whole]),
        "first convolution",
    ),
    "no value layer at all": Fault(
        _entries(lambda whole: [e for e in whole if "to_v" not in e[0]]), "unknown family"
    ),
    "LoRA": Fault(_only("lora_unet_down_blocks_0.lora_up.weight"), "LoRA"),
    "ControlNet": Fault(_plus("control_model.zero_convs.0.0.weight", 4, 4), "ControlNet"),
    "Flux": Fault(_only("double_blocks.0.img_attn.qkv.weight"), "Flux"),
    "Stable Diffusion 3": Fault(_only("joint_blocks.0.x_block.attn.qkv.weight"), "Diffusion 3"),
    "VAE alone": Fault(_only("first_stage_model.decoder.conv_in.weight"), "VAE alone"),
    "text encoder alone": Fault(_only("text_model.final_layer_norm.weight"), "text encoder alone"),
    "shard": Fault(
        lambda folder: sd1(folder / "model-00001-of-00002.safetensors"), "one shard of a model"
    ),
}  # fmt: skip

# ------------------------------------------------------------------------------------- manifests


def manifest(**changes: object) -> dict[str, object]:
    """A sound manifest for `rawfiles.sd1`, but for the changes."""
    sound: dict[str, object] = {
        "format": "nemo-prune-manifest/1",
        "version": "0",
        "source": {"path": "m", "sha256": "0" * 64},
        "options": {},
        "prompts": [],
        "neurons": [{"layer": LAYER, "row": 0}],
    }
    return sound | changes


def _manifest(**changes: object) -> Callable[[Path], Path]:
    return _bytes(json.dumps(manifest(**changes)).encode(), "manifest.json")


def _record(**changes: object) -> Callable[[Path], Path]:
    record = {"index": 0, "status": "s", "score_before": 0.5, "score_after": None, "neurons": [],
              "samples": 1, "truncated": False}  # fmt: skip
    return _manifest(prompts=[record | changes])


def _neuron(layer: object = LAYER, row: object = 0) -> Callable[[Path], Path]:
    return _manifest(neurons=[{"layer": layer, "row": row}])


def _m(content: str | bytes) -> Callable[[Path], Path]:
    return _bytes(content.encode() if isinstance(content, str) else content, "manifest.json")


MANIFESTS: dict[str, Fault] = {
    "nothing there": Fault(lambda folder: folder / "manifest.json", "no such file"),
    "folder": Fault(lambda folder: folder, "folder"),
    "fifo": Fault(_fifo("manifest.json"), "not a regular file"),
    "/dev/zero": Fault(lambda _: Path("/dev/zero"), "not a regular file"),
    "links in a loop": Fault(_loop("manifest.json"), "cannot be read"),
    "empty": Fault(_m(""), "not JSON"),
    "half": Fault(_m(json.dumps(manifest())[:-9]), "not JSON"),
    "deep": Fault(_m("[" * 100_000), "not JSON"),
    "not utf-8": Fault(_m(b"\xff\xfe{}"), "not UTF-8"),
    "a model": Fault(lambda folder: sd1(folder / "manifest.json"), "manifest.json: "),
    "a list": Fault(_m("[]"), "not a manifest"),
    "another format": Fault(_manifest(format="nemo-prune-manifest/99"), "nemo-prune-manifest/99"),
    "format with a line break": Fault(_manifest(format="a\nb"), "of the format"),
    "unknown key": Fault(_manifest(**{"x\ny": 1}), "unknown key"),
    "key twice": Fault(_m('{"format": 1, "format": 2}'), "twice"),
    "NaN": Fault(_m('{"format": NaN}'), "NaN"),
    "no source": Fault(_manifest(source={}), "lacks"),
    "hash too short": Fault(_manifest(source={"path": "m", "sha256": "0"}), "sha256"),
    "row below zero": Fault(_neuron(row=-1), "negative row"),
    "row beyond the layer": Fault(_neuron(row=4), "rows 0 to 3"),
    "row of 400 digits": Fault(_neuron(row=10**400), "manifest"),
    "row of 5000 digits": Fault(
        _m(json.dumps(manifest()).replace('"row": 0', '"row": ' + "9" * 5000)), "not JSON"
    ),
    "row true": Fault(_neuron(row=True), "whole number"),
    "row in words": Fault(_neuron(row="0"), "whole number"),
    "unknown layer": Fault(_neuron(layer="nowhere"), "no value layer"),
    "layer with a line break": Fault(_neuron(layer="a\nb"), "no value layer"),
    "layer of half a character": Fault(_neuron(layer="\ud800"), "no value layer"),
    "neuron twice": Fault(_manifest(neurons=[{"layer": LAYER, "row": 0}] * 2), "twice"),
    "tau of half a character": Fault(_manifest(options={"tau": "\ud800"}), "Unicode"),
    "score beyond floating point": Fault(_record(score_before=10**400), "score_before"),
    "score infinite": Fault(
        lambda folder: _m(_record()(folder).read_text().replace("0.5", "1e999"))(folder), "score_before"
    ),
    "index below zero": Fault(_record(index=-1), "negative"),
}  # fmt: skip

# --------------------------------------------------------------------------------------- prompts


def _text(content: str | bytes, suffix: str = "txt") -> Callable[[Path], Path]:
    return _bytes(content.encode() if isinstance(content, str) else content, f"prompts.{suffix}")


def _huge_text(folder: Path) -> Path:
    path = folder / "prompts.txt"
    with path.open("wb") as file:
        file.truncate(2**40)
    return path


PROMPTS: dict[str, Fault] = {
    "nothing there": Fault(lambda folder: folder / "prompts.txt", "no such file"),
    "folder": Fault(lambda folder: folder, "folder"),
    "fifo": Fault(_fifo("prompts.txt"), "nobody writes to this pipe"),
    "/dev/zero": Fault(lambda _: Path("/dev/zero"), "not a regular file"),
    "links in a loop": Fault(_loop("prompts.txt"), "cannot be read"),
    "a terabyte": Fault(_huge_text, "too many"),
    "empty": Fault(_text(""), "no prompts"),
    "blank lines": Fault(_text(" \n\t\n\u2003\n"), "no prompts"),
    "a model": Fault(lambda folder: sd1(folder / "prompts.txt"), "prompts.txt: is not"),
    "utf-16": Fault(_text("a cat".encode("utf-16")), "not UTF-8"),
    "utf-16 without mark": Fault(_text("a cat".encode("utf-16-le")), "UTF-16 without a byte order mark"),
    "csv without the column": Fault(_text("a,b\n1,2\n", "csv"), "no column"),
    "csv field too long": Fault(_text('caption\n"' + "x" * 200_000, "csv"), "not a readable CSV"),
    "jsonl deep": Fault(_text("[" * 100_000, "jsonl"), "line 1 is not JSON"),
    "jsonl broken": Fault(_text('"a"\n{"caption": \n', "jsonl"), "line 2 is not JSON"),
    "jsonl number": Fault(_text("17\n", "jsonl"), "line 1 has no string"),
    "jsonl half a character": Fault(_text('"\\ud800"\n', "jsonl"), "line 1 is not Unicode"),
    "jsonl huge number": Fault(_text("9" * 5000, "jsonl"), "line 1 is not JSON"),
}  # fmt: skip
