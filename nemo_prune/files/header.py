"""Read and validate the header of a safetensors file without reading its weights.

A safetensors file is a little-endian u64 N, then N bytes of UTF-8 JSON, then the data. The JSON
maps each tensor's name to its dtype, shape and byte range, and ``__metadata__`` to strings.

What is accepted here the safetensors library accepts too. Four things that it lets pass are refused
on purpose, because rewriting such a file would have to guess: a key that appears twice, a file
without tensors, a tensor entry with further fields or not written as an object, and a header
that does not begin with ``{`` (Forge asserts that). Two more are refused so that no file can take
seconds or hundreds of megabytes to look at: a header of more than 16 MiB (the library takes 100 MB;
a whole SDXL checkpoint needs half a megabyte), and one with more than a million commas.
"""

import json
import os
import re
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from nemo_prune.errors import CheckpointError, option
from nemo_prune.files.text import ENCRYPTED, PACKED, STAND_IN_BYTES, ZIP, absent, stand_in

MAX_HEADER_BYTES = 16 * 2**20
_MAX_COMMAS = 1_000_000  # JSON needs one for each further entry, and Python up to 100 bytes
_MAX_U64 = 2**64 - 1

DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Bits of one element, for every dtype that safetensors 0.8 knows."""

PICKLE_SUFFIXES = {".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle"}
_PICKLE_ADVICE = (
    "is a pickle checkpoint, which can run code when loaded, so it is not opened; convert it once "
    "to safetensors: torch.load(FILE, weights_only=True), then safetensors.torch.save_file"
)
_ZIP_ADVICE = "is a zip archive; unpack it, and give the .safetensors file in it"
_DDUF_ADVICE = "is a DDUF archive, a zip of a diffusers folder; unpack it into a folder, and give that"
_ZIPPED = re.compile(r".*(/|\.(safetensors|json|txt|md))", re.DOTALL)
# An address, or OWNER/MODEL as the Hub names them.
_REMOTE = re.compile(r"https?:/.*|[\w.-]+/(?!.*\.safetensors$)[\w.-]+")
_TRAINING_STATE = re.compile(
    r"(optimizer|scheduler|scaler|training_args|sampler(_\d+)?|dl_state_dict)\.(bin|pt|pth)"
    r"|(random_states|rng_state|custom_checkpoint)(_\d+)?\.(pkl|pth|pt)"
    r"|.+\.distcp|\.metadata"  # of torch.distributed.checkpoint
)
_PROTOCOLS = (b"\2", b"\3", b"\4", b"\5")  # of pickle, in the second byte
_JSON = re.compile(rb"\{\s*\"")
_OWN_JSON = re.compile(rb'"format": *"nemo-prune-(\w+)/')
_LOOKED_AT = 512  # bytes that tell of what other format a file is
# How files of other programs begin. Keras and NumPy pack theirs with zip, as torch does, but begin with
# members of other names.
_OTHERS = tuple(
    (re.compile(pattern, re.DOTALL), what)
    for pattern, what in (
        (rb"\x89HDF", "is an HDF5 file, as Keras writes them"),
        (rb".{4}TFL3", "is a TensorFlow Lite model"),
        (rb"\x93NUMPY|PK\x03\x04.{26}[^/]*\.npy", "holds arrays of NumPy"),
        (rb"PK\x03\x04.{26}(metadata|config)\.json", "is a model of Keras"),
        (rb".{257}ustar", "is a tar archive, as NVIDIA NeMo's models (.nemo) are"),
    )
)
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e]{9,}")  # the length of a real header has zeros
_DOWNLOAD = "download or copy it again"
LIST_ADVICE = f"; a list of prompts, and each further one, needs {option('prompts')} before it"
"""What a message ends in, on text where a model is due; some verbs take no prompts."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file; `start` and `end` are absolute byte offsets in that file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    def row(self, row: int) -> tuple[int, int]:
        """Start and end of one row of the first axis, in the file, where rows are whole bytes."""
        width = (self.end - self.start) // self.shape[0]
        return self.start + row * width, self.start + (row + 1) * width


