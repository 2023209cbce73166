"""What was removed from a folder comes back, bit for bit, and only into that folder."""

import hashlib
import json
import os
import shutil

import pytest
import rawfiles
from folders import WEIGHTS, add_copy, digest, pipeline, put, shard, tree
from test_cli_files import manifest, run
from test_folders import EMA, FP16, NON_EMA, PLAIN, hub_snapshot, prune
from test_surgery import CHOSEN, DOWN, MID, UP, no_space, nothing_left

from nemo_prune.checkpoint.apply import check_model_output
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.checkpoint.restore import restore_model
from nemo_prune.errors import CheckpointError, NemoPruneError, OutputError, UndoError
from nemo_prune.files import atomic as placing
from nemo_prune.files import trees
from nemo_prune.files import undo as single
from nemo_prune.files.undo import read_undo


@pytest.fixture
def model(tmp_path):
    """Every kind of copy, shards among them, and files that are no weights."""
    root = pipeline(tmp_path / "m")
    for seed, name in enumerate((FP16, NON_EMA, EMA), 1):
        add_copy(root / name, dtype="F32" if name == EMA else "F16", seed=seed)
    shard(root / PLAIN, 3)  # of two, one would hold all value layers
    rawfiles.sd1(root / "whole.safetensors", with_ema=True, pad=3)
    put(root / "README.md", "a card")
    return root


@pytest.fixture
def pruned(tmp_path, model):
    prune(model, tmp_path / "o", undo=tmp_path / "u")
    return tmp_path / "o"


def restore(tmp_path, out="back"):
    return restore_model(tmp_path / "o", tmp_path / "u", tmp_path / out)


def refused(tmp_path, *words, error=UndoError):
    """Restoring gives one line with these words, and nothing is written."""
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(error) as caught:
        restore(tmp_path)
    line = str(caught.value)
    assert "\n" not in line
    assert all(word in line for word in words), line
    nothing_left(tmp_path, *before)


def flip(path, place=-1):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


# ------------------------------------------------------------------------------- there and back


def test_there_and_back(tmp_path, model, pruned):
    before = tree(model)
    assert tree(pruned) != before
    restored = restore(tmp_path)
    assert tree(tmp_path / "back") == before == tree(model)
    assert restored.path == tmp_path / "back"
    assert restored.sha256 == digest(model) == digest(tmp_path / "back")
    # 4 neurons in 5 files, in one of them with their EMA twins.
    assert restored.rows == 4 * 6
    assert restored.left_out == ()
    nothing_left(tmp_path, "m", "o", "u", "back")


def test_a_config_that_was_changed_since_is_said(tmp_path, pruned):
    put(pruned / "model_index.json", '{"_class_name": "MyPipeline"}')
    (pruned / "scheduler" / "scheduler_config.json").unlink()
    changed = ("model_index.json", "scheduler/scheduler_config.json")
    assert restore(tmp_path).changed == changed
    result = run("restore", pruned, "--undo", tmp_path / "u", "-o", tmp_path / "again", "--json")
    assert result.exit_code == 0
    assert "note: model_index.json was changed since the model was pruned" in result.stderr
    assert json.loads(result.stdout)["changed"] == [*changed]


@pytest.mark.parametrize("kind", ["plain", "fp16", "ema", "shards", "sharded fp16", "biases apart"])
@pytest.mark.parametrize("dtype", ["F32", "BF16", "F8_E4M3"])
def test_each_layout_there_and_back(tmp_path, kind, dtype):
    root = pipeline(tmp_path / "m", dtype=dtype)
    if "fp16" in kind:
        add_copy(root / FP16, seed=1)
    if kind == "ema":
        add_copy(root / EMA, dtype=dtype, seed=1)
    if kind == "biases apart":
        entries = [*rawfiles.unet(rawfiles.SD1, "diffusers", dtype), (f"{MID}.bias", "F32", (8,))]
        rawfiles.write(root / PLAIN, entries)
    if kind in ("shards", "biases apart"):
        shard(root / PLAIN, 3 if kind == "shards" else 2)
    if kind == "sharded fp16":
        shard(root / FP16, 3, ".fp16")
    prune(root, tmp_path / "o", undo=tmp_path / "u")
    restore(tmp_path)
    assert tree(tmp_path / "back") == tree(root)


