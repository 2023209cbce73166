"""Diffusers folders in the bytes world: every copy zeroed, all else as it was, or one clear refusal."""

import errno
import json
import os
import shutil
import struct
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import rawfiles
from click.testing import CliRunner
from folders import WEIGHTS, add_copy, digest, pipeline, put, shard, tree
from test_surgery import CHOSEN, DOWN, END, MID, UP

from nemo_prune.checkpoint.apply import check_model_output, write_model
from nemo_prune.checkpoint.checkpoint import model_sha256
from nemo_prune.checkpoint.inspect import inspection
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.checkpoint.restore import restore_model
from nemo_prune.checkpoint.zeros import Zeros, model_zeros
from nemo_prune.cli.main import main
from nemo_prune.errors import CheckpointError, ManifestError, OptionError, OutputError
from nemo_prune.files import rewrite
from nemo_prune.files.atomic import held_folder

LDM = {
    DOWN: f"model.diffusion_model.input_blocks.1.1{END}",
    MID: f"model.diffusion_model.middle_block.1{END}",
    UP: f"model.diffusion_model.output_blocks.11.1{END}",
}


@pytest.fixture
def model(tmp_path):
    return pipeline(tmp_path / "model")


def prune(root, out, neurons=CHOSEN, **options):
    options.setdefault("hashed", True)
    return write_model(open_checkpoint(root), neurons, out, {"tau": "0.5"}, **options)


def tensors(path):
    header, _, data = rawfiles.parse(path)
    header.pop("__metadata__", None)
    return {name: (e, data[slice(*e["data_offsets"])]) for name, e in header.items()}


def check(root, out, copies):
    """In each of the copies (sets of files) exactly the chosen rows are zero; all else is equal."""
    edited = {file for files in copies for file in files}
    old, new = tree(root), tree(out)
    assert old.keys() == new.keys()
    assert {name for name in old if old[name] != new[name]} <= edited
    for files in copies:
        before = {n: t for file in files for n, t in tensors(root / file).items()}
        after = {n: t for file in files for n, t in tensors(out / file).items()}
        assert list(before) == list(after)
        for layer, rows in ((DOWN, (0, 1)), (MID, (7,)), (UP, (2,))):
            key = next(k for k in (f"{layer}.weight", f"{LDM[layer]}.weight") if k in before)
            entry, data = before[key]
            width = len(data) // entry["shape"][0]
            wanted = bytearray(data)
            for row in rows:
                wanted[row * width : (row + 1) * width] = bytes(width)
            assert bytes(wanted) != data
            before[key] = (entry, bytes(wanted))
        assert after == before


def rows_zero(found):
    """The rows that are zero in every copy, by layer."""
    return {name: [*z.everywhere] for name, z in model_zeros(found).items() if z.everywhere}


def refusal(root, error=CheckpointError):
    with pytest.raises(error) as caught:
        open_checkpoint(root)
    line = str(caught.value)
    assert "\n" not in line
    assert str(root) in line
    return line


# ------------------------------------------------------------------------------ what is found


@pytest.mark.parametrize(
    ("family", "shape"), [("sd1", rawfiles.SD1), ("sd2", rawfiles.SD2), ("sdxl", rawfiles.SDXL)]
)
@pytest.mark.parametrize("in_channels", [4, 9])
def test_what_a_folder_is(tmp_path, family, shape, in_channels):
    root = pipeline(tmp_path / "m", shape, "F8_E4M3", in_channels=in_channels, sdxl=family == "sdxl")
    found = open_checkpoint(root)
    assert (found.family, found.layout, found.path) == (family, "diffusers", root)
    assert found.text_encoder
    assert found.vae
    assert not found.ema
    assert found.in_channels == in_channels
    assert found.prediction_type == "epsilon"
    assert [v.name for v in found.value_layers] == [own for _, own, _ in rawfiles.value_names(shape)]
    assert found.parts[0].path == root / "unet" / WEIGHTS
    assert found.value_layers[0].tensors == (f"{found.value_layers[0].name}.weight",)


def test_the_scheduler_says_what_is_predicted(model):
    put(model / "scheduler" / "scheduler_config.json", {"prediction_type": "v_prediction"})
    assert open_checkpoint(model).prediction_type == "v_prediction"


