"""Build safetensors files byte by byte, sharing no code with the package.

`write` lays out any tensors; `unet` lists (name, dtype, shape) entries with the key topology of a
real model family at toy widths, so that a whole checkpoint is a few hundred kilobytes.
"""

import json
import random
import struct
from pathlib import Path

SIZES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E4M3FNUZ": 1,
    "F8_E5M2FNUZ": 1,
    "F8_E8M0": 1,
    "I8": 1,
    "U8": 1,
    "I64": 8,
}

Entry = tuple[str, str, tuple[int, ...]]


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    count = SIZES[dtype]
    for length in shape:
        count *= length
    return count


def assemble(header: str | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A file of exactly this header text; `length` overrides the true one."""
    text = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def write(
    path: Path,
    entries: list[Entry],
    metadata: dict[str, str] | None = None,
    seed: int = 0,
    pad: int = 0,
    values: dict[str, bytes] | None = None,
) -> Path:
    """Write `entries` in this order with nonzero random bytes, or those in `values`."""
    source = random.Random(seed)
    header: dict[str, object] = {}
    if metadata is not None:
        header["__metadata__"] = metadata
    blocks: list[bytes] = []
    position = 0
    for name, dtype, shape in entries:
        size = nbytes(dtype, shape)
        # Bytes 1..127: never a zero, never a sign bit, so every zero found later was written.
        block = bytes(1 + b % 127 for b in source.randbytes(size))
        block = (values or {}).get(name, block)
        assert len(block) == size
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [position, position + size],
        }
        position += size
        blocks.append(block)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False) + " " * pad
    path.write_bytes(assemble(text, b"".join(blocks)))
    return path


def parse(path: Path) -> tuple[dict[str, dict], bytes, bytes]:
    """(parsed header, raw header bytes, data)."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    raw = content[8 : 8 + length]
    return json.loads(raw), raw, content[8 + length :]


# ---------------------------------------------------------------- model families at toy widths

SD1 = {"widths": (4, 6, 8, 8), "depths": (1, 1, 1, 0), "mid": 1, "columns": 5, "layers": 2}
SD2 = SD1 | {"columns": 1024}
SDXL = {"widths": (4, 6, 8), "depths": (0, 2, 10), "mid": 10, "columns": 2048, "layers": 2}


def value_names(shape: dict) -> list[tuple[str, str, int]]:
    """(LDM stem, diffusers stem, rows) of every value layer in network order."""
    found = []
    last = len(shape["widths"]) - 1
    period = shape["layers"] + 1
    s = "transformer_blocks.{}.attn2.to_v"
    for block, (width, depth) in enumerate(zip(shape["widths"], shape["depths"], strict=True)):
        for layer in range(shape["layers"]):
            for d in range(depth):
                ldm = f"input_blocks.{1 + block * period + layer}.1."
                own = f"down_blocks.{block}.attentions.{layer}."
                found.append((ldm + s.format(d), own + s.format(d), width))
    for d in range(shape["mid"]):
        found.append(
            (
                "middle_block.1." + s.format(d),
                "mid_block.attentions.0." + s.format(d),
                shape["widths"][-1],
            )
        )
    for block in range(last + 1):
        width, depth = shape["widths"][last - block], shape["depths"][last - block]
        for layer in range(period):
            for d in range(depth):
                ldm = f"output_blocks.{block * period + layer}.1."
                own = f"up_blocks.{block}.attentions.{layer}."
                found.append((ldm + s.format(d), own + s.format(d), width))
    return found


def unet(
    shape: dict,
    names: str = "ldm",
    dtype: str = "F32",
    in_channels: int = 4,
    sdxl: bool = False,
    shuffle: bool = True,
) -> list[Entry]:
    """Value layers and the keys that recognition reads; in `state_dict` order, that is mid last."""
    ldm = names == "ldm"
    widths, period = shape["widths"], shape["layers"] + 1
    prefix = "model.diffusion_model." if ldm else ""
    entries: list[Entry] = [
        (
            f"{prefix}{'input_blocks.0.0' if ldm else 'conv_in'}.weight",
            dtype,
            (widths[0], in_channels, 3, 3),
        )
    ]
    for block in range(len(widths) - 1):
        if ldm:
            down = f"input_blocks.{(block + 1) * period}.0.op"
            up = f"output_blocks.{block * period + period - 1}.2.conv"
        else:
            down = f"down_blocks.{block}.downsamplers.0.conv"
            up = f"up_blocks.{block}.upsamplers.0.conv"
        entries += [(f"{prefix}{stem}.weight", dtype, (2, 2, 3, 3)) for stem in (down, up)]
    if sdxl:
        stem = "label_emb.0.0" if ldm else "add_embedding.linear_1"
        entries.append((f"{prefix}{stem}.weight", dtype, (4, 2816)))
    values = value_names(shape)
    if shuffle:
        values.sort(key=lambda v: ("mid" in v[0], v[0]))
    for ldm_stem, own_stem, rows in values:
        stem = prefix + (ldm_stem if ldm else own_stem)
        entries.append((stem.replace("to_v", "to_k") + ".weight", dtype, (rows, shape["columns"])))
        entries.append((stem + ".weight", dtype, (rows, shape["columns"])))
    return entries


def ema(entries: list[Entry], dtype: str | None = None) -> list[Entry]:
    """The `model_ema.` twins of the UNet entries, as LDM training checkpoints name them."""
    return [
        ("model_ema." + name.removeprefix("model.").replace(".", ""), dtype or own, shape)
        for name, own, shape in entries
        if name.startswith("model.diffusion_model.")
    ]


CLIP = ("cond_stage_model.transformer.text_model.final_layer_norm.weight", "F32", (5,))
OPEN_CLIP = ("cond_stage_model.model.ln_final.weight", "F32", (8,))
VAE = ("first_stage_model.decoder.conv_in.weight", "F32", (2, 4, 3, 3))
XL_CLIPS = [
    ("conditioner.embedders.0.transformer.text_model.final_layer_norm.weight", "F32", (5,)),
    ("conditioner.embedders.1.model.ln_final.weight", "F32", (8,)),
]


def sd1(
    path: Path,
    dtype: str = "F16",
    with_ema: bool = False,
    ema_dtype: str | None = None,
    metadata: dict[str, str] | None = None,
    pad: int = 0,
    seed: int = 0,
) -> Path:
    """A whole single-file checkpoint with Stable Diffusion 1's key topology."""
    entries = unet(SD1, dtype=dtype)
    if with_ema:
        entries += ema(entries, ema_dtype)
    return write(path, [VAE, *entries, CLIP], metadata, seed, pad)