def test_what_is_kept(tmp_path, model, pruned):
    """An undo file for each rewritten file, at its place, and the index; nothing else."""
    old, new = tree(model), tree(pruned)
    rewritten = sorted(name for name in old if old[name] != new[name])
    assert len(rewritten) > 4
    assert sorted(tree(tmp_path / "u")) == sorted([*rewritten, "undo.json"])
    assert json.loads((tmp_path / "u" / "undo.json").read_text()) == {
        "format": "nemo-prune-undo-folder/1",
        "source_sha256": digest(model),
        "files": rewritten,
        "left_out": [],
        "configs": {
            name: hashlib.sha256((model / name).read_bytes()).hexdigest()
            for name in sorted(old)
            if name.endswith(".json")
        },
    }
    kept = read_undo(tmp_path / "u" / EMA)
    assert kept.rows == {f"{layer}.weight": rows for layer, rows in
                         {DOWN: [0, 1], MID: [7], UP: [2]}.items()}  # fmt: skip


def test_a_part_without_chosen_neurons_has_no_undo_file(tmp_path, model):
    prune(model, tmp_path / "o", [Neuron(MID, 7)], undo=tmp_path / "u")
    shards = [name for name in tree(tmp_path / "u") if "-of-" in name]
    assert len(shards) == 1
    assert restore(tmp_path).rows == 6
    assert tree(tmp_path / "back") == tree(model)


def test_no_neurons(tmp_path, model):
    prune(model, tmp_path / "o", (), undo=tmp_path / "u")
    assert list(tree(tmp_path / "u")) == ["undo.json"]
    assert restore(tmp_path).rows == 0
    assert tree(tmp_path / "back") == tree(model)