def test_a_denoisers_own_folder(model):
    found = open_checkpoint(model / "unet")
    assert (found.layout, found.family, found.text_encoder) == ("unet-folder", "sd1", False)


def test_inspect_lists_the_copies_and_what_cannot_be_pruned(model):
    add_copy(model / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    put(model / "unet" / "diffusion_pytorch_model.bin", "pickle")
    told = json.loads(CliRunner().invoke(main, ["inspect", str(model), "--json"]).stdout)
    assert told == inspection(open_checkpoint(model))
    assert told["files"] == [f"unet/{WEIGHTS}", "unet/diffusion_pytorch_model.fp16.safetensors"]
    assert told["unedited"] == ["unet/diffusion_pytorch_model.bin"]
    assert {layer["copies"] for layer in told["value_layers"]} == {2}
    assert told["bytes"] == (model / "unet" / WEIGHTS).stat().st_size
    shown = CliRunner().invoke(main, ["inspect", str(model)])
    assert shown.exit_code == 0
    assert "unedited: unet/diffusion_pytorch_model.bin" in shown.stdout


# ------------------------------------------------------------------------------ what is written

FP16, NON_EMA = (f"unet/diffusion_pytorch_model.{v}.safetensors" for v in ("fp16", "non_ema"))
PLAIN, EMA = f"unet/{WEIGHTS}", f"unet_ema/{WEIGHTS}"
VARIANTS = {
    "plain": [PLAIN],
    "fp16": [PLAIN, FP16],
    "non_ema": [PLAIN, NON_EMA],
    "unet_ema": [PLAIN, EMA],
    "ema in a training checkpoint": [PLAIN, f"checkpoint-500/unet_ema/{WEIGHTS}"],
    "all": [PLAIN, FP16, NON_EMA, EMA],
}


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
@pytest.mark.parametrize("kind", VARIANTS)
def test_every_copy_is_zeroed(tmp_path, kind, dtype):
    root, out = pipeline(tmp_path / "m", dtype=dtype), tmp_path / "o"
    for seed, name in enumerate(VARIANTS[kind][1:], 1):
        # Copies come in other dtypes than the main one.
        add_copy(root / name, dtype="F16" if "fp16" in name else dtype, seed=seed)
    before = tree(root)
    written = prune(root, out)
    check(root, out, [[name] for name in VARIANTS[kind]])
    assert tree(root) == before
    assert (written.neurons, written.rows_zeroed) == (4, 4 * len(VARIANTS[kind]))
    assert written.sha256 == digest(out) == model_sha256(open_checkpoint(out))
    assert written.source_sha256 == digest(root) == model_sha256(open_checkpoint(root))
    assert rows_zero(open_checkpoint(out)) == {DOWN: [0, 1], MID: [7], UP: [2]}
    for name in VARIANTS[kind]:
        header, _, _ = rawfiles.parse(out / name)
        assert header["__metadata__"]["format"] == "pt"
        assert header["__metadata__"]["nemo_prune.tau"] == "0.5"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "o"]


def test_a_folder_is_hashed_where_it_is_asked_for(tmp_path, model):
    assert prune(model, tmp_path / "a", hashed=False).sha256 is None
    written = prune(model, tmp_path / "b", hashed=False, undo=tmp_path / "u")
    assert written.sha256 == digest(tmp_path / "b") == digest(tmp_path / "a")


@pytest.mark.parametrize("variant", ["", ".fp16"])
@pytest.mark.parametrize("count", [2, 5])
def test_shards(tmp_path, model, count, variant):
    shard(model / PLAIN, count)
    if variant:
        shard(add_copy(model / FP16, seed=1), count, variant)
    out = tmp_path / "o"
    written = prune(model, out)
    sets = [
        sorted(p.relative_to(model).as_posix() for p in (model / "unet").glob(f"*model{v}-0*"))
        for v in {"", variant}
    ]
    check(model, out, sets)
    assert written.rows_zeroed == 4 * len(sets)
    assert open_checkpoint(out).value_layers == open_checkpoint(model).value_layers
    # A shard without chosen neurons is copied as it is, and says nothing of this tool.
    for name in (name for names in sets for name in names):
        holds = any(layer in tensors(out / name) for layer in (f"{n.layer}.weight" for n in CHOSEN))
        assert (b"nemo_prune" in (out / name).read_bytes()) == holds
    told = inspection(open_checkpoint(out))["provenance"]
    assert json.loads(told["nemo_prune.neurons"]) == {DOWN: [0, 1], MID: [7], UP: [2]}


