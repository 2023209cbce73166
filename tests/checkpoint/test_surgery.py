import errno
import hashlib
import json
import os
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rawfiles
from rawfiles import SD1, unet, write
from safetensors import safe_open

from nemo_prune import __version__
from nemo_prune.checkpoint.apply import write_model
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.provenance import provenance_of
from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.checkpoint.zeros import model_zeros
from nemo_prune.errors import CheckpointError, ManifestError, OutputError
from nemo_prune.files import hashing as hashes
from nemo_prune.files import rewrite
from nemo_prune.files.hashing import file_sha256
from nemo_prune.files.header import read_header

END = ".transformer_blocks.0.attn2.to_v"
DOWN, MID, UP = (
    stem + END
    for stem in ("down_blocks.0.attentions.0", "mid_block.attentions.0", "up_blocks.3.attentions.2")
)
CHOSEN = (Neuron(MID, 7), Neuron(DOWN, 0), Neuron(DOWN, 1), Neuron(UP, 2))
# Written out rather than asked of the package: main keys, then those of the moving average.
KEYS = {
    DOWN: f"model.diffusion_model.input_blocks.1.1{END}.weight",
    MID: f"model.diffusion_model.middle_block.1{END}.weight",
    UP: f"model.diffusion_model.output_blocks.11.1{END}.weight",
}
TWINS = {
    DOWN: "model_ema.diffusion_modelinput_blocks11transformer_blocks0attn2to_vweight",
    MID: "model_ema.diffusion_modelmiddle_block1transformer_blocks0attn2to_vweight",
    UP: "model_ema.diffusion_modeloutput_blocks111transformer_blocks0attn2to_vweight",
}


def prune(path, out, neurons=CHOSEN, provenance=None, **options):
    options.setdefault("hashed", True)
    return write_model(recognize(path), neurons, out, provenance or {}, **options)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def expected_data(path, neurons, keys):
    """The source's data with rows overwritten, worked out from the raw file."""
    header, _, data = rawfiles.parse(path)
    data = bytearray(data)
    for layer, row in neurons:
        for name in keys[layer]:
            start, end = header[name]["data_offsets"]
            width = (end - start) // header[name]["shape"][0]
            data[start + row * width : start + (row + 1) * width] = b"\0" * width
    return bytes(data)


def check_bytes(path, out, keys, neurons=CHOSEN):
    """Exactly the listed rows differ; the header lists the same tensors in the same order."""
    want = expected_data(path, [(n.layer, n.row) for n in neurons], keys)
    old, _, source = rawfiles.parse(path)
    new, raw, data = rawfiles.parse(out)
    assert data == want
    assert data != source
    old.pop("__metadata__", None)
    new.pop("__metadata__")
    assert list(new.items()) == list(old.items())
    assert raw[:2] == b'{"'
    assert b"\n" not in raw
    assert len(raw) % 8 == 0


def nothing_left(tmp_path, *names):
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)


@pytest.fixture
def model(tmp_path):
    return rawfiles.sd1(tmp_path / "m.safetensors", metadata={"format": "pt"})


# ------------------------------------------------------------------------------ what is written


@pytest.mark.parametrize("pad", [0, 3])
@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_exactly_the_rows_are_zeroed(tmp_path, dtype, pad):
    path = rawfiles.sd1(tmp_path / "m.safetensors", dtype, pad=pad)
    before = path.read_bytes()
    out = tmp_path / "o.safetensors"
    written = prune(path, out)
    check_bytes(path, out, {layer: [key] for layer, key in KEYS.items()})
    assert path.read_bytes() == before
    assert written.path == out
    assert written.source_sha256 == sha256(before) == file_sha256(path)
    assert written.sha256 == sha256(out.read_bytes()) == file_sha256(out)
    assert (written.neurons, written.rows_zeroed) == (4, 4)
    assert written.bytes_changed == 4 * 5 * rawfiles.SIZES[dtype]
    nothing_left(tmp_path, "m.safetensors", "o.safetensors")


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_ema_twins(tmp_path, dtype):
    path = rawfiles.sd1(tmp_path / "m.safetensors", with_ema=True, ema_dtype=dtype)
    out = tmp_path / "o.safetensors"
    written = prune(path, out)
    check_bytes(path, out, {layer: [KEYS[layer], TWINS[layer]] for layer in KEYS})
    assert (written.neurons, written.rows_zeroed) == (4, 8)
    assert written.bytes_changed == 4 * 5 * (2 + rawfiles.SIZES[dtype])


