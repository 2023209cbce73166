import json
import os
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rawfiles import assemble, write
from safetensors import SafetensorError, safe_open

from nemo_prune.errors import CheckpointError
from nemo_prune.files.header import DTYPE_BITS, Tensor, read_header

ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
ONE_TEXT = json.dumps(ONE)


def test_reads_names_ranges_and_metadata_in_file_order(tmp_path):
    path = write(
        tmp_path / "m.safetensors",
        [("z", "F16", (2, 3)), ("a", "F32", ()), ("e", "I64", (0, 4))],
        {"format": "pt", "b": "", "a": "ü\n"},
        pad=3,
    )
    header = read_header(path)
    start = 8 + len(header.raw)
    assert list(header.tensors.values()) == [
        Tensor("z", "F16", (2, 3), start, start + 12),
        Tensor("a", "F32", (), start + 12, start + 16),
        Tensor("e", "I64", (0, 4), start + 16, start + 16),
    ]
    assert list(header.metadata.items()) == [("format", "pt"), ("b", ""), ("a", "ü\n")]
    assert header.path == path
    assert header.data_start == start
    assert header.size == path.stat().st_size
    assert header.raw.endswith(b"}   ")


def test_tensor_order_in_the_file_need_not_be_the_order_of_the_data(tmp_path):
    text = json.dumps({"b": {**ONE, "data_offsets": [4, 8]}, "a": ONE})
    path = tmp_path / "m.safetensors"
    path.write_bytes(assemble(text, b"01234567"))
    assert list(read_header(path).tensors) == ["b", "a"]


def tensors(**fields):
    return json.dumps({"t": {**ONE, **fields}})


