"""What is written is read back from the disk itself, not from the memory that was just written."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import rawfiles
from corpus import LAYER

from nemo_prune.checkpoint.apply import write_model
from nemo_prune.checkpoint.neurons import Neuron
from nemo_prune.checkpoint.recognize import recognize
from nemo_prune.errors import OutputError
from nemo_prune.files import rewrite


def test_a_reader_that_is_gone_is_said(tmp_path: Path) -> None:
    """Exit code 2 without a line looks like a broken tool; `head` closes a pipe so."""
    model = rawfiles.sd1(tmp_path / "m.safetensors")
    reader, writer = os.pipe()
    os.close(reader)
    found = subprocess.run(
        [sys.executable, "-c", "from nemo_prune.cli.start import run; run()", "inspect", str(model)],
        stdout=writer, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(writer)
    assert found.returncode == 2
    assert found.stderr == "nemo-prune: standard output was closed before all was written\n"


def in_memory(file: int) -> bool:
    """Whether the kernel holds the file's first bytes."""
    try:
        return bool(os.preadv(file, [bytearray(16)], 0, os.RWF_NOWAIT))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            pytest.skip("this file system does not tell what it holds in memory")
        raise


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="needs Linux")
def test_reading_back_asks_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = rawfiles.sd1(tmp_path / "m.safetensors")
    real, seen = rewrite.from_disk, []

    def watched(target, begin, end):
        with Path(target.name).open("rb") as other:
            os.preadv(other.fileno(), [bytearray(16)], 0)
            before = in_memory(other.fileno())
            real(target, begin, end)
            seen.append((before, in_memory(other.fileno())))

    monkeypatch.setattr(rewrite, "from_disk", watched)
    write_model(recognize(model), [Neuron(LAYER, 0)], tmp_path / "o", {})
    if seen[-1][1]:
        pytest.skip("this file system keeps its files in memory alone")
    assert seen[-1] == (True, False)


def test_a_disk_that_loses_what_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bit that flips on the way to the disk: memory is right, the disk is wrong."""
    model = rawfiles.sd1(tmp_path / "m.safetensors")
    real = rewrite.from_disk

    def losing(target, begin, end):
        real(target, begin, end)
        with next(tmp_path.glob(".o.*.tmp")).open("r+b") as disk:
            disk.seek(-1, os.SEEK_END)
            last = disk.read(1)[0]
            disk.seek(-1, os.SEEK_END)
            disk.write(bytes([last ^ 4]))

    monkeypatch.setattr(rewrite, "from_disk", losing)
    with pytest.raises(OutputError, match="not what was written"):
        write_model(recognize(model), [Neuron(LAYER, 0)], tmp_path / "o", {})
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]
