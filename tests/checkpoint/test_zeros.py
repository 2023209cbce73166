"""Which neurons are zero already, in one copy and in several."""

import os

import pytest
import rawfiles
from rawfiles import SD1, unet, write
from test_surgery import CHOSEN, DOWN, KEYS, MID, TWINS, UP, prune

from nemo_prune.checkpoint import zeros
from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.checkpoint.zeros import Zeros, model_zeros
from nemo_prune.errors import CheckpointError
from nemo_prune.files.rewrite import Source

DTYPES = ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_was_zeroed_is_found(tmp_path, dtype):
    path = rawfiles.sd1(tmp_path / "m.safetensors", dtype, with_ema=True)
    assert model_zeros(recognize(path)) == {}
    prune(path, tmp_path / "o", CHOSEN)
    assert model_zeros(recognize(tmp_path / "o")) == {
        DOWN: Zeros((0, 1), ()), MID: Zeros((7,), ()), UP: Zeros((2,), ())
    }  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_negative_zero_is_zero_but_small_numbers_are_not(tmp_path, dtype):
    size = rawfiles.SIZES[dtype]
    negative, small = b"\0" * (size - 1) + b"\x80", b"\x01" + b"\0" * (size - 1)
    # 0x80 anywhere but in the last byte is a number.
    odd = b"\x80" + b"\0" * (size - 1) if size > 1 else small
    zero = b"\0" * size
    rows = [negative * 5, zero * 4 + small, (zero + negative) * 2 + zero, zero * 4 + odd]
    path = tmp_path / "m.safetensors"
    write(path, unet(SD1, dtype=dtype), values={KEYS[DOWN]: b"".join(rows)})
    assert model_zeros(recognize(path)) == {DOWN: Zeros((0, 2), ())}


@pytest.mark.parametrize("dtype", ["F8_E4M3FNUZ", "F8_E5M2FNUZ"])
def test_the_nan_of_fnuz_is_not_zero(tmp_path, dtype):
    path = tmp_path / "m.safetensors"
    rows = [b"\x80" * 5, b"\0" * 5, b"\x01" * 5, b"\x01" * 5]
    write(path, unet(SD1, dtype=dtype), values={KEYS[DOWN]: b"".join(rows)})
    assert model_zeros(recognize(path)) == {DOWN: Zeros((1,), ())}


@pytest.mark.parametrize("place", [0, 63, 64, 99])
def test_a_row_longer_than_what_is_looked_at_first(tmp_path, place):
    rows = [bytearray(100) for _ in range(4)]
    rows[1][place] = 1
    shape = SD1 | {"columns": 50}
    path = tmp_path / "m.safetensors"
    write(path, unet(shape, dtype="F16"), values={KEYS[DOWN]: b"".join(rows)})
    assert model_zeros(recognize(path)) == {DOWN: Zeros((0, 2, 3), ())}


@pytest.mark.parametrize("chunk", [1, 25, 64, 10**6])
def test_rows_are_read_a_few_at_a_time(tmp_path, monkeypatch, chunk):
    # One layer of 4 rows of 20 bytes, one of 8 with biases of 4 bytes each.
    monkeypatch.setattr(zeros, "_CHUNK", chunk)
    lengths: list[int] = []
    read = Source.read
    monkeypatch.setattr(
        Source, "read",
        lambda self, start, end, into=None: lengths.append(end - start) or read(self, start, end, into),
    )  # fmt: skip
    entries = [*unet(SD1, "diffusers", "F32"), (f"{MID}.bias", "F32", (8,))]
    row, none = b"\1" * 20, b"\0" * 20
    values = {
        f"{DOWN}.weight": none + row + row + none,
        f"{MID}.weight": none * 2 + row * 4 + none * 2,
        f"{MID}.bias": b"\0" * 4 + b"\1" * 24 + b"\0" * 4,
    }
    path = write(tmp_path / "m.safetensors", entries, values=values)
    assert model_zeros(recognize(path)) == {DOWN: Zeros((0, 3), ()), MID: Zeros((0, 7), ())}
    assert max(lengths[1:]) <= max(chunk, 20), "the first is the header"


def test_a_file_that_is_cut_off_meanwhile(tmp_path, monkeypatch):
    path = rawfiles.sd1(tmp_path / "m.safetensors")
    rows_of_zeros = zeros._rows_of_zeros

    def cut_off(source, tensor):
        os.truncate(path, tensor.start + 1)
        return rows_of_zeros(source, tensor)

    monkeypatch.setattr(zeros, "_rows_of_zeros", cut_off)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        model_zeros(recognize(path))


def test_copies_that_disagree(tmp_path):
    entries = unet(SD1, dtype="F16")
    entries += rawfiles.ema(entries, "F32")
    main = b"\0" * 20 + b"\1" * 20
    twin = b"\0" * 20 + b"\1" * 20 + b"\0" * 20 + b"\1" * 20
    path = write(tmp_path / "m.safetensors", entries, values={KEYS[DOWN]: main, TWINS[DOWN]: twin})
    assert model_zeros(recognize(path)) == {DOWN: Zeros((0,), (1, 2))}


def test_a_bias_that_is_left_keeps_a_neuron_alive(tmp_path):
    entries = [*unet(SD1, "diffusers", "F16"), (f"{MID}.bias", "F32", (8,))]
    values = {f"{MID}.weight": b"\0" * 80, f"{MID}.bias": b"\0\0\0\0\0\0\0\x80" + b"\1" * 24}
    path = write(tmp_path / "m.safetensors", entries, values=values)
    assert model_zeros(recognize(path)) == {MID: Zeros((0, 1), ())}


def test_a_file_that_is_gone(tmp_path):
    checkpoint = recognize(rawfiles.sd1(tmp_path / "m.safetensors"))
    checkpoint.path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        model_zeros(checkpoint)