def test_step_by_step(tmp_path, model, pruned):
    """A folder that was pruned twice goes back one run at a time."""
    second, rows = tmp_path / "o2", tmp_path / "u2"
    prune(pruned, second, [Neuron(MID, 1)], undo=rows)
    with pytest.raises(UndoError):
        restore_model(second, tmp_path / "u", tmp_path / "back")
    assert not (tmp_path / "back").exists()
    restore_model(second, rows, tmp_path / "back2")
    assert tree(tmp_path / "back2") == tree(pruned)
    restore_model(tmp_path / "back2", tmp_path / "u", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(model)


def test_a_snapshot_of_the_hub_and_linked_files(tmp_path, model):
    _, snapshot = hub_snapshot(tmp_path, model)
    prune(snapshot, tmp_path / "o", undo=tmp_path / "u", link=True)
    restore(tmp_path)
    assert tree(tmp_path / "back") == tree(model)
    # Nothing is shared with the pruned folder: writing to the one must not change the other.
    for name in tree(model):
        assert not (tmp_path / "back" / name).samefile(tmp_path / "o" / name)


def test_dropped_pickles_stay_out_and_are_named(tmp_path, model):
    twin, other = "unet/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin"
    put(model / twin, "a pickle")
    put(model / other, "a pickle of no denoiser")
    prune(model, tmp_path / "o", undo=tmp_path / "u", drop_pickles=True)
    restored = restore(tmp_path)
    assert restored.left_out == (twin,)
    assert restored.sha256 == digest(model) == digest(tmp_path / "back")
    assert tree(tmp_path / "back") == {n: c for n, c in tree(model).items() if n != twin}
    result = run("restore", tmp_path / "o", "--undo", tmp_path / "u", "-o", tmp_path / "b2", "--json")
    assert result.exit_code == 0
    assert f"note: {twin} was left out by --drop-pickles" in result.stderr
    assert json.loads(result.stdout)["left_out"] == [twin]


def test_what_is_no_weights_may_have_changed_since(tmp_path, model, pruned):
    put(pruned / "README.md", "another card")
    assert restore(tmp_path).sha256 == digest(model)
    assert (tmp_path / "back" / "README.md").read_text() == "another card"


# ------------------------------------------------------------------------------ as a user runs it


def test_the_verbs(tmp_path, model):
    wanted = manifest(tmp_path / "n.json", [(n.layer, n.row) for n in CHOSEN], digest(model))
    out, undo, back = (tmp_path / name for name in ("o", "u", "back"))
    result = run("apply", model, "--manifest", wanted, "-o", out, "--undo", undo, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["undo"] == str(undo)
    assert f"wrote {undo}: with it, restore brings the source back\n" in result.stderr
    result = run("restore", out, "--undo", undo, "-o", back, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "output": {"path": str(back), "sha256": digest(model)}, "rows_restored": 24, "left_out": [],
    }  # fmt: skip
    assert tree(back) == tree(model)


@pytest.mark.usefixtures("pruned")
def test_the_verbs_refuse(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "file", "mine")
    shutil.copytree("u", "no-index")
    (tmp_path / "no-index" / "undo.json").unlink()
    rows = f"u/{EMA}"
    for arguments, words in (
        (["o", "--undo", "file"], "file: is no folder, but o is; give two files or two folders"),
        (["o", "--undo", "none"], "none: no such folder; check the path"),
        (["o", "--undo", rows], f"{rows}: is no folder, but o is"),
        (["o", "--undo", "m"], "m: is not a folder that --undo wrote"),
        (["o", "--undo", "no-index"], "no-index: is not a folder that --undo wrote"),
        (["m", "--undo", "u"], "is not the file that"),
        ([f"o/{EMA}", "--undo", "u"], f"o/{EMA}: is no folder, but u is"),
        ([f"o/{FP16}", "--undo", rows], "is not the file that"),
        (["none", "--undo", "u"], "none: no such folder; check the path"),
        (["none", "--undo", rows], "such file"),
    ):
        result = run("restore", *arguments, "-o", "back")
        assert result.exit_code == 2, result.output
        assert words in result.stderr
        assert result.stderr.count("\n") == 1
        assert result.stdout == ""
        assert not (tmp_path / "back").exists()
    for out, words in {
        "m": "m: exists already, and a folder is never replaced",
        "o": "o: is the model's folder itself",
        "u": "u: is the undo folder itself",
        "o/new": "lies in the model's folder",
        "u/new": "lies in the undo folder",
        "x/y": "the folder x does not exist",
    }.items():
        for overwrite in ([], ["--overwrite"]):
            result = run("restore", "o", "--undo", "u", "-o", out, *overwrite)
            assert result.exit_code == 2, result.output
            assert words in result.stderr
    nothing_left(tmp_path, "m", "o", "u", "file", "no-index")


# ------------------------------------------------------------------------- refusals in writing


@pytest.mark.parametrize(
    ("undo", "words"),
    [
        ("taken", "taken: exists already, and undo folders are never replaced"),
        ("empty", "empty: exists already"),
        ("dangling", "dangling: exists already"),
        ("o", "is the output itself"),
        ("m/../o", "is the output itself"),
        ("o/u", "lies in the output"),
        ("m", "m: exists already"),
        ("m/u", "lies in the model's folder"),
        ("none/u", "create it first"),
        ("u.safetensors", "has a file's name, and of a folder the removed rows go into a folder"),
    ],
)
def test_undo_folders_that_are_refused(tmp_path, model, monkeypatch, undo, words):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "taken", "precious")
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    before = tree(tmp_path)
    # Before hours of search as well as before writing.
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=words):
            check_model_output(
                open_checkpoint(model), tmp_path / "o", overwrite=overwrite, undo=tmp_path / undo
            )
        with pytest.raises(OutputError, match=words):
            prune(model, tmp_path / "o", overwrite=overwrite, undo=tmp_path / undo)
    assert tree(tmp_path) == before
    nothing_left(tmp_path, "m", "taken", "empty", "dangling")