def test_biases(tmp_path):
    entries = unet(SD1, "diffusers", "BF16")
    entries += [(f"{MID}.bias", "F32", (8,)), (f"{MID}.scale_weight", "F32", ())]
    path, out = write(tmp_path / "m.safetensors", entries), tmp_path / "o.safetensors"
    written = prune(path, out)
    keys = {DOWN: [f"{DOWN}.weight"], MID: [f"{MID}.weight", f"{MID}.bias"], UP: [f"{UP}.weight"]}
    check_bytes(path, out, keys)
    assert written.rows_zeroed == 4
    assert written.bytes_changed == 4 * 5 * 2 + 4


def chunks_of(monkeypatch, size):
    for module in (rewrite, hashes):
        monkeypatch.setattr(module, "_CHUNK", size)
    monkeypatch.setattr(rewrite, "_SEGMENT", max(2 * size, 8192))  # each is flushed to the disk


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000, 4096])
def test_ranges_across_chunks(tmp_path, model, monkeypatch, chunk):
    chunks_of(monkeypatch, chunk)
    written = prune(model, tmp_path / "o")
    check_bytes(model, tmp_path / "o", {layer: [key] for layer, key in KEYS.items()})
    assert written.sha256 == sha256((tmp_path / "o").read_bytes())
    assert written.bytes_changed == 4 * 5 * 2


def test_zeros_that_were_there_are_not_changes(tmp_path, model):
    prune(model, tmp_path / "a")
    again = prune(tmp_path / "a", tmp_path / "b")
    assert (again.rows_zeroed, again.bytes_changed) == (4, 0)
    assert rawfiles.parse(tmp_path / "a")[2] == rawfiles.parse(tmp_path / "b")[2]


def test_no_neurons_give_a_copy(tmp_path, model):
    written = prune(model, tmp_path / "o", ())
    assert rawfiles.parse(tmp_path / "o")[2] == rawfiles.parse(model)[2]
    assert (written.neurons, written.rows_zeroed, written.bytes_changed) == (0, 0, 0)


def test_the_same_run_gives_the_same_file(tmp_path, model):
    first = prune(model, tmp_path / "a", CHOSEN, {"tau": "0.4"})
    second = prune(model, tmp_path / "b", CHOSEN[::-1], {"tau": "0.4"})
    assert first.sha256 == second.sha256


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_the_library_reads_the_result(tmp_path, dtype):
    path = rawfiles.sd1(tmp_path / "m.safetensors", dtype, with_ema=True)
    prune(path, tmp_path / "o.safetensors")
    with (
        safe_open(path, "pt") as old,
        safe_open(tmp_path / "o.safetensors", "pt") as new,
    ):
        assert list(new.keys()) == list(old.keys())
        for key in old.keys():  # noqa: SIM118
            a, b = old.get_slice(key), new.get_slice(key)
            assert (a.get_shape(), a.get_dtype()) == (b.get_shape(), b.get_dtype())
        weight = new.get_tensor(KEYS[DOWN]).float()
        assert weight.abs().sum(dim=1).gt(0).tolist() == [False, False, True, True]


