"""The edit as a LoRA: at weight 1 it makes the rows zero, exactly, and nothing else."""

import json
import random

import numpy as np
import pytest
import rawfiles
from click.testing import CliRunner
from folders import pipeline, shard, tree
from rawfiles import SD1, SDXL, unet, value_names
from test_surgery import CHOSEN, DOWN, MID, UP

from nemo_prune.checkpoint.lora import new_lora
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.cli.main import main
from nemo_prune.errors import CheckpointError, ManifestError, OptionError, OutputError

ROWS = {DOWN: [0, 1], MID: [7], UP: [2]}


def write_lora(*given, **options):
    with new_lora(*given, **options):
        pass


DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def arrays(path):
    """Every tensor, float64."""
    header, _, data = rawfiles.parse(path)
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        values = np.frombuffer(data[slice(*entry["data_offsets"])], DTYPES[entry["dtype"]])
        if entry["dtype"] == "BF16":
            values = (values.astype("<u4") << 16).view("<f4")
        found[name] = values.astype("<f8").reshape(entry["shape"])
    return found


def finite(entries):
    """Random bytes for `rawfiles.write` that are small numbers in every dtype."""
    source, values = random.Random(0), {}
    for name, dtype, shape in entries:
        block = bytearray(1 + b % 127 for b in source.randbytes(rawfiles.nbytes(dtype, shape)))
        size = rawfiles.SIZES[dtype]
        block[size - 1 :: size] = b"\x3c" * len(block[::size])
        values[name] = bytes(block)
    return values


def written(path, entries):
    return rawfiles.write(path, entries, {"format": "pt"}, values=finite(entries))


def deltas(path, names="kohya"):
    """What the LoRA adds to each weight, by the layer's name as the file spells it."""
    found = arrays(path)
    if names == "diffusers":
        stems = {name.removesuffix(".lora_A.weight") for name in found if "lora_A" in name}
        return {s: found[f"{s}.lora_B.weight"] @ found[f"{s}.lora_A.weight"] for s in stems}
    return {
        s: found[f"{s}.lora_up.weight"] @ found[f"{s}.lora_down.weight"]
        * (found[f"{s}.alpha"] / len(found[f"{s}.lora_down.weight"]))
        for s in (name.removesuffix(".alpha") for name in found if name.endswith(".alpha"))
    }  # fmt: skip


def spelled(layer, names):
    return "lora_unet_" + layer.replace(".", "_") if names == "kohya" else f"unet.{layer}"


@pytest.mark.parametrize("names", ["kohya", "diffusers"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [SD1, SDXL])
def test_rows_and_product_cancel(tmp_path, shape, dtype, names):
    path = written(tmp_path / "m", unet(shape, "diffusers", dtype, sdxl=shape is SDXL))
    first, last = value_names(shape)[0][1], value_names(shape)[-1][1]
    rows = {first: [0, 3], last: [1]}
    chosen = [Neuron(layer, row) for layer, numbers in rows.items() for row in numbers]
    write_lora(open_checkpoint(path), chosen, tmp_path / "l", names)
    weights, added = arrays(path), deltas(tmp_path / "l", names)
    assert added.keys() == {spelled(layer, names) for layer in rows}
    for layer, numbers in rows.items():
        before = weights[f"{layer}.weight"]
        after = before + added[spelled(layer, names)]
        wanted = before.copy()
        wanted[numbers] = 0
        assert before[numbers].all()
        assert np.array_equal(after, wanted)
    header, raw, _ = rawfiles.parse(tmp_path / "l")
    assert {e["dtype"] for k, e in header.items() if "weight" in k} == {dtype}
    assert raw.startswith(b'{"')
    # One for all, as diffusers needs it.
    assert {e["shape"][0] for k, e in header.items() if "lora_down." in k or "lora_A." in k} == {2}


def test_what_the_file_says_of_itself(tmp_path):
    path = rawfiles.sd1(tmp_path / "m", with_ema=True)
    write_lora(open_checkpoint(path), CHOSEN, tmp_path / "patch.safetensors")
    told = rawfiles.parse(tmp_path / "patch.safetensors")[0]["__metadata__"]
    assert (told["ss_network_dim"], told["ss_network_alpha"]) == ("2", "2")
    assert (told["ss_network_module"], told["ss_output_name"]) == ("networks.lora", "patch")
    assert (told["ss_base_model_version"], told["ss_v2"]) == ("sd_v1", "False")
    assert told["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert json.loads(told["nemo_prune.neurons"]) == ROWS
    with pytest.raises(CheckpointError, match="is a LoRA"):
        open_checkpoint(tmp_path / "patch.safetensors")


def test_files_and_folders_of_one_model_give_one_lora(tmp_path):
    """The rows are those of the copy that programs load, in whatever shard they lie."""
    root = pipeline(tmp_path / "m")
    write_lora(open_checkpoint(root), CHOSEN, tmp_path / "a")
    shard(root / "unet" / "diffusion_pytorch_model.safetensors", 3)
    write_lora(open_checkpoint(root), CHOSEN, tmp_path / "b")
    one, two = arrays(tmp_path / "a"), arrays(tmp_path / "b")
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name], two[name], equal_nan=True) for name in one)