def test_a_single_file_beside_the_components_is_a_copy_too(tmp_path, model):
    rawfiles.sd1(model / "v1-pruned.safetensors", with_ema=True)
    out = tmp_path / "o"
    written = prune(model, out)
    assert written.rows_zeroed == 4 + 8
    changed = {name for name, content in tree(model).items() if tree(out)[name] != content}
    assert changed == {PLAIN, "v1-pruned.safetensors"}
    assert rows_zero(open_checkpoint(out / "v1-pruned.safetensors")) == {
        DOWN: [0, 1], MID: [7], UP: [2],
    }  # fmt: skip


def test_a_row_is_already_zero_only_if_it_is_in_every_copy(tmp_path, model):
    out = tmp_path / "o"
    prune(model, out)
    add_copy(out / FP16)
    assert rows_zero(open_checkpoint(out)) == {}
    assert model_zeros(open_checkpoint(out))[DOWN] == Zeros((), (0, 1))


def test_loras_in_the_folder_are_copied(tmp_path, model):
    lora = [("lora_unet_down_blocks_0_attn2_to_v.lora_down.weight", "F16", (4, 4))]
    rawfiles.write(model / "offset-lora.safetensors", lora)
    prune(model, tmp_path / "o")
    check(model, tmp_path / "o", [[PLAIN]])


def test_biases_in_another_shard(tmp_path, model):
    entries = [*rawfiles.unet(rawfiles.SD1, "diffusers", "F32"), (f"{MID}.bias", "F32", (8,))]
    rawfiles.write(model / PLAIN, entries)
    index = shard(model / PLAIN, 2)
    places = json.loads(index.read_text())["weight_map"]
    assert places[f"{MID}.bias"] != places[f"{MID}.weight"], "the test needs them apart"
    out = tmp_path / "o"
    prune(model, out, [Neuron(MID, 7)])
    for kind in ("bias", "weight"):
        entry, data = tensors(out / "unet" / places[f"{MID}.{kind}"])[f"{MID}.{kind}"]
        width = len(data) // entry["shape"][0]
        assert data[7 * width :] == bytes(width)
        assert 0 not in data[: 7 * width]


def test_a_bias_in_another_shard_keeps_a_neuron_alive(model):
    entries = [*rawfiles.unet(rawfiles.SD1, "diffusers", "F32"), (f"{MID}.bias", "F32", (8,))]
    values = {f"{MID}.weight": bytes(2 * 20) + b"\1" * (6 * 20), f"{MID}.bias": bytes(4) + b"\1" * 28}
    rawfiles.write(model / PLAIN, entries, values=values)
    places = json.loads(shard(model / PLAIN, 2).read_text())["weight_map"]
    assert places[f"{MID}.bias"] != places[f"{MID}.weight"], "the test needs them apart"
    assert rows_zero(open_checkpoint(model)) == {MID: [0]}


def test_every_part_has_its_own_header_and_keys(model):
    add_copy(model / FP16, seed=1)
    shard(model / PLAIN, 3)
    found = open_checkpoint(model)
    assert [len(copy) for copy in found.copies] == [3, 1]
    assert found.files == tuple(part.path for part in found.parts[:3])
    for part in found.parts:
        content = part.path.read_bytes()
        assert part.header.raw == content[8 : part.header.data_start]
        keys = {key for layer in part.value_layers for key in (*layer.tensors, *layer.biases)}
        assert keys <= part.header.tensors.keys()


# --------------------------------------------------------------------------- links and pickles


