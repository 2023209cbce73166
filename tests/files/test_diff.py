"""What differs between two files, against differences put in by hand; then the check of a manifest."""

import errno
import io
import json
import os
import random
import struct
import subprocess
import sys

import pytest
import rawfiles
from hypothesis import given
from hypothesis import strategies as st
from rawfiles import SD1, assemble, parse, unet, write
from test_surgery import CHOSEN, DOWN, KEYS, MID, TWINS, UP, prune, sha256

from nemo_prune.checkpoint.diff import compare_models, unremoved
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.open import open_checkpoint
from nemo_prune.errors import CheckpointError, ManifestError
from nemo_prune.files import diff as module
from nemo_prune.files.diff import Changed, Difference, Retyped, compare, describe, rows_text, to_json
from nemo_prune.files.header import read_header

SAME = Difference((), (), (), (), {}, (), False)
ENTRIES = [("a", "F32", (4, 3)), ("b", "F16", (6,)), ("c", "I8", ()), ("d", "U8", (2, 2, 2))]


def differ(one, two):
    return compare(read_header(one), read_header(two))


def build(path, header, data):
    path.write_bytes(assemble(json.dumps(header, separators=(",", ":")), data))
    return path


def poke(path, out, *places):
    """A copy with the bytes at `places` of the data changed."""
    _, raw, data = parse(path)
    data = bytearray(data)
    for place in places:
        data[place] ^= 0x40
    out.write_bytes(assemble(raw, bytes(data)))
    return out


@pytest.fixture
def one(tmp_path):
    return write(tmp_path / "a", ENTRIES, {"format": "pt", "k": "v"})


# ----------------------------------------------------------------------------------- comparing


def test_the_same_bytes(tmp_path, one):
    two = write(tmp_path / "b", ENTRIES, {"format": "pt", "k": "v"})
    assert differ(one, two) == SAME
    assert not differ(one, one)
    assert describe(SAME) == ["the files are the same bytes"]


@pytest.mark.parametrize("chunk", [1, 5, 4096])
def test_rows_and_bytes(tmp_path, one, monkeypatch, chunk):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    # a: rows of 12 bytes from 0; b: elements of 2 from 48; c: one byte at 60; d: rows of 4 from 61.
    two = poke(one, tmp_path / "b", 3, 4, 12, 47, 50, 51, 59, 60, 65, 68)
    found = differ(one, two)
    assert found == Difference(
        (), (), (),
        (
            Changed("a", "F32", (4, 3), 4, ((0, 1), (3, 3))),
            Changed("b", "F16", (6,), 3, ((1, 1), (5, 5))),
            Changed("c", "I8", (), 1, ((0, 0),)),
            Changed("d", "U8", (2, 2, 2), 2, ((1, 1),)),
        ),
        {}, (), False,
    )  # fmt: skip
    assert "'a' F32 [4, 3]: rows 0-1, 3, 4 bytes" in describe(found)
    assert to_json(found)["changed"][0]["rows"] == ((0, 1), (3, 3))


