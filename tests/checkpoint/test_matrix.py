"""Every family in every layout and dtype in the bytes world: exactly the chosen rows become zero."""

from collections.abc import Callable
from pathlib import Path

import pytest
import rawfiles
from folders import WEIGHTS, pipeline, shard
from rawfiles import CLIP, OPEN_CLIP, VAE, XL_CLIPS, Entry

from nemo_prune.checkpoint.apply import write_model
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.checkpoint.zeros import model_zeros

FAMILIES = {
    "sd1": (rawfiles.SD1, [CLIP]),
    "sd2": (rawfiles.SD2 | {"columns": 5}, [OPEN_CLIP]),
    "sdxl": (rawfiles.SDXL | {"columns": 5, "depths": (0, 2, 3), "mid": 3}, XL_CLIPS),
}
DTYPES = ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"]


def unet(family: str, dtype: str, names: str, in_channels: int = 4) -> list[Entry]:
    entries = rawfiles.unet(FAMILIES[family][0], names, dtype, in_channels, sdxl=family == "sdxl")
    if family == "sd2":
        # What tells a thin SD2 without its text encoder from SD1.
        ldm, own = "model.diffusion_model.input_blocks.1.1", "down_blocks.0.attentions.0"
        entries.append((f"{ldm if names == 'ldm' else own}.proj_in.weight", dtype, (4, 4)))
    return entries


def single(ema: str = "", in_channels: int = 4) -> Callable[[Path, str, str], Path]:
    def make(place: Path, family: str, dtype: str) -> Path:
        entries = unet(family, dtype, "ldm", in_channels)
        if ema == "without dots":
            entries += rawfiles.ema(entries)
        elif ema == "with dots":
            entries += [("model_ema." + n.removeprefix("model."), d, s) for n, d, s in entries]
        return rawfiles.write(place / "m.safetensors", [VAE, *entries, *FAMILIES[family][1]])

    return make


def alone(names: str, prefix: str = "") -> Callable[[Path, str, str], Path]:
    def make(place: Path, family: str, dtype: str) -> Path:
        entries = [
            (n.replace("model.diffusion_model.", prefix) if prefix else n, d, s)
            for n, d, s in unet(family, dtype, names)
        ]
        return rawfiles.write(place / "m.safetensors", entries)

    return make


def folder(*others: str, shards: bool = False, in_channels: int = 4) -> Callable[[Path, str, str], Path]:
    def make(place: Path, family: str, dtype: str) -> Path:
        root = pipeline(place / "m")
        main = root / "unet" / WEIGHTS
        rawfiles.write(main, unet(family, dtype, "diffusers", in_channels))
        for seed, name in enumerate(others, 1):
            (root / name).parent.mkdir(exist_ok=True)
            rawfiles.write(root / name, unet(family, dtype, "diffusers", in_channels), seed=seed)
        if shards:
            shard(main, 3)
        return root

    return make


VARIANTS = ("unet/diffusion_pytorch_model.fp16.safetensors",
            "unet/diffusion_pytorch_model.non_ema.safetensors", f"unet_ema/{WEIGHTS}")  # fmt: skip
# What makes it, and how many copies of the denoiser are in it.
LAYOUTS: dict[str, tuple[Callable[[Path, str, str], Path], int]] = {
    "single file": (single(), 1),
    "single file with EMA twin": (single("without dots"), 2),
    "single file with dotted EMA twin": (single("with dots"), 2),
    "inpainting single file": (single(in_channels=9), 1),
    "UNet alone, LDM names": (alone("ldm"), 1),
    "UNet alone, LDM names, another prefix": (alone("ldm", "diffusion_model."), 1),
    "UNet alone, diffusers names": (alone("diffusers"), 1),
    "folder": (folder(), 1),
    "folder with variants": (folder(*VARIANTS), 4),
    "folder of shards": (folder(shards=True), 1),
    "inpainting folder": (folder(in_channels=9), 1),
}


def canonical(family: str) -> dict[str, tuple[str, int]]:
    """Every spelling of each value tensor's name, without prefix -> (canonical layer, rows)."""
    found = {}
    for theirs, own, rows in rawfiles.value_names(FAMILIES[family][0]):
        dotted = "diffusion_model." + theirs + ".weight"
        for name in (own + ".weight", theirs + ".weight", dotted, "model." + dotted,
                     "model_ema." + dotted, "model_ema." + dotted.replace(".", "")):  # fmt: skip
            found[name] = own, rows
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_layout_and_dtype_is_zeroed(
    tmp_path: Path, family: str, layout: str, dtype: str
) -> None:
    make, copies = LAYOUTS[layout]
    source, out = make(tmp_path, family, dtype), tmp_path / "out"
    found = open_checkpoint(source)
    assert found.family == family
    assert found.in_channels == (9 if "inpainting" in layout else 4)
    layers = found.value_layers
    chosen = [Neuron(layers[0].name, 1), Neuron(layers[len(layers) // 2].name, 0),
              Neuron(layers[-1].name, layers[-1].rows - 1)]  # fmt: skip
    written = write_model(found, chosen, out, {})
    assert written.rows_zeroed == len(chosen) * copies

    names, zeroed = canonical(family), 0
    files = list(source.rglob("*.safetensors")) if source.is_dir() else [source]
    for path in files:
        other = out / path.relative_to(source) if source.is_dir() else out
        (before, _, old), (after, _, new) = rawfiles.parse(path), rawfiles.parse(other)
        assert [n for n in before if n != "__metadata__"] == [n for n in after if n != "__metadata__"]
        expected = bytearray(old)
        for name, entry in before.items():
            if name == "__metadata__":
                continue
            assert after[name] == entry
            layer, rows = names.get(name, (None, 0))
            for row in (neuron.row for neuron in chosen if neuron.layer == layer):
                start, end = entry["data_offsets"]
                width = (end - start) // rows
                expected[start + row * width : start + (row + 1) * width] = bytes(width)
                zeroed += 1
        assert new == bytes(expected)
    assert zeroed == written.rows_zeroed
    rows = {n: z.everywhere for n, z in model_zeros(open_checkpoint(out)).items()}
    assert rows == {neuron.layer: (neuron.row,) for neuron in chosen}