def hub_snapshot(tmp_path, model):
    """The folder as Hugging Face's cache holds it: files are links to blobs named by hashes."""
    entry = tmp_path / "models--a--b"
    snapshot = entry / "snapshots" / "abc"
    (entry / "blobs").mkdir(parents=True)
    for number, path in enumerate(sorted(p for p in model.rglob("*") if p.is_file())):
        blob = entry / "blobs" / str(number)
        shutil.copy(path, blob)
        blob.chmod(0o444)
        link = snapshot / path.relative_to(model)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return entry, snapshot


@pytest.mark.parametrize("link", [False, True])
def test_a_snapshot_of_the_hub_is_read_through_its_links_only(tmp_path, model, link):
    entry, snapshot = hub_snapshot(tmp_path, model)
    before = tree(entry)
    out = tmp_path / "o"
    prune(snapshot, out, link=link)
    check(model, out, [[PLAIN]])
    assert tree(entry) == before
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert "snapshots/" in refusal(entry)


def test_link_shares_what_stays_and_never_what_is_edited(tmp_path, model):
    out = tmp_path / "o"
    prune(model, out, link=True)
    check(model, out, [[PLAIN]])
    for path in (p for p in model.rglob("*") if p.is_file()):
        place = path.relative_to(model)
        assert path.samefile(out / place) == (place.as_posix() != PLAIN)


def test_links_need_no_room(tmp_path, model, monkeypatch):
    with (model / "vae" / "big").open("wb") as file:
        file.truncate(10**7)
    free, edited = [], (model / PLAIN).stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free[-1]))
    found, out = open_checkpoint(model), tmp_path / "o"
    for room, link, needed in [(10**7, False, 11), (edited - 1, True, 1), (edited, True, None)]:
        free.append(room)
        if needed is None:
            check_model_output(found, out, link=link)
            prune(model, out, link=link)
            continue
        words = f"needs {needed} MB but the disk has {room // 10**6} MB left"
        for write in (prune, lambda _, out, link: check_model_output(found, out, link=link)):
            with pytest.raises(OutputError, match=words):
                write(model, out, link=link)
    real = Path.stat

    def on_another_disk(path, **options):
        found = real(path, **options)
        return SimpleNamespace(st_dev=-1, st_size=found.st_size) if path.name == "big" else found

    monkeypatch.setattr("nemo_prune.checkpoint.apply.Path.stat", on_another_disk)
    with pytest.raises(OutputError, match="needs 11 MB"):
        check_model_output(found, tmp_path / "p", link=True)


