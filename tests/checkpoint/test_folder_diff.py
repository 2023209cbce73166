"""What differs between two folders, against differences put in by hand; then the check of a manifest."""

import json
import os
import shutil

import pytest
import rawfiles
from folders import WEIGHTS, add_copy, digest, pipeline, put, shard
from test_cli_files import manifest, run
from test_folders import EMA, FP16, NON_EMA, PLAIN, VARIANTS, hub_snapshot, prune
from test_surgery import CHOSEN, DOWN, END, KEYS, MID, TWINS, UP

from nemo_prune.checkpoint.diff import compare, compare_models
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.errors import CheckpointError, ManifestError

VAE = f"vae/{WEIGHTS}"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture
def model(tmp_path):
    root = pipeline(tmp_path / "m")
    for seed, name in enumerate((FP16, NON_EMA, EMA), 1):
        add_copy(root / name, seed=seed)
    shard(root / PLAIN, 3)  # of two, one would hold all value layers
    put(root / "README.md", "a card")
    return root


@pytest.fixture
def other(tmp_path, model):
    return shutil.copytree(model, tmp_path / "b")


def flip(path, name, place=0, bit=0x40):
    """Change one byte of a tensor."""
    header, raw, data = rawfiles.parse(path)
    data = bytearray(data)
    data[header[name]["data_offsets"][0] + place] ^= bit
    path.write_bytes(rawfiles.assemble(raw, bytes(data)))


def note(path, **told):
    """Change the metadata of a file."""
    header, _, data = rawfiles.parse(path)
    header["__metadata__"] |= told
    path.write_bytes(rawfiles.assemble(json.dumps(header), data))


def unexpected(root, out, neurons=CHOSEN):
    return compare_models(root, out, neurons).promise.unexpected


# ----------------------------------------------------------------------------------- comparing


def test_the_same_bytes(model, other):
    found = compare(model, other)
    assert not found
    assert found.describe() == ["the folders hold the same files, byte for byte"]
    assert found.to_json() == {
        "identical": True, "only_in_a": (), "only_in_b": (), "others": (), "weights": {}, "hidden": (),
    }  # fmt: skip
    assert not compare(model, model)


def test_links_are_read_through(tmp_path, model):
    _, snapshot = hub_snapshot(tmp_path, model)
    assert not compare(snapshot, model)


def test_what_differs(model, other):
    put(model / "a" / "only.txt", "x")
    put(other / "new\x1b.json", "{}")
    shutil.copy(other / VAE, other / "vae" / "second.safetensors")
    put(other / "README.md", "A card")
    put(other / "scheduler" / "scheduler_config.json", "")
    flip(other / FP16, f"{MID}.weight", 70)
    flip(other / VAE, "decoder.conv_in.weight")
    found = compare(model, other)
    assert found
    assert found.only_in_a == ("a/only.txt",)
    assert found.only_in_b == ("new\x1b.json", "vae/second.safetensors")
    assert found.others == ("README.md", "scheduler/scheduler_config.json")
    assert {place for place, difference in found.weights.items() if difference} == {FP16, VAE}
    assert found.describe() == [
        "only in the first: a/only.txt",
        "only in the second: 'new\\x1b.json'",
        "only in the second: vae/second.safetensors",
        "README.md: the bytes differ",
        "scheduler/scheduler_config.json: the bytes differ",
        f"{FP16}: '{MID}.weight' F16 [8, 5]: row 7, 1 bytes",
        f"{VAE}: 'decoder.conv_in.weight' F32 [2, 4, 3, 3]: row 0, 1 bytes",
    ]
    told = json.loads(json.dumps(found.to_json()))
    assert not told["identical"]
    assert told["weights"].keys() == {FP16, VAE}
    assert told["weights"][FP16]["changed"][0]["rows"] == [[7, 7]]
    assert told["others"] == ["README.md", "scheduler/scheduler_config.json"]


@pytest.mark.parametrize("kind", ["only in a", "only in b", "other", "weights"])
def test_one_difference_is_enough(model, other, kind):
    if kind == "weights":
        flip(other / VAE, "decoder.conv_in.weight")
    else:
        put({"only in a": model / "x", "only in b": other / "x"}.get(kind, other / "README.md"), "x")
    assert compare(model, other)
    assert run("diff", model, other).exit_code == 1


def test_a_file_where_the_other_has_a_folder(model, other):
    put(model / "x", "file")
    put(other / "x" / "y", "file")
    found = compare(model, other)
    assert (found.only_in_a, found.only_in_b) == (("x",), ("x/y",))


def test_hidden_folders_are_named_and_not_compared(model, other):
    put(model / ".cache" / "huggingface" / "lock", "x")
    put(other / "unet" / ".git" / "objects" / "unpruned.safetensors", "not even looked at")
    found = compare(model, other)
    assert not found
    assert found.hidden == (".cache", "unet/.git")
    assert found.describe()[1:] == [
        "not compared, a hidden folder: .cache",
        "not compared, a hidden folder: unet/.git",
    ]