@pytest.mark.skipif(rewrite.fcntl is None, reason="no ioctl")
@pytest.mark.parametrize("misaligned", [0, 3])
def test_shared_blocks(tmp_path, monkeypatch, misaligned):
    """A file system that shares blocks, acted by one that asks for the same and then copies."""
    path = rawfiles.sd1(tmp_path / "m.safetensors", "F64")
    rawfiles.sd1(path, "F64", pad=-len_of(path) % 8 + misaligned)
    want = prune(path, tmp_path / "a").sha256
    shared = []

    def sharing(target, request, wanted):
        source, start, count, place = struct.unpack("=qQQQ", wanted)
        assert request == 0x4020940D
        if start % 4096 or place % 4096 or start + count != path.stat().st_size:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        os.pwrite(target, os.pread(source, count, start), place)
        shared.append(count)

    monkeypatch.setattr(rewrite.fcntl, "ioctl", sharing)
    assert prune(path, tmp_path / "b").sha256 == want
    # All but the part of a block that the header begins; where data are not aligned, nothing.
    assert shared == ([] if misaligned else [path.stat().st_size - -(-len_of(path) // 4096) * 4096])


def len_of(path):
    return 8 + len(rawfiles.parse(path)[1])


@pytest.mark.skipif(rewrite.fcntl is None, reason="no ioctl")
@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL])
def test_blocks_that_cannot_be_shared_are_copied(tmp_path, model, monkeypatch, code):
    want = prune(model, tmp_path / "a").sha256
    calls = []

    def refusing(*arguments):
        calls.append(arguments)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(rewrite.fcntl, "ioctl", refusing)
    assert prune(model, tmp_path / "b").sha256 == want
    assert len(calls) == 1
    monkeypatch.setattr(rewrite, "fcntl", None)
    assert prune(model, tmp_path / "c").sha256 == want
    assert len(calls) == 1


def test_the_blocks_lie_alike(tmp_path):
    """Where the file system shares blocks between files, it can: the data lie alike in theirs."""
    for extra in range(0, 9000, 750):
        path = rawfiles.sd1(tmp_path / "m.safetensors", metadata={"x": "x" * extra})
        old = len(rawfiles.parse(path)[1]) + 8
        # As the library pads it.
        path = rawfiles.sd1(path, metadata={"x": "x" * extra}, pad=-old % 8)
        prune(path, tmp_path / "o", overwrite=True)
        starts = [8 + len(rawfiles.parse(p)[1]) for p in (path, tmp_path / "o")]
        assert starts[0] % 8 == 0
        assert (starts[1] - starts[0]) % 4096 == 0
        assert starts[1] >= starts[0]


@pytest.mark.skipif(os.name == "nt", reason="no umask")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
@pytest.mark.parametrize("mode", [0o666, 0o600])
def test_the_mode_is_the_sources_within_the_umask(tmp_path, model, mask, mode):
    model.chmod(mode)
    old = os.umask(mask)
    try:
        prune(model, tmp_path / "o")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "o").stat().st_mode) == mode & ~mask