def test_where_the_disk_has_no_hard_links_files_are_copied(tmp_path, model, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("nemo_prune.checkpoint.apply.Path.hardlink_to", refuse)
    monkeypatch.setattr("nemo_prune.files.atomic.take_name", lambda a, b, _: a.rename(b))
    prune(model, tmp_path / "o", link=True)
    check(model, tmp_path / "o", [[PLAIN]])


@pytest.mark.skipif(rewrite.fcntl is None, reason="no ioctl")
def test_copied_files_share_their_blocks_where_the_disk_can(tmp_path, model, monkeypatch):
    """A file system that shares blocks, acted by one that asks for the same and then copies."""
    shared, copied = [], []

    def sharing(target, request, wanted):
        source, start, count, place = struct.unpack("=qQQQ", wanted)
        assert request == 0x4020940D
        if count:  # a part of the edited file, whose blocks do not lie alike here
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        size = os.fstat(source).st_size
        os.pwrite(target, os.pread(source, size, start), place)
        shared.append(size)

    real = shutil.copyfile
    monkeypatch.setattr(
        "nemo_prune.files.trees.shutil.copyfile", lambda *a: copied.append(a) or real(*a)
    )
    prune(model, tmp_path / "plain")
    unchanged = sorted(len(c) for place, c in tree(model).items() if place != PLAIN)
    assert len(copied) == len(unchanged)
    copied.clear()
    monkeypatch.setattr(rewrite.fcntl, "ioctl", sharing)
    prune(model, tmp_path / "o", undo=tmp_path / "u")
    check(model, tmp_path / "o", [[PLAIN]])
    assert (sorted(shared), copied) == (unchanged, [])
    restore_model(tmp_path / "o", tmp_path / "u", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(model)
    assert (sorted(shared), copied) == (sorted(unchanged * 2), [])


def test_room_is_checked_before_a_folder_is_written(tmp_path, model, monkeypatch):
    """For all of it: the room for the model alone is not enough for its undo folder too."""
    prune(model, tmp_path / "o", undo=tmp_path / "u")
    needed = sum(map(len, tree(model).values()))
    kept = sum(map(len, tree(tmp_path / "u").values()))
    new = tmp_path / "new"
    new.mkdir()
    for free, words, write in (
        (needed - 1, "new/o: needs 1 MB", lambda: prune(model, new / "o")),
        (needed + 9, "new/u: needs 1 MB", lambda: prune(model, new / "o", undo=new / "u")),
        (needed - 1, "new/o: needs 1 MB",
         lambda: restore_model(tmp_path / "o", tmp_path / "u", new / "o")),
    ):  # fmt: skip
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        with pytest.raises(OutputError, match=f"{words} but the disk has 0 MB left"):
            write()
        assert not any(new.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed + kept))
    prune(model, new / "o", undo=new / "u")


@pytest.mark.parametrize(
    "twin",
    [
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.bin",
        "unet/diffusion_flax_model.msgpack",
        "unet/model.onnx",
        "unet/weights.pb",
        "unet/diffusion_pytorch_model.SAFETENSORS",
        "unet/diffusion_pytorch_model.bin.index.json",
        "unet_ema/diffusion_pytorch_model.bin",
        "v1-5-pruned.ckpt",
        "v1-5-pruned.SAFETENSORS",
        "v1-5-pruned.sft",
        "old/v1-5-pruned.SFT",
        "checkpoint-500/pytorch_model.bin",
        "unet/model.npz",
        "unet/weights.zip",
    ],
)
def test_twins_in_other_forms_are_refused_or_left_out(tmp_path, model, twin):
    put(model / twin, "a pickle")
    out = tmp_path / "o"
    with pytest.raises(CheckpointError, match=r"drop_pickles") as caught:
        prune(model, out)
    assert twin in str(caught.value)
    assert ("rename" in str(caught.value)) == twin.lower().endswith((".safetensors", ".sft"))
    assert not out.exists()
    prune(model, out, drop_pickles=True)
    assert tree(out).keys() == tree(model).keys() - {twin}


@pytest.mark.parametrize(
    "harmless", ["text_encoder/pytorch_model.bin", "safety_checker/model.ckpt", "vae/a.msgpack",
                 "vae/a.sft", "README.md", "unet/readme.md", ".gitattributes", "unet/Thumbs.db",
                 "unet/desktop.ini", "unet/.DS_Store", f"{PLAIN}.sha256", "unet/train.log",
                 "unet/README.rst", "unet/sample.gif", "unet/LICENSE", "unet/events.out.tfevents.1.a"]
)  # fmt: skip
def test_what_holds_no_denoiser_is_copied(tmp_path, model, harmless):
    put(model / harmless, "kept")
    prune(model, tmp_path / "o")
    check(model, tmp_path / "o", [[PLAIN]])


@pytest.mark.parametrize("start", ["PK\3\4", "GGUF", '\2\1\0\0\0\0\0\0{"'])
def test_what_begins_like_weights_is_a_copy_whatever_its_name(tmp_path, model, start):
    put(model / "unet" / "model.safetensors.bak", start)
    with pytest.raises(CheckpointError, match=r"holds unet/model\.safetensors\.bak"):
        prune(model, tmp_path / "o")


def test_what_lies_beside_an_onnx_graph_may_be_its_weights(tmp_path, model):
    put(model / "unet" / "model.onnx", "")
    put(model / "unet" / "onnx__MatMul_9239", "")
    put(model / "unet" / "train.log", "")
    prune(model, tmp_path / "o", drop_pickles=True)
    kept = {path for path in tree(tmp_path / "o") if path.startswith("unet/")}
    assert kept == {PLAIN, "unet/config.json", "unet/train.log"}


@pytest.mark.parametrize("place", [f"unet/._{WEIGHTS}", "vae/._model.safetensors", "._model_index.json"])
def test_what_macos_writes_beside_files_is_no_part_of_a_model(tmp_path, model, place):
    (model / place).write_bytes(b"\0\5\26\7\0\2\0\0")
    assert inspection(open_checkpoint(model))["files"] == [PLAIN]
    prune(model, tmp_path / "o", undo=tmp_path / "u")
    assert tree(tmp_path / "o").keys() == tree(model).keys() - {place}
    restore_model(tmp_path / "o", tmp_path / "u", tmp_path / "back")
    assert tree(tmp_path / "back").keys() == tree(model).keys() - {place}
    result = CliRunner().invoke(main, ["diff", str(model), str(tmp_path / "back")])
    assert (result.exit_code, f"macOS's own file: {place}" in result.stdout) == (0, True)


STATE = ("optimizer.bin", "scheduler.bin", "random_states_0.pkl")


def test_the_state_of_a_training_run_is_called_that(tmp_path, model):
    for folder in (model, model / "checkpoint-10000"):
        for name in STATE:
            put(folder / name, "a pickle")
    words = "holds checkpoint-10000/optimizer.bin and 5 more, the saved state of a training run, which"
    with pytest.raises(CheckpointError, match=words):
        prune(model, tmp_path / "o")
    prune(model, tmp_path / "o", drop_pickles=True)
    assert not any(path.endswith(STATE) for path in tree(tmp_path / "o"))
    put(model / "unet" / "diffusion_pytorch_model.bin", "a pickle")
    with pytest.raises(CheckpointError, match=r"holds .*, copies of the denoiser in a form") as caught:
        prune(model, tmp_path / "p")
    assert "saved state" not in str(caught.value)


def test_a_training_state_without_a_denoiser(tmp_path):
    for name in (*STATE, "pytorch_lora_weights.safetensors"):
        put(tmp_path / "checkpoint-10000" / name, "a pickle")
    line = refusal(tmp_path / "checkpoint-10000")
    assert "is the saved state of a training run (optimizer.bin, random_states_0.pkl, scheduler" in line
    for name in STATE:
        line = refusal(tmp_path / "checkpoint-10000" / name)
        assert "is a part of a training run's saved state" in line


def test_hidden_folders_stay_behind(tmp_path, model):
    put(model / ".git" / "lfs" / "objects" / "weights", "the original weights, unpruned")
    prune(model, tmp_path / "o")
    assert not (tmp_path / "o" / ".git").exists()


def test_the_documented_command_gives_the_hash(model):
    shard(model / PLAIN)
    command = "find -L * -name '*.safetensors' | LC_ALL=C sort | xargs sha256sum | sha256sum"
    done = subprocess.run(command, shell=True, cwd=model, capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == model_sha256(open_checkpoint(model))


# ------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("where", [".", "model", "model/new", "..", "taken", "file", "none/o"])
def test_outputs_that_are_refused(tmp_path, model, where, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").touch()
    before = tree(tmp_path)
    with pytest.raises(OutputError):
        prune(model, tmp_path / where)
    with pytest.raises(OutputError):
        prune(model, tmp_path / where, overwrite=True)
    assert tree(tmp_path) == before
    assert not (model / "new").exists()


def test_a_folder_on_a_disk_without_numbers_of_files(tmp_path, model, monkeypatch):
    """Folders in folders are no loops there, and the source is still known by its name."""
    real = os.stat

    def unnumbered(path, *arguments, **options):
        found = real(path, *arguments, **options)
        times = {f"st_{kind}_ns": getattr(found, f"st_{kind}_ns") for kind in ("atime", "mtime")}
        return os.stat_result([0 if place == 1 else v for place, v in enumerate(found)], times)

    monkeypatch.setattr("os.stat", unnumbered)
    prune(model, tmp_path / "o", undo=tmp_path / "u")
    restore_model(tmp_path / "o", tmp_path / "u", tmp_path / "back")
    for out in (model, model / "unet" / "new"):
        with pytest.raises(OutputError, match="the model's folder"):
            prune(model, out)
    monkeypatch.undo()
    assert tree(tmp_path / "back") == tree(model)


def test_a_failure_in_the_middle_leaves_nothing(tmp_path, model, monkeypatch):
    add_copy(model / EMA)
    real, calls = shutil.copyfile, []
    monkeypatch.setattr("nemo_prune.files.trees.shutil.copyfile", fails_at(3, real, calls))
    with pytest.raises(OutputError, match="no space left"):
        prune(model, tmp_path / "o")
    assert len(calls) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def fails_at(number, real, calls):
    def copy(*arguments):
        calls.append(arguments)
        if len(calls) == number:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    return copy


def test_a_copy_that_is_not_what_was_read_is_noticed(tmp_path, model, monkeypatch):
    def damage(_source, target):
        target.write_bytes(b"something else")

    monkeypatch.setattr("nemo_prune.files.trees.shutil.copyfile", damage)
    with pytest.raises(OutputError, match="is not what was written"):
        prune(model, tmp_path / "o")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_killed_runs_remains_are_removed(tmp_path, model):
    left = tmp_path / ".o.999999999-0123abcd.tmp"
    put(left / "unet" / "half", "half a file")
    with held_folder(left):
        # One that lives in another container, where process ids say nothing.
        prune(model, tmp_path / "o")
        assert left.exists()
    shutil.rmtree(tmp_path / "o")
    prune(model, tmp_path / "o")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "o"]


@pytest.mark.parametrize(
    "neuron", [Neuron("mid_block.attentions.9" + END, 0), Neuron(MID, 8), Neuron(MID, -1)]
)
def test_neurons_of_another_model(tmp_path, model, neuron):
    with pytest.raises(ManifestError, match="those of another model"):
        prune(model, tmp_path / "o", [neuron])
    assert not (tmp_path / "o").exists()


def test_pruning_again_adds_to_what_is_gone(tmp_path, model):
    shard(model / PLAIN)
    prune(model, tmp_path / "a", CHOSEN[:2])
    prune(tmp_path / "a", tmp_path / "b", CHOSEN[2:])
    told = inspection(open_checkpoint(tmp_path / "b"), hashed=True)
    assert json.loads(told["provenance"]["nemo_prune.neurons"]) == {DOWN: [0, 1], MID: [7], UP: [2]}
    assert told["hashes"] == {"sha256": digest(tmp_path / "b")}
    assert rows_zero(open_checkpoint(tmp_path / "b")) == {DOWN: [0, 1], MID: [7], UP: [2]}


def test_options_for_folders_do_not_go_with_a_file(tmp_path):
    path = rawfiles.sd1(tmp_path / "m.safetensors")
    for option in ("link", "drop_pickles"):
        with pytest.raises(OptionError, match="goes with a diffusers folder"):
            prune(path, tmp_path / "o", **{option: True})


def test_a_missing_shard(model):
    shard(model / PLAIN)
    next((model / "unet").glob("*00002-of*")).unlink()
    assert "00002-of-00002.safetensors', which is not beside it" in refusal(model)


def test_a_shard_that_no_index_lists(model):
    shard(model / PLAIN).unlink()
    assert "is a shard that no index beside it lists" in refusal(model)


def test_one_shard_given_alone(model):
    shard(model / PLAIN)
    path = next((model / "unet").glob("*00002-of*"))
    assert "give the folder that holds the whole model" in refusal(path)


def test_an_index_that_contradicts_its_shards(model):
    index = shard(model / PLAIN)
    listed = json.loads(index.read_text())["weight_map"]
    put(index, {"weight_map": listed | {"new.weight": next(iter(listed.values()))}})
    line = refusal(model)
    assert f"{index}: places 'new.weight' in {next(iter(listed.values()))}, which lacks it; down" in line
    listed.pop(f"{MID}.weight")
    put(index, {"weight_map": listed})
    line = refusal(model)
    assert f"holds '{MID}.weight', which {index.name} does not place there; download the folder" in line
    for bad, words in {
        "{": "cannot be read as JSON (",
        "[]": "holds no JSON object; download the folder again",
        '{"weight_map": []}': "lists no weights (weight_map); download the folder again",
        '{"weight_map": {"a": 3}}': "lists no weights (weight_map); download the folder again",
    }.items():
        put(index, bad)
        assert f"{index}: {words}" in refusal(model)


def test_an_index_cannot_point_outside_its_folder(model):
    index = shard(model / PLAIN)
    listed = json.loads(index.read_text())["weight_map"]
    put(index, {"weight_map": {name: f"../unet/{file}" for name, file in listed.items()}})
    assert "which is not beside it" in refusal(model)


def test_two_models_in_one_folder(model):
    add_copy(model / EMA, rawfiles.SD1 | {"widths": (4, 6, 10, 10)})
    line = refusal(model)
    assert (
        f"{model / EMA}: is another model than {model / PLAIN}, so one list of neurons cannot fit"
        in line
    )


def test_a_controlnet_in_the_folder(model):
    entries = [*rawfiles.unet(rawfiles.SD1, "diffusers"),
               ("controlnet_cond_embedding.conv_in.weight", "F32", (4, 4))]  # fmt: skip
    (model / "controlnet").mkdir()
    rawfiles.write(model / "controlnet" / WEIGHTS, entries)
    assert "holds a ControlNet, not a text-to-image model alone" in refusal(model)


def test_joint_attention_and_refiner_folders(tmp_path):
    root = pipeline(tmp_path / "m")
    shutil.rmtree(root / "unet")
    (root / "transformer").mkdir()
    name = "transformer_blocks.0.attn.add_v_proj.weight"
    rawfiles.write(root / "transformer" / WEIGHTS, [(name, "F32", (4, 4))])
    assert "no value layer sees the text alone" in refusal(root)
    refiner = pipeline(tmp_path / "r", rawfiles.SDXL | {"columns": 1280}, sdxl=True)
    assert "is the SDXL refiner, which only retouches what the base model drew" in refusal(refiner)


def test_an_onnx_export_is_named(model):
    (model / PLAIN).rename(model / "unet" / "model.onnx")
    put(model / "unet" / "model.onnx_data", "")
    assert "is an ONNX export (unet/model.onnx); give the diffusers folder it was" in refusal(model)


def test_folders_that_are_no_model(tmp_path, model):
    (tmp_path / "empty").mkdir()
    assert "without unet/" in refusal(tmp_path / "empty")
    (tmp_path / "cached" / "snapshots" / "abc").mkdir(parents=True)
    assert "give the folder of one version, which lies in snapshots/" in refusal(tmp_path / "cached")
    (tmp_path / "files").mkdir()
    rawfiles.sd1(tmp_path / "files" / "a.safetensors")
    (tmp_path / "files" / "b.safetensors").touch()
    assert "without unet/" in refusal(tmp_path / "files")
    (model / PLAIN).rename(model / "unet" / "diffusion_pytorch_model.bin")
    assert "only in a form that is not opened" in refusal(model)
    put(model / "unet" / "model.onnx", "")
    assert "only in a form that is not opened" in refusal(model)
    (model / "unet" / "model.onnx").unlink()
    (model / "unet" / "diffusion_pytorch_model.bin").rename(model / "unet" / "weights.SAFETENSORS")
    assert "rename it to end in .safetensors" in refusal(model)


def test_links_that_lead_nowhere_or_in_circles(model):
    (model / "broken").symlink_to("nothing")
    assert f"{model / 'broken'}: is a broken link; download the folder again" in refusal(model)
    (model / "broken").unlink()
    (model / "unet" / "up").symlink_to("..", target_is_directory=True)
    assert "link to a folder that it lies in" in refusal(model)


def test_special_files(model):
    os.mkfifo(model / "pipe")
    assert "not a regular file" in refusal(model)


def test_links_that_multiply_without_a_loop(tmp_path, model):
    """Twenty folders, each holding the next one twice: a million paths."""
    for number in range(20):
        (tmp_path / f"{number}").mkdir()
        for name in "ab":
            (tmp_path / f"{number}" / name).symlink_to(f"../{number + 1}", target_is_directory=True)
    (tmp_path / "20").mkdir()
    (model / "more").symlink_to(tmp_path / "0", target_is_directory=True)
    assert "more than 100000 entries" in refusal(model)


def test_folders_nested_too_deeply(model):
    (model / "/".join(["x"] * 100)).mkdir(parents=True)
    assert open_checkpoint(model).family == "sd1"
    (model / "/".join(["x"] * 101)).mkdir()
    assert "deeper than 100 folders" in refusal(model)


def test_a_config_that_is_not_json(model):
    put(model / "unet" / "config.json", "{")
    assert "cannot be read as JSON" in refusal(model)
