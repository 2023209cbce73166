"""What was removed comes back, bit for bit, and only into the file that it was removed from."""

import json
import os
import shutil
import struct
from types import SimpleNamespace

import pytest
import rawfiles
from rawfiles import SD1, assemble, parse, unet, write
from safetensors import safe_open
from test_surgery import (
    CHOSEN,
    DOWN,
    KEYS,
    MID,
    TWINS,
    UP,
    chunks_of,
    no_space,
    nothing_left,
    prune,
    sha256,
)

from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.errors import CheckpointError, NemoPruneError, OutputError, UndoError
from nemo_prune.files import atomic as placing
from nemo_prune.files import rewrite
from nemo_prune.files import undo as module
from nemo_prune.files.undo import read_undo, restore


@pytest.fixture
def model(tmp_path):
    return rawfiles.sd1(tmp_path / "m", with_ema=True, metadata={"format": "pt", "k": "v"}, pad=5)


@pytest.fixture
def pruned(tmp_path, model):
    prune(model, tmp_path / "o", undo=tmp_path / "u")
    return tmp_path / "o"


def edit(path, change):
    """Change header and data of a file in place, by hand."""
    header, _, data = parse(path)
    data = bytearray(data)
    change(header, data)
    path.write_bytes(assemble(json.dumps(header, separators=(",", ":")), bytes(data)))


