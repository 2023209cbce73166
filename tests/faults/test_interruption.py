"""Killed, stopped, out of room: the output is whole or absent, the source is as it was."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import rawfiles
from corpus import LAYER, manifest
from tiny import small_unet, write_tiny

from benchmarks import torture

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_hang_up_is_heard")]

NEURONS: list[dict[str, object]] = [{"layer": LAYER, "row": row} for row in range(4)]
SMALL = json.dumps({"unet": small_unet(16)})
QUICK = ("--seeds", "3", "--device", "cpu", "--layers", "down_blocks.0.attentions.0*",
         "--tau", "0", "--gate", "0")  # fmt: skip
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
namespaces = pytest.mark.skipif(
    not shutil.which("unshare")
    or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0,
    reason="needs unshare -rm, to mount small file systems",
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Large enough, with its 30 MB, to be killed while it is written."""
    entries = [
        rawfiles.VAE,
        *rawfiles.unet(rawfiles.SD1),
        rawfiles.CLIP,
        ("ballast", "U8", (30 * 2**20,)),
    ]
    return rawfiles.write(tmp_path / "m.safetensors", entries, values={"ballast": bytes(30 * 2**20)})


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.safetensors", metadata={"nemo_prune.config": SMALL})


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"a caption of number {i}\n" for i in range(20)))
    return path


def test_killed_while_applying(model: Path, tmp_path: Path) -> None:
    victim = torture.applying(model, tmp_path, NEURONS)
    assert torture.torture(victim, 10, random.Random(0)) >= 3


def test_the_torture_notices_damage(model: Path, tmp_path: Path) -> None:
    victim = torture.applying(model, tmp_path, NEURONS)
    victim.prepare()
    victim.out.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(AssertionError, match="neither whole nor absent"):
        victim.check()
    with model.open("r+b") as file:
        file.write(b"x")
    with pytest.raises(AssertionError, match="source was changed"):
        victim.check()


@pytest.fixture(autouse=True)
def _listening() -> Iterator[None]:
    """A shell that starts a job in the background has it ignore SIGINT, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_stopped_while_applying(model: Path, tmp_path: Path, number: int, code: int) -> None:
    """What is half written is removed by the run itself."""
    victim = torture.applying(model, tmp_path, NEURONS)
    victim.prepare()
    for _ in range(5):
        process = victim.start()
        while process.poll() is None and not victim.temporary():
            time.sleep(0.0002)
        process.send_signal(number)
        found = process.wait()
        assert victim.temporary() == []
        assert found == (0 if victim.out.exists() else code)
        victim.check()
        if found == code:
            return
    pytest.fail("the run was never stopped while it wrote")


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_stopped_while_searching(
    tiny: Path, prompts: Path, tmp_path: Path, number: int, code: int
) -> None:
    """The exit code tells, nothing but the manifest of what was finished is written."""
    out, kept = tmp_path / "out.safetensors", tmp_path / "m.json"
    command = [*torture.RUN, "prune", str(tiny), "--prompts", str(prompts), "-o", str(out),
               "--manifest", str(kept), "--batch-size", "1", *QUICK]  # fmt: skip
    # Rather too early than too late: wait for the model to be loaded.
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and maps.exists() and "libtorch_cpu" not in maps.read_text():
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    assert "interrupted" in stderr
    assert not out.exists()
    assert not list(tmp_path.glob(".*.tmp"))


def applied(model: Path, out: Path, folder: Path, *before: str) -> "subprocess.CompletedProcess[str]":
    orders = folder / "orders.json"
    orders.write_text(json.dumps(manifest()))
    command = [*torture.RUN, "apply", str(model), "--manifest", str(orders), "-o", str(out)]
    return subprocess.run([*before, *command], capture_output=True, text=True)


def refused(done: "subprocess.CompletedProcess[str]", words: str) -> None:
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("nemo-prune: ")
    assert words in line


@namespaces
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("size=64k", "the disk has"),
        ("size=100m,nr_inodes=1", "no space left"),
        ("ro", "read-only file system"),
    ],
)
def test_small_and_sealed_file_systems(tmp_path: Path, options: str, words: str) -> None:
    model, disk = rawfiles.sd1(tmp_path / "m.safetensors", pad=100_000), tmp_path / "disk"
    disk.mkdir()
    script = f'mount -t tmpfs -o {options} none "$0" && "$@"; code=$?; ls -A "$0" >&2; exit $code'
    before = ["unshare", "-rm", "sh", "-c", script, str(disk)]
    done = applied(model, disk / "out.safetensors", tmp_path, *before)
    if options == "ro" and "not writable" in done.stderr:
        words = "not writable"
    refused(done, words)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs POSIX limits")
def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    model, out = rawfiles.sd1(tmp_path / "m.safetensors"), tmp_path / "out.safetensors"
    done = applied(model, out, tmp_path, "sh", "-c", 'ulimit -f 8; exec "$0" "$@"')
    refused(done, "file too large")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.safetensors", "orders.json"]


def test_two_at_once(model: Path, tmp_path: Path) -> None:
    """One wins, the other says so."""
    victim = torture.applying(model, tmp_path, NEURONS)
    victim.prepare()
    both = [
        subprocess.Popen([*torture.RUN, *victim.arguments], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2]
    loser = told[0] if both[0].returncode else told[1]
    assert "exists already" in loser or "by another process" in loser
    victim.check()
    assert not victim.temporary()