def test_the_undo_folder_is_there_first(tmp_path, model, monkeypatch):
    real, seen = type(tmp_path).rename, []

    def rename(self, target):
        seen.append((target.name, sorted(p.name for p in tmp_path.iterdir() if p.name[0] != ".")))
        return real(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", rename)
    prune(model, tmp_path / "o", undo=tmp_path / "u")
    assert seen == [("u", ["m"]), ("o", ["m", "u"])]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("name", ["u", "o"])
def test_neither_folder_without_the_other(tmp_path, model, monkeypatch, name, error):
    real = type(tmp_path).rename

    def rename(self, target):
        if target.name == name:
            raise error
        return real(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", rename)
    wanted = OutputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(wanted, match=f"{name}: cannot be written" if wanted is OutputError else None):
        prune(model, tmp_path / "o", undo=tmp_path / "u")
    nothing_left(tmp_path, "m")


def test_an_interrupt_after_the_last_step_keeps_the_rows(tmp_path, model, monkeypatch):
    real = type(tmp_path).rename

    def rename(self, target):
        real(self, target)
        if target.name == "o":
            raise KeyboardInterrupt

    monkeypatch.setattr(type(tmp_path), "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        prune(model, tmp_path / "o", undo=tmp_path / "u")
    monkeypatch.undo()
    restore(tmp_path)
    assert tree(tmp_path / "back") == tree(model)


def test_a_folder_that_appears_meanwhile_is_kept(tmp_path, model, monkeypatch):
    real = type(tmp_path).rename

    def rename(self, target):
        put(tmp_path / "o" / "theirs", "mine")
        return real(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", rename)
    with pytest.raises(OutputError, match="o: cannot be written"):
        prune(model, tmp_path / "o", undo=tmp_path / "u")
    assert tree(tmp_path / "o") == {"theirs": b"mine"}
    nothing_left(tmp_path, "m", "o")


@pytest.mark.parametrize("what", ["rows", "index", "copy", "rewriting", "flushing"])
def test_a_full_disk(tmp_path, model, monkeypatch, what):
    where, name = {
        "rows": (single, "write_at"),
        "index": (placing, "new_file"),
        "copy": (shutil, "copyfile"),
        "rewriting": (placing, "take_name"),
        "flushing": (os, "fsync"),
    }[what]
    monkeypatch.setattr(where, name, no_space)
    with pytest.raises(OutputError, match="no space left") as caught:
        prune(model, tmp_path / "o", undo=tmp_path / "u")
    if what == "copy":
        assert str(caught.value).startswith(f"{tmp_path / 'o'}: ")
    nothing_left(tmp_path, "m")


# ------------------------------------------------------------------------ refusals in restoring


def test_the_undo_folder_of_another(tmp_path, pruned):
    other = pipeline(tmp_path / "m2", dtype="F32")
    prune(other, tmp_path / "o2", undo=tmp_path / "u2")
    for folder, undo in ((pruned, tmp_path / "u2"), (tmp_path / "o2", tmp_path / "u")):
        with pytest.raises(UndoError) as caught:
            restore_model(folder, undo, tmp_path / "back")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "back").exists()
    # Same neurons, another seed of the weights.
    again = pipeline(tmp_path / "m3", dtype="F32")
    add_copy(again / PLAIN, dtype="F32", seed=9)
    prune(again, tmp_path / "o3", undo=tmp_path / "u3")
    with pytest.raises(UndoError, match=f"{WEIGHTS}: is not the file that"):
        restore_model(tmp_path / "o3", tmp_path / "u2", tmp_path / "back")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.usefixtures("pruned")
def test_an_undo_file_is_missing(tmp_path):
    (tmp_path / "u" / EMA).unlink()
    refused(tmp_path, f"u: lacks {EMA}", "copy the whole folder again")


@pytest.mark.usefixtures("pruned")
def test_undo_files_that_changed_places(tmp_path):
    one, two = tmp_path / "u" / FP16, tmp_path / "u" / NON_EMA
    (tmp_path / "t").write_bytes(one.read_bytes())
    one.write_bytes(two.read_bytes())
    two.write_bytes((tmp_path / "t").read_bytes())
    refused(tmp_path, "is not the file that")


@pytest.mark.usefixtures("pruned")
def test_an_undo_file_that_was_damaged(tmp_path):
    flip(tmp_path / "u" / EMA)
    refused(tmp_path, f"u/{EMA}: does not bring back")


@pytest.mark.usefixtures("pruned")
def test_an_undo_file_that_is_cut_off(tmp_path):
    path = tmp_path / "u" / EMA
    path.write_bytes(path.read_bytes()[:-1])
    refused(tmp_path, f"{path}: is truncated", error=CheckpointError)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "nemo-prune-undo-folder/2"},
        {"source_sha256": "A" * 64},
        {"source_sha256": 3},
        {"files": None},
        {"files": "unet"},
        {"files": [3]},
        {"left_out": {}},
    ],
)
@pytest.mark.usefixtures("pruned")
def test_what_is_no_index(tmp_path, change):
    path = tmp_path / "u" / "undo.json"
    put(path, json.loads(path.read_text()) | change)
    refused(tmp_path, "u: is not a folder that undo wrote")