def test_memory_does_not_grow_with_the_file(tmp_path):
    pytest.importorskip("resource")
    entries = [*unet(SD1, dtype="F16"), ("first_stage_model.big", "U8", (200 * 2**20,))]
    path = write(tmp_path / "m.safetensors", entries[:-1])
    header, _, data = rawfiles.parse(path)
    size = entries[-1][2][0]
    header[entries[-1][0]] = {
        "dtype": "U8",
        "shape": [size],
        "data_offsets": [len(data), len(data) + size],
    }
    path.write_bytes(rawfiles.assemble(json.dumps(header, separators=(",", ":")), data))
    os.truncate(path, path.stat().st_size + size)  # sparse
    code = (
        "import resource, sys\n"
        "from nemo_prune.checkpoint.recognize import recognize\n"
        "from nemo_prune.checkpoint.neurons import Neuron\n"
        "from nemo_prune.checkpoint.apply import write_model\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "checkpoint = recognize(sys.argv[1])\n"
        "before = peak()\n"
        f"write_model(checkpoint, [Neuron({MID!r}, 7)], sys.argv[2], {{}})\n"
        "print(peak() - before)\n"
    )
    command = [sys.executable, "-c", code, path, tmp_path / "o"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    per_kib = 1024 if sys.platform == "darwin" else 1
    assert int(done.stdout) / per_kib < 50 * 1024


# ------------------------------------------------------------------------------------- metadata


def test_metadata_is_kept_in_order_and_extended(tmp_path):
    config = '{"unet":{"attention_head_dim":4}}'
    old = {
        "format": "pt",
        "zeta": 'ä 中 \U0001f600 \\ " \n',
        "sshs_model_hash": "old",
        "modelspec.title": "T",
        "nemo_prune.config": config,
        "sshs_legacy_hash": "old",
        "alpha": "",
    }
    path = rawfiles.sd1(tmp_path / "m.safetensors", metadata=old)
    prune(path, tmp_path / "o", CHOSEN, {"tau": "0.4", "nemo_prune.criterion": "paper"})
    metadata = rawfiles.parse(tmp_path / "o")[0]["__metadata__"]
    assert list(metadata.items()) == [
        ("format", "pt"),
        ("zeta", old["zeta"]),
        ("modelspec.title", "T"),
        ("nemo_prune.config", config),
        ("alpha", ""),
        ("nemo_prune.version", __version__),
        ("nemo_prune.source_sha256", sha256(path.read_bytes())),
        ("nemo_prune.neurons", f'{{"{DOWN}":[0,1],"{MID}":[7],"{UP}":[2]}}'),
        ("nemo_prune.tau", "0.4"),
        ("nemo_prune.criterion", "paper"),
    ]
    told = provenance_of(read_header(tmp_path / "o").metadata)
    assert told == {k: v for k, v in metadata.items() if k.startswith("nemo_prune.")}
    assert rawfiles.parse(tmp_path / "o")[1].startswith(b'{"__metadata__":{"format":"pt",')


def test_no_metadata_before(tmp_path):
    path = rawfiles.sd1(tmp_path / "m.safetensors")
    assert provenance_of(read_header(path).metadata) == {}
    prune(path, tmp_path / "o")
    told = provenance_of(read_header(tmp_path / "o").metadata)
    assert list(told) == [f"nemo_prune.{k}" for k in ("version", "source_sha256", "neurons")]


def test_nothing_but_what_was_handed_in_is_told(tmp_path, model):
    """No prompt, path or host can come in: the metadata is what the three arguments say."""
    prune(model, tmp_path / "o", CHOSEN, {"prompts": "2"})
    raw = rawfiles.parse(tmp_path / "o")[1]
    assert str(tmp_path).encode() not in raw
    assert set(provenance_of(read_header(tmp_path / "o").metadata)) == {
        f"nemo_prune.{k}" for k in ("version", "source_sha256", "neurons", "prompts")
    }


@pytest.mark.parametrize("key", ["neurons", "nemo_prune.version", "config", "source_sha256"])
def test_reserved_keys(tmp_path, model, key):
    with pytest.raises(ValueError, match=f"cannot set {key}"):
        prune(model, tmp_path / "o", CHOSEN, {key: "x"})
    nothing_left(tmp_path, "m.safetensors")


@pytest.mark.parametrize("chunk", [2**20, 11])
def test_modelspec_hash_is_computed_anew(tmp_path, monkeypatch, chunk):
    chunks_of(monkeypatch, chunk)
    metadata = {"modelspec.hash_sha256": "0xstale", "modelspec.title": "T"}
    path = rawfiles.sd1(tmp_path / "m.safetensors", metadata=metadata)
    written = prune(path, tmp_path / "o")
    content = (tmp_path / "o").read_bytes()
    data = content[8 + struct.unpack("<Q", content[:8])[0] :]
    new = rawfiles.parse(tmp_path / "o")[0]["__metadata__"]
    assert new["modelspec.hash_sha256"] == "0x" + sha256(data)
    assert list(new)[:2] == list(metadata)
    assert written.sha256 == sha256(content)


def test_a_file_pruned_before(tmp_path, model):
    first = prune(model, tmp_path / "a", [Neuron(MID, 3), Neuron(UP, 0)], {"tau": "0.4"})
    second = prune(tmp_path / "a", tmp_path / "b", [Neuron(MID, 1), Neuron(UP, 0)], {"tau": "0.5"})
    third = prune(tmp_path / "b", tmp_path / "c", [Neuron(DOWN, 2)])
    metadata = rawfiles.parse(tmp_path / "c")[0]["__metadata__"]
    assert json.loads(metadata["nemo_prune.neurons"]) == {DOWN: [2], MID: [1, 3], UP: [0]}
    assert list(json.loads(metadata["nemo_prune.neurons"])) == [DOWN, MID, UP]
    assert metadata["nemo_prune.source_sha256"] == second.sha256 == third.source_sha256
    assert metadata["nemo_prune.original_sha256"] == first.source_sha256
    # It was the threshold of the run before.
    assert "nemo_prune.tau" not in metadata
    rows = [(DOWN, 2), (MID, 1), (MID, 3), (UP, 0)]
    want = expected_data(model, rows, {layer: [key] for layer, key in KEYS.items()})
    assert rawfiles.parse(tmp_path / "c")[2] == want


@pytest.mark.parametrize("where", ["main", "twin"])
def test_rows_that_were_filled_again_are_named_no_more(tmp_path, where):
    path = rawfiles.sd1(tmp_path / "m.safetensors", with_ema=True)
    prune(path, tmp_path / "a", [Neuron(MID, 3), Neuron(UP, 0)])
    header, raw, data = rawfiles.parse(tmp_path / "a")
    start = header[(KEYS if where == "main" else TWINS)[MID]]["data_offsets"][0]
    data = bytearray(data)
    data[start + 3 * 10 + 9] = 1  # as a merge, or a training, may do
    (tmp_path / "a").write_bytes(rawfiles.assemble(raw, bytes(data)))
    prune(tmp_path / "a", tmp_path / "b", [Neuron(DOWN, 2)])
    told = rawfiles.parse(tmp_path / "b")[0]["__metadata__"]
    assert json.loads(told["nemo_prune.neurons"]) == {DOWN: [2], UP: [0]}
    # What the first run started from is not what the second's file is missing these rows of.
    assert "nemo_prune.original_sha256" not in told
    assert told["nemo_prune.source_sha256"] == sha256((tmp_path / "a").read_bytes())


def test_notes_about_layers_of_another_model_are_dropped(tmp_path):
    note = json.dumps({"mid_block.attentions.7": [0], MID: [0, 800]})
    path = rawfiles.sd1(tmp_path / "m.safetensors", metadata={"nemo_prune.neurons": note})
    prune(path, tmp_path / "o", [Neuron(DOWN, 2)])
    told = provenance_of(read_header(tmp_path / "o").metadata)
    assert json.loads(told["nemo_prune.neurons"]) == {DOWN: [2]}


def test_what_earlier_runs_noted_is_not_carried_over(tmp_path):
    config = '{"unet":{}}'
    old = {"nemo_prune.tau": "0.4", "nemo_prune.config": config, "nemo_prune.prompts": "9"}
    path = rawfiles.sd1(tmp_path / "m.safetensors", metadata=old)
    prune(path, tmp_path / "o", provenance={"prompts": "1"})
    told = provenance_of(read_header(tmp_path / "o").metadata)
    assert set(told) == {
        f"nemo_prune.{k}" for k in ("config", "version", "source_sha256", "neurons", "prompts")
    }
    assert (told["nemo_prune.config"], told["nemo_prune.prompts"]) == (config, "1")


def test_half_a_surrogate_pair_in_provenance_is_spelt_out(tmp_path, model):
    prune(model, tmp_path / "o", provenance={"tau": "0.4\ud800", "k\udfff": "x"})
    told = provenance_of(read_header(tmp_path / "o").metadata)
    assert told["nemo_prune.tau"] == "0.4\\ud800"
    assert told["nemo_prune.k\\udfff"] == "x"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"a":1}',
        '{"a":[-1]}',
        '{"a":["x"]}',
        '{"a":[true]}',
        '{"\\ud800":[0]}',
        "[" * 9999,
    ],
)
def test_damaged_notes_of_an_earlier_run(tmp_path, text):
    path = rawfiles.sd1(tmp_path / "m.safetensors", metadata={"nemo_prune.neurons": text})
    with pytest.raises(CheckpointError, match=r"damaged metadata nemo_prune\.neurons"):
        prune(path, tmp_path / "o")
    nothing_left(tmp_path, "m.safetensors")


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("neurons", "words"),
    [
        ([Neuron("mid_block\n", 0)], r"has no value layer 'mid_block\\n'"),
        ([Neuron(MID, 0), Neuron(MID, 8)], "has rows 0 to 7, not 8"),
        ([Neuron(MID, -1)], "has rows 0 to 7, not -1"),
        ([Neuron(MID, 1), Neuron(UP, 1), Neuron(MID, 1)], "row 1 of mid.* twice"),
    ],
)
def test_neurons_that_do_not_fit(tmp_path, model, neurons, words):
    with pytest.raises(ManifestError, match=words) as caught:
        prune(model, tmp_path / "o", neurons)
    assert "\n" not in str(caught.value)
    nothing_left(tmp_path, "m.safetensors")