@dataclass(frozen=True)
class Header:
    """A validated header.

    `tensors` and `metadata` are in the order of the file. `data_start` is the offset of the first
    byte after the header, `size` the file's size, both in bytes. `raw` is the JSON as it stands in
    the file, padding included, without the eight bytes of length before it.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    data_start: int
    size: int
    raw: bytes


class _Fault(Exception):
    """What is wrong with a header, without the file's name."""


def read_header(path: Path, *, named: bool = True) -> Header:
    """Return the validated header of the safetensors file at `path`.

    named: the user named this very file, who may have meant a list of prompts by it.

    Raises CheckpointError, one line that names the file, the fault and the remedy, for anything
    that is not a whole and sound safetensors file. Pickle files are never opened as such.
    """
    path = Path(path)
    try:
        _check_kind(path)
        with path.open("rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise _Fault("is not a regular file")
            size = os.fstat(file.fileno()).st_size
            raw = _read_raw(file, size, named)
        data_start = 8 + len(raw)
        tensors, metadata = _parse(raw, data_start)
        _check_layout(tensors, data_start, size)
    except _Fault as fault:
        raise CheckpointError(f"{path}: {fault}") from None
    except OSError as error:
        raise unreadable(path, error) from None
    return Header(path, tensors, metadata, data_start, size, raw)


def encode_header(entries: Mapping[str, object], block: int = 8, shift: int = 0) -> bytes:
    """The first bytes of a file with these header entries: the length, then the JSON.

    Padded with spaces to end `shift` bytes after a multiple of `block` bytes. The JSON is compact, as
    Forge wants the file's bytes 8 and 9 to be ``{"``.
    """
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * ((shift - 8 - len(text)) % block)
    return struct.pack("<Q", len(text)) + text


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """The error for a file that the operating system does not let be read."""
    return CheckpointError(f"{path}: cannot be read ({error.strerror or error})")


def changed(path: Path) -> CheckpointError:
    """The error for a file that is not, or not any more, what its header was read from."""
    return CheckpointError(f"{path}: changed while it was read; wait until it is whole, then try again")


def is_training_state(path: Path) -> bool:
    """Whether a file has the name of what accelerate, transformers or torch save to resume training."""
    return _TRAINING_STATE.fullmatch(path.name) is not None


def _check_kind(path: Path) -> None:
    """Refuse by what the file system says, before anything is opened (a FIFO would block)."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if _REMOTE.fullmatch(path.as_posix()):
            raise _Fault("no such file; nothing is fetched from the Hub: download it first") from None
        raise _Fault(absent(path)) from None
    except ValueError:
        raise _Fault("is not a possible file name; check the path") from None
    if stat.S_ISDIR(mode):
        raise _Fault("is a folder; give the .safetensors file itself")
    if not stat.S_ISREG(mode):
        raise _Fault("is not a regular file; give a .safetensors file on disk")
    if is_training_state(path):
        raise _Fault(
            "is a part of a training run's saved state (optimizer, schedule, random numbers), not a "
            "model; give the model that the training saved"
        )
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise _Fault(_PICKLE_ADVICE)
    if path.suffix.lower() == ".zip":
        raise _Fault(_ZIP_ADVICE)
    if path.suffix.lower() == ".dduf":
        raise _Fault(_DDUF_ADVICE)


def _read_raw(file: BinaryIO, size: int, named: bool) -> bytes:
    """Return the JSON bytes; refuse other file formats by their names."""
    start = file.read(_LOOKED_AT)
    if not start:
        raise _Fault(f"is empty; {_DOWNLOAD}")
    length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else 0
    plausible = 0 < length <= min(MAX_HEADER_BYTES, size - 8)
    if not plausible or start[8:9] != b"{":
        _name_other_formats(start, named)
    if len(start) < 8:
        raise _Fault(f"is truncated: {size} bytes are too few for a safetensors file; {_DOWNLOAD}")
    if length > MAX_HEADER_BYTES and start[8:9] == b"{" and length <= size - 8:
        raise _Fault(
            f"has a header of {length} bytes, as of very large metadata (at most {MAX_HEADER_BYTES} are "
            f"read); save it again with less metadata"
        )
    if length > MAX_HEADER_BYTES:
        raise _Fault(
            f"is not a safetensors file, or its first bytes are damaged: they announce a header "
            f"of {length} bytes (at most {MAX_HEADER_BYTES}); {_DOWNLOAD}"
        )
    if length > size - 8:
        raise _Fault(
            f"is truncated, or not a safetensors file: the header should take {length} bytes, "
            f"but the file has only {size}; {_DOWNLOAD}"
        )
    file.seek(8)
    raw = file.read(length)
    if len(raw) < length:
        raise _Fault(f"shrank while it was read; {_DOWNLOAD}")
    if not raw.startswith(b"{"):
        raise _Fault(f"has a header that does not begin with {{: {_unsound()}")
    if (commas := raw.count(b",")) > _MAX_COMMAS:
        raise _Fault(f"has a header of {commas} entries, far more than a model needs: {_unsound()}")
    return raw


def _name_other_formats(start: bytes, named: bool) -> None:
    if stands_in := stand_in(start[:STAND_IN_BYTES]):
        raise _Fault(stands_in)
    if other := next((what for begins, what in _OTHERS if begins.match(start)), None):
        raise _Fault(f"{other}, not safetensors; give the safetensors file of a Stable Diffusion model")
    # torch packs its pickles with zip too, under names of other kinds.
    if _ZIPPED.fullmatch(first := _first_member(start)):
        raise _Fault(_DDUF_ADVICE if first == "model_index.json" else _ZIP_ADVICE)
    if start.startswith(ZIP) or (start[0] == 0x80 and start[1:2] in _PROTOCOLS):
        raise _Fault(_PICKLE_ADVICE)
    if by := next((name for magic, name in ENCRYPTED.items() if start.startswith(magic)), None):
        raise _Fault(f"is encrypted by {by}; decrypt it")
    if packed := next((name for magic, name in PACKED.items() if start.startswith(magic)), None):
        raise _Fault(f"is compressed with {packed}; unpack it, and give the .safetensors file in it")
    if start.startswith(b"GGUF"):
        raise _Fault("is a GGUF file; give the safetensors file it was made from")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise _Fault("is a web page, not a model; the download may have needed a login")
    if _JSON.match(start) and (own := _OWN_JSON.search(start)):
        kind = own[1].decode()
        beside = f", and this as {option('manifest')}" if kind == "manifest" else ""
        raise _Fault(f"is a {kind} that this tool wrote, and no model; give the model{beside}")
    if _JSON.match(start):
        raise _Fault(
            "is JSON, not a model: a program's result, a server's answer, or an index of shards; "
            "download the model, or give the folder that holds it"
        )
    if _TEXT.fullmatch(start[:STAND_IN_BYTES]):
        raise _Fault(f"is text, not safetensors; {_DOWNLOAD}{LIST_ADVICE if named else ''}")


def _first_member(start: bytes) -> str:
    """The name of the first file in the zip archive that begins so, "" in other files."""
    end = 30 + int.from_bytes(start[26:28], "little")
    return start[30:end].decode("utf-8", "replace") if start.startswith(ZIP) else ""


def _unsound() -> str:
    return f"the file is damaged or not safetensors; {_DOWNLOAD}"


def _parse(raw: bytes, data_start: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return (tensors in file order, metadata), each entry sound in itself."""
    try:
        parsed = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_constant=_constant,
        )
    except UnicodeDecodeError:
        raise _Fault(f"has a header that is not UTF-8: {_unsound()}") from None
    except RecursionError:
        raise _Fault(f"has a header that nests too deeply: {_unsound()}") from None
    except ValueError:
        raise _Fault(f"has a header that is not JSON: {_unsound()}") from None
    metadata = _metadata(parsed.pop("__metadata__", None))
    tensors = {name: _tensor(name, entry, data_start) for name, entry in parsed.items()}
    if not tensors:
        raise _Fault("holds no tensors; give the file with the weights")
    return tensors, metadata


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise _Fault(
                f"has {quoted(key)} twice in its header, so what it means depends on the reader; "
                f"save it again with safetensors"
            )
        if not _encodable(key):
            raise _Fault(f"has a header that is not Unicode: {_unsound()}")
        found[key] = value
    return found