@pytest.mark.usefixtures("pruned")
def test_an_index_cannot_point_outside(tmp_path):
    path = tmp_path / "u" / "undo.json"
    told = json.loads(path.read_text())
    put(path, told | {"files": ["../u/" + EMA, "\x1b[31m"]})
    refused(tmp_path, "u: lacks '\\x1b[31m'")
    put(path, told | {"files": ["../u/" + EMA]})
    refused(tmp_path, f"u: lacks ../u/{EMA}")
    put(path, "{")
    refused(tmp_path, "undo.json: cannot be read as JSON", error=CheckpointError)


@pytest.mark.usefixtures("pruned")
def test_an_index_that_forgets_a_file(tmp_path):
    """The file is copied pruned then, which the hash of the whole tells."""
    path = tmp_path / "u" / "undo.json"
    told = json.loads(path.read_text())
    put(path, told | {"files": told["files"][1:]})
    refused(tmp_path, "o: is not the folder that", "belongs to")


@pytest.mark.parametrize("kind", ["rewritten", "copied", "gone", "copied gone", "added"])
def test_weights_that_changed_since(tmp_path, pruned, kind):
    vae = pruned / "vae" / WEIGHTS
    if kind == "rewritten":
        flip(pruned / EMA)
        refused(tmp_path, f"o/{EMA}: is not the file that")
    elif kind == "gone":
        (pruned / EMA).unlink()
        refused(tmp_path, f"o: has no {EMA}")
    elif kind == "copied":
        flip(vae)
        refused(tmp_path, "o: is not the folder that")
    elif kind == "copied gone":
        vae.unlink()
        refused(tmp_path, "o: is not the folder that")
    else:
        shutil.copy(vae, pruned / "new.safetensors")
        refused(tmp_path, "o: is not the folder that")


@pytest.mark.parametrize("where", ["o", "u"])
@pytest.mark.usefixtures("pruned")
def test_nothing_in_a_folder_makes_it_hang(tmp_path, where):
    os.mkfifo(tmp_path / where / "pipe")
    refused(tmp_path, f"{where}/pipe: is not a regular file", error=CheckpointError)
    (tmp_path / where / "pipe").unlink()
    (tmp_path / where / "pipe").symlink_to(".", target_is_directory=True)
    refused(tmp_path, "pipe: is a link to a folder that it lies in", error=CheckpointError)


@pytest.mark.parametrize("what", ["copy", "rows", "flushing", "naming"])
@pytest.mark.usefixtures("pruned")
def test_a_full_disk_while_restoring(tmp_path, monkeypatch, what):
    where, name = {
        "copy": (trees.shutil, "copyfile"),
        "rows": (single, "write_at"),
        "flushing": (os, "fsync"),
        "naming": (type(tmp_path), "rename"),
    }[what]
    monkeypatch.setattr(where, name, no_space)
    refused(tmp_path, "no space left", error=OutputError)


@pytest.mark.usefixtures("pruned")
def test_an_interrupt_while_restoring(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        restore(tmp_path)
    nothing_left(tmp_path, "m", "o", "u")


@pytest.mark.usefixtures("pruned")
def test_room_for_the_whole_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(NemoPruneError, match=r"back: needs .* but the disk has 0 MB left"):
        restore(tmp_path)
    nothing_left(tmp_path, "m", "o", "u")