def test_any_two_folders_can_be_compared(tmp_path):
    put(tmp_path / "a" / "x", "1")
    put(tmp_path / "b" / "x", "2")
    assert compare(tmp_path / "a", tmp_path / "b").others == ("x",)
    # It is the manifest that needs a model.
    with pytest.raises(CheckpointError, match="without unet/"):
        compare_models(tmp_path / "a", tmp_path / "b", ())


@pytest.mark.parametrize("side", ["m", "b"])
@pytest.mark.parametrize("kind", ["pipe", "loop", "broken link", "no weights", "cut off"])
def test_what_cannot_be_compared(tmp_path, model, other, side, kind):
    root = tmp_path / side
    path = root / "unet" / "thing"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to("..", target_is_directory=True)
    elif kind == "broken link":
        path.symlink_to("nothing")
    elif kind == "no weights":
        put(model / "x.safetensors", "text")
        path = put(other / "x.safetensors", "text")
    else:
        path = root / VAE
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError) as caught:
        compare(model, other)
    line = str(caught.value)
    assert "\n" not in line
    assert path.name in line


# ----------------------------------------------------------------------------------- expecting


@pytest.mark.parametrize("kind", VARIANTS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_the_rewriter_writes_is_as_expected(tmp_path, kind, count):
    root, out = pipeline(tmp_path / "m"), tmp_path / "o"
    for seed, name in enumerate(VARIANTS[kind][1:], 1):
        add_copy(root / name, seed=seed)
    if count > 1:
        shard(root / PLAIN, count)
    written = prune(root, out)
    promise = compare_models(root, out, CHOSEN).promise
    assert promise.unexpected == ()
    assert promise.rows == written.rows_zeroed == 4 * len(VARIANTS[kind])
    assert (promise.a_sha256, promise.b_sha256) == (digest(root), digest(out))
    assert promise.left_out == ()
    assert promise.describe()[-1].startswith(f"as expected: {promise.rows} rows are zero")


def test_a_single_file_beside_the_components(tmp_path, model):
    whole = "whole.safetensors"
    rawfiles.sd1(model / whole, with_ema=True, metadata={"format": "pt"})
    prune(model, tmp_path / "o")
    assert unexpected(model, tmp_path / "o") == ()
    for key in (KEYS[MID], TWINS[MID]):
        put_back(model / whole, tmp_path / "o" / whole, key)
        (told,) = unexpected(model, tmp_path / "o")
        assert told == f"{whole}: not zero: {key!r}, row 7"
        prune(model, tmp_path / f"again-{key[:9]}")
        shutil.copy(tmp_path / f"again-{key[:9]}" / whole, tmp_path / "o" / whole)


def put_back(source, path, key):
    """What a rewriter that forgot a tensor would have left in it."""
    old, _, values = rawfiles.parse(source)
    new, raw, data = rawfiles.parse(path)
    data = bytearray(data)
    data[slice(*new[key]["data_offsets"])] = values[slice(*old[key]["data_offsets"])]
    path.write_bytes(rawfiles.assemble(raw, bytes(data)))


def test_a_bias_in_another_shard(tmp_path):
    root = pipeline(tmp_path / "m")
    entries = [*rawfiles.unet(rawfiles.SD1, "diffusers", "F32"), (f"{MID}.bias", "F32", (8,))]
    rawfiles.write(root / PLAIN, entries, {"format": "pt"})
    places = json.loads(shard(root / PLAIN).read_text())["weight_map"]
    assert places[f"{MID}.bias"] != places[f"{MID}.weight"], "the test needs them apart"
    prune(root, tmp_path / "o")
    promise = compare_models(root, tmp_path / "o", CHOSEN).promise
    assert (promise.unexpected, promise.rows) == ((), 5)
    name = f"unet/{places[f'{MID}.bias']}"
    flip(tmp_path / "o" / name, f"{MID}.bias", 7 * 4)
    assert unexpected(root, tmp_path / "o") == (f"{name}: not zero: '{MID}.bias', row 7",)


def test_a_denoisers_own_folder(tmp_path, model):
    prune(model / "unet", tmp_path / "o")
    assert unexpected(model / "unet", tmp_path / "o") == ()


def test_pruned_twice(tmp_path, model):
    prune(model, tmp_path / "a", CHOSEN[:2])
    prune(tmp_path / "a", tmp_path / "b", CHOSEN[2:])
    assert unexpected(tmp_path / "a", tmp_path / "b", CHOSEN[2:]) == ()
    assert unexpected(model, tmp_path / "b", CHOSEN) == ()
    assert unexpected(model, tmp_path / "b", CHOSEN[2:])


def test_a_shard_that_only_the_first_pruning_touched(tmp_path, model):
    places = shards(model)
    other = next(
        name for name, file in places.items()
        if name.endswith("attn2.to_v.weight") and file != places[f"{MID}.weight"]
    ).removesuffix(".weight")  # fmt: skip
    for path in (model / name for name in (FP16, NON_EMA, EMA)):
        path.unlink()
    prune(model, tmp_path / "a", [Neuron(MID, 7)])
    prune(tmp_path / "a", tmp_path / "b", [Neuron(other, 0)])
    name = f"unet/{places[f'{MID}.weight']}"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert unexpected(tmp_path / "a", tmp_path / "b", [Neuron(other, 0)]) == ()


def test_one_row_more_or_fewer_than_promised(tmp_path, model):
    prune(model, tmp_path / "o", CHOSEN[1:])
    told = unexpected(model, tmp_path / "o")
    assert len(told) == 4
    assert {line.partition(":")[2] for line in told} == {f" not zero: '{MID}.weight', row 7"}
    prune(model, tmp_path / "p", [*CHOSEN, Neuron(UP, 0)])
    told = unexpected(model, tmp_path / "p")
    assert {line.partition(":")[2] for line in told} == {f" changed: '{UP}.weight', row 0"}
    assert len(told) == 4


@pytest.mark.parametrize("forgotten", [FP16, NON_EMA, EMA, "shard"])
def test_a_copy_that_was_forgotten(tmp_path, model, forgotten):
    prune(model, tmp_path / "o")
    if forgotten == "shard":
        places = json.loads((model / f"{PLAIN}.index.json").read_text())["weight_map"]
        forgotten = f"unet/{places[f'{MID}.weight']}"
    shutil.copy(model / forgotten, tmp_path / "o" / forgotten)
    told = unexpected(model, tmp_path / "o")
    assert f"{forgotten}: not zero: '{MID}.weight', row 7" in told
    assert all(line.startswith(f"{forgotten}: not zero: ") for line in told)


@pytest.mark.parametrize("where", ["another row", "another tensor", "EMA", "shard", "vae", "text"])
def test_one_flipped_byte(tmp_path, model, where):
    prune(model, tmp_path / "o")
    name, tensor, place = {
        "another row": (FP16, f"{MID}.weight", 0),
        "another tensor": (FP16, "conv_in.weight", 5),
        "EMA": (EMA, f"{UP}.weight".replace("to_v", "to_k"), 1),
        "shard": (f"unet/{shards(model)['conv_in.weight']}", "conv_in.weight", 0),
        "vae": (VAE, "decoder.conv_in.weight", 0),
        "text": (TEXT, "text_model.final_layer_norm.weight", 1),
    }[where]
    flip(tmp_path / "o" / name, tensor, place)
    (told,) = unexpected(model, tmp_path / "o")
    assert told.startswith(f"{name}: ")
    assert repr(tensor) in told
    assert "row 0" in told


def shards(root):
    return json.loads((root / f"{PLAIN}.index.json").read_text())["weight_map"]


def test_a_zeroed_row_in_a_part_that_should_hold_none(tmp_path, model):
    """A neuron of one shard is asked for; another shard lost a row, too."""
    prune(model, tmp_path / "o", [Neuron(MID, 7)])
    layer = next(
        name for name, file in shards(model).items()
        if name.endswith("to_v.weight") and file != shards(model)[f"{MID}.weight"]
    ).removesuffix(".weight")  # fmt: skip
    prune(model, tmp_path / "p", [Neuron(MID, 7), Neuron(layer, 0)])
    name = f"unet/{shards(model)[f'{layer}.weight']}"
    shutil.copy(tmp_path / "p" / name, tmp_path / "o" / name)
    told = unexpected(model, tmp_path / "o", [Neuron(MID, 7)])
    assert told == (f"{name}: changed: '{layer}.weight', row 0",)


def test_metadata(tmp_path, model):
    prune(model, tmp_path / "o")
    note(tmp_path / "o" / EMA, **{"nemo_prune.tau": "1"})
    assert unexpected(model, tmp_path / "o") == ()
    note(tmp_path / "o" / EMA, format="np")
    note(tmp_path / "o" / FP16, **{"nemo_prune.source_sha256": "0" * 64})
    assert set(unexpected(model, tmp_path / "o")) == {
        f"{EMA}: metadata changed: 'format'",
        f"{FP16}: metadata untrue: nemo_prune.source_sha256 is not the first file's hash",
    }


def test_other_files(tmp_path, model):
    prune(model, tmp_path / "o")
    put(tmp_path / "o" / "README.md", "another card")
    put(tmp_path / "o" / "extra.txt", "x")
    shutil.copy(model / FP16, tmp_path / "o" / "unet" / "diffusion_pytorch_model.old.safetensors")
    (tmp_path / "o" / TEXT).unlink()
    (tmp_path / "o" / NON_EMA).unlink()
    promise = compare_models(model, tmp_path / "o", CHOSEN).promise
    assert set(promise.unexpected) == {
        "README.md: the bytes differ",
        "only in the second folder: extra.txt",
        "only in the second folder: unet/diffusion_pytorch_model.old.safetensors",
        f"only in the first folder: {TEXT}",
        f"only in the first folder: {NON_EMA}",
    }
    assert (promise.a_sha256, promise.b_sha256) == (digest(model), digest(tmp_path / "o"))


def test_dropped_pickles(tmp_path, model):
    twin, harmless = "unet/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.bin"
    put(model / twin, "a pickle")
    put(model / harmless, "a VAE")
    prune(model, tmp_path / "o", drop_pickles=True)
    promise = compare_models(model, tmp_path / "o", CHOSEN).promise
    assert (promise.unexpected, promise.left_out) == ((), (twin,))
    assert f"left out, as it cannot be pruned: {twin}" in promise.describe()
    # One that is still there still holds what was to be removed, changed or not.
    for text in ("a pickle", "another"):
        put(tmp_path / "o" / twin, text)
        promise = compare_models(model, tmp_path / "o", CHOSEN).promise
        assert promise.left_out == ()
        assert promise.unexpected == (
            f"{twin}: is still there, a copy of the denoiser that cannot be pruned",
        )
    (tmp_path / "o" / twin).unlink()
    (tmp_path / "o" / harmless).unlink()
    assert unexpected(model, tmp_path / "o") == (f"only in the first folder: {harmless}",)


@pytest.mark.parametrize("neuron", [Neuron(f"mid_block.attentions.9{END}", 0), Neuron(MID, 8)])
def test_a_manifest_for_another_model(model, neuron):
    with pytest.raises(ManifestError, match=r"m: has no row .* made for another model") as caught:
        unexpected(model, model, [neuron])
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------ as a user runs it


def test_the_verb_says_what_differs(model, other):
    result = run("diff", model, other)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "the folders hold the same files, byte for byte\n"
    put(other / "README.md", "another card")
    flip(other / EMA, f"{DOWN}.weight", 1)
    result = run("diff", model, other)
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "README.md: the bytes differ",
        f"{EMA}: '{DOWN}.weight' F16 [4, 5]: row 0, 1 bytes",
    ]
    result = run("diff", model, other, "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert (told["a"], told["b"], told["identical"]) == (str(model), str(other), False)
    assert (told["others"], list(told["weights"])) == (["README.md"], [EMA])
    assert "expected" not in told


def test_the_verb_proves_a_manifest(tmp_path, model):
    rows = [(neuron.layer, neuron.row) for neuron in CHOSEN]
    path = manifest(tmp_path / "n.json", rows, digest(model))
    more = manifest(tmp_path / "n2.json", [*rows, (UP, 0)])
    out = tmp_path / "o"
    assert run("apply", model, "--manifest", path, "-o", out).exit_code == 0
    result = run("diff", model, out, "--expect", path)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "as expected: 16 rows are zero" in result.stdout
    assert digest(out) in result.stdout
    result = run("diff", model, out, "--expect", path, "--json")
    assert json.loads(result.stdout)["expected"] == {
        "holds": True, "rows": 16, "unexpected": [], "left_out": [],
        "a_sha256": digest(model), "b_sha256": digest(out),
    }  # fmt: skip
    result = run("diff", model, out, "--expect", more)
    assert result.exit_code == 1
    assert f"unexpected: {EMA}: not zero: '{UP}.weight', row 0" in result.stdout
    assert "was made for another model than" in result.stderr
    assert run("diff", model, model, "--expect", path).exit_code == 1


def test_the_verb_refuses(tmp_path, model):
    file = model / EMA
    path = manifest(tmp_path / "n.json", [(DOWN, 1)])
    strange = manifest(tmp_path / "s.json", [(DOWN, 99)])
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, words in (
        ([model, file], f"{file}: is no folder, but {model} is; give two files or two folders"),
        ([file, model], f"{file}: is no folder, but {model} is; give two files or two folders"),
        ([model, tmp_path / "none"], "none: no such folder; check the path"),
        ([tmp_path / "none", model], "none: no such folder; check the path"),
        ([model, model, "--expect", tmp_path / "none"], "none: no such file"),
        ([model, model, "--expect", strange], "made for another model"),
        ([empty, model, "--expect", path], "empty: is a folder without unet/"),
    ):
        result = run("diff", *arguments)
        assert result.exit_code == 2, result.output
        assert words in result.stderr
        assert result.stderr.count("\n") == 1
        assert result.stdout == ""