def _encodable(text: str) -> bool:
    """False for half a surrogate pair, which JSON escapes can spell and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _integer(digits: str) -> int:
    # Also keeps Python from refusing, in its own words, numbers of thousands of digits.
    if digits.startswith("-") or len(digits) > 20:
        raise _Fault(f"has an impossible number in its header ({digits[:24]}): {_unsound()}")
    return int(digits)


def _constant(word: str) -> object:
    raise _Fault(f"has {word} in its header, which is not JSON: {_unsound()}")


def _metadata(entry: object) -> dict[str, str]:
    if entry is None:
        return {}
    if not isinstance(entry, dict):
        raise _Fault(f"has __metadata__ that is not an object: {_unsound()}")
    for key, value in entry.items():
        if not isinstance(value, str):
            raise _Fault(
                f"has metadata {quoted(key)} that is not a string; safetensors allows strings "
                f"only: save it again"
            )
        if not _encodable(value):
            raise _Fault(f"has metadata {quoted(key)} that is not Unicode: {_unsound()}")
    return entry


def _tensor(name: str, entry: object, data_start: int) -> Tensor:
    called = f"tensor {quoted(name)}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _Fault(f"has {called} without exactly dtype, shape and data_offsets: {_unsound()}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _Fault(f"has {called} of the unknown dtype {quoted(dtype)}; convert it to F16 or F32")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise _Fault(f"has {called} with a shape or range that is not whole numbers: {_unsound()}")
    start, end = offsets
    elements = 1
    for length in shape:
        elements *= length
        if elements > _MAX_U64:
            raise _Fault(f"has {called} of an impossible size: {_unsound()}")
    bits = elements * DTYPE_BITS[dtype]
    if bits % 8:
        raise _Fault(f"has {called} ({dtype}) that ends in the middle of a byte: {_unsound()}")
    if end - start != bits // 8:
        raise _Fault(
            f"has {called} that should take {bits // 8} bytes by its shape and dtype, but its "
            f"range has {end - start}: {_unsound()}"
        )
    return Tensor(name, dtype, tuple(shape), data_start + start, data_start + end)


def _are_sizes(value: object) -> bool:
    # type() and not isinstance(): true is an int to Python, not to safetensors.
    return isinstance(value, list) and all(type(v) is int and v <= _MAX_U64 for v in value)


def _check_layout(tensors: Mapping[str, Tensor], data_start: int, size: int) -> None:
    """The tensors must tile the data: no hole, no overlap, nothing missing, nothing behind."""
    position = data_start
    for tensor in sorted(tensors.values(), key=lambda t: (t.start, t.end)):
        if tensor.start != position:
            fault = "overlaps another" if tensor.start < position else "leaves a hole before it"
            raise _Fault(f"has tensor {quoted(tensor.name)}, which {fault}: {_unsound()}")
        position = tensor.end
    if position > size:
        raise _Fault(
            f"is truncated: its header promises {position} bytes, the file has {size}; {_DOWNLOAD}"
        )
    if position < size:
        raise _Fault(f"has {size - position} bytes too many behind its tensors: {_unsound()}")


def quoted(value: object) -> str:
    """A name out of the file for a message: one line, no control characters, not too long."""
    text = ascii(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