def test_what_no_lora_can_do(tmp_path):
    entries = unet(SD1, "diffusers", "F16")
    biased = rawfiles.write(tmp_path / "b", [*entries, (f"{MID}.bias", "F16", (8,))])
    eight = rawfiles.write(tmp_path / "e", unet(SD1, "diffusers", "F8_E4M3"))
    plain = rawfiles.write(tmp_path / "p", entries)
    root = pipeline(tmp_path / "folder")
    write_lora(open_checkpoint(biased), [Neuron(DOWN, 0)], tmp_path / "fine")
    (tmp_path / "taken").write_bytes(b"mine")
    for path, chosen, out, error, words in (
        (biased, CHOSEN, "l", CheckpointError, "has a bias, which a LoRA does not change"),
        (eight, CHOSEN, "l", CheckpointError, "is F8_E4M3, which programs scale and round"),
        (plain, [], "l", OptionError, "there is no neuron to remove"),
        (plain, [Neuron(MID, 99)], "l", ManifestError, "those of another model"),
        (plain, CHOSEN, "p", OutputError, "is read by this command"),
        (plain, CHOSEN, "taken", OutputError, "exists already"),
        (root, CHOSEN, "folder/l", OutputError, "lies in the model's folder"),
    ):
        before = tree(tmp_path)
        with pytest.raises(error, match=words):
            write_lora(open_checkpoint(path), chosen, tmp_path / out, overwrite=out == "p")
        assert tree(tmp_path) == before


# --------------------------------------------------------------------------- the command line


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_apply_writes_the_lora_alone_or_beside_the_model(tmp_path):
    model = written(tmp_path / "m", [*unet(SD1, dtype="F16"), rawfiles.CLIP])
    alone = run("apply", model, "--neurons", "0:1,6:7", "--lora", tmp_path / "l", "--json")
    assert alone.exit_code == 0, alone.output
    told = json.loads(alone.stdout)
    assert (told["output"], told["lora"], told["neurons"]) == (None, str(tmp_path / "l"), 2)
    assert "holds the removed rows" in alone.stderr
    both = run("apply", model, "--neurons", "0:1,6:7", "--lora", tmp_path / "l2", "-o", tmp_path / "o")
    assert both.exit_code == 0, both.output
    one, two = arrays(tmp_path / "l"), arrays(tmp_path / "l2")
    assert all(np.array_equal(one[name], two[name]) for name in one.keys() | two.keys())
    pruned = arrays(tmp_path / "o")
    for layer, ldm in ((DOWN, "input_blocks.1.1"), (MID, "middle_block.1")):
        key = f"model.diffusion_model.{ldm}.transformer_blocks.0.attn2.to_v.weight"
        mended = arrays(model)[key] + deltas(tmp_path / "l")[spelled(layer, "kohya")]
        assert np.array_equal(mended, pruned[key])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "give -o OUT, the checkpoint to write, or --lora OUT"),
        (["--lora", "l", "--undo", "u"], "go with -o"),
        (["--lora", "m"], "is read by this command"),
        (["--lora", "l", "-o", "l"], "give two names"),
        (["--lora", "l", "-o", "l/o"], "give two places"),
        (["--lora", "none/l"], "the folder none does not exist"),
        (["--lora", "l.pt"], "end it in .safetensors"),
        (["--lora", "l", "--lora-names", "mine"], "--lora-names"),
    ],
)
def test_apply_refuses(tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    rawfiles.sd1(tmp_path / "m")
    before = tree(tmp_path)
    result = run("apply", "m", "--neurons", "0:1", *options)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert tree(tmp_path) == before