# ------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("pad", [0, 3])
@pytest.mark.parametrize("chunk", [7, 4096, None])
@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_there_and_back(tmp_path, monkeypatch, dtype, chunk, pad):
    if chunk:
        chunks_of(monkeypatch, chunk)
    metadata = {"modelspec.hash_sha256": "0xstale", "sshs_model_hash": "stale", "zeta": "\u4e2d"}
    path = rawfiles.sd1(tmp_path / "m", dtype, True, "F32", metadata, pad)
    prune(path, tmp_path / "o", undo=tmp_path / "u")
    restored = restore(tmp_path / "o", tmp_path / "u", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == path.read_bytes()
    assert restored.path == tmp_path / "back"
    assert restored.sha256 == sha256(path.read_bytes())
    assert restored.rows == 8


def test_biases_and_a_header_of_odd_spelling(tmp_path):
    entries = [*unet(SD1, "diffusers", "BF16"), (f"{MID}.bias", "F32", (8,))]
    path = write(tmp_path / "m", entries)
    header, _, data = parse(path)
    path.write_bytes(assemble(json.dumps(header, indent=1, ensure_ascii=True), data))
    prune(path, tmp_path / "o", undo=tmp_path / "u")
    assert restore(tmp_path / "o", tmp_path / "u", tmp_path / "back").rows == 4, (
        "a bias is no row of its own"
    )
    assert (tmp_path / "back").read_bytes() == path.read_bytes()


def test_step_by_step(tmp_path, model, pruned):
    """A file that was pruned twice goes back one run at a time."""
    second = tmp_path / "o2"
    prune(pruned, second, [Neuron(MID, 1)], undo=tmp_path / "u2")
    with pytest.raises(UndoError):
        restore(second, tmp_path / "u", tmp_path / "back")
    restore(second, tmp_path / "u2", tmp_path / "back2")
    assert (tmp_path / "back2").read_bytes() == pruned.read_bytes()
    restore(tmp_path / "back2", tmp_path / "u", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == model.read_bytes()


def test_no_neurons(tmp_path, model):
    prune(model, tmp_path / "o", (), undo=tmp_path / "u")
    assert restore(tmp_path / "o", tmp_path / "u", tmp_path / "back").rows == 0
    assert (tmp_path / "back").read_bytes() == model.read_bytes()


def test_what_is_kept(tmp_path, model, pruned):
    """Read by other programs: the rows, the first bytes of the source, hashes; nothing else."""
    header, _, data = parse(model)
    with safe_open(tmp_path / "u", "pt") as file:
        kept = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        assert kept[KEYS[DOWN]].get_shape() == [2, 5]
        assert kept[KEYS[DOWN]].get_dtype() == "F16"
        metadata = file.metadata()
    names = {names[layer] for names in (KEYS, TWINS) for layer in (DOWN, MID, UP)}
    assert kept.keys() == {"nemo_prune_undo.header", *names}
    held, _, rows = parse(tmp_path / "u")
    start, _ = header[KEYS[MID]]["data_offsets"]
    first, last = held[KEYS[MID]]["data_offsets"]
    assert rows[first:last] == data[start + 70 : start + 80]
    first, last = held["nemo_prune_undo.header"]["data_offsets"]
    assert rows[first:last] == model.read_bytes()[: -len(data)]
    assert json.loads(metadata["nemo_prune_undo.rows"])[KEYS[DOWN]] == [0, 1]
    assert metadata["nemo_prune_undo.source_sha256"] == sha256(model.read_bytes())
    assert metadata["nemo_prune_undo.output_sha256"] == sha256(pruned.read_bytes())
    assert len(metadata) == 4
    nothing_left(tmp_path, "m", "o", "u")


# ------------------------------------------------------------------------- refusals in writing


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_undo_file_is_never_replaced(tmp_path, model, overwrite):
    (tmp_path / "u").write_text("precious")
    with pytest.raises(OutputError, match=r"u: exists already, and undo files are never replaced"):
        prune(model, tmp_path / "o", undo=tmp_path / "u", overwrite=overwrite)
    assert (tmp_path / "u").read_text() == "precious"
    nothing_left(tmp_path, "m", "u")


def test_two_names_are_needed(tmp_path, model):
    for undo in (tmp_path / "o", tmp_path / ".." / tmp_path.name / "o"):
        with pytest.raises(OutputError, match="give two names"):
            prune(model, tmp_path / "o", undo=undo)
    with pytest.raises(OutputError, match="exists already"):
        prune(model, tmp_path / "o", undo=model)
    with pytest.raises(OutputError, match="create it first"):
        prune(model, tmp_path / "o", undo=tmp_path / "none" / "u")
    nothing_left(tmp_path, "m")


def test_neither_file_without_the_other(tmp_path, model, monkeypatch):
    real = module.write_at
    monkeypatch.setattr(module, "write_at", no_space)
    with pytest.raises(OutputError, match="u: cannot be written"):
        prune(model, tmp_path / "o", undo=tmp_path / "u")
    nothing_left(tmp_path, "m")
    monkeypatch.setattr(module, "write_at", real)

    taking = placing.take_name

    def refusing(temporary, out, overwrite):
        if out.name == "o":
            assert (tmp_path / "u").exists()
            no_space()
        taking(temporary, out, overwrite)

    monkeypatch.setattr(placing, "take_name", refusing)
    with pytest.raises(OutputError, match="o: cannot be written"):
        prune(model, tmp_path / "o", undo=tmp_path / "u")
    nothing_left(tmp_path, "m")


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_interrupt_keeps_the_rows_only_with_the_output(tmp_path, model, monkeypatch, moment):
    taking = placing.take_name

    def interrupted(temporary, out, overwrite):
        if out.name == "u" or moment == "after":
            taking(temporary, out, overwrite)
        if out.name == "o":
            raise KeyboardInterrupt

    monkeypatch.setattr(placing, "take_name", interrupted)
    (tmp_path / "o").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        prune(model, tmp_path / "o", undo=tmp_path / "u", overwrite=True)
    if moment == "before":
        assert (tmp_path / "o").read_text() == "old"
        nothing_left(tmp_path, "m", "o")
    else:
        restore(tmp_path / "o", tmp_path / "u", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == model.read_bytes()


def test_room_is_checked_for_both_files(tmp_path, model, monkeypatch):
    """The room for the model alone is not enough for its undo file too."""
    needed = model.stat().st_size
    for free, words, undo in (
        (needed - 1, "o: needs 1 MB but the disk has 0 MB left", None),
        (needed + 9, "u: needs 1 MB but the disk has 0 MB left", tmp_path / "u"),
    ):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        with pytest.raises(OutputError, match=words):
            prune(model, tmp_path / "o", undo=undo)
        assert [path.name for path in tmp_path.iterdir()] == ["m"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * needed))
    prune(model, tmp_path / "o", undo=tmp_path / "u")


def test_the_undo_file_is_there_first(tmp_path, model, monkeypatch):
    real, seen = placing.take_name, []

    def taking(temporary, out, overwrite):
        seen.append((out.name, sorted(p.name for p in tmp_path.iterdir() if p.name[0] != ".")))
        real(temporary, out, overwrite)

    monkeypatch.setattr(placing, "take_name", taking)
    prune(model, tmp_path / "o", undo=tmp_path / "u")
    assert seen == [("u", ["m"]), ("o", ["m", "u"])]


@pytest.mark.parametrize("place", [3, 100, -1])
def test_a_disk_that_garbles_the_undo_file(tmp_path, model, monkeypatch, place):
    real = module.read_at
    touched = []

    def garbling(file, start, end):
        if not touched:
            size = file.seek(0, os.SEEK_END)
            file.seek(place % size)
            byte = file.read(1)
            file.seek(place % size)
            file.write(bytes([byte[0] ^ 1]))
            touched.append(place)
        return real(file, start, end)

    monkeypatch.setattr(module, "read_at", garbling)
    with pytest.raises(OutputError, match="u: what was read back is not"):
        prune(model, tmp_path / "o", undo=tmp_path / "u")
    nothing_left(tmp_path, "m")


# ------------------------------------------------------------------------ refusals in restoring


@pytest.mark.parametrize(
    "kind", ["source", "stranger", "other neurons", "one bit", "metadata", "no metadata", "smaller"]
)
def test_a_file_that_the_rows_are_not_from(tmp_path, model, pruned, kind):
    wrong = tmp_path / "w"
    wrong.write_bytes(pruned.read_bytes())
    if kind == "source":
        wrong = model
    elif kind == "stranger":
        rawfiles.sd1(wrong, seed=1)
    elif kind == "other neurons":
        prune(model, wrong, CHOSEN[1:], overwrite=True)
    elif kind == "one bit":
        content = bytearray(wrong.read_bytes())
        content[-1] ^= 1
        wrong.write_bytes(content)
    elif kind == "metadata":
        edit(wrong, lambda h, _: h["__metadata__"].update(k="w"))
    elif kind == "no metadata":
        edit(wrong, lambda h, _: h.pop("__metadata__"))
    else:
        told = parse(wrong)[0]["__metadata__"]
        write(wrong, [(KEYS[MID], "F16", (3, 5))], told)
    with pytest.raises(UndoError, match=r"is not the file that .*u belongs to") as caught:
        restore(wrong, tmp_path / "u", tmp_path / "back")
    assert str(caught.value).startswith(f"{wrong}: ")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "back").exists()


def metadata(key, value):
    return lambda h, _: h["__metadata__"].update({"nemo_prune_undo." + key: value})


@pytest.mark.parametrize(
    "change",
    [
        lambda h, _: h.pop("__metadata__"),
        metadata("rows", "{"),
        metadata("rows", "[]"),
        metadata("rows", "[" * 9999),
        metadata("rows", "{}"),
        metadata("rows", json.dumps({KEYS[DOWN]: [0]})),
        metadata("source_sha256", "x"),
        metadata("output_sha256", "A" * 64),
        lambda h, _: h.update(other=h.pop("nemo_prune_undo.header")),
        lambda h, _: h["nemo_prune_undo.header"].update(dtype="I8"),
        lambda h, _: h[KEYS[DOWN]].update(shape=[5, 2]),
        lambda h, _: h["__metadata__"].update(
            {"nemo_prune_undo.rows": h["__metadata__"]["nemo_prune_undo.rows"].replace("[0,1]", "[1,0]")}
        ),
        lambda h, _: h["__metadata__"].update(
            {"nemo_prune_undo.rows": h["__metadata__"]["nemo_prune_undo.rows"].replace("[7]", "[true]")}
        ),
    ],
)
def test_what_is_no_undo_file(tmp_path, pruned, change):
    edit(tmp_path / "u", change)
    with pytest.raises(UndoError, match="u: is not a file that undo wrote") as caught:
        restore(pruned, tmp_path / "u", tmp_path / "back")
    assert "\n" not in str(caught.value)
    nothing_left(tmp_path, "m", "o", "u")


def test_other_files_for_an_undo_file(tmp_path, model, pruned):
    with pytest.raises(UndoError, match="is not a file that undo wrote"):
        restore(pruned, model, tmp_path / "back")
    with pytest.raises(CheckpointError, match="no such file"):
        restore(pruned, tmp_path / "none", tmp_path / "back")
    (tmp_path / "u").write_bytes((tmp_path / "u").read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated"):
        restore(pruned, tmp_path / "u", tmp_path / "back")


@pytest.mark.parametrize("what", ["rows", "header", "row numbers", "past the end"])
def test_an_undo_file_that_was_damaged(tmp_path, pruned, what):
    def change(header, data):
        if what == "rows":
            data[-1] ^= 1
        elif what == "header":
            data[header["nemo_prune_undo.header"]["data_offsets"][0] + 9] ^= 1
        else:
            told = header["__metadata__"]
            rows = json.loads(told["nemo_prune_undo.rows"])
            rows[KEYS[UP]] = [3 if what == "row numbers" else 4]
            told["nemo_prune_undo.rows"] = json.dumps(rows)

    edit(tmp_path / "u", change)
    words = "not the file that" if what == "past the end" else "does not bring back"
    with pytest.raises(UndoError, match=words) as caught:
        restore(pruned, tmp_path / "u", tmp_path / "back")
    assert "\n" not in str(caught.value)
    nothing_left(tmp_path, "m", "o", "u")


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_may_not_be_the_restored_file(tmp_path, pruned, overwrite):
    (tmp_path / "link").symlink_to(tmp_path / "u")
    for out, words in {
        pruned: "is the model itself",
        tmp_path / "u": "is the undo file itself",
        tmp_path / "link": "is the undo file itself",
        tmp_path / "none" / "back": "create it first",
    }.items():
        before = [(tmp_path / name).read_bytes() for name in "ou"]
        with pytest.raises(OutputError, match=words):
            restore(pruned, tmp_path / "u", out, overwrite)
        assert [(tmp_path / name).read_bytes() for name in "ou"] == before


def test_what_exists_is_kept_unless_told_otherwise(tmp_path, model, pruned):
    before = model.stat().st_ino
    with pytest.raises(OutputError, match="exists already"):
        restore(pruned, tmp_path / "u", model)
    restore(pruned, tmp_path / "u", model, overwrite=True)
    assert model.stat().st_ino != before
    nothing_left(tmp_path, "m", "o", "u")


@pytest.mark.parametrize(("where", "name"), [(os, "fsync"), (rewrite, "write_at")])
def test_a_full_disk(tmp_path, pruned, monkeypatch, where, name):
    monkeypatch.setattr(where, name, no_space)
    with pytest.raises(OutputError, match="no space left"):
        restore(pruned, tmp_path / "u", tmp_path / "back")
    nothing_left(tmp_path, "m", "o", "u")


def test_a_pruned_file_that_changes_meanwhile(tmp_path, pruned, monkeypatch):
    real = module.copy

    def meddling(*arguments):
        real(*arguments)
        os.utime(pruned, ns=(1, 1))

    monkeypatch.setattr(module, "copy", meddling)
    with pytest.raises(NemoPruneError, match="changed while it was read"):
        restore(pruned, tmp_path / "u", tmp_path / "back")
    nothing_left(tmp_path, "m", "o", "u")


def test_read_undo(tmp_path, model, pruned):
    found = read_undo(tmp_path / "u")
    assert found.rows == {
        names[layer]: rows
        for names in (KEYS, TWINS)
        for layer, rows in {DOWN: [0, 1], MID: [7], UP: [2]}.items()
    }
    assert (found.source_sha256, found.output_sha256) == (
        sha256(model.read_bytes()), sha256(pruned.read_bytes())
    )  # fmt: skip
    (length,) = struct.unpack("<Q", (tmp_path / "u").read_bytes()[:8])
    assert length % 8 == 0