FAULTS = {
    "empty": (b"", "is empty"),
    "few bytes": (b"abc", "too few"),
    "one byte of a pickle": (b"\x80", "too few"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
    "zip": (b"PK\x03\x04\x00\x00\x08\x08" + bytes(100), "weights_only=True"),
    "pickle": (b"\x80\x02}q\x00(X\x05\x00\x00\x00state" + bytes(100), "weights_only=True"),
    "gguf": (b"GGUF\x03\x00\x00\x00" + bytes(100), "GGUF"),
    "an answer": (b'{"error":"Invalid username or password."}', "is JSON, not a model"),
    "an index": (b'{\n  "metadata": {"total_size": 1}, "weight_map": {}}', "is JSON, not a model"),
    "html": (b"<!DOCTYPE html><html>" + bytes(100), "web page"),
    "random bytes": (bytes(range(1, 200)), "at most 16777216"),
    "huge length": (assemble("{}", length=2**64 - 1), "at most 16777216"),
    "over the limit": (assemble("{}", length=100_000_001), "at most 16777216"),
    "length beyond the end": (assemble("{}", length=500), "should take 500 bytes"),
    "no header": (assemble("") + bytes(20), "does not begin with {"),
    "array": (assemble("[]"), "does not begin with {"),
    "leading space": (assemble(' {"t":' + ONE_TEXT + "}", bytes(4)), "does not begin with {"),
    "byte order mark": (assemble("\ufeff{}"), "does not begin with {"),
    "not json": (assemble("{oops}"), "not JSON"),
    "half json": (assemble('{"t":'), "not JSON"),
    "nul padding": (assemble(json.dumps({"t": ONE}) + "\0", bytes(4)), "not JSON"),
    "control character": (assemble('{"t\x01":' + ONE_TEXT + "}", bytes(4)), "not JSON"),
    "not utf-8": (assemble(b'{"\xff":1}'), "not UTF-8"),
    "lone surrogate in a name": (
        assemble('{"\\ud800":' + ONE_TEXT + "}", bytes(4)),
        "not Unicode",
    ),
    "lone surrogate in metadata": (
        assemble('{"__metadata__":{"a":"\\udc00"},"t":' + ONE_TEXT + "}", bytes(4)),
        "not Unicode",
    ),
    "nan": (assemble('{"t":NaN}'), "has NaN"),
    "deep": (assemble('{"t":' + "[" * 100_000 + "]" * 100_000 + "}"), "nests too deeply"),
    "no tensors": (assemble("{}      "), "holds no tensors"),
    "only metadata": (assemble('{"__metadata__":{"a":"b"}}'), "holds no tensors"),
    "tensor twice": (assemble(f'{{"t":{ONE_TEXT},"t":{ONE_TEXT}}}', bytes(4)), "'t' twice"),
    "tensor twice by escape": (
        assemble(f'{{"t":{ONE_TEXT},"\\u0074":{ONE_TEXT}}}', bytes(4)),
        "'t' twice",
    ),
    "metadata twice": (
        assemble('{"__metadata__":{"k":"1","k":"2"},"t":' + ONE_TEXT + "}", bytes(4)),
        "'k' twice",
    ),
    "metadata number": (
        assemble('{"__metadata__":{"k":1},"t":' + ONE_TEXT + "}", bytes(4)),
        "'k' that is not a string",
    ),
    "metadata list": (
        assemble('{"__metadata__":[],"t":' + ONE_TEXT + "}", bytes(4)),
        "not an object",
    ),
    "unknown dtype": (assemble(tensors(dtype="F33"), bytes(4)), "unknown dtype 'F33'"),
    "dtype list": (assemble(tensors(dtype=[]), bytes(4)), "unknown dtype []"),
    "entry not an object": (assemble('{"t":["F32",[1],[0,4]]}', bytes(4)), "without exactly"),
    "further field": (assemble(tensors(x=1), bytes(4)), "without exactly"),
    "missing field": (assemble('{"t":{"dtype":"F32","shape":[1]}}', bytes(4)), "without exactly"),
    "shape true": (assemble(tensors(shape=[True]), bytes(4)), "not whole numbers"),
    "shape float": (assemble(tensors(shape=[1.0]), bytes(4)), "not whole numbers"),
    "shape null": (assemble(tensors(shape=None), bytes(4)), "not whole numbers"),
    "three offsets": (assemble(tensors(data_offsets=[0, 4, 4]), bytes(4)), "not whole numbers"),
    "one more than u64": (assemble(tensors(shape=[2**64, 0]), bytes(4)), "not whole numbers"),
    "negative": (assemble(tensors(shape=[-1]), bytes(4)), "impossible number"),
    "minus zero": (
        assemble('{"t":{"dtype":"F32","shape":[1],"data_offsets":[-0,4]}}', bytes(4)),
        "impossible number",
    ),
    "thousands of digits": (
        assemble('{"t":{"dtype":"F32","shape":[' + "9" * 5000 + '],"data_offsets":[0,4]}}'),
        "impossible number",
    ),
    "overflow": (assemble(tensors(shape=[2**40, 2**40])), "impossible size"),
    "overflow before a zero": (
        assemble(tensors(shape=[2**63, 2, 0], data_offsets=[0, 0])),
        "impossible size",
    ),
    "half a byte": (
        assemble(tensors(dtype="F4", shape=[3], data_offsets=[0, 2]), bytes(2)),
        "middle of a byte",
    ),
    "shape too large": (assemble(tensors(shape=[2]), bytes(4)), "should take 8 bytes"),
    "range backwards": (assemble(tensors(data_offsets=[4, 0]), bytes(4)), "should take 4 bytes"),
    "truncated": (assemble(tensors(), bytes(3)), "is truncated: its header promises"),
    "trailing": (assemble(tensors(), bytes(6)), "2 bytes too many"),
    "hole": (assemble(tensors(data_offsets=[4, 8]), bytes(8)), "leaves a hole"),
    "overlap": (assemble(json.dumps({"t": ONE, "u": ONE}), bytes(4)), "overlaps another"),
    "empty tensor inside another": (
        assemble(
            json.dumps(
                {
                    "t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                    "u": {"dtype": "F32", "shape": [0], "data_offsets": [4, 4]},
                }
            ),
            bytes(8),
        ),
        "overlaps another",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_has_its_own_line(tmp_path, name):
    content, words = FAULTS[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert words in line
    assert "\n" not in line
    assert len(line) < len(str(path)) + 250


@pytest.mark.parametrize("suffix", [".ckpt", ".CKPT", ".pt", ".pth", ".bin", ".pkl"])
def test_pickle_suffixes_are_refused_whatever_is_inside(tmp_path, suffix):
    path = write(tmp_path / f"m{suffix}", [("t", "F32", (1,))])
    with pytest.raises(CheckpointError, match="weights_only=True"):
        read_header(path)


@pytest.mark.parametrize(
    "name", ["runwayml/stable-diffusion-v1-5", "https://example.org/model.safetensors"]
)
def test_what_is_not_on_the_disk_is_not_fetched(name):
    with pytest.raises(CheckpointError, match="nothing is fetched"):
        read_header(Path(name))


def test_missing_folder_and_devices(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        read_header(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="no such file"):
        read_header(write(tmp_path / "m.safetensors", [("t", "F32", (1,))]) / "below")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_header(tmp_path)
    with pytest.raises(CheckpointError, match="not a possible file name"):
        read_header(Path("a\0b"))
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_header(tmp_path / ("x" * 300))
    for device in ("/dev/zero", "/dev/null"):
        with pytest.raises(CheckpointError, match="not a regular file"):
            read_header(Path(device))
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_header(pipe)


def test_a_header_length_that_looks_like_a_pickle_is_still_safetensors(tmp_path):
    path = tmp_path / "m.safetensors"
    text = json.dumps({"t": ONE}).ljust(0x0280)
    path.write_bytes(assemble(text, bytes(4)))
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert list(read_header(path).tensors) == ["t"]


def test_null_metadata_is_none_as_for_the_library(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(assemble('{"__metadata__":null,"t":' + ONE_TEXT + "}", bytes(4)))
    assert read_header(path).metadata == {}


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_dtypes_have_the_library_s_sizes(tmp_path, dtype):
    size = DTYPE_BITS[dtype]
    path = tmp_path / "m.safetensors"
    entry = {"t": {"dtype": dtype, "shape": [8], "data_offsets": [0, size]}}
    path.write_bytes(assemble(json.dumps(entry), bytes(size)))
    assert read_header(path).tensors["t"].dtype == dtype
    with safe_open(path, "np") as file:
        assert list(file.keys()) == ["t"]


# ------------------------------------------------------------- against the safetensors library


def library_reads(path):
    try:
        with safe_open(path, "np") as file:
            return list(file.keys()), file.metadata()
    except (SafetensorError, OSError):
        return None


def agree(path, content):
    """We accept only what the library accepts, and understand the same by it."""
    path.write_bytes(content)
    theirs = library_reads(path)
    try:
        ours = read_header(path)
    except CheckpointError:
        return theirs is None
    assert theirs is not None
    assert sorted(ours.tensors) == sorted(theirs[0])
    assert ours.metadata == (theirs[1] or {})
    return True


words = st.text(max_size=4)
sizes = st.one_of(st.integers(0, 9), st.sampled_from([-1, 2**63, 2**64, True, None, 1.0, "1"]))
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPE_BITS, "F33"]),
        "shape": st.lists(sizes, max_size=3),
        "data_offsets": st.lists(sizes, min_size=2, max_size=2),
    }
)
headers = st.dictionaries(words, entries, min_size=1, max_size=3)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(headers, st.one_of(st.none(), st.dictionaries(words, words)), st.integers(0, 30))
def test_arbitrary_headers_against_the_library(tmp_path, header, metadata, tail):
    if metadata is not None:
        header["__metadata__"] = metadata
    assert agree(tmp_path / "m.safetensors", assemble(json.dumps(header), bytes(tail)))


tilings = st.lists(
    st.tuples(st.sampled_from(list(DTYPE_BITS)), st.lists(st.integers(0, 4), max_size=3), words),
    min_size=1,
    max_size=4,
    unique_by=lambda t: t[2],
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tilings, st.randoms(), st.sampled_from([0, 0, 0, -1, 1]), st.booleans(), st.booleans())
def test_sound_and_nearly_sound_files_against_the_library(
    tmp_path, tiling, chance, nudge, escaped, padded
):
    header = {}
    position = 0
    for dtype, shape, name in tiling:
        bits = DTYPE_BITS[dtype]
        for length in shape:
            bits *= length
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [position, position + bits // 8],
        }
        position += bits // 8
    names = list(header)
    chance.shuffle(names)
    text = json.dumps({n: header[n] for n in names}, ensure_ascii=escaped) + " " * padded
    assert agree(tmp_path / "m.safetensors", assemble(text, bytes(max(0, position + nudge))))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files_against_the_library(tmp_path, data):
    """Flip, cut or insert bytes. Only the deliberate differences may disagree, and those refuse."""
    good = assemble(
        json.dumps({"__metadata__": {"a": "b"}, "t": ONE, "u": {**ONE, "data_offsets": [4, 8]}}),
        bytes(8),
    )
    content = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    path = tmp_path / "m.safetensors"
    if not agree(path, bytes(content)):
        with pytest.raises(CheckpointError, match=r"twice|without exactly|holds no|begin with"):
            read_header(path)


def test_the_deliberate_differences(tmp_path):
    """What the library lets pass and we do not: see the module's docstring."""
    path = tmp_path / "m.safetensors"
    for name in (
        "tensor twice",
        "metadata twice",
        "no tensors",
        "entry not an object",
        "further field",
        "leading space",
    ):
        path.write_bytes(FAULTS[name][0])
        assert library_reads(path) is not None, name


def test_every_other_fault_is_refused_by_the_library_too(tmp_path):
    ours_alone = {
        "tensor twice",
        "tensor twice by escape",
        "metadata twice",
        "no tensors",
        "only metadata",
        "entry not an object",
        "further field",
        "leading space",
    }
    path = tmp_path / "m.safetensors"
    for name in FAULTS.keys() - ours_alone:
        path.write_bytes(FAULTS[name][0])
        assert library_reads(path) is None, name


def test_the_header_is_read_without_the_weights(tmp_path):
    """A sparse file of 7 GB answers at once."""
    size = 7 * 2**30
    text = json.dumps({"t": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}})
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text.encode())
        file.truncate(8 + len(text) + size)
    assert read_header(path).tensors["t"].end == path.stat().st_size


def test_text_is_called_text(tmp_path: Path) -> None:
    """Its first bytes would announce a header of exabytes."""
    path = tmp_path / "rows.safetensors"
    path.write_text("a cat on a mat\na dog\n")
    with pytest.raises(CheckpointError, match="is text, not safetensors"):
        read_header(path)