@pytest.mark.parametrize("kind", ["path", "dotted", "symlink", "hardlink"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_the_model_itself_is_never_the_output(tmp_path, model, kind, overwrite):
    before = model.read_bytes()
    out = tmp_path / "o"
    if kind == "path":
        out = model
    elif kind == "dotted":
        out = tmp_path / ".." / tmp_path.name / model.name
    elif kind == "symlink":
        out.symlink_to(model)
    else:
        out.hardlink_to(model)
    with pytest.raises(OutputError, match="is the model itself"):
        prune(model, out, overwrite=overwrite)
    assert model.read_bytes() == before


def test_what_exists_is_kept_unless_told_otherwise(tmp_path, model):
    out = tmp_path / "o"
    out.write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        prune(model, out)
    assert out.read_text() == "precious"
    written = prune(model, out, overwrite=True)
    assert sha256(out.read_bytes()) == written.sha256
    nothing_left(tmp_path, "m.safetensors", "o")


# ------------------------------------------------------------------------------------- failures


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(("where", "name"), [(os, "fsync"), (rewrite, "write_at")])
def test_a_full_disk(tmp_path, model, monkeypatch, where, name, overwrite):
    before = model.read_bytes()
    out = tmp_path / "o"
    if overwrite:
        out.write_text("precious")
    monkeypatch.setattr(where, name, no_space)
    with pytest.raises(OutputError, match="no space left") as caught:
        prune(model, out, overwrite=overwrite)
    assert "\n" not in str(caught.value)
    assert model.read_bytes() == before
    if overwrite:
        assert out.read_text() == "precious"
        out.unlink()
    nothing_left(tmp_path, "m.safetensors")


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_a_disk_that_fills_up_at_any_write(tmp_path, model, monkeypatch, nth):
    """The writes: the data before and after a block's end, the zeros, the header."""
    before, real, calls = model.read_bytes(), rewrite.write_at, []

    def write_at(file, data, place):
        calls.append(place)
        if len(calls) == nth:
            no_space()
        real(file, data, place)

    monkeypatch.setattr(rewrite, "fcntl", None)
    monkeypatch.setattr(rewrite, "write_at", write_at)
    with pytest.raises(OutputError, match="no space left"):
        prune(model, tmp_path / "o", CHOSEN[:1])
    assert len(calls) == nth
    assert (calls[-1] == 0) == (nth == 4)
    assert model.read_bytes() == before
    nothing_left(tmp_path, "m.safetensors")


def test_a_header_that_would_be_too_large(tmp_path, model, monkeypatch):
    prune(model, tmp_path / "o")
    size = len(rawfiles.parse(tmp_path / "o")[1])
    monkeypatch.setattr("nemo_prune.checkpoint.apply.MAX_HEADER_BYTES", size)
    prune(model, tmp_path / "o", overwrite=True)
    monkeypatch.setattr("nemo_prune.checkpoint.apply.MAX_HEADER_BYTES", size - 1)
    with pytest.raises(OutputError, match="header would be larger"):
        prune(model, tmp_path / "p")
    nothing_left(tmp_path, "m.safetensors", "o")


def test_a_file_that_may_not_grow(tmp_path, model):
    """A real failure of the kernel rather than one put in by hand."""
    resource = pytest.importorskip("resource")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
    try:
        with pytest.raises(OutputError, match="file too large"):
            prune(model, tmp_path / "o")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    nothing_left(tmp_path, "m.safetensors")


def test_an_interrupt_leaves_nothing(tmp_path, model, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prune(model, tmp_path / "o")
    nothing_left(tmp_path, "m.safetensors")


def test_an_interrupt_does_not_wait_for_the_hash(tmp_path, model, monkeypatch):
    real, reads = rewrite.Source.read, []

    def slowly(self, start, end, into=None):
        reads.append(start)
        time.sleep(0.01)
        return real(self, start, end, into)

    def interrupt(*_):
        raise KeyboardInterrupt

    chunks_of(monkeypatch, 64)
    monkeypatch.setattr(rewrite.Source, "read", slowly)
    monkeypatch.setattr("nemo_prune.files.rewrite.copy", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prune(model, tmp_path / "o")
    assert len(reads) < model.stat().st_size / 64 / 2
    nothing_left(tmp_path, "m.safetensors")


@pytest.mark.parametrize("chunk", [2**20, 4096])
@pytest.mark.parametrize("place", ["header", "tensor", "row", "last", "behind"])
def test_a_flipped_bit_is_noticed(tmp_path, model, monkeypatch, place, chunk):
    """Whatever the disk does to the copy before it is read back, in header, rows or elsewhere."""
    chunks_of(monkeypatch, chunk)
    rawfiles.sd1(model, "F64", metadata={"format": "pt"})
    prune(model, tmp_path / "o")
    tensors, raw, _ = rawfiles.parse(tmp_path / "o")
    size = (tmp_path / "o").stat().st_size
    assert size > 2 * 4096 + 8 + len(raw)
    position = {
        "header": 9,
        "tensor": 8 + len(raw) + tensors[KEYS[UP]]["data_offsets"][0],
        "row": 8 + len(raw) + tensors[KEYS[DOWN]]["data_offsets"][0] + 3,
        "last": size - 1,
        "behind": size,
    }[place]
    (tmp_path / "o").unlink()
    real, flipped = rewrite.from_disk, []

    def flipping(target, begin, end):
        real(target, begin, end)
        # The first part, with the header, is read last, when all is written.
        if begin <= position < end or (place == "behind" and begin == 0):
            with Path(target.name).open("r+b") as disk:
                disk.seek(position)
                old = disk.read(1) or b"\0"
                disk.seek(position)
                disk.write(bytes([old[0] ^ 1]))
            flipped.append(begin)

    monkeypatch.setattr(rewrite, "from_disk", flipping)
    with pytest.raises(OutputError, match="not what was written"):
        prune(model, tmp_path / "o")
    assert len(flipped) == 1
    # In small parts, what lies behind the header is compared before that is written.
    assert (flipped[0] > 0) == (chunk == 4096 and place in ("tensor", "row", "last"))
    nothing_left(tmp_path, "m.safetensors")


def test_a_bad_disk_is_noticed_while_the_rest_is_copied(tmp_path, model, monkeypatch):
    """And no more is written than a few parts ahead of what was compared."""
    chunks_of(monkeypatch, 4096)
    rawfiles.sd1(model, "F64", metadata={"format": "pt"}, pad=400_000)
    real, places = rewrite.write_at, []

    def noting(file, data, place):
        places.append(place)
        real(file, data, place)

    def losing(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(rewrite, "write_at", noting)
    monkeypatch.setattr(rewrite, "from_disk", losing)
    with pytest.raises(OutputError, match="input/output error"):
        prune(model, tmp_path / "o")
    assert max(places) < 200_000
    nothing_left(tmp_path, "m.safetensors")


def test_the_output_is_hashed_where_it_is_asked_for(tmp_path, model):
    assert prune(model, tmp_path / "a", hashed=False).sha256 is None
    first, second = (tmp_path / name for name in "bc")
    written = prune(model, first, hashed=False, undo=tmp_path / "u")
    assert written.sha256 == prune(model, second).sha256 == sha256(first.read_bytes())
    assert (tmp_path / "a").read_bytes() == first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("how", ["shorter", "other byte", "written over with the same"])
def test_a_source_that_changes_meanwhile(tmp_path, model, monkeypatch, how):
    real = rewrite.copy

    def meddling(*arguments):
        done = real(*arguments)
        if how == "shorter":
            os.truncate(model, 10)
        elif how == "other byte":
            with model.open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"\xff")
        # Else two writers may be at work, and what was read the first time be of either.
        os.utime(model, ns=(1, 1))
        return done

    monkeypatch.setattr("nemo_prune.files.rewrite.copy", meddling)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        prune(model, tmp_path / "o")
    nothing_left(tmp_path, "m.safetensors")


def test_a_source_other_than_the_one_recognized(tmp_path, model):
    checkpoint = recognize(model)
    for other in ({"metadata": {"format": "tp"}}, {"dtype": "F32"}):
        rawfiles.sd1(model, **other)
        with pytest.raises(CheckpointError, match="changed"):
            write_model(checkpoint, CHOSEN, tmp_path / "o", {})
        with pytest.raises(CheckpointError, match="changed"):
            model_zeros(checkpoint)
    model.unlink()
    for call in (
        lambda: write_model(checkpoint, CHOSEN, tmp_path / "o", {}),
        lambda: model_zeros(checkpoint),
        lambda: file_sha256(model),
    ):
        with pytest.raises(CheckpointError, match="cannot be read"):
            call()
    nothing_left(tmp_path)


def test_a_source_that_cannot_be_read(tmp_path, model, monkeypatch):
    real = rewrite.read_at

    def failing(file, start, end, into=None):
        if str(file.name) == str(model) and start:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(file, start, end, into)

    checkpoint = recognize(model)
    monkeypatch.setattr(rewrite, "read_at", failing)
    with pytest.raises(CheckpointError, match=r"m\.safetensors: cannot be read"):
        write_model(checkpoint, CHOSEN, tmp_path / "o", {})
    nothing_left(tmp_path, "m.safetensors")