@given(
    st.sampled_from([("F32", (7, 3)), ("F16", (13,)), ("U8", (5, 2, 2)), ("I64", (3, 1))]),
    st.sets(st.integers(0, 30)),
    st.integers(1, 40),
)
def test_as_a_plain_comparison_says(tmp_path_factory, kind, places, chunk):
    folder = tmp_path_factory.mktemp("d")
    one = write(folder / "a", [("before", "U8", (3,)), ("x", *kind)])
    size = rawfiles.nbytes(*kind)
    places = {place % size for place in places}
    two = poke(one, folder / "b", *(3 + place for place in places))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", chunk)
        found = differ(one, two)
    width = size // kind[1][0]
    rows = {place // width for place in places}
    if not places:
        assert found == SAME
        return
    (changed,) = found.changed
    assert (changed.name, changed.bytes) == ("x", len(places))
    assert {r for first, last in changed.rows for r in range(first, last + 1)} == rows
    assert all(b[0] > a[1] + 1 for a, b in zip(changed.rows, changed.rows[1:], strict=False))


def test_packed_elements(tmp_path):
    """Two elements of F4 a byte, so that one byte belongs to two rows."""
    header = {"x": {"dtype": "F4", "shape": [4, 3], "data_offsets": [0, 6]}}
    one = build(tmp_path / "a", header, b"\1" * 6)
    for place, rows in {0: ((0, 0),), 1: ((0, 1),), 2: ((1, 1),), 4: ((2, 3),)}.items():
        (changed,) = differ(one, poke(one, tmp_path / "b", place)).changed
        assert (changed.rows, changed.bytes) == (rows, 1)


def test_tensors_in_one_file_only(tmp_path, one):
    two = write(tmp_path / "b", [ENTRIES[0], ("new\n", "F32", (1,))], {"format": "pt", "k": "v"})
    found = differ(one, two)
    assert (found.only_in_a, found.only_in_b) == (("b", "c", "d"), ("new\n",))
    assert found.changed == ()
    assert "only in the second: 'new\\n'" in describe(found)


def test_another_shape_or_dtype(tmp_path):
    one = write(tmp_path / "a", [("x", "F32", (2, 3)), ("y", "F16", (4,)), ("z", "U8", (0, 3))])
    two = write(tmp_path / "b", [("x", "F32", (3, 2)), ("y", "BF16", (4,)), ("z", "U8", (3, 0))])
    found = differ(one, two)
    assert [entry.name for entry in found.retyped] == ["x", "y", "z"]
    assert found.retyped[1] == Retyped("y", ("F16", (4,)), ("BF16", (4,)))
    assert to_json(found)["retyped"][1]["b"] == {"dtype": "BF16", "shape": (4,)}
    assert "'x': F32 [2, 3] in the first, F32 [3, 2] in the second" in describe(found)


def test_metadata(tmp_path, one):
    two = write(tmp_path / "b", ENTRIES, {"format": "np", "new": "\x1b[31m"})
    found = differ(one, two)
    assert found.metadata == {"format": ("pt", "np"), "k": ("v", None), "new": (None, "\x1b[31m")}
    assert to_json(found)["metadata"]["k"] == {"a": "v", "b": None}
    text = "\n".join(describe(found))
    assert "\x1b" not in text
    assert "metadata 'k': 'v' in the first, absent in the second" in text


def test_orders_and_spelling(tmp_path, one):
    header, raw, data = parse(one)
    listed = build(tmp_path / "b", dict(reversed(header.items())), data)
    assert differ(one, listed).orders == ("header",)
    told = build(tmp_path / "b", header | {"__metadata__": {"k": "v", "format": "pt"}}, data)
    assert differ(one, told).orders == ("metadata",)
    moved = json.loads(raw)
    moved["a"]["data_offsets"], moved["b"]["data_offsets"] = [12, 60], [0, 12]
    lying = build(tmp_path / "b", moved, data[48:60] + data[:48] + data[60:])
    assert differ(one, lying).orders == ("data",)
    assert differ(one, lying).changed == ()
    (tmp_path / "b").write_bytes(assemble(raw + b"  ", data))
    assert differ(one, tmp_path / "b") == Difference((), (), (), (), {}, (), True)
    poke(tmp_path / "b", tmp_path / "c", 0)
    assert differ(one, tmp_path / "c").spelling
    assert len(differ(one, tmp_path / "c").changed) == 1


def test_rows_text():
    assert rows_text(((3, 3),)) == "row 3"
    assert rows_text(((3, 4),)) == "rows 3-4"
    assert rows_text(((1, 1), (3, 9))) == "rows 1, 3-9"


@pytest.mark.parametrize("how", ["gone", "shorter", "longer", "other header", "touched", "unreadable"])
def test_a_file_that_changes_meanwhile(tmp_path, one, monkeypatch, how):
    two = poke(one, tmp_path / "b", 1)
    header = read_header(two)
    if how == "gone":
        two.unlink()
    elif how == "shorter":
        os.truncate(two, header.size - 1)
    elif how == "longer":
        os.truncate(two, header.size + 1)
    elif how == "other header":
        write(two, ENTRIES, {"format": "pt", "k": "w"})
    elif how == "touched":
        real = module._compare_tensor

        def meddling(*arguments):
            os.utime(two, ns=(1, 1))
            return real(*arguments)

        monkeypatch.setattr(module, "_compare_tensor", meddling)
    else:

        class Broken(io.BufferedReader):
            def read(self, size=-1):
                if self.tell():
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                return super().read(size)

        real = type(two).open
        fake = lambda path, mode: Broken(io.FileIO(path)) if path == two else real(path, mode)  # noqa: E731
        monkeypatch.setattr(type(two), "open", fake)
    with pytest.raises(CheckpointError, match=r"b: (changed while|cannot be read)") as caught:
        compare(read_header(one), header)
    assert "\n" not in str(caught.value)


def test_memory_does_not_grow_with_the_files(tmp_path):
    pytest.importorskip("resource")
    size = 200 * 2**20
    header = {"x": {"dtype": "U8", "shape": [size // 1024, 1024], "data_offsets": [0, size]}}
    for name in ("a", "b"):
        path = build(tmp_path / name, header, b"")
        os.truncate(path, path.stat().st_size + size)  # sparse
    with (tmp_path / "b").open("r+b") as file:
        file.seek(-300, os.SEEK_END)
        file.write(b"\1" * 300)
    code = (
        "import resource, sys\n"
        "from nemo_prune.files.diff import compare\n"
        "from nemo_prune.files.header import read_header\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "headers = [read_header(path) for path in sys.argv[1:]]\n"
        "before = peak()\n"
        "print(compare(*headers).changed[0].rows, peak() - before, sep=';')\n"
    )
    command = [sys.executable, "-c", code, tmp_path / "a", tmp_path / "b"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows, grown = done.stdout.split(";")
    assert rows == f"(({size // 1024 - 1}, {size // 1024 - 1}),)"
    assert int(grown) / (1024 if sys.platform == "darwin" else 1) < 50 * 1024


# ----------------------------------------------------------------------------------- expecting


def unexpected(path, out, neurons=CHOSEN):
    return compare_models(path, out, neurons).promise.unexpected


@pytest.fixture
def model(tmp_path):
    entries = unet(SD1, dtype="F16")
    entries += rawfiles.ema(entries, "F32")
    bias = KEYS[MID].removesuffix("weight") + "bias"
    entries += [(bias, "F16", (8,)), rawfiles.VAE]
    metadata = {
        "format": "pt", "modelspec.hash_sha256": "0xstale", "sshs_model_hash": "x", "title": "T",
        "nemo_prune.config": "{}",
    }  # fmt: skip
    return write(tmp_path / "m.safetensors", entries, metadata)


def test_what_the_rewriter_writes_is_as_expected(tmp_path, model):
    out = tmp_path / "o"
    prune(model, out)
    found = compare_models(model, out, CHOSEN).promise
    assert found.unexpected == ()
    assert found.rows == 4 * 2 + 1
    assert (found.a_sha256, found.b_sha256) == (sha256(model.read_bytes()), sha256(out.read_bytes()))
    assert found.describe()[-1].startswith("as expected: 9 rows")


def test_zeros_that_were_there_are_as_expected(tmp_path, model):
    prune(model, tmp_path / "a")
    prune(tmp_path / "a", tmp_path / "b", [*CHOSEN, Neuron(MID, 1)])
    assert unexpected(tmp_path / "a", tmp_path / "b", [*CHOSEN, Neuron(MID, 1)]) == ()
    # The second run names the first source, and that is as true as the direct one.
    assert unexpected(model, tmp_path / "b", [*CHOSEN, Neuron(MID, 1)]) == ()


def test_more_or_fewer_rows_than_promised(tmp_path, model):
    prune(model, tmp_path / "o")
    told = unexpected(model, tmp_path / "o", CHOSEN[1:])
    bias = KEYS[MID].removesuffix("weight") + "bias"
    assert set(told) == {f"changed: {name!r}, row 7" for name in (KEYS[MID], TWINS[MID], bias)}
    told = unexpected(model, tmp_path / "o", [*CHOSEN, Neuron(UP, 3)])
    assert set(told) == {f"not zero: {name!r}, row 3" for name in (KEYS[UP], TWINS[UP])}


def damaged(path, out, change):
    header, _, data = parse(path)
    data = bytearray(data)
    change(header, data)
    return build(out, header, bytes(data))


@pytest.mark.parametrize("kind", ["vae", "main", "twin", "bias", "minus zero"])
def test_any_other_byte_is_unexpected(tmp_path, model, kind):
    prune(model, tmp_path / "o")
    bias = KEYS[MID].removesuffix("weight") + "bias"
    name, row, value = {
        "vae": (rawfiles.VAE[0], 1, 0),
        "main": (KEYS[DOWN], 2, 0),
        "twin": (TWINS[UP], 2, 1),
        "bias": (bias, 7, 1),
        "minus zero": (KEYS[MID], 7, 0x80),
    }[kind]

    def change(header, data):
        start, end = header[name]["data_offsets"]
        width = (end - start) // header[name]["shape"][0]
        data[start + (row + 1) * width - 1] = value

    damaged(tmp_path / "o", tmp_path / "p", change)
    told = [line for line in unexpected(model, tmp_path / "p") if "metadata" not in line]
    how = {0: "changed", 1: "not zero", 0x80: "negative zeros, which pruning does not write"}[value]
    assert told == [f"{how}: {name!r}, row {row}"]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("title", "U", "metadata changed: 'title'"),
        ("added", "U", "metadata changed: 'added'"),
        ("nemo_prune.config", "{ }", "metadata changed: 'nemo_prune.config'"),
        ("nemo_prune.source_sha256", "0" * 64, "metadata untrue: nemo_prune.source_sha256"),
        ("modelspec.hash_sha256", "0xstale", "metadata untrue: modelspec.hash_sha256"),
    ],
)
def test_metadata_that_may_not_change(tmp_path, model, key, value, words):
    prune(model, tmp_path / "o")
    damaged(tmp_path / "o", tmp_path / "p", lambda h, _: h["__metadata__"].update({key: value}))
    (told,) = unexpected(model, tmp_path / "p")
    assert told.startswith(words)


def test_own_notes_may_say_anything_else(tmp_path, model):
    prune(model, tmp_path / "o")

    def change(header, _):
        header["__metadata__"] |= {"nemo_prune.tau": "1"}
        del header["__metadata__"]["nemo_prune.source_sha256"]

    damaged(tmp_path / "o", tmp_path / "p", change)
    assert unexpected(model, tmp_path / "p") == ()


def test_the_order_of_metadata(tmp_path):
    old = {"nemo_prune.version": "0", "title": "T", "nemo_prune.tau": "1", "author": "A"}
    path = rawfiles.sd1(tmp_path / "m", metadata=old)
    prune(path, tmp_path / "o")
    # Own notes move to the end, which is fine; others must stay as they were.
    assert differ(path, tmp_path / "o").orders == ("metadata",)
    assert unexpected(path, tmp_path / "o") == ()

    def turn(header, _):
        header["__metadata__"]["title"] = header["__metadata__"].pop("title")

    damaged(tmp_path / "o", tmp_path / "p", turn)
    assert unexpected(path, tmp_path / "p") == ("in another order: metadata",)


def test_other_tensors_and_orders_are_unexpected(tmp_path, model):
    prune(model, tmp_path / "o")

    def add(header, data):
        header["extra"] = {"dtype": "U8", "shape": [1], "data_offsets": [len(data), len(data) + 1]}
        data += b"\1"

    damaged(tmp_path / "o", tmp_path / "p", add)
    assert "only in the second file: 'extra'" in unexpected(model, tmp_path / "p")

    def turn(header, _):
        header[KEYS[DOWN]]["shape"].reverse()

    damaged(tmp_path / "o", tmp_path / "p", turn)
    assert f"of another shape or dtype: {KEYS[DOWN]!r}" in unexpected(model, tmp_path / "p")

    def drop(header, data):
        start, end = header.pop(rawfiles.VAE[0])["data_offsets"]
        assert end == len(data)
        del data[start:]

    damaged(tmp_path / "o", tmp_path / "p", drop)
    assert f"only in the first file: {rawfiles.VAE[0]!r}" in unexpected(model, tmp_path / "p")

    def shuffle(header, _):
        header["format"] = header.pop(KEYS[UP])
        header[KEYS[UP]] = header.pop("format")

    damaged(tmp_path / "o", tmp_path / "p", shuffle)
    assert unexpected(model, tmp_path / "p") == ("in another order: header",)


def test_a_twin_that_was_forgotten(tmp_path, model):
    """What a rewriter that knows nothing of EMA would write."""
    _, raw, data = parse(model)
    prune(model, tmp_path / "o")
    header, _, pruned = parse(tmp_path / "o")
    pruned = bytearray(pruned)
    for layer in (DOWN, MID, UP):
        start, end = header[TWINS[layer]]["data_offsets"]
        pruned[start:end] = data[start:end]
    (tmp_path / "o").write_bytes(assemble(raw, bytes(pruned)))
    told = unexpected(model, tmp_path / "o")
    assert len([line for line in told if "model_ema" in line]) == 4


@pytest.mark.parametrize("neuron", [Neuron("mid_block\n", 0), Neuron(MID, 8), Neuron(MID, -1)])
def test_a_manifest_for_another_model(model, neuron):
    with pytest.raises(ManifestError, match="made for another model") as caught:
        unexpected(model, model, [neuron])
    assert "\n" not in str(caught.value)


def test_random_damage_never_passes(tmp_path, model):
    prune(model, tmp_path / "o")
    content = (tmp_path / "o").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    rng = random.Random(1)
    for _ in range(30):
        damage = bytearray(content)
        damage[rng.randrange(8 + length, len(content))] ^= 1 << rng.randrange(8)
        (tmp_path / "p").write_bytes(damage)
        assert unexpected(model, tmp_path / "p")


def test_what_is_as_expected_is_removed(tmp_path, model):
    """Of a row that was zero in the source too, which both checks of a manifest accept."""
    prune(model, tmp_path / "a", CHOSEN[:1])
    prune(tmp_path / "a", tmp_path / "b", CHOSEN[1:])
    assert unexpected(tmp_path / "a", tmp_path / "b", CHOSEN) == ()
    assert unremoved(open_checkpoint(tmp_path / "b"), CHOSEN) == []


@pytest.mark.parametrize("keys", [KEYS, TWINS])
def test_what_is_not_removed_from_every_copy(tmp_path, model, keys):
    prune(model, tmp_path / "o")

    def fill(header, data):
        start, end = header[keys[MID]]["data_offsets"]
        data[start + 7 * (end - start) // 8] = 1

    damaged(tmp_path / "o", tmp_path / "p", fill)
    pruned = open_checkpoint(tmp_path / "p")
    others = [Neuron("mid_block.attentions.7", 0), Neuron(MID, 8), Neuron(MID, -1)]
    assert unremoved(pruned, [*CHOSEN, *others]) == sorted([Neuron(MID, 7), *others])
    told = [line for line in unexpected(model, tmp_path / "p") if "metadata" not in line]
    assert told == [f"not zero: {keys[MID]!r}, row 7"]
